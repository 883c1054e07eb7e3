"""Which column of a table is for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .table_file import Table

NAMES = {
    "time": ("timestamp", "datetime", "date_time", "time_stamp", "time", "date"),
    "sensor": (
        *("sensor_id", "sensorid", "sensor", "station_id", "station", "detector_id", "detid", "detector"),
        *("node_id", "node", "segment_id", "geo_id", "entity_id", "id"),
    ),
    "latitude": ("latitude", "lat", "y"),
    "longitude": ("longitude", "lon", "lng", "long", "x"),
    "from": ("from", "from_id", "source", "origin", "origin_id", "u"),
    "to": ("to", "to_id", "target", "destination", "destination_id", "v"),
    "distance": ("distance", "cost", "length", "metres", "meters"),
    "weight": ("weight",),
    "unit": ("unit", "units"),
}
"""What a column is for, and the names it goes by (in lower case); the first that is there counts."""


def find_column(table: Table, role: str, named: Mapping[str, str], also: Sequence[str] = ()) -> str | None:
    """The table's column for ``role``: the one the user named, or one of its usual names; ``None`` if there is none."""
    if named.get(role) in table.frame.columns:
        return named[role]
    lower = {column.lower(): column for column in reversed(table.frame.columns)}
    return next((lower[name] for name in (*NAMES[role], *also) if name in lower), None)


def columns_of(table: Table) -> str:
    """The columns of a table, the first twelve of many, for errors."""
    found = list(table.frame.columns)
    return f"{found[:12]}{' …' if len(found) > 12 else ''}"


def no_column(table: Table, role: str) -> ValueError:
    """What is said where a column cannot be done without."""
    return ValueError(
        f"{table.label}: there is no column for {role!r}: expected one named {', '.join(NAMES[role])}, found "
        f"{columns_of(table)}; say which it is with columns={{{role!r}: ...}}"
    )
