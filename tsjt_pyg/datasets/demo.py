"""The bundled simulated cities: ``demo/<name>``, made by ``datasets/simulate_demo_cities.py``."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pandas as pd

from ..data import City
from .files import read_npz

MISSING = 65535
"""Code of a reading that was not observed."""


def demo_names() -> list[str]:
    """Names of the bundled cities, without ``demo/``."""
    folder = files("tsjt_pyg.datasets.bundled") / "demo"
    return sorted(entry.name.removesuffix(".npz") for entry in folder.iterdir() if entry.name.endswith(".npz"))


def read_demo(name: str) -> City:
    """A bundled city: 5-minute speed (km/h) and flow (vehicles in 5 minutes) of every road segment over 14 days.

    Nodes are road segments, edges join segments that one may turn between, in both directions (vehicles go down, queues
    grow up), weighted by the Gaussian kernel of the metres from midpoint to midpoint.
    """
    with as_file(files("tsjt_pyg.datasets.bundled") / "demo" / f"{name}.npz") as path:
        arrays = read_npz(
            path, "speed", "flow", "edge_index", "edge_distance", "node_ids", "pos", "start", "interval_minutes"
        )
    node_ids = [str(node) for node in arrays["node_ids"]]
    tables = {
        channel: np.where(arrays[channel] == MISSING, np.nan, arrays[channel] * np.float32(unit)).astype(np.float32)
        for channel, unit in (("speed", 0.1), ("flow", 1.0))
    }
    distances = pd.DataFrame(
        {
            "from": [node_ids[i] for i in arrays["edge_index"][0]],
            "to": [node_ids[i] for i in arrays["edge_index"][1]],
            "cost": arrays["edge_distance"],
        }
    )
    return City.from_distances(
        np.stack(list(tables.values()), axis=-1),
        distances,
        threshold=0.0,
        name=f"demo/{name}",
        node_ids=node_ids,
        channels=list(tables),
        units=["km/h", "veh/5min"],
        start=str(arrays["start"]),
        interval=pd.Timedelta(minutes=int(arrays["interval_minutes"])),
        positions=arrays["pos"],
    ).to_undirected()
