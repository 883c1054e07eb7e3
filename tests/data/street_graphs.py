"""Graphs of streets for the tests."""

from __future__ import annotations

import networkx as nx
import numpy as np
from shapely import LineString


def osm_like(seed: int = 0, junctions: int = 12, edges: int = 30) -> nx.MultiDiGraph:
    """A graph as OSMnx gives it: parallel edges, loops, one-way streets, bends, lists."""
    rng = np.random.default_rng(seed)
    found = nx.MultiDiGraph(crs="epsg:4326", simplified=True)
    for i in range(junctions):
        found.add_node(1000 + i, x=4.3 + rng.uniform(0, 0.02), y=52 + rng.uniform(0, 0.01), street_count=3)
    for _ in range(edges):
        u, v = (int(1000 + i) for i in rng.integers(0, junctions, 2))
        data = {"length": float(rng.uniform(50, 500)), "highway": "residential", "osmid": 7}
        if rng.random() < 0.3:
            ends = [(found.nodes[n]["x"], found.nodes[n]["y"]) for n in (u, v)]
            data["geometry"] = LineString([ends[0], (4.31, 52.005), ends[1]])
        found.add_edge(u, v, **data)
        if rng.random() < 0.5:
            back = dict(data)
            if "geometry" in back:
                back["geometry"] = LineString(list(back["geometry"].coords)[::-1])
            found.add_edge(v, u, **back)
    return found
