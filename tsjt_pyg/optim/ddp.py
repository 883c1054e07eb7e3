"""Settings of DistributedDataParallel under which two backward passes a step go wrong."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch
from torch import Tensor


def check_ddp(params: Iterable[Tensor]) -> None:
    """Refuse a DistributedDataParallel model of these parameters that cannot keep two gradients apart.

    Raises:
        RuntimeError: if its communication hook is PowerSGD, whose memory of what it left out of the source's gradient
            is added to the target's, or if it was built with ``static_graph=True``.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.nn.parallel import DistributedDataParallel

    mine = {id(p) for p in params}
    for model in gc.get_objects():
        if not issubclass(type(model), DistributedDataParallel) or mine.isdisjoint(id(p) for p in model.parameters()):
            continue
        hooks = [getattr(hook, "__name__", str(hook)) for hook, _ in getattr(model, "_comm_hooks", ())]
        if any("powersgd" in hook.lower() for hook in hooks):
            raise RuntimeError(
                f"the model's communication hook is {hooks[0]}, but PowerSGD adds what it left out of one gradient to "
                "the next one, which mixes the source's into the target's; allowed are hooks without memory, such as "
                "fp16_compress_hook, or none"
            )
        if model.static_graph:
            raise RuntimeError(
                "the model was built with DistributedDataParallel(static_graph=True), which expects one and the same "
                "backward pass in every step, but a step has a source's and a target's; allowed is static_graph=False, "
                "with find_unused_parameters=True where parameters belong to one city"
            )
