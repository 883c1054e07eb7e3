"""Readings that cannot be true: pure functions of one channel's readings, each with what it looks for.

All take ``values`` ``[T, N]`` and ``observed`` (bool ``[T, N]``) and return bool ``[T, N]``, ``True``
where an observed reading is at fault. What is not observed is never looked at and never at fault.
"""

from __future__ import annotations

import numpy as np

MAD_TO_STD = 1.4826
"""The median absolute deviation of a normal distribution, times this, is its standard deviation."""

RARE = 0.25
"""A value that makes up less than this share of a node's other readings at that hour is out of place there."""


def find_dead(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Every observed reading of a node whose observed readings are all zero; see :func:`dead_nodes`."""
    return observed & dead_nodes(values, observed)


def dead_nodes(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Nodes without an observed reading other than zero: bool ``[N]``."""
    return ~(observed & (values != 0)).any(axis=0)


def find_beyond(values: np.ndarray, observed: np.ndarray, low: float, high: float) -> np.ndarray:
    """Readings outside ``low <= x <= high``."""
    return observed & ((values < low) | (values > high))


def find_outliers(values: np.ndarray, observed: np.ndarray, hours: np.ndarray, threshold: float) -> np.ndarray:
    r"""Readings far from what their node shows at that hour of the day.

    .. math:: |x - m_{n,h}| > z \cdot 1.4826 \cdot \max(\mathrm{MAD}_{n,h}, \mathrm{median}_{h'} \mathrm{MAD}_{n,h'})

    with the median m and the median absolute deviation of node n at hour h, and the latter at a typical hour, so that a
    quiet one does not make a small difference look large. A node whose readings hardly ever differ from their medians
    (both deviations 0) gets no verdict. A rare jam is an outlier by this measure.

    Args:
        values: ``[T, N]``.
        observed: ``[T, N]``.
        hours: int ``[T]``, hour of the day of each step.
        threshold: z, positive.

    Source: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, ASQC 1993 (modified z-score).
    """
    found = np.zeros_like(observed)
    middle = np.array([_median(values[hours == hour], observed[hours == hour]) for hour in range(24)])
    away = np.array([_mad(values[hours == hour], observed[hours == hour], middle[hour]) for hour in range(24)])
    scale = MAD_TO_STD * np.fmax(away, _median(away, ~np.isnan(away)))
    for hour in range(24):
        at = hours == hour
        far = np.abs(values[at] - middle[hour]) > threshold * scale[hour]
        found[at] = observed[at] & (scale[hour] > 0) & far
    return found


def _mad(values: np.ndarray, observed: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return _median(np.abs(values - middle), observed)


def _median(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Median of the observed values of each column: float64 ``[N]``, NaN where there is none."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    ordered = np.sort(np.where(observed, values.astype(np.float64), np.inf), axis=0)
    count = observed.sum(axis=0)
    column = np.arange(values.shape[1])
    middle = (ordered[np.maximum(count - 1, 0) // 2, column] + ordered[count // 2, column]) / 2
    return np.where(count > 0, middle, np.nan)


def find_stuck(values: np.ndarray, observed: np.ndarray, hours: np.ndarray, longest: int) -> np.ndarray:
    """Readings of a node that stays at one value for too long while the city moves.

    A run of consecutive observed, equal readings is stuck if

    1. it has more than ``longest`` steps;
    2. the city varies: of the nodes observed, at least half change within ``longest`` steps, on average over the run
       (so a night, a strike or a snowed-in weekend, when all stand still, is no fault of the node);
    3. the value is out of place: at more than half of its steps, less than a quarter of the node's other readings at
       that hour of the day are the same. The others are those outside this run and outside all long runs of a value
       that is not zero. Where there are none, a zero is in place and any other value is not.

    So zeros at night, where nobody drives at night, are not stuck, nor is a small count that is usual at its hour; a
    detector that shows 0 through the rush hours is, and so is one that always shows 57.

    Args:
        values: ``[T, N]``.
        observed: ``[T, N]``.
        hours: int ``[T]``, hour of the day of each step.
        longest: Steps, at least 1.
    """
    found = np.zeros_like(observed)
    num_steps, num_nodes = values.shape
    if num_steps <= longest:
        return found
    runs = [_long_runs(values[:, node], observed[:, node], longest) for node in range(num_nodes)]
    if not any(len(run) for run in runs):
        return found
    activity = _activity(values, observed, longest)
    for node, of_node in enumerate(runs):
        if not len(of_node):
            continue
        column = values[:, node]
        reference = observed[:, node].copy()
        for first, end in of_node:
            reference[first:end] &= column[first] == 0
        for first, end in of_node:
            if activity[first : end - longest].mean() < 0.5:
                continue
            if _out_of_place(column, reference, hours, first, end):
                found[first:end, node] = True
    return found


def _long_runs(column: np.ndarray, observed: np.ndarray, longest: int) -> np.ndarray:
    """First step and end of each run of more than ``longest`` equal observed readings: ``[R, 2]``."""
    new = np.ones(len(column) + 1, dtype=bool)
    new[1:-1] = (column[1:] != column[:-1]) | ~observed[1:] | ~observed[:-1]
    border = np.flatnonzero(new)
    long = (np.diff(border) > longest) & observed[border[:-1]]
    return np.stack([border[:-1][long], border[1:][long]], axis=1)


def _activity(values: np.ndarray, observed: np.ndarray, longest: int, block: int = 256) -> np.ndarray:
    """Share of the nodes observed in steps ``t .. t + longest`` that change in them: ``[T - longest]``."""
    changing = np.zeros(len(values) - longest)
    present = np.zeros(len(values) - longest)
    for node in range(0, values.shape[1], block):  # in blocks of nodes: the running sums are larger than the readings
        part, seen = values[:, node : node + block], observed[:, node : node + block]
        pairs = seen[1:] & seen[:-1]
        for total, what in ((changing, pairs & (part[1:] != part[:-1])), (present, pairs)):
            sums = np.zeros((len(part), part.shape[1]), dtype=np.int32)
            np.cumsum(what, axis=0, out=sums[1:])
            total += (sums[longest:] > sums[:-longest]).sum(axis=1)
    return changing / np.maximum(present, 1)


def _out_of_place(column: np.ndarray, reference: np.ndarray, hours: np.ndarray, first: int, end: int) -> bool:
    others = reference.copy()
    others[first:end] = False
    value = column[first]
    count = np.bincount(hours[others], minlength=24)
    same = np.bincount(hours[others & (column == value)], minlength=24)
    rare = np.where(count > 0, same < RARE * count, value != 0)
    return bool(rare[hours[first:end]].mean() > 0.5)
