"""What the two processes of test_distributed.py do, and one process with the batches of both.

Every function takes the rank first; rank None is the one process. It returns what the test compares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR
from two_processes import WORLD_SIZE

from tsjt_pyg.optim import TargetSkewedOptimizer

CITY = {"s": "source", "t": "target"}
GAMMAS = {"gamma_source": 0.7, "gamma_target": 0.3}
STEPS = 5


class CityModel(nn.Module):
    """Neither 7 nor 1 rows can be shared out evenly between two processes.

    Args:
        own_layers: each city has a layer that the other does not use, and there is one that nobody uses.
    """

    def __init__(self, own_layers: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 7), nn.Linear(7, 1)
        self.own = nn.ModuleDict(
            {name: nn.Linear(7, 7) for name in ("source", "target", "nobody")} if own_layers else {}
        )
        self.to(torch.float64)  # so that only what is wrong differs, and not what is rounded elsewhere
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)

    def forward(self, x: Tensor, city: str) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if city in self.own:
            hidden = torch.tanh(self.own[city](hidden))
        return self.last(hidden)


@dataclass
class Outcome:
    weights: dict[str, Tensor]
    stats: dict[str, float]
    extra: Any = None


def outcome(model: nn.Module, optimizer: TargetSkewedOptimizer, extra: Any = None) -> Outcome:
    return Outcome({name: whole(p) for name, p in model.named_parameters()}, optimizer.stats(), extra)


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def inputs(number: int, city: str) -> tuple[Tensor, Tensor]:
    """A batch; the two cities want different things of the model."""
    generator = torch.Generator().manual_seed(2 * number + (city == "target"))
    x, noise = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    return x, x[:, :1] * (1 if city == "source" else -1) + 0.5 * x[:, 1:2] + noise[:, :1]


def half(batch: Tensor, rank: int | None) -> Tensor:
    return batch if rank is None else batch[rank::WORLD_SIZE]


def loss_of(model: nn.Module, city: str, number: int, rank: int | None) -> Tensor:
    x, y = (half(tensor, rank) for tensor in inputs(number, city))
    return (model(x, city) - y).square().mean()


def train(
    model: nn.Module,
    optimizer: TargetSkewedOptimizer,
    rank: int | None,
    blocks: str = "st",
    steps: range = range(STEPS),
    set_sync: Callable[[bool], Any] = lambda sync: nullcontext(),
    before_step: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
    forward_outside: bool = False,
) -> None:
    """Steps of one block a letter.

    Args:
        set_sync: called for each block with whether it is the last of its city, which is the one to be synchronised;
            the forward and the backward pass run in the context that it returns.
    """
    for step in steps:
        optimizer.zero_grad()
        for i, letter in enumerate(blocks):
            city = CITY[letter]
            with set_sync(letter not in blocks[i + 1 :]):
                outside = loss_of(model, city, 10 * step + i, rank) if forward_outside else None
                with getattr(optimizer, city)():
                    loss = loss_of(model, city, 10 * step + i, rank) if outside is None else outside
                    loss.backward()
        before_step()
        optimizer.step()
        after_step()


def ddp(
    rank: int | None,
    blocks: str = "st",
    own_layers: bool = False,
    no_sync: bool = False,
    forward_outside: bool = False,
    hook: Any = None,
    **kwargs: Any,
) -> Outcome:
    model = CityModel(own_layers)
    # Weight decay moves a parameter with a gradient of zeros, but not one without a gradient.
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, momentum=0.9, weight_decay=0.1, **GAMMAS)
    if rank is None:
        train(model, optimizer, rank, blocks)
        return outcome(model, optimizer)
    wrapped = DistributedDataParallel(model, **kwargs)
    if hook is not None:
        wrapped.register_comm_hook(None, hook)

    def set_sync(sync: bool) -> AbstractContextManager[None]:
        return nullcontext() if sync or not no_sync else wrapped.no_sync()

    train(wrapped, optimizer, rank, blocks, set_sync=set_sync, forward_outside=forward_outside)
    buckets = wrapped._get_ddp_logging_data().get("rebuilt_bucket_sizes", "")
    return outcome(model, optimizer, extra=buckets.count(",") + 1)


def ddp_with_an_ordinary_hook(rank: int | None) -> Outcome:
    return ddp(rank, hook=default_hooks.allreduce_hook)


def ddp_forwards_first(rank: int | None, forward: str, in_blocks: bool, **kwargs: Any) -> Outcome | str:
    """Both losses before the first backward pass, of one forward pass or two; the message if that is refused."""
    model = CityModel(own_layers="layers" in forward)
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, **GAMMAS)
    wrapped = model if rank is None else DistributedDataParallel(model, **kwargs)
    shared = forward == "one"
    try:
        for step in range(STEPS):
            optimizer.zero_grad()
            if shared:
                both = wrapped(half(inputs(step, "source")[0], rank), "source")
                source_loss, target_loss = (both - 1).square().mean(), (both + 1).square().mean()
            else:
                source_loss, target_loss = (loss_of(wrapped, city, step, rank) for city in CITY.values())
            if in_blocks:
                with optimizer.source():
                    source_loss.backward(retain_graph=shared)
                with optimizer.target():
                    target_loss.backward()
            else:
                optimizer.backward(source_loss, target_loss)
            optimizer.step()
    except RuntimeError as error:
        return str(error)
    return outcome(model, optimizer)


def ddp_that_torch_refuses(rank: int, **kwargs: Any) -> str:
    try:
        ddp(rank, **kwargs)
    except RuntimeError as error:
        return str(error)
    return ""


def powersgd(model: DistributedDataParallel, batched: bool = False) -> None:
    hook = powerSGD_hook.batched_powerSGD_hook if batched else powerSGD_hook.powerSGD_hook
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    model.register_comm_hook(state, hook)


def refusal_of_the_first_block(
    rank: int, city: str, prepare: Callable[[DistributedDataParallel], None] | None = None, **kwargs: Any
) -> str:
    model = CityModel()
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05)
    wrapped = DistributedDataParallel(model, **kwargs)
    if prepare is not None:
        prepare(wrapped)
    try:
        with getattr(optimizer, city)():
            loss_of(wrapped, city, 0, rank).backward()
    except RuntimeError as error:
        return str(error)
    return ""


def ddp_beside_somebody_elses_static_graph(rank: int | None) -> Outcome:
    other = CityModel()
    if rank is not None:
        other = DistributedDataParallel(other, static_graph=True)
    result = ddp(rank)
    result.extra = sum(p.numel() for p in other.parameters())
    return result


def sharded(rank: int | None, per_layer: bool, own_layers: bool = False) -> nn.Module:
    model = CityModel(own_layers)
    if rank is not None:
        mesh = init_device_mesh("cpu", (WORLD_SIZE,))
        if per_layer:
            for layer in (model.first, model.last, *model.own.values()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def fsdp(
    rank: int | None,
    blocks: str = "st",
    per_layer: bool = False,
    own_layers: bool = False,
    accumulate: bool = False,
    max_norm: float | None = None,
) -> Outcome:
    model = sharded(rank, per_layer, own_layers)
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, **GAMMAS)
    norms: list[Tensor] = []

    def clip() -> None:
        if max_norm is not None:
            norms.append(whole(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))

    def set_sync(sync: bool) -> AbstractContextManager[None]:
        if accumulate and isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(sync)
        return nullcontext()

    train(model, optimizer, rank, blocks, set_sync=set_sync, before_step=clip)
    return outcome(model, optimizer, extra=norms)


def fsdp_or_refusal(rank: int | None, blocks: str) -> Outcome | str:
    try:
        return fsdp(rank, blocks, accumulate=True)
    except RuntimeError as error:
        return str(error)


def fsdp_forwards_first(rank: int | None) -> Outcome:
    model = sharded(rank, per_layer=True)
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, **GAMMAS)
    for step in range(STEPS):
        optimizer.zero_grad()
        optimizer.backward(*(loss_of(model, city, step, rank) for city in CITY.values()))
        optimizer.step()
    return outcome(model, optimizer)


def fsdp_with_one_bad_shard(rank: int | None) -> Outcome:
    """The gradient of a single row, which one rank holds alone, is not finite."""
    model = sharded(rank, per_layer=False)
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, **GAMMAS)
    train(model, optimizer, rank, steps=range(2))
    optimizer.zero_grad()
    with optimizer.source():
        loss_of(model, "source", 7, rank).backward()
    with optimizer.target():
        loss_of(model, "target", 7, rank).backward()
        gradient = model.first.weight.grad
        assert gradient is not None
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        if rank in (None, 1):
            local[-1] = float("nan")
    optimizer.step()
    train(model, optimizer, rank, steps=range(2, 4))
    return outcome(model, optimizer)


def fsdp_saved_and_restored(rank: int | None, full: bool) -> list[Any]:
    """The run that was saved, its twin that was restored, and the state dict in the middle if it is a full one."""
    model, twin = sharded(rank, per_layer=True), sharded(rank, per_layer=True)
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, **GAMMAS)
    resumed = TargetSkewedOptimizer(twin.parameters(), Adam, lr=0.01, **GAMMAS)
    train(model, optimizer, rank, steps=range(3))
    options = StateDictOptions(full_state_dict=full, cpu_offload=full)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    with torch.no_grad():
        for p, q in zip(twin.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    if rank is not None and full:  # rank 0 has it all, and the others nothing
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(twin, resumed, copy.deepcopy(saved), options=options)
    results = []
    for net, opt in ((model, optimizer), (twin, resumed)):
        middle = opt.stats()
        train(net, opt, rank, steps=range(3, STEPS))
        results.append(outcome(net, opt, extra=middle))
    results.append(saved if full else None)
    return results


def fsdp_saved_to_disk(rank: int, folder: str) -> list[Outcome]:
    """The run that was saved and its twin that was restored."""
    results = []
    model = sharded(rank, per_layer=True)
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, **GAMMAS)
    train(model, optimizer, rank, steps=range(3))
    saved_model, saved_optimizer = get_state_dict(model, optimizer)
    checkpoint.save({"model": saved_model, "optimizer": saved_optimizer}, checkpoint_id=folder)
    twin = sharded(rank, per_layer=True)
    resumed = TargetSkewedOptimizer(twin.parameters(), Adam, lr=0.01, **GAMMAS)
    state = dict(zip(("model", "optimizer"), get_state_dict(twin, resumed), strict=True))
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(twin, resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for net, opt in ((model, optimizer), (twin, resumed)):
        train(net, opt, rank, steps=range(3, STEPS))
        results.append(outcome(net, opt))
    return results


def _zero(rank: int | None, **kwargs: Any) -> tuple[nn.Module, nn.Module, TargetSkewedOptimizer, ExponentialLR]:
    base: Any = Adam if rank is None else partial(ZeroRedundancyOptimizer, optimizer_class=Adam, **kwargs)
    model = CityModel()
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = TargetSkewedOptimizer(model.parameters(), base=base, lr=0.01, **GAMMAS)
    return model, wrapped, optimizer, ExponentialLR(optimizer, 0.9)


def zero(rank: int | None, steps: range = range(STEPS), **kwargs: Any) -> Outcome:
    """A run, with the checkpoint of its end (on rank 0)."""
    model, wrapped, optimizer, scheduler = _zero(rank, **kwargs)
    train(wrapped, optimizer, rank, steps=steps, after_step=scheduler.step)
    if rank is not None:
        optimizer.base.consolidate_state_dict(to=0)  # type: ignore[attr-defined]
    saved = None
    if rank in (None, 0):
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
    return outcome(model, optimizer, extra=copy.deepcopy(saved))


def zero_resumed(rank: int | None, saved: dict[str, Any], steps: range) -> Outcome:
    model, wrapped, optimizer, scheduler = _zero(rank)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    train(wrapped, optimizer, rank, steps=steps, after_step=scheduler.step)
    return outcome(model, optimizer, extra=optimizer.param_groups[0]["lr"])


def blocks_of_zero_around_ours(rank: int) -> str:
    optimizer = ZeroRedundancyOptimizer(CityModel().parameters(), TargetSkewedOptimizer, base=Adam, lr=0.01)
    try:
        optimizer.source()
    except AttributeError as error:
        return str(error)
    return ""
