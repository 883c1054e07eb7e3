"""What holds for every repair, unit and table of times, whatever the readings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsjt_pyg.data import City, regular_time
from tsjt_pyg.data.units import KINDS

few_values = st.sampled_from([np.nan, 0.0, 0.0, 1.0, 2.0, 60.0, 61.0, -3.0, 500.0])
tables = hnp.arrays(
    np.float32, st.tuples(st.integers(2, 60), st.integers(1, 4), st.integers(1, 2)), elements=few_values
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "dead": st.sampled_from([True, False, "mask"]),
        "limits": st.booleans(),
        "stuck": st.sampled_from(["1h", "3h", None]),
        "outliers": st.sampled_from([None, 0.5, 4.0]),
    },
)


def a_city(readings: np.ndarray) -> City:
    nodes, channels = readings.shape[1:]
    return City.from_adjacency(readings, np.ones((nodes, nodes)), units=["km/h"] * channels, interval="1h")


@given(readings=tables, chosen=rules)
def test_a_repair_never_unmasks_and_counts_what_it_masks(readings, chosen):
    city = a_city(readings)
    repaired, report = city.repair(**chosen)
    assert not (repaired.mask & ~city.mask).any()
    assert torch.equal(repaired.readings[repaired.mask], city.readings[repaired.mask])
    lost = city.mask & ~repaired.mask
    assert (repaired.readings[lost] == 0).all()
    assert report.nodes.sum(axis=1).tolist() == lost.sum(dim=(0, 2)).tolist()
    assert report.channels.sum(axis=1).tolist() == lost.sum(dim=(0, 1)).tolist()
    assert report.masked == int(lost.sum())
    assert torch.equal(city.mask, torch.from_numpy(~np.isnan(readings)))


@given(readings=tables, garbage=st.sampled_from([-5.0, 1e6, 60.0]), chosen=rules)
def test_what_stands_under_the_mask_changes_no_verdict(readings, garbage, chosen):
    city = a_city(readings)
    spoiled = City(**{**vars(city), "readings": city.readings.masked_fill(~city.mask, garbage)})
    assert torch.equal(city.repair(**chosen).city.mask, spoiled.repair(**chosen).city.mask)


@given(readings=tables)
def test_the_table_counts_as_brute_force_does(readings):
    table = a_city(readings).describe().table
    for channel, row in enumerate(table.itertuples()):
        column = readings[..., channel]
        seen = column[~np.isnan(column)]
        dead = [not any(v != 0 for v in node if not np.isnan(v)) for node in column.T]
        assert row.dead_nodes == sum(dead)
        assert row.count == len(seen)
        assert row.negative == sum(v < 0 for v in seen)
        assert row.limits == sum(v > 216 for v in seen)
        if len(seen):
            assert (row.min, row.max) == (seen.min(), seen.max())


@given(
    readings=tables,
    kind=st.sampled_from(sorted(KINDS)),
    data=st.data(),
)
def test_units_there_and_back(readings, kind, data):
    old, new = (data.draw(st.sampled_from(sorted(KINDS[kind]))) for _ in range(2))
    city = City(**{**vars(a_city(readings)), "units": (old,) * readings.shape[2]})
    there = city.to_units(new)
    assert torch.equal(there.mask, city.mask)
    torch.testing.assert_close(there.to_units(old).readings, city.readings, rtol=1e-6, atol=0)


@given(
    first=st.datetimes(pd.Timestamp("2023-01-01"), pd.Timestamp("2025-01-01")),
    kept=st.lists(st.integers(0, 400), min_size=2, max_size=60, unique=True),
    zone=st.sampled_from(["UTC", "Europe/Amsterdam", "America/Los_Angeles", "Australia/Sydney"]),
    clock=st.sampled_from(["wall", "standard"]),
)
def test_no_row_is_lost_or_moved_but_on_the_wall_clock_of_autumn(first, kept, zone, clock):
    start = pd.Timestamp(first).floor("1h").tz_localize("UTC")
    index = start + pd.to_timedelta(kept, unit="h")
    table = pd.DataFrame({"a": np.arange(len(kept), dtype=float)}, index=index)
    found, changes = regular_time(table, "1h", zone=zone, clock=clock, repeated="first")
    assert changes.repeated == 0 or clock == "wall"
    assert found["a"].notna().sum() + changes.repeated == len(kept) == changes.rows
    assert ((found.index[1:] - found.index[:-1]) == pd.Timedelta("1h")).all()
    assert len(found) == len(kept) - changes.repeated + changes.added
    if clock == "wall":
        for time, value in table["a"].items():
            at = found.loc[time.tz_convert(zone).tz_localize(None), "a"]
            assert at == value or changes.repeated
