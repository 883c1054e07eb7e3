"""The time of a table's rows, before it becomes a city: time zones, daylight saving, jitter, duplicates, gaps.

A city's days all have the same number of steps. A clock that is put forward and back has days of 23 and 25 hours, so
one of two things has to give:

- on the **wall clock** the hour that is skipped in spring is there, with nothing observed, and the hour that comes
  twice in autumn is there once (``repeated`` says of which readings); rush hour stays at the same time of day all year;
- in **UTC** (``zone="UTC"``) or **standard time** (``clock="standard"``) every day is whole and no reading is lost; for
  half of the year the time of day differs from the clock on the wall by an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from .missing import counted
from .parts import parse_interval

Repeated = Literal["error", "first", "mean"]
Clock = Literal["wall", "standard"]

_NOTHING = pd.Timedelta(0)

MOST_GAPS = 10
"""Steps a row at most, if nobody said the interval: a single wrong year would ask for millions."""


@dataclass(frozen=True)
class TimeChanges:
    """What :func:`regular_time` did to a table's rows.

    Args:
        rows: Rows given.
        unsorted: Rows that came before an earlier one.
        snapped: Rows whose time was moved onto the grid.
        largest_shift: By how much at most.
        repeated: Rows that fell on a step already taken: left out where an earlier one had a reading (``"first"``), or
            averaged in (``"mean"``).
        added: Steps without a row, now there with nothing observed.
        skipped: Those of them that the wall clock skipped (spring).
    """

    rows: int
    unsorted: int = 0
    snapped: int = 0
    largest_shift: pd.Timedelta = _NOTHING
    repeated: int = 0
    added: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        parts = [counted(self.rows, "row")]
        if self.unsorted:
            parts.append(f"{self.unsorted} out of order")
        if self.snapped:
            parts.append(f"{self.snapped} moved onto the grid, by at most {self.largest_shift}")
        if self.repeated:
            parts.append(f"{self.repeated} on a step already taken")
        if self.added:
            spring = f" ({self.skipped} skipped by the clock)" if self.skipped else ""
            parts.append(f"{counted(self.added, 'step')} added with nothing observed{spring}")
        return ", ".join(parts)


class RegularTable(NamedTuple):
    """A table with one row a step, and what was done for it."""

    table: pd.DataFrame
    changes: TimeChanges


def regular_time(
    table: pd.DataFrame,
    interval: str | pd.Timedelta | None = None,
    *,
    zone: str | None = None,
    clock: Clock = "wall",
    tolerance: str | pd.Timedelta = _NOTHING,
    repeated: Repeated = "error",
) -> RegularTable:
    """A table of readings with one row every ``interval``, without a time zone: what a constructor of a city takes.

    Rows are sorted by time and put on the grid of multiples of ``interval`` since midnight; steps without a row are NaN
    (so ``False`` in a city's mask). No reading is invented, and none is dropped unless ``repeated`` says so.

    Args:
        table: One row a step, one column a node, with a :class:`~pandas.DatetimeIndex`.
        interval: Time between two steps, a whole number of them a day. Default: the most frequent gap between rows.
        zone: The zone of the clock (``"America/Los_Angeles"``, ``"UTC"``) to which rows with a time zone are brought.
            Needed for these, refused for rows without one.
        clock: ``"wall"``, or ``"standard"``: the zone's winter time all year round.
        tolerance: How far a row may be from a step of the grid, at most half an interval. Default: not at all.
        repeated: What becomes of several rows on one step (as in the hour that comes twice in autumn): ``"error"``;
            node by node, the ``"first"`` or the ``"mean"`` of what was observed.

    Returns:
        The table and the :class:`TimeChanges`.

    Raises:
        ValueError: If the index is no time or holds NaT, a time zone is missing, superfluous or unknown, a row is
            farther from the grid than ``tolerance``, almost all steps would be without a row (and ``interval`` was not
            given), or several rows share a step and ``repeated`` is ``"error"``.

    Example:
        >>> times = pd.to_datetime(["2026-01-05 00:00:00", "2026-01-05 00:04:50", "2026-01-05 00:15:00"])
        >>> table = pd.DataFrame({"773869": [64.4, 62.7, 64.1]}, index=times)
        >>> table, changes = regular_time(table, "5min", tolerance="30s")
        >>> print(changes)
        3 rows, 1 moved onto the grid, by at most 0 days 00:00:10, 1 step added with nothing observed
    """
    if repeated not in ("error", "first", "mean"):
        raise ValueError(f"repeated: expected 'error', 'first' or 'mean', found {repeated!r}")
    if clock not in ("wall", "standard"):
        raise ValueError(f"clock: expected 'wall' or 'standard', found {clock!r}")
    index = table.index
    if not isinstance(index, pd.DatetimeIndex):
        raise ValueError(
            f"table: its rows are labelled with {index.dtype}, expected times; make them so with "
            "pandas.to_datetime (of mixed offsets with utc=True)"
        )
    if not len(index):
        raise ValueError("table: it has no rows")
    if index.hasnans:
        raise ValueError(f"table: row {int(np.argmax(index.isna()))} has no time (NaT); drop it or mend its time")
    unsorted = int((index[1:] < index[:-1]).sum())
    table = table.sort_index(kind="stable")  # before the clock is changed, so that "first" is the first in truth
    naive = _naive(pd.DatetimeIndex(table.index), zone, clock)
    step = _interval(naive, interval)
    steps, shift = _snap(naive, step, tolerance)
    table = table.set_axis(steps, axis="index")
    twice = steps.duplicated()
    if twice.any():
        if repeated == "error":
            raise ValueError(
                f"table: {int((steps == steps[twice][0]).sum())} rows fall on {steps[twice][0]}"
                f"{_autumn(steps[twice][:1], zone, clock)}; choose repeated='first' or 'mean'"
            )
        rows = table.groupby(level=0)
        table = rows.first() if repeated == "first" else rows.mean()  # of what was observed, node by node
    table = table.sort_index()  # a clock that is set back shows earlier times again
    num_steps = (table.index[-1] - table.index[0]) // step + 1
    if interval is None and num_steps > MOST_GAPS * len(table):
        raise ValueError(
            f"table: its {len(table)} times from {table.index[0]} to {table.index[-1]} would be {num_steps} steps of "
            f"{step} (the most frequent gap), almost all missing; if no time is wrong, confirm with interval="
        )
    full = pd.date_range(table.index[0], table.index[-1], freq=step)
    absent = full[~full.isin(table.index)]
    regular = table.reindex(full)
    regular.index.name = index.name
    changes = TimeChanges(
        rows=len(index),
        unsorted=unsorted,
        snapped=int((shift > _NOTHING).sum()),
        largest_shift=shift.max(),
        repeated=int(twice.sum()),
        added=len(absent),
        skipped=_skipped(absent, zone) if clock == "wall" else 0,
    )
    return RegularTable(regular, changes)


def _naive(index: pd.DatetimeIndex, zone: str | None, clock: Clock) -> pd.DatetimeIndex:
    if index.tz is None:
        if zone is not None:
            raise ValueError(
                f"zone: the table's rows have no time zone, so they cannot be brought to {zone!r}; say which they are "
                "in with index.tz_localize(…, ambiguous=…, nonexistent=…), or leave zone out"
            )
        return index
    if zone is None:
        raise ValueError(
            f"zone: the table's rows are in time zone {index.tz}; say which clock the city shall have, for example "
            "zone='UTC' or zone='America/Los_Angeles'"
        )
    try:
        local = index.tz_convert(zone)
    except (KeyError, ValueError, OSError) as error:  # pandas passes on what zoneinfo or pytz raise
        raise ValueError(f"zone: expected a name such as 'Europe/Amsterdam' or 'UTC', found {zone!r}") from error
    if clock == "wall":
        return local.tz_localize(None)
    # Daylight saving is never negative but in Ireland's tables, so of a year's two offsets the smaller is winter's.
    years = sorted(set(local.year))
    probes = pd.DatetimeIndex([f"{year}-{month:02}-15" for year in years for month in range(1, 13)])
    offsets = probes.tz_localize(zone).tz_localize(None) - probes.tz_localize(zone).tz_convert("UTC").tz_localize(None)
    return index.tz_convert("UTC").tz_localize(None) + offsets.min()


def _interval(index: pd.DatetimeIndex, interval: str | pd.Timedelta | None) -> pd.Timedelta:
    if interval is not None:
        step = parse_interval(interval)
    else:
        gaps = pd.Series(index.sort_values()).diff().dropna()
        gaps = gaps[gaps > _NOTHING]
        if gaps.empty:
            raise ValueError("interval: a table with the rows of one time says nothing of it; give interval=")
        step = pd.Timedelta(gaps.mode().iloc[0])
    if step <= _NOTHING or pd.Timedelta(days=1) % step != _NOTHING:
        hint = "" if interval is not None else ", the most frequent gap between rows; give interval="
        raise ValueError(f"interval: expected a positive part of a day (such as '5min'), found {step}{hint}")
    return step


def _snap(
    index: pd.DatetimeIndex, step: pd.Timedelta, tolerance: str | pd.Timedelta
) -> tuple[pd.DatetimeIndex, pd.Series]:
    try:
        allowed = parse_interval(tolerance)
    except ValueError as error:
        raise ValueError(f"tolerance: expected a time with its unit (such as '30s'), found {tolerance!r}") from error
    if not _NOTHING <= allowed <= step / 2:
        raise ValueError(f"tolerance: expected 0 to half an interval ({step / 2}), found {allowed}")
    midnight = index[0].normalize()
    since = index - midnight
    steps = midnight + (since + step / 2) // step * step
    shift = pd.Series(steps - index).abs().reset_index(drop=True)
    far = (shift > allowed).to_numpy()
    if far.any():
        raise ValueError(
            f"table: {int(far.sum())} of {len(index)} rows are farther than {allowed} from every multiple of {step}, "
            f"first {index[far][0]} (off by {shift[far].iloc[0]}); widen tolerance=, or choose another interval="
        )
    return pd.DatetimeIndex(steps), shift


def _skipped(absent: pd.DatetimeIndex, zone: str | None) -> int:
    if zone is None or absent.empty:
        return 0
    return int(np.sum(absent.tz_localize(zone, ambiguous=np.ones(len(absent), bool), nonexistent="NaT").isna()))


def _autumn(time: pd.DatetimeIndex, zone: str | None, clock: Clock) -> str:
    """Why, if it is because the clock was put back."""
    if zone is None or clock != "wall":
        return ""
    if not time.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").hasnans:
        return ""
    return f" (in {zone} this hour comes twice; UTC and clock='standard' tell the two apart)"
