"""Readings at the door: arrays and tables in, a tensor of readings and a mask of what was observed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .ids import id_text

ReadingsLike = np.ndarray | Tensor | pd.DataFrame | Mapping[str, pd.DataFrame]

LARGEST = 1e15
"""No reading of traffic is larger, but marks for "missing" are (1e20, 3.4e38), and sums of their squares overflow."""


@dataclass(frozen=True)
class CleanReadings:
    """Readings ``[T, N, C]`` and mask, with what a table said about nodes, channels and time (``None``: it did not)."""

    readings: Tensor
    mask: Tensor
    node_ids: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    start: pd.Timestamp | None = None
    interval: pd.Timedelta | None = None


def clean_readings(readings: ReadingsLike, mask: np.ndarray | Tensor | None = None) -> CleanReadings:
    """Turns readings of any accepted kind into float32 ``[T, N, C]`` and a bool mask (``True`` = observed).

    NaN (or the mask of a :class:`numpy.ma.MaskedArray`) means "not observed": it becomes ``False`` in the mask and 0 in
    the readings. What is not observed is 0 in the result, whatever stood there, so that no code can read it by mistake.
    A float32 tensor or writable array without missing entries is not copied.

    Args:
        readings: ``[T, N]`` or ``[T, N, C]`` as numpy array or tensor; or a :class:`pandas.DataFrame` with one row a
            step and one column a node (a :class:`~pandas.DatetimeIndex` gives start and interval; a column
            ``(u, v, key)``, as OSMnx labels roads, is node ``"u-v-key"``); or a mapping from channel to such a table,
            joined by node id.
        mask: Bool, shape of ``readings`` (``[T, N]`` is enough for one channel); combined with the NaNs.

    Raises:
        ValueError: On a wrong shape, text, infinite readings or some beyond :data:`LARGEST`, duplicate nodes, irregular
            or unparsed time, or a mask that does not fit.
        TypeError: If ``readings`` or ``mask`` is of no accepted kind.
    """
    if isinstance(readings, pd.DataFrame):
        return _from_tables({None: readings}, mask)
    if isinstance(readings, Mapping):
        if not readings:
            raise ValueError("readings: the mapping from channel to table is empty")
        return _from_tables(dict(readings.items()), mask)
    if isinstance(readings, np.ndarray):
        if readings.dtype.kind not in "fiub":
            raise ValueError(f"readings: expected numbers, found an array of dtype {readings.dtype}")
        if isinstance(readings, np.ma.MaskedArray):
            readings = np.ma.filled(readings.astype(np.float32), np.nan)
        values = torch.from_numpy(np.require(readings, np.float32, ["C", "W"]))  # a read-only array is copied
    elif isinstance(readings, Tensor):
        if readings.is_complex():
            raise ValueError(f"readings: expected real numbers, found a tensor of dtype {readings.dtype}")
        values = readings.detach().to(torch.float32)
    else:
        raise TypeError(
            "readings: expected a numpy array, a tensor, a pandas DataFrame or a mapping from channel to DataFrame, "
            f"found {type(readings).__name__}"
        )
    return CleanReadings(*_mask_missing(values, mask))


def _mask_missing(values: Tensor, mask: np.ndarray | Tensor | None) -> tuple[Tensor, Tensor]:
    given_shape = tuple(values.shape)
    if values.dim() == 2:
        values = values.unsqueeze(-1)
    if values.dim() != 3 or 0 in values.shape:
        raise ValueError(
            f"readings: expected shape [steps, nodes] or [steps, nodes, channels], none of them 0, found "
            f"{list(given_shape)}"
        )
    missing = values.isnan()
    if mask is not None:
        if not isinstance(mask, np.ndarray | Tensor):
            raise TypeError(
                f"mask: expected a numpy array or a tensor (True = observed), found {type(mask).__name__}; NaN "
                "readings need no mask"
            )
        observed = torch.as_tensor(mask)
        if observed.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype bool (True = observed), found {observed.dtype}")
        if observed.shape != values.shape and (values.shape[2] > 1 or observed.shape != values.shape[:2]):
            raise ValueError(f"mask: expected the shape of the readings {list(given_shape)}, found {[*observed.shape]}")
        missing = missing | ~observed.reshape(values.shape).to(values.device)
    if missing.any():
        values = values.masked_fill(missing, 0.0)
    if not within_bounds(values):
        step, node, channel = (int(i) for i in torch.nonzero(~(values.abs() <= LARGEST))[0])
        raise ValueError(
            f"readings: found {values[step, node, channel].item():g} at step {step}, node {node}, channel {channel}; "
            f"readings must be finite and at most {LARGEST:g} in size, with NaN (or a mask) where nothing was observed"
        )
    return values, ~missing


def within_bounds(values: Tensor) -> bool:
    """Whether all are finite and at most :data:`LARGEST` in size."""
    low, high = values.aminmax()
    return bool((low >= -LARGEST) & (high <= LARGEST))


def _from_tables(
    tables: Mapping[str, pd.DataFrame] | dict[None, pd.DataFrame], mask: np.ndarray | Tensor | None
) -> CleanReadings:
    arrays: list[np.ndarray] = []
    first: pd.DataFrame | None = None
    for channel, table in tables.items():
        label = "readings" if channel is None else f"readings[{channel!r}]"
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"{label}: expected a pandas DataFrame, found {type(table).__name__}")
        table = table.set_axis([id_text(column) for column in table.columns], axis="columns")
        if table.columns.has_duplicates:
            twice = table.columns[table.columns.duplicated()][0]
            raise ValueError(f"{label}: node {twice!r} has more than one column; each node needs exactly one")
        texts = [column for column in table.columns if table[column].dtype.kind not in "fiub"]
        if texts:
            raise ValueError(
                f"{label}: column {texts[0]!r} holds {table[texts[0]].dtype}, expected numbers "
                "(convert it with pandas.to_numeric, or set the time column as index)"
            )
        if first is None:
            first = table
        else:
            unknown = sorted(set(first.columns) ^ set(table.columns))
            if unknown:
                raise ValueError(f"{label}: node {unknown[0]!r} is not in every channel's table")
            if not table.index.equals(first.index):
                raise ValueError(f"{label}: its rows are not the same steps as those of the first channel")
            table = table[first.columns]
        arrays.append(table.to_numpy(dtype=np.float32, na_value=np.nan))
    assert first is not None
    start, interval = _regular_time(first.index)
    values, observed = _mask_missing(torch.from_numpy(np.stack(arrays, axis=-1)), mask)
    channels = tuple(str(channel) for channel in tables) if None not in tables else None
    return CleanReadings(values, observed, tuple(first.columns), channels, start, interval)


def _regular_time(index: pd.Index) -> tuple[pd.Timestamp | None, pd.Timedelta | None]:
    if pd.api.types.is_string_dtype(index.dtype):
        raise ValueError(
            f"readings: the rows are labelled with text ({index[0]!r}); make it times with pandas.to_datetime "
            "(parse_dates= of read_csv), or drop it with reset_index(drop=True)"
        )
    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    if isinstance(index, pd.DatetimeIndex) and index.tz is not None:
        raise ValueError(
            f"readings: the times of the rows have the time zone {index.tz}, a city keeps local time without one; "
            "convert the table with tsjt_pyg.data.regular_time(table, zone=...)"
        )
    if not isinstance(index, pd.DatetimeIndex) or not len(index):
        return None, None
    if len(index) == 1:
        return index[0], None
    gaps = index[1:] - index[:-1]
    interval = gaps[0]
    if interval <= pd.Timedelta(0) or (gaps != interval).any():
        bad = int(np.argmax(np.asarray((gaps != interval) | (gaps <= pd.Timedelta(0)))))
        raise ValueError(
            f"readings: irregular time: {index[bad]} is followed by {index[bad + 1]}, the first gap is {interval}; "
            "tsjt_pyg.data.regular_time(table) sorts, puts rows on a grid and fills gaps with NaN"
        )
    return index[0], interval
