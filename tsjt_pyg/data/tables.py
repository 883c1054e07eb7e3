"""One's own tables into a city: readings, sensors and edges, joined by sensor id and never by order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import torch

from .city import City
from .ids import id_text
from .parts import About, AboutReadings
from .repair import find_faults
from .table_columns import NAMES, columns_of, find_column, no_column
from .table_file import Decimal, Table, TableLike, open_table
from .table_report import TableReport
from .table_rows import Duplicates, Rows, arrange, long_rows, wide_rows
from .table_units import one_unit

logger = logging.getLogger(__name__)

Missing = Literal["drop", "keep", "error"]


class TableArguments(TypedDict, total=False):
    """How tables are read; all optional.

    Args:
        layout: ``"wide"`` (a column a sensor id), ``"long"`` (a row a time and sensor) or ``"auto"``: long if there is
            a column for the sensor id.
        columns: Column names that are not found by themselves: from what it is for (``"time"``, ``"sensor"``,
            ``"latitude"``, ``"longitude"``, ``"from"``, ``"to"``, ``"distance"``, ``"weight"``, ``"unit"``) to its
            name.
        channels: Long: the columns to take; default: all that are not for time, sensor or position. Wide: the name of
            its one channel; default: ``"reading"``.
        units: One unit a channel. Default: that of the column ``unit``, if there is one, else none.
        name: Name of the city. Default: ``"city"``.
        interval: Time between two steps. Default: the most frequent gap between times.
        time_format: Of times that are not year first (ISO 8601), such as ``"%d/%m/%Y %H:%M"``.
        decimal: ``","`` where numbers that are text, as in a CSV file, have decimal commas (positions may still have
            points). Default: ``"."``.
        missing_values: Numbers that mean "missing" in the channels' columns, such as ``[0, -1]``, in the table's own
            units. Default: none.
        missing: What to do with ids that only one table has. ``"drop"`` (default): they are left out; ``"keep"``:
            sensors without readings stay, as nodes never observed, the others are left out; ``"error"``.
        duplicates: What to do with rows of the same time (and sensor): ``"error"`` (default), or take the ``"mean"``,
            ``"first"`` or ``"last"`` of what was observed.
        k: Without edges: number of nearest neighbours. Default: 8.
        sigma: Metres; see :func:`~tsjt_pyg.data.graph.gaussian_kernel`.
        threshold: Smallest weight an edge with a distance may have, in [0, 1). Default: 0, all are kept.
    """

    layout: Literal["auto", "wide", "long"]
    columns: Mapping[str, str]
    channels: Sequence[str] | str
    units: Sequence[str] | str
    name: str
    interval: str | pd.Timedelta
    time_format: str
    decimal: Decimal
    missing_values: Sequence[float] | float
    missing: Missing
    duplicates: Duplicates
    k: int
    sigma: float
    threshold: float


class TablesRead(NamedTuple):
    """A city, and what became of its tables."""

    city: City
    report: TableReport


def read_tables(
    readings: TableLike,
    sensors: TableLike,
    edges: TableLike | None = None,
    *,
    layout: Literal["auto", "wide", "long"] = "auto",
    columns: Mapping[str, str] | None = None,
    channels: Sequence[str] | str | None = None,
    units: Sequence[str] | str | None = None,
    name: str = "city",
    interval: str | pd.Timedelta | None = None,
    time_format: str | None = None,
    decimal: Decimal = ".",
    missing_values: Sequence[float] | float = (),
    missing: Missing = "drop",
    duplicates: Duplicates = "error",
    k: int = 8,
    sigma: float | None = None,
    threshold: float = 0.0,
) -> TablesRead:
    """A city from tables, joined by sensor id, with a report of what was joined, dropped and added.

    Nodes are in the order of the sensors' table. Ids are compared as text: 773869, ``"773869"`` and 773869.0 are one.
    Steps of which there is no row, and empty fields, are missing (``mask == False``). Nothing is filled in. Where the
    sensors' table (or a long one of readings) has a column ``unit``, readings in several are converted to that of
    ``units``, else of most sensors, or refused where one is not known.

    Args:
        readings: A table (or its CSV or Parquet file) with a time column or index. Wide: beside it a column a sensor
            id. Long: beside it a column with the sensor id, and one a channel. Rows in any order. Times are local,
            without a time zone.
        sensors: A table (or file) with a column for the id, and latitude and longitude in degrees (needed where there
            are no edges). Other columns are ignored.
        edges: A table (or file) with columns for from and to (sensor ids) and either a distance in metres (weighted by
            a Gaussian kernel, of parallel edges the shortest) or a weight (as it is, of parallel edges the largest);
            with neither, all weights are 1. ``None``: the ``k`` nearest by position.
        layout, columns, channels, units, name, interval, time_format: See :class:`TableArguments`.
        decimal, missing_values, missing, duplicates, k, sigma, threshold: See there, too.

    Returns:
        ``(city, report)``; the report is logged, too.

    Raises:
        ValueError: If a file or table is damaged or does not say what is needed; the message names file, column and
            line, and the way out.
        FileNotFoundError: If there is no such file.
        TypeError: If something is neither a table nor a path.
    """
    for argument, choice, known in (
        ("layout", layout, ("auto", "wide", "long")),
        ("decimal", decimal, (".", ",")),
        ("missing", missing, ("drop", "keep", "error")),
        ("duplicates", duplicates, ("error", "mean", "first", "last")),
        *(("columns", role, tuple(NAMES)) for role in columns or {}),
    ):
        if choice not in known:
            raise ValueError(f"{argument}: expected {', '.join(map(repr, known))}, found {choice!r}")
    named = dict(columns or {})
    table, sensor_table, edge_table = _opened(readings, sensors, edges, named, decimal)

    nodes, positions = _sensors(sensor_table, named, needed=edge_table is None)
    rows = _rows(table, layout, nodes, named, channels, time_format, _numbers(missing_values))
    only_sensors, only_readings = _unmatched(rows, nodes, sensor_table, missing)
    if missing != "keep":
        nodes = [node for node in nodes if node not in set(only_sensors)]
    rows, units, converted = one_unit(rows.select(nodes), sensor_table, named, units)
    grid = arrange(rows, interval, duplicates)
    if np.isnan(grid.readings).all():
        raise ValueError(f"{table.label}: found no reading, all fields of its {len(nodes)} sensors are empty")

    about: AboutReadings = {
        "name": name,
        "node_ids": nodes,
        "channels": rows.channels,
        "start": grid.start,
        "interval": grid.interval,
    }
    if units is not None:
        about["units"] = units
    dropped: dict[str, int] = {}
    if edge_table is None:
        assert positions is not None
        city = City.from_positions(grid.readings, positions.loc[nodes], k=k, sigma=sigma, **about)
    else:
        pairs, kind, dropped = _edges(edge_table, nodes, named, missing)
        placed = about if positions is None else About(**about, positions=positions.loc[nodes])
        if kind == "distance":
            city = City.from_distances(grid.readings, pairs, sigma=sigma, threshold=threshold, **placed)
            dropped["weight below the threshold"] = len(pairs) - city.num_edges
        else:
            place = {node: i for i, node in enumerate(nodes)}
            ends = [pairs[end].map(place).to_numpy(dtype=np.int64) for end in ("from", "to")]
            weight = torch.from_numpy(pairs["cost"].to_numpy(dtype=np.float32))
            city = City.from_edge_index(grid.readings, torch.from_numpy(np.stack(ends)), weight, **placed)
    report = TableReport(
        layout="wide" if rows.sensor is None else "long",
        rows=len(table.frame),
        rows_out_of_order=grid.rows_out_of_order,
        duplicate_rows=grid.duplicate_rows,
        start=city.start,
        interval=city.interval,
        steps=city.num_steps,
        steps_added=grid.steps_added,
        marked=rows.marked,
        doubtful=int((find_faults(city, dead=False, stuck=None).rule > 0).sum()),
        sensors_without_readings=only_sensors,
        readings_without_sensor=only_readings,
        kept=missing == "keep",
        columns_left_out=rows.left_out,
        converted=converted,
        edges=city.num_edges,
        edges_dropped={reason: count for reason, count in dropped.items() if count},
        coverage=pd.DataFrame(city.mask.double().mean(dim=0).numpy(), index=nodes, columns=list(city.channels)),
    )
    logger.log(logging.WARNING if report.dropped or report.doubtful else logging.INFO, "%s: %s", name, report)
    return TablesRead(city, report)


def _numbers(missing_values: Sequence[float] | float) -> list[float]:
    several = isinstance(missing_values, Iterable) and not isinstance(missing_values, str)
    numbers: list[Any] = [*missing_values] if several else [missing_values]  # type: ignore[misc]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise ValueError(f"missing_values: expected numbers (such as [0, -1]), found {number!r}")
    return numbers


def _opened(
    readings: TableLike, sensors: TableLike, edges: TableLike | None, named: Mapping[str, str], decimal: Decimal
) -> tuple[Table, Table, Table | None]:
    roles = ("sensor", "from", "to")
    text = {name for role in roles for name in (*NAMES[role], named.get(role, "").lower())}
    table = open_table(readings, "readings", text, decimal)
    sensor_table = open_table(sensors, "sensors", text, decimal)
    edge_table = None if edges is None else open_table(edges, "edges", text, decimal)
    opened = [found for found in (table, sensor_table, edge_table) if found is not None]
    for role, column in named.items():
        if not any(column in found.frame.columns for found in opened):
            have = ", ".join(f"{found.label} has {columns_of(found)}" for found in opened)
            raise ValueError(f"columns: there is no column {column!r} (for {role!r}) in any table: {have}")
    return table, sensor_table, edge_table


def _sensors(table: Table, named: Mapping[str, str], needed: bool) -> tuple[list[str], pd.DataFrame | None]:
    """Ids, and latitude and longitude by id."""
    column = find_column(table, "sensor", named, also=("index",))
    if column is None:
        raise no_column(table, "sensor")
    codes, ids = table.ids(column)
    again = pd.Series(codes).duplicated().to_numpy()
    if again.any():
        row = int(again.argmax())
        raise ValueError(
            f"{table.label}: column {column!r}, {table.place(row)}: sensor {ids[codes[row]]!r} is there more than "
            "once; each sensor needs exactly one row"
        )
    place = {}
    for role in ("latitude", "longitude"):
        found = find_column(table, role, named)
        if found is not None:
            place[role] = table.numbers(found, also_point=True)
        elif needed or place:
            raise no_column(table, role)
    return ids, pd.DataFrame(place, index=ids) if len(place) == 2 else None


def _rows(
    table: Table,
    layout: str,
    sensor_ids: Sequence[str],
    named: Mapping[str, str],
    channels: Sequence[str] | str | None,
    time_format: str | None,
    missing_values: Sequence[float],
) -> Rows:
    channels = [channels] if isinstance(channels, str) else channels
    sensor = None if layout == "wide" else find_column(table, "sensor", named)
    if sensor is not None and layout == "auto" and "sensor" not in named:
        known = set(sensor_ids)
        wide = [column for column in table.frame.columns if column != sensor and id_text(column) in known]
        if len(wide) > 1:
            raise ValueError(
                f"{table.label}: column {sensor!r} may hold the sensor ids (long), but {wide[0]!r} and {wide[1]!r} are "
                f"sensor ids too (wide); say layout='long' or layout='wide' (and drop {sensor!r} if it numbers rows)"
            )
    if sensor is not None:
        return long_rows(table, sensor, named, channels, time_format, missing_values)
    if layout == "long":
        raise no_column(table, "sensor")
    if channels is not None and len(channels) != 1:
        raise ValueError(f"channels: {table.label} is wide, so it has one channel, found {list(channels)}")
    channel = channels[0] if channels else "reading"
    return wide_rows(table, sensor_ids, named, channel, time_format, missing_values)


def _unmatched(
    rows: Rows, sensor_ids: Sequence[str], sensors: Table, missing: Missing
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sensors without readings, and ids of readings without a sensor."""
    recorded, known = set(rows.ids), set(sensor_ids)
    only_sensors = tuple(node for node in sensor_ids if node not in recorded)
    only_readings = tuple(node for node in rows.ids if node not in known)
    label = rows.table.label
    if len(only_sensors) == len(sensor_ids):
        taken = "wide, a column a sensor id; of a long one" if rows.sensor is None else "long; if another column is it"
        raise ValueError(
            f"{label}: none of its {len(rows.ids)} sensor ids (such as {rows.ids[0]!r}) is an id of {sensors.label} "
            f"(such as {sensor_ids[0]!r}); make the ids of both equal, as text: prefixes and leading zeros count (the "
            f"table was taken as {taken}, name the column of ids with columns={{'sensor': ...}})"
        )
    if missing == "error" and (only_sensors or only_readings):
        raise ValueError(
            "missing: "
            + (f"sensor {only_sensors[0]!r} of {sensors.label} has no readings" if only_sensors else "")
            + (" and " if only_sensors and only_readings else "")
            + (f"{only_readings[0]!r} of {label} is no sensor" if only_readings else "")
            + f" ({len(only_sensors)} without readings, {len(only_readings)} without sensor); 'drop' leaves them out"
        )
    return only_sensors, only_readings


def _edges(
    table: Table, nodes: Sequence[str], named: Mapping[str, str], missing: Missing
) -> tuple[pd.DataFrame, str, dict[str, int]]:
    """Unique edges between nodes, ``from, to, cost``, what the cost is, and the number of rows dropped by reason."""
    ends = {}
    for role in ("from", "to"):
        column = find_column(table, role, named)
        if column is None:
            raise no_column(table, role)
        codes, ids = table.ids(column)
        inside = np.isin(np.array(ids, dtype=object), np.array(nodes, dtype=object))[codes]
        if missing == "error":
            table.refuse(column, ~inside, "expected the id of a sensor with readings (missing='drop' leaves it out)")
        ends[role] = np.array(ids, dtype=object)[codes]
        ends[f"{role} known"] = inside
    costs = {role: column for role in ("distance", "weight") if (column := find_column(table, role, named)) is not None}
    if len(costs) == 2:
        raise ValueError(
            f"{table.label}: found a distance ({costs['distance']!r}) and a weight ({costs['weight']!r}); leave one out"
        )
    if not costs and len(table.frame.columns) > 2:
        raise no_column(table, "distance")
    kind = next(iter(costs), "weight")
    cost = table.numbers(costs[kind]) if costs else np.ones(len(table.frame))
    if costs:
        bad = np.isnan(cost) | (cost < 0)
        table.refuse(costs[kind], bad, "expected metres" if kind == "distance" else "expected a weight, not negative")
    pairs = pd.DataFrame({"from": ends["from"], "to": ends["to"], "cost": cost})
    known = ends["from known"] & ends["to known"]
    loop = known & (pairs["from"] == pairs["to"]).to_numpy()
    found = pairs[known & ~loop]
    if found.empty:
        raise ValueError(
            f"{table.label}: none of its {len(pairs)} edges joins two nodes of the city: it says "
            f"{pairs['from'].iloc[0]!r} to {pairs['to'].iloc[0]!r}, nodes have ids such as {nodes[0]!r}"
        )
    unique = found.groupby(["from", "to"], sort=False)["cost"].agg("min" if kind == "distance" else "max").reset_index()
    position = {node: i for i, node in enumerate(nodes)}
    unique = unique.sort_values(["from", "to"], key=lambda end: end.map(position), ignore_index=True)
    reasons = {
        "an end is no node": int((~known).sum()),
        "from a node to itself": int(loop.sum()),
        "parallel": len(found) - len(unique),
    }
    return unique, kind, reasons
