"""LOS-loop and SZ-taxi as T-GCN released them: wide speed CSV, adjacency matrix, and positions where one has them."""

from __future__ import annotations

from pathlib import Path

from ..data import City
from .cards import read_card
from .files import check_name, existing, present, read_csv
from .join import checked_ids, edges_by_id, noted, positions_by_id

_CITIES = {"los_loop": ("2012-03-01", "5min", "mph"), "sz_taxi": ("2015-01-01", "15min", "km/h")}


def read_tgcn(folder: str | Path, name: str) -> City:
    """Speeds of Los Angeles loop detectors (5 min, mph) or Shenzhen's taxis on road segments (15 min, km/h).

    Files: ``speed.csv`` or ``los_speed.csv`` / ``sz_speed.csv`` (a column a node id), ``adjacency.csv`` or
    ``los_adj.csv`` / ``sz_adj.csv`` (no header, in the order of those columns), and, if there is one, ``sensors.csv``
    or
    ``graph_sensor_locations.csv`` (``sensor_id, latitude, longitude``). A zero speed is a missing reading.

    Args:
        folder: Where the files lie.
        name: ``"los_loop"`` or ``"sz_taxi"``.

    Raises:
        FileNotFoundError: If readings or roads are missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other.
    """
    check_name(name, _CITIES)
    folder, card = Path(folder), read_card(name)
    start, interval, unit = _CITIES[name]
    path = existing(folder, card, "speed.csv")
    speed = read_csv(path)
    node_ids = checked_ids([*speed.columns], speed.shape[1], path)
    speed.columns = node_ids
    roads = existing(folder, card, "adjacency.csv")
    adjacency = read_csv(roads, header=False).to_numpy()
    if adjacency.shape != (len(node_ids), len(node_ids)):
        raise ValueError(
            f"{roads}: expected shape {[len(node_ids)] * 2}, one row and column for each column of {path.name}, found "
            f"{[*adjacency.shape]}"
        )
    edges = edges_by_id(adjacency, node_ids, node_ids, roads)
    about: dict = {}
    places = present(folder, card, "sensors.csv")
    if places is not None:
        table = read_csv(places, "sensor_id", "latitude", "longitude", text=("sensor_id",))
        pos = positions_by_id(table, node_ids, places)
        about = {} if pos is None else {"positions": pos}
    city = City.from_edge_index(
        speed.where(speed != 0),  # DCRNN's convention for METR-LA
        edges.edge_index,
        edges.edge_weight,
        name=name,
        channels="speed",
        units=unit,
        start=start,
        interval=interval,
        **about,
    )
    return noted(city, path)
