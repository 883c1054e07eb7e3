"""PEMS03, 04, 07 and 08 as ASTGCN and STSGCN released them: ``.npz`` of readings, and a table of road distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import City
from .cards import read_card
from .files import check_name, existing, present, read_csv, read_npz
from .join import checked_ids, edges_by_distance, noted

_START = {"pems03": "2018-09-01", "pems04": "2018-01-01", "pems07": "2017-05-01", "pems08": "2016-07-01"}
_CHANNELS = {1: ["flow"], 3: ["flow", "occupancy", "speed"]}
_UNITS = ["veh/5min", "fraction", "mph"]


def read_pems(folder: str | Path, name: str) -> City:
    """Caltrans detectors every 5 minutes: flow (vehicles in 5 minutes), occupancy (fraction), speed (mph), or flow.

    Files: ``<name>.npz`` with ``data`` ``[T, N, 3]`` (or ``[T, N, 1]``, flow), ``distance.csv`` or ``<NAME>.csv``
    (``from, to, cost`` or ``distance``: metres), and ``<NAME>.txt`` where the nodes have ids (PEMS03: one a line, in
    the order of the readings); without it ``from`` and ``to`` are positions among the readings' nodes, from 0. A zero
    flow is a missing reading, and so is the occupancy beside it. Roads count in both directions.

    Args:
        folder: Where the files lie.
        name: ``"pems03"``, ``"pems04"``, ``"pems07"`` or ``"pems08"``.

    Raises:
        FileNotFoundError: If readings or roads are missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other.
    """
    check_name(name, _START)
    folder, card = Path(folder), read_card(name)
    path = existing(folder, card, f"{name}.npz")
    data = read_npz(path, "data")["data"]
    if data.ndim != 3 or data.shape[2] not in _CHANNELS or data.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: expected 'data' of shape [T, N, 3] (flow, occupancy, speed) or [T, N, 1] (flow), found "
            f"{data.dtype} {[*data.shape]}"
        )
    data = data.astype(np.float32)
    data[data[..., 0] == 0, :2] = np.nan
    if data.shape[2] == 3:
        data[data[..., 2] == 0, 2] = np.nan
    listed = present(folder, card, f"{name}.txt")
    node_ids: list[str] | None = None
    if listed is not None:
        node_ids = checked_ids(listed.read_text(encoding="utf-8-sig").split(), data.shape[1], listed)
    roads = existing(folder, card, "distance.csv")
    table = read_csv(roads, "from", "to", text=("from", "to")).rename(columns={"distance": "cost"})
    if "cost" not in table.columns:
        raise ValueError(f"{roads}: column 'cost' is absent, found {[*table.columns]}")
    if node_ids is None:
        node_ids = [str(i) for i in range(data.shape[1])]
        for column in ("from", "to"):
            unknown = ~table[column].isin(node_ids)
            if unknown.any():
                raise ValueError(
                    f"{roads}: column {column!r}: node {table[column][unknown].iloc[0]!r} is not a node of the "
                    f"readings (0 to {len(node_ids) - 1}); if these are sensor ids, put {name.upper()}.txt beside "
                    "it, one id a line"
                )
    edges = edges_by_distance(table, node_ids, roads)
    city = City.from_edge_index(
        data,
        edges.edge_index,
        edges.edge_weight,
        name=name,
        node_ids=node_ids,
        channels=_CHANNELS[data.shape[2]],
        units=_UNITS[: data.shape[2]],
        start=_START[name],
        interval="5min",
    )
    return noted(city, path).to_undirected()
