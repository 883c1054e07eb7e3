"""Repair: every rule against a plain loop or a planted fault, the report's counts, and what is left alone."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City
from tsjt_pyg.data.faults import find_outliers, find_stuck
from tsjt_pyg.data.repair import RULES, find_faults

DAYS, NODES, PER_DAY = 5, 6, 48


def lively(unit: str = "km/h", days: int = DAYS) -> np.ndarray:
    """Half-hourly readings of which no two in a row are equal."""
    rng = np.random.default_rng(1)
    hour = np.arange(days * PER_DAY)[:, None] / 2 % 24
    level = 50 + 15 * np.sin(hour / 24 * 2 * np.pi + np.arange(NODES))
    return (level + rng.normal(0, 2, level.shape)).astype(np.float32)


def a_city(readings: np.ndarray, unit: str = "km/h", **about) -> City:
    ring = np.roll(np.eye(readings.shape[1]), 1, axis=1)
    ids = [f"n{i}" for i in range(readings.shape[1])]
    about = {"channels": "speed", "node_ids": ids, **about}
    return City.from_adjacency(readings, ring, units=unit, start="2024-03-04", interval="30min", **about)


def test_a_sound_city_stays_as_it_is():
    city = a_city(lively())
    repaired, report = city.repair()
    assert torch.equal(repaired.mask, city.mask)
    assert torch.equal(repaired.readings, city.readings)
    assert (report.masked, report.dead, report.dropped) == (0, (), ())
    assert str(report) == "city: masked 0 of 1,440 observed readings"


def test_every_rule_finds_what_was_planted_and_the_report_says_where(caplog):
    readings = lively()
    readings[:, 0] = 0  # dead
    readings[10:30, 1] = 57.25  # stuck for 10 hours
    readings[[3, 99], 2] = -1, -300
    readings[[5, 6, 7], 3] = 900
    readings[200, 4] = 190  # possible, but far from all it shows
    city = a_city(readings)
    with caplog.at_level(logging.INFO, logger="tsjt_pyg"):
        repaired, report = city.repair(outliers=10)
    found = report.nodes.loc[["n0", "n1", "n2", "n3", "n4", "n5"]].to_numpy()
    assert report.nodes.columns.tolist() == list(RULES)
    expected = np.zeros((6, 5), dtype=int)
    expected[0, 0], expected[2, 1], expected[3, 2], expected[1, 3], expected[4, 4] = DAYS * PER_DAY, 2, 3, 20, 1
    assert found.tolist() == expected.tolist()
    assert report.channels.loc["speed"].tolist() == expected.sum(axis=0).tolist()
    assert report.dead == ("n0",)
    assert not repaired.mask[10:30, 1].any()
    assert str(report) == (
        "city: masked 266 of 1,440 observed readings: dead 240 (1 node), negative 2 (1 node), limits 3 (1 node), "
        "stuck 20 (1 node), outliers 1 (1 node); 1 node dead in every channel"
    )
    assert str(report) in caplog.text
    # what is masked is 0, as everywhere in a city; the rest, and the city given, are as before
    kept = repaired.mask
    assert torch.equal(repaired.readings[kept], city.readings[kept])
    assert (repaired.readings[~kept] == 0).all()
    assert city.mask.all()
    assert float(city.readings[200, 4, 0]) == 190
    assert int(city.mask.sum() - repaired.mask.sum()) == report.masked == 266


def test_rules_can_be_left_out():
    readings = lively()
    readings[:, 0] = 0
    readings[10:30, 1] = 57.25
    readings[3, 2] = -1
    city = a_city(readings)
    nothing, report = city.repair(dead=False, limits=False, stuck=None)
    assert report.masked == 0
    assert torch.equal(nothing.mask, city.mask)
    assert city.repair(dead=False, limits=False).report.channels.loc["speed"].tolist() == [0, 0, 0, 20, 0]


# --- dead nodes


def test_dead_nodes_are_dropped_with_their_edges_if_asked():
    readings = lively()
    readings[:, 2] = 0
    readings[:, 4] = np.nan
    city = a_city(readings)
    repaired, report = city.repair(dead="drop")
    assert repaired.node_ids == ("n0", "n1", "n3", "n5")
    assert (report.dead, report.dropped, report.dropped_edges) == (("n2", "n4"), ("n2", "n4"), 4)
    assert repaired.edge_index.tolist() == [[0, 3], [1, 0]]  # n0 -> n1 and n5 -> n0 are left of the ring
    assert torch.equal(repaired.readings, city.readings[:, [0, 1, 3, 5]])
    assert report.nodes["dead"].tolist() == [0, 0, 240, 0, 0, 0]  # nothing of n4 could be masked
    assert "dropped with 4 edges" in str(report)
    assert city.repair().city.num_nodes == 6


def test_a_node_that_is_dead_in_one_channel_stays():
    readings = np.stack([lively(), lively() + 1], axis=2)
    readings[:, 2, 0] = 0
    city = a_city(readings, ["km/h", "km/h"], channels=["a", "b"])
    repaired, report = city.repair(dead="drop")
    assert repaired.num_nodes == NODES
    assert report.dead == ()
    assert report.channels["dead"].tolist() == [240, 0]
    assert not repaired.mask[:, 2, 0].any()
    assert repaired.mask[:, 2, 1].all()


# --- limits


def test_limits_of_a_channel_can_be_given_and_unknown_units_have_none():
    readings = lively()
    readings[0, :3] = -5, 130, 400
    assert a_city(readings, "degrees").repair().report.masked == 0
    report = a_city(readings, "degrees").repair(limits={"speed": (0, 120)}).report
    assert report.channels.loc["speed", ["negative", "limits"]].tolist() == [1, 2]
    report = a_city(readings, "degrees").repair(limits={"speed": (-2.5, None)}).report
    assert report.channels.loc["speed", ["negative", "limits"]].tolist() == [0, 1]
    assert a_city(readings, "mph").repair().report.nodes["limits"].tolist() == [0, 0, 1, 0, 0, 0]


def test_a_unit_without_limits_is_said(caplog):
    readings = lively()
    readings[0, :3] = -5, 130, 400
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        report = a_city(readings, "knots").repair().report
    assert report.masked == 0
    assert report.without_limits == ("speed (unit 'knots')",)
    assert str(report).endswith("; limits are not known of speed (unit 'knots')")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", str(report))]
    assert a_city(readings, "").repair().report.without_limits == ("speed (no unit)",)
    for rules in ({"limits": False}, {"limits": {"speed": (0, None)}}):
        assert a_city(readings, "knots").repair(**rules).report.without_limits == ()


@pytest.mark.parametrize("unit", ["kmh", "kph", "km/hr", "KM/H"])
def test_spellings_of_a_unit_have_its_limits(unit):
    readings = lively()
    readings[0, :3] = -5, 130, 400
    report = a_city(readings, unit).repair().report
    assert (report.masked, report.without_limits) == (2, ())
    read_back = replace(a_city(readings, "km/h"), units=(unit,))
    assert read_back.repair().report.masked == 2


# --- stuck


def test_the_same_value_for_exactly_that_long_is_not_stuck():
    for steps, found in ((12, 0), (13, 13)):
        readings = lively()
        readings[50 : 50 + steps, 3] = 61
        assert a_city(readings).repair(stuck="6h").report.nodes["stuck"].tolist() == [0, 0, 0, found, 0, 0]
        assert a_city(readings).repair(stuck="10h").report.masked == 0


def test_a_run_ends_where_nothing_was_observed():
    readings = lively()
    readings[50:70, 3] = 61
    readings[60, 3] = np.nan
    assert a_city(readings).repair(stuck="6h").report.masked == 0
    assert a_city(readings).repair(stuck="4h").report.nodes.loc["n3", "stuck"] == 19


def test_a_node_that_always_shows_the_same_is_stuck_but_not_where_the_whole_city_stands_still():
    readings = lively()
    readings[:, 3] = 61
    assert a_city(readings).repair().report.nodes["stuck"].tolist() == [0, 0, 0, DAYS * PER_DAY, 0, 0]
    readings[20:60] = readings[20]
    assert a_city(readings).repair().report.nodes["stuck"].tolist() == [0, 0, 0, DAYS * PER_DAY, 0, 0]
    assert a_city(np.full_like(readings, 61)).repair().report.masked == 0


def quiet_nights() -> np.ndarray:
    """Counts with no vehicle at night on four of six roads."""
    rng = np.random.default_rng(2)
    readings = rng.permuted(np.arange(1, DAYS * PER_DAY * NODES + 1)).reshape(-1, NODES).astype(np.float32)
    at_night = np.arange(len(readings)) % PER_DAY < 14
    readings[np.ix_(at_night, [0, 1, 2, 3])] = 0
    return readings


@pytest.mark.parametrize("busy", [[4, 5], [2, 3, 4, 5]])
def test_zeros_at_night_are_not_stuck_and_zeros_by_day_are(busy):
    readings = quiet_nights()
    moving = np.setdiff1d(busy, [4, 5])
    rng = np.random.default_rng(3)
    readings[:, moving] = (
        rng.permuted(np.arange(1, len(readings) + 1))[:, None] + moving
    )  # most roads move at night too
    city = a_city(readings, "veh/5min", channels="flow")
    assert city.repair(stuck="3h", limits=False).report.masked == 0
    readings[PER_DAY + 16 : PER_DAY + 40, 0] = 0
    report = a_city(readings, "veh/5min", channels="flow").repair(stuck="3h", limits=False).report
    assert report.nodes["stuck"].tolist()[1:] == [0] * 5
    assert report.nodes.loc["n0", "stuck"] == 24


def test_a_zone_where_trips_are_rare_is_not_stuck_and_a_day_of_zeros_at_a_busy_one_is():
    rng = np.random.default_rng(5)
    trips = rng.poisson([0.05, 0.2, 3, 9, 20, 20], size=(20 * PER_DAY, NODES)).astype(np.float32)
    city = a_city(trips, "trips")
    assert city.repair().report.masked == 0
    trips[3 * PER_DAY : 5 * PER_DAY, 4] = 0
    report = a_city(trips, "trips").repair().report
    assert report.nodes["stuck"].tolist() == [0, 0, 0, 0, 2 * PER_DAY, 0]


def test_a_city_that_is_closed_for_days_is_not_a_city_of_stuck_nodes():
    readings = quiet_nights()
    readings[60:200] = 0
    assert a_city(readings, "trips").repair(stuck="3h").report.masked == 0


def plain_stuck(values: np.ndarray, observed: np.ndarray, hours: np.ndarray, longest: int) -> np.ndarray:
    """The rule as it is written, one run after the other."""
    steps, nodes = values.shape
    found = np.zeros_like(observed)

    def runs(n):
        first = 0
        for t in range(1, steps + 1):
            if t == steps or values[t, n] != values[t - 1, n] or not (observed[t, n] and observed[t - 1, n]):
                if observed[first, n] and t - first > longest:
                    yield first, t
                first = t

    def changes(t, n):
        pairs = [(u, u + 1) for u in range(t, t + longest) if observed[u, n] and observed[u + 1, n]]
        return (len(pairs) > 0, any(values[a, n] != values[b, n] for a, b in pairs))

    for n in range(nodes):
        for first, end in runs(n):
            shares = []
            for t in range(first, end - longest):
                seen, changed = zip(*[changes(t, m) for m in range(nodes)], strict=True)
                shares.append(sum(changed) / max(sum(seen), 1))
            others = [
                t
                for t in range(steps)
                if observed[t, n]
                and not first <= t < end
                and not any(a <= t < b and values[a, n] != 0 for a, b in runs(n))
            ]
            rare = []
            for t in range(first, end):
                same_hour = [values[u, n] == values[first, n] for u in others if hours[u] == hours[t]]
                rare.append(sum(same_hour) < 0.25 * len(same_hour) if same_hour else values[first, n] != 0)
            if np.mean(shares) >= 0.5 and np.mean(rare) > 0.5:
                found[first:end, n] = True
    return found


@pytest.mark.parametrize("seed", range(6))
def test_stuck_readings_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    values = rng.poisson([0.3, 0.8, 2, 5], size=(120, 4)).astype(np.float32)
    for first, node in rng.integers(0, [100, 4], size=(6, 2)):
        values[first : first + rng.integers(4, 20), node] = rng.integers(0, 3)
    observed = rng.random(values.shape) > 0.03
    hours = np.arange(120) // 2 % 24
    found = find_stuck(values, observed, hours, 4)
    assert np.array_equal(found, plain_stuck(values, observed, hours, 4))
    assert found.any()


# --- outliers


def test_outliers_are_those_of_pandas_medians(make_city):
    rng = np.random.default_rng(0)
    values = rng.standard_t(2, size=(300, 5)).astype(np.float32)
    values[:, 4] = 0
    values[7, 4] = 3  # a node whose deviations are mostly 0 gets no verdict
    observed = rng.random(values.shape) > 0.2
    hours = np.arange(300) % 24
    frame = pd.DataFrame(values).astype(float).where(observed)
    median = frame.groupby(hours).transform("median")
    by_hour = (frame - median).abs().groupby(hours).transform("median")
    typical = by_hour.groupby(hours).first().median()
    scale = 1.4826 * by_hour.where(by_hour > typical, typical, axis=1)
    expected = ((frame - median).abs() > 4 * scale) & (scale > 0) & observed
    assert 0 < expected.to_numpy().sum() < 100
    assert np.array_equal(find_outliers(values, observed, hours, 4.0), expected.to_numpy())


# --- nodes


def test_keep_nodes_takes_their_order_edges_and_places(make_city, caplog):
    city = make_city(num_nodes=5, missing=0.2, positions=np.arange(10.0).reshape(5, 2))
    with caplog.at_level(logging.INFO, logger="tsjt_pyg"):
        kept = city.keep_nodes(["3", "0", "2"])
    assert kept.node_ids == ("3", "0", "2")
    assert torch.equal(kept.readings, city.readings[:, [3, 0, 2]])
    assert torch.equal(kept.mask, city.mask[:, [3, 0, 2]])
    assert kept.pos.tolist() == [[6, 7], [0, 1], [4, 5]]
    assert kept.edge_index.tolist() == [[2], [0]]  # 2 -> 3 is all that is left of the ring
    assert kept.edge_weight.tolist() == city.edge_weight[city.edge_index[0] == 2].tolist()
    assert "kept 3 of 5 nodes and 1 of 5 edges" in caplog.text
    assert city.drop_nodes([1, 4]).fingerprint() == city.keep_nodes(["0", "2", "3"]).fingerprint()
    assert city.drop_nodes([]).fingerprint() == city.fingerprint()
    assert city.drop_nodes("1").node_ids == ("0", "2", "3", "4")


# --- messages


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"dead": "remove"}, r"dead: expected True, False, 'mask' or 'drop', found 'remove'"),
        ({"stuck": 6}, r"stuck: expected a time with its unit \(such as '6h'\) or None, found 6"),
        ({"stuck": "10min"}, r"stuck: expected at least city's interval 0 days 00:30:00, found 0 days 00:10:00"),
        ({"outliers": -3}, r"outliers: expected a positive number of deviations"),
        ({"outliers": math.nan}, r"outliers: expected a positive number"),
        ({"outliers": "many"}, r"outliers: expected a positive number.*found 'many'"),
        ({"limits": 100}, r"limits: expected True, False or \{channel: \(low, high\)\}, found 100"),
        ({"limits": {"flow": (0, 1)}}, r"limits: city has the channels \['speed'\], found 'flow'"),
        ({"limits": {"speed": 3}}, r"limits: channel 'speed': expected \(low, high\), found 3"),
        ({"limits": {"speed": ("a", 3)}}, r"limits: channel 'speed': expected \(low, high\)"),
        ({"limits": {"speed": (5, 3)}}, r"limits: channel 'speed': low must not be above high"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        a_city(lively()).repair(**rules)


def test_a_city_of_dead_nodes_cannot_be_dropped():
    with pytest.raises(ValueError, match=r"dead: every node of city is dead .*choose dead=False"):
        a_city(np.zeros((60, 3))).repair(dead="drop")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c: c.drop_nodes(["1", "x", "y"]),
            r"city has no node 'x' \(2 of 3 are unknown; it has 5 nodes, .*'0'\)",
        ),
        (lambda c: c.keep_nodes(["1", 1]), r"node_ids: '1' is given more than once"),
        (lambda c: c.keep_nodes([]), r"no node of city would be left"),
        (lambda c: c.drop_nodes(range(5)), r"no node of city would be left"),
    ],
)
def test_bad_nodes_are_refused(make_city, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_city())


def test_entries_that_were_not_observed_are_never_looked_at():
    city = a_city(lively())
    mask = city.mask.clone()
    mask[::7, 2] = False
    spoiled = replace(city, readings=city.readings.masked_fill(~mask, -1e6), mask=mask)
    assert not find_faults(spoiled, outliers=10).rule.any()
    repaired, _ = spoiled.repair(outliers=10)
    assert torch.equal(repaired.readings, spoiled.readings)  # what stood under the mask (imputed, say) is not touched


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_city_on_a_gpu_stays_there():
    readings = lively()
    readings[:, 2] = 0
    city = a_city(readings).to("cuda")
    repaired, report = city.repair(dead="drop")
    assert report.dropped == ("n2",)
    made = (repaired, city.impute(), city.to_units("mph"))
    assert {t.device.type for c in made for t in (c.readings, c.mask, c.edge_index)} == {"cuda"}
    assert city.describe().table.equals(city.to("cpu").describe().table)


# --- real cities


@pytest.mark.parametrize(("name", "node"), [("pems04", "203"), ("pems08", "30")])
def test_a_detector_whose_flow_is_missing_is_found_by_its_speed_that_stands_still(real_city, name, node):
    city = real_city(name)
    repaired, report = city.repair()
    assert report.nodes.index[report.nodes["stuck"] > 0].tolist() == [node]
    position = city.node_ids.index(node)
    masked = (city.mask & ~repaired.mask)[:, position, 2]
    assert int(masked.sum()) > 150
    assert not city.mask[masked, position, 0].any()


def test_a_switch_is_no_number_of_deviations(make_city):
    with pytest.raises(ValueError, match=r"outliers: expected a positive number of deviations .*found True"):
        make_city().repair(outliers=True)
