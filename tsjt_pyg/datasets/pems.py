"""The PEMS0X format of the ASTGCN release: ``.npz`` of flow, occupancy and speed, and a table of road distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import City
from .files import existing, read_csv, read_npz

_START = {"pems04": "2018-01-01", "pems08": "2016-07-01"}


def read_pems(folder: Path, name: str) -> City:
    """Caltrans detectors every 5 minutes: flow (vehicles in 5 minutes), occupancy (fraction), speed (mph).

    Files: ``<name>.npz`` with ``data`` ``[T, N, 3]``, ``distance.csv`` (``from, to, cost``: node indices, metres).
    A zero flow is a missing reading, and so is the occupancy beside it. Roads count in both directions.
    """
    path = existing(folder, f"{name}.npz", name)
    data = read_npz(path, "data")["data"].astype(np.float32)
    if data.ndim != 3 or data.shape[2] != 3:
        raise ValueError(f"{path}: expected 'data' of shape [T, N, 3] (flow, occupancy, speed), found {[*data.shape]}")
    data[data[..., 0] == 0, :2] = np.nan
    data[data[..., 2] == 0, 2] = np.nan
    return City.from_distances(
        data,
        read_csv(existing(folder, "distance.csv", name), "from", "to", "cost").astype({"from": int, "to": int}),
        threshold=0.0,
        name=name,
        channels=["flow", "occupancy", "speed"],
        units=["veh/5min", "fraction", "mph"],
        start=_START[name],
        interval="5min",
    ).to_undirected()
