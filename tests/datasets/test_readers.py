"""Readers of file formats: on tiny files written here, and on the real ones where they are present."""

from __future__ import annotations

import bz2
import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City
from tsjt_pyg.datasets import load_city
from tsjt_pyg.datasets.files import read_csv, read_npz
from tsjt_pyg.datasets.jonas import _FILES as JONAS_FILES


def roads(city: City) -> dict[tuple[str, str], float]:
    ids = [(city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist()]
    return dict(zip(ids, city.edge_weight.tolist(), strict=True))


# --- tiny files


def write_los_loop(root: Path) -> Path:
    folder = root / "los_loop"
    folder.mkdir()
    speed = pd.DataFrame({"773869": [60.0, 61.5, 0.0], "767541": [50.25, 0.0, 52.0], "717447": [40.0, 41.0, 42.0]})
    speed.to_csv(folder / "speed.csv", index=False)
    adjacency = pd.DataFrame([[1, 0.5, 0], [0.25, 1, 0], [0, 0, 1]])
    adjacency.to_csv(folder / "adjacency.csv", index=False, header=False)
    sensors = {
        "sensor_id": [717447, 773869, 767541],
        "latitude": [34.3, 34.1, 34.2],
        "longitude": [-118.3, -118.1, -118.2],
    }
    pd.DataFrame(sensors).to_csv(folder / "sensors.csv")
    return folder


def write_pems(root: Path, name: str = "pems08") -> Path:
    folder = root / name
    folder.mkdir()
    data = np.arange(1, 25, dtype=np.float64).reshape(4, 2, 3)
    data[1, 0, 0] = 0  # no vehicle was counted: flow and occupancy are missing, the (imputed) speed is not
    data[2, 1, 2] = 0
    np.savez(folder / f"{name}.npz", data=data)
    pd.DataFrame({"from": [1], "to": [0], "cost": [350.5]}).to_csv(folder / "distance.csv", index=False)
    return folder


def write_jonas(root: Path, name: str = "jonas_dc") -> Path:
    folder = root / name
    folder.mkdir()
    trips = np.arange(5 * 3 * 2 * 2, dtype=np.int16).reshape(5, 3, 2, 2)
    np.savez(folder / JONAS_FILES[name][0], taxi=trips, bike=trips + 1000, mask=np.array([[1, 1]], dtype=np.int32))
    return folder


def test_los_loop(tmp_path):
    write_los_loop(tmp_path)
    city = load_city("los_loop", root=tmp_path)
    assert city.node_ids == ("773869", "767541", "717447")
    assert city.readings[0, :, 0].tolist() == [60.0, 50.25, 40.0]
    assert city.mask[:, :, 0].tolist() == [[True, True, True], [True, False, True], [False, True, True]]
    assert city.pos.tolist() == [[34.1, -118.1], [34.2, -118.2], [34.3, -118.3]]  # joined by id, not by row
    assert roads(city)["773869", "767541"] == 0.5
    assert roads(city)["767541", "773869"] == 0.25
    assert (city.channels, city.units, city.steps_per_day) == (("speed",), ("mph",), 288)
    assert city.start == pd.Timestamp("2012-03-01")


def test_pems(tmp_path):
    write_pems(tmp_path)
    city = load_city("pems08", root=tmp_path)
    assert city.readings[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert city.channels == ("flow", "occupancy", "speed")
    assert city.mask[1, 0].tolist() == [False, False, True]
    assert city.mask[2, 1].tolist() == [True, True, False]
    assert city.missing == pytest.approx(3 / 24)
    assert roads(city) == pytest.approx({("0", "1"): np.exp(-1), ("1", "0"): np.exp(-1)})  # both directions
    assert (city.start, city.interval) == (pd.Timestamp("2016-07-01"), pd.Timedelta("5min"))


def test_jonas(tmp_path):
    write_jonas(tmp_path)
    city = load_city("jonas_dc", root=tmp_path)
    assert city.node_ids == ("0-0", "0-1", "1-0", "2-0", "2-1")  # 1-1 is sea
    assert city.channels == ("taxi_demand", "taxi_supply", "bike_demand", "bike_supply")
    assert city.readings[0, 0].tolist() == [0, 1, 1000, 1001]  # a zero is a true zero
    assert city.readings[1, 4].tolist() == [22, 23, 1022, 1023]
    assert city.mask.all()
    both = {("0-0", "0-1"), ("0-0", "1-0"), ("0-1", "1-0"), ("1-0", "2-0"), ("1-0", "2-1"), ("2-0", "2-1")}
    assert set(roads(city)) == both | {(v, u) for u, v in both}
    assert set(roads(city).values()) == {1.0}
    assert city.steps_per_day == 24


# --- damaged files


def edit(name: str, text: str):
    """A change to a file of a folder: its whole content."""
    return lambda folder: (folder / name).write_text(text)


def rearrange(name: str, **arrays: np.ndarray):
    """A change to a file of a folder: its arrays."""
    return lambda folder: np.savez(folder / name, **arrays)


SQUARE = "1,0,0\n0,1,0\n0,0,1\n"
DC = JONAS_FILES["jonas_dc"][0]


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (
            write_los_loop,
            edit("speed.csv", "a,b,c\n1,2,3\n4,5\n"),
            r"speed\.csv: .*line 3 has 2 fields, the first line 3",
        ),
        (
            write_los_loop,
            edit("speed.csv", "a,b\n1,2,3\n4,5,6\n"),
            r"speed\.csv: .*line 2 has 3 fields, the first line 2",
        ),
        (
            write_los_loop,
            edit("speed.csv", "a,b\n1,2\n,x\n"),
            r"speed\.csv: column 'b', line 3: found 'x', expected a num",
        ),
        (
            write_los_loop,
            edit("speed.csv", "a,b\n,2\nx,3\n"),
            r"speed\.csv: column 'a', line 3: found 'x', expected a num",
        ),
        (write_los_loop, edit("speed.csv", ""), r"speed\.csv: cannot be read as CSV"),
        (write_los_loop, edit("speed.csv", "a,b\n"), r"speed\.csv: found a header and no rows"),
        (
            write_los_loop,
            edit("speed.csv", "1,2,3\n4,5,6\n"),
            r"sensors\.csv: it has none of the 3 nodes with readings",
        ),
        (
            write_los_loop,
            edit("adjacency.csv", SQUARE[:12]),
            r"adjacency\.csv: expected shape \[3, 3\].*speed\.csv, found \[2, 3\]",
        ),
        (write_los_loop, edit("adjacency.csv", "a,b\nc,d\n"), r"adjacency\.csv: column 0, line 1: found 'a'"),
        (write_los_loop, edit("adjacency.csv", SQUARE.replace("1", "-1")), r"adjacency\.csv: found -1 from node"),
        (
            write_los_loop,
            edit("sensors.csv", "id,latitude\n1,2\n"),
            r"sensors\.csv: column 'sensor_id' is absent, found",
        ),
        (write_los_loop, edit("sensors.csv", "sensor_id,latitude,longitude\n1,2,3\n"), r"sensors\.csv: .*here '1'"),
        (
            write_los_loop,
            lambda f: (f / "speed.csv").write_bytes(b"a,b\n\xff\xfe,1\n"),
            r"speed\.csv: cannot be read as CSV",
        ),
        (write_pems, edit("pems08.npz", "nonsense"), r"pems08\.npz: cannot be read as \.npz"),
        (
            write_pems,
            lambda f: np.save((f / "pems08.npz").open("wb"), np.ones(3)),
            r"pems08\.npz: .*it is a single array",
        ),
        (write_pems, rearrange("pems08.npz", x=np.ones(3)), r"pems08\.npz: .*array 'data' is absent, found \['x'\]"),
        (
            write_pems,
            rearrange("pems08.npz", data=np.array([{}])),
            "Object arrays cannot be loaded when allow_pickle=F",
        ),
        (
            write_pems,
            rearrange("pems08.npz", data=np.ones((4, 2))),
            r"expected 'data' of shape \[T, N, 3\].*found float64 \[4, 2\]",
        ),
        (
            write_pems,
            rearrange("pems08.npz", data=np.ones((4, 2, 2))),
            r"of shape \[T, N, 3\].*found float64 \[4, 2, 2\]",
        ),
        (
            write_pems,
            rearrange("pems08.npz", data=np.ones((4, 1, 3))),
            r"distance\.csv: column 'from': node '1' is not a node",
        ),
        (
            write_pems,
            edit("distance.csv", "from,to\n0,1\n"),
            r"distance\.csv: column 'cost' is absent, found \['from', 'to'\]",
        ),
        (write_pems, edit("distance.csv", "from,to,cost\n0,1,-3\n"), r"distance\.csv: found -3 from node '0' to"),
        (
            write_pems,
            edit("distance.csv", "from,to,cost\n,1,3\n"),
            r"distance\.csv: column 'from', line 2: found nothing, expected an id",
        ),
        (write_jonas, rearrange(DC, taxi=np.ones(3), bike=np.ones(3)), "array 'mask' is absent"),
        (
            write_jonas,
            rearrange(DC, taxi=np.ones((4, 3)), bike=np.ones((4, 3)), mask=np.ones(0)),
            r"expected 'taxi' and 'bike' of one shape \[T, H, W, 2\], found \[\[4, 3\], \[4, 3\]\]",
        ),
        (
            write_jonas,
            rearrange(DC, taxi=np.ones((4, 3, 2, 2)), bike=np.ones((4, 3, 3, 2)), mask=np.ones(0)),
            r"of one shape .*\[\[4, 3, 2, 2\], \[4, 3, 3, 2\]\]",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, write, change, message):
    folder = write(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_city(folder.name, root=tmp_path)
    assert str(caught.value).count(str(folder)) == 1


@pytest.mark.parametrize("write", [write_los_loop, write_pems, write_jonas])
def test_missing_files_are_named_with_the_card(tmp_path, write):
    folder = write(tmp_path)
    for path in folder.iterdir():
        if path.name == "sensors.csv":  # positions may be absent
            continue
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"{path}: this file is missing.*`tsjt cities {folder.name}` says where.*--root"
        ):
            load_city(folder.name, root=tmp_path)
        path.write_bytes(content)


def test_every_damaged_byte_of_an_npz_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    data = np.random.default_rng(0).random((9, 4))
    np.savez_compressed(path, data=data)
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_npz(path, "data")["data"], data), position
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be read as .npz")  # noqa: PT017


def test_csv_of_other_systems(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,\r\n\r\n3,4\r\n")  # byte order mark, CRLF, a blank line, an empty field
    table = read_csv(path)
    assert list(table.columns) == ["a", "b"]
    assert table["a"].tolist() == [1, 3]
    assert table["b"].isna().tolist() == [True, False]


def test_csv_whose_fields_stay_text_and_without_a_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("007,1.5\n7,2\n")
    table = read_csv(path, header=False, text=["id"], names=["id", "cost"])
    assert table["id"].tolist() == ["007", "7"]
    assert table["cost"].tolist() == [1.5, 2.0]
    with pytest.raises(ValueError, match=r"x\.csv: .*it has no header, so expected 1 columns \(id\)"):
        read_csv(path, header=False, names=["id"])
    path.write_text("id,cost\na,1\n,2\n")
    with pytest.raises(ValueError, match=r"x\.csv: column 'id', line 3: found nothing, expected an id"):
        read_csv(path, text=["id"])


# --- the real files


@pytest.mark.parametrize(
    ("name", "shape", "edges", "interval", "start"),
    [
        ("los_loop", (2016, 207, 1), 2833, "5min", "2012-03-01"),
        ("pems04", (694, 307, 3), 680, "5min", "2018-01-01"),
        ("pems08", (1282, 170, 3), 548, "5min", "2016-07-01"),
        ("jonas_nyc", (4800, 113, 4), 752, "30min", "2015-10-24"),
        ("jonas_dc", (2400, 108, 4), 742, "60min", "2015-10-24"),
    ],
)
def test_known_facts(real_city, name, shape, edges, interval, start):
    city = real_city(name)
    assert city.name == name
    assert tuple(city.readings.shape) == shape
    assert city.num_edges == edges
    assert city.interval == pd.Timedelta(interval)
    assert city.start == pd.Timestamp(start)
    assert torch.isfinite(city.readings).all()
    assert (city.readings[~city.mask] == 0).all()
    assert city.readings.min() >= 0


def test_real_los_loop(real_city, cities_root):
    city = real_city("los_loop")
    assert city.node_ids[:3] == ("773869", "767541", "767542")
    assert city.readings[0, :2, 0].tolist() == [64.375, 67.625]
    assert city.missing == 0
    assert city.readings.max() <= 70
    sensors = pd.read_csv(cities_root / "los_loop" / "sensors.csv").set_index("sensor_id")
    for node in (0, 100, 206):
        expected = sensors.loc[int(city.node_ids[node]), ["latitude", "longitude"]]
        assert city.pos[node].tolist() == expected.tolist()
    adjacency = pd.read_csv(cities_root / "los_loop" / "adjacency.csv", header=None).to_numpy()
    assert len(roads(city)) == np.count_nonzero(adjacency)
    assert roads(city)[city.node_ids[0], city.node_ids[13]] == pytest.approx(adjacency[0, 13])


@pytest.mark.parametrize(
    ("name", "first", "missing"),
    [("pems04", [62, 0.0077, 67.9], 0.0197), ("pems08", [133, 0.0603, 65.8], 0.0042)],
)
def test_real_pems(real_city, cities_root, name, first, missing):
    city = real_city(name)
    assert city.readings[0, 0].tolist() == pytest.approx(first)
    assert city.select("flow").missing == pytest.approx(missing, abs=1e-4)
    assert city.select("speed").missing == 0
    table = pd.read_csv(cities_root / name / "distance.csv")
    pairs = {(str(u), str(v)) for u, v in zip(table["from"], table["to"], strict=True)}
    assert set(roads(city)) == pairs | {(v, u) for u, v in pairs}
    # The weights tell roads apart: not all are next to 0, nor next to 1.
    assert 0.2 < city.edge_weight.median() < 0.8


def test_real_jonas(real_city):
    city = real_city("jonas_nyc")
    assert city.readings[0, 0].tolist() == [18, 1, 0, 0]
    assert city.readings[0, 1].tolist() == [229, 64, 2, 1]
    assert city.missing == 0
    assert "3-7" not in city.node_ids
    hourly = city.select("taxi_demand").resample("1h", "sum")
    assert hourly.num_steps == 2400
    assert hourly.readings.sum() == pytest.approx(city.select("taxi_demand").readings.double().sum().item(), rel=1e-5)


def test_real_street_network(cities_root):
    """A real OpenStreetMap street network, taken the way OSMnx gives it."""
    path = cities_root / "osm" / "West-Oakland.osm.bz2"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with bz2.open(path) as file:
        osm = ElementTree.parse(file).getroot()
    graph = nx.MultiDiGraph()
    place = {node.get("id"): (float(node.get("lon")), float(node.get("lat"))) for node in osm.iter("node")}
    for way in osm.iter("way"):
        tags = {tag.get("k"): tag.get("v") for tag in way.iter("tag")}
        stops = [stop.get("ref") for stop in way.iter("nd") if stop.get("ref") in place]
        if "highway" in tags:
            for u, v in itertools.pairwise(stops):
                metres = 111_195 * np.hypot(place[u][1] - place[v][1], 0.79 * (place[u][0] - place[v][0]))
                for node in (u, v):
                    graph.add_node(node, x=place[node][0], y=place[node][1])
                graph.add_edge(u, v, length=float(metres) + 0.1)
                if tags.get("oneway") != "yes":
                    graph.add_edge(v, u, length=float(metres) + 0.1)
    assert graph.number_of_nodes() > 100
    readings = np.ones((3, graph.number_of_nodes()), np.float32)
    city = City.from_networkx(readings, graph)
    assert ((city.pos[:, 0] - 37.81).abs() < 0.1).all()
    assert ((city.pos[:, 1] + 122.29).abs() < 0.1).all()
    streets = [(u, v, k) for u, v, k in graph.edges(keys=True) if u != v]
    segments = City.from_networkx(np.ones((3, len(streets)), np.float32), graph, nodes="segments")
    assert set(segments.node_ids) == {f"{u}-{v}-{k}" for u, v, k in streets}
    for i, j in segments.edge_index.T[:200].tolist():
        (u, v, _), (s, t, _) = (segments.node_ids[n].split("-") for n in (i, j))
        assert v == s
        assert t != u
