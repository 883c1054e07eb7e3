"""The JONAS format of the EAST-Net repository: taxi and bike trips on a grid of zones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ..data import City
from .cards import read_card
from .files import check_name, existing, read_npz
from .grid import grid_city

_FILES = {
    "jonas_nyc": ("JONAS-NYC-16x8-20151024-20160131.npz", pd.Timedelta(minutes=30)),
    "jonas_dc": ("JONAS-DC-9x12-20151024-20160131.npz", pd.Timedelta(minutes=60)),
}


def read_jonas(folder: str | Path, name: str) -> City:
    """Trips that start (demand) and end (supply) in each zone of a grid; zones without land are left out.

    Nodes are zones, with the id ``row-column``; edges join the 8 neighbours with weight 1. A zero is a true zero.

    Args:
        folder: Where the file lies.
        name: ``"jonas_nyc"`` or ``"jonas_dc"``.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If the name is unknown or the file is damaged.
    """
    check_name(name, _FILES)
    file, interval = _FILES[name]
    path = existing(Path(folder), read_card(name), file)
    arrays = read_npz(path, "taxi", "bike", "mask")
    shapes = [arrays[trip].shape for trip in ("taxi", "bike")]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 2:
        raise ValueError(f"{path}: expected 'taxi' and 'bike' of one shape [T, H, W, 2], found {[*map(list, shapes)]}")
    trips = np.concatenate([arrays["taxi"], arrays["bike"]], axis=-1)
    return grid_city(
        trips,
        arrays["mask"],
        path,
        name=name,
        channels=["taxi_demand", "taxi_supply", "bike_demand", "bike_supply"],
        units=["trips"] * 4,
        start="2015-10-24",
        interval=interval,
    )
