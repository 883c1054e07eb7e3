"""City: its constructors, what it says of itself, and the cities made from it."""

from __future__ import annotations

import logging
import pickle
from dataclasses import FrozenInstanceError, replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City

READINGS = np.arange(1, 25, dtype=np.float32).reshape(8, 3)
CHAIN = np.array([[0, 0.5, 0], [0, 0, 0.25], [0, 0, 0]])
TIMES = pd.date_range("2024-03-02 06:00", periods=8, freq="15min")
TABLE = pd.DataFrame(READINGS, columns=["a", "b", "c"], index=TIMES)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def dense(city: City) -> np.ndarray:
    """Weights as a matrix in the order of the sorted node ids."""
    order = {node: i for i, node in enumerate(sorted(city.node_ids))}
    matrix = np.zeros((city.num_nodes, city.num_nodes))
    for (i, j), weight in zip(city.edge_index.T.tolist(), city.edge_weight.tolist(), strict=True):
        matrix[order[city.node_ids[i]], order[city.node_ids[j]]] = weight
    return matrix


# --- constructors


def test_adjacency_makes_an_edge_of_every_positive_weight():
    city = City.from_adjacency(READINGS, CHAIN)
    assert city.edge_index.tolist() == [[0, 1], [1, 2]]
    assert city.edge_weight.tolist() == [0.5, 0.25]
    assert city.readings.shape == city.mask.shape == (8, 3, 1)
    assert (city.readings.dtype, city.mask.dtype) == (torch.float32, torch.bool)
    assert (city.edge_index.dtype, city.edge_weight.dtype) == (torch.int64, torch.float32)
    assert (city.name, city.channels, city.units, city.node_ids) == ("city", ("reading",), ("",), ("0", "1", "2"))
    assert city.pos is None


def test_all_constructors_agree_on_the_same_roads():
    metres = np.array([[0, 100, np.inf], [np.inf, 0, 300], [np.inf, np.inf, 0]])
    table = pd.DataFrame({"from": ["b", "a"], "to": ["c", "b"], "cost": [300, 100]})
    graph = nx.DiGraph()
    graph.add_nodes_from("cab")
    graph.add_edge("a", "b", length=100)
    graph.add_edge("b", "c", length=300)
    weight = np.exp(-np.square(np.array([100.0, 300.0]) / 250))
    index = torch.tensor([[0, 1], [1, 2]])
    cities = [
        City.from_distances(TABLE, metres, sigma=250, threshold=0),
        City.from_distances(TABLE, torch.tensor(metres), sigma=250, threshold=0),
        City.from_distances(TABLE, table, sigma=250, threshold=0),
        City.from_networkx(TABLE, graph, sigma=250),
        City.from_edge_index(TABLE, index, torch.tensor(weight)),
        City.from_edge_index(TABLE, index.numpy(), weight),
    ]
    for city in cities:
        assert city.node_ids == ("a", "b", "c")
        assert dense(city)[[0, 1], [1, 2]] == pytest.approx(weight, rel=1e-6)
        assert np.count_nonzero(dense(city)) == 2


def test_edge_index_without_weights_has_ones():
    assert City.from_edge_index(READINGS, torch.tensor([[0, 2], [1, 0]])).edge_weight.tolist() == [1, 1]


def test_labelled_adjacency_is_joined_by_id_in_any_order():
    adjacency = pd.DataFrame(CHAIN, index=list("abc"), columns=list("abc"))
    expected = dense(City.from_adjacency(TABLE, CHAIN))
    shuffled = City.from_adjacency(TABLE[["c", "a", "b"]], adjacency.loc[["b", "c", "a"], ["a", "c", "b"]])
    assert shuffled.node_ids == ("c", "a", "b")
    assert np.array_equal(dense(shuffled), expected)


def test_positions_are_joined_by_id_whatever_the_constructor():
    places = pd.DataFrame({"longitude": [3.0, 1.0, 2.0], "latitude": [30.0, 10.0, 20.0]}, index=["c", "a", "b"])
    expected = [[10, 1], [20, 2], [30, 3]]
    assert City.from_adjacency(TABLE, CHAIN, positions=places).pos.tolist() == expected
    assert City.from_positions(TABLE, places, k=1).pos.tolist() == expected
    assert City.from_positions(TABLE, torch.tensor(expected), k=1).pos.dtype == torch.float64


def test_networkx_joins_readings_and_places_by_id():
    graph = nx.DiGraph()
    for node, x, y in [("c", -118.3, 34.3), ("a", -118.1, 34.1), ("b", -118.2, 34.2)]:
        graph.add_node(node, x=x, y=y)
    graph.add_edge("a", "b", length=120.0)
    city = City.from_networkx(TABLE, graph)
    assert city.pos.tolist() == [[34.1, -118.1], [34.2, -118.2], [34.3, -118.3]]
    assert [(city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist()] == [("a", "b")]


def test_networkx_gives_its_order_to_readings_without_ids():
    graph = nx.DiGraph([("z", "m"), ("m", "a")])
    city = City.from_networkx(READINGS, graph)
    assert city.node_ids == ("z", "m", "a")
    assert city.edge_index.tolist() == [[0, 1], [1, 2]]


def test_networkx_segments_take_readings_by_road_id():
    graph = nx.MultiDiGraph()
    graph.add_edge("a", "b", length=100)
    graph.add_edge("a", "b", length=150)
    graph.add_edge("b", "c", length=200)
    table = TABLE.set_axis(["b-c-0", "a-b-1", "a-b-0"], axis=1)
    city = City.from_networkx(table, graph, nodes="segments")
    roads = {(city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist()}
    assert roads == {("a-b-0", "b-c-0"), ("a-b-1", "b-c-0")}


def test_networkx_nodes_without_readings_are_kept_or_dropped(caplog):
    graph = nx.path_graph(list("dabc"))
    nx.set_edge_attributes(graph, 100, "length")
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        kept = City.from_networkx(TABLE, graph, without_readings="keep")
        dropped = City.from_networkx(TABLE, graph, without_readings="drop")
    assert "1 of 4 junctions have no readings: keep ('d')" in caplog.text
    assert "1 of 4 junctions have no readings: drop ('d')" in caplog.text
    assert kept.node_ids == ("a", "b", "c", "d")
    assert kept.mask[:, :3].all()
    assert not kept.mask[:, 3].any()
    assert (kept.num_edges, dropped.num_edges) == (6, 4)
    assert dropped.node_ids == ("a", "b", "c")


def test_networkx_positions_of_kept_nodes_come_from_a_table_of_all():
    graph = nx.path_graph(list("dabc"))
    places = pd.DataFrame({"latitude": [4.0, 3, 2, 1], "longitude": 50.0}, index=list("dcba"))
    city = City.from_networkx(TABLE, graph, without_readings="keep", positions=places)
    assert city.pos[:, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="positions: node 'd' is not in the table's index"):
        City.from_networkx(TABLE, graph, without_readings="keep", positions=places.drop("d"))
    with pytest.raises(ValueError, match="positions: nodes without readings have none; give a table of all nodes"):
        City.from_networkx(TABLE, graph, without_readings="keep", positions=[[1.0, 2.0]] * 3)


def test_networkx_leaves_loops_and_their_readings_out_and_says_so(caplog):
    graph = nx.MultiDiGraph([("a", "b"), ("b", "c"), ("c", "c")])
    table = TABLE.set_axis(["a-b-0", "c-c-0", "b-c-0"], axis=1)
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        city = City.from_networkx(table, graph, nodes="segments")
    assert city.node_ids == ("a-b-0", "b-c-0")
    assert "edges from a node to itself are left out: 'c-c-0'" in caplog.text
    assert "readings of 1 segments that were left out of the graph are left out" in caplog.text


def test_mapping_of_tables_gives_channels_and_time():
    flow = (TABLE * 10)[["b", "c", "a"]]
    city = City.from_adjacency({"speed": TABLE, "flow": flow}, CHAIN, units=["km/h", "veh/h"], name="x")
    assert (city.channels, city.units, city.name) == (("speed", "flow"), ("km/h", "veh/h"), "x")
    assert torch.equal(city.readings[..., 1], city.readings[..., 0] * 10)
    assert city.start == TIMES[0]
    assert city.interval == pd.Timedelta("15min")
    assert city.time.equals(TIMES)


# --- what it says of itself


def test_sizes_and_time(make_city):
    city = make_city(num_steps=50, num_nodes=4, num_channels=2, start="2024-03-02 23:00", interval="30min")
    assert (city.num_steps, city.num_nodes, city.num_channels, city.num_edges) == (50, 4, 2, 4)
    assert city.steps_per_day == 48
    assert city.step_of_day[:4].tolist() == [46, 47, 0, 1]
    assert city.time_of_day[:3].tolist() == pytest.approx([46 / 48, 47 / 48, 0])
    assert city.time[2] == pd.Timestamp("2024-03-03")
    assert city.channels == ("reading_0", "reading_1")


def test_time_of_day_of_a_start_between_two_steps(make_city):
    city = make_city(num_steps=3, start="2024-03-02 00:45", interval="60min")
    assert city.step_of_day.tolist() == [0, 1, 2]
    assert (city.time_of_day * 24).tolist() == pytest.approx([0.75, 1.75, 2.75])


@pytest.mark.parametrize(
    ("start", "interval"), [("2024-03-01 21:00", "60min"), ("2023-12-30 00:45", "6h"), ("2024-02-25", "1D")]
)
def test_day_of_week_is_pandas(make_city, start, interval):
    city = make_city(num_steps=60, start=start, interval=interval)
    assert city.day_of_week.dtype == torch.int64
    assert city.day_of_week.tolist() == city.time.day_of_week.tolist()


def test_missing_and_repr():
    readings = READINGS.copy()
    readings[0, :2] = np.nan
    city = City.from_adjacency(readings, CHAIN, name="Delft", channels="speed", units="km/h", start="2024-03-02")
    assert city.missing == pytest.approx(2 / 24)
    assert repr(city) == (
        "City('Delft', 8 steps x 3 nodes, speed (km/h), every 5 min from 2024-03-02 00:00, 2 edges, 8.3% missing)"
    )


def test_fingerprint_tells_cities_apart(make_city):
    city = make_city(missing=0.1)
    assert city.fingerprint() == make_city(missing=0.1).fingerprint()
    others = [
        make_city(missing=0.2),
        make_city(missing=0.1, interval="10min"),
        replace(city, mask=~city.mask),
        replace(city, edge_weight=city.edge_weight * 2),
        replace(city, edge_index=city.edge_index.flip(0)),
        replace(city, node_ids=("v", "w", "x", "y", "z")),
    ]
    assert len({other.fingerprint() for other in [city, *others]}) == 1 + len(others)


def test_it_is_immutable_and_picklable(make_city):
    city = make_city()
    with pytest.raises(FrozenInstanceError):
        city.name = "other"
    again = pickle.loads(pickle.dumps(city))
    assert torch.equal(again.readings, city.readings)
    assert again.interval == city.interval


# --- cities made from it


def test_between_is_a_view_with_its_own_start(make_city):
    city = make_city(start="2024-03-02")
    part = city.between(6, 10)
    assert part.num_steps == 4
    assert part.start == pd.Timestamp("2024-03-02 00:30")
    assert part.readings.data_ptr() == city.readings[6].data_ptr()
    assert part.mask.data_ptr() == city.mask[6].data_ptr()


def test_select_keeps_order_units_and_mask(make_city):
    city = make_city(num_channels=3, missing=0.3, channels=["flow", "occ", "speed"], units=["v", "1", "km/h"])
    chosen = city.select(["speed", "flow"])
    assert (chosen.channels, chosen.units) == (("speed", "flow"), ("km/h", "v"))
    assert torch.equal(chosen.readings, city.readings[..., [2, 0]])
    assert torch.equal(chosen.mask, city.mask[..., [2, 0]])
    assert city.select("occ").channels == ("occ",)


def test_rename_changes_names_alone(make_city):
    city = make_city(num_channels=2, missing=0.3, channels=["v_mittel", "q"], units=["km/h", "veh/h"])
    renamed = city.rename({"v_mittel": "speed"})
    assert (renamed.channels, renamed.units) == (("speed", "q"), city.units)
    assert renamed.rename({"speed": "v_mittel"}).fingerprint() == city.fingerprint()
    assert renamed.readings is city.readings
    assert city.rename({"v_mittel": "q", "q": "v_mittel"}).channels == ("q", "v_mittel")
    with pytest.raises(ValueError, match=r"rename: city has the channels \['v_mittel', 'q'\], found 'v'"):
        city.rename({"v": "speed"})
    with pytest.raises(ValueError, match=r"rename: .* found 'q' twice; city has the channels \['v_mittel', 'q'\]"):
        city.rename({"v_mittel": "q"})


def test_to_frame_keeps_what_was_not_observed_apart(make_city):
    city = make_city(num_channels=2, missing=0.3, channels=["speed", "flow"])
    for i, channel in enumerate(city.channels):
        table = city.to_frame(channel)
        assert (table.index.name, tuple(table.columns)) == ("time", city.node_ids)
        assert table.index.equals(city.time)
        assert np.array_equal(table.notna().to_numpy(), city.mask[..., i].numpy())
        again = City.from_edge_index(table, city.edge_index, city.edge_weight, channels=channel)
        assert torch.equal(again.readings, city.select(channel).readings)
        pd.testing.assert_frame_equal(city.select(channel).to_frame(), table)
    with pytest.raises(ValueError, match=r"channel: city has \['speed', 'flow'\], say which with channel="):
        city.to_frame()
    with pytest.raises(ValueError, match=r"channels: city has \['speed', 'flow'\], found \['occ'\]"):
        city.to_frame("occ")


@pytest.mark.parametrize(("reduce", "function"), [("sum", np.sum), ("mean", np.mean)])
def test_resample_needs_every_part_observed(reduce, function):
    readings = READINGS[:7].copy()
    readings[4, 0] = np.nan
    city = City.from_adjacency(readings, CHAIN, start="2024-03-02", interval="20min").resample("1h", reduce)
    assert city.num_steps == 2  # the seventh step does not fill an hour
    assert city.interval == pd.Timedelta("1h")
    assert city.readings[0, :, 0].numpy() == pytest.approx(function(READINGS[:3], axis=0))
    assert city.mask[:, :, 0].tolist() == [[True] * 3, [False, True, True]]
    assert city.readings[1, 0, 0] == 0


@pytest.mark.parametrize(
    ("unit", "summed"),
    [
        ("veh/5min", "veh/15min"),
        ("vehicles/5 min", "veh/15min"),
        ("veh/h", "veh/3h"),  # of three rates an hour the sum is one in three hours
        ("veh/20min", "veh/h"),
        ("trips/8h", "trips/day"),
        *((unit, unit) for unit in ("trips", "", "veh", "km/h", "m/s", "fraction")),
    ],
)
def test_a_sum_counts_over_a_longer_time_and_a_mean_does_not(make_city, unit, summed):
    city = make_city(units=unit, interval="5min")
    longer = city.resample("15min", "sum")
    assert longer.units == (summed,)
    assert city.resample("15min").units == city.units
    if summed.startswith("veh/"):
        torch.testing.assert_close(longer.to_units("veh/h").readings, city.to_units("veh/h").resample("15min").readings)


def test_to_undirected_keeps_the_larger_weight():
    city = City.from_edge_index(READINGS, torch.tensor([[0, 1, 1], [1, 0, 2]]), torch.tensor([0.2, 0.9, 0.5]))
    expected = np.array([[0, 0.9, 0], [0.9, 0, 0.5], [0, 0.5, 0]])
    assert dense(city.to_undirected()) == pytest.approx(expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_to_moves_every_tensor_and_its_batches(device):
    city = City.from_positions(READINGS, np.eye(3, 2), k=1).to(device)
    batch = next(city.windows(2, 1).batches(2))
    tensors = [city.readings, city.mask, city.edge_index, city.edge_weight, city.pos, batch.x, batch.time_of_day]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert torch.equal(batch.x[1, :, :, 0].cpu(), torch.tensor(READINGS[1:3]))
    assert City.from_adjacency(READINGS, CHAIN).to(device).pos is None


# --- messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"readings": torch.ones(8, 3)},
            r"readings: expected a float32 tensor \[T, N, C\], found torch.float32 \[8, 3\]",
        ),
        ({"readings": torch.ones(8, 3, 1, dtype=torch.float64)}, "readings: expected a float32.*float64"),
        ({"mask": torch.ones(8, 2, 1, dtype=torch.bool)}, r"mask: expected a bool tensor \[8, 3, 1\]"),
        ({"mask": torch.ones(8, 3, 1)}, "mask: expected a bool tensor.*float32"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"edge_index: expected an int64 tensor \[2, E\]"),
        ({"edge_index": torch.zeros(2, 2)}, "edge_index: expected an int64 tensor"),
        ({"edge_index": torch.tensor([[0, 3], [1, 0]])}, r"edge_index: expected nodes 0 to 2 .*found 0 to 3"),
        ({"edge_index": torch.tensor([[0, -1], [1, 0]])}, "edge_index: expected nodes 0 to 2"),
        ({"edge_weight": torch.ones(3)}, r"edge_weight: expected shape \[2\], found \[3\]"),
        ({"edge_weight": torch.tensor([1.0, -1.0])}, "edge_weight: weights must be finite and not negative"),
        ({"edge_weight": torch.tensor([1.0, torch.nan])}, "edge_weight: weights must be finite"),
        ({"node_ids": ("a", "b")}, "node_ids: expected 3 ids, one for each node of the readings, found 2"),
        ({"node_ids": ("a", "b", "a")}, "node_ids: 'a' occurs more than once"),
        ({"channels": ("speed", "flow")}, "channels: the readings have 1 channels"),
        ({"units": ()}, "units: the readings have 1 channels"),
        ({"interval": pd.Timedelta("7min")}, r"interval: expected a positive part of a day \(such as '5min'\)"),
        ({"interval": pd.Timedelta("2D")}, "interval: expected a positive part of a day"),
        ({"interval": pd.Timedelta(0)}, "interval: expected a positive part of a day"),
        ({"interval": -pd.Timedelta("5min")}, "interval: expected a positive part of a day"),
        ({"pos": torch.zeros(2, 2)}, r"pos: expected shape \[3, 2\], found \[2, 2\]"),
    ],
)
def test_parts_must_fit_each_other(change, message):
    with pytest.raises(ValueError, match=message):
        replace(City.from_adjacency(READINGS, CHAIN), **change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: City.from_adjacency(READINGS, CHAIN[:2]), r"adjacency: expected shape \[3, 3\], .*found \[2, 3\]"),
        (
            lambda: City.from_adjacency(TABLE, CHAIN, node_ids="abc"),
            "node_ids: the readings are a table.*leave node_ids",
        ),
        (lambda: City.from_adjacency(READINGS, CHAIN, node_ids=["a", "a", "b"]), "node_ids: 'a' occurs more than once"),
        (
            lambda: City.from_adjacency(TABLE, CHAIN, start="2024-01-01"),
            "start: the readings' index says .*leave start out",
        ),
        (
            lambda: City.from_adjacency(TABLE, CHAIN, interval="5min"),
            "interval: the readings' index says .*leave interval",
        ),
        (lambda: City.from_adjacency(READINGS, CHAIN, interval=5), "interval: .*with its unit.*found the number 5"),
        (lambda: City.from_adjacency(READINGS, CHAIN, interval="often"), "interval: .*such as '5min'.*found 'often'"),
        (lambda: City.from_adjacency(READINGS, CHAIN, start="soon"), "start: expected a time .*found 'soon'"),
        (lambda: City.from_adjacency(READINGS, CHAIN, units={"reading": "mph"}), "units: expected one text a channel"),
        (lambda: City.from_adjacency(READINGS, CHAIN, units=5), "units: expected one text a channel.*found 5"),
        (lambda: City.from_adjacency(READINGS, CHAIN, start="NaT"), "start: expected a time .*found 'NaT'"),
        (
            lambda: City.from_adjacency(READINGS, CHAIN, start="2024-01-01T00:00Z"),
            r"start: the time 2024-01-01 00:00:00\+00:00 has the time zone UTC, a city keeps local time .*tz_localize",
        ),
        (
            lambda: replace(
                City.from_adjacency(READINGS, CHAIN), start=pd.Timestamp("2024-01-01", tz="Europe/Amsterdam")
            ),
            "start: .* has the time zone Europe/Amsterdam, a city keeps local time without one",
        ),
        (
            lambda: City.from_adjacency(READINGS, CHAIN, channels=["a", "b"]),
            r"channels: .* 1 channels, found \['a', 'b'\]",
        ),
        (lambda: City.from_adjacency(READINGS, CHAIN, units=["a", "b"]), "units: the readings have 1 channels"),
        (
            lambda: City.from_edge_index(READINGS, torch.tensor([[0], [3]])),
            r"edge_index: .*\(the readings have 3 nodes\)",
        ),
        (lambda: City.from_networkx(TABLE, nx.path_graph(list("abd"))), "readings: node 'c' is not in the graph"),
        (
            lambda: City.from_networkx(TABLE, nx.path_graph(list("abcd"))),
            "node 'd' of the graph has no readings.*='keep' or",
        ),
        (
            lambda: City.from_networkx(TABLE, nx.path_graph(list("ab"))),
            r"'c' is not in the graph.*leave nodes that the graph lacks.*readings.drop\(columns=…\): 'c' \(1 in all\)",
        ),
        (lambda: City.from_networkx(READINGS, nx.path_graph(4)), "graph: expected 3 ids.*found 4"),
        (lambda: City.from_adjacency(READINGS, CHAIN).between(3, 3), "between: expected 0 <= first < last <= 8"),
        (
            lambda: City.from_adjacency(READINGS, CHAIN).select("flow"),
            r"channels: city has \['reading'\], found \['flow'\]",
        ),
        (lambda: City.from_adjacency(READINGS, CHAIN).select([]), "channels: city has"),
        (
            lambda: City.from_adjacency(READINGS, CHAIN).resample("7min"),
            "interval: expected a multiple of 5 min",
        ),
        (lambda: City.from_adjacency(READINGS, CHAIN).resample("25min"), "interval: expected a positive part of a day"),
        (lambda: City.from_adjacency(READINGS, CHAIN).resample(10), "interval: .*found the number 10"),
        (lambda: City.from_adjacency(READINGS, CHAIN).resample("1h"), "interval: city has 8 steps, .* takes 12"),
        (lambda: City.from_adjacency(READINGS, CHAIN).resample("10min", "max"), "reduce: expected 'mean' or 'sum'"),
    ],
)
def test_messages_name_the_argument_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="chanels"):
        City.from_adjacency(READINGS, CHAIN, chanels="speed")
