"""The bundle of ST-GFSL: a folder a city with ``dataset.npy`` and ``matrix.npy``, and no ids or times."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ..data import City
from .cards import read_card
from .files import check_name, existing, read_npy
from .join import edges_by_id, noted

logger = logging.getLogger(__name__)

_CITIES = {
    "stgfsl_metr_la": ("2012-03-01", "5min", "mph"),
    "stgfsl_pems_bay": ("2017-01-01", "5min", "mph"),
    "chengdu_m": ("2018-01-01", "10min", "km/h"),
    "shenzhen": ("2018-01-01", "10min", "km/h"),
}


def read_stgfsl(folder: str | Path, name: str) -> City:
    """Speeds of road segments or detectors; Chengdu and Shenzhen every 10 minutes, the two Californian sets every 5.

    Files: ``dataset.npy`` ``[T, N, C]``, of which only the first channel is read (speed; a zero is missing), and
    ``matrix.npy`` ``[N, N]``, an edge where a weight is above 0. The bundle names neither nodes nor times: ids are
    positions from 0, and the start is the documented one of the readings it was made of.

    Args:
        folder: Where the files lie.
        name: ``"stgfsl_metr_la"``, ``"stgfsl_pems_bay"``, ``"chengdu_m"`` or ``"shenzhen"``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other.
    """
    check_name(name, _CITIES)
    folder, card = Path(folder), read_card(name)
    start, interval, unit = _CITIES[name]
    path = existing(folder, card, "dataset.npy")
    data = read_npy(path, mapped=True)
    if data.ndim != 3 or data.dtype.kind not in "fiu" or 0 in data.shape:
        raise ValueError(
            f"{path}: expected numbers of shape [T, N, C] (speed first), found {data.dtype} {[*data.shape]}"
        )
    speed = np.array(data[..., 0], dtype=np.float32)
    speed[speed == 0] = np.nan
    roads = existing(folder, card, "matrix.npy")
    matrix = read_npy(roads)
    node_ids = [str(i) for i in range(speed.shape[1])]
    if matrix.shape != (len(node_ids), len(node_ids)):
        raise ValueError(
            f"{roads}: expected shape {[len(node_ids)] * 2}, one row and column for each of the nodes of dataset.npy, "
            f"found {[*matrix.shape]}"
        )
    edges = edges_by_id(matrix, node_ids, node_ids, roads)
    days = len(speed) * pd.Timedelta(interval) / pd.Timedelta(days=1)
    if days % 1:
        logger.warning(
            "%s: %d steps of %s are %.2f days; where a step was left out, later clock times are off",
            path,
            len(speed),
            interval,
            days,
        )
    city = City.from_edge_index(
        speed,
        edges.edge_index,
        edges.edge_weight,
        name=name,
        node_ids=node_ids,
        channels="speed",
        units=unit,
        start=start,
        interval=interval,
    )
    return noted(city, path)
