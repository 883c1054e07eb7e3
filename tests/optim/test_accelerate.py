"""Accelerate drives the optimizer as a plain loop does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_options import equal, losses, small_model, weights
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from two_processes import TwoProcesses, assert_equals_one_process

from tsjt_pyg.optim import TargetSkewedOptimizer

accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step:UserWarning"),
]

MAX_NORM = 0.5
BATCHES = 6


@pytest.fixture
def accelerator_with() -> Iterator[Callable[..., Any]]:
    """Accelerator() keeps its settings for the whole process, so they have to be forgotten."""

    def make(**options: Any) -> Any:
        _forget()
        return accelerate.Accelerator(cpu=True, **options)

    yield make
    _forget()


def _forget() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def optimizer_for(model: nn.Module) -> TargetSkewedOptimizer:
    return TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, gamma_source=0.7)


def numbers(first: int = 0) -> DataLoader:
    """The numbers of the batches: ``losses`` makes the data from them."""
    return DataLoader(range(first, BATCHES), batch_size=1)


def plain_loop(forward: Callable[[nn.Module], Any] = lambda model: model, accumulate: int = 1) -> tuple[nn.Module, Any]:
    model = small_model()
    optimizer = optimizer_for(model)
    scheduler = ExponentialLR(optimizer, 0.9)
    for batch in range(BATCHES):
        source_loss, target_loss = losses(forward(model), batch)
        optimizer.backward(source_loss / accumulate, target_loss / accumulate)
        if (batch + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, optimizer


def train(accelerator: Any, model: Any, optimizer: Any, scheduler: Any, batches: Any) -> None:
    ours = optimizer.optimizer
    for batch in batches:
        with accelerator.accumulate(model):
            with ours.source():
                accelerator.backward(losses(model, int(batch))[0])
            with ours.target():
                accelerator.backward(losses(model, int(batch))[1])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def prepared(accelerator: Any, model: nn.Module, first: int = 0) -> tuple[Any, ...]:
    optimizer = optimizer_for(model)
    return accelerator.prepare(model, optimizer, ExponentialLR(optimizer, 0.9), numbers(first))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_equals_the_plain_loop(accelerator_with: Callable[..., Any], accumulate: int) -> None:
    accelerator, net = accelerator_with(gradient_accumulation_steps=accumulate), small_model()
    model, optimizer, scheduler, batches = prepared(accelerator, net)
    train(accelerator, model, optimizer, scheduler, batches)
    twin, plain = plain_loop(accumulate=accumulate)
    assert equal(weights(net), weights(twin))
    assert optimizer.optimizer.stats() == plain.stats()
    assert plain.stats()["steps"] == BATCHES // accumulate
    assert plain.stats()["conflict_rate"] > 0
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]


def test_the_blocks_are_those_of_the_optimizer_that_was_handed_over(accelerator_with: Callable[..., Any]) -> None:
    net = small_model()
    ours = optimizer_for(net)
    _, optimizer = accelerator_with().prepare(net, ours)
    assert optimizer.optimizer is ours
    assert not hasattr(optimizer, "source")


def test_bfloat16_equals_autocast(accelerator_with: Callable[..., Any]) -> None:
    def autocast(model: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(x).float()

        return forward

    accelerator, net = accelerator_with(mixed_precision="bf16"), small_model()
    train(accelerator, *prepared(accelerator, net))
    twin, _ = plain_loop(autocast)
    assert equal(weights(net), weights(twin))


def test_a_saved_state_is_restored_bit_for_bit(accelerator_with: Callable[..., Any], tmp_path: Path) -> None:
    accelerator = accelerator_with(gradient_accumulation_steps=2)
    model, optimizer, scheduler, _ = prepared(accelerator, small_model())
    train(accelerator, model, optimizer, scheduler, range(4))
    accelerator.save_state(str(tmp_path))
    accelerator, other = accelerator_with(gradient_accumulation_steps=2), small_model(seed=1)
    model, optimizer, scheduler, batches = prepared(accelerator, other, first=4)
    accelerator.load_state(str(tmp_path))
    train(accelerator, model, optimizer, scheduler, batches)
    twin, plain = plain_loop(accumulate=2)
    assert equal(weights(other), weights(twin))
    assert optimizer.optimizer.stats() == plain.stats()


@pytest.mark.parametrize(("own_layers", "sync_each_batch"), [(False, False), (False, True), (True, True)], ids=str)
def test_two_processes_that_accumulate_equal_one(
    two_processes: TwoProcesses, own_layers: bool, sync_each_batch: bool
) -> None:
    """Layers of one city need ``sync_each_batch``: torch refuses them if both cities take turns under no_sync."""
    import framework_runs

    work = partial(framework_runs.accelerated, own_layers=own_layers, sync_each_batch=sync_each_batch)
    outcome, *_ = assert_equals_one_process(two_processes, work)
    assert outcome.extra == "DistributedDataParallel"
