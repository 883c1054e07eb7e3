"""Sensors that die, cities without movement, days without readings, clocks that jump: a finite model or an error."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg import City
from tsjt_pyg.data import regular_time
from tsjt_pyg.evaluation import compare
from tsjt_pyg.training import STRATEGIES, ModelConfig, fit, forecast_windows
from tsjt_pyg.training.guard import ODD

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
SETTINGS = {"steps": 6, "batch_size": 8, "evaluations": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def target(commuters):
    return commuters("target", days=6, seed=1)


@pytest.fixture(scope="module")
def north(commuters):
    return commuters("north", days=8, num_nodes=8, seed=2)


def new_model(config=CONFIG):
    torch.manual_seed(0)
    return config.build()


def change(city, first=0, last=None, nodes=slice(None), value=None):
    """Readings of some steps and nodes are ``value``; None: not observed."""
    readings, mask = city.readings.clone(), city.mask.clone()
    readings[first:last, nodes] = 0.0 if value is None else value
    mask[first:last, nodes] = value is not None
    return replace(city, readings=readings, mask=mask)


SOME = slice(0, 3)
TARGETS = {
    "sensors stop on a visible day": lambda city: change(city, 30, None, SOME),
    "sensors are stuck from a visible day on": lambda city: change(city, 30, None, SOME, 7.0),
    "sensors stop in the test period": lambda city: change(city, 80, None, SOME),
    "all sensors stop in the test period": lambda city: change(city, 100),
    "a sensor is never observed": lambda city: change(city, nodes=slice(0, 1)),
    "sensors never change": lambda city: change(city, nodes=SOME, value=0.0),
    "nothing changes on the visible days": lambda city: change(city, 0, 72, value=7.0),
    "nothing changes on the training days": lambda city: change(city, 0, 48, value=7.0),
    "nothing ever changes": lambda city: change(city, value=7.0),
    "the first visible day is dark": lambda city: change(city, 0, 24),
}
SOURCES = {
    "it stops": lambda city: change(city, 30),
    "sensors of it stop": lambda city: change(city, 30, None, SOME),
    "sensors of it are stuck": lambda city: change(city, 30, None, SOME, 7.0),
    "one hour of it": lambda city: change(city, 1),
    "it never changes": lambda city: change(city, value=7.0),
    "it is zero": lambda city: change(city, value=0.0),
    "it grows a million times half-way": lambda city: replace(
        city, readings=city.readings * torch.where(torch.arange(city.num_steps) < 90, 1.0, 1e6)[:, None, None]
    ),
}


def check_finite(target, sources, strategy):
    visible, test = target.few_shot(3)
    result = fit(new_model(), visible, sources, strategy, **SETTINGS)
    assert result.skipped_steps == 0
    assert math.isfinite(result.validation_loss)
    assert all(value.isfinite().all() for value in result.last_model.values())
    windows = test.windows(6, 3)
    for _, forecast in forecast_windows(result.model, windows, result.scaler, support=result.support):
        assert forecast.isfinite().all()


@pytest.mark.parametrize("strategy", ["target_only", "pooled", "tsjt"])
@pytest.mark.parametrize("day", TARGETS)
def test_a_bad_day_of_the_target_ends_in_a_finite_model(target, north, day, strategy):
    check_finite(TARGETS[day](target), [north], strategy)


@pytest.mark.parametrize("strategy", ["pooled", "finetune", "tsjt"])
@pytest.mark.parametrize("day", SOURCES)
def test_a_bad_day_of_a_source_ends_in_a_finite_model(target, north, day, strategy):
    check_finite(target, [SOURCES[day](north)], strategy)


@pytest.mark.parametrize("garbage", ["constant", "huge", "alternating", "noise"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_source_that_turns_to_garbage_half_way_is_left_out(target, north, garbage, beside):
    """What is left is the training without it, to the bit."""
    at = slice(90, None)
    length = north.num_steps - 90
    values = {
        "constant": torch.full((length, 8, 1), 50.0),
        "huge": north.readings[at] * 1e6,
        "alternating": 100.0 * (torch.arange(length) % 2)[:, None, None].expand(-1, 8, -1),
        "noise": 40 + 10 * torch.randn(length, 8, 1, generator=torch.Generator().manual_seed(0)),
    }[garbage]
    bad = replace(change(north, 90, value=values), name="broken feed")
    visible = target.few_shot(1).visible
    settings = {**SETTINGS, "validation_days": 0.25}
    found = fit(new_model(), visible, [north, bad] if beside else [bad], "tsjt", **settings)
    assert found.verdicts[-1].weight == 0
    assert found.verdicts[-1].odd > ODD
    assert re.search(r"broken feed was left out \(.*, odd days \d+%\)", str(found.verdicts[-1]))
    without = fit(new_model(), visible, [north] if beside else [], "tsjt" if beside else "target_only_2x", **settings)
    if beside:
        assert found.verdicts[0].weight == 1
        assert found.verdicts[0].odd == 0
        assert "odd" not in str(found.verdicts[0])
    assert all(torch.equal(one, without.model.state_dict()[key]) for key, one in found.model.state_dict().items())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_visible_hour_is_a_clear_error(target, north, strategy):
    hour = target.few_shot(1 / 24).visible
    with pytest.raises(
        ValueError, match=r"target has 0\.04 visible days and the last 1 of them choose .* show more days"
    ):
        fit(new_model(), hour, [north], strategy, **SETTINGS)
    with pytest.raises(ValueError, match=r"target has 0\.04 visible days .* set validation_days \(--validation-days\)"):
        fit(new_model(), hour, [north], strategy, validation_days=1 / 48, **SETTINGS)


def test_one_visible_hour_of_minutes_is_enough_where_a_window_fits():
    """Sixty steps: windows of six and three, half of the hour to learn from."""
    wave = 40 + 8 * np.sin(np.arange(300)[:, None] / 20 + np.arange(4))
    city, rich = (City.from_adjacency(wave + i, np.eye(4), name=str(i), interval="1min") for i in range(2))
    visible, test = city.few_shot(1 / 24)
    result = fit(new_model(), visible, [rich], "tsjt", validation_days=0.5 / 24, **SETTINGS)
    assert math.isfinite(result.validation_loss)
    _, forecast = next(forecast_windows(result.model, test.windows(6, 3), result.scaler, support=result.support))
    assert forecast.isfinite().all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda city: change(city, 48, 72), r"no observed reading on its validation day, .* or show other days"),
        (lambda city: change(city, 0, 48), "channel 0 has no observed entry, .*give the scaler more visible days"),
        (
            lambda city: change(city, 20, 22, value=1e20),
            r"target: target reads 1e\+20 at 2024-03-04 20:00:00, node '0'",
        ),
        (
            lambda city: change(city, 20, 22, value=math.nan),
            "target: target reads nan at 2024-03-04 20:00:00, node '0'",
        ),
        (lambda city: change(city, 60, 61, SOME, -math.inf), "reads -inf at 2024-03-06 12:00:00, .*as NaN"),
    ],
)
def test_visible_days_that_cannot_be_learned_from_are_a_clear_error(target, north, bad, message):
    with pytest.raises(ValueError, match=message):
        fit(new_model(), bad(target).few_shot(3).visible, [north], "tsjt", **SETTINGS)


def test_readings_beyond_all_bounds_of_a_source_are_a_clear_error_and_under_the_mask_none(target, north):
    visible = target.few_shot(3).visible
    with pytest.raises(ValueError, match=r"sources: north reads 3\.4e\+38 at 2024-03-05 06:00:00, node '2', channel"):
        fit(new_model(), visible, [change(north, 30, 31, slice(2, 3), 3.4e38)], "pooled", **SETTINGS)
    fit(new_model(), visible, [change(north, 30, 31, value=3.4e38)], "target_only", **SETTINGS)  # nobody reads it
    dark = replace(north, readings=north.readings.masked_fill(~north.mask, math.nan))
    result = fit(new_model(), visible, [dark], "pooled", **SETTINGS)
    assert math.isfinite(result.validation_loss)
    assert result.skipped_steps == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda city: change(city, 72), r"test period: no reading was observed, .* show fewer days \(visible_days"),
        (lambda city: change(city, 100, 101, value=math.inf), "target: target reads inf at 2024-03-08 04:00:00"),
    ],
)
def test_a_test_period_that_cannot_be_measured_is_found_before_the_training(target, north, bad, message):
    seen = []
    with pytest.raises(ValueError, match=message):
        compare(bad(target), [north], ["tsjt"], model=CONFIG, progress=lambda *done: seen.append(done), verbose=False)
    assert not seen


def test_cities_by_name_are_refused_with_the_way_out(target, north):
    visible = target.few_shot(3).visible
    for call in (lambda *cities: fit(new_model(), *cities), lambda *cities: compare(*cities, verbose=False)):
        with pytest.raises(TypeError, match=r"sources: expected a City, found 'demo/riverton'; .*load_city\(name\)"):
            call(visible, ["demo/riverton"])
        with pytest.raises(TypeError, match="target: expected a City, found 'demo/riverton'"):
            call("demo/riverton", [north])
        with pytest.raises(TypeError, match="sources: expected a list of cities, found City"):
            call(visible, north)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2.5}, "steps: expected a whole number, at least 1, found 2.5"),
        ({"batch_size": "3"}, "batch_size: expected a whole number, at least 1, found '3'"),
        ({"lr": "fast"}, "lr: expected a positive learning rate, .*found 'fast'"),
        ({"max_grad_norm": math.nan}, "max_grad_norm: expected a positive length, found nan"),
        ({"validation_days": None}, "validation_days: expected a number of days, found None"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"base": "Adam"}, "base: expected a class of optimizers such as torch.optim.Adam, found 'Adam'"),
        ({"base": torch.nn.Linear}, "base: expected a class of optimizers such as torch.optim.Adam, found <class"),
        ({"base": torch.optim.LBFGS}, "base: LBFGS computes losses again within a step; expected a class such as"),
    ],
)
def test_settings_that_are_no_such_number_are_named(target, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(new_model(), target.few_shot(3).visible, [], "target_only", **{**SETTINGS, **settings})


# --- clock jumps ---------------------------------------------------------------------------------------------------

HOURS = pd.date_range("2024-03-29", periods=96, freq="60min")
JUMPS = {
    "an hour is skipped": (HOURS.delete(50), None),
    "an hour comes twice": (HOURS.insert(50, HOURS[50]), "duplicates='mean', 'first' or 'last'"),
    "the clock goes back": (HOURS[:60].append(HOURS[40:]), "duplicates='mean', 'first' or 'last'"),
    "rows are in reverse": (HOURS[::-1], None),
    "a day is missing": (HOURS[:30].append(HOURS[54:]), None),
    "the clock is put to another minute": (HOURS[:30].append(HOURS[30:] + pd.Timedelta("17min")), "say interval="),
    "a year is wrong": (HOURS[:95].append(pd.DatetimeIndex(["2044-03-29"])), "confirm with interval="),
}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_ends_in_a_city_that_is_learned_from_or_in_a_clear_error(jump, north):
    time, way_out = JUMPS[jump]
    wave = 40 + 8 * np.sin(np.arange(len(time))[:, None] / 24 * 2 * np.pi - np.arange(3))
    readings = pd.DataFrame(wave, index=time.rename("time"), columns=["1", "2", "3"])
    sensors = pd.DataFrame({"sensor_id": ["1", "2", "3"], "latitude": [1, 1.001, 1.002], "longitude": 2.0})
    how = {"channels": "speed", "units": "km/h", "name": "target"}
    if way_out is None:
        city = City.from_tables(readings, sensors, **how)
        assert (city.num_steps, city.start) == (96, HOURS[0])
        check_finite(city, [north], "tsjt")
        return
    with pytest.raises(ValueError, match=way_out):
        City.from_tables(readings, sensors, **how)
    if "duplicates" in way_out:
        check_finite(City.from_tables(readings, sensors, duplicates="mean", **how), [north], "tsjt")


def test_a_table_whose_clock_jumps_says_who_mends_it(north):
    table = pd.DataFrame(np.ones((95, 1)), index=HOURS.delete(50), columns=["1"])
    with pytest.raises(ValueError, match=r"irregular time: 2024-03-31 01:00:00 is followed by .*regular_time\(table\)"):
        City.from_adjacency(table, np.eye(1))
    assert City.from_adjacency(regular_time(table).table, np.eye(1)).num_steps == 96
