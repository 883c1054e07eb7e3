"""Models that several processes train: what they need for two gradients a step, and what cannot work."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def is_parallel() -> bool:
    """Whether several processes train together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1


def prepare_reducer(model: DistributedDataParallel, loss: Tensor) -> None:
    """Before a backward pass of ``loss``: a reducer expects that the last forward pass was this loss's, but it may not
    be."""
    if model.require_backward_grad_sync:
        model.reducer._rebuild_buckets()
        model.reducer.prepare_for_backward([loss] if model.find_unused_parameters else [])


class ParallelModels:
    """The DistributedDataParallel and FSDP2 models of some parameters.

    An optimizer is given parameters only, so the models are looked for among all objects; in a single process there are
    none.

    Args:
        params: parameters of the optimizer.

    Raises:
        RuntimeError: if a DistributedDataParallel model cannot keep two gradients apart: if its communication hook is
            PowerSGD, whose memory of what it left out of the source's gradient is added to the target's, or if it was
            built with ``static_graph=True``.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._ddp: list[DistributedDataParallel] = []
        self._fsdp: list[Any] = []
        if not is_parallel():
            return
        from torch.distributed.fsdp import FSDPModule

        mine = {id(p) for p in params}
        for model in gc.get_objects():
            kind = type(model)  # not isinstance(), which some objects answer at length
            if issubclass(kind, FSDPModule):
                models: list[Any] = self._fsdp
            elif issubclass(kind, DistributedDataParallel):
                models = self._ddp
            else:
                continue
            if not mine.isdisjoint(id(p) for p in model.parameters()):
                models.append(model)
        for model in self._ddp:
            _check_ddp(model)

    def prepare(self, loss: Tensor) -> None:
        """Before a backward pass of ``loss``; see :func:`prepare_reducer`."""
        for model in self._ddp:
            prepare_reducer(model, loss)

    def reductions(self) -> list[Any]:
        """What differs after a backward pass in which the reducers took part."""
        return [model.reducer.get_backward_stats() for model in self._ddp]

    def check_reduced(self, before: list[Any], block: object) -> None:
        """Refuse gradients of a backward pass in which a reducer had no part, so that they differ between processes.

        Args:
            before: :meth:`reductions` when the block was entered.
            block: named in the error.
        """
        for model, then in zip(self._ddp, before, strict=True):
            # Without require_forward_param_sync, the forward pass was in no_sync().
            if model.require_forward_param_sync and model.reducer.get_backward_stats() == then:
                raise RuntimeError(
                    f"the processes did not share the gradients of {block}, because DistributedDataParallel does so "
                    "for one backward pass after each forward pass: put the forward pass into the block too, or call "
                    "backward(source_loss, target_loss)"
                )

    def check_nothing_pending(self, last: object, block: object) -> None:
        """Refuse to enter a block while FSDP2 holds gradients of another back, which it would add to this one's."""
        if any(_is_pending(p) for model in self._fsdp for p in _fsdp_params(model)):
            raise RuntimeError(
                f"{block} was entered while FSDP holds gradients of {last} back, since "
                f"set_requires_gradient_sync(False), and would add them to those of {block}: gather one city after the "
                "other, with set_requires_gradient_sync(True) before the last backward pass of each"
            )


def _check_ddp(model: DistributedDataParallel) -> None:
    hooks = [getattr(hook, "__name__", str(hook)) for hook, _ in getattr(model, "_comm_hooks", ())]
    if any("powersgd" in hook.lower() for hook in hooks):
        raise RuntimeError(
            f"the model's communication hook is {hooks[0]}, but PowerSGD adds what it left out of one gradient to the "
            "next one, which mixes the source's into the target's; allowed are hooks without memory, such as "
            "fp16_compress_hook, or none"
        )
    if model.static_graph:
        raise RuntimeError(
            "the model was built with DistributedDataParallel(static_graph=True), which expects one and the same "
            "backward pass in every step, but a step has a source's and a target's; allowed is static_graph=False, "
            "with find_unused_parameters=True where parameters belong to one city"
        )


# FSDP2 says nowhere in public whether it holds gradients back; where these names change, the check finds nothing.
def _fsdp_params(model: Any) -> Iterator[Any]:
    group = getattr(model._get_fsdp_state(), "_fsdp_param_group", None)
    yield from getattr(group, "fsdp_params", ())


def _is_pending(param: Any) -> bool:
    unsharded = getattr(param, "_unsharded_param", None)
    held = getattr(param, "unsharded_accumulated_grad", None)
    return held is not None or (unsharded is not None and unsharded.grad is not None)
