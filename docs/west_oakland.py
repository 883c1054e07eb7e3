"""Draws west_oakland.png, the picture of road_networks.md: ``python west_oakland.py West-Oakland.osm.bz2``.

The file is an export of OpenStreetMap. The code is that of the page, with fewer sensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from tsjt_pyg import City
from tsjt_pyg.data import Roads, read_roads
from tsjt_pyg.evaluation import plot_city

STEP = "2024-03-04 08:20"


def west_oakland(export: Path) -> tuple[City, Roads]:
    """The city with simulated speeds, and its roads."""
    roads = read_roads(export, component="strong")
    speed = roads.length / roads.cost("travel_time") * 3.6  # km/h, free flow
    time = pd.date_range("2024-03-04", periods=288, freq="5min")
    rng = np.random.default_rng(0)
    peak = np.exp(-(((np.arange(288) - 100) / 20) ** 2))[:, None] * rng.uniform(0.1, 0.7, len(speed))
    readings = pd.DataFrame(speed * (1 - peak), index=time, columns=roads.segment_ids)
    city = City.from_osmnx(
        readings.iloc[:, rng.random(len(speed)) > 0.15],  # the others have no sensor
        roads,
        nodes="segments",
        weight="travel_time",
        without_readings="keep",
        channels="speed",
        units="km/h",
        name="West Oakland",
    )
    return city, roads


def main(export: Path, picture: Path) -> None:
    city, roads = west_oakland(export)
    plot_city(city, picture, step=STEP, roads=roads)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "west_oakland.png")
