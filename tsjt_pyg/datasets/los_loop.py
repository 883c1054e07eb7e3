"""The LOS-loop format of the T-GCN repository: wide speed CSV, adjacency matrix, sensor positions."""

from __future__ import annotations

from pathlib import Path

from ..data import City
from .files import existing, read_csv


def read_los_loop(folder: Path) -> City:
    """Los Angeles loop detectors, first week of March 2012 (METR-LA): speed in mph, interpolated upstream.

    Files: ``speed.csv`` (a column a sensor id), ``adjacency.csv`` (no header, in the order of those columns),
    ``sensors.csv`` (``sensor_id, latitude, longitude``).
    """
    speed = read_csv(existing(folder, "speed.csv", "los_loop"))
    speed.columns = speed.columns.astype(str)
    adjacency = read_csv(existing(folder, "adjacency.csv", "los_loop"), header=False)
    sensors = read_csv(existing(folder, "sensors.csv", "los_loop"), "sensor_id", "latitude", "longitude")
    return City.from_adjacency(
        speed.where(speed != 0),  # a zero speed is a sensor without data (DCRNN's convention for METR-LA)
        adjacency.to_numpy(),
        name="los_loop",
        channels="speed",
        units="mph",
        start="2012-03-01",
        interval="5min",
        positions=sensors.set_index("sensor_id"),
    )
