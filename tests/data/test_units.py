"""Units: factors, what is touched, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from tsjt_pyg.data.units import KINDS, LIMITS, counted_unit, known_unit, unit_limits


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("mph", "km/h", 1.609344),
        ("km/h", "m/s", 1 / 3.6),
        ("m/s", "mph", 3600 / 1609.344),
        ("%", "fraction", 0.01),
        ("veh/5min", "veh/h", 12.0),
        ("veh/h", "veh/15min", 0.25),
        ("veh/30min", "veh/h", 2.0),
        ("veh/h", "veh/day", 24.0),
        ("veh/90s", "veh/5min", 10 / 3),
    ],
)
def test_readings_are_scaled_and_the_mask_is_not_touched(make_city, old, new, factor):
    city = make_city(units=old, missing=0.2)
    other = city.to_units(new)
    assert other.units == (new,)
    torch.testing.assert_close(other.readings, (city.readings.double() * factor).float(), rtol=3e-7, atol=0)
    assert torch.equal(other.mask, city.mask)
    assert (other.readings[~other.mask] == 0).all()
    torch.testing.assert_close(other.to_units(old).readings, city.readings, rtol=3e-7, atol=0)


def test_one_unit_is_for_all_channels_of_its_kind_and_a_mapping_for_those_named(make_city):
    city = make_city(num_channels=3, channels=["flow", "fast", "slow"], units=["veh/5min", "mph", "mph"])
    both = city.to_units("km/h")
    assert both.units == ("veh/5min", "km/h", "km/h")
    assert torch.equal(both.readings[..., 0], city.readings[..., 0])
    one = city.to_units({"slow": "m/s", "flow": "veh/h"})
    assert one.units == ("veh/h", "mph", "m/s")
    assert torch.equal(one.readings[..., 1], city.readings[..., 1])


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("knots", r"units: cannot convert 'knots'; known units are m/s, km/h, mph"),
        ("%", r"units: city has no channel that could be in '%' .*it has speed \(mph\), other \(no unit\)"),
        ({"flow": "km/h"}, r"units: city has the channels \['speed', 'other'\], found 'flow'"),
        ({"speed": "veh/h"}, r"channel 'speed' is a speed in 'mph', which cannot become 'veh/h', a flow"),
        ({"speed": "mi"}, r"channel 'speed': cannot convert 'mi'; known units are"),
        ({"other": "km/h"}, r"channel 'other' has no unit, so it cannot become 'km/h'; .*units="),
    ],
)
def test_what_cannot_be_converted_is_refused(make_city, units, message):
    with pytest.raises(ValueError, match=message):
        make_city(num_channels=2, channels=["speed", "other"], units=["mph", ""]).to_units(units)


def test_limits_say_the_same_in_every_unit_of_a_kind():
    for units in KINDS.values():
        in_first = [LIMITS[unit][1] * factor for unit, factor in units.items()]
        assert in_first == pytest.approx([in_first[0]] * len(units), rel=2e-3)


@pytest.mark.parametrize(
    ("spellings", "unit"),
    [
        (("kmh", "kph", "KPH", "km/hr", "KM / H", "kmph", "km/hour"), "km/h"),
        (("mi/h", "MPH", "Mph", "miles/h", "miles / hour"), "mph"),
        (("mps", "m/sec", "M/S"), "m/s"),
        (("percent", "pct"), "%"),
        (("vph", "veh/hr", "Vehicles/h", "veh/60 min", "veh / hour"), "veh/h"),
        (("veh/5 min", "vehicles/5min", "veh/5mins", "veh/300s"), "veh/5min"),
    ],
)
def test_a_unit_is_known_by_its_usual_spellings(make_city, spellings, unit):
    for spelling in spellings:
        city = make_city(units=spelling)
        assert city.units == (known_unit(spelling),) == (unit,)
        assert torch.equal(city.to_units(spelling).readings, city.readings)
        assert unit_limits(spelling) == LIMITS[unit]
    named = replace(make_city(units=unit), units=(spellings[0],))  # as a file may hold it
    assert named.to_units(spellings[-1]).units == (unit,)
    assert torch.equal(named.to_units(unit).readings, named.readings)


@pytest.mark.parametrize("unit", ["knots", "", "veh/0min", "degrees", "km", "veh"])
def test_an_unknown_unit_stays_as_it_is(make_city, unit):
    assert make_city(units=unit).units == (unit,)
    assert unit_limits(unit) is None


def test_vehicles_have_limits_by_any_time():
    assert unit_limits("veh/30min") == (0.0, 15000.0)
    assert unit_limits("trips/h") is None
    assert counted_unit("trips/2h").over == pd.Timedelta("2h")
