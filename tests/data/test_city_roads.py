"""Cities from roads: readings joined by id, sensors joined along roads, and what is left out said."""

from __future__ import annotations

import logging
import math
import runpy
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import Collection, LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch_geometric.utils import from_networkx

from tsjt_pyg import City
from tsjt_pyg.data import read_roads, snap_sensors
from tsjt_pyg.evaluation import plot_city

METRE = 1 / 111_195.08


def streets() -> nx.MultiDiGraph:
    """As OSMnx gives it: a two-way street a-b, a one-way street b-c, a loop at c, and d-e somewhere else."""
    graph = nx.MultiDiGraph(crs="epsg:4326", simplified=True)
    for node, x, y in [("a", 4.0, 52.0), ("b", 4.01, 52.0), ("c", 4.01, 52.01), ("d", 4.1, 52.0), ("e", 4.11, 52.0)]:
        graph.add_node(node, x=x, y=y, street_count=3, highway="crossing")
    graph.add_edge("a", "b", length=700.0, highway=["residential", "service"], lanes=["1", "2"], maxspeed="25 mph")
    graph.add_edge("b", "a", length=700.0, highway=["residential", "service"], lanes=["1", "2"], maxspeed="25 mph")
    graph.add_edge("b", "c", length=1100.0, highway="primary", maxspeed=["30 mph", "35 mph"], oneway=True)
    graph.add_edge("b", "c", length=3000.0, highway="motorway", maxspeed="100", oneway=True)
    graph.add_edge("c", "c", length=200.0, highway="residential")
    graph.add_edge("d", "e", length=700.0, highway="residential", maxspeed="50")
    return graph


def table(*nodes: str, steps: int = 4) -> pd.DataFrame:
    """Readings that are all different."""
    values = np.arange(1, steps * len(nodes) + 1, dtype=np.float32).reshape(steps, len(nodes))
    return pd.DataFrame(values, columns=list(nodes))


def edges(city: City) -> dict[tuple[str, str], float]:
    pairs = ((city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist())
    return dict(zip(pairs, city.edge_weight.tolist(), strict=True))


JUNCTIONS = ("c", "e", "a", "d", "b")
SEGMENTS = ("b-c-1", "a-b-0", "d-e-0", "b-a-0", "b-c-0")


def test_junctions_of_a_raw_graph():
    city = City.from_osmnx(table(*JUNCTIONS), streets(), kernel="none", name="town")
    assert city.node_ids == JUNCTIONS
    assert edges(city) == {("a", "b"): 700, ("b", "a"): 700, ("b", "c"): 1100, ("d", "e"): 700}
    assert city.pos.tolist() == [[52.01, 4.01], [52.0, 4.11], [52.0, 4.0], [52.0, 4.1], [52.0, 4.01]]
    faster = City.from_osmnx(table(*JUNCTIONS), streets(), kernel="none", weight="travel_time")
    assert edges(faster)["b", "c"] == pytest.approx(1100 / (32.5 * 1.60934) * 3.6)
    assert edges(faster)["a", "b"] == pytest.approx(700 / (25 * 1.60934) * 3.6)


def test_segments_of_a_raw_graph():
    city = City.from_osmnx(table(*SEGMENTS), streets(), nodes="segments", kernel="none")
    assert edges(city) == {("a-b-0", "b-c-0"): 900.0, ("a-b-0", "b-c-1"): 1850.0}
    assert city.pos[1].tolist() == pytest.approx([52.0, 4.005])
    looped = City.from_osmnx(table(*SEGMENTS, "c-c-0"), streets(), nodes="segments", loops="keep", kernel="none")
    assert edges(looped) == {**edges(city), ("b-c-0", "c-c-0"): 650.0, ("b-c-1", "c-c-0"): 1600.0}
    turning = City.from_osmnx(table(*SEGMENTS), streets(), nodes="segments", u_turns=True, kernel="none")
    assert edges(turning) == {**edges(city), ("a-b-0", "b-a-0"): 700.0, ("b-a-0", "a-b-0"): 700.0}
    both = City.from_osmnx(
        table(*SEGMENTS), streets(), nodes="segments", one_way="both", without_readings="keep", kernel="none"
    )
    assert set(both.node_ids) == {*SEGMENTS, "c-b-0", "c-b-1", "e-d-0"}
    assert ("c-b-0", "b-a-0") in edges(both)


def test_places_and_tags_never_become_features():
    city = City.from_osmnx(table(*JUNCTIONS, steps=8), streets(), start="2024-03-04", interval="60min")
    window = city.to_dataset(history=3, horizon=2)[1]
    assert torch.equal(window.x, city.readings[1:4].permute(1, 2, 0))
    assert torch.equal(window.y, city.readings[4:6, :, 0].T)
    assert set(window.keys()) == {"x", "y", "x_mask", "mask", "edge_index", "edge_attr"}
    assert torch.equal(window.edge_attr, city.edge_weight)
    # What PyG's own converter does with such a graph: it fails on the lists, or makes coordinates data.x and data.y.
    plain = streets()
    for *_, data in plain.edges(data=True):
        for key in ("highway", "lanes", "maxspeed", "oneway"):
            data.pop(key, None)
    assert from_networkx(plain).x.tolist() == pytest.approx([4.0, 4.01, 4.01, 4.1, 4.11])


def test_components_and_isolated_nodes(caplog):
    whole = table(*JUNCTIONS)
    with caplog.at_level(logging.WARNING, "tsjt_pyg"):
        weak = City.from_osmnx(whole, streets(), component="weak", name="town")
    assert weak.node_ids == ("c", "a", "b")
    assert torch.equal(weak.readings[..., 0], torch.tensor(whole[["c", "a", "b"]].to_numpy()))
    assert "town: readings of 2 junctions that were left out of the graph are left out" in caplog.text
    assert City.from_osmnx(whole, streets(), component="strong").node_ids == ("a", "b")
    assert City.from_osmnx(whole, streets(), component="strong", one_way="both").node_ids == ("c", "a", "b")
    lonely = streets()
    lonely.add_node("z", x=4.0, y=52.1)
    city = City.from_osmnx(table(*JUNCTIONS, "z"), lonely, isolated="drop")
    assert "z" not in city.node_ids
    assert len(city.node_ids) == 5
    assert City.from_osmnx(table(*JUNCTIONS, "z"), lonely).num_nodes == 6


def test_nodes_without_readings(caplog):
    some = table("b", "a")
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        kept = City.from_osmnx(some, streets(), without_readings="keep")
    assert "3 of 5 junctions have no readings: keep" in caplog.text
    assert kept.node_ids[:2] == ("b", "a")
    assert set(kept.node_ids) == set(JUNCTIONS)
    assert kept.mask[:, :2].all()
    assert not kept.mask[:, 2:].any()
    assert not kept.readings[:, 2:].any()
    assert len(edges(kept)) == 4
    dropped = City.from_osmnx(some, streets(), without_readings="drop", kernel="none")
    assert dropped.node_ids == ("b", "a")
    assert edges(dropped) == {("a", "b"): 700, ("b", "a"): 700}


def test_readings_without_ids_are_in_the_graphs_order_and_own_positions_win():
    city = City.from_osmnx(np.arange(10.0).reshape(2, 5), streets(), positions=[[1.0, 2.0]] * 5)
    assert city.node_ids == ("a", "b", "c", "d", "e")
    assert city.pos.tolist() == [[1.0, 2.0]] * 5


# --- sensors


def sensors() -> pd.DataFrame:
    """s1, s2 on a-b; s3 on its opposite direction; s4 on b-c; s5 far away; s6 on d-e."""
    north, middle = 10 * METRE, 52.0
    rows = {
        "s1": (middle + north, 4.002, 90),
        "s2": (middle + 2 * north, 4.004, 90),
        "s3": (middle + north, 4.004, 270),
        "s4": (52.005, 4.01, np.nan),
        "s5": (52.2, 4.0, np.nan),
        "s6": (middle + north, 4.105, np.nan),
    }
    return pd.DataFrame(rows, index=["latitude", "longitude", "bearing"]).T


def simple() -> nx.MultiDiGraph:
    graph = streets()
    graph.remove_edge("b", "c", 1)
    return graph


def test_sensors_are_joined_along_the_roads(caplog):
    with caplog.at_level(logging.WARNING, "tsjt_pyg"):
        city = City.from_road_network(
            table("s5", "s4", "s2", "x", "s1", "s3", "s6"), sensors(), simple(), kernel="none", name="town"
        )
    assert "town: of 7 nodes with readings 2 are left out: 1 are not among the sensors, 1 are too far" in caplog.text
    assert city.node_ids == ("s4", "s2", "s1", "s3", "s6")
    assert city.readings[0, :, 0].tolist() == [2, 3, 5, 6, 7]
    expected = {("s1", "s2"): 140, ("s1", "s4"): 560 + 550, ("s2", "s4"): 420 + 550}
    assert edges(city) == pytest.approx(expected, rel=1e-3)
    assert city.pos[1].tolist() == pytest.approx([52 + 20 * METRE, 4.004])
    turning = City.from_road_network(table("s1", "s3"), sensors(), simple(), kernel="none", u_turns=True)
    assert edges(turning) == pytest.approx({("s1", "s3"): 560 + 420, ("s3", "s1"): 280 + 140}, rel=1e-3)
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        near = City.from_road_network(table("s4", "s2", "s1"), sensors(), simple(), path_limit=1000)
    assert "city: 2 sensors without readings are left out ('s3', 's6')" in caplog.text
    ways = [140, 970]
    rms = math.sqrt(sum(w * w for w in ways) / 2)
    kernel = {("s1", "s2"): math.exp(-((140 / rms) ** 2)), ("s2", "s4"): math.exp(-((970 / rms) ** 2))}
    assert edges(near) == pytest.approx(kernel, rel=2e-3)


def test_ways_by_time():
    readings = table("s1", "s2", "s4")
    city = City.from_road_network(readings, sensors(), simple(), weight="travel_time", kernel="none", path_limit=60)
    pace = 3.6 / (25 * 1.60934)
    assert edges(city) == pytest.approx({("s1", "s2"): 140 * pace}, rel=1e-3)
    assert len(edges(City.from_road_network(readings, sensors(), simple(), weight="travel_time"))) == 3


def test_several_sensors_on_one_segment():
    readings = table("s1", "s2", "s4")
    readings.loc[0, "s2"] = np.nan
    readings.loc[1, ["s1", "s2"]] = np.nan
    options = {"keep": "segments", "kernel": "none"}
    mean = City.from_road_network(readings, sensors(), simple(), several="mean", **options)
    assert mean.node_ids == ("a-b-0", "b-c-0")
    assert mean.readings[:, 0, 0].tolist() == pytest.approx([1, 0, 7.5, 10.5])
    assert mean.mask[:, 0, 0].tolist() == [True, False, True, True]
    assert edges(mean) == pytest.approx({("a-b-0", "b-c-0"): 0.7 * 700 + 550}, rel=1e-3)
    assert mean.pos[0].tolist() == pytest.approx([52.0, 4.005])
    nearest = City.from_road_network(readings, sensors(), simple(), several="nearest", **options)
    assert nearest.readings[:, 0, 0].tolist() == [1, 0, 7, 10]
    assert edges(nearest) == pytest.approx({("a-b-0", "b-c-0"): 0.8 * 700 + 550}, rel=1e-3)
    with pytest.raises(
        ValueError, match=r"\['s1', 's2'\] all lie on segment 'a-b-0', 2 sensors share .*several='mean'"
    ):
        City.from_road_network(readings, sensors(), simple(), **options)


def test_all_segments_with_a_mask_where_there_is_no_sensor():
    city = City.from_road_network(table("s3", "s4"), sensors(), simple(), keep="all", kernel="none")
    assert set(city.node_ids) == {"a-b-0", "b-a-0", "b-c-0", "c-c-0", "d-e-0"}
    assert {node for i, node in enumerate(city.node_ids) if city.mask[:, i].all()} == {"b-a-0", "b-c-0"}
    assert city.missing == pytest.approx(3 / 5)
    assert edges(city) == {("a-b-0", "b-c-0"): 900.0, ("b-c-0", "c-c-0"): 650.0}


def test_a_snap_made_before_is_taken_and_arrays_are_in_its_order():
    roads = read_roads(simple())
    snapped = snap_sensors(sensors().loc[["s4", "s1"]], roads, 15)
    city = City.from_road_network(np.array([[1.0, 2.0]] * 3), snapped, roads)
    assert city.node_ids == ("s4", "s1")
    assert set(edges(city)) == {("s1", "s4")}


BOTH = "both need the same node ids"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: City.from_osmnx(table("a", "q"), streets()),
            f"readings: node 'q' is not in the graph .2 nodes.*{BOTH}",
        ),
        (
            lambda: City.from_osmnx(table("a"), streets()),
            "readings: node 'b' of the graph has no readings .*5 junctions.*; without_readings='keep' or 'drop'",
        ),
        (
            lambda: City.from_osmnx(table("d"), streets(), component="weak"),
            "readings: node 'd' was left out of the graph, as all others with readings",
        ),
        (lambda: City.from_osmnx(table("a"), streets(), nodes="roads"), "nodes: expected 'junctions' or 'segments'"),
        (
            lambda: City.from_osmnx(table("a"), streets(), isolated="?"),
            "isolated: expected 'keep' or 'drop', found '?'",
        ),
        (lambda: City.from_osmnx(table("a"), streets(), loops=1), "loops: expected 'keep' or 'drop', found 1"),
        (
            lambda: City.from_osmnx(table(*JUNCTIONS), streets(), without_readings="no"),
            "without_readings: expected 'error' or 'keep' or 'drop'",
        ),
        (
            lambda: City.from_osmnx(table("a"), streets(), weight="gaussian"),
            "weight: expected 'length' or 'travel_time'",
        ),
        (
            lambda: City.from_road_network(table("s5"), sensors().loc[["s5"]], streets()),
            r"sensors: none of the 1 lies within 50 m of a road; the nearest, 's5', is \d+ m away. Raise snap_limit",
        ),
        (
            lambda: City.from_road_network(table("p", "q"), sensors(), streets()),
            "readings: none of the 2 nodes, for example 'p', is a sensor on a road, .*'s1'; .* same sensor ids",
        ),
        (
            lambda: City.from_road_network(table("s1"), sensors(), streets(), keep="some"),
            "keep: expected 'sensors' or 'segments' or 'all', found 'some'",
        ),
        (
            lambda: City.from_road_network(table("s1"), sensors(), streets(), several="sum"),
            "several: expected 'error' or 'mean' or 'nearest', found 'sum'",
        ),
        (
            lambda: City.from_road_network(table("s1"), sensors(), streets(), path_limit=0),
            r"path_limit: expected a positive number of metres \(or seconds\), found 0",
        ),
        (
            lambda: City.from_road_network(table("s1"), sensors(), streets(), kernel="cubic"),
            "kernel: expected 'gaussian' or 'none', found 'cubic'",
        ),
        (
            lambda: City.from_road_network(
                table("s6"), snap_sensors(sensors(), read_roads(streets())), streets(), component="weak"
            ),
            "sensors: they were snapped to segment 'd-e-0', which is not in the graph; pass the roads they",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_options_are_named():
    with pytest.raises(TypeError, match="snap"):
        City.from_osmnx(table(*JUNCTIONS), streets(), snap=3)
    with pytest.raises(TypeError, match="positions: the table of sensors says where they are; leave positions out"):
        City.from_road_network(table("s1"), sensors(), streets(), positions=[[1.0, 2.0]])


# --- a real one


@pytest.fixture
def west_oakland(cities_root: Path) -> Path:
    pytest.importorskip("osmnx")
    path = cities_root / "osm" / "West-Oakland.osm.bz2"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return path


def test_west_oakland_end_to_end(west_oakland, tmp_path, monkeypatch):
    path = west_oakland
    roads = read_roads(path, component="strong")
    assert 150 < len(roads.junction_ids) < 220
    assert 50_000 < roads.length.sum() < 80_000
    assert 45 < roads.length.sum() / roads.cost("travel_time").sum() * 3.6 < 75
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(roads.segment_ids), 60, replace=False)
    chosen = [i for i in chosen if roads.start[i] != roads.end[i]]
    ids = [roads.segment_ids[i] for i in chosen]
    readings = pd.DataFrame(rng.uniform(20, 60, (30, len(ids))), columns=ids)
    city = City.from_osmnx(readings, roads, nodes="segments", without_readings="keep", weight="travel_time")
    assert city.node_ids[: len(ids)] == tuple(ids)
    assert city.missing == pytest.approx(1 - len(ids) / city.num_nodes)
    # A picture, in which those segments and no others have the colour of their reading.
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    picture = imread(plot_city(city, tmp_path / "west_oakland.png", step=7, roads=roads))
    grey, coloured = (c for c in figures[0].axes[0].collections if isinstance(c, LineCollection))
    assert coloured.get_array().tolist() == readings.iloc[7].to_numpy(np.float32).tolist()
    assert len(grey.get_segments()) == len(roads.segment_ids) - len(ids)
    for line, i in zip(coloured.get_segments(), chosen, strict=True):
        assert line == pytest.approx(roads.shapes[i][:, ::-1], abs=2e-4)  # moved to the right of its direction
    assert coloured_pixels(picture, coloured) > 1000
    # Sensors 8 m beside the middle of each of those segments, with its bearing, find their way back to it.
    rows = []
    for i in chosen:
        shape = roads.shapes[i]
        k = int(np.argmax(np.linalg.norm(np.diff(shape, axis=0), axis=1)))
        (p, q), (s, t) = shape[k], shape[k + 1]
        east = (t - q) * math.cos(math.radians(p))
        angle = math.atan2(east, s - p)
        side = 8 * METRE
        rows.append(
            (
                (p + s) / 2 - side * math.sin(angle),
                (q + t) / 2 + side * math.cos(angle) / math.cos(math.radians(p)),
                math.degrees(angle),
            )
        )
    beside = pd.DataFrame(rows, index=ids, columns=["latitude", "longitude", "bearing"])
    found = snap_sensors(beside, roads, 30).table
    right = found["segment"] == found["sensor"]
    assert right.mean() > 0.9  # the rest lie nearer to a parallel road, or on two that share their shape
    assert found["distance"][right].to_numpy() == pytest.approx(8, abs=0.1)
    sensed = City.from_road_network(readings, beside, roads, path_limit=2000)
    assert sensed.num_nodes == len(ids)
    assert sensed.num_edges > len(ids)
    sensed = replace(sensed, node_ids=tuple(f"loop {i}" for i in range(len(ids))))  # not taken for segments
    seen = imread(plot_city(sensed, tmp_path / "sensed.png", roads=roads))
    dots = next(found for found in figures[-1].axes[0].collections if found.get_zorder() == 4)  # on top of all
    assert dots.get_offsets()[:, ::-1].tolist() == beside[["latitude", "longitude"]].to_numpy().tolist()
    assert dots.get_array().tolist() == pytest.approx(readings.mean().tolist(), rel=1e-5)
    assert coloured_pixels(seen, dots) > 1000


def coloured_pixels(picture: np.ndarray, drawn: Collection) -> int:
    """How many pixels on the axes have exactly one of the colours in which readings are drawn."""
    box = drawn.axes.get_window_extent()
    scale = picture.shape[0] / drawn.figure.bbox.height
    inside = np.round(picture[:, : int(box.x1 * scale), :3] * 255).astype(int) @ [65536, 256, 1]
    colours = np.round(drawn.to_rgba(drawn.get_array())[:, :3] * 255).astype(int) @ [65536, 256, 1]
    return int(np.isin(inside, colours).sum())


def test_the_picture_of_the_docs_is_what_its_script_draws(west_oakland, tmp_path):
    docs = Path(__file__).resolve().parents[2] / "docs"
    script = runpy.run_path(str(docs / "west_oakland.py"))
    script["main"](west_oakland, tmp_path / "drawn.png")
    drawn, shown = imread(tmp_path / "drawn.png"), imread(docs / "west_oakland.png")
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 0.02  # fonts may differ
