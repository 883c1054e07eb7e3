"""Units in one's own tables: readings in several become one, or are refused."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from own_tables import IDS, SENSORS, long, wide

from tsjt_pyg import City
from tsjt_pyg.data import read_tables

MILE = 1.609344


def with_units(*units: object, name: str = "unit") -> pd.DataFrame:
    return SENSORS.assign(**{name: list(units)})


@pytest.mark.parametrize("name", ["unit", "Units"])
def test_sensors_in_several_units_are_brought_to_that_of_most(name, caplog):
    sensors = with_units("mph", "kph", "km/h", "KMH", name=name).sample(frac=1, random_state=1)
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        city, report = read_tables(wide(), sensors, k=1)
    assert city.units == ("km/h",)
    factor = np.array([MILE if node == IDS[0] else 1.0 for node in city.node_ids])
    np.testing.assert_allclose(
        city.readings[..., 0], np.nan_to_num(wide()[list(city.node_ids)].to_numpy()) * factor, rtol=1e-6
    )
    assert report.converted == {"mph to km/h": 1}
    assert "1 sensors converted from mph to km/h" in caplog.text


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_what_is_said_with_units_wins(layout):
    readings = wide() if layout == "wide" else long().drop(columns="flow")
    city = City.from_tables(readings, with_units("km/h", "m/s", "mph", None), units="mph", k=1)
    assert city.units == ("mph",)
    factor = np.array([1 / MILE, 3.6 / MILE, 1.0, 1.0])
    np.testing.assert_allclose(city.readings[..., 0], np.nan_to_num(wide().to_numpy()) * factor, rtol=1e-6)


def test_rows_may_say_their_unit():
    readings = long().drop(columns="flow")
    early = readings["timestamp"] < readings["timestamp"].median()
    readings = readings.assign(unit=np.where(early, "mph", "km/h"), speed=readings["speed"] * np.where(early, 1, MILE))
    city = City.from_tables(readings.sample(frac=1, random_state=2), SENSORS, units="mph", k=1)
    np.testing.assert_allclose(city.readings[..., 0], np.nan_to_num(wide().to_numpy()), rtol=1e-6)


def test_of_several_channels_it_is_the_one_measured_so():
    city = City.from_tables(long(), with_units("mph", "mph", "mph", "km/h"), units=["mph", "veh/5min"], k=1)
    np.testing.assert_allclose(city.readings[:, 3, 0], wide().to_numpy()[:, 3] / MILE, rtol=1e-6)
    np.testing.assert_array_equal(city.readings[..., 1], np.nan_to_num(wide(1000.0).to_numpy()))
    assert city.units == ("mph", "veh/5min")


@pytest.mark.parametrize("units", [("mph",) * 4, ("MPH", "mi/h", "mph", "mph"), (None,) * 4, ("knots",) * 4])
def test_one_unit_changes_nothing(units):
    city, report = read_tables(wide(), with_units(*units), k=1)
    np.testing.assert_array_equal(city.readings[..., 0], np.nan_to_num(wide().to_numpy()))
    assert city.units == ({None: "", "MPH": "mph"}.get(units[0], units[0]),)
    assert report.converted == {}


def test_a_sensor_that_is_not_in_the_city_does_not_count():
    city = City.from_tables(wide().drop(columns=IDS[0]), with_units("knots", "mph", "mph", "mph"), k=1)
    assert city.units == ("mph",)


@pytest.mark.parametrize(
    ("readings", "units", "how", "message"),
    [
        (
            wide(),
            ("mph", "mph", "knots", "mph"),
            {},
            "sensors: column 'unit': sensor '767542' is in 'knots', sensor '773869' in 'mph', and one cannot be conv",
        ),
        (wide(), ("mph", "veh/h", "mph", "mph"), {}, "sensor '767541' is in 'veh/h', sensor '773869' in 'mph'"),
        (wide(), ("mph", "mph", "mph", None), {}, "sensor '717447' is in no unit, sensor '773869' in 'mph'"),
        (wide(), ("knots",) * 4, {"units": "mph"}, "sensor '773869' is in 'knots', units= says 'mph'"),
        (
            long(),
            ("mph", "km/h", "mph", "mph"),
            {},
            r"column 'unit': it says one unit .'mph'., but there are the channels \['speed', 'flow'\]; say with units=",
        ),
    ],
)
def test_what_cannot_be_brought_to_one_unit_is_refused(readings, units, how, message):
    with pytest.raises(ValueError, match=message):
        City.from_tables(readings, with_units(*units), k=1, **how)
