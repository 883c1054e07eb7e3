"""Tables of readings, wide or long, and how their rows become steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from .parts import interval_text, parse_interval
from .table_columns import NAMES, find_column, no_column
from .table_file import Table
from .times import MOST_GAPS

Duplicates = Literal["error", "mean", "first", "last"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Readings as they stand in a table.

    Args:
        table: Where they are from.
        number: Row of the table, ``[R]``.
        times: Time of each row, ``[R]``.
        sensor: Long: which of ``ids`` each row is of, ``[R]``. Wide: ``None``.
        ids: The sensor ids.
        values: float32, NaN where nothing was observed. Wide: ``[R, N]``, a column an id. Long: ``[R, C]``.
        channels: One name a channel.
        left_out: Columns that are no channel.
        marked: How many readings were a number that means "missing".
    """

    table: Table
    number: np.ndarray
    times: pd.DatetimeIndex
    sensor: np.ndarray | None
    ids: list[str]
    values: np.ndarray
    channels: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    marked: int = 0

    def select(self, nodes: Sequence[str]) -> Rows:
        """The rows of these nodes only, whose order becomes that of ``ids``; a new node has no rows (or only NaN)."""
        position = {node: i for i, node in enumerate(nodes)}
        target = np.array([position.get(node, -1) for node in self.ids], dtype=np.int64)
        if self.sensor is None:
            values = np.full((len(self.values), len(nodes)), np.nan, np.float32)
            values[:, target[target >= 0]] = self.values[:, target >= 0]
            return replace(self, ids=list(nodes), values=values)
        keep = np.flatnonzero(target[self.sensor] >= 0)
        return replace(
            self,
            number=self.number[keep],
            times=self.times[keep],
            sensor=target[self.sensor][keep],
            ids=list(nodes),
            values=self.values[keep],
        )


class Grid(NamedTuple):
    """Readings ``[T, N, C]`` at regular steps, NaN where nothing was observed, and what was done to get there."""

    readings: np.ndarray
    start: pd.Timestamp
    interval: pd.Timedelta
    steps_added: int
    duplicate_rows: int
    rows_out_of_order: int


def wide_rows(
    table: Table,
    sensor_ids: Sequence[str],
    named: Mapping[str, str],
    channel: str,
    time_format: str | None,
    missing_values: Sequence[float] = (),
) -> Rows:
    """A table with a time column and a column a sensor id; columns of no sensor are not looked into."""
    time = find_column(table, "time", named)
    first = table.frame.columns[0]
    if time is None and first not in sensor_ids and table.frame[first].dtype.kind not in "fiub":
        time = first
    if time is None:
        raise no_column(table, "time")
    known = set(sensor_ids)
    ids = [column for column in table.frame.columns if column != time]
    if not ids:
        raise ValueError(f"{table.label}: found the column {time!r} and no other, expected a column a sensor id")
    values = np.full((len(table.frame), len(ids)), np.nan, np.float32)
    for i, column in enumerate(ids):
        if column in known:
            values[:, i] = table.numbers(column)
    marked = _mark(values, missing_values)
    times = _times(table, time, time_format)
    return Rows(table, np.arange(len(values)), times, None, ids, values, (channel,), marked=marked)


def long_rows(
    table: Table,
    sensor: str,
    named: Mapping[str, str],
    channels: Sequence[str] | None,
    time_format: str | None,
    missing_values: Sequence[float] = (),
) -> Rows:
    """A table with a row a time and sensor, and a column a channel."""
    time = find_column(table, "time", named)
    if time is None:
        raise no_column(table, "time")
    others = [column for column in table.frame.columns if column not in (time, sensor)]
    no_channels = {name for role in ("time", "sensor", "latitude", "longitude", "unit") for name in NAMES[role]} | {
        "index"
    }
    given = channels is not None
    if channels is None:
        channels = [c for c in others if c.lower() not in no_channels and not c.startswith("Unnamed: ")]
    absent = [channel for channel in channels if channel not in others]
    if absent or not channels:
        raise ValueError(
            f"channels: {table.label} has {others} beside {time!r} and {sensor!r}, "
            + (f"found {absent[0]!r}" if absent else "none of which is a channel; name them with channels=")
        )
    try:
        values = np.stack([table.numbers(channel).astype(np.float32) for channel in channels], axis=1)
    except ValueError as error:
        if given:
            raise
        raise ValueError(f"{error}; if the column is no channel, name those that are with channels=") from error
    marked = _mark(values, missing_values)
    codes, ids = table.ids(sensor)
    left_out = tuple(column for column in others if column not in channels)
    times = _times(table, time, time_format)
    return Rows(table, np.arange(len(codes)), times, codes, ids, values, tuple(channels), left_out, marked)


def _mark(values: np.ndarray, missing_values: Sequence[float]) -> int:
    """Makes NaN of the values that mean "missing", in place, and counts them; as float32, so that -9.9 is -9.9."""
    found = np.isin(values, np.array(missing_values, dtype=values.dtype))
    values[found] = np.nan
    return int(found.sum())


def _times(table: Table, column: str, time_format: str | None) -> pd.DatetimeIndex:
    """A column as local times."""
    values = table.frame[column]
    is_time = pd.api.types.is_datetime64_any_dtype(values.dtype)
    if pd.api.types.is_numeric_dtype(values.dtype) and time_format is None:
        raise ValueError(
            f"{table.label}: column {column!r}, {table.place(0)}: found the number {values.iloc[0]}, expected a time "
            "such as 2024-03-04 08:05; say time_format=, or convert it with pandas.to_datetime(..., unit=...)"
        )
    codes, unique = pd.factorize(values)
    texts = unique if is_time else pd.Index([str(value).strip() for value in unique], dtype=object)
    table.refuse(column, codes < 0, "expected a time")
    if not is_time and time_format is None:
        other = np.array([not re.match(r"\d{4}[-/]?\d\d", text) for text in texts], dtype=bool)
        table.refuse(
            column,
            other[codes],
            "expected date and time such as 2024-03-04 08:05, the year first; say how to read others with time_format= "
            "(such as '%d/%m/%Y %H:%M')",
        )
    try:
        times = pd.Index(texts if is_time else pd.to_datetime(texts, format=time_format or "ISO8601", errors="coerce"))
        if not isinstance(times, pd.DatetimeIndex) or times.tz is not None:
            raise ValueError(f"time zone {getattr(times, 'tz', None)}")
    except ValueError as error:
        if "zone" not in str(error).lower():
            raise ValueError(f"time_format: {time_format!r} is no format of times ({error})") from error
        raise ValueError(
            f"{table.label}: column {column!r}, {table.place(0)}: the times have a time zone ({values.iloc[0]}), a "
            "city keeps local time without one; convert them with pandas.to_datetime(..., utc=True)"
            ".dt.tz_convert('America/Los_Angeles').dt.tz_localize(None), with the zone of the city (a wide table also "
            "with tsjt_pyg.data.regular_time, which minds the changes of the clock)"
        ) from error
    table.refuse(column, np.asarray(times.isna())[codes], f"expected a time ({time_format or 'ISO 8601'})")
    return times[codes]


def arrange(rows: Rows, interval: str | pd.Timedelta | None, duplicates: Duplicates) -> Grid:
    """Rows at regular steps, whatever their order.

    Args:
        rows: At least one.
        interval: Time between two steps. Default: the most frequent gap between times, of several the shortest.
        duplicates: What becomes of rows of one time (and sensor).

    Raises:
        ValueError: If there is only one time and no interval, the times are not on one grid, they leave almost
            all of it open, or duplicates are refused.
    """
    step, start, spacing = _steps(rows, interval)
    num_steps, num_nodes = int(step.max()) + 1, len(rows.ids)
    sensor = np.zeros_like(step) if rows.sensor is None else rows.sensor
    cell = step if rows.sensor is None else step * num_nodes + sensor
    again = pd.Series(cell).duplicated(keep="first").to_numpy()
    if again.any() and duplicates == "error":
        late = int(again.argmax())
        early = int((cell == cell[late]).argmax())
        of = "" if rows.sensor is None else f"sensor {rows.ids[sensor[late]]!r} at "
        raise ValueError(
            f"{rows.table.label}: {rows.table.place(int(rows.number[late]))}: {of}{rows.times[late]} is there again "
            f"(first in {rows.table.place(int(rows.number[early]))}; {int(again.sum())} duplicate rows in all; the "
            "hour that clocks repeat in autumn is one cause); join them with duplicates='mean', 'first' or 'last'"
        )
    num_cells = num_steps if rows.sensor is None else num_steps * num_nodes
    readings = np.full((num_cells, rows.values.shape[1]), np.nan, np.float32)
    readings[cell] = rows.values
    if again.any():
        several = pd.Series(cell).duplicated(keep=False).to_numpy()
        joined = pd.DataFrame(rows.values[several].astype(np.float64)).groupby(cell[several]).agg(duplicates)
        readings[joined.index.to_numpy()] = joined.to_numpy()
    order = np.argsort(sensor, kind="stable")
    earlier = (np.diff(step[order]) < 0) & (np.diff(sensor[order]) == 0)
    return Grid(
        readings.reshape(num_steps, num_nodes, -1),
        start,
        spacing,
        num_steps - len(np.unique(step)),
        int(again.sum()),
        int(earlier.sum()),
    )


def _steps(rows: Rows, interval: str | pd.Timedelta | None) -> tuple[np.ndarray, pd.Timestamp, pd.Timedelta]:
    """Step of each row, time of the first step, and interval."""
    label, unique = rows.table.label, rows.times.unique().sort_values()
    start = unique[0]
    if interval is not None:
        spacing = parse_interval(interval)
        if spacing <= pd.Timedelta(0):
            raise ValueError(
                f"interval: expected a positive part of a day (such as '5min'), found {interval_text(spacing)}"
            )
    elif len(unique) > 1:
        gaps, counts = np.unique(np.diff(unique.to_numpy()), return_counts=True)
        spacing = pd.Timedelta(gaps[counts.argmax()])
    else:
        raise ValueError(f"{label}: all rows are of one time, {start}; say the time between two steps with interval=")
    off = (rows.times - start) % spacing != pd.Timedelta(0)
    if off.any():
        row = int(np.asarray(off).argmax())
        said = "given" if interval is not None else "the most frequent gap"
        raise ValueError(
            f"{label}: {rows.table.place(int(rows.number[row]))}: {rows.times[row]} is no step of "
            f"{interval_text(spacing)} from {start} on ({said}; nor are {int(off.sum()) - 1} other rows): intervals "
            "are mixed or times jitter; resample or round them with pandas, or say interval="
        )
    num_steps = (unique[-1] - start) // spacing + 1
    if interval is None and num_steps > MOST_GAPS * len(unique):
        raise ValueError(
            f"{label}: its {len(unique)} times from {start} to {unique[-1]} would be {num_steps} steps of "
            f"{interval_text(spacing)} (the most frequent gap), almost all missing; if no time is wrong, confirm with "
            "interval=, or say how times are written with time_format="
        )
    return np.asarray((rows.times - start) // spacing, dtype=np.int64), start, spacing
