"""What a file may be called is said once, on the card: the reader, the PyG class and ``tsjt cities`` go by it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from format_files import speeds, to_hdf

from tsjt_pyg.datasets import CityDataset, list_cities, load_city
from tsjt_pyg.datasets.cards import missing_files, read_card, verify_files

CITIES = [entry.name for entry in list_cities("nowhere") if entry.group != "demo"] + ["libcity/METR_LA"]
DISTRICTS = {"largest_sd": 11, "largest_gba": 4, "largest_gla": 12, "largest_ca": 3}
IDS = ["0", "1"]
MATRIX = np.array([[0, 0.5], [0.25, 0]])
STEPS = 30
ATOMIC = {"dyna_id": 0, "type": "state", "time": "2012-03-01T00:00:00Z", "entity_id": 0, "row_id": 0, "column_id": 0}


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps([IDS, {"0": 0, "1": 1}, MATRIX], 2))


def write_npz(path: Path) -> None:
    if path.name.startswith("JONAS"):
        trips = np.ones((STEPS, 2, 1, 2), dtype=np.int16)
        np.savez(path, taxi=trips, bike=trips, mask=np.zeros((0, 2), dtype=np.int32))
    else:
        np.savez(path, data=np.ones((STEPS, 2, 1)))


def write_npy(path: Path) -> None:
    np.save(path, speeds(IDS, STEPS).to_numpy()[..., None] if path.name == "dataset.npy" else MATRIX)


def write_csv(path: Path) -> None:
    if "speed" in path.name:
        speeds(IDS, STEPS).to_csv(path, index=False)
    elif "adj" in path.name:
        pd.DataFrame(MATRIX).to_csv(path, index=False, header=False)
    elif "locations" in path.name or "sensors" in path.name:
        path.write_text("index,sensor_id,latitude,longitude\n0,0,34.1,-118.1\n1,1,34.2,-118.2\n")
    elif "meta" in path.name:
        path.write_text("ID,Lat,Lng,District,ID2\n" + "".join(f"{i},3{i},-1,{{district}},{i}\n" for i in (0, 1)))
        path.write_text(path.read_text().format(district=DISTRICTS[path.parent.name]))
    else:
        path.write_text("from,to,cost\n0,1,100\n1,0,100\n")


def write_atomic(path: Path) -> None:
    columns = list(ATOMIC)[:4] if path.suffix == ".dyna" else [name for name in ATOMIC if name != "entity_id"]
    rows = pd.DataFrame([{**ATOMIC, "entity_id": i, "column_id": i} for _ in range(STEPS) for i in (0, 1)])
    rows["time"] = np.repeat(pd.date_range("2012-03-01", periods=STEPS, freq="5min").strftime("%FT%TZ"), 2)
    rows[columns].assign(traffic_flow=1.0).to_csv(path, index=False)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


WRITE: dict[str, Callable[[Path], object]] = {
    ".h5": lambda path: to_hdf(speeds(IDS, STEPS), path),
    ".pkl": write_pickle,
    ".npz": write_npz,
    ".npy": write_npy,
    ".csv": write_csv,
    ".txt": text("0\n1\n"),
    ".dyna": write_atomic,
    ".grid": write_atomic,
    ".geo": text('geo_id,type,coordinates,row_id,column_id\n0,Point,"[]",0,0\n1,Point,"[]",0,1\n'),
    ".rel": text("rel_id,type,origin_id,destination_id\n0,geo,0,1\n"),
    ".json": text("{}"),
    "": text("the terms"),
}


def written(folder: Path, name: str) -> None:
    """A file of a small city by this name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITE[path.suffix](path)


@pytest.fixture
def asked(monkeypatch) -> set[Path]:
    """Which files were looked for."""
    found: set[Path] = set()
    is_file = Path.is_file

    def spy(path: Path) -> bool:
        found.add(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", spy)
    return found


@pytest.mark.parametrize("city", CITIES)
def test_each_name_of_the_card_is_read_and_no_other_is_looked_for(tmp_path, city, asked):
    card = read_card(city)
    names = [(file, name) for file in card.files for name in file.names]
    for i, (file, name) in enumerate(names):
        root = tmp_path / str(i)
        folder = root / city
        for other in card.files:
            written(folder, name if other is file else other.name)
        asked.clear()
        found = load_city(city, root)
        assert found.node_ids in (("0", "1"), ("0-0", "0-1"), ("0-0", "1-0"))
        looked_for = {path.relative_to(folder).as_posix() for path in asked if path.is_relative_to(folder)}
        assert looked_for <= {name for _, name in names}
        read = [path for path in asked if path == folder / name]
        assert read or file.about.startswith("optional"), name
        # the class, `tsjt cities` and --verify
        assert missing_files(card, folder) == []
        assert name in verify_files(card, folder)
        dataset = CityDataset(root, city, 6, 3)
        assert name in dataset.raw_file_names or file.optional
        made_of = dataset._made_of()["files"]
        assert name in [entry[0] for entry in made_of]
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        assert dataset._made_of()["files"] != made_of


def test_the_names_of_the_releases_are_on_the_cards():
    """As a look into each reader had found them, so that no card forgets one."""
    expected = {
        "los_loop": "speed.csv los_speed.csv adjacency.csv los_adj.csv sensors.csv graph_sensor_locations.csv",
        "sz_taxi": "sz_speed.csv sz_adj.csv speed.csv adjacency.csv sensors.csv graph_sensor_locations.csv",
        "metr_la": "metr-la.h5 METR-LA.h5 adj_mx.pkl adj_mx_la.pkl adj_METR-LA.pkl sensor_graph/adj_mx.pkl "
        "sensor_graph/adj_mx_la.pkl sensor_graph/adj_METR-LA.pkl distances_la_2012.csv distances.csv "
        "sensor_graph/distances_la_2012.csv sensor_graph/distances.csv graph_sensor_ids.txt "
        "sensor_graph/graph_sensor_ids.txt graph_sensor_locations.csv sensor_graph/graph_sensor_locations.csv",
        "pems_bay": "pems-bay.h5 PEMS-BAY.h5 adj_mx_bay.pkl adj_mx.pkl adj_PEMS-BAY.pkl sensor_graph/adj_mx_bay.pkl "
        "sensor_graph/adj_mx.pkl sensor_graph/adj_PEMS-BAY.pkl distances_bay_2017.csv distances.csv "
        "sensor_graph/distances_bay_2017.csv sensor_graph/distances.csv graph_sensor_ids.txt "
        "sensor_graph/graph_sensor_ids.txt graph_sensor_locations_bay.csv graph_sensor_locations_pems_bay.csv "
        "graph_sensor_locations.csv sensor_graph/graph_sensor_locations_bay.csv "
        "sensor_graph/graph_sensor_locations_pems_bay.csv sensor_graph/graph_sensor_locations.csv",
        **{
            f"pems{n}": f"pems{n}.npz PEMS{n}.npz distance.csv PEMS{n}.csv pems{n}.csv PEMS{n}.txt pems{n}.txt"
            for n in ("03", "04", "07", "08")
        },
        **{
            f"largest_{r}": f"ca_his_raw_2019.h5 {r}_his_2019.h5 ca_his_2019.h5 ca_meta.csv {r}_meta.csv "
            f"ca_rn_adj.npy {r}_rn_adj.npy"
            for r in ("sd", "gba", "gla", "ca")
        },
    }
    for city, names in expected.items():
        assert {name for file in read_card(city).files for name in file.names} == set(names.split()), city


def test_libcity_files_by_the_names_of_its_config(tmp_path):
    folder = tmp_path / "libcity" / "METR_LA"
    for name in ("roads.geo", "flows.dyna", "links.rel"):
        written(folder, name)
    info = '{"info": {"geo_file": "roads", "rel_file": "links", "data_files": ["flows"]}}'
    (folder / "config.json").write_text(info)
    assert load_city("libcity/METR_LA", tmp_path).num_edges == 1
    assert missing_files(read_card("libcity/METR_LA", folder), folder) == []
    dataset = CityDataset(tmp_path, "libcity/METR_LA", 6, 3)
    assert dataset.raw_file_names == ["roads.geo", "flows.dyna"]
    (folder / "flows.dyna").rename(folder / "flows.grid")
    write_atomic(folder / "flows.grid")
    assert load_city("libcity/METR_LA", tmp_path).node_ids == ("0-0", "0-1")
    (folder / "config.json").write_text("{")  # the reader says so; a list of cities goes on
    assert missing_files(read_card("libcity/METR_LA", folder), folder) == ["METR_LA.geo", "METR_LA.dyna"]
