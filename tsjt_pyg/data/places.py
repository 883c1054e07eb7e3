"""Where nodes are: a table of sensors with their ids, latitude and longitude, joined by id and never by order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .graph import MatrixLike, numbers
from .ids import check_ids, id_text
from .table_columns import NAMES, find_column
from .table_file import Table, open_table


class SensorRows(NamedTuple):
    """A table of sensors, a row each.

    Args:
        table: Its columns.
        ids: Id of each row.
        source: Where the ids are from, for messages.
        numbered: Whether there are no ids, so that ``ids`` are the numbers of the rows.
    """

    table: Table
    ids: tuple[str, ...]
    source: str
    numbered: bool = False


def sensor_rows(frame: pd.DataFrame, argument: str) -> SensorRows:
    """The rows of a table of sensors with their ids: its column for the sensor id, else its index.

    A column goes by the names of :data:`~tsjt_pyg.data.table_columns.NAMES`, as in
    :meth:`City.from_tables <tsjt_pyg.data.City.from_tables>`. An index of row numbers is not looked at beside it.

    Raises:
        ValueError: If an id is there twice, a field of the column is empty, or column and index both hold ids and
            they differ.
    """
    table = open_table(frame.reset_index(drop=True), argument)
    index = frame.index
    plain = index.nlevels == 1 and index.name is None and pd.api.types.is_integer_dtype(index.dtype)
    column = find_column(table, "sensor", {})
    if column is None:
        ids, source = list(map(id_text, index)), "index"
        numbered = plain and index.equals(pd.RangeIndex(len(ids)))
        return SensorRows(table, check_ids(ids, len(ids), argument), source, numbered)
    codes, unique = table.ids(column)
    ids, source = [unique[code] for code in codes], f"column {column!r}"
    if not plain:
        ids, source = _column_or_index(ids, column, index, argument)
    return SensorRows(table, check_ids(ids, len(ids), argument), source)


def _column_or_index(ids: list[str], column: str, index: pd.Index, argument: str) -> tuple[list[str], str]:
    """Ids, of a column and an index that both may hold them, and where they are from."""
    labels, names = list(map(id_text, index)), NAMES["sensor"]
    name = id_text(index.name).lower()
    if name in names:  # then the index counts as a column does: the first of the usual names
        return (labels, "index") if names.index(name) <= names.index(column.lower()) else (ids, f"column {column!r}")
    if labels != ids:
        raise ValueError(
            f"{argument}: its index ({labels[0]!r}, …) and its column {column!r} ({ids[0]!r}, …) both may hold the "
            f"node ids; drop one, with reset_index(drop=True) or drop(columns={column!r})"
        )
    return labels, "index"


def check_numbered(rows: Sequence[str], node_ids: Sequence[str], argument: str) -> None:
    """Refuses to join sensors that have no ids, only row numbers, with readings that have ids of their own.

    Args:
        rows: The row numbers, as ids.
        node_ids: The nodes of the readings.
        argument: What messages call the sensors.

    Raises:
        ValueError: If the two are not the same.
    """
    if tuple(rows) != tuple(node_ids):
        raise ValueError(
            f"{argument}: the table has no node ids, its index numbers {len(rows)} rows, but the {len(node_ids)} nodes "
            f"of the readings have ids (for example {node_ids[0]!r}), and nothing is joined by order; give it a column "
            "named sensor_id, or set_index the column that holds the ids"
        )


def check_positions(positions: MatrixLike, node_ids: Sequence[str], argument: str = "positions") -> Tensor:
    """Positions ``[N, 2]`` float64: latitude and longitude in degrees, in the order of ``node_ids``.

    Args:
        positions: ``[N, 2]``, or a table with the columns ``latitude`` and ``longitude`` (or ``lat``, ``lon``, …) and
            a column ``sensor_id`` (or ``station``, ``node``, …), or indexed by node id.
        node_ids: The nodes in order.
        argument: What messages call it.

    Raises:
        ValueError: On a wrong shape, an absent node or column, a table without ids, or degrees out of range.
    """
    if isinstance(positions, pd.DataFrame):
        array = _places_by_id(positions, node_ids, argument)
    else:
        array = numbers(positions, argument)
    if array.shape != (len(node_ids), 2):
        raise ValueError(
            f"{argument}: expected shape [{len(node_ids)}, 2] (latitude, longitude), found {list(array.shape)}"
        )
    bad = ~np.isfinite(array) | (np.abs(array) > np.array([90.0, 180.0]))
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise ValueError(
            f"{argument}: node {node_ids[row]!r} is at {array[row].tolist()}; expected latitude in [-90, 90] and "
            "longitude in [-180, 180], in degrees and in that order"
        )
    return torch.from_numpy(array)


def _places_by_id(positions: pd.DataFrame, node_ids: Sequence[str], argument: str) -> np.ndarray:
    sensors = sensor_rows(positions, argument)
    place = np.stack([_degrees(sensors.table, role, argument) for role in ("latitude", "longitude")], axis=1)
    if sensors.numbered:
        check_numbered(sensors.ids, node_ids, argument)
    row = {node: i for i, node in enumerate(sensors.ids)}
    absent = sorted(set(node_ids) - set(row))
    if absent:
        raise ValueError(
            f"{argument}: node {absent[0]!r} is not in the table's {sensors.source} (such as "
            f"{sensors.ids[0]!r}; {len(absent)} of {len(node_ids)} are absent); both need the same node ids (readings "
            "in an array get them with node_ids=)"
        )
    return place[[row[node] for node in node_ids]]


def _degrees(table: Table, role: str, argument: str) -> np.ndarray:
    column = find_column(table, role, {})
    if column is None:
        raise ValueError(
            f"{argument}: column {role!r} is absent, found {list(table.frame.columns)}; expected one named "
            f"{', '.join(NAMES[role])}"
        )
    return table.numbers(column)
