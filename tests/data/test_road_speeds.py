"""Speeds of roads, against OSMnx's own."""

from __future__ import annotations

import logging
import math

import networkx as nx
import numpy as np
import pytest

from tsjt_pyg.data.road_network import roads_from_networkx
from tsjt_pyg.data.road_speeds import HIGHWAY_SPEEDS, parse_maxspeed


@pytest.mark.parametrize(
    ("value", "kmh"),
    [
        ("50", 50),
        (50, 50),
        (50.0, 50),
        ("25 mph", 25 * 1.60934),
        ("25mph", 25 * 1.60934),
        ("60 km/h", 60),
        ("7,5", 7.5),
        ("5 knots", 5 * 1.852),
        (["30 mph", "35 mph"], 32.5 * 1.60934),
        ("['30 mph', '35 mph']", 32.5 * 1.60934),
        (["50", "none"], 50),
        (["50", float("nan"), None], 50),
        ("30|50", 40),
        ("30; 50", 40),
        ("none", math.nan),
        ("signals", math.nan),
        ("RO:urban", math.nan),
        ("BE-VLG:rural", math.nan),
        (None, math.nan),
        ("", math.nan),
        ("None", math.nan),
        (float("nan"), math.nan),
        ([], math.nan),
    ],
)
def test_maxspeed_of_every_kind(value, kmh):
    assert parse_maxspeed(value) == pytest.approx(kmh, nan_ok=True)


@pytest.mark.parametrize(
    "value", ["fast", "0", "-30", "50 furlongs", "__import__('os')", ["50", "fast"], "[" * 5000 + "]"]
)
def test_a_maxspeed_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"found ."):
        parse_maxspeed(value)


def streets(*roads: dict) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph(crs="epsg:4326")
    for i in range(len(roads) + 1):
        graph.add_node(i, x=4 + i / 100, y=52.0)
    for i, road in enumerate(roads):
        graph.add_edge(i, i + 1, osmid=i, length=100.0 * (i + 1), **road)
    return graph


ROADS = [
    {"highway": "primary", "maxspeed": "50"},
    {"highway": "primary", "maxspeed": ["30 mph", "35 mph"]},
    {"highway": "primary"},
    {"highway": ["residential", "service"], "maxspeed": "30"},
    {"highway": "residential", "maxspeed": "20|30"},
    {"highway": ["residential", "primary"]},
    {"highway": "tertiary"},
    {"highway": "motorway", "maxspeed": "none"},
    {"highway": "trunk", "maxspeed": "7,5"},
]


@pytest.mark.parametrize("speeds", [None, {"motorway": 110.0, "primary": 40.0}])
def test_travel_times_are_those_of_osmnx(speeds):
    osmnx = pytest.importorskip("osmnx")
    graph = streets(*ROADS)
    expected = osmnx.routing.add_edge_travel_times(osmnx.routing.add_edge_speeds(graph.copy(), hwy_speeds=speeds))
    seconds = [data["travel_time"] for *_, data in expected.edges(data=True)]
    assert roads_from_networkx(graph).cost("travel_time", speeds) == pytest.approx(seconds, rel=1e-12)
    # And what OSMnx wrote on the edges is believed.
    assert roads_from_networkx(expected).cost("travel_time") == pytest.approx(seconds, rel=1e-12)
    for *_, data in expected.edges(data=True):
        del data["travel_time"], data["maxspeed" if "maxspeed" in data else "osmid"]
    assert roads_from_networkx(expected).cost("travel_time") == pytest.approx(seconds, rel=1e-12)


def test_without_any_limit_the_class_decides_and_the_log_says_so(caplog):
    roads = roads_from_networkx(streets({"highway": "primary"}, {"highway": ["service", "path"]}))
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        seconds = roads.cost("travel_time")
    assert seconds == pytest.approx([100 / 65 * 3.6, 200 / 15 * 3.6])
    assert HIGHWAY_SPEEDS["primary"] == 65
    assert "2 of 2 roads have no maxspeed; their speed is assumed by highway class" in caplog.text
    assert roads.cost("travel_time", {"service": 10}) == pytest.approx([100 / 65 * 3.6, 72.0])


@pytest.mark.parametrize(
    ("roads", "speeds", "message"),
    [
        (
            [{"maxspeed": "fast"}],
            None,
            "road '0-1-0' has maxspeed = 'fast' .found 'fast'.; expected .* mend the tag, or give",
        ),
        ([{"maxspeed": ["50", "0"]}], None, r"road '0-1-0' has maxspeed = \['50', '0'\] .found '0'"),
        (
            [{"highway": "cow_path"}],
            None,
            r"nothing says how fast road '0-1-0' .highway 'cow_path'. is, .*speeds=\{'cow_pa",
        ),
        ([{}], None, "nothing says how fast road '0-1-0' .highway 'unknown'. is"),
        ([{"highway": "primary"}], {"primary": -5}, "speeds: 'primary' is -5; expected a positive number of km/h"),
        ([{"speed_kph": 30}, {"speed_kph": 0}], None, "road '1-2-0' has speed_kph = 0; expected a positive number"),
        ([{"travel_time": "soon"}], None, "road '0-1-0' has travel_time = soon; expected a positive number"),
    ],
)
def test_messages_name_the_road(roads, speeds, message):
    with pytest.raises(ValueError, match=message):
        roads_from_networkx(streets(*roads)).cost("travel_time", speeds)


def test_travel_times_need_lengths():
    graph = nx.MultiDiGraph([("a", "b", {"maxspeed": "50"})])
    with pytest.raises(ValueError, match="weight: travel times need the roads' lengths"):
        roads_from_networkx(graph).cost("travel_time")
    assert np.isnan(roads_from_networkx(graph).length).all()
