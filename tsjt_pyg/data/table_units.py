"""Units that stand in a table, one a sensor or a row: readings in several are brought to one, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from .table_columns import find_column
from .table_file import Table
from .table_rows import Rows
from .units import kind_of, known_unit, unit_factor


class OneUnit(NamedTuple):
    """Rows in one unit a channel, the units (``None``: nobody said), and the number of sensors converted, by unit."""

    rows: Rows
    units: Sequence[str] | None
    converted: dict[str, int]


def one_unit(rows: Rows, sensors: Table, named: Mapping[str, str], units: Sequence[str] | str | None) -> OneUnit:
    """Readings of a channel in one unit, where the readings' or the sensors' table has a column for it.

    Readings are brought to what ``units`` says, else to the unit of most sensors. Of several channels the column is
    about the one that ``units`` says is measured in such a unit.

    Args:
        rows: The readings, of the nodes of the city.
        sensors: The sensors' table.
        named: Columns that the user named.
        units: What the user says of the channels.

    Raises:
        ValueError: If units differ and one of them is not known, or they do not measure the same; the message names two
            sensors.
    """
    said = [units] if isinstance(units, str) else units
    of_cell = _units_of_cells(rows, sensors, named)
    if of_cell is None:
        return OneUnit(rows, said, {})
    label, each, node = of_cell
    channel = _channel(rows, label, each, said)
    sensors_of = {unit: pd.unique(node[each == unit]).tolist() for unit in pd.unique(each).tolist()}
    most = Counter({unit: len(found) for unit, found in sensors_of.items() if unit}).most_common(1)[0][0]
    wanted = most if said is None else known_unit(said[channel])
    factor = {unit: _factor(unit, wanted, label, rows.ids, sensors_of, said) for unit in sensors_of}
    scale = np.array([factor[unit] for unit in each.tolist()])
    values = rows.values.copy()
    if rows.sensor is None:
        values *= scale
    else:
        values[:, channel] *= scale
    converted = {f"{unit} to {wanted}": len(found) for unit, found in sensors_of.items() if unit not in ("", wanted)}
    return OneUnit(replace(rows, values=values), [wanted] if said is None else said, converted)


def _units_of_cells(rows: Rows, sensors: Table, named: Mapping[str, str]) -> tuple[str, np.ndarray, np.ndarray] | None:
    """What the column is called, and unit and sensor of each row (long) or column (wide); ``None`` if none says one."""
    node = np.arange(len(rows.ids)) if rows.sensor is None else rows.sensor
    column = None if rows.sensor is None else find_column(rows.table, "unit", named)
    if column is not None and column not in rows.channels:
        label, each = f"{rows.table.label}: column {column!r}", _texts(rows.table, column)[rows.number]
    else:
        column = find_column(sensors, "unit", named)
        if column is None:
            return None
        label = f"{sensors.label}: column {column!r}"
        ids = find_column(sensors, "sensor", named, also=("index",))
        assert ids is not None
        codes, unique = sensors.ids(ids)
        of = dict(zip((unique[code] for code in codes), _texts(sensors, column), strict=True))
        each = np.array([of[name] for name in rows.ids], dtype=object)[node]
    return (label, each, node) if (each != "").any() else None


def _texts(table: Table, column: str) -> np.ndarray:
    """The units of a column as they are usually spelled, ``""`` where a field is empty."""
    codes, unique = pd.factorize(table.frame[column])
    return np.array([*(known_unit(str(value).strip()) for value in unique), ""], dtype=object)[codes]


def _channel(rows: Rows, label: str, each: np.ndarray, said: Sequence[str] | None) -> int:
    """Which channel the column of units is about."""
    if len(rows.channels) == 1:
        return 0
    kinds = {kind_of(unit) for unit in pd.unique(each).tolist() if unit}
    alike = [i for i, unit in enumerate(said or ()) if kinds == {kind_of(unit)} != {None}]
    if len(alike) == 1 and len(said or ()) == len(rows.channels):
        return alike[0]
    raise ValueError(
        f"{label}: it says one unit ({next(unit for unit in each.tolist() if unit)!r}), but there are the channels "
        f"{list(rows.channels)}; say with units= what each is measured in, so that exactly one is measured in such a "
        "unit, or leave the column out"
    )


def _factor(
    unit: str,
    wanted: str,
    label: str,
    ids: Sequence[str],
    sensors_of: Mapping[str, Sequence[int]],
    said: Sequence[str] | None,
) -> float:
    if unit == wanted:
        return 1.0
    if not unit and said is not None:
        return 1.0  # a sensor of which only units= says what it measures in
    if unit and kind_of(unit) is not None and kind_of(unit) == kind_of(wanted):
        return unit_factor(unit, wanted, label)
    other = f"units= says {wanted!r}"
    if said is None:
        other = f"sensor {ids[sensors_of[wanted][0]]!r} in {wanted!r}"
    found = repr(unit) if unit else "no unit"
    raise ValueError(
        f"{label}: sensor {ids[sensors_of[unit][0]]!r} is in {found}, {other}, and one cannot be converted to the other"
        "; mend the column, or leave it out and bring the readings to one unit"
    )
