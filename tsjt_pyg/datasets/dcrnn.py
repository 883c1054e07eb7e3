"""METR-LA and PEMS-BAY as DCRNN released them: a pandas table in HDF5, and sensor graph files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ..data import City
from ..data.graph import Edges
from ..data.ids import id_text
from .cards import read_card
from .files import check_name, existing, present, read_csv
from .hdf import read_pandas_hdf
from .join import checked_ids, edges_by_distance, edges_by_id, noted, on_regular_grid, positions_by_id
from .pickles import read_pickle

logger = logging.getLogger(__name__)

_FILES = {
    "metr_la": ("metr-la.h5", "adj_mx.pkl", "graph_sensor_locations.csv"),
    "pems_bay": ("pems-bay.h5", "adj_mx_bay.pkl", "graph_sensor_locations_bay.csv"),
}
"""Of each city readings, roads and positions, by their first names on its card."""


def read_dcrnn(folder: str | Path, name: str, sigma: float | None = None) -> City:
    """Loop detectors every 5 minutes: speed (mph); a zero is a missing reading.

    Files: ``metr-la.h5`` / ``pems-bay.h5`` (a column a sensor id), and the roads as ``adj_mx*.pkl`` (a pickle of
    ``[sensor_ids, sensor_id_to_ind, adj_mx]``, which goes before) or as ``distances*.csv`` (``from, to, cost`` in
    metres, with or without a header; weights are DCRNN's, :math:`\\exp(-d^2/\\sigma^2)` with the standard deviation of
    the distances for :math:`\\sigma`, from 0.1). ``graph_sensor_ids.txt`` (ids with commas between) limits the sensors,
    ``graph_sensor_locations*.csv`` adds positions; both may be absent. All but the readings may lie in
    ``sensor_graph/``, as in DCRNN's repository; the card lists the names. Joined by id: see
    :mod:`tsjt_pyg.datasets.join`.

    Args:
        folder: Where the files lie.
        name: ``"metr_la"`` or ``"pems_bay"``.
        sigma: Metres; of no account where there is a pickle. Default: the standard deviation of the distances.

    Raises:
        FileNotFoundError: If readings or roads are missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other.
    """
    check_name(name, _FILES)
    folder, card = Path(folder), read_card(name)
    readings, roads, positions = _FILES[name]
    path = existing(folder, card, readings)
    listed = present(folder, card, "graph_sensor_ids.txt")
    wanted = None if listed is None else _sensor_ids(listed)
    table = read_pandas_hdf(path, wanted)
    if not table.columns:
        raise ValueError(f"{path}: none of the sensors in {listed} has a column here")
    if wanted is not None and len(table.columns) < len(wanted):
        absent = sorted(set(wanted) - set(table.columns))
        logger.warning(
            "%s: %d of the %d sensors in %s have no column here: %r", path, len(absent), len(wanted), listed, absent[:5]
        )
    speed, start, interval = on_regular_grid(table.values, table.times, path)
    speed[speed == 0] = np.nan
    edges = _roads(existing(folder, card, roads), table.columns, sigma)
    about: dict = {}
    places = present(folder, card, positions)
    if places is not None:
        pos = positions_by_id(_locations(places), table.columns, places)
        about = {} if pos is None else {"positions": pos}
    city = City.from_edge_index(
        speed,
        edges.edge_index,
        edges.edge_weight,
        name=name,
        node_ids=table.columns,
        channels="speed",
        units="mph",
        start=start,
        interval=interval,
        **about,
    )
    return noted(city, path)


def _roads(path: Path, node_ids: list[str], sigma: float | None) -> Edges:
    if path.suffix == ".pkl":
        return _pickled_roads(path, node_ids)
    if _has_header(path):
        table = read_csv(path, "from", "to", "cost", text=("from", "to"))
    else:
        table = read_csv(path, header=False, names=("from", "to", "cost"), text=("from", "to"))
    if sigma is None:
        known = set(node_ids)
        among = table[table["from"].map(id_text).isin(known) & table["to"].map(id_text).isin(known)]
        sigma = float(among["cost"].std(ddof=0)) if len(among) else 0.0
        sigma = sigma if sigma > 0 else None  # one distance, or all the same
    return edges_by_distance(table, node_ids, path, sigma, threshold=0.1)


def _pickled_roads(path: Path, node_ids: list[str]) -> Edges:
    found = read_pickle(path)
    if not isinstance(found, list | tuple) or len(found) != 3:
        raise ValueError(f"{path}: expected [sensor_ids, sensor_id_to_ind, adj_mx], found {type(found).__name__}")
    ids, positions, matrix = found
    if not isinstance(ids, list | np.ndarray) or not isinstance(positions, dict) or not isinstance(matrix, np.ndarray):
        kinds = [type(part).__name__ for part in found]
        raise ValueError(f"{path}: expected [sensor_ids, sensor_id_to_ind, adj_mx], found {kinds}")
    names = checked_ids(list(ids), len(matrix), path)
    if {id_text(node): place for node, place in positions.items()} != {node: i for i, node in enumerate(names)}:
        raise ValueError(f"{path}: sensor_ids and sensor_id_to_ind do not give the same order; write the pickle anew")
    return edges_by_id(matrix, names, node_ids, path)


def _sensor_ids(path: Path) -> list[str]:
    ids = [id_text(part) for part in path.read_text(encoding="utf-8-sig").replace("\n", ",").split(",") if part.strip()]
    if not ids:
        raise ValueError(f"{path}: found no sensor id; expected ids with commas between them")
    return checked_ids(ids, len(ids), path)


def _locations(path: Path) -> pd.DataFrame:
    if _has_header(path):
        return read_csv(path, "sensor_id", "latitude", "longitude", text=("sensor_id",))
    return read_csv(path, header=False, names=("sensor_id", "latitude", "longitude"), text=("sensor_id",))


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return any(letter.isalpha() for letter in next(lines, ""))
