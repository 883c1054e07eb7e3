"""Bad input to the readers of formats: one message each, which names the file, what was found and the way out."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from format_files import (
    IDS,
    MATRIX,
    to_hdf,
    write_largest,
    write_libcity,
    write_metr_la,
    write_pems03,
)

from tsjt_pyg.datasets import load_city

Change = Callable[[Path], Any]


def write_pems07(root: Path) -> Path:
    folder = root / "pems07"
    folder.mkdir()
    np.savez(folder / "pems07.npz", data=np.ones((4, 2, 1)))
    (folder / "distance.csv").write_text("from,to,cost\n0,1,300\n")
    return folder


def write_shenzhen(root: Path) -> Path:
    folder = root / "shenzhen"
    folder.mkdir()
    np.save(folder / "dataset.npy", np.ones((144, 3, 2)))
    np.save(folder / "matrix.npy", np.eye(3))
    return folder


def write_sz_taxi(root: Path) -> Path:
    folder = root / "sz_taxi"
    folder.mkdir()
    (folder / "sz_speed.csv").write_text("90217,90225\n1,2\n3,4\n")
    (folder / "sz_adj.csv").write_text("0,1\n1,0\n")
    return folder


def write_of_libcity(root: Path) -> Path:
    return write_libcity(root / "libcity")


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def swap(name: str, old: str, new: str) -> Change:
    def apply(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))

    return apply


def cut(name: str, share: float = 0.6) -> Change:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return apply


def hdf(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "metr-la.h5", key: str = "df") -> Change:
    return lambda folder: to_hdf(change(pd.read_hdf(folder / name)), folder / name, key=key)


def graph(ids: Any = IDS, positions: Any = None, matrix: Any = MATRIX) -> Change:
    positions = {node: i for i, node in enumerate(ids)} if positions is None else positions
    return lambda folder: (folder / "adj_mx.pkl").write_bytes(pickle.dumps([ids, positions, matrix], 2))


def pickled(content: Any) -> Change:
    return lambda folder: (folder / "adj_mx.pkl").write_bytes(pickle.dumps(content, 2))


def weight(value: float) -> np.ndarray:
    matrix = MATRIX.copy()
    matrix[0, 1] = value
    return matrix


def npy(name: str, array: np.ndarray) -> Change:
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


def path_in_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pems07.npz", "a") as archive:
        archive.writestr("../../evil.npy", b"x")


def again(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[[2]]])


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    times = frame.index.to_series()
    times.iloc[-1] += pd.Timedelta("2min")
    return frame.set_axis(pd.DatetimeIndex(times), axis=0)


def far(frame: pd.DataFrame) -> pd.DataFrame:
    times = frame.index.to_series()
    times.iloc[0] = pd.Timestamp("1970-01-01")
    return frame.set_axis(pd.DatetimeIndex(times), axis=0)


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


BAD: list[tuple[Callable[[Path], Path], Change, str]] = [
    # METR-LA
    (write_metr_la, cut("metr-la.h5"), r"metr-la\.h5: cannot be read as HDF5 .*truncated"),
    (write_metr_la, hdf(again), r"metr-la\.h5: the time 2012-03-01 00:10:00 occurs more than once; keep one row"),
    (write_metr_la, hdf(shifted), r"00:27:00 comes 0 days 00:07:00 after .*no multiple of the interval 0 days 00:05"),
    (write_metr_la, hdf(far), r"6 of \d+ steps are there; look at the gap from 1970-01-01 00:00:00 to 2012"),
    (write_metr_la, hdf(lambda f: f.iloc[:1]), "found 1 rows; an interval takes at least 2"),
    (write_metr_la, hdf(lambda f: f * 0), "found no reading in 6 steps of 4 nodes; all are missing"),
    (write_metr_la, hdf(lambda f: f / 0), "readings: found inf at step 0, node 0"),
    (
        write_metr_la,
        hdf(lambda f: f.add_prefix("x")),
        r"adj_mx\.pkl: it has none of the 4 nodes .*'x773869'; here '77386",
    ),
    (write_metr_la, pickled([[], {}, Runs()]), r"adj_mx\.pkl: this pickle was refused and nothing of it was run"),
    (write_metr_la, cut("adj_mx.pkl"), r"adj_mx\.pkl: cannot be read as a pickle"),
    (write_metr_la, pickled({"a": 1}), r"expected \[sensor_ids, sensor_id_to_ind, adj_mx\], found dict"),
    (write_metr_la, pickled([1, 2, 3]), r"expected \[sensor_ids.*found \['int', 'int', 'int'\]"),
    (write_metr_la, graph(matrix=MATRIX[:3]), r"adj_mx\.pkl: node ids: expected 3 ids.*found 4"),
    (write_metr_la, graph(matrix=MATRIX[:, :3]), r"adj_mx\.pkl: expected a square matrix .*found float32 \[4, 3\]"),
    (write_metr_la, graph(ids=["1", "1", "2", "3"], positions={}), r"adj_mx\.pkl: node ids: '1' occurs more than once"),
    (write_metr_la, graph(positions={n: 3 - i for i, n in enumerate(IDS)}), "do not give the same order"),
    (
        write_metr_la,
        graph(matrix=weight(-0.5)),
        "found -0.5 from node '773869' to node '767541'; weights must be finite",
    ),
    (write_metr_la, graph(matrix=weight(np.nan)), "found nan from node '773869' to node '767541'; weights must be fin"),
    (write_metr_la, graph(matrix=weight(np.inf)), "found inf from node '773869' to node '767541'"),
    (write_metr_la, text("graph_sensor_ids.txt", ""), r"graph_sensor_ids\.txt: found no sensor id"),
    (write_metr_la, text("graph_sensor_ids.txt", "7,7"), r"graph_sensor_ids\.txt: node ids: '7' occurs more than once"),
    (write_metr_la, text("graph_sensor_ids.txt", "7"), r"none of the sensors in .*graph_sensor_ids\.txt has a column"),
    (
        write_metr_la,
        swap("graph_sensor_locations.csv", "34.4", "134.4"),
        r"locations\.csv: positions: node '717446' is at",
    ),
    (write_metr_la, swap("graph_sensor_locations.csv", "717447", "717446"), "node '717446' is at two places"),
    (write_metr_la, swap("graph_sensor_locations.csv", "34.4", "north"), "column 'latitude', line 2: found 'north'"),
    # distances instead of the matrix
    *(
        (lambda root: _without(write_metr_la(root), "adj_mx.pkl"), text("distances_la_2012.csv", rows), message)
        for rows, message in [
            ("from,to,cost\n", r"distances_la_2012\.csv: found a header and no rows"),
            ("from,to\n773869,767541\n", r"column 'cost' is absent, found \['from', 'to'\]"),
            ("773869,767541\n", r"no header, so expected 3 columns \(from, to, cost\), found 2"),
            ("from,to,cost\n773869,767541,-1\n", "found -1 from node '773869' to node '767541'; distances must be fi"),
            ("from,to,cost\n773869,767541,\n", "found nan from node '773869' to node '767541'"),
            ("from,to,cost\n773869,767541,5,6\n", "line 2 has 4 fields, the first line 3"),
            ("from,to,cost\n1,2,5\n", "it has none of the 4 nodes with readings"),
            ("from,to,cost\n773869,767541,far\n", "column 'cost', line 2: found 'far', expected a number"),
        ]
    ),
    # PEMS03, PEMS07
    (write_pems03, text("PEMS03.txt", "1\n2\n"), r"PEMS03\.txt: node ids: expected 3 ids.*found 2"),
    (write_pems03, text("PEMS03.txt", "1\n2\n2\n"), r"PEMS03\.txt: node ids: '2' occurs more than once"),
    (write_pems03, lambda f: (f / "PEMS03.txt").unlink(), r"node '313788' is not a node .*put PEMS03\.txt beside it"),
    (
        write_pems07,
        path_in_archive,
        r"pems07\.npz: .*'\.\./\.\./evil(\.npy)?' has a path out of the archive for a name",
    ),
    (write_pems07, cut("pems07.npz"), r"pems07\.npz: cannot be read as \.npz"),
    (
        write_pems07,
        lambda f: np.savez(f / "pems07.npz", data=np.zeros((4, 2, 1))),
        "found no reading in 4 steps of 2 nodes",
    ),
    (
        write_pems07,
        text("distance.csv", "from,to,cost\n0,x,1\n"),
        "column 'to': node 'x' is not a node of the readings",
    ),
    # ST-GFSL
    (write_shenzhen, cut("dataset.npy"), r"dataset\.npy: cannot be read as \.npy"),
    (write_shenzhen, cut("matrix.npy"), r"matrix\.npy: cannot be read as \.npy"),
    (
        write_shenzhen,
        npy("matrix.npy", np.array([Runs()])),
        r"matrix\.npy: cannot be read as \.npy .*allow_pickle=False",
    ),
    (
        write_shenzhen,
        npy("dataset.npy", np.ones((4, 3))),
        r"of shape \[T, N, C\] \(speed first\), found float64 \[4, 3\]",
    ),
    (write_shenzhen, npy("matrix.npy", np.eye(2)), r"matrix\.npy: expected shape \[3, 3\].*found \[2, 2\]"),
    (write_shenzhen, npy("matrix.npy", -np.eye(3)), r"matrix\.npy: found -1.0 from node '0' to node '0'"),
    (write_shenzhen, lambda f: _zipped(f / "dataset.npy"), r"dataset\.npy: .*it is an archive of arrays"),
    # T-GCN
    (write_sz_taxi, text("sz_speed.csv", "1,1\n1,2\n"), r"sz_speed\.csv: .*column '1' is there 2 times"),
    (write_sz_taxi, text("sz_speed.csv", "a,b\n1,2\n3\n"), r"sz_speed\.csv: .*line 3 has 1 fields, the first line 2"),
    (write_sz_taxi, text("sz_adj.csv", "0,1,0\n1,0,0\n"), r"sz_adj\.csv: expected shape \[2, 2\].*found \[2, 3\]"),
    (write_sz_taxi, text("sz_adj.csv", "0,-1\n1,0\n"), r"sz_adj\.csv: found -1 from node '90217' to node '90225'"),
    (write_sz_taxi, text("sz_adj.csv", "0,\n1,0\n"), r"sz_adj\.csv: found nan from node '90217' to node '90225'"),
    # LargeST
    (write_largest, cut("ca_his_raw_2019.h5"), r"ca_his_raw_2019\.h5: cannot be read as HDF5"),
    (write_largest, cut("ca_rn_adj.npy"), r"ca_rn_adj\.npy: cannot be read as \.npy"),
    (
        write_largest,
        npy("ca_rn_adj.npy", np.eye(4)),
        r"ca_rn_adj\.npy: it has 4 rows and columns, and 5 nodes are named",
    ),
    (write_largest, swap("ca_meta.csv", "N,0", "N,7"), r"ca_meta\.csv: column 'ID2': expected each of 0 to 4 once"),
    (write_largest, swap("ca_meta.csv", "District", "Area"), r"ca_meta\.csv: column 'District' is absent"),
    (
        write_largest,
        swap("ca_meta.csv", "1118333", "1114091"),
        r"ca_meta\.csv: node ids: '1114091' occurs more than once",
    ),
    (
        write_largest,
        hdf(lambda f: f.add_prefix("x"), "ca_his_raw_2019.h5", "t"),
        r"none of the 2 sensors of ca_meta\.csv",
    ),
    (
        write_largest,
        lambda f: (f / "ca_meta.csv").write_text("ID,Lat,Lng,District\n1,2,3,4\n"),
        r"ca_meta\.csv: no sensor is in district 11 \(sd\)",
    ),
    # LibCity
    (
        write_of_libcity,
        swap("METR_LA.dyna", "T00:05:00Z", "T00:00:00Z"),
        "node '773869' has more than one row at 2012-03",
    ),
    (write_of_libcity, swap("METR_LA.dyna", "2012-03-01T00:05:00Z", "noon"), "column 'time', line 3: found 'noon'"),
    (write_of_libcity, swap("METR_LA.dyna", "T00:05:00Z", "T00:05:00+09:00"), "column 'time'"),
    (write_of_libcity, swap("METR_LA.rel", "cost", "cost,w"), r"has the columns \['cost', 'w'\]; say in config"),
    (write_of_libcity, swap("METR_LA.dyna", "T00:05:00Z", "T00:06:00Z"), "no multiple of the interval"),
    (
        write_of_libcity,
        swap("METR_LA.dyna", "traffic_speed", "traffic_speed,x"),
        "line 2 has 5 fields, the first line 6",
    ),
    (write_of_libcity, swap("METR_LA.dyna", "entity_id", "sensor"), r"METR_LA\.dyna: .*'entity_id'"),
    (write_of_libcity, swap("METR_LA.dyna", ",1.0", ",fast"), "column 'traffic_speed', line 2: found 'fast', expected"),
    (
        write_of_libcity,
        swap("METR_LA.geo", "34.2]", "34.2"),
        r"METR_LA\.geo: column 'coordinates', line 2: found '\[-118",
    ),
    (write_of_libcity, swap("METR_LA.geo", '"[-118.2, 34.2]"', "__import__"), "line 2: found '__import__', expected"),
    (write_of_libcity, swap("METR_LA.geo", "-118.2", "-1182"), r"METR_LA\.geo: positions: node '767541' is at"),
    (
        write_of_libcity,
        swap("METR_LA.rel", "9.0", "-9.0"),
        r"METR_LA\.rel: found -9.0 from node '773869' to node '767541'",
    ),
    (write_of_libcity, swap("METR_LA.rel", "destination_id", "end"), r"METR_LA\.rel: .*'destination_id'"),
    (write_of_libcity, text("config.json", "{"), r"config\.json: cannot be read as JSON"),
    (write_of_libcity, text("config.json", "[]"), r"config\.json: expected a JSON object, found list"),
    (write_of_libcity, text("config.json", '{"info": 3}'), r"config\.json: expected an object under 'info', found int"),
    (
        write_of_libcity,
        text("config.json", '{"info": {"weight_col": "w"}}'),
        r"'w' \(weight_col of config\.json\) is absent",
    ),
    (write_of_libcity, text("config.json", '{"info": {"data_col": ["w"]}}'), "channel 'w' is absent, found"),
    (
        write_of_libcity,
        text("config.json", json.dumps({"info": {"time_intervals": 600}})),
        r"config\.json: time_intervals is 600 seconds, and METR_LA\.dyna has a row every 0 days 00:05:00",
    ),
]


def _without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, data=np.ones(3))


def _name(folder: Path) -> str:
    return f"libcity/{folder.name}" if folder.parent.name == "libcity" else folder.name


@pytest.mark.parametrize(("write", "change", "message"), BAD)
def test_bad_files(tmp_path, monkeypatch, write, change, message):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path)
    load_city(_name(folder), root=tmp_path) if (folder / "adj_mx.pkl").is_file() else None  # what is bad is the change
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_city(_name(folder), root=tmp_path)
    assert str(folder) in str(caught.value)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    ("write", "optional"),
    [
        (write_metr_la, {"graph_sensor_locations.csv"}),
        (write_pems03, {"PEMS03.txt"}),
        (write_shenzhen, set()),
        (write_sz_taxi, set()),
        (write_largest, set()),
        (write_of_libcity, {"METR_LA.rel", "config.json"}),
    ],
)
def test_missing_files_are_named_with_the_card(tmp_path, write, optional):
    folder = write(tmp_path)
    card = "libcity" if folder.parent.name == "libcity" else folder.name
    for path in sorted(folder.iterdir()):
        if path.name in optional:
            continue
        path.rename(path.with_suffix(".away"))
        with pytest.raises(
            FileNotFoundError, match=rf"this file is missing.*`tsjt cities {card}` says where"
        ) as caught:
            load_city(_name(folder), root=tmp_path)
        assert path.suffix in str(caught.value)
        path.with_suffix(".away").rename(path)
    load_city(_name(folder), root=tmp_path)


def test_libcity_never_looks_outside_of_its_folder(tmp_path):
    folder = write_of_libcity(tmp_path)
    secret = tmp_path / "secret.geo"
    (folder / "METR_LA.geo").rename(secret)
    info = {"geo_file": "../../secret"}
    (folder / "config.json").write_text(json.dumps({"info": info}))
    with pytest.raises(FileNotFoundError, match=r"METR_LA/secret\.geo: this file is missing"):
        load_city("libcity/METR_LA", root=tmp_path)
    for name in ("libcity/..", "libcity/../x", "libcity/", "libcity//etc"):
        with pytest.raises(ValueError, match="there is no city"):
            load_city(name, root=tmp_path)
