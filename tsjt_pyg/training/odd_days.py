"""Days of a city that are unlike its other days: a feed that broke, went silent at a value or changed its scale."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import City
from ..data.rows import column_blocks

FACTOR = 3.0
"""A day whose readings vary by more than so many times the median day's spread, or less than that fraction, is odd."""

PERSISTENT = 0.5
"""Of the correlation from step to step that a good day (the upper quartile) has: with less of it, a day is odd."""

OBSERVED = 0.5
"""Of the readings of the fullest day: a day with fewer, a night perhaps, cannot be compared and is left aside."""

FROZEN, FEW_NODES = 0.1, 10
"""Share of a day's steps that nothing in a city may repeat itself in; few nodes may do so by chance."""


def odd_share(city: City) -> float:
    r"""Share of a city's days that are odd, or of its variance that lies in them, whichever is larger.

    With :math:`s_d` the standard deviation of the readings of day :math:`d` around their nodes' means of that day, and
    :math:`r_d` the correlation of these deviations with those one step later, a day is odd if

    .. math::
        s_d > 3 \operatorname{median}(s) \quad\text{or}\quad s_d < \tfrac13 \operatorname{median}(s)
        \quad\text{or}\quad r_d < \tfrac12 Q_{75}(r),

    or if in more than a tenth of its steps every observed reading repeats the one before, not all of them being 0: the
    feed gives its last values again and again. (Of fewer than ten nodes this is not asked.)

    Days are of 24 hours, counted from the end; what is left over at the start joins none. Of several channels the
    largest share counts. A city of a single day has nothing to compare: 0.
    """
    per_day = city.steps_per_day
    ends = range(city.num_steps, per_day - 1, -per_day)
    if len(ends) < 2:
        return 0.0
    days = (_day(city, end - per_day, end) for end in ends)
    parts = [torch.stack(part) for part in zip(*days, strict=True)]
    return max(_odd_share(*(part[:, channel] for part in parts)) for channel in range(city.num_channels))


def _odd_share(*of_days: Tensor) -> float:
    told = (of_days[0] > 0) & (of_days[0] >= OBSERVED * of_days[0].max())
    count, mean, spread, persistence, frozen = (part[told] for part in of_days)
    if len(count) < 2:
        return 0.0
    typical = spread.median()
    odd = (spread > FACTOR * typical) | (spread < typical / FACTOR)
    odd |= (persistence < PERSISTENT * persistence.quantile(0.75)) | (frozen > FROZEN)
    overall = (count * mean).sum() / count.sum()
    energy = count * (spread.square() + (mean - overall).square())
    of_variance = energy[odd].sum() / energy.sum() if energy.sum() > 0 else torch.tensor(0.0)
    return max(odd.double().mean().item(), of_variance.item())


def _day(city: City, first: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Number of observed readings, their mean, their spread around the nodes' means, its correlation with that one step
    later, and the share of steps that repeat the one before, of each channel ``[C]``."""
    sums = torch.zeros(6, city.num_channels, dtype=torch.float64, device=city.readings.device)
    # Of each step: nodes observed now and before, those of them that changed, and those that are not 0.
    steps = torch.zeros(3, end - first - 1, city.num_channels, dtype=torch.int64, device=city.readings.device)
    for values, mask in column_blocks(city.readings[first:end], city.mask[first:end]):
        readings = values.double().masked_fill(~mask, 0.0)
        total, count = readings.sum(dim=0), mask.sum(dim=0)
        deviation = (readings - total / count.clamp(min=1)).masked_fill(~mask, 0.0)
        both = mask[1:] & mask[:-1]
        later, earlier = deviation[1:] * both, deviation[:-1] * both
        now, before = readings[1:], readings[:-1]
        steps += torch.stack([part.sum(dim=1) for part in (both, both & (now != before), both & (now != 0))])
        squares = (deviation.square(), later * earlier, later.square(), earlier.square())
        sums += torch.stack([count.sum(dim=0), total.sum(dim=0), *(part.sum(dim=(0, 1)) for part in squares)])
    count, total, square, product, later_square, earlier_square = sums.cpu()
    scale = (later_square * earlier_square).sqrt()
    correlation = torch.where(scale > 0, product / scale, 0.0)
    compared, changed, nonzero = steps.cpu()
    frozen = ((compared >= FEW_NODES) & (changed == 0) & (nonzero > 0)).double().mean(dim=0)
    return count, total / count.clamp(min=1), (square / count.clamp(min=1)).sqrt(), correlation, frozen
