"""Numbers in tables as other people write them: decimal commas, numbers that mean missing, and what cannot be true."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_tables import EDGES, IDS, SENSORS, TIME, expected, long, of, wide

from tsjt_pyg import City
from tsjt_pyg.data import read_tables


@pytest.mark.parametrize("sep", [";", ",", "\t"])
@pytest.mark.parametrize("points", [True, False])
def test_decimal_commas(sep, points, tmp_path):
    """In every table that is a file; positions may have points all the same."""
    readings, edges = wide(14.25), EDGES.assign(distance=[100.5, 200.25, 400.0])
    plain = City.from_tables(readings, SENSORS, edges)
    how = {"sep": sep, "decimal": ",", "encoding": "utf-8-sig", "na_rep": "n/a"}
    readings.to_csv(tmp_path / "r.csv", **how)
    edges.to_csv(tmp_path / "e.csv", index=False, **how)
    SENSORS.to_csv(tmp_path / "s.csv", index=False, decimal="." if points else ",")
    city = City.from_tables(tmp_path / "r.csv", tmp_path / "s.csv", tmp_path / "e.csv", decimal=",")
    assert city.fingerprint() == plain.fingerprint()


def test_decimal_commas_in_columns_of_objects():
    text = long().assign(
        speed=lambda table: table["speed"].map(lambda x: x if pd.isna(x) else f"{x + 0.5:g}".replace(".", ","))
    )
    city = City.from_tables(text, SENSORS, decimal=",")
    assert of(city, IDS[0]) == expected(IDS[0], 1.5)
    assert of(city, IDS[1], 1) == expected(IDS[1], 1000.0)  # numbers stay what they are


@given(
    st.lists(st.sampled_from([-9.9, -1.0, 0.0, 0.1, 55.5]), max_size=3),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_numbers_that_mean_missing_are_missing_and_no_others(marks, as_wide, dtype):
    values = np.resize([-9.9, -1.0, 0.0, 0.1, 55.5, 60.0, 7.0], (6, 4))
    table = pd.DataFrame(values.astype(dtype), index=TIME, columns=IDS)
    if not as_wide:
        table = table.rename_axis(columns="sensor_id").melt(ignore_index=False, value_name="speed").reset_index()
    city, report = read_tables(table, SENSORS, missing_values=marks)
    unmarked = ~np.isin(values, marks)
    assert np.array_equal(city.mask[..., 0].numpy(), unmarked)
    np.testing.assert_array_equal(city.readings[..., 0].numpy()[unmarked], values.astype(np.float32)[unmarked])
    assert report.marked == (~unmarked).sum()


def test_ids_and_positions_and_times_are_no_missing_values(caplog):
    """One number is enough; -1 is taken before units are converted and duplicates joined."""
    sensors = SENSORS.assign(
        sensor_id=[0, -1, 2, 3], latitude=[0.0, -1.0, 2.0, 3.0], unit=["mph", "km/h", "mph", "mph"]
    )
    table = (
        wide()
        .set_axis([0, -1, 2, 3], axis=1)
        .rename_axis(columns="sensor_id")
        .melt(ignore_index=False, value_name="speed")
    )
    table.loc[table["sensor_id"] == -1, "speed"] = -1.0
    table = table.reset_index().assign(timestamp=lambda t: t["timestamp"].dt.strftime("%Y%m%d%H%M").astype(int))
    again = pd.concat([table, table.head(1).assign(speed=-1)])
    how = {"time_format": "%Y%m%d%H%M", "duplicates": "mean", "units": "mph"}
    city, report = read_tables(again, sensors, missing_values=-1, **how)
    assert city.node_ids == ("0", "-1", "2", "3")
    assert city.pos[:2, 0].tolist() == [0.0, -1.0]
    assert of(city, "0") == expected(IDS[0])
    assert not city.mask[:, 1].any()
    assert (report.marked, report.doubtful) == (7, 0)
    assert "7 readings among missing_values (missing)" in str(report)


def test_readings_outside_what_their_unit_allows_are_counted(caplog):
    """By the rule of City.repair; they stay, and a unit that is not known allows everything."""
    table = wide()
    table.iloc[0, :2] = [-1.0, 300.0]
    city, report = read_tables(table, SENSORS, units="km/h")
    assert report.doubtful == 2 == city.repair().report.masked
    assert city.mask[0, :2].all()
    assert (
        "2 readings outside what their unit allows (kept): name numbers that mean 'missing' with missing_values=, "
        in str(report)
    )
    assert "City.repair" in str(report)
    assert caplog.records[0].levelno == logging.WARNING
    for unit, of_table in ((None, table), ("km/h", wide())):
        report = read_tables(of_table, SENSORS, **({} if unit is None else {"units": unit})).report
        assert report.doubtful == 0
        assert "allows" not in str(report)
