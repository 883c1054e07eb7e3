"""LargeST: Californian freeway flows, a year a file, for the state (CA) or its regions SD, GBA and GLA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ..data import City
from ..data.ids import id_text
from .files import existing, read_csv, read_npy
from .hdf import read_pandas_hdf
from .join import checked_ids, edges_by_id, noted, on_regular_grid, positions_by_id

_DISTRICTS: dict[str, tuple[int, ...] | None] = {"sd": (11,), "gba": (4,), "gla": (7, 8, 12), "ca": None}
"""Caltrans districts of each region."""


def read_largest(folder: Path, name: str, year: int = 2019, interval: str | pd.Timedelta | None = None) -> City:
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
        ValueError: If a file is damaged, or they do not fit each other.
    """
    region = name.removeprefix("largest_")
    of_region, of_state = f"{region}_his_{year}.h5", f"ca_his_raw_{year}.h5"
    path = existing(folder, of_state, name, *dict.fromkeys((of_region, f"ca_his_{year}.h5")))
    about_path = existing(folder, "ca_meta.csv", name, *(() if region == "ca" else (f"{region}_meta.csv",)))
    meta = _meta(about_path)
    districts = _DISTRICTS[region]
    chosen = meta if districts is None else meta[meta["District"].isin(districts)]
    if chosen.empty:
        raise ValueError(f"{about_path}: no sensor is in district {' or '.join(map(str, districts or ()))} ({region})")
    table = read_pandas_hdf(path, list(chosen["ID"]))
    if not table.columns:
        raise ValueError(f"{path}: none of the {len(chosen)} sensors of {about_path.name} has a column here")
    flow, start, step = on_regular_grid(table.values, table.times, path)
    if "_raw_" not in path.name:
        flow[flow == 0] = np.nan
    roads = existing(folder, "ca_rn_adj.npy", name, *(() if region == "ca" else (f"{region}_rn_adj.npy",)))
    matrix = read_npy(roads, mapped=True)
    edges = edges_by_id(matrix, _rows(meta, about_path, roads), table.columns, roads)
    places = meta.rename(columns={"ID": "sensor_id", "Lat": "latitude", "Lng": "longitude"})
    pos = positions_by_id(places, table.columns, about_path)
    city = City.from_edge_index(
        flow,
        edges.edge_index,
        edges.edge_weight,
        name=name,
        node_ids=table.columns,
        channels="flow",
        units="veh/5min",
        start=start,
        interval=step,
        **({} if pos is None else {"positions": pos}),
    )
    return noted(city if interval is None else city.resample(interval, "mean"), path)


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
