"""The bundled simulated cities: they are what their cards say, and they behave like road traffic."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

DEMO = Path(__file__).parents[2] / "datasets" / "demo"
CITIES = ("gridport", "ringwood", "riverton")
DAYS, STEPS_PER_DAY, MISSING = 14, 288, 65535
DTYPES = {
    "speed": np.uint16,
    "flow": np.uint16,
    "edge_index": np.int32,
    "edge_distance": np.float32,
    "pos": np.float64,
    "length": np.float32,
    "free_flow": np.float32,
    "lanes": np.int8,
    "interval_minutes": np.int64,
    "seed": np.int64,
}

pytestmark = pytest.mark.parametrize("name", CITIES)


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DEMO / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def speed_of(name: str) -> np.ndarray:
    """km/h with NaN where missing."""
    speed = arrays(name)["speed"]
    return np.where(speed == MISSING, np.nan, speed / 10.0)


def by_day(name: str) -> np.ndarray:
    """Speed as a share of free flow, ``[day, step of the day, segment]``; the first day is a Monday."""
    return (speed_of(name) / arrays(name)["free_flow"]).reshape(DAYS, STEPS_PER_DAY, -1)


def held(share: np.ndarray) -> np.ndarray:
    """Fill each gap with the reading before it, so that a gap neither starts nor ends a queue."""
    seen = np.where(np.isnan(share), 0, np.arange(len(share))[:, None])
    return np.nan_to_num(np.take_along_axis(share, np.maximum.accumulate(seen, axis=0), axis=0), nan=1.0)


def hours(low: float, high: float) -> slice:
    return slice(int(low * 12), int(high * 12))


WEEKDAYS = np.arange(DAYS) % 7 < 5


def test_arrays_have_the_promised_shapes_and_types(name: str) -> None:
    city = arrays(name)
    steps, nodes = city["speed"].shape
    assert (steps, 60 <= nodes <= 200) == (DAYS * STEPS_PER_DAY, True)
    assert {key: city[key].dtype for key in DTYPES} == {key: np.dtype(kind) for key, kind in DTYPES.items()}
    assert city["flow"].shape == (steps, nodes)
    assert city["edge_index"].shape == (2, len(city["edge_distance"]))
    assert city["pos"].shape == (nodes, 2)
    assert {len(city[key]) for key in ("length", "free_flow", "lanes", "node_ids")} == {nodes}
    assert city["node_ids"].dtype.kind == "U"
    assert len(set(city["node_ids"].tolist())) == nodes
    assert all(node.startswith(f"{name}-") for node in city["node_ids"].tolist())
    assert city["interval_minutes"] == 5


def test_the_first_step_is_a_monday_midnight(name: str) -> None:
    start = np.datetime64(str(arrays(name)["start"]), "s")
    assert start == start.astype("datetime64[D]")
    assert start.astype("datetime64[D]").astype(int) % 7 == 4  # day 0 of the epoch was a Thursday


def test_all_cities_together_are_small_enough_to_bundle(name: str) -> None:
    del name
    assert sum((DEMO / f"{city}.npz").stat().st_size for city in CITIES) < 5_000_000


def test_the_card_carries_the_checksum_of_the_file(name: str) -> None:
    checksum = hashlib.sha256((DEMO / f"{name}.npz").read_bytes()).hexdigest()
    assert checksum in (DEMO / f"{name}.md").read_text(encoding="utf-8")


def test_some_readings_are_missing_in_both_channels_at_once(name: str) -> None:
    lost = arrays(name)["speed"] == MISSING
    assert 0.01 < lost.mean() < 0.08
    np.testing.assert_array_equal(lost, arrays(name)["flow"] == MISSING)
    assert lost.all(axis=1).any(), "no city-wide outage"
    assert (lost.mean(axis=0) < 0.5).all(), "a sensor that is mostly dead teaches nothing"


def test_readings_are_physically_possible(name: str) -> None:
    city, speed = arrays(name), speed_of(name)
    flow = np.where(city["flow"] == MISSING, 0, city["flow"])
    assert np.nanmin(speed) > 0
    assert np.nanmax(speed / city["free_flow"]) < 1.25
    assert (flow <= 2400 / 12 * city["lanes"] * 1.1 + 5).all(), "more vehicles than lanes can carry"


def test_the_graph_is_connected_and_has_no_u_turns(name: str) -> None:
    i, j = arrays(name)["edge_index"]
    graph = nx.DiGraph(zip(i.tolist(), j.tolist(), strict=True))
    assert len(graph) == len(arrays(name)["length"])
    assert graph.number_of_edges() == len(i)
    assert nx.is_weakly_connected(graph)
    assert not nx.number_of_selfloops(graph)
    # Were U-turns edges, the two directions of a road would follow each other both ways.
    assert all(not graph.has_edge(b, a) for a, b in graph.edges)


def test_distances_along_the_roads_agree_with_the_positions(name: str) -> None:
    city = arrays(name)
    latitude, longitude = np.radians(city["pos"]).T
    i, j = city["edge_index"]
    haversine = (
        np.sin((latitude[i] - latitude[j]) / 2) ** 2
        + np.cos(latitude[i]) * np.cos(latitude[j]) * np.sin((longitude[i] - longitude[j]) / 2) ** 2
    )
    straight = 2 * 6_371_008.8 * np.arcsin(np.sqrt(haversine))
    along = city["edge_distance"]
    assert (along >= straight - 15).all()  # midpoints lie some metres to the right of the road's axis
    assert np.median(straight / along) > 0.6, "positions are much nearer to each other than the roads are long"
    np.testing.assert_allclose(along, (city["length"][i] + city["length"][j]) / 2, rtol=1e-5)


def test_weekdays_have_two_peaks_and_weekends_one_around_midday(name: str) -> None:
    flow = arrays(name)["flow"].astype(float)
    flow[flow == MISSING] = np.nan
    flow = flow.reshape(DAYS, STEPS_PER_DAY, -1)
    weekday, weekend = (np.nanmean(flow[days], axis=(0, 2)) for days in (WEEKDAYS, ~WEEKDAYS))
    noon = hours(11, 14)
    assert weekday[hours(6.5, 9)].mean() > 1.1 * weekday[noon].mean()
    assert weekday[hours(15.5, 18.5)].mean() > 1.1 * weekday[noon].mean()
    assert weekend[noon].mean() > 1.3 * weekend[hours(6.5, 9)].mean()
    assert weekday[hours(6.5, 9)].mean() > 1.5 * weekend[hours(6.5, 9)].mean()


def test_peaks_are_congested_and_nights_are_free(name: str) -> None:
    congested = by_day(name) < 0.5
    morning, night = congested[WEEKDAYS, hours(7, 9)], congested[:, hours(2.75, 3.25)]
    assert morning.mean() > 0.03
    assert congested[WEEKDAYS, hours(16, 18.5)].mean() > 0.01
    assert night.mean() < 0.005
    assert congested[:, -1].mean() < 0.05, "a queue of the day has not dissolved by midnight"
    assert congested[~WEEKDAYS].mean() < congested[WEEKDAYS].mean()


def test_queues_grow_upstream(name: str) -> None:
    """Of two consecutive segments that become congested within half an hour, the downstream one tends to be first."""
    share = held(speed_of(name) / arrays(name)["free_flow"])
    congested = share < 0.5
    onset = np.zeros_like(congested)
    onset[6:-2] = congested[6:-2] & congested[7:-1] & congested[8:]
    for back in range(1, 7):
        onset[6:-2] &= ~congested[6 - back : -2 - back]
    downstream_first = upstream_first = 0
    for i, j in arrays(name)["edge_index"].T:
        after = np.flatnonzero(onset[:, j])
        for moment in np.flatnonzero(onset[:, i]):
            delay = moment - after[np.abs(moment - after) <= 6]
            if len(delay):
                nearest = delay[np.abs(delay).argmin()]
                downstream_first += nearest > 0
                upstream_first += nearest < 0
    assert downstream_first + upstream_first > 50
    assert downstream_first > 1.2 * upstream_first


def test_days_differ(name: str) -> None:
    """Two weekdays share their shape, not their readings: beyond the noise, queues come at other times and places."""
    congested = by_day(name) < 0.5
    tuesday, wednesday = congested[1], congested[2]
    assert tuesday.any()
    assert wednesday.any()
    overlap = (tuesday & wednesday).sum() / (tuesday | wednesday).sum()
    assert overlap < 0.7
