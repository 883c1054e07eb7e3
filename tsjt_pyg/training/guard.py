"""The guard: which source cities may take part, judged on the visible days of the target alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..data import City, NodeBlocks, StandardScaler, SupportProfile, WindowBatch, Windows
from ..data.last_value import last_value, node_means, towards_profile
from ..data.node_blocks import node_blocks
from ..data.rows import column_blocks
from .batches import TrainingBatches
from .forecasting import forecast_windows
from .model_state import unwrapped, window_size
from .odd_days import odd_share

WINDOWS = 64
"""Windows that judge, evenly spread over the visible days: neighbours in time say nearly the same."""

SHARE = 0.055
"""Of a joint training's windows: what judging all sources may take, if that is at least 20 steps a source."""

MARGIN, MARGIN_OF_ONE_DAY = 0.01, 0.03
"""By which a zero-shot forecast may miss the bar: a training of a few steps is not yet as good as it will be. A single
visible day, of which there is no profile, tells sources less well apart."""

PERSISTENCE = 0.5
"""Of the target's persistence: what a source needs at least."""

CORRELATED = 0.3
"""Correlation from which on a step of the horizon counts: less of it may be chance in few days."""

PERSISTENCE_DAYS = 14
"""Days that say how persistent a city is; a year in a file need not be read for it."""

ODD = 0.2
"""Share of a source's days, or of its variance, that may be odd: a snowstorm is a few days, a broken feed is more."""


LEAST_WINDOWS = 100
"""Windows that a source has to have. A training sees fewer of them so often that it learns them by heart, and the
running average of its parameters, which no held-out day chooses, keeps that."""


@dataclass(frozen=True)
class SourceVerdict:
    """What the guard found of a source city.

    Args:
        name: Of the source city.
        error: MAE on the target's visible windows of a model that saw a few steps of this source alone, relative to the
            best naive forecast of them. It has to be below 1 + :data:`MARGIN` (of one day :data:`MARGIN_OF_ONE_DAY`).
        persistence: Correlation of readings with those some steps later, relative to the target's: the smallest over
            the steps of the horizon and the channels. It has to be at least :data:`PERSISTENCE`.
        weight: Its share of the sources' turns; 0: it was left out.
        odd: Share of its days, or of its variance, that lies in days unlike the others
            (:func:`~tsjt_pyg.training.odd_days.odd_share`). It may be :data:`ODD` at most.
        windows: How many it has: at least :data:`LEAST_WINDOWS`.
    """

    name: str
    error: float
    persistence: float
    weight: float
    odd: float = 0.0
    windows: int = LEAST_WINDOWS

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: None for an error that is no finite number."""
        found = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}

    def __str__(self) -> str:
        what = f"contributes, weight {self.weight:.2g}" if self.weight > 0 else "was left out"
        found = f"zero-shot error {self.error:.2f}, persistence {self.persistence:.2f}"
        odd = f", odd days {self.odd:.0%}" if self.odd else ""
        few = f", {self.windows} windows of at least {LEAST_WINDOWS}" if self.windows < LEAST_WINDOWS else ""
        return f"{self.name} {what} ({found}{odd}{few})"


def guard_steps(steps: int, num_sources: int) -> int:
    """Steps, of half a batch, on each source before it is judged: 20 to 100, as :data:`SHARE` of ``steps`` allows."""
    return max(20, min(100, round(SHARE * 4 * steps / num_sources)))


def judge_sources(
    model: torch.nn.Module,
    visible: City,
    sources: Sequence[City],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    base: type[torch.optim.Optimizer],
    max_grad_norm: float,
    most: int,
    nodes_per_batch: int | None = None,
    num_hops: int = 1,
) -> list[SourceVerdict]:
    r"""Which sources have something to teach: from the visible days of the target alone.

    A copy of ``model`` is trained for a few steps on each source and, with the mean of its parameters over the second
    half of them (those after the last step are noisy after so few), forecasts the target's visible days.

    With :math:`e_s` the mean absolute error of that zero-shot forecast, :math:`\ell` the last value and :math:`p` the
    profile of the other visible days, a source is taken if

    .. math::
        e_s < 1.01 \min \big( \mathrm{MAE}(\ell), \mathrm{MAE}(\tfrac12 (\ell + p)) \big),

    with 1.03 instead of 1.01 where less than two days are visible. Who cannot do that after having learned from the
    source, has learned nothing there that the target needs.

    Of a single visible day :math:`e_s` says little: there is no profile, and a model that starts as the last value is
    never far from it. Therefore the source also needs to be a series in time that is alike: with :math:`r^{(k)}` the
    correlation of a step's deviations from the nodes' means with those :math:`k` steps later,
    :math:`r_s^{(k)} \ge r_t^{(k)} / 2` for the first step of the horizon and for each at which :math:`r_t^{(k)}` is
    0.3 or more, in every channel. Shuffled steps and noise fail at the first one, a quantity that changes faster at a
    later one.

    Both look at a source as a whole. One that broke half-way, went silent at a value or changed its scale has days that
    are unlike its other days (:func:`~tsjt_pyg.training.odd_days.odd_share`): at most :data:`ODD` of them may be, and
    as much of its variance may lie in them. And a source has to have :data:`LEAST_WINDOWS` windows.

    Errors are in standard deviations of each channel, as in training. Sources that are taken take their turns equally
    often.

    Args:
        model: Untrained; it is not changed.
        visible: The visible days of the target city, all of which judge: nothing was learned from them.
        sources: The source cities.
        steps: Optimizer steps on each.
        batch_size: Windows a step of the joint training; half as many are used here.
        lr: Learning rate.
        seed: Seed of the batches.
        base: Optimizer class.
        max_grad_norm: Gradients longer than this are shortened to it.
        most: Support days of a window at most.
        nodes_per_batch: A city of more nodes is seen in blocks of at most so many; ``None``: every city as a whole.
        num_hops: Width of the blocks' halo.
    """
    size = window_size(model)
    count = visible.num_steps - sum(size) + 1
    windows = visible.windows(*size, stride=max(1, count // WINDOWS))
    std = StandardScaler().fit(visible.readings, visible.mask).std
    bar = _naive_error(windows, SupportProfile(visible), std, node_blocks(visible, nodes_per_batch, num_hops=0))
    persistence = _persistence(visible, size[1])
    counts = persistence >= CORRELATED
    counts[0] = True
    errors, persistences = [], []
    for source in sources:
        persistences.append(float((_persistence(source, size[1]) / persistence.clamp(min=1e-3))[counts].min()))
        trained = copy.deepcopy(unwrapped(model))
        mean = AveragedModel(trained)
        batches = TrainingBatches(
            trained,
            visible,
            [source],
            most,
            max(1, batch_size // 2),
            seed,
            nodes_per_batch=nodes_per_batch,
            num_hops=num_hops,
        )
        optimizer = base(trained.parameters(), lr=lr)  # type: ignore[call-arg]
        trained.train()
        for step in range(steps):
            optimizer.zero_grad()
            batches.loss(trained, step, source=True).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), max_grad_norm)
            optimizer.step()
            if step >= steps // 2:
                mean.update_parameters(trained)
        own = batches.target
        forecasts = forecast_windows(mean.module, windows, own.scaler, support=own.support, blocks=own.blocks)
        error = _error(forecasts, std)
        errors.append(error / bar if bar else math.inf)  # nothing is better than a naive forecast without error
    margin = MARGIN if visible.num_steps >= 2 * visible.steps_per_day else MARGIN_OF_ONE_DAY
    odds = [odd_share(source) for source in sources]
    numbers = [len(source.windows(*size)) for source in sources]
    found = list(zip(errors, persistences, odds, numbers, strict=True))
    taken = [
        error < 1 + margin and r >= PERSISTENCE and odd <= ODD and number >= LEAST_WINDOWS
        for error, r, odd, number in found
    ]
    return [
        SourceVerdict(source.name, error, r, ok / max(1, sum(taken)), odd, number)
        for source, (error, r, odd, number), ok in zip(sources, found, taken, strict=True)
    ]


def _persistence(city: City, horizon: int) -> Tensor:
    """Correlation ``[horizon, C]`` of a step's deviations from the nodes' means with those so many steps later, where
    both were observed.

    Of a city longer than :data:`PERSISTENCE_DAYS`, of the days at its end.
    """
    first = max(0, city.num_steps - PERSISTENCE_DAYS * city.steps_per_day)
    # Rows: products, squares of the later and of the earlier deviations; summed over some nodes after the other.
    sums = torch.zeros(3, horizon, city.num_channels, dtype=torch.float64, device=city.readings.device)
    for values, mask in column_blocks(city.readings[first:], city.mask[first:]):
        readings = values.double()
        mean = readings.masked_fill(~mask, 0.0).sum(dim=0) / mask.sum(dim=0).clamp(min=1)
        deviation = (readings - mean).masked_fill(~mask, 0.0)
        for step in range(1, horizon + 1):
            both = mask[step:] & mask[:-step]
            now, then = deviation[step:].masked_fill(~both, 0.0), deviation[:-step].masked_fill(~both, 0.0)
            parts = (now * then, now.square(), then.square())
            sums[:, step - 1] += torch.stack([part.sum(dim=(0, 1)) for part in parts])
    products, later, earlier = sums
    scale = (later * earlier).sqrt()
    return torch.where(scale > 0, products / scale, 0.0)


def _naive_error(windows: Windows, support: SupportProfile, std: Tensor, blocks: NodeBlocks | None) -> float:
    """Of the better one of last value, and mean of last value and profile (the last value where there is none)."""
    default = node_means(windows.city)

    def forecasts(share: float) -> Iterator[tuple[WindowBatch, Tensor]]:
        for block in [None] if blocks is None else blocks:
            nodes = None if block is None else block.nodes
            for batch in windows.batches(WINDOWS, block=block):
                means = default if nodes is None else default[nodes.to(default.device)]
                last = last_value(batch.x, batch.x_mask, means).unsqueeze(1).expand_as(batch.y)
                profile = support.at(windows, batch.index, nodes=nodes)
                yield batch, towards_profile(last, profile, windows.history, share)

    return min(_error(forecasts(0.0), std), _error(forecasts(0.5), std))


def _error(forecasts: Iterable[tuple[WindowBatch, Tensor]], std: Tensor) -> float:
    """Masked MAE over all batches, in standard deviations of each channel."""
    total, count = 0.0, 0
    for batch, forecast in forecasts:
        error = (forecast - batch.y).abs() / std.to(forecast.device)
        total += error.masked_fill(~batch.y_mask, 0.0).sum(dtype=torch.float64).item()
        count += int(batch.y_mask.sum())
    return total / count if count else float("nan")
