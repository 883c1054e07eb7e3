"""Readings, sensors and edges of a small city, as tables that users bring."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tsjt_pyg import City

IDS = ["773869", "767541", "767542", "717447"]
TIME = pd.date_range("2024-03-04 08:00", periods=6, freq="5min", name="timestamp")
SENSORS = pd.DataFrame(
    {"sensor_id": IDS, "latitude": [34.15, 34.12, 34.11, 34.07], "longitude": [-118.31, -118.23, -118.23, -118.26]}
)
EDGES = pd.DataFrame({"from": IDS[:3], "to": IDS[1:], "distance": [100.0, 200.0, 400.0]})
HOLE = (2, 1)


def wide(number: float = 1.0) -> pd.DataFrame:
    """Readings that are all different, one of them missing."""
    values = np.arange(24, dtype=np.float64).reshape(6, 4) + number
    values[HOLE] = np.nan
    return pd.DataFrame(values, index=TIME, columns=IDS)


def long() -> pd.DataFrame:
    """The same, and a second channel."""
    channels = {"speed": wide(), "flow": wide(1000.0)}
    tables = [t.rename_axis(columns="sensor_id").melt(ignore_index=False, value_name=c) for c, t in channels.items()]
    return tables[0].reset_index().assign(flow=tables[1]["flow"].to_numpy())


def of(city: City, node: str, channel: int = 0) -> list[float | None]:
    """A node's readings, ``None`` where nothing was observed."""
    i = city.node_ids.index(node)
    pairs = zip(city.readings[:, i, channel].tolist(), city.mask[:, i, channel].tolist(), strict=True)
    return [value if observed else None for value, observed in pairs]


def expected(node: str, number: float = 1.0) -> list[float | None]:
    return [None if pd.isna(value) else value for value in wide(number)[node]]
