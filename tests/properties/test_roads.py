"""Laws of road networks: no order matters, and nothing is nearer than the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsjt_pyg import City
from tsjt_pyg.data import snap_sensors
from tsjt_pyg.data.road_network import great_circle, roads_from_networkx


@dataclass
class Streets:
    """Places of junctions, roads between them, and a seed for everything else."""

    places: list[tuple[float, float]]
    roads: list[tuple[int, int, float]]
    seed: int

    def graph(self, order: np.random.Generator | None = None) -> nx.MultiDiGraph:
        graph = nx.MultiDiGraph()
        nodes, roads = range(len(self.places)), [(*road, key) for key, road in enumerate(self.roads)]
        if order is not None:
            nodes, roads = order.permutation(nodes), [roads[i] for i in order.permutation(len(roads))]
        for node in nodes:
            graph.add_node(int(node), y=self.places[node][0], x=self.places[node][1])
        for u, v, length, key in roads:
            graph.add_edge(u, v, key, length=length, highway="residential")
        return graph


@st.composite
def streets(draw: st.DrawFn) -> Streets:
    count = draw(st.integers(2, 8))
    # Degrees with five digits, so that distances of different roads are not alike in the last digit only.
    degree = st.integers(0, 2000).map(lambda n: n * 1e-5)
    places = draw(st.lists(st.tuples(degree.map(lambda d: 48 + d), degree), min_size=count, max_size=count))
    node = st.integers(0, count - 1)
    roads = draw(st.lists(st.tuples(node, node, st.integers(1, 900).map(float)), min_size=1, max_size=16))
    return Streets(places, roads, draw(st.integers(0, 2**32 - 1)))


def edges(city: City) -> dict[tuple[str, str], float]:
    pairs = ((city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist())
    return dict(zip(pairs, city.edge_weight.tolist(), strict=True))


def observed(city: City) -> dict[str, list[float | None]]:
    values = np.where(city.mask[..., 0], city.readings[..., 0], np.nan)
    return {node: values[:, i].tolist() for i, node in enumerate(city.node_ids)}


@given(streets(), st.sampled_from(["junctions", "segments"]), st.sampled_from(["length", "travel_time"]))
def test_the_order_of_nodes_roads_and_readings_does_not_matter(town, nodes, weight):
    rng = np.random.default_rng(town.seed)
    roads = roads_from_networkx(town.graph())
    ids = roads.junction_ids if nodes == "junctions" else roads.segment_ids
    readings = pd.DataFrame(rng.random((3, len(ids)), dtype=np.float32), columns=list(ids))
    shuffled = readings[[ids[i] for i in rng.permutation(len(ids))]]
    options = {"nodes": nodes, "weight": weight, "loops": "keep"}
    first = City.from_osmnx(readings, town.graph(), **options)
    second = City.from_osmnx(shuffled, town.graph(rng), **options)
    assert second.node_ids == tuple(shuffled.columns)
    assert edges(second) == pytest.approx(edges(first), rel=1e-5)
    assert observed(second) == observed(first)
    where = dict(zip(first.node_ids, first.pos.tolist(), strict=True))
    assert dict(zip(second.node_ids, second.pos.tolist(), strict=True)) == where
    for component in ("weak", "strong"):
        kept = [
            roads_from_networkx(g).largest_component(component == "strong") for g in (town.graph(), town.graph(rng))
        ]
        assert {*kept[0].segment_ids} == {*kept[1].segment_ids}
        assert {*kept[0].junction_ids} == {*kept[1].junction_ids}


@given(streets(), st.booleans())
def test_the_order_of_sensors_and_roads_does_not_matter(town, keep_all):
    rng = np.random.default_rng(town.seed)
    ids = [f"s{i}" for i in range(6)]
    places = np.column_stack([48 + rng.uniform(0, 0.02, 6), rng.uniform(0, 0.02, 6)])
    sensors = pd.DataFrame(places, index=ids, columns=["latitude", "longitude"])
    order = [ids[i] for i in rng.permutation(6)]
    tables = [
        snap_sensors(table, roads_from_networkx(graph), 5000).table.set_index("sensor").loc[ids]
        for table, graph in ((sensors, town.graph()), (sensors.loc[order], town.graph(rng)))
    ]
    pd.testing.assert_frame_equal(*tables)
    readings = pd.DataFrame(rng.random((3, 6), dtype=np.float32), columns=ids)
    options = {"snap_limit": 5000, "keep": "all" if keep_all else "sensors", "several": "mean", "kernel": "none"}
    first = City.from_road_network(readings, sensors, town.graph(), **options)
    second = City.from_road_network(readings[order], sensors.loc[order], town.graph(rng), **options)
    assert edges(second) == pytest.approx(edges(first), rel=1e-5, abs=1e-3)
    for node, values in observed(first).items():
        assert observed(second)[node] == pytest.approx(values, rel=1e-5, nan_ok=True)


@given(streets())
def test_no_point_of_any_road_is_nearer_than_the_segment_found(town):
    rng = np.random.default_rng(town.seed)
    roads = roads_from_networkx(town.graph())
    place = np.array([48 + rng.uniform(-0.01, 0.03), rng.uniform(-0.01, 0.03)])
    (row,) = snap_sensors(pd.DataFrame([place], columns=["latitude", "longitude"]), roads).table.itertuples()
    along = np.linspace(0, 1, 50)[:, None]
    on_roads = np.concatenate([shape[0] * (1 - along) + shape[1] * along for shape in roads.shapes])
    assert row.distance <= great_circle(place, on_roads).min() + 0.1
    shape = roads.shapes[roads.segment_ids.index(row.segment)]
    foot = shape[0] * (1 - row.along) + shape[1] * row.along
    assert great_circle(place, foot) == pytest.approx(row.distance, abs=0.1)


@given(streets())
def test_streets_both_ways_hang_together_strongly_where_they_did_weakly(town):
    roads = roads_from_networkx(town.graph())
    both = roads.both_ways()
    assert {*roads.segment_ids} <= {*both.segment_ids}
    assert len({*both.segment_ids}) == len(both.segment_ids)
    assert {*both.largest_component(True).junction_ids} == {*roads.largest_component(False).junction_ids}
    assert both.both_ways().segment_ids == both.segment_ids
