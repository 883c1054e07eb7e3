"""From roads and readings to the parts of a city: readings joined with a road network by id, or through sensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from .clean import ReadingsLike
from .graph import Edges, gaussian_kernel, make_edges
from .ids import id_text
from .parts import About, AboutReadings, CityParts, city_parts
from .places import check_numbered, check_positions
from .road_files import Ways, read_road_graph
from .road_network import (
    Kernel,
    Nodes,
    RoadNetwork,
    Roads,
    Weight,
    check_choice,
    middle,
    restricted,
    road_network_from_networkx,
    roads_from_networkx,
    without_isolated,
)
from .snap import Snapped, path_costs, snap_sensors

if TYPE_CHECKING:
    import networkx as nx

_log = logging.getLogger(__name__)

Component = Literal["all", "weak", "strong"]
OneWay = Literal["as_is", "both"]
Isolated = Literal["keep", "drop"]
WithoutReadings = Literal["error", "keep", "drop"]
Keep = Literal["sensors", "segments", "all"]
Several = Literal["error", "mean", "nearest"]

PATH_LIMITS: Mapping[Weight, float] = {"length": 5_000.0, "travel_time": 300.0}
"""How far sensors are joined where nothing is said: metres, or seconds."""


class RoadOptions(AboutReadings, total=False):
    """What both constructors from roads take beside their own arguments; all optional.

    Args:
        kernel: ``"gaussian"`` (default): the nearer, the heavier; ``"none"``: weights are the metres or seconds
            themselves, so that what is far apart weighs more.
        sigma: Of the kernel, in metres or seconds. Default: their root mean square.
        speeds: km/h by highway class, for roads without a speed limit; see
            :func:`~tsjt_pyg.data.road_speeds.free_flow_speeds`.
        u_turns: Whether one may turn back where one comes from. Default: no.
        component: ``"all"`` (default), or only the largest part, ``"weak"`` or ``"strong"``; see :func:`read_roads`.
        one_way: One-way streets ``"as_is"`` (default), or passable ``"both"`` ways.
        ways: Which ways of OpenStreetMap's XML are roads: ``"drive"`` (default), ``"drive_service"`` or ``"all"``.
    """

    kernel: Kernel
    sigma: float | None
    speeds: Mapping[str, float] | None
    u_turns: bool
    component: Component
    one_way: OneWay
    ways: Ways


class OsmnxOptions(RoadOptions, About, total=False):
    """What :meth:`City.from_osmnx <tsjt_pyg.data.City.from_osmnx>` takes too; all optional.

    Args:
        isolated: ``"keep"`` (default) or ``"drop"`` nodes that no edge joins with another.
        loops: ``"keep"`` or ``"drop"`` (default) segments from a junction to itself.
        without_readings: Nodes without readings: ``"error"`` (default), ``"keep"`` them unobserved, or ``"drop"`` them
            with their edges.
    """

    isolated: Isolated
    loops: Isolated
    without_readings: WithoutReadings


class SensorOptions(RoadOptions, total=False):
    """What :meth:`City.from_road_network <tsjt_pyg.data.City.from_road_network>` takes too; all optional.

    Args:
        weight: ``"length"`` (metres, default) or ``"travel_time"`` (seconds).
        several: Of several sensors on one segment, unless each is a node: ``"error"`` (default), the ``"mean"`` of what
            they observed, or the ``"nearest"`` to the road.
        path_limit: Metres (or seconds) up to which a way joins two nodes. Default: 5000 m (300 s).
    """

    weight: Weight
    several: Several
    path_limit: float | None


def read_roads(
    graph: nx.Graph | str | Path | Roads,
    component: Component = "all",
    one_way: OneWay = "as_is",
    ways: Ways = "drive",
) -> Roads:
    """Roads of a raw OSMnx graph, of any networkx graph with places, or of a file.

    Args:
        graph: The graph (see :func:`~tsjt_pyg.data.road_network.roads_from_networkx`), a file of it (see
            :func:`~tsjt_pyg.data.road_files.read_road_graph`), or roads that were read before.
        component: ``"all"``; or only the largest part that hangs together, ``"weak"`` where directions do not count,
            ``"strong"`` where one must get from each junction to each other.
        one_way: One-way streets ``"as_is"``, or passable ``"both"`` ways. This comes first.
        ways: Which ways of OpenStreetMap's XML are roads.

    Raises:
        ValueError: If there are no junctions, or their places are unknown or not in degrees.
    """
    check_choice("component", component, ("all", "weak", "strong"))
    check_choice("one_way", one_way, ("as_is", "both"))
    if isinstance(graph, str | Path):
        graph = read_road_graph(graph, ways)
    if isinstance(graph, Roads):
        roads = graph
    elif hasattr(graph, "is_multigraph"):
        roads = roads_from_networkx(graph)
    else:
        raise TypeError(f"graph: expected a networkx graph, the path of a file, or Roads, found {type(graph).__name__}")
    if not roads.junction_ids:
        raise ValueError("graph: it has no junctions")
    if roads.junction_pos is None:
        raise ValueError(
            "graph: every node needs x and y, longitude and latitude in degrees; a projected graph goes back with "
            "osmnx.project_graph(graph, to_latlong=True), one without places goes into City.from_networkx"
        )
    roads = roads.both_ways() if one_way == "both" else roads
    return roads if component == "all" else roads.largest_component(component == "strong")


def join_network(
    parts: CityParts,
    network: RoadNetwork,
    what: str = "nodes",
    without_readings: WithoutReadings = "error",
    left_out: frozenset[str] = frozenset(),
) -> tuple[CityParts, Edges]:
    """Readings and road network joined by node id, in the order of the readings.

    Args:
        parts: The readings, and what is said of them.
        network: The road network.
        what: What its nodes are, for messages.
        without_readings: Nodes of the network without readings: ``"error"``, ``"keep"`` them with a mask of ``False``,
            or ``"drop"`` them with their edges.
        left_out: Nodes that were left out of the network at the user's wish; their readings are left out too.

    Raises:
        ValueError: If readings belong to no node of the network, or nodes have none and ``without_readings`` says so.
    """
    check_choice("without_readings", without_readings, ("error", "keep", "drop"))
    in_network = set(network.node_ids)
    unknown = sorted(set(parts["node_ids"]) - in_network - left_out)
    kept = [i for i, node in enumerate(parts["node_ids"]) if node in in_network]
    absent = sorted(in_network - set(parts["node_ids"]))
    if unknown or not kept or (absent and without_readings == "error"):
        way_out = ""
        if unknown:
            which = f"{unknown[0]!r} is not in the graph"
            if len(unknown) < len(parts["node_ids"]):
                way_out = (
                    "; leave nodes that the graph lacks out of the readings, such as with readings.drop(columns=…): "
                    f"{_some(unknown)} ({len(unknown)} in all)"
                )
        elif not kept:
            which = f"{parts['node_ids'][0]!r} was left out of the graph, as all others with readings"
        else:
            which = f"{absent[0]!r} of the graph has no readings"
            way_out = "; without_readings='keep' or 'drop' allows that"
        raise ValueError(
            f"readings: node {which} ({len(parts['node_ids'])} nodes with readings, {len(in_network)} {what} in the "
            f"graph, for example {network.node_ids[0]!r}); both need the same node ids{way_out}"
        )
    if len(kept) < len(parts["node_ids"]):
        gone = len(parts["node_ids"]) - len(kept)
        _log.warning("%s: readings of %d %s that were left out of the graph are left out", parts["name"], gone, what)
        parts = _chosen(parts, kept)
    if absent:
        _log.info(
            "%s: %d of %d %s have no readings: %s (%s)",
            parts["name"], len(absent), len(in_network), what, without_readings, _some(absent),
        )  # fmt: skip
        if without_readings == "drop":
            with_readings = set(parts["node_ids"])
            network = restricted(network, torch.tensor([node in with_readings for node in network.node_ids]))
        else:
            parts = _extended(parts, absent)
    position = {node: i for i, node in enumerate(parts["node_ids"])}
    to_readings = torch.tensor([position[node] for node in network.node_ids])
    if network.pos is not None:
        given = parts["pos"]
        pos = torch.empty_like(network.pos)
        pos[to_readings] = network.pos
        if given is not None:
            pos[: len(given)] = given
        parts["pos"] = pos
    elif parts["pos"] is not None and len(parts["pos"]) < len(position):
        raise ValueError(
            "positions: nodes without readings have none; give a table of all nodes, indexed by node id, or give the "
            "graph's nodes x and y (longitude and latitude), or without_readings='drop'"
        )
    index = to_readings[network.edges.edge_index].numpy()
    return parts, make_edges(index[0], index[1], network.edges.edge_weight.numpy())


def _some(nodes: list[str]) -> str:
    return ", ".join(map(repr, nodes[:5])) + (", …" if len(nodes) > 5 else "")


def _chosen(parts: CityParts, nodes: list[int]) -> CityParts:
    pos = parts["pos"]
    chosen: CityParts = {
        **parts,
        "readings": parts["readings"][:, nodes],
        "mask": parts["mask"][:, nodes],
        "node_ids": tuple(parts["node_ids"][i] for i in nodes),
        "pos": None if pos is None else pos[nodes],
    }
    return chosen


def _extended(parts: CityParts, nodes: list[str]) -> CityParts:
    """Parts with more nodes, of which nothing was observed; ``pos`` stays as it is."""
    steps, _, channels = parts["readings"].shape
    blank = torch.zeros(steps, len(nodes), channels)
    extended: CityParts = {
        **parts,
        "readings": torch.cat([parts["readings"], blank], dim=1),
        "mask": torch.cat([parts["mask"], blank.bool()], dim=1),
        "node_ids": (*parts["node_ids"], *nodes),
    }
    return extended


def networkx_parts(
    readings: ReadingsLike,
    graph: nx.Graph,
    nodes: Nodes,
    length: str | None,
    sigma: float | None,
    without_readings: WithoutReadings,
    about: About,
) -> tuple[CityParts, Edges]:
    """Parts of :meth:`City.from_networkx <tsjt_pyg.data.City.from_networkx>`, where the arguments are explained."""
    network = road_network_from_networkx(graph, nodes, length, sigma)
    parts = city_parts(readings, about, network.node_ids)
    places = about.get("positions")
    if without_readings == "keep" and network.pos is None and isinstance(places, pd.DataFrame):
        network = network._replace(pos=check_positions(places, network.node_ids))
    ends = graph.edges(keys=True) if graph.is_multigraph() else graph.edges
    loops = frozenset(id_text(edge) for edge in ends if edge[0] == edge[1])
    if loops:
        _log.info("%s: edges from a node to itself are left out: %s", parts["name"], _some(sorted(loops)))
    return join_network(parts, network, nodes, without_readings, loops if nodes == "segments" else frozenset())


def osmnx_parts(
    readings: ReadingsLike,
    graph: nx.Graph | str | Path | Roads,
    *,
    nodes: Nodes = "junctions",
    weight: Weight = "length",
    kernel: Kernel = "gaussian",
    sigma: float | None = None,
    speeds: Mapping[str, float] | None = None,
    u_turns: bool = False,
    component: Component = "all",
    one_way: OneWay = "as_is",
    isolated: Isolated = "keep",
    loops: Isolated = "drop",
    ways: Ways = "drive",
    without_readings: WithoutReadings = "error",
    **about: Unpack[About],
) -> tuple[CityParts, Edges]:
    """Parts of :meth:`City.from_osmnx <tsjt_pyg.data.City.from_osmnx>`, where the arguments are explained."""
    check_choice("nodes", nodes, ("junctions", "segments"))
    check_choice("isolated", isolated, ("keep", "drop"))
    check_choice("loops", loops, ("keep", "drop"))
    whole = read_roads(graph, "all", one_way, ways)
    roads = read_roads(whole, component)
    if loops == "drop":
        roads = roads.only(roads.start != roads.end, np.ones(len(roads.junction_ids), bool))
    network = roads.network(nodes, weight, kernel, sigma, speeds, u_turns)
    if isolated == "drop":
        network = without_isolated(network)
    ids = whole.segment_ids if nodes == "segments" else whole.junction_ids
    parts = city_parts(readings, about, graph_ids=network.node_ids)
    return join_network(parts, network, nodes, without_readings, frozenset(ids) - set(network.node_ids))


def sensor_parts(
    readings: ReadingsLike,
    sensors: pd.DataFrame | Snapped,
    graph: nx.Graph | str | Path | Roads,
    *,
    snap_limit: float = 50.0,
    keep: Keep = "sensors",
    several: Several = "error",
    path_limit: float | None = None,
    weight: Weight = "length",
    kernel: Kernel = "gaussian",
    sigma: float | None = None,
    speeds: Mapping[str, float] | None = None,
    u_turns: bool = False,
    component: Component = "all",
    one_way: OneWay = "as_is",
    ways: Ways = "drive",
    **about: Unpack[AboutReadings],
) -> tuple[CityParts, Edges]:
    """Parts of :meth:`City.from_road_network <tsjt_pyg.data.City.from_road_network>`, where they are explained."""
    check_choice("keep", keep, ("sensors", "segments", "all"))
    check_choice("several", several, ("error", "mean", "nearest"))
    check_choice("kernel", kernel, ("gaussian", "none"))
    check_choice("weight", weight, ("length", "travel_time"))
    if "positions" in about:
        raise TypeError("positions: the table of sensors says where they are; leave positions out")
    limit = PATH_LIMITS[weight] if path_limit is None else path_limit
    if not limit > 0:
        raise ValueError(f"path_limit: expected a positive number of metres (or seconds), found {path_limit}")
    roads = read_roads(graph, component, one_way, ways)
    snapped = sensors if isinstance(sensors, Snapped) else snap_sensors(sensors, roads, snap_limit)
    parts = city_parts(readings, about, graph_ids=list(snapped.table["sensor"]))
    if snapped.numbered:
        check_numbered(list(snapped.table["sensor"]), parts["node_ids"], "sensors")
    table = snapped.table.set_index("sensor")
    placed = table[table["matched"]]
    known = [i for i, node in enumerate(parts["node_ids"]) if node in placed.index]
    if not known:
        if len(placed):
            raise ValueError(
                f"readings: none of the {len(parts['node_ids'])} nodes, for example {parts['node_ids'][0]!r}, is a "
                f"sensor on a road, for example {placed.index[0]!r}; both tables need the same sensor ids"
            )
        nearest = snapped.unmatched.iloc[0]
        raise ValueError(
            f"sensors: none of the {len(table)} lies within {snapped.limit:g} m of a road; the nearest, "
            f"{nearest['sensor']!r}, is {nearest['distance']:.0f} m away. Raise snap_limit, or see whether latitude "
            "and longitude are what they say and the roads are of this city"
        )
    if len(known) < len(parts["node_ids"]):
        without = sum(node not in table.index for node in parts["node_ids"])
        far = len(parts["node_ids"]) - len(known) - without
        _log.warning(
            "%s: of %d nodes with readings %d are left out: %d are not among the sensors, %d are too far from a road",
            parts["name"], len(parts["node_ids"]), without + far, without, far,
        )  # fmt: skip
    silent = sorted(set(placed.index) - set(parts["node_ids"]))
    if silent:
        _log.info("%s: %d sensors without readings are left out (%s)", parts["name"], len(silent), _some(silent))
    parts = _chosen(parts, known)
    placed = placed.loc[list(parts["node_ids"])]
    number = {segment: i for i, segment in enumerate(roads.segment_ids)}
    strange = [segment for segment in placed["segment"] if segment not in number]
    if strange:
        raise ValueError(
            f"sensors: they were snapped to segment {strange[0]!r}, which is not in the graph; pass the roads they "
            "were snapped to"
        )
    if keep == "sensors":
        parts = {**parts, "pos": torch.from_numpy(placed[["latitude", "longitude"]].to_numpy(dtype=np.float64))}
    else:
        parts, placed = _one_a_segment(parts, placed, several)
        middles = np.array([middle(roads.shapes[number[segment]]) for segment in placed["segment"]])
        parts["pos"] = torch.from_numpy(middles)
    if keep == "all":
        network = roads.network("segments", weight, kernel, sigma, speeds, u_turns)
        return join_network(parts, network, "segments", "keep")
    cost = roads.cost(weight, speeds)
    segment = placed["segment"].map(number).to_numpy()
    source, target, way = path_costs(roads, segment, placed["along"].to_numpy(), cost, limit, u_turns)
    weights = gaussian_kernel(way, sigma) if kernel == "gaussian" and len(way) else way
    return parts, make_edges(source, target, weights)


def _one_a_segment(parts: CityParts, placed: pd.DataFrame, several: Several) -> tuple[CityParts, pd.DataFrame]:
    """Segments with readings as nodes, from sensors of which several may lie on one."""
    which, segments = pd.factorize(placed["segment"])
    crowded = placed["segment"].duplicated(keep=False).to_numpy()
    if crowded.any() and several == "error":
        first = placed["segment"][crowded].iloc[0]
        raise ValueError(
            f"sensors: {placed.index[placed['segment'] == first].tolist()} all lie on segment {first!r}, "
            f"{int(crowded.sum())} sensors share one in all; choose several='mean' or 'nearest', or keep='sensors', "
            "which makes a node of each"
        )
    if several == "nearest":
        order = placed.assign(row=np.arange(len(placed))).reset_index().sort_values(["distance", "sensor"])
        rows = np.sort(order.drop_duplicates("segment")["row"].to_numpy())
        parts, placed = _chosen(parts, rows.tolist()), placed.iloc[rows]
        return {**parts, "node_ids": tuple(placed["segment"])}, placed
    steps, _, channels = parts["readings"].shape
    to = torch.from_numpy(which)
    count = torch.zeros(steps, len(segments), channels).index_add_(1, to, parts["mask"].to(torch.float32))
    total = torch.zeros(steps, len(segments), channels).index_add_(1, to, parts["readings"] * parts["mask"])
    if crowded.any():
        _log.info("%s: %d sensors share a segment; the mean of what they observed counts", parts["name"], crowded.sum())
    merged: CityParts = {
        **parts,
        "readings": total / count.clamp(min=1),
        "mask": count > 0,
        "node_ids": tuple(map(str, segments)),
    }
    return merged, placed.groupby("segment", sort=False)[["along"]].mean().reset_index()
