"""LibCity's atomic files: ``.geo`` (nodes), ``.rel`` (roads), ``.dyna`` or ``.grid`` (readings), ``config.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import City
from ..data.graph import Edges, edges_from_adjacency, edges_from_positions
from ..data.ids import id_text
from .atomic_files import CONFIG, first_of, read_info
from .cards import read_card
from .files import csv_header, existing, present, read_csv
from .grid import king_edges
from .join import edges_by_distance, edges_by_id, noted, on_regular_grid, positions_by_id

logger = logging.getLogger(__name__)

_DISTANCES = ("cost", "distance", "dist", "length")
"""Columns of a ``.rel`` file that are metres; any other is a weight."""

_KEYS = ("dyna_id", "type", "time", "entity_id", "row_id", "column_id")


def read_libcity(
    folder: str | Path,
    name: str | None = None,
    *,
    zero_missing: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
) -> City:
    """A traffic state data set in LibCity's atomic files: points and segments (``.dyna``) or a grid (``.grid``).

    Readings are joined by ``entity_id`` and time; an entity without a row at a step is missing there. Times are clock
    times: LibCity writes local time with a ``Z``, which is dropped. Roads are the rows of ``.rel``: metres in ``cost``
    or ``distance`` become a Gaussian kernel (with ``weight_adj_epsilon`` as its threshold where ``config.json`` says
    ``calculate_weight_adj``), other columns are weights as they stand, no column is weight 1, and so is any where
    ``set_weight_link_or_dist`` is ``"link"``. The nodes of a grid are its zones, with the id ``row-column``; its
    ``.rel`` names them by the ``geo_id`` of ``.geo``. Without a ``.rel``, zones of a grid are joined with their 8
    neighbours, other nodes with the 8 nearest by position. See
    https://bigscity-libcity-docs.readthedocs.io/en/latest/user_guide/data/atomic_files.html.

    Args:
        folder: Where the files lie.
        name: What their names begin with; default: the folder's name, or the only one there is.
        zero_missing: Channels in which a zero is a missing reading. Default: those with ``speed`` in their name. (The
            format has no code for missing.)
        units: One a channel; the format names none.

    Raises:
        FileNotFoundError: If there are no readings or no nodes.
        ValueError: If a file is damaged, or they do not fit each other.
    """
    folder = Path(folder)
    config_path, info = folder / CONFIG, read_info(folder)
    stem = name or _stem(folder, info)
    card = read_card(f"libcity/{stem}", folder)
    path = existing(folder, card, f"{stem}.dyna")
    values, node_ids, channels, index = _readings(path, info.get("data_col"))
    values, start, interval = on_regular_grid(values, index, path)
    said = info.get("time_intervals")
    if isinstance(said, int | float) and pd.Timedelta(seconds=said) != interval:
        raise ValueError(f"{config_path}: time_intervals is {said} seconds, and {path.name} has a row every {interval}")
    zeros = [channel for channel in channels if "speed" in channel] if zero_missing is None else list(zero_missing)
    unknown = [channel for channel in zeros if channel not in channels]
    if unknown:
        raise ValueError(f"zero_missing: {path} has the channels {channels}, found {unknown[0]!r}")
    for channel in zeros:
        part = values[..., channels.index(channel)]
        part[part == 0] = np.nan
    geo = existing(folder, card, f"{stem}.geo")
    nodes = _nodes(geo, path.suffix == ".grid")
    pos = positions_by_id(nodes, node_ids, geo) if nodes["latitude"].notna().any() else None
    rel = present(folder, card, f"{stem}.rel")
    if rel is not None:
        edges = _roads(rel, node_ids, dict(zip(nodes["geo_id"], nodes["sensor_id"], strict=True)), info)
    elif path.suffix == ".grid":
        edges = king_edges([tuple(int(part) for part in node.split("-")) for node in node_ids])
    elif pos is not None:
        logger.info("%s: there is no .rel file; each node is joined with its 8 nearest by position", folder)
        edges = edges_from_positions(pos)
    else:
        edges = edges_from_adjacency(np.zeros((len(node_ids),) * 2), node_ids)
    city = City.from_edge_index(
        values,
        edges.edge_index,
        edges.edge_weight,
        name=f"libcity/{stem}",
        node_ids=node_ids,
        channels=channels,
        units=list(units) if units is not None else [""] * len(channels),
        start=start,
        interval=interval,
        **({} if pos is None else {"positions": pos}),
    )
    return noted(city, path)


def _stem(folder: Path, info: dict[str, Any]) -> str:
    stems = sorted({path.stem for path in folder.glob("*") if path.suffix in (".dyna", ".grid")})
    if folder.name in stems or not stems:
        return folder.name
    if len(stems) == 1:
        return stems[0]
    if isinstance(info.get("geo_file"), str) and info["geo_file"] in stems:
        return str(info["geo_file"])
    raise ValueError(f"{folder}: found the data sets {stems}; say which one with name=")


def _readings(path: Path, data_col: Any) -> tuple[np.ndarray, list[str], list[str], pd.DatetimeIndex]:
    """Values ``[T, N, C]`` of the times that occur, nodes in the order in which they occur."""
    keys = ("row_id", "column_id") if path.suffix == ".grid" else ("entity_id",)
    there = csv_header(path)
    listed = [data_col] if isinstance(data_col, str) and data_col else data_col
    channels = list(listed) if isinstance(listed, list) and listed else [c for c in there if c not in _KEYS]
    absent = [channel for channel in channels if channel not in there]
    if absent or not channels:
        raise ValueError(f"{path}: channel {absent[0] if absent else '(any)'!r} is absent, found {there}")
    table = read_csv(path, "time", *keys, text=("time", *keys), only=("time", *keys, *channels))
    # Texts repeat millions of times: each is understood once.
    moment, texts = pd.factorize(table["time"])
    times = _times(pd.Series(texts), moment, path)
    sorted_step, index = pd.factorize(times, sort=True)
    names = table[keys[0]] if len(keys) == 1 else table[keys[0]] + "-" + table[keys[1]]
    entity, spelled = pd.factorize(names)
    ids = ["-".join(map(id_text, text.split("-"))) if len(keys) > 1 else id_text(text) for text in spelled]
    if len(keys) > 1 and not all(part.isdigit() for node in ids for part in node.split("-")):
        raise ValueError(f"{path}: columns 'row_id' and 'column_id': expected whole numbers from 0")
    place, node_ids = pd.factorize(np.array(ids, dtype=object))
    step, node = sorted_step[moment], place[entity]
    cell = step * len(node_ids) + node
    order = np.argsort(cell, kind="stable")
    again = np.flatnonzero(np.diff(cell[order]) == 0)
    if len(again):
        row = int(order[again[0] + 1])
        raise ValueError(
            f"{path}: line {row + 2}: node {node_ids[node[row]]!r} has more than one row at {index[step[row]]}"
        )
    values = np.full((len(index), len(node_ids), len(channels)), np.nan, dtype=np.float32)
    values[step, node] = table[channels].to_numpy(dtype=np.float32)
    return values, [str(node) for node in node_ids], [str(c) for c in channels], pd.DatetimeIndex(index)


def _times(texts: pd.Series, moment: np.ndarray, path: Path) -> pd.Series:
    """Clock times: ``Z`` is dropped, another offset refused."""
    try:
        times = pd.to_datetime(texts.str.removesuffix("Z"), errors="coerce", format="ISO8601")
    except ValueError:  # offsets that differ
        times = pd.Series(pd.DatetimeIndex([], tz="UTC"))
    if times.dt.tz is not None:
        raise ValueError(f"{path}: column 'time': its times have offsets; bring local time, as 2012-03-01T00:00:00Z")
    bad = times.isna().to_numpy()
    if bad.any():
        row = int(bad[moment].argmax())
        raise ValueError(
            f"{path}: column 'time', line {row + 2}: found {texts[moment[row]]!r}, expected a time as "
            "2012-03-01T00:00:00Z"
        )
    return times


def _nodes(path: Path, grid: bool) -> pd.DataFrame:
    """Ids in ``.rel`` and in the readings, and positions (the mean of a node's coordinates; NaN where it has none)."""
    columns = ("geo_id", "coordinates", "row_id", "column_id")
    table = read_csv(path, "geo_id", text=("geo_id", "coordinates"), only=columns)
    geo_id = table["geo_id"].map(id_text)
    ids = geo_id
    if grid and {"row_id", "column_id"} <= set(table.columns):
        ids = table["row_id"].map(id_text) + "-" + table["column_id"].map(id_text)
    places = [_middle(text, path, line) for line, text in enumerate(table.get("coordinates", ["[]"] * len(table)), 2)]
    longitude, latitude = np.array(places, dtype=np.float64).T
    return pd.DataFrame({"geo_id": geo_id, "sensor_id": ids, "latitude": latitude, "longitude": longitude})


def _middle(text: str, path: Path, line: int) -> tuple[float, float]:
    try:
        array: Any = json.loads(text)
        while array and isinstance(array[0], list) and isinstance(array[0][0], list):
            array = [point for part in array for point in part]
        points = np.array(array, dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(
            f"{path}: column 'coordinates', line {line}: found {text[:40]!r}, expected [longitude, latitude]"
        ) from error
    return (np.nan, np.nan) if not len(points) else (float(points[:, 0].mean()), float(points[:, 1].mean()))


def _roads(path: Path, node_ids: list[str], named: dict[str, str], info: dict[str, Any]) -> Edges:
    """The rows of ``.rel``, whose nodes go by the name ``named`` among ``node_ids``, with weights as ``info`` says."""
    ends_of = ("origin_id", "destination_id")
    there = csv_header(path)
    absent = [column for column in ends_of if column not in there]
    if absent:
        raise ValueError(f"{path}: column {absent[0]!r} is absent, found {there}")
    weights = [c for c in there if c not in ("rel_id", "type", *ends_of)]
    said = first_of(info.get("weight_col"), "")
    if said and said not in weights:
        raise ValueError(f"{path}: column {said!r} (weight_col of config.json) is absent, found {there}")
    kind = str(info.get("set_weight_link_or_dist", "dist")).lower()
    if kind not in ("link", "dist"):
        raise ValueError(
            f"{path.with_name(CONFIG)}: set_weight_link_or_dist: expected 'link' or 'dist', found "
            f"{info['set_weight_link_or_dist']!r}"
        )
    if not said and len(weights) > 1:
        raise ValueError(f"{path}: it has the columns {weights}; say in config.json which one is info.weight_col")
    column = said or (weights[0] if weights else None)
    table = read_csv(path, *ends_of, text=ends_of, only=(*ends_of, *([column] if column else [])))
    if kind == "link" and column is not None:  # LibCity reads no row without a weight here either
        table = table[table[column].notna()]
    ends = {
        end: table[end_of].map(id_text).map(lambda node: named.get(node, node))
        for end, end_of in zip(("from", "to"), ends_of, strict=True)
    }
    if kind == "dist" and column in _DISTANCES:
        epsilon = info.get("weight_adj_epsilon", 0.1) if info.get("calculate_weight_adj") else 0.0
        rows = pd.DataFrame({**ends, "cost": table[column]})
        return edges_by_distance(rows, node_ids, path, threshold=float(epsilon))
    weight = np.ones(len(table)) if kind == "link" or column is None else table[column].to_numpy(dtype=np.float64)
    ids = list(dict.fromkeys([*ends["from"], *ends["to"]]))
    place = {node: i for i, node in enumerate(ids)}
    matrix = np.zeros((len(ids), len(ids)))
    matrix[ends["from"].map(place), ends["to"].map(place)] = weight
    return edges_by_id(matrix, ids, node_ids, path)
