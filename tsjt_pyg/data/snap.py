"""Sensors on roads: the segment each one lies on, and the ways along the roads between them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from .graph import EARTH_RADIUS
from .places import check_positions, sensor_rows
from .road_network import Roads
from .table_file import Table

_log = logging.getLogger(__name__)

_SPACING = 100.0  # metres between the points that stand for a road in the search; the distances found are exact
_TIE = 0.01  # metres: two segments are as near as each other, such as the two directions of a road
_CHUNK = 512
_COLUMNS = ("sensor", "segment", "distance", "along", "matched", "ambiguous", "latitude", "longitude")


@dataclass(frozen=True, eq=False, repr=False)
class Snapped:
    """Which sensor lies on which segment.

    Args:
        table: One row a sensor, in the order given: ``sensor`` and ``segment`` (ids; the nearest segment even where it
            is too far), ``distance`` (metres), ``along`` (how far along the segment, 0 to 1), ``matched`` (whether
            within the limit), ``ambiguous`` (whether another segment was as near, such as the opposite direction, and
            the smallest id was taken), ``latitude``, ``longitude`` (of the sensor).
        limit: Metres.
        numbered: Whether the sensors had no ids, so that ``sensor`` is the number of the row.
    """

    table: pd.DataFrame
    limit: float
    numbered: bool = False

    @property
    def matched(self) -> pd.DataFrame:
        """Rows of the sensors that lie on a segment."""
        return self.table[self.table["matched"]]

    @property
    def unmatched(self) -> pd.DataFrame:
        """Rows of the sensors that are too far from any, the nearest first."""
        return self.table[~self.table["matched"]].sort_values("distance", kind="stable")

    def __repr__(self) -> str:
        matched, unmatched = self.matched, self.unmatched
        lines = [
            f"{len(matched)} of {len(self.table)} sensors lie within {self.limit:g} m of a road, on "
            f"{matched['segment'].nunique()} segments"
        ]
        if len(matched):
            lines[0] += f"; half of them within {matched['distance'].median():.1f} m"
        if matched["ambiguous"].any():
            lines.append(
                f"ambiguous: {int(matched['ambiguous'].sum())} (another segment is as near, such as the opposite "
                "direction; the smallest id was taken; a column 'bearing' of the sensors says which)"
            )
        if len(unmatched):
            some = ", ".join(f"{s!r} ({d:.0f} m)" for s, d in unmatched[["sensor", "distance"]].head(5).to_numpy())
            lines.append(f"too far: {len(unmatched)}: {some}{', …' if len(unmatched) > 5 else ''}")
        return "\n".join(lines)


def snap_sensors(sensors: pd.DataFrame, roads: Roads, limit: float = 50.0) -> Snapped:
    r"""The nearest road segment of each sensor, by great-circle distance to the segment's shape, not to its ends.

    Candidates come from a k-d tree over points along the roads; the distance to each straight piece is then computed
    on the sphere: of :math:`p` to the great circle through :math:`a, b` it is
    :math:`R \arcsin |p \cdot \frac{a \times b}{\|a \times b\|}|` where its foot lies between them, else that to the
    nearer end.

    Args:
        sensors: With a column ``sensor_id`` (or another usual name of it, as in :meth:`City.from_tables
            <tsjt_pyg.data.City.from_tables>`) or indexed by sensor id, with the columns ``latitude`` and ``longitude``
            (or ``lat``, ``lon``, …) in degrees and, optionally, ``bearing``: the direction of travel in degrees
            clockwise from north, NaN where unknown. With a bearing only segments count that lead there within 90
            degrees, so it chooses between the directions of a road.
        roads: See :func:`~tsjt_pyg.data.road_network.roads_from_networkx`.
        limit: Metres within which a sensor belongs to a segment.

    Raises:
        ValueError: If the roads have no places, sensors have none or the same id, or ``limit`` is not positive.
    """
    if not 0 < limit < np.inf:
        raise ValueError(f"limit: expected a positive number of metres, found {limit}")
    if not isinstance(sensors, pd.DataFrame):
        raise TypeError(f"sensors: expected a table indexed by sensor id, found {type(sensors).__name__}")
    if not len(sensors):
        raise ValueError("sensors: the table has no rows")
    rows = sensor_rows(sensors, "sensors")
    ids = rows.ids
    if not len(roads.segment_ids):
        raise ValueError("graph: it has no segments to snap sensors to")
    if not roads.shapes:
        raise ValueError(
            "graph: sensors are snapped by place, but not every node has x and y (longitude and latitude in degrees); "
            "a projected graph goes back with osmnx.project_graph(graph, to_latlong=True)"
        )
    place = check_positions(sensors, ids, "sensors").numpy()
    bearing = _bearings(rows.table, ids)
    pieces = _Pieces(roads)
    # Where a tie is broken by the smallest id, whatever the order of the file.
    rank = np.empty(len(roads.segment_ids), dtype=np.int64)
    rank[sorted(range(len(rank)), key=roads.segment_ids.__getitem__)] = np.arange(len(rank))
    found = [
        _nearest(pieces, _unit(place[i : i + _CHUNK]), bearing[i : i + _CHUNK], limit, rank)
        for i in range(0, len(place), _CHUNK)
    ]
    table = pd.concat(found, ignore_index=True)
    table.insert(0, "sensor", list(ids))
    number = table["segment"].to_numpy()
    table["segment"] = [roads.segment_ids[i] for i in number]
    table["matched"] &= table["distance"] <= limit
    table["ambiguous"] &= table["matched"]
    table["latitude"], table["longitude"] = place.T
    snapped = Snapped(table[[*_COLUMNS]], float(limit), rows.numbered)
    _log.info("%s", snapped)
    return snapped


def _bearings(table: Table, ids: tuple[str, ...]) -> np.ndarray:
    column = next((name for name in table.frame.columns if name.lower() == "bearing"), None)
    if column is None:
        return np.full(len(ids), np.nan)
    given = table.frame[column]
    values = pd.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64)
    bad = (np.isnan(values) & given.notna().to_numpy()) | (np.abs(values) > 360)
    if bad.any():
        worst = int(np.argmax(bad))
        raise ValueError(
            f"sensors: the bearing of {ids[worst]!r} is {str(given.iloc[worst])!r}; expected degrees "
            "clockwise from north, from 0 to 360, or NaN where it is unknown"
        )
    return values


def _unit(place: np.ndarray) -> np.ndarray:
    latitude, longitude = np.radians(place).T
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radians between unit vectors, exact for small angles too."""
    return 2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1))


class _Pieces:
    """The straight pieces of all segments, as unit vectors, and a tree over points along them."""

    def __init__(self, roads: Roads) -> None:
        points = _unit(np.concatenate(roads.shapes))
        many = np.array([len(shape) for shape in roads.shapes])
        last = np.zeros(len(points), bool)
        last[np.cumsum(many) - 1] = True
        self.segment = np.repeat(np.arange(len(many)), many - 1)
        self.a = points[~last]
        self.b = points[np.flatnonzero(~last) + 1]
        self.long = _angle(self.a, self.b)
        ends = np.cumsum(self.long)
        first = np.searchsorted(self.segment, np.arange(len(many)))
        self.before = ends - self.long - (ends - self.long)[first][self.segment]
        self.total = np.bincount(self.segment, self.long, minlength=len(many))
        samples = np.maximum(np.ceil(self.long * EARTH_RADIUS / _SPACING), 1).astype(np.int64)
        self.of_sample = np.repeat(np.arange(len(samples)), samples)
        within = np.arange(len(self.of_sample)) - np.repeat(np.cumsum(samples) - samples, samples)
        part = ((within + 0.5) / samples[self.of_sample])[:, None]
        chord = self.a[self.of_sample] * (1 - part) + self.b[self.of_sample] * part
        self.tree = KDTree(chord * EARTH_RADIUS)


def _nearest(pieces: _Pieces, p: np.ndarray, bearing: np.ndarray, limit: float, rank: np.ndarray) -> pd.DataFrame:
    """Segment, distance, place along it and ambiguity of sensors at unit vectors ``p`` ``[M, 3]``."""
    closest, _ = pieces.tree.query(p * EARTH_RADIUS)
    reach = np.where(np.isnan(bearing), closest, np.maximum(closest, limit)) + _SPACING / 2 + 1
    lists = pieces.tree.query_ball_point(p * EARTH_RADIUS, reach)
    sensor = np.repeat(np.arange(len(p)), [len(one) for one in lists])
    piece = pieces.of_sample[np.concatenate(lists).astype(np.int64)]
    sensor, piece = np.unique(np.stack([sensor, piece]), axis=1)
    q, a, b = p[sensor], pieces.a[piece], pieces.b[piece]
    normal = np.cross(a, b)
    size = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.divide(normal, size, out=np.zeros_like(normal), where=size > 0)
    height = np.einsum("ij,ij->i", q, normal)
    foot = q - height[:, None] * normal
    foot /= np.linalg.norm(foot, axis=1, keepdims=True)
    between = (np.einsum("ij,ij->i", np.cross(a, foot), normal) >= 0) & (
        np.einsum("ij,ij->i", np.cross(foot, b), normal) >= 0
    )
    between &= size[:, 0] > 0
    nearer_a = _angle(q, a) <= _angle(q, b)
    foot = np.where(between[:, None], foot, np.where(nearer_a[:, None], a, b))
    distance = _angle(q, foot) * EARTH_RADIUS
    segment = pieces.segment[piece]
    total = pieces.total[segment]
    along = pieces.before[piece] + _angle(a, foot)
    along = np.divide(along, total, out=np.zeros_like(along), where=total > 0)
    # Of the direction of travel, the component along the piece: positive within 90 degrees.
    azimuth = np.radians(bearing[sensor])
    east = np.stack([-q[:, 1], q[:, 0], np.zeros(len(q))], axis=1)
    east /= np.maximum(np.linalg.norm(east, axis=1, keepdims=True), 1e-12)
    ahead = np.sin(azimuth)[:, None] * east + np.cos(azimuth)[:, None] * np.cross(q, east)
    leads = np.isnan(azimuth) | (np.einsum("ij,ij->i", ahead, b - a) > 0)
    # The wrong directions come last, so that a sensor without a right one is listed with its distance all the same.
    table = pd.DataFrame(
        {"sensor": sensor, "segment": segment, "distance": distance, "along": np.minimum(along, 1.0), "matched": leads}
    )
    table["rank"] = rank[segment]
    table = table.sort_values(["sensor", "matched", "distance"], ascending=[True, False, True], kind="stable")
    best = table.groupby("sensor")[["matched", "distance"]].transform("first")
    ties = table[(table["matched"] == best["matched"]) & (table["distance"] <= best["distance"] + _TIE)]
    ties = ties.sort_values(["sensor", "rank", "distance"], kind="stable")
    chosen = ties.groupby("sensor", sort=True).first()
    chosen["ambiguous"] = ties.groupby("sensor")["segment"].nunique() > 1
    return chosen


def path_costs(
    roads: Roads, segment: np.ndarray, along: np.ndarray, cost: np.ndarray, limit: float, u_turns: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs of the shortest ways along the roads between sensors, of all pairs within a limit.

    Dijkstra's algorithm on the graph of turns, so that ways without U-turns can be asked for; a few hundred sensors at
    a time, so that it takes memory for a few hundred times the number of segments.

    Args:
        roads: The roads.
        segment: Segment of each sensor, int64 ``[M]``.
        along: How far along it each sensor is, 0 to 1, ``[M]``.
        cost: Cost of each segment, ``[S]``.
        limit: Largest cost of a way.
        u_turns: See :meth:`~tsjt_pyg.data.road_network.Roads.turns`.

    Returns:
        From, to and cost of each pair.
    """
    count = len(roads.segment_ids)
    source, target = roads.turns(u_turns)
    # A turn costs what it takes to get to the far end of the new segment. Entries of 0 would be no edges to scipy.
    ends = source.astype(np.int32), target.astype(np.int32)  # dijkstra of SciPy 1.11 to 1.13 takes no others
    turns = scipy.sparse.csr_array((np.maximum(cost[target], 1e-9), ends), shape=(count, count))
    used, which = np.unique(segment, return_inverse=True)
    done, to_go = along * cost[segment], (1 - along) * cost[segment]
    crowded = np.flatnonzero(np.bincount(which) > 1)
    by_target = np.argsort(target, kind="stable")
    bounds = np.searchsorted(target[by_target], [used[crowded], used[crowded] + 1])
    back_to = {int(i): source[by_target[m:n]] for i, m, n in zip(crowded, *bounds, strict=True)}
    froms, tos, costs = [], [], []
    for begin in range(0, len(used), _CHUNK // 4):
        some = np.arange(begin, min(begin + _CHUNK // 4, len(used)))
        far = dijkstra(turns, indices=used[some], limit=limit + float(cost.max(initial=0)) + 1)
        to_start = far[:, used] - cost[used]  # from the end of a segment to the start of another
        for i in some:  # and round the block to its own
            to_start[i - begin, i] = (
                far[i - begin, back_to[int(i)]].min(initial=np.inf) if int(i) in back_to else np.inf
            )
        here = np.flatnonzero((which >= begin) & (which < begin + len(some)))
        ways = np.maximum(to_start[which[here] - begin][:, which], 0) + to_go[here, None] + done[None, :]
        ahead = done[None, :] - done[here, None]
        same = (which[here, None] == which[None, :]) & (ahead >= 0)
        ways = np.where(same, np.minimum(ways, np.where(same, ahead, np.inf)), ways)
        ways[np.arange(len(here)), here] = np.inf
        start, end = np.nonzero(ways <= limit)
        froms.append(here[start])
        tos.append(end)
        costs.append(ways[start, end])
    return np.concatenate(froms), np.concatenate(tos), np.concatenate(costs)
