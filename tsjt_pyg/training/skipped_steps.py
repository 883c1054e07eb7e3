"""Steps whose losses or gradients are not finite: they are left out, and traced to a city and a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..optim import TargetSkewedOptimizer

if TYPE_CHECKING:
    from .batches import CityBatches, TrainingBatches

MAX_SKIPPED = 20
"""Steps in a row that may be left out before a training stops."""


def nan_gradient_unless_finite(loss: Tensor) -> Tensor:
    """The loss; where it is nan or inf, its gradient is nan.

    An infinite loss may have a finite gradient. So the gradient alone says whether a step can be taken, and says so in
    every process of a distributed training, without waiting for the device.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def step_if_finite(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], max_grad_norm: float) -> bool:
    """A step along the gradients, clipped; or none, if one of them is not finite or their norm overflows.

    Parameters and moments are then as before. Waits for the device, once, for the norm: torch's optimizers but the
    fused ones cannot leave a step out on a device's word.

    Returns:
        Whether the step was taken.
    """
    finite = bool(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).isfinite())
    if finite:
        optimizer.step()
    elif isinstance(optimizer, TargetSkewedOptimizer):
        before, optimizer.on_nonfinite = optimizer.on_nonfinite, "skip"
        try:
            optimizer.step()  # changes nothing but its own count of steps, and tells its history
        finally:
            optimizer.on_nonfinite = before
    return finite


def blame(model: torch.nn.Module, batches: TrainingBatches, step: int, kinds: Sequence[bool]) -> str:
    """Where the nan or inf of step ``step`` comes from: parameters, or windows of a city.

    Every window of the step's batches is looked at alone, so this takes a while.

    Args:
        model: The model.
        batches: That the step's batches are of.
        step: Number of the step.
        kinds: Which losses the step had: ``True`` the source's, ``False`` the target's.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        return "parameters of the model are not finite themselves: the training diverged; lower lr (--lr)"
    found = []
    for source in kinds:
        city, index, block = batches.drawn(step, source)
        seed = batches.support_seed(step, source)
        with batches.processes.precision():
            bad = [number for number in index.tolist() if not _is_finite(model, city, number, seed, block)]
        if bad:
            name = f"{'source' if source else 'target'} city {city.windows.city.name}"
            found.append(f"{name}, {_window(city, bad[0])} ({len(bad)} of the {len(index)} windows of its batch)")
    if not found:
        return (
            "each window of its batches alone is finite, so their sum overflows: lower the strategy's weights, or lr "
            "(--lr)"
        )
    return (
        f"of {' and '.join(found)}; look at the readings there (City.describe, City.repair) or leave a bad source out "
        "(sources, --sources); where all windows are named, the training may have diverged: lower lr (--lr)"
    )


def _is_finite(model: torch.nn.Module, city: CityBatches, number: int, seed: int, block: object) -> bool:
    loss = nan_gradient_unless_finite(city.loss(model, torch.tensor([number]), seed, block))  # type: ignore[arg-type]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def _window(city: CityBatches, number: int) -> str:
    windows = city.windows
    start = windows.city.start + number * windows.stride * windows.city.interval
    end = start + (windows.history + windows.horizon - 1) * windows.city.interval
    return f"window {number} from {start} to {end}"
