"""Roads of a city as networkx knows them, and the road networks of junctions or of segments that they make."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor

from .graph import EARTH_RADIUS, Edges, gaussian_kernel, make_edges
from .ids import check_ids
from .road_speeds import TAGS, travel_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    import networkx as nx

_log = logging.getLogger(__name__)

Nodes = Literal["junctions", "segments"]
Weight = Literal["length", "travel_time"]
Kernel = Literal["gaussian", "none"]


class RoadNetwork(NamedTuple):
    """Nodes as ids, with edges between them, and latitude and longitude ``[N, 2]`` where they are known."""

    node_ids: tuple[str, ...]
    edges: Edges
    pos: Tensor | None


def check_choice(argument: str, found: object, allowed: Iterable[str]) -> None:
    """Refuses what is not among ``allowed``."""
    allowed = list(allowed)
    if found not in allowed:
        raise ValueError(f"{argument}: expected {' or '.join(map(repr, allowed))}, found {found!r}")


@dataclass(frozen=True, eq=False, repr=False)
class Roads:
    """Road segments, each in one direction from junction to junction; a two-way road is two of them.

    Args:
        junction_ids: One unique id a junction.
        junction_pos: Latitude and longitude in degrees, float64 ``[J, 2]``, or ``None``.
        segment_ids: One unique id a segment: ``"u-v"``, or ``"u-v-key"`` in a multigraph.
        start: Junction in which each segment begins, int64 ``[S]``.
        end: Junction in which it ends, int64 ``[S]``.
        length: Metres, float64 ``[S]``; all NaN where the graph says nothing of them.
        shapes: Latitude and longitude along each segment, float64 ``[P, 2]`` each; none where ``junction_pos`` is.
        tags: What OpenStreetMap says of each segment's speed, as it came; see
            :func:`~tsjt_pyg.data.road_speeds.travel_seconds`.
    """

    junction_ids: tuple[str, ...]
    junction_pos: np.ndarray | None
    segment_ids: tuple[str, ...]
    start: np.ndarray
    end: np.ndarray
    length: np.ndarray
    shapes: tuple[np.ndarray, ...]
    tags: pd.DataFrame

    def __repr__(self) -> str:
        km = f", {np.nansum(self.length) / 1000:.1f} km" if np.isfinite(self.length).any() else ""
        return f"Roads({len(self.junction_ids)} junctions, {len(self.segment_ids)} segments{km})"

    def cost(self, weight: Weight = "length", speeds: Mapping[str, float] | None = None) -> np.ndarray:
        """What each segment costs, ``[S]``: metres (``"length"``) or seconds (``"travel_time"``).

        Args:
            weight: Which of the two.
            speeds: km/h by highway class; see :func:`~tsjt_pyg.data.road_speeds.travel_seconds`.
        """
        check_choice("weight", weight, ("length", "travel_time"))
        if weight == "length":
            return self.length
        return travel_seconds(self.length, self.tags, self.segment_ids, speeds)

    def turns(self, u_turns: bool = False) -> np.ndarray:
        """Pairs of segments of which one may turn from the first into the second, int64 ``[2, K]``.

        Args:
            u_turns: Whether one may turn back to the junction one comes from.
        """
        order = np.argsort(self.start, kind="stable")
        first = np.searchsorted(self.start[order], self.end, side="left")
        many = np.searchsorted(self.start[order], self.end, side="right") - first
        source = np.repeat(np.arange(len(self.end)), many)
        within = np.arange(len(source)) - np.repeat(np.cumsum(many) - many, many)
        target = order[np.repeat(first, many) + within]
        allowed = source != target
        if not u_turns:
            allowed &= self.end[target] != self.start[source]
        return np.stack([source[allowed], target[allowed]])

    def only(self, segments: np.ndarray, junctions: np.ndarray) -> Roads:
        """The roads with the given segments and junctions (bool, ``[S]`` and ``[J]``), in the same order."""
        number = np.cumsum(junctions) - 1
        return replace(
            self,
            junction_ids=tuple(np.array(self.junction_ids, dtype=object)[junctions]),
            junction_pos=None if self.junction_pos is None else self.junction_pos[junctions],
            segment_ids=tuple(np.array(self.segment_ids, dtype=object)[segments]),
            start=number[self.start[segments]],
            end=number[self.end[segments]],
            length=self.length[segments],
            shapes=tuple(self.shapes[i] for i in np.flatnonzero(segments)) if self.shapes else (),
            tags=self.tags[segments].reset_index(drop=True),
        )

    def largest_component(self, strongly: bool = False) -> Roads:
        """The largest part (by junctions) within which one can get from each junction to each other.

        Args:
            strongly: Whether only along one-way streets; otherwise directions do not count.
        """
        count = len(self.junction_ids)
        links = scipy.sparse.coo_array((np.ones(len(self.start)), (self.start, self.end)), shape=(count, count))
        connection = "strong" if strongly else "weak"
        _, part = scipy.sparse.csgraph.connected_components(links.tocsr(), directed=True, connection=connection)
        sizes = np.bincount(part)
        # Of two of one size, the one with the smallest id, whatever the order of the file.
        largest = min((i for i in range(count) if sizes[part[i]] == sizes.max()), key=self.junction_ids.__getitem__)
        inside = part == part[largest]
        return self.only(inside[self.start] & inside[self.end], inside)

    def both_ways(self) -> Roads:
        """The roads with every one-way street passable in both directions.

        The opposite direction of ``"u-v-key"`` is ``"v-u-key"``, or the next free key.
        """
        shapes = self.shapes or tuple(np.empty((0, 2)) for _ in self.start)
        known = {(u, v, s.tobytes()) for u, v, s in zip(self.start, self.end, shapes, strict=True)}
        ids, taken, added = [], set(self.segment_ids), []
        for i, (u, v, shape) in enumerate(zip(self.start, self.end, shapes, strict=True)):
            if u == v or (v, u, shape[::-1].tobytes()) in known:
                continue
            # A key is what is left of "u-v-key" behind both junctions' ids; without keys nothing is.
            ends = (self.junction_ids[u], self.junction_ids[v])
            key = self.segment_ids[i][len("-".join(ends)) :].removeprefix("-")
            name = "-".join((*ends[::-1], key) if key else ends[::-1])
            while name in taken:
                key = str(int(key) + 1) if key.isdecimal() else f"{key}r"
                name = "-".join((*ends[::-1], key))
            taken.add(name)
            ids.append(name)
            added.append(i)
        return replace(
            self,
            segment_ids=(*self.segment_ids, *ids),
            start=np.concatenate([self.start, self.end[added]]),
            end=np.concatenate([self.end, self.start[added]]),
            length=np.concatenate([self.length, self.length[added]]),
            shapes=(*self.shapes, *(self.shapes[i][::-1] for i in added)) if self.shapes else (),
            tags=pd.concat([self.tags, self.tags.iloc[added]], ignore_index=True),
        )

    def network(
        self,
        nodes: Nodes = "junctions",
        weight: Weight = "length",
        kernel: Kernel = "gaussian",
        sigma: float | None = None,
        speeds: Mapping[str, float] | None = None,
        u_turns: bool = False,
    ) -> RoadNetwork:
        r"""The road network whose nodes are the junctions, joined by segments, or the segments, joined by turns.

        Of parallel segments between two junctions the one of least cost counts; loops join nothing. The cost of a turn
        is the way from the middle of one segment to the middle of the other, :math:`(c_i + c_j) / 2`.

        Args:
            nodes: ``"junctions"`` or ``"segments"``.
            weight: What is measured: ``"length"`` in metres or ``"travel_time"`` in seconds.
            kernel: ``"gaussian"``: weights are closeness, :math:`\exp(-c^2 / \sigma^2)`; ``"none"``: they are the
                costs themselves, so that what is far apart weighs more.
            sigma: In the unit of ``weight``; default: the root mean square of all costs.
            speeds: As in :meth:`cost`.
            u_turns: As in :meth:`turns`; for segments only.

        Raises:
            ValueError: If there are no such nodes, or an argument is none of the above.
        """
        check_choice("nodes", nodes, ("junctions", "segments"))
        check_choice("kernel", kernel, ("gaussian", "none"))
        if not self.junction_ids or (nodes == "segments" and not self.segment_ids):
            raise ValueError(f"graph: it has no {nodes}")
        cost = self.cost(weight, speeds)
        if nodes == "segments":
            source, target = self.turns(u_turns)
            pos = np.array([middle(shape) for shape in self.shapes]) if self.shapes else None
            ids, cost = self.segment_ids, (cost[source] + cost[target]) / 2
        else:
            order = np.lexsort((cost, self.end, self.start))
            order = order[self.start[order] != self.end[order]]
            pairs = np.stack([self.start[order], self.end[order]])
            new = np.ones(len(order), bool)
            new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
            source, target = pairs[:, new]
            ids, cost, pos = self.junction_ids, cost[order[new]], self.junction_pos
        place = None if pos is None else torch.from_numpy(np.array(pos))
        return RoadNetwork(ids, make_edges(source, target, _weights(cost, kernel, sigma)), place)


def _weights(cost: np.ndarray, kernel: Kernel, sigma: float | None) -> np.ndarray:
    if not len(cost) or np.isnan(cost).all():
        return np.ones_like(cost)
    return gaussian_kernel(cost, sigma) if kernel == "gaussian" else cost


def without_isolated(network: RoadNetwork) -> RoadNetwork:
    """The network without nodes that no edge joins with another.

    Raises:
        ValueError: If that leaves none.
    """
    index = network.edges.edge_index
    joined = torch.zeros(len(network.node_ids), dtype=torch.bool)
    joined[index[:, index[0] != index[1]].reshape(-1)] = True
    if not joined.any():
        raise ValueError(f"isolated: no edge joins any of the {len(joined)} nodes, so 'drop' would leave none")
    return restricted(network, joined)


def restricted(network: RoadNetwork, keep: Tensor) -> RoadNetwork:
    """The network of the nodes for which ``keep`` (bool ``[N]``) holds, and of the edges between them."""
    number = torch.cumsum(keep, 0) - 1
    index = network.edges.edge_index
    inside = keep[index].all(dim=0)
    ids = tuple(node for node, kept in zip(network.node_ids, keep.tolist(), strict=True) if kept)
    edges = Edges(number[index[:, inside]], network.edges.edge_weight[inside])
    return RoadNetwork(ids, edges, None if network.pos is None else network.pos[keep])


# --- geometry on the sphere


def great_circle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Metres between positions (latitude, longitude in degrees) ``[..., 2]`` by the haversine formula."""
    (p, q), (s, t) = np.moveaxis(np.radians(a), -1, 0), np.moveaxis(np.radians(b), -1, 0)
    half = np.sin((s - p) / 2) ** 2 + np.cos(p) * np.cos(s) * np.sin((t - q) / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def middle(shape: np.ndarray) -> np.ndarray:
    """The point halfway along a shape ``[P, 2]``."""
    along = np.concatenate([[0.0], np.cumsum(great_circle(shape[:-1], shape[1:]))])
    piece = int(np.clip(np.searchsorted(along, along[-1] / 2) - 1, 0, len(shape) - 2))
    long = along[piece + 1] - along[piece]
    part = (along[-1] / 2 - along[piece]) / long if long else 0.0
    step = shape[piece + 1] - shape[piece]
    step[1] = (step[1] + 180) % 360 - 180  # the short way over the date line
    point = shape[piece] + part * step
    point[1] = (point[1] + 180) % 360 - 180
    return point


# --- from networkx


def roads_from_networkx(graph: nx.Graph, length: str = "length") -> Roads:
    """Roads of any networkx graph of junctions joined by road segments, such as OSMnx's MultiDiGraph.

    No attribute of the graph becomes anything but what is named here; ``x`` and ``y`` are places, never features.

    Args:
        graph: Directed or not (an undirected edge is a road in both directions), with parallel edges or not. ``x`` and
            ``y`` of its nodes, where all have them, are longitude and latitude in degrees. ``geometry`` of an edge, a
            shapely ``LineString`` or its text, is the road's shape; without it a road is straight. Numbers and lists
            may be text, as GraphML leaves them.
        length: Edge attribute with the metres of a road; 0 is allowed. Where a road has none, it is measured along its
            shape; without places all of them are NaN.

    Raises:
        ValueError: If two nodes have the same id as text, a length is negative or no number, only some have one and
            they cannot be measured, or a geometry cannot be read.
    """
    junction_ids = check_ids(list(graph.nodes), len(graph), "graph")
    number = {node: i for i, node in enumerate(graph.nodes)}
    directed = graph if graph.is_directed() else graph.to_directed()
    multigraph = directed.is_multigraph()
    edges = list(directed.edges(keys=True, data=True) if multigraph else directed.edges(data=True))
    segment_ids = check_ids([tuple(edge[:-1]) for edge in edges], len(edges), "graph")
    data = [edge[-1] for edge in edges]
    start = np.array([number[edge[0]] for edge in edges], dtype=np.int64)
    end = np.array([number[edge[1]] for edge in edges], dtype=np.int64)
    pos = _junction_positions(graph)
    shapes: tuple[np.ndarray, ...] = ()
    if pos is not None:
        # to_directed() gives the way back of an undirected edge the same geometry, so each is laid along its road.
        shapes = tuple(
            _shape(data[i].get("geometry"), segment_ids[i], pos[[u, v]])
            for i, (u, v) in enumerate(zip(start, end, strict=True))
        )
    metres = _lengths(data, segment_ids, length, shapes)
    tags = pd.DataFrame({tag: pd.Series([road.get(tag) for road in data], dtype=object) for tag in TAGS})
    return Roads(junction_ids, pos, segment_ids, start, end, metres, shapes, tags)


def _lengths(
    data: list[dict[str, Any]], roads: tuple[str, ...], length: str, shapes: tuple[np.ndarray, ...]
) -> np.ndarray:
    values = np.full(len(data), np.nan)
    absent = np.array([road.get(length) is None for road in data], dtype=bool)
    for i, road in enumerate(data):
        if absent[i]:
            continue
        try:
            values[i] = float(road[length])
        except (TypeError, ValueError):
            values[i] = np.nan
        if not (values[i] >= 0 and np.isfinite(values[i])):
            raise ValueError(
                f"graph: road {roads[i]!r} has {length} = {road[length]}; expected a number of metres, not negative"
            )
    if shapes:
        for k in np.flatnonzero(absent):
            values[k] = great_circle(shapes[k][:-1], shapes[k][1:]).sum()
    elif absent.any() and not absent.all():
        raise ValueError(
            f"graph: road {roads[int(np.argmax(absent))]!r} has no {length}, others have; give it to every edge or to "
            "none, or give all nodes x and y (longitude and latitude), so that it can be measured"
        )
    return values


def _junction_positions(graph: nx.Graph) -> np.ndarray | None:
    """Latitude and longitude of all nodes; ``None`` where one lacks them or they are not in degrees."""
    if not len(graph) or not all("x" in data and "y" in data for _, data in graph.nodes(data=True)):
        return None
    try:
        pos = np.array([(float(data["y"]), float(data["x"])) for _, data in graph.nodes(data=True)])
    except (TypeError, ValueError):
        return None
    return pos if (np.isfinite(pos) & (np.abs(pos) <= [90, 180])).all() else None


_PAIRS = re.compile(r"^\s*LINESTRING\s*\(([^()]*)\)\s*$", re.IGNORECASE)


def _shape(geometry: Any, road: str, ends: np.ndarray) -> np.ndarray:
    if geometry is None:
        return ends.copy()
    try:
        if isinstance(geometry, str):
            text = _PAIRS.match(geometry)
            points = [] if text is None else [tuple(map(float, pair.split()[:2])) for pair in text[1].split(",")]
        else:
            points = [point[:2] for point in geometry.coords]
        shape = np.array(points, dtype=np.float64)[:, ::-1]
        if len(shape) < 2 or not np.isfinite(shape).all():
            raise ValueError("fewer than two points")
    except (ValueError, IndexError, AttributeError, NotImplementedError) as error:
        found = str(geometry) if len(str(geometry)) < 60 else f"{str(geometry)[:60]}…"
        raise ValueError(
            f"graph: road {road!r} has geometry = {found}; expected a shapely LineString, or its text "
            "'LINESTRING (longitude latitude, …)'"
        ) from error
    backward = np.square(shape[[-1, 0]] - ends).sum() < np.square(shape[[0, -1]] - ends).sum()
    return np.ascontiguousarray(shape[::-1] if backward else shape)


def road_network_from_networkx(
    graph: nx.Graph, nodes: Nodes = "junctions", length: str | None = None, sigma: float | None = None
) -> RoadNetwork:
    """Nodes and edges of a networkx graph of junctions joined by road segments.

    Args:
        graph: See :func:`roads_from_networkx`.
        nodes: ``"junctions"``: the graph's nodes. ``"segments"``: the graph's edges, with the id ``"u-v"``
            (``"u-v-key"`` in a multigraph), joined where one may turn from one into the other (no U-turn). Loops from
            a junction to itself are left out.
        length: Edge attribute with the metres of a road; weights are their Gaussian kernel. Default: ``"length"``, or
            weights of 1 where no edge has it, with a warning where edges have other numbers.
        sigma: See :func:`~tsjt_pyg.data.graph.gaussian_kernel`.

    Raises:
        ValueError: If the graph is empty, ``nodes`` is neither, two nodes have the same id as text, no edge has the
            ``length`` that is asked for, only some edges have a length, or one is not a positive number.
    """
    check_choice("nodes", nodes, ("junctions", "segments"))
    roads = [(u, v, data) for u, v, data in graph.edges(data=True) if u != v]
    asked, length = length is not None, "length" if length is None else length
    said = [length in data for *_, data in roads]
    if roads and not any(said):
        _no_lengths([data for *_, data in roads], length, asked)
    for u, v, data in roads if any(said) else []:
        try:
            metres = float(data.get(length, np.nan))
        except (TypeError, ValueError):
            metres = np.nan
        if not 0 < metres < np.inf:
            raise ValueError(
                f"graph: road {f'{u}-{v}'!r} has {length} = {data.get(length)}; expected a positive number of metres "
                "on every edge, or on none"
            )
    found = roads_from_networkx(graph, length)
    found = found.only(found.start != found.end, np.ones(len(found.junction_ids), bool))
    if not any(said):
        found = replace(found, length=np.full(len(found.start), np.nan))
    return found.network(nodes, sigma=sigma)


def _no_lengths(roads: list[dict[str, Any]], length: str, asked: bool) -> None:
    """Refuses a length that was asked for and no edge has; says so of the default where another may be meant."""
    if asked:
        found = sorted({repr(name) for data in roads for name in data})
        raise ValueError(
            f"length: no edge of the graph has {length!r}, found: {', '.join(found) or 'edges without attributes'}; "
            "name the one with the metres, or leave length out, and all weights are 1"
        )
    numbers = sorted({repr(name) for data in roads for name, value in data.items() if _is_number(value)})
    if numbers:
        _log.warning(
            "no edge of the graph has %r (found: %s); all weights are 1; say which with length=",
            length,
            ", ".join(numbers),
        )


def _is_number(value: object) -> bool:
    try:  # GraphML may leave numbers as text
        return not isinstance(value, bool) and bool(np.isfinite(float(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
