"""Node ids are the same text at every door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from tsjt_pyg import City
from tsjt_pyg.data.ids import check_ids

SPELLED = [(773869, 767541), (773869.0, 767541.0), ("773869", "767541"), ("773869.0", " 767541 ")]
PLACES = pd.DataFrame({"latitude": [52.0, 52.0], "longitude": [4.001, 4.009]})


def readings(ids: tuple[object, ...]) -> pd.DataFrame:
    """The second node first."""
    return pd.DataFrame(np.arange(1.0, 9).reshape(4, 2), columns=list(ids[::-1]))


def streets(ids: tuple[object, ...], key: object = 0) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    for node, longitude in zip(ids, (4.0, 4.01), strict=True):
        graph.add_node(node, x=longitude, y=52.0)
    graph.add_edge(*ids, key=key)
    return graph


def from_distances(ours: tuple[object, ...], theirs: tuple[object, ...]) -> City:
    table = pd.DataFrame({"from": [theirs[0]], "to": [theirs[1]], "cost": [100.0]})
    return City.from_distances(readings(ours), table, sigma=1000.0)


def from_a_matrix(ours: tuple[object, ...], theirs: tuple[object, ...]) -> City:
    matrix = pd.DataFrame([[0.0, 1.0], [0.0, 0.0]], index=list(theirs), columns=list(theirs))
    return City.from_adjacency(readings(ours), matrix)


DOORS: list[Callable[..., City]] = [
    from_distances,
    from_a_matrix,
    lambda ours, theirs: City.from_positions(readings(ours), PLACES.set_axis(list(theirs), axis=0), k=1),
    lambda ours, theirs: City.from_networkx(readings(ours), streets(theirs)),
    lambda ours, theirs: City.from_osmnx(readings(ours), streets(theirs)),
    lambda ours, theirs: City.from_road_network(
        readings(ours), PLACES.assign(node=list(theirs)), streets(("a", "b")), snap_limit=10
    ),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ours", SPELLED)
@pytest.mark.parametrize("theirs", SPELLED)
def test_an_id_is_one_id_however_it_is_spelled(door, ours, theirs):
    city = door(ours, theirs)
    assert city.node_ids == ("767541", "773869")
    assert city.edge_index.T.tolist()[-1] == [1, 0]
    assert city.keep_nodes([ours[0]]).node_ids == ("773869",)
    assert city.drop_nodes([theirs[0]]).node_ids == ("767541",)


def test_a_city_made_by_hand_has_them_too(make_city):
    city = replace(make_city(num_nodes=2), node_ids=(773869.0, "767541.0"))
    assert city.node_ids == ("773869", "767541")


@pytest.mark.parametrize("ours", SPELLED)
@pytest.mark.parametrize("door", [City.from_osmnx, City.from_networkx])
def test_roads_go_by_osmnxs_own_labels(door, ours):
    graph = streets((773869, 767541))
    graph.add_edge(767541, 773869, key=0)
    labels = [(ours[1], ours[0], 0), (ours[0], ours[1], 0)]
    values = np.arange(1.0, 9).reshape(4, 2)
    for columns in (
        pd.MultiIndex.from_tuples(labels, names=["u", "v", "key"]),
        pd.Index(labels, tupleize_cols=False),
        ["767541-773869-0", "773869-767541-0"],
    ):
        city = door(pd.DataFrame(values, columns=columns), graph, nodes="segments")
        assert city.node_ids == ("767541-773869-0", "773869-767541-0")
        assert city.readings[0, :, 0].tolist() == [1.0, 2.0]
    city = door(values, graph, nodes="segments", node_ids=labels)
    assert city.node_ids == ("767541-773869-0", "773869-767541-0")


def test_osmnxs_table_of_roads_labels_readings():
    osmnx = pytest.importorskip("osmnx")
    graph = streets((773869, 767541))
    graph.graph["crs"] = "epsg:4326"
    nx.set_edge_attributes(graph, 700.0, "length")
    roads = osmnx.graph_to_gdfs(graph, nodes=False, fill_edge_geometry=True)
    city = City.from_osmnx(pd.DataFrame([[30.0]], columns=roads.index), graph, nodes="segments")
    assert city.node_ids == ("773869-767541-0",)
    nodes = osmnx.graph_to_gdfs(graph, edges=False)  # its index is osmid, its places x and y
    at = City.from_positions(readings((773869, 767541)), nodes, k=1)
    assert at.pos.tolist() == [[52.0, 4.01], [52.0, 4.0]]


def test_ids_become_unique_text():
    assert check_ids([3, "a", 2.5], 3) == ("3", "a", "2.5")
    with pytest.raises(ValueError, match="graph: '1' occurs more than once; node ids must be unique"):
        check_ids([1, "1"], 2, "graph")
    for nothing in (7, "ab", None):
        with pytest.raises(ValueError, match="node_ids: expected a list of ids, one for each node, found"):
            check_ids(nothing, 2)
