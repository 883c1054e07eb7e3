"""Small cities in the field's formats, written by the field's own libraries."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tsjt_pyg.data import City

IDS = ["773869", "767541", "717447", "717446"]


def by_id(city: City) -> dict[str, list[float]]:
    """Readings of each node (first channel), NaN where missing."""
    values = city.readings[..., 0].numpy().copy()
    values[~city.mask[..., 0].numpy()] = np.nan
    return {node: values[:, i].tolist() for i, node in enumerate(city.node_ids)}


def roads(city: City) -> dict[tuple[str, str], float]:
    ids = [(city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist()]
    return dict(zip(ids, city.edge_weight.tolist(), strict=True))


def places(city: City) -> dict[str, list[float]]:
    assert city.pos is not None
    return dict(zip(city.node_ids, city.pos.tolist(), strict=True))


def speeds(ids: list[Any], steps: int = 6, freq: str = "5min", start: str = "2012-03-01") -> pd.DataFrame:
    """Readings that are all different, so that a wrong one cannot go unseen."""
    values = 1 + np.arange(steps)[:, None] + 100.0 * np.arange(len(ids))
    return pd.DataFrame(values, index=pd.date_range(start, periods=steps, freq=freq), columns=ids)


def to_hdf(frame: pd.DataFrame, path: Path, key: str = "df") -> None:
    pytest.importorskip("tables")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_hdf(path, key=key, mode="w")


MATRIX = np.array([[1, 0.5, 0, 0], [0.25, 1, 0.75, 0], [0, 0, 1, 0.125], [0, 0, 0, 1]], dtype=np.float32)


def write_metr_la(root: Path, ids: list[str] = IDS, matrix_ids: list[str] = IDS) -> Path:
    folder = root / "metr_la"
    folder.mkdir()
    to_hdf(speeds(IDS)[ids], folder / "metr-la.h5")
    order = [IDS.index(node) for node in matrix_ids]
    content = [matrix_ids, {node: i for i, node in enumerate(matrix_ids)}, MATRIX[np.ix_(order, order)]]
    (folder / "adj_mx.pkl").write_bytes(pickle.dumps(content, 2))
    table = {
        "index": range(4),
        "sensor_id": IDS[::-1],
        "latitude": [34.4, 34.3, 34.2, 34.1],
        "longitude": [-118.4, -118.3, -118.2, -118.1],
    }
    pd.DataFrame(table).to_csv(folder / "graph_sensor_locations.csv", index=False)
    return folder


def write_pems03(root: Path) -> Path:
    folder = root / "pems03"
    folder.mkdir()
    data = np.arange(1, 13, dtype=np.float64).reshape(4, 3, 1)
    data[1, 1] = 0
    np.savez_compressed(folder / "PEMS03.npz", data=data)
    (folder / "PEMS03.txt").write_text("313344\n313349\n313788\n")
    rows = {"from": [313788, 313349, 318566], "to": [313349, 313344, 313344], "distance": [2.0, 1.0, 0.5]}
    pd.DataFrame(rows).to_csv(folder / "PEMS03.csv", index=False)
    return folder


def write_largest(root: Path, name: str = "largest_sd") -> Path:
    """Five sensors of three districts; the columns of the flows and the lines of the meta table are shuffled."""
    folder = root / name
    folder.mkdir()
    ids = [1114091, 401001, 1118333, 715918, 801230]
    frame = speeds([str(node) for node in ids], start="2019-01-01", steps=12)
    frame.iloc[1, 0], frame.iloc[2, 0] = np.nan, 0.0
    to_hdf(frame.iloc[:, [3, 2, 0, 4, 1]], folder / "ca_his_raw_2019.h5", key="t")
    meta = pd.DataFrame(
        {
            "ID": ids,
            "Lat": [32.0, 37.0, 32.1, 34.0, 33.9],
            "Lng": [-117.0, -122.0, -117.1, -118.0, -117.5],
            "District": [11, 4, 11, 7, 8],
            "County": ["San Diego", "Alameda", "San Diego", "Los Angeles", "Riverside"],
            "Fwy": ["I5-N", "I880-S", "I5-S", "US101-N", "SR91-E"],
            "Lane": [4, 3, 4, 5, 3],
            "Type": ["Mainline"] * 5,
            "Direction": list("NSSNE"),
            "ID2": [0, 1, 2, 3, 4],
        }
    )
    meta.iloc[[4, 2, 0, 3, 1]].to_csv(folder / "ca_meta.csv", index=False)
    np.save(folder / "ca_rn_adj.npy", np.arange(25, dtype=np.float32).reshape(5, 5) / 25)
    return folder


def write_libcity(root: Path, name: str = "METR_LA", shuffle: int | None = None) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    frame = speeds(["773869", "767541"])
    frame.iloc[1, 0] = 0
    long = frame.rename_axis("time").reset_index().melt("time", var_name="entity_id", value_name="traffic_speed")
    long["time"] = long["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    long.insert(0, "type", "state")
    long.insert(0, "dyna_id", range(len(long)))
    long = long[["dyna_id", "type", "time", "entity_id", "traffic_speed"]]
    if shuffle is not None:
        long = long.sample(frac=1, random_state=shuffle)
    long.to_csv(folder / f"{name}.dyna", index=False)
    geo = {"geo_id": [767541, 773869], "type": "Point", "coordinates": ["[-118.2, 34.2]", "[-118.1, 34.1]"]}
    pd.DataFrame(geo).to_csv(folder / f"{name}.geo", index=False)
    rel = {
        "rel_id": [0, 1],
        "type": "geo",
        "origin_id": [773869, 5],
        "destination_id": [767541, 773869],
        "cost": [9.0, 1],
    }
    pd.DataFrame(rel).to_csv(folder / f"{name}.rel", index=False)
    (folder / "config.json").write_text(json.dumps({"dyna": {"including_types": ["state"]}}))
    return folder
