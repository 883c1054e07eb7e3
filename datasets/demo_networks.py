"""The road networks and the travel habits of the bundled simulated cities.

Everything here is the *plan* of a city: where its roads run, how fast and wide they are, who wants to go where at what
hour. ``simulate_demo_cities.py`` drives the vehicles over it. The three plans differ on purpose, in shape and in
rhythm: a city that can be learned from another one without any care would be no test of transfer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EARTH_RADIUS = 6_371_008.8
"""Metres; the mean radius, so that great-circle distances between positions give back the metres of the plan."""


@dataclass(frozen=True)
class Network:
    """A road network whose segments are directed: a two-way road is two segments."""

    junctions: Floats
    """Junction coordinates in metres east and north of the city's centre, ``[J, 2]``."""
    start: Ints
    end: Ints
    length: Floats
    """Metres along the road, never less than the straight line between its junctions."""
    free_flow: Floats
    """km/h."""
    lanes: Ints
    green: Floats
    """Share of the saturation flow that the end of a segment lets through: what a signal or a merge leaves of it."""
    zones: dict[str, Floats]
    """Where trips begin and end: a weight for each junction, by the name of the zone."""

    @property
    def size(self) -> int:
        """Number of segments."""
        return len(self.start)

    def turns(self) -> Ints:
        """Pairs (i, j) where segment j starts where i ends, without the U-turn back onto the opposite direction."""
        follows = (self.end[:, None] == self.start[None, :]) & (self.start[:, None] != self.end[None, :])
        return np.argwhere(follows).T

    def midpoints(self) -> Floats:
        """Midpoint of each segment, moved to the right of the road's axis so that two directions do not coincide."""
        a, b = self.junctions[self.start], self.junctions[self.end]
        along = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
        right = np.stack([along[:, 1], -along[:, 0]], axis=1)
        return (a + b) / 2 + right * (1.5 + 1.75 * self.lanes)[:, None]

    def positions(self, latitude: float, longitude: float) -> Floats:
        """Latitude and longitude of the midpoints for a city centre placed at the given point."""
        east, north = self.midpoints().T
        degrees = 180.0 / (math.pi * EARTH_RADIUS)
        return np.stack(
            [latitude + north * degrees, longitude + east * degrees / math.cos(math.radians(latitude))], axis=1
        )


@dataclass(frozen=True)
class Trips:
    """One habit: people of one zone go to another around some hour."""

    origin: str
    destination: str
    hour: float
    width: float
    """Standard deviation of the departure time in hours."""
    weekday: float
    """Vehicles a day."""
    weekend: float


@dataclass(frozen=True)
class CityPlan:
    """All that tells one bundled city from another."""

    name: str
    start: str
    latitude: float
    longitude: float
    network: Network
    trips: tuple[Trips, ...]
    incidents_per_day: float
    works_per_day: float
    peculiar: str
    """What a reader of the card should know about this city and would not guess from its numbers."""


class _Roads:
    """Collects two-way and one-way roads, so that a generator reads like a map and not like array bookkeeping."""

    def __init__(self, junctions: Floats, rng: np.random.Generator) -> None:
        self.junctions, self.rng = junctions, rng
        self.rows: list[tuple[int, int, float, float, int, float]] = []

    def add(self, a: int, b: int, speed: float, lanes: int, green: float, bend: float = 1.0, both: bool = True) -> None:
        """Lay a road from a to b; each direction gets its own green share, as the signal at its own end decides it."""
        straight = float(np.linalg.norm(self.junctions[b] - self.junctions[a]))
        length = round(straight * bend * self.rng.uniform(1.005, 1.03), 1)
        for i, j in ((a, b), (b, a))[: 2 if both else 1]:
            self.rows.append((i, j, length, speed, lanes, green * self.rng.uniform(0.95, 1.05)))

    def build(self, zones: dict[str, Floats], narrow: list[int]) -> Network:
        """The network, with the given junctions as its bottlenecks.

        Few and marked bottlenecks are what makes queues start at one place and grow upstream from there; were every
        segment about as tight as the next, all would fill up on their own when the peak comes.
        """
        start, end, length, speed, lanes, green = (np.array(column) for column in zip(*self.rows, strict=True))
        green = np.where(np.isin(end, narrow), self.rng.uniform(0.37, 0.46, len(end)), green)
        zones = {name: weight / weight.sum() for name, weight in zones.items()}
        return Network(self.junctions, start, end, length, speed.astype(float), lanes, green, zones)


def _near(points: Floats, centre: tuple[float, float], radius: float) -> Floats:
    """Zone weights that fall off around a point."""
    return np.exp(-(np.linalg.norm(points - np.array(centre), axis=1) ** 2) / (2 * radius**2))


def grid_network(rng: np.random.Generator, rows: int = 8, columns: int = 8) -> Network:
    """Streets and avenues at right angles: arterials, quiet two-way streets and one-way pairs."""
    streets = np.cumsum(rng.uniform(270, 390, rows))
    avenues = np.cumsum(rng.uniform(300, 440, columns))
    xy = np.array([(x, y) for y in streets for x in avenues])
    xy -= xy.mean(axis=0)
    roads = _Roads(xy, rng)

    def lay(line: list[int], position: int, arterials: set[int], one_way: dict[int, int]) -> None:
        if position in one_way:
            line = line[:: one_way[position]]
        for a, b in pairwise(line):
            if position in arterials:
                roads.add(a, b, speed=60, lanes=2, green=0.9)
            elif position in one_way:
                roads.add(a, b, speed=50, lanes=2, green=0.88, both=False)
            else:
                roads.add(a, b, speed=40, lanes=1, green=0.85)

    for r in range(rows):
        lay([r * columns + c for c in range(columns)], r, arterials={3}, one_way={1: 1, 2: -1, 5: 1, 6: -1})
    for c in range(columns):
        lay([r * columns + c for r in range(rows)], c, arterials={2, 5}, one_way={3: 1, 4: -1})

    outer = np.abs(xy / np.abs(xy).max(axis=0)).max(axis=1)
    gates = np.zeros(len(xy))
    gates[[3 * columns, 4 * columns - 1, 2, 5, (rows - 1) * columns + 2, (rows - 1) * columns + 5]] = 1.0
    west, east = np.zeros(len(xy)), np.zeros(len(xy))
    west[3 * columns], east[4 * columns - 1] = 1.0, 1.0
    zones = {
        "homes": 0.15 + outer**2 * (xy[:, 1] > xy[:, 1].min()),
        "offices": _near(xy, (150.0, -100.0), 420.0),
        "port": _near(xy, (float(xy[:, 0].min()), float(xy[:, 1].min())), 550.0),
        "gates": gates,
        "west": west,
        "east": east,
        "any": np.ones(len(xy)),
    }
    inner = [r * columns + c for r in range(1, rows - 1) for c in range(1, columns - 1)]
    narrow = {3 * columns + 2, 3 * columns + 5, *rng.choice(inner, 7, replace=False).tolist()}
    return roads.build(zones, sorted(narrow))


def ring_network(rng: np.random.Generator, radials: int = 9) -> Network:
    """Three rings and the radial roads that cross them, with the outer ring built as an urban motorway."""
    radii = (650.0, 1700.0, 3100.0, 4500.0)
    angles = 2 * np.pi * (np.arange(radials) + rng.uniform(-0.18, 0.18, radials)) / radials
    points = [(0.0, 0.0)]
    for radius in radii:
        stretch = rng.uniform(0.93, 1.07, radials)
        points += [(radius * s * math.cos(t), radius * s * math.sin(t)) for s, t in zip(stretch, angles, strict=True)]
    xy = np.array(points)
    roads = _Roads(xy, rng)

    def at(ring: int, radial: int) -> int:
        return 1 + ring * radials + radial % radials

    for k in range(radials):
        main = k % 3 == 0
        roads.add(at(0, k), at(0, k + 1), speed=50, lanes=2, green=0.92, bend=1.03)
        roads.add(at(1, k), at(1, k + 1), speed=60, lanes=2, green=0.92, bend=1.04)
        roads.add(at(2, k), at(2, k + 1), speed=90, lanes=2, green=0.9, bend=1.04)
        roads.add(at(0, k), at(1, k), speed=50, lanes=2, green=0.92, bend=1.03)
        roads.add(at(1, k), at(2, k), speed=70 if main else 60, lanes=2 if main else 1, green=0.95, bend=1.05)
        roads.add(at(2, k), at(3, k), speed=80, lanes=2, green=0.95, bend=1.05)
    for k in range(0, radials, 2):
        roads.add(0, at(0, k), speed=40, lanes=1, green=0.55)

    radius = np.linalg.norm(xy, axis=1)
    ring = np.concatenate([[-1], np.repeat(np.arange(4), radials)])
    campus = tuple(xy[at(1, 4)])
    zones = {
        "homes": np.where(ring == 1, 0.8, np.where(ring == 2, 1.0, np.where(ring == 3, 0.9, 0.0))),
        "centre": np.exp(-((radius / 800.0) ** 2)),
        "campus": _near(xy, (float(campus[0]), float(campus[1])), 600.0),
        "gates": (ring == 3).astype(float),
        "any": np.where(ring == 3, 0.3, 1.0),
    }
    narrow = [at(0, k) for k in range(0, radials, 2)] + [at(1, 4), at(2, 7)]
    return roads.build(zones, narrow)


def organic_network(rng: np.random.Generator, junctions: int = 26, bridges: int = 3) -> Network:
    """A town that grew: irregular streets on both banks of a river, and few bridges that everybody needs."""
    width, height = 5200.0, 4200.0

    def river(x: Floats | float) -> Floats:
        return np.asarray(260.0 * np.sin(np.asarray(x) / width * 2 * np.pi) - 100.0)

    points: list[Floats] = []
    while len(points) < junctions:  # dart throwing: junctions keep their distance from each other and from the water
        p = np.array([rng.uniform(-width / 2, width / 2), rng.uniform(-height / 2, height / 2)])
        apart = all(np.linalg.norm(p - q) > 560 for q in points)
        if apart and abs(p[1] - float(river(p[0]))) > 240:
            points.append(p)
    xy = np.array(points)
    north = xy[:, 1] > river(xy[:, 0])

    triangles = np.sort(Delaunay(xy).simplices, axis=1)
    pairs = {(int(t[i]), int(t[j])) for t in triangles for i, j in ((0, 1), (0, 2), (1, 2))}
    distance = np.linalg.norm(xy[:, None] - xy[None, :], axis=2)
    crossing = sorted((p for p in pairs if north[p[0]] != north[p[1]]), key=lambda p: xy[list(p), 0].mean())
    chosen = _spread(crossing, distance, xy, bridges, width)
    streets = [p for p in pairs if north[p[0]] == north[p[1]] and _is_kept(p, distance, slack=0.9)]
    graph = nx.Graph(sorted(streets))
    for bank in (True, False):  # a bank whose streets fell apart is joined by its shortest missing links
        members = [i for i in range(junctions) if north[i] == bank]
        graph.add_nodes_from(members)
        candidates = nx.Graph()
        candidates.add_weighted_edges_from((a, b, distance[a, b]) for a, b in pairs if north[a] == north[b] == bank)
        graph.add_edges_from(nx.minimum_spanning_tree(candidates).edges)

    roads = _Roads(xy, rng)
    hubs = {i for pair in chosen for i in pair}
    for a, b in sorted((min(e), max(e)) for e in graph.edges):
        main = a in hubs or b in hubs
        roads.add(a, b, speed=60 if main else 50, lanes=1, green=0.8 if main else 0.75, bend=rng.uniform(1.02, 1.15))
    for a, b in chosen:
        roads.add(a, b, speed=50, lanes=1, green=0.55, bend=1.02)

    edge = np.abs(xy / np.array([width / 2, height / 2])).max(axis=1)
    gates = np.zeros(junctions)
    gates[np.argsort(-edge)[:5]] = 1.0
    zones = {
        "north": north * (0.4 + edge),
        "works": ~north * _near(xy, (500.0, -1100.0), 900.0),
        "market": north * _near(xy, (-200.0, 700.0), 700.0),
        "gates": gates,
        "any": np.ones(junctions),
    }
    narrow = rng.choice([i for i in range(junctions) if i not in hubs], 2, replace=False).tolist()
    return roads.build(zones, narrow)


def _is_kept(pair: tuple[int, int], distance: Floats, slack: float) -> bool:
    """Relaxed relative-neighbourhood test: drop a road if some junction is much nearer to both its ends."""
    a, b = pair
    return not bool(np.any(np.maximum(distance[a], distance[b]) < slack * distance[a, b]))


def _spread(
    crossing: list[tuple[int, int]], distance: Floats, xy: Floats, bridges: int, width: float
) -> list[tuple[int, int]]:
    """For each stretch of the river the shortest possible bridge that shares no junction with another one."""
    chosen: list[tuple[int, int]] = []
    for k in range(bridges):
        low, high = -width / 2 + k * width / bridges, -width / 2 + (k + 1) * width / bridges
        taken = {i for pair in chosen for i in pair}
        here = [p for p in crossing if low <= xy[list(p), 0].mean() < high and not taken & set(p)]
        if here:
            chosen.append(min(here, key=lambda p: float(distance[p])))
    return chosen


def gridport(rng: np.random.Generator) -> CityPlan:
    """The big source city: offices in the middle, a port in a corner, traffic passing through."""
    trips = (
        Trips("homes", "offices", 7.9, 0.75, 33_400, 3_300),
        Trips("offices", "homes", 17.6, 1.0, 33_400, 3_300),
        Trips("homes", "port", 6.3, 0.6, 8_900, 4_000),
        Trips("port", "homes", 15.2, 0.7, 8_900, 4_000),
        Trips("west", "east", 8.3, 1.3, 5_400, 3_300),
        Trips("east", "west", 17.0, 1.5, 5_400, 3_300),
        Trips("any", "any", 12.8, 3.6, 43_100, 44_700),
        Trips("homes", "offices", 13.2, 1.9, 5_400, 39_600),
        Trips("offices", "homes", 15.8, 2.2, 5_400, 39_600),
        Trips("gates", "any", 12.5, 4.6, 12_500, 11_200),
        Trips("any", "gates", 14.0, 4.6, 12_500, 11_200),
        Trips("any", "any", 22.5, 2.0, 5_400, 11_200),
        Trips("port", "gates", 3.5, 2.0, 2_200, 1_400),
    )
    peculiar = (
        "Early port shifts (06:20 and 15:10) beside the office peaks (08:00 and 17:40); one-way pairs; through "
        "traffic between the two ends of the one street arterial."
    )
    return CityPlan("gridport", "2024-03-04T00:00:00", 53.5, 8.15, grid_network(rng), trips, 7.0, 5.0, peculiar)


def ringwood(rng: np.random.Generator) -> CityPlan:
    """The second source city: two attractors, long commutes, much through traffic on the motorway ring."""
    trips = (
        Trips("homes", "centre", 7.4, 0.8, 32_500, 5_900),
        Trips("gates", "centre", 7.7, 0.7, 15_000, 4_000),
        Trips("centre", "homes", 16.7, 1.1, 32_500, 5_900),
        Trips("centre", "gates", 16.9, 1.0, 15_000, 4_000),
        Trips("homes", "campus", 9.0, 0.9, 12_400, 1_500),
        Trips("campus", "homes", 18.4, 1.2, 12_400, 1_500),
        Trips("gates", "gates", 8.2, 1.6, 20_000, 11_900),
        Trips("gates", "gates", 16.2, 2.0, 20_000, 23_700),
        Trips("any", "any", 12.5, 3.5, 30_000, 43_400),
        Trips("homes", "centre", 12.4, 1.6, 5_000, 43_400),
        Trips("centre", "homes", 15.4, 1.9, 5_000, 43_400),
        Trips("any", "any", 22.0, 2.2, 5_000, 13_900),
        Trips("gates", "gates", 3.0, 2.5, 2_400, 3_200),
    )
    peculiar = (
        "Two attractors, the centre (peaks 07:30 and 16:45) and a campus on the middle ring (09:00 and 18:30); much "
        "traffic only passes through, from gate to gate, for which the 90 km/h outer ring is there."
    )
    return CityPlan("ringwood", "2024-04-15T00:00:00", 48.4, 11.6, ring_network(rng), trips, 5.0, 4.0, peculiar)


def riverton(rng: np.random.Generator) -> CityPlan:
    """The data-poor target: most jobs lie across the river, and the bridges decide how the day goes."""
    trips = (
        Trips("north", "works", 7.1, 0.6, 9_200, 1_900),
        Trips("works", "north", 16.3, 0.9, 9_200, 1_900),
        Trips("any", "market", 10.5, 1.8, 4_200, 16_000),
        Trips("market", "any", 13.0, 2.0, 4_200, 16_000),
        Trips("any", "any", 13.0, 3.6, 13_300, 21_000),
        Trips("gates", "any", 9.0, 2.0, 2_800, 3_200),
        Trips("any", "gates", 17.5, 2.0, 2_800, 3_900),
        Trips("any", "any", 21.5, 2.2, 2_300, 5_200),
        Trips("gates", "gates", 12.5, 4.5, 2_800, 2_900),
    )
    peculiar = (
        "Three one-lane bridges tie homes in the north to works in the south; their queues reach back over several "
        "segments (south-bound in the morning, north-bound in the afternoon). The weekend peak belongs to the market."
    )
    return CityPlan("riverton", "2024-05-13T00:00:00", 50.9, 4.6, organic_network(rng), trips, 3.0, 4.0, peculiar)


CITY_PLANS = {"gridport": gridport, "ringwood": ringwood, "riverton": riverton}
"""Every bundled city by its name; the generator that is passed in decides the details of the map."""
