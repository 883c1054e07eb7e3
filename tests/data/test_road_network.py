"""Roads of networkx graphs, checked against networkx's own algorithms and formulas written here."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from shapely import LineString
from street_graphs import osm_like

from tsjt_pyg.data import Roads, graph, road_network
from tsjt_pyg.data.graph import Edges
from tsjt_pyg.data.road_network import (
    great_circle,
    middle,
    road_network_from_networkx,
    roads_from_networkx,
    without_isolated,
)

IDS = ("a", "b", "c")


def as_dict(edges: Edges) -> dict[tuple[int, int], float]:
    return dict(zip(map(tuple, edges.edge_index.T.tolist()), edges.edge_weight.tolist(), strict=True))


def haversine(a: tuple[float, float], b: tuple[float, float]) -> float:
    (p, q), (s, t) = (map(math.radians, place) for place in (a, b))
    h = math.sin((s - p) / 2) ** 2 + math.cos(p) * math.cos(s) * math.sin((t - q) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(h))


def test_it_is_still_found_where_it_was():
    assert graph.road_network_from_networkx is road_network_from_networkx
    assert graph.RoadNetwork is road_network.RoadNetwork
    with pytest.raises(AttributeError, match="has no attribute 'roads'"):
        _ = graph.roads


# --- City.from_networkx's simple view


def test_an_undirected_road_goes_both_ways():
    graph = nx.Graph()
    graph.add_edge("a", "b", length=100)
    graph.add_edge("b", "c", length=300)
    rms = math.sqrt((100**2 + 300**2) / 2)
    near, far = (math.exp(-((d / rms) ** 2)) for d in (100, 300))
    network = road_network_from_networkx(graph)
    assert network.node_ids == IDS
    expected = {(0, 1): near, (1, 0): near, (1, 2): far, (2, 1): far}
    assert as_dict(network.edges) == pytest.approx(expected, rel=1e-6)
    assert network.pos is None


def test_of_parallel_roads_the_shortest_counts_and_loops_do_not():
    graph = nx.MultiDiGraph()
    graph.add_edge(1, 2, metres=500)
    graph.add_edge(1, 2, metres=100)
    graph.add_edge(2, 2, metres=80)
    graph.add_edge(2, 3, metres=100)
    network = road_network_from_networkx(graph, length="metres", sigma=100)
    assert as_dict(network.edges) == pytest.approx({(0, 1): math.exp(-1), (1, 2): math.exp(-1)}, rel=1e-6)


def test_roads_without_lengths_weigh_one():
    assert set(as_dict(road_network_from_networkx(nx.path_graph(3)).edges).values()) == {1.0}


def test_a_default_length_that_no_edge_has_is_said_where_another_may_be_meant(caplog):
    graph = nx.Graph()
    graph.add_edge("a", "b", len_m="120.5", kind="street", open=True)
    assert set(as_dict(road_network_from_networkx(graph).edges).values()) == {1.0}
    assert caplog.messages == [
        "no edge of the graph has 'length' (found: 'len_m'); all weights are 1; say which with length="
    ]
    caplog.clear()
    road_network_from_networkx(nx.path_graph(3))
    road_network_from_networkx(graph, length="len_m")
    road_network_from_networkx(nx.Graph([("a", "b", {"kind": "street"})]))
    road_network_from_networkx(nx.empty_graph(2), length="len_m")
    assert not caplog.messages


@pytest.mark.parametrize("length", ["len", "length", ""])
def test_a_length_that_was_asked_for_has_to_be_there(length):
    graph = nx.Graph()
    graph.add_edge("a", "b", len_m=120)
    graph.add_edge("b", "c", len_m=130, kind="street")
    message = f"length: no edge of the graph has '{length}', found: 'kind', 'len_m'; name the one with the metres"
    with pytest.raises(ValueError, match=message):
        road_network_from_networkx(graph, length=length)
    with pytest.raises(ValueError, match="found: edges without attributes"):
        road_network_from_networkx(nx.path_graph(2), length=length)


def test_segments_are_joined_where_one_may_turn():
    graph = nx.DiGraph()
    graph.add_edge("a", "b", length=100)
    graph.add_edge("b", "a", length=100)
    graph.add_edge("b", "c", length=200)
    network = road_network_from_networkx(graph, "segments", sigma=150)
    assert network.node_ids == ("a-b", "b-a", "b-c")
    assert as_dict(network.edges) == pytest.approx({(0, 2): math.exp(-1)}, rel=1e-6)  # and no U-turn a-b, b-a


def test_segments_of_an_osmnx_like_graph():
    graph = nx.MultiDiGraph(crs="epsg:4326")  # osmid as id, x = longitude, y = latitude, length in metres
    for osmid, x, y in [(53, -122.30, 37.80), (54, -122.29, 37.80), (55, -122.29, 37.81)]:
        graph.add_node(osmid, x=x, y=y, street_count=3)
    graph.add_edge(53, 54, osmid=1, highway="residential", oneway=True, length=880.0)
    graph.add_edge(54, 55, osmid=[2, 3], highway="residential", oneway=False, length=1112.0)
    graph.add_edge(55, 54, osmid=[2, 3], highway="residential", oneway=False, length=1112.0)
    junctions = road_network_from_networkx(graph)
    assert junctions.node_ids == ("53", "54", "55")
    assert junctions.pos.tolist() == [[37.80, -122.30], [37.80, -122.29], [37.81, -122.29]]
    segments = road_network_from_networkx(graph, "segments")
    assert segments.node_ids == ("53-54-0", "54-55-0", "55-54-0")
    assert set(as_dict(segments.edges)) == {(0, 1)}
    assert segments.pos.numpy() == pytest.approx(np.array([[37.80, -122.295], [37.805, -122.29], [37.805, -122.29]]))


@pytest.mark.parametrize("x", [500_000.0, None])
def test_places_that_are_not_degrees_are_left_out(x):
    graph = nx.path_graph(2)
    graph.nodes[0].update(x=0.0, y=0.0)
    if x is not None:
        graph.nodes[1].update(x=x, y=0.0)
    assert road_network_from_networkx(graph).pos is None


def lengths(*values: object) -> nx.Graph:
    graph = nx.path_graph(len(values) + 1)
    for i, value in enumerate(values):
        if value is not None:
            graph.edges[i, i + 1]["length"] = value
    return graph


@pytest.mark.parametrize(
    ("graph", "nodes", "message"),
    [
        (nx.Graph(), "junctions", "graph: it has no junctions"),
        (nx.empty_graph(3), "segments", "graph: it has no segments"),
        (nx.path_graph(2), "roads", "nodes: expected 'junctions' or 'segments', found 'roads'"),
        (
            lengths(100, None),
            "junctions",
            "graph: road '1-2' has length = None; expected a positive number of metres on",
        ),
        (lengths(100, 0), "segments", "road '1-2' has length = 0"),
        (lengths(np.inf), "junctions", "road '0-1' has length = inf"),
        (nx.Graph([(1, "1")]), "junctions", "graph: '1' occurs more than once; node ids must be unique"),
        (nx.DiGraph([("a", "b-c"), ("a-b", "c")]), "segments", "graph: 'a-b-c' occurs more than once"),
    ],
)
def test_messages_name_the_road(graph, nodes, message):
    with pytest.raises(ValueError, match=message):
        road_network_from_networkx(graph, nodes)


# --- raw OSMnx graphs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("u_turns", [False, True])
def test_turns_are_those_of_the_line_graph(seed, u_turns):
    found = osm_like(seed)
    roads = roads_from_networkx(found)
    expected = {
        ("-".join(map(str, i)), "-".join(map(str, j)))
        for i, j in nx.line_graph(found).edges()
        if i != j and (u_turns or i[0] != j[1])
    }
    source, target = roads.turns(u_turns)
    pairs = [(roads.segment_ids[i], roads.segment_ids[j]) for i, j in zip(source, target, strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strongly", [False, True])
def test_the_largest_component_is_networkxs(seed, strongly):
    found = osm_like(seed, junctions=25, edges=16)
    parts = nx.strongly_connected_components(found) if strongly else nx.weakly_connected_components(found)
    parts = [{str(node) for node in part} for part in parts]
    roads = roads_from_networkx(found).largest_component(strongly)
    assert set(roads.junction_ids) in [part for part in parts if len(part) == max(map(len, parts))]
    inside = {int(node) for node in roads.junction_ids}
    assert set(roads.segment_ids) == {f"{u}-{v}-{k}" for u, v, k in found.edges(keys=True) if {u, v} <= inside}
    for i, segment in enumerate(roads.segment_ids):
        ends = (roads.junction_ids[roads.start[i]], roads.junction_ids[roads.end[i]])
        assert segment.split("-")[:2] == list(ends)


def test_of_two_largest_components_the_one_with_the_smallest_id_whatever_the_order():
    edges = [("c", "d"), ("a", "b")]
    for some in (edges, edges[::-1]):
        assert set(roads_from_networkx(nx.DiGraph(some)).largest_component().junction_ids) == {"a", "b"}


def test_shapes_lengths_and_middles():
    found = nx.MultiDiGraph()
    found.add_node("a", x=4.0, y=52.0)
    found.add_node("b", x=4.01, y=52.0)
    found.add_edge("a", "b", geometry=LineString([(4.0, 52.0), (4.005, 52.01), (4.01, 52.0)]))
    found.add_edge("b", "a", geometry="LINESTRING (4.01 52, 4.0 52)", length="700.5")
    found.add_edge("a", "a", length=0)
    roads = roads_from_networkx(found)
    bend = haversine((52.0, 4.0), (52.01, 4.005))
    order = [roads.segment_ids.index(name) for name in ("a-b-0", "b-a-0", "a-a-0")]
    assert roads.length[order] == pytest.approx([2 * bend, 700.5, 0.0])
    assert roads.shapes[order[0]].tolist() == [[52.0, 4.0], [52.01, 4.005], [52.0, 4.01]]
    assert roads.shapes[order[1]].tolist() == [[52.0, 4.01], [52.0, 4.0]]
    pos = roads.network("segments").pos[order].numpy()
    assert pos == pytest.approx(np.array([[52.01, 4.005], [52.0, 4.005], [52.0, 4.0]]))
    assert repr(roads) == f"Roads(2 junctions, 3 segments, {(2 * bend + 700.5) / 1000:.1f} km)"


def test_an_undirected_roads_shape_is_turned_for_the_way_back():
    found = nx.Graph()
    found.add_node("a", x=4.0, y=52.0)
    found.add_node("b", x=4.01, y=52.0)
    found.add_edge("a", "b", geometry=LineString([(4.01, 52.0), (4.008, 52.01), (4.0, 52.0)]))
    roads = roads_from_networkx(found)
    for i, name in enumerate(roads.segment_ids):
        assert roads.shapes[i][0].tolist() == ([52.0, 4.0] if name == "a-b" else [52.0, 4.01])


def test_great_circle_and_middle_over_the_date_line():
    a, b = np.array([64.0, 179.9]), np.array([64.0, -179.9])
    assert great_circle(a, b) == pytest.approx(haversine((64.0, 179.9), (64.0, -179.9)))
    assert middle(np.array([a, b])).tolist() == pytest.approx([64.0, -180.0])
    assert middle(np.array([a, a])).tolist() == pytest.approx(a.tolist())


def test_of_parallel_roads_the_shorter_or_the_faster_counts():
    found = nx.MultiDiGraph()
    found.add_edge("a", "b", length=100, maxspeed="10")
    found.add_edge("a", "b", length=200, maxspeed="100")
    roads = roads_from_networkx(found)
    assert as_dict(roads.network(kernel="none").edges) == {(0, 1): 100.0}
    assert as_dict(roads.network(weight="travel_time", kernel="none").edges) == pytest.approx({(0, 1): 7.2})
    assert roads.network("segments").edges.edge_index.shape == (2, 0)


def test_weights_of_every_kind():
    found = nx.MultiDiGraph()
    found.add_edge("a", "b", length=100, maxspeed=36)
    found.add_edge("b", "c", length=300, maxspeed=36)
    roads = roads_from_networkx(found)
    for weight, cost in (("length", [100, 300]), ("travel_time", [10, 30])):
        rms = math.sqrt(sum(c * c for c in cost) / 2)
        kernel = {(i, i + 1): math.exp(-((c / rms) ** 2)) for i, c in enumerate(cost)}
        assert as_dict(roads.network(weight=weight).edges) == pytest.approx(kernel)
        assert as_dict(roads.network(weight=weight, kernel="none").edges) == pytest.approx(
            {(0, 1): cost[0], (1, 2): cost[1]}
        )
        turn = sum(cost) / 2
        assert as_dict(roads.network("segments", weight, "none").edges) == pytest.approx({(0, 1): turn})
        assert as_dict(roads.network("segments", weight, sigma=turn).edges) == pytest.approx({(0, 1): math.exp(-1)})


def test_one_way_streets_both_ways():
    found = nx.MultiDiGraph()
    found.add_node("a", x=4.0, y=52.0)
    found.add_node("b", x=4.01, y=52.0)
    bent = [(4.0, 52.0), (4.005, 52.01), (4.01, 52.0)]
    found.add_edge("a", "b", length=684.0)
    found.add_edge("b", "a", length=684.0)  # the way back of the first
    found.add_edge("a", "b", length=2300.0, geometry=LineString(bent))  # one-way
    found.add_edge("a", "a", length=50.0)
    roads = roads_from_networkx(found).both_ways()
    assert set(roads.segment_ids) == {"a-b-0", "a-b-1", "a-a-0", "b-a-0", "b-a-1"}
    new = roads.segment_ids.index("b-a-1")
    assert roads.shapes[new].tolist() == [[y, x] for x, y in bent[::-1]]
    assert (roads.junction_ids[roads.start[new]], roads.junction_ids[roads.end[new]]) == ("b", "a")
    assert roads.length[new] == 2300.0
    assert roads.both_ways().segment_ids == roads.segment_ids
    assert set(roads_from_networkx(nx.DiGraph([("a", "b")])).both_ways().segment_ids) == {"a-b", "b-a"}


def test_isolated_nodes_go_when_asked():
    found = nx.DiGraph([("a", "b"), ("d", "d")])
    found.add_node("c")
    network = without_isolated(roads_from_networkx(found).network())
    assert network.node_ids == ("a", "b")
    assert as_dict(network.edges) == {(0, 1): 1.0}
    with pytest.raises(ValueError, match="isolated: no edge joins any of the 1 nodes, so 'drop' would leave none"):
        without_isolated(roads_from_networkx(nx.DiGraph([("d", "d")])).network())


def place(**edge: object) -> nx.MultiDiGraph:
    found = nx.MultiDiGraph()
    found.add_node("a", x=4.0, y=52.0)
    found.add_node("b", x=4.01, y=52.0)
    found.add_edge("a", "b", **edge)
    return found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: roads_from_networkx(place(length=-3)),
            "road 'a-b-0' has length = -3; expected a number of metres, not neg",
        ),
        (lambda: roads_from_networkx(place(length="long")), "road 'a-b-0' has length = long; expected a number"),
        (lambda: roads_from_networkx(place(length=[1, 2])), r"road 'a-b-0' has length = \[1, 2\]"),
        (lambda: roads_from_networkx(place(length=np.nan)), "length = nan"),
        (
            lambda: roads_from_networkx(lengths(100, None)),
            "road '1-2' has no length, others have; give it to every edge",
        ),
        (
            lambda: roads_from_networkx(place(geometry="POINT (1 2)")),
            r"geometry = POINT \(1 2\); expected a shapely LineS",
        ),
        (lambda: roads_from_networkx(place(geometry="LINESTRING (1 2)")), "expected a shapely LineString"),
        (lambda: roads_from_networkx(place(geometry=7)), "road 'a-b-0' has geometry = 7"),
        (lambda: Roads.network(roads_from_networkx(place()), "zones"), "nodes: expected 'junctions' or 'segments'"),
        (
            lambda: roads_from_networkx(place()).network(weight="gaussian"),
            "weight: expected 'length' or 'travel_time', fo",
        ),
        (
            lambda: roads_from_networkx(place()).network(kernel=None),
            "kernel: expected 'gaussian' or 'none', found None",
        ),
        (lambda: roads_from_networkx(nx.Graph()).network(), "graph: it has no junctions"),
        (lambda: roads_from_networkx(place()).network(sigma=-1), "sigma: expected a positive number"),
    ],
)
def test_messages_of_bad_roads(call, message):
    with pytest.raises(ValueError, match=message):
        call()
