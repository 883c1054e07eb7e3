"""LargeST: Californian freeway flows, a year a file, for the state (CA) or its regions SD, GBA and GLA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import City
from ..data.graph import Edges
from ..data.ids import id_text
from ..data.mapped import write_mapped_city
from ..data.parts import About, parse_interval
from .cards import Card, read_card
from .files import check_name, existing, read_csv, read_npy
from .hdf import HdfRows, open_pandas_hdf, read_pandas_hdf
from .join import Steps, checked_ids, edges_by_id, noted, on_regular_grid, positions_by_id, regular_steps

_DISTRICTS: dict[str, tuple[int, ...] | None] = {
    "largest_sd": (11,),
    "largest_gba": (4,),
    "largest_gla": (7, 8, 12),
    "largest_ca": None,
}
"""Caltrans districts of each region."""

_YEAR = 2019
"""The year on the cards."""

_ROWS = 1024
"""Steps that :func:`map_largest` reads at a time: of the whole state, 35 MB of readings."""


class _Files(NamedTuple):
    """The files of a region."""

    flows: Path
    sensors: Path
    roads: Path


def read_largest(folder: str | Path, name: str, year: int = _YEAR, interval: str | pd.Timedelta | None = None) -> City:
    """Flow of freeway sensors (vehicles in 5 minutes) over a year.

    Files: ``ca_his_raw_<year>.h5`` (a pandas table, a column a sensor id; NaN is missing, a zero is a count), or
    ``<region>_his_<year>.h5`` as LargeST's notebooks write it (missing readings were overwritten with 0 there, so a
    zero is missing); ``ca_meta.csv`` (``ID, Lat, Lng, District`` and ``ID2``, the row in the matrix) and
    ``ca_rn_adj.npy``, or both for the region alone. Of the state's files, only the region's columns are kept in memory.

    Args:
        folder: Where the files lie.
        name: ``"largest_sd"``, ``"largest_gba"``, ``"largest_gla"`` or ``"largest_ca"``.
        year: 2017 to 2021.
        interval: A longer one, ``"15min"`` for the benchmark's: the mean of the flows in it. Default: as in the file.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other.
    """
    files = _files(Path(folder), name, year)
    meta = _meta(files.sensors)
    chosen = _chosen(meta, name, files.sensors)
    table = read_pandas_hdf(files.flows, chosen)
    _check_columns(table.columns, chosen, files)
    flow, start, step = on_regular_grid(table.values, table.times, files.flows)
    edges, about = _network(files, meta, name, table.columns, start, step)
    city = City.from_edge_index(_counted(flow, files.flows), edges.edge_index, edges.edge_weight, **about)
    return noted(city if interval is None else city.resample(interval, "mean"), files.flows)


def map_largest(
    folder: str | Path,
    name: str,
    into: str | Path,
    year: int = _YEAR,
    interval: str | pd.Timedelta | None = None,
) -> City:
    """The city of :func:`read_largest`, written to a folder block by block and mapped from there.

    A year of the whole state takes 3.6 GB as float32; here some days of it are in memory at a time.
    :meth:`City.load <tsjt_pyg.data.City.load>` and :func:`~tsjt_pyg.datasets.load_city` map the folder again.

    Args:
        folder: Where the files lie.
        name: ``"largest_sd"``, ``"largest_gba"``, ``"largest_gla"`` or ``"largest_ca"``.
        into: Folder to write to; one that holds a mapped city is replaced as a whole.
        year, interval: See :func:`read_largest`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the name is unknown, a file is damaged, or they do not fit each other; nothing is written then.
        FileExistsError: If ``into`` holds anything but a mapped city.

    Example:
        >>> city = map_largest("cities/largest_ca", "largest_ca", "cities/california", interval="15min")
    """
    files = _files(Path(folder), name, year)
    meta = _meta(files.sensors)
    chosen = _chosen(meta, name, files.sensors)
    with open_pandas_hdf(files.flows, chosen) as table:
        _check_columns(table.columns, chosen, files)
        steps = regular_steps(table.times, files.flows)
        factor, step = _factor(steps, interval)
        edges, about = _network(files, meta, name, table.columns, steps.start, step)
        blocks = _means(_blocks(table, steps, max(1, _ROWS // factor) * factor), factor)
        city = write_mapped_city(into, blocks, edges.edge_index, edges.edge_weight, **about)
    return noted(city, files.flows)


def _blocks(table: HdfRows, steps: Steps, size: int) -> Iterator[np.ndarray]:
    """``[size, N]`` flows at a time, with NaN where one is missing; the last may be shorter."""
    for rows, places, length in steps.blocks(size):
        flow = np.full((length, len(table.columns)), np.nan, dtype=np.float32)
        if len(rows):
            flow[places] = _counted(table.read(rows), table.path)
        yield flow


def _means(blocks: Iterator[np.ndarray], factor: int) -> Iterator[Tensor]:
    """As :meth:`City.resample`: the mean of ``factor`` steps, NaN where one is; a last that is not full is dropped."""
    for flow in blocks:
        steps = len(flow) // factor
        if steps:
            yield torch.from_numpy(flow[: steps * factor].reshape(steps, factor, -1)).mean(dim=1)


def _factor(steps: Steps, interval: str | pd.Timedelta | None) -> tuple[int, pd.Timedelta]:
    """How many steps become one, and its length."""
    longer = steps.interval if interval is None else parse_interval(interval)
    if longer < steps.interval or longer % steps.interval != pd.Timedelta(0):
        raise ValueError(f"interval: expected a multiple of {steps.interval}, found {longer}")
    factor = int(longer // steps.interval)
    if steps.total < factor:
        raise ValueError(f"interval: the file has {steps.total} steps, {longer} takes {factor}")
    return factor, longer


def _counted(flow: np.ndarray, path: Path) -> np.ndarray:
    """The flows, with NaN for the zeros of a processed file; changed in place."""
    if "_raw_" not in path.name:
        flow[flow == 0] = np.nan
    return flow


def _files(folder: Path, name: str, year: int) -> _Files:
    check_name(name, _DISTRICTS)
    card = _card(name, year)
    flows, sensors, roads = f"ca_his_raw_{year}.h5", "ca_meta.csv", "ca_rn_adj.npy"
    return _Files(existing(folder, card, flows), existing(folder, card, sensors), existing(folder, card, roads))


def _card(name: str, year: int) -> Card:
    """The card, with the names of another year."""
    card = read_card(name)
    other = [file.renamed(n.replace(f"_{_YEAR}.", f"_{year}.") for n in file.names) for file in card.files]
    return replace(card, files=tuple(other))


def _chosen(meta: pd.DataFrame, name: str, path: Path) -> list[str]:
    """Ids of the region's sensors."""
    districts, region = _DISTRICTS[name], name.removeprefix("largest_")
    chosen = meta if districts is None else meta[meta["District"].isin(districts)]
    if chosen.empty:
        raise ValueError(f"{path}: no sensor is in district {' or '.join(map(str, districts or ()))} ({region})")
    return list(chosen["ID"])


def _check_columns(columns: list[str], chosen: list[str], files: _Files) -> None:
    if not columns:
        raise ValueError(f"{files.flows}: none of the {len(chosen)} sensors of {files.sensors.name} has a column here")


def _network(
    files: _Files, meta: pd.DataFrame, name: str, node_ids: list[str], start: pd.Timestamp, interval: pd.Timedelta
) -> tuple[Edges, About]:
    """The roads among the nodes with readings, and what else is known of the city."""
    edges = edges_by_id(
        read_npy(files.roads, mapped=True), _rows(meta, files.sensors, files.roads), node_ids, files.roads
    )
    about: About = {"name": name, "node_ids": node_ids, "channels": "flow", "units": "veh/5min"}
    about |= {"start": start, "interval": interval}
    places = meta.rename(columns={"ID": "sensor_id", "Lat": "latitude", "Lng": "longitude"})
    pos = positions_by_id(places, node_ids, files.sensors)
    return edges, about if pos is None else {**about, "positions": pos}


def _meta(path: Path) -> pd.DataFrame:
    needed = ("ID", "Lat", "Lng", "District")
    meta = read_csv(path, *needed, text=("ID",), only=(*needed, "ID2"))
    meta["ID"] = checked_ids(list(meta["ID"]), len(meta), path)
    return meta


def _rows(meta: pd.DataFrame, path: Path, roads: Path) -> list[str]:
    """Ids in the order of the matrix's rows: by ``ID2`` in the state's files, by line in those of a region."""
    if "ID2" not in meta.columns or not roads.name.startswith("ca_"):
        return list(meta["ID"])
    ids = [id_text(node) for node in meta.sort_values("ID2")["ID"]]
    if sorted(meta["ID2"]) != list(range(len(meta))):
        raise ValueError(
            f"{path}: column 'ID2': expected each of 0 to {len(meta) - 1} once, the rows of {roads.name}; for "
            "a part of the sensors, bring their part of both files by the region's name"
        )
    return ids
