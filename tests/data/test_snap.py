"""Sensors on roads, against brute force: dense points along roads, and networkx's shortest paths."""

from __future__ import annotations

import dataclasses
import logging
import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from street_graphs import osm_like

from tsjt_pyg.data import Snapped, snap_sensors
from tsjt_pyg.data.road_network import Roads, great_circle, roads_from_networkx
from tsjt_pyg.data.snap import path_costs

METRE = 1 / 111_195.08  # degrees of latitude


def street(*places: tuple[float, float], both: bool = False) -> Roads:
    """Junctions 0, 1, … at (latitude, longitude), joined in a row."""
    graph = nx.MultiDiGraph()
    for i, (latitude, longitude) in enumerate(places):
        graph.add_node(i, x=longitude, y=latitude)
    for i in range(len(places) - 1):
        graph.add_edge(i, i + 1)
        if both:
            graph.add_edge(i + 1, i)
    return roads_from_networkx(graph)


def sensors(*places: tuple[float, ...], ids: str = "abcdefgh") -> pd.DataFrame:
    columns = ["latitude", "longitude", "bearing"][: len(places[0])]
    return pd.DataFrame(places, index=list(ids[: len(places)]), columns=columns)


def by_brute_force(roads: Roads, place: np.ndarray, parts: int = 4000) -> np.ndarray:
    """Distance ``[S]`` from a place to the nearest of many points along each segment."""
    t = np.linspace(0, 1, parts)[:, None]
    return np.array(
        [min(great_circle(place, a * (1 - t) + b * t).min() for a, b in pairwise(shape)) for shape in roads.shapes]
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_segment_is_that_of_brute_force(seed):
    roads = roads_from_networkx(osm_like(seed))
    rng = np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(51.995, 52.015, 25), rng.uniform(4.29, 4.33, 25)])
    table = snap_sensors(pd.DataFrame(places, columns=["latitude", "longitude"]), roads, 150).table
    for place, row in zip(places, table.itertuples(), strict=True):
        distances = by_brute_force(roads, place)
        # Points 0.5 m apart, and a road straight in degrees is within centimetres of a great circle at this size.
        assert row.distance == pytest.approx(distances.min(), abs=0.5)
        assert distances[roads.segment_ids.index(row.segment)] == pytest.approx(distances.min(), abs=0.5)
        assert row.matched == (row.distance <= 150)
        ties = [name for name, d in zip(roads.segment_ids, distances, strict=True) if d <= distances.min() + 1e-3]
        assert row.segment == min(ties) or row.ambiguous


def test_distances_and_places_along_a_bent_road():
    bend = nx.MultiDiGraph()
    bend.add_node("a", x=0.0, y=0.0)
    bend.add_node("b", x=0.0, y=0.0)
    # 100 m east, 300 m north, on the equator, where degrees are as long in both directions.
    shape = "LINESTRING (0 0, {0} 0, {0} {1})".format(100 * METRE, 300 * METRE)
    bend.nodes["b"].update(x=100 * METRE, y=300 * METRE)
    bend.add_edge("a", "b", geometry=shape)
    found = snap_sensors(
        sensors(
            (20 * METRE, 50 * METRE),  # beside the middle of the first piece
            (150 * METRE, 110 * METRE),  # beside the second
            (-30 * METRE, -40 * METRE),  # behind the start
            (0.0, 100 * METRE),  # on the bend
        ),
        roads_from_networkx(bend),
        limit=60,
    )
    assert found.table["distance"].tolist() == pytest.approx([20, 10, 50, 0], abs=0.01)
    assert found.table["along"].tolist() == pytest.approx([50 / 400, 250 / 400, 0, 100 / 400], abs=1e-4)
    assert found.table["matched"].all()
    assert found.table["latitude"].tolist() == [20 * METRE, 150 * METRE, -30 * METRE, 0.0]


def test_long_roads_are_found_from_their_middle():
    found = snap_sensors(sensors((10.0001, 20.5)), street((10.0, 20.0), (10.0, 21.0)), limit=300)
    # 110 km of great circle bulge 240 m towards the pole, as every straight road on a sphere does.
    bulge = math.degrees(math.atan(math.tan(math.radians(10)) / math.cos(math.radians(0.5)))) - 10
    assert found.table["distance"][0] == pytest.approx(abs(bulge - 0.0001) / METRE, rel=1e-3)
    assert found.table["along"][0] == pytest.approx(0.5, abs=1e-6)


def test_over_the_date_line():
    found = snap_sensors(sensors((0.0, -179.9999), (0.0001, 180.0)), street((0.0, 179.99), (0.0, -179.99)), limit=20)
    assert found.table["distance"].tolist() == pytest.approx([0, 0.0001 / METRE], abs=1e-3)
    assert found.table["along"].tolist() == pytest.approx([0.505, 0.5])


def test_a_bearing_chooses_the_direction():
    roads = street((52.0, 4.0), (52.01, 4.0), both=True)  # to the north and back
    place = (52.005, 4.0001)
    found = snap_sensors(sensors((*place, 10), (*place, 350), (*place, 100), (*place, -170), (*place, np.nan)), roads)
    assert found.table["segment"].tolist() == ["0-1-0", "0-1-0", "1-0-0", "1-0-0", "0-1-0"]
    assert found.table["ambiguous"].tolist() == [False] * 4 + [True]
    assert found.table["distance"].tolist() == pytest.approx([0.0001 * math.cos(math.radians(52.005)) / METRE] * 5)


def test_a_bearing_reaches_over_to_the_other_carriageway():
    graph = nx.MultiDiGraph()
    for node, x, y in [("a", 4.0, 52.0), ("b", 4.0, 52.01), ("c", 4.0003, 52.01), ("d", 4.0003, 52.0)]:
        graph.add_node(node, x=x, y=y)
    graph.add_edges_from([("a", "b"), ("c", "d")])
    table = sensors((52.005, 4.00005, 180.0), (52.005, 4.00005, 0.0))
    found = snap_sensors(table, roads_from_networkx(graph), 50).table
    assert found["segment"].tolist() == ["c-d-0", "a-b-0"]
    one_way = snap_sensors(table, street((52.0, 4.0), (52.01, 4.0)), 50).table
    assert one_way["matched"].tolist() == [False, True]
    assert one_way["distance"].tolist() == pytest.approx([one_way["distance"][1]] * 2)


def test_what_was_not_matched_is_listed_with_its_distance(caplog):
    roads = street((52.0, 4.0), (52.01, 4.0))
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        found = snap_sensors(sensors((52.005, 4.01), (52.005, 4.0), (52.005, 4.002)), roads, 50)
    metres = [0.01 * math.cos(math.radians(52.005)) / METRE, 0.002 * math.cos(math.radians(52.005)) / METRE]
    assert found.unmatched["sensor"].tolist() == ["c", "a"]
    assert found.unmatched["distance"].tolist() == pytest.approx(metres[::-1], rel=1e-4)
    assert found.matched["sensor"].tolist() == ["b"]
    assert repr(found) == (
        "1 of 3 sensors lie within 50 m of a road, on 1 segments; half of them within 0.0 m\n"
        f"too far: 2: 'c' ({metres[1]:.0f} m), 'a' ({metres[0]:.0f} m)"
    )
    assert repr(found) in caplog.text
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.limit = 3


def test_ten_thousand_sensors_in_one_call():
    side = 60
    grid = nx.relabel_nodes(nx.grid_2d_graph(side, side), lambda node: node[0] * side + node[1])
    for node in grid:
        grid.nodes[node].update(y=52 + (node // side) * 1e-3, x=4 + (node % side) * 1e-3)
    rng = np.random.default_rng(0)
    places = np.column_stack([rng.uniform(52, 52.059, 10_000), rng.uniform(4, 4.059, 10_000)])
    found = snap_sensors(pd.DataFrame(places, columns=["latitude", "longitude"]), roads_from_networkx(grid), 100).table
    rows, columns = (places - [52, 4]).T / 1e-3
    north = np.abs(rows - rows.round()) * 1e-3 / METRE
    east = np.abs(columns - columns.round()) * 1e-3 / METRE * np.cos(np.radians(places[:, 0]))
    np.testing.assert_allclose(found["distance"], np.minimum(north, east), atol=0.02)
    assert found["ambiguous"].all()


ROAD = street((52.0, 4.0), (52.01, 4.0))
HERE = (52.005, 4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: snap_sensors(sensors(HERE), ROAD, 0), "limit: expected a positive number of metres, found 0"),
        (lambda: snap_sensors(sensors(HERE), ROAD, np.inf), "limit: expected a positive number of metres, found inf"),
        (lambda: snap_sensors(sensors(HERE).iloc[:0], ROAD), "sensors: the table has no rows"),
        (lambda: snap_sensors(sensors(HERE, HERE, ids="aa"), ROAD), "sensors: 'a' occurs more than once"),
        (
            lambda: snap_sensors(sensors(HERE).rename(columns={"latitude": "north"}), ROAD),
            r"sensors: column 'latitude' is absent, found \['north', 'longitude'\]; .* latitude, lat, y",
        ),
        (lambda: snap_sensors(sensors((4.0, np.nan)), ROAD), r"sensors: node 'a' is at \[4.0, nan\]"),
        (
            lambda: snap_sensors(sensors((-122.0, 37.0)), ROAD),
            r"sensors: node 'a' is at \[-122.0, 37.0\].*in that order",
        ),
        (
            lambda: snap_sensors(sensors((*HERE, 400.0)), ROAD),
            "sensors: the bearing of 'a' is '400.0'; expected degrees",
        ),
        (
            lambda: snap_sensors(sensors(HERE).assign(bearing="north"), ROAD),
            "sensors: the bearing of 'a' is 'north'; expected degrees clockwise from north",
        ),
        (
            lambda: snap_sensors(sensors(HERE), roads_from_networkx(nx.path_graph(2))),
            "graph: sensors are snapped by place, but not every node has x and y",
        ),
        (lambda: snap_sensors(sensors(HERE), street(HERE)), "graph: it has no segments to snap sensors to"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sensors_are_a_table():
    with pytest.raises(TypeError, match="sensors: expected a table indexed by sensor id, found list"):
        snap_sensors([HERE], ROAD)


# --- ways between sensors


def by_networkx(graph: nx.MultiDiGraph, found: Snapped, limit: float, u_turns: bool) -> dict[tuple[str, str], float]:
    """Ways between sensors on the line graph with a node put in at each sensor's segment."""
    names = {f"{u}-{v}-{k}": (u, v, k) for u, v, k in graph.edges(keys=True)}
    length = {name: graph.edges[edge]["length"] for name, edge in names.items()}
    turns = nx.DiGraph()
    turns.add_nodes_from(names)
    for a, (u, v, _) in names.items():
        for b, (s, t, _) in names.items():
            if v == s and a != b and (u_turns or t != u):
                turns.add_edge(a, b, cost=length[b])
    ways = {}
    for i in found.table.itertuples():
        start = (1 - i.along) * length[i.segment]
        for j in found.table.itertuples():
            done = j.along * length[j.segment]
            options = [done - i.along * length[i.segment]] if i.segment == j.segment and j.along >= i.along else []
            # All successors of i's segment, then the shortest way to the end of j's.
            for first in turns.successors(i.segment):
                if nx.has_path(turns, first, j.segment):
                    whole = length[first] + nx.dijkstra_path_length(turns, first, j.segment, weight="cost")
                    options.append(start + whole - length[j.segment] + done)
            if i.sensor != j.sensor and options and min(options) <= limit:
                ways[i.sensor, j.sensor] = min(options)
    return ways


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("u_turns", [False, True])
def test_ways_are_networkxs_shortest_paths(seed, u_turns):
    graph = osm_like(seed)
    graph.remove_edges_from([edge for edge in graph.edges(keys=True) if edge[0] == edge[1]][1:])
    roads = roads_from_networkx(graph)
    rng = np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(52, 52.01, 20), rng.uniform(4.3, 4.32, 20)])
    table = pd.DataFrame(places, index=[f"s{i}" for i in range(20)], columns=["latitude", "longitude"])
    found = snap_sensors(table, roads, 5000)
    assert found.table["segment"].duplicated().any()
    segment = found.table["segment"].map(roads.segment_ids.index).to_numpy()
    i, j, cost = path_costs(roads, segment, found.table["along"].to_numpy(), roads.length, 900, u_turns)
    ways = {(f"s{a}", f"s{b}"): c for a, b, c in zip(i, j, cost, strict=True)}
    assert ways == pytest.approx(by_networkx(graph, found, 900, u_turns), abs=1e-5)
