"""Rows brought to one a step: time zones, daylight saving, jitter, duplicates, gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tsjt_pyg.data import City, regular_time

LA = "America/Los_Angeles"


def numbered(index: pd.DatetimeIndex) -> pd.DataFrame:
    """Every row holds its number."""
    return pd.DataFrame(
        {"a": np.arange(len(index), dtype=float), "b": -np.arange(len(index), dtype=float)}, index=index
    )


def test_a_regular_table_stays_as_it_is():
    table = numbered(pd.date_range("2024-03-04", periods=30, freq="5min"))
    found, changes = regular_time(table)
    pd.testing.assert_frame_equal(found, table, check_freq=False)
    assert str(changes) == "30 rows"


def test_rows_are_sorted_and_missing_steps_are_not_observed():
    whole = numbered(pd.date_range("2024-03-04", periods=20, freq="5min"))
    order = np.random.default_rng(0).permutation([i for i in range(20) if i not in (3, 4, 11)])
    found, changes = regular_time(whole.iloc[order])
    assert found.index.equals(whole.index)
    assert found["a"].isna().to_numpy().nonzero()[0].tolist() == [3, 4, 11]
    assert found.dropna().equals(whole.drop(whole.index[[3, 4, 11]]))
    assert changes.added == 3
    assert changes.unsorted == int((np.diff(order) < 0).sum())
    city = City.from_adjacency(found, np.eye(2))
    assert (~city.mask).all(dim=(1, 2)).nonzero().flatten().tolist() == [3, 4, 11]


def test_jitter_within_the_tolerance_is_moved_onto_the_grid():
    grid = pd.date_range("2024-03-04 06:00", periods=12, freq="5min")
    jitter = pd.to_timedelta([0, 20, -30, 5, 0, 0, 29, -1, 0, 12, 0, -7], unit="s")
    found, changes = regular_time(numbered(grid + jitter), "5min", tolerance="30s")
    assert found.index.equals(grid)
    assert found["a"].tolist() == list(range(12))
    assert (changes.snapped, changes.largest_shift) == (7, pd.Timedelta("30s"))
    with pytest.raises(ValueError, match=r"2 of 12 rows are farther than 0 days 00:00:25 .*06:09:30 .*widen tolerance"):
        regular_time(numbered(grid + jitter), "5min", tolerance="25s")


@pytest.mark.parametrize(("repeated", "expected"), [("first", [0, 1, 3]), ("mean", [0, 1.5, 3])])
def test_several_rows_on_a_step(repeated, expected):
    index = pd.DatetimeIndex(["2024-03-04 00:00", "2024-03-04 00:05", "2024-03-04 00:05", "2024-03-04 00:10"])
    found, changes = regular_time(numbered(index), "5min", repeated=repeated)
    assert found["a"].tolist() == expected
    assert changes.repeated == 1


def test_a_mean_is_that_of_what_was_observed():
    index = pd.DatetimeIndex(["2024-03-04 00:00", "2024-03-04 00:00", "2024-03-04 00:05"])
    table = pd.DataFrame({"a": [np.nan, 4.0, 1.0], "b": [np.nan, np.nan, 2.0]}, index=index)
    assert regular_time(table, "5min", repeated="mean").table.iloc[0].tolist() == pytest.approx(
        [4.0, np.nan], nan_ok=True
    )


def test_the_first_is_the_first_that_was_observed_node_by_node():
    index = pd.DatetimeIndex(["2024-03-04 00:00", "2024-03-04 00:00", "2024-03-04 00:05", "2024-03-04 00:00"])
    table = pd.DataFrame({"a": [np.nan, 4, 1, 9], "b": [7, 8, 2, 9], "c": [np.nan, np.nan, 3, np.nan]}, index=index)
    found, changes = regular_time(table, "5min", repeated="first")
    np.testing.assert_array_equal(found.to_numpy(), [[4, 7, np.nan], [1, 2, 3]])
    assert changes.repeated == 2


@pytest.mark.parametrize("start", ["2024-03-09", "2024-11-02"])
def test_utc_and_standard_time_keep_every_row_and_whole_days(start):
    local = pd.date_range(start, periods=3 * 24 + (-1 if "-03-" in start else 1), freq="1h", tz=LA)
    table = numbered(local)
    utc, in_utc = regular_time(table, zone="UTC")
    standard, in_standard = regular_time(table, zone=LA, clock="standard")
    assert utc["a"].tolist() == standard["a"].tolist() == table["a"].tolist()
    assert (in_utc.added, in_utc.repeated, in_standard.added, in_standard.repeated) == (0, 0, 0, 0)
    assert ((utc.index - standard.index) == pd.Timedelta("8h")).all()  # PST


def test_the_hour_that_spring_skips_is_there_with_nothing_observed():
    table = numbered(pd.date_range("2024-03-10", "2024-03-10 23:30", freq="30min", tz=LA))
    assert len(table) == 46
    found, changes = regular_time(table, zone=LA)
    assert len(found) == 48
    assert found.index[found["a"].isna()].strftime("%H:%M").tolist() == ["02:00", "02:30"]
    assert (changes.added, changes.skipped) == (2, 2)
    assert "2 steps added with nothing observed (2 skipped by the clock)" in str(changes)
    # every other reading stands at the time the clock on the wall showed
    for utc in table.tz_convert("UTC").index[::5]:
        assert found.loc[utc.tz_convert(LA).tz_localize(None), "a"] == table.loc[utc, "a"]
    assert not City.from_adjacency(found, np.eye(2)).mask[4:6].any()


@pytest.mark.parametrize(("repeated", "expected"), [("first", [2, 3]), ("mean", [3, 4])])
def test_the_hour_that_autumn_repeats_is_there_once(repeated, expected):
    table = numbered(pd.date_range("2024-11-03", "2024-11-03 23:30", freq="30min", tz=LA))
    assert len(table) == 50
    with pytest.raises(
        ValueError, match=r"2 rows fall on 2024-11-03 01:00:00 \(in America/Los_Angeles this hour comes "
    ):
        regular_time(table, zone=LA)
    found, changes = regular_time(table.iloc[::-1], zone=LA, repeated=repeated)
    assert len(found) == 48
    assert found["a"].iloc[:5].tolist() == [0, 1, *expected, 6]
    assert changes.repeated == 2


def test_the_southern_hemisphere_has_its_standard_time_in_june():
    table = numbered(pd.date_range("2024-01-01", periods=24, freq="1h", tz="UTC"))
    found, _ = regular_time(table, zone="Australia/Sydney", clock="standard")
    assert found.index[0] == pd.Timestamp("2024-01-01 10:00")


@pytest.mark.parametrize(
    ("index", "options", "message"),
    [
        (pd.RangeIndex(3), {}, r"rows are labelled with int64, expected times"),
        (pd.DatetimeIndex([]), {}, r"table: it has no rows"),
        (pd.DatetimeIndex(["2024-01-01", None]), {}, r"row 1 has no time \(NaT\)"),
        (pd.date_range("2024", periods=3, freq="5min", tz="UTC"), {}, r"rows are in time zone UTC; say which clock"),
        (pd.date_range("2024", periods=3, freq="5min"), {"zone": "UTC"}, r"rows have no time zone.*tz_localize"),
        (
            pd.date_range("2024", periods=3, freq="5min", tz="UTC"),
            {"zone": "Mars/Base"},
            r"zone: expected a name such as .*, found 'Mars/Base'",
        ),
        (pd.DatetimeIndex(["2024-01-01"] * 2), {}, r"interval: a table with the rows of one time says nothing"),
        (pd.date_range("2024", periods=3, freq="7min"), {}, r"positive part of a day.*found 0 days 00:07:00, the most"),
        (pd.date_range("2024", periods=3, freq="5min"), {"interval": 5}, r"a time with its unit .*found the number 5"),
        (pd.date_range("2024", periods=3, freq="5min"), {"tolerance": 30}, r"tolerance: expected a time with its unit"),
        (pd.date_range("2024", periods=3, freq="5min"), {"tolerance": "3min"}, r"tolerance: .*half an interval"),
        (
            pd.date_range("2024", periods=3, freq="5min"),
            {"repeated": "last"},
            r"repeated: expected 'error', 'first' or",
        ),
        (pd.date_range("2024", periods=3, freq="5min"), {"clock": "summer"}, r"clock: expected 'wall' or 'standard'"),
        (
            pd.date_range("2024", periods=3, freq="5min").append(pd.DatetimeIndex(["2034-01-01"])),
            {},
            r"its 4 times .* would be 1052065 steps of 0 days 00:05:00 .* almost all missing.* confirm with interval=",
        ),
        (pd.DatetimeIndex(["2024-01-01"] * 3), {"interval": "5min"}, r"3 rows fall on 2024-01-01 00:00:00; choose"),
    ],
)
def test_bad_time_is_refused_with_the_way_out(index, options, message):
    table = pd.DataFrame({"a": np.zeros(len(index))}, index=index)
    with pytest.raises(ValueError, match=message):
        regular_time(table, **options)


@pytest.mark.parametrize(
    ("start", "periods"), [("2024-11-03 05:30", 4), ("2024-11-03 05:00", 4), ("2024-11-03 06:15", 7)]
)
def test_a_table_that_begins_or_ends_in_the_hour_that_comes_twice_keeps_its_readings(start, periods):
    index = pd.date_range(start, periods=periods, freq="15min", tz="UTC")
    found = regular_time(numbered(index), "15min", zone="America/New_York", repeated="first").table
    local = index.tz_convert("America/New_York").tz_localize(None)
    assert set(found.index) >= set(local)
    assert found.index.is_monotonic_increasing
    assert found.notna().all(axis=1).sum() == len(set(local))
