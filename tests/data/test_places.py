"""Tables of places: joined by id, whatever their order, index and column names."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from tsjt_pyg import City
from tsjt_pyg.data import snap_sensors
from tsjt_pyg.data.places import check_positions, sensor_rows

IDS = ("a", "b", "c")
NUMBERS = [773869, 767541, 717447]
SENSORS = pd.DataFrame(
    {"sensor_id": NUMBERS, "latitude": [52.0, 52.001, 52.002], "longitude": [4.0, 4.01, 4.02]}
)  # as pandas.read_csv gives it: its index numbers the rows
READINGS = pd.DataFrame(np.arange(1.0, 13).reshape(4, 3), columns=[717447, 773869, 767541])
PLACES = [[52.002, 4.02], [52.0, 4.0], [52.001, 4.01]]


def streets() -> nx.MultiDiGraph:
    """Three streets, one past each sensor."""
    graph = nx.MultiDiGraph()
    for i, (latitude, longitude) in enumerate(SENSORS[["latitude", "longitude"]].to_numpy()):
        graph.add_node(f"{i}w", x=longitude - 0.001, y=latitude)
        graph.add_node(f"{i}e", x=longitude + 0.001, y=latitude)
        graph.add_edge(f"{i}w", f"{i}e")
    return graph


DOORS: dict[str, Callable[..., City]] = {
    "positions": lambda readings, places: City.from_positions(readings, places, k=1),
    "adjacency": lambda readings, places: City.from_adjacency(readings, np.ones((3, 3)), positions=places),
    "osmnx": lambda readings, places: City.from_osmnx(
        readings.rename(columns={n: f"{i}w-{i}e-0" for i, n in enumerate(NUMBERS)}),
        streets(),
        nodes="segments",
        positions=places.assign(sensor_id=[f"{i}w-{i}e-0" for i in range(3)]) if "sensor_id" in places else places,
    ),
    "roads": lambda readings, places: City.from_road_network(readings, places, streets()),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_table_as_read_from_a_file_is_joined_by_its_column_of_ids(door):
    city = DOORS[door](READINGS, SENSORS)
    if door != "osmnx":  # there nodes are segments
        assert city.node_ids == ("717447", "773869", "767541")
    np.testing.assert_allclose(city.pos.numpy(), PLACES, atol=1e-9)


@pytest.mark.parametrize("door", ["positions", "adjacency", "roads"])
@pytest.mark.parametrize(
    "spelled",
    [
        lambda t: t.sample(frac=1, random_state=3),  # an index of numbers out of order
        lambda t: t.set_axis([2, 0, 1], axis=0),
        lambda t: t.rename(columns={"sensor_id": "Station", "latitude": "lat", "longitude": "Lng"}),
        lambda t: t.rename(columns={"sensor_id": " id ", "latitude": "y", "longitude": "x"}),
        lambda t: t.set_index("sensor_id"),
        lambda t: t.set_index("sensor_id", drop=False),
        lambda t: t.set_index("sensor_id").rename_axis(index=None),
        lambda t: t.set_index(t["sensor_id"].astype(str).to_numpy()),
        lambda t: t.assign(sensor_id=t["sensor_id"].astype(float)),
        lambda t: t.set_index("sensor_id").assign(id=[1, 2, 3]),  # the first of the usual names
        lambda t: t.set_index(pd.Index(["p", "q", "r"], name="id")),
        lambda t: pd.concat([t, t.assign(sensor_id=[1, 2, 3], latitude=0.0)]),
    ],
)
def test_ids_may_be_a_column_or_the_index_in_any_order(door, spelled):
    city = DOORS[door](READINGS, spelled(SENSORS))
    assert city.node_ids == ("717447", "773869", "767541")
    np.testing.assert_allclose(city.pos.numpy(), PLACES)


@pytest.mark.parametrize("door", ["positions", "adjacency", "roads"])
@pytest.mark.parametrize("columns", [NUMBERS, [2, 0, 1], [1, 2, 3], ["s0", "s1", "s2"]])
def test_row_numbers_are_not_ids_of_readings_that_have_their_own(door, columns):
    places = SENSORS.drop(columns="sensor_id")
    message = r"(positions|sensors): the table has no node ids, its index numbers 3 rows, .* column named sensor_id"
    with pytest.raises(ValueError, match=message):
        DOORS[door](READINGS.set_axis(columns, axis=1), places)


@pytest.mark.parametrize("door", ["positions", "adjacency", "roads"])
def test_readings_without_ids_are_in_the_order_of_places_without_ids(door):
    places = SENSORS.drop(columns="sensor_id")
    for readings in (READINGS.to_numpy(), READINGS.set_axis(range(3), axis=1)):
        np.testing.assert_allclose(DOORS[door](readings, places).pos.numpy(), places.to_numpy())
    with pytest.raises(ValueError, match=r"index numbers 3 rows, but the 2 nodes|expected 2 ids"):
        DOORS[door](READINGS.to_numpy()[:, :2], places)


def test_a_snap_made_before_knows_that_its_sensors_had_no_ids():
    from tsjt_pyg.data import read_roads

    roads = read_roads(streets())
    snapped = snap_sensors(SENSORS.drop(columns="sensor_id"), roads)
    assert snapped.numbered
    assert not snap_sensors(SENSORS, roads).numbered
    with pytest.raises(ValueError, match="sensors: the table has no node ids"):
        City.from_road_network(READINGS.set_axis([2, 1, 0], axis=1), snapped, roads)


def test_the_labels_of_osmnx_are_ids_of_segments():
    keys = pd.MultiIndex.from_tuples([(1, 2, 0), (1, 2, 1), (2.0, 1, 0)], names=["u", "v", "key"])
    rows = sensor_rows(SENSORS.set_axis(keys, axis=0).drop(columns="sensor_id"), "sensors")
    assert (rows.ids, rows.numbered) == (("1-2-0", "1-2-1", "2-1-0"), False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_positions(np.zeros((2, 2)), IDS), r"positions: expected shape \[3, 2\] \(latitude, longitude\)"),
        (
            lambda: check_positions(np.array([[0, 0], [-118.2, 34.1], [0, 0]]), IDS),
            r"positions: node 'b' is at \[-118.2, 34.1\]; .*in degrees and in that order",
        ),
        (lambda: check_positions(np.full((3, 2), np.nan), IDS), r"positions: node 'a' is at \[nan, nan\]"),
        (lambda: check_positions(np.full((3, 2), "N"), IDS), "positions: expected an array or table of numbers"),
        (
            lambda: check_positions(pd.DataFrame({"north": [1], "longitude": [1]}), IDS),
            r"positions: column 'latitude' is absent, found \['north', 'longitude'\]; .* latitude, lat, y",
        ),
        (
            lambda: check_positions(pd.DataFrame({"latitude": [1], "longitude": [1]}, index=["a"]), IDS),
            "positions: node 'b' is not in the table's index",
        ),
        (
            lambda: check_positions(SENSORS, IDS),
            "positions: node 'a' is not in the table's column 'sensor_id' .such as '773869'; 3 of 3",
        ),
        (
            lambda: check_positions(SENSORS.set_axis(["a", "b", "c"], axis=0), IDS),
            r"positions: its index \('a', …\) and its column 'sensor_id' \('773869', …\) both may hold the node ids",
        ),
        (
            lambda: check_positions(SENSORS.assign(sensor_id=[1, 2, 1]), ("1", "2")),
            "positions: '1' occurs more than once",
        ),
        (
            lambda: check_positions(SENSORS.assign(sensor_id=[1, 2, None]), ("1", "2")),
            "positions: column 'sensor_id', row 2: found nothing, expected an id",
        ),
    ],
)
def test_messages_name_the_node_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
