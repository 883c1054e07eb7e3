"""What holds for the support profile of every city and window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsjt_pyg.data import City, SupportProfile

PER_DAY = 6
"""Steps a day, of four hours."""


@st.composite
def windows_of_cities(draw):
    """A city that starts at any step of any day, with readings missing, and one window of it."""
    num_steps = draw(st.integers(2, 6 * PER_DAY))
    start = pd.Timestamp("2024-03-04") + draw(st.integers(0, 7 * PER_DAY - 1)) * pd.Timedelta("4h")
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    readings = rng.normal(size=(num_steps, 2)).astype(np.float32)
    readings[rng.random(readings.shape) < draw(st.sampled_from([0.0, 0.4]))] = np.nan
    city = City.from_adjacency(readings, np.eye(2), start=start, interval="4h")
    history = draw(st.integers(1, min(9, num_steps - 1)))
    horizon = draw(st.integers(1, min(9, num_steps - history)))
    windows = city.windows(history, horizon, stride=draw(st.integers(1, 4)))
    number = draw(st.integers(0, len(windows) - 1))
    return city, windows, torch.tensor([number])


def profile_of(city, windows, index, most, seed=0):
    return SupportProfile(city).at(windows, index, most, torch.Generator().manual_seed(seed))


def own_steps(city, windows, index) -> torch.Tensor:
    """Whether each step of the city is of a day that the window touches."""
    first = int(index) * windows.stride
    days = city.time.normalize()
    own = days[first : first + windows.history + windows.horizon]
    return torch.from_numpy(days.isin(own))


@given(windows_of_cities(), st.sampled_from([None, 1, 2, 5]), st.integers(0, 99))
def test_a_windows_own_days_never_change_its_profile(drawn, most, seed):
    city, windows, index = drawn
    own = own_steps(city, windows, index)
    mask = torch.where(own[:, None, None], torch.rand(city.mask.shape) < 0.5, city.mask)
    readings = torch.where(own[:, None, None], 1e3 * torch.randn(city.readings.shape), city.readings)
    other = replace(city, readings=readings.masked_fill(~mask, 0.0), mask=mask)
    before, after = (profile_of(c, windows, index, most, seed) for c in (city, other))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@given(windows_of_cities(), st.sampled_from([None, 1, 3]), st.integers(0, 99))
def test_a_profile_lies_between_readings_of_its_time_of_day_on_other_days(drawn, most, seed):
    city, windows, index = drawn
    profile = profile_of(city, windows, index, most, seed)
    own = own_steps(city, windows, index)
    for step in range(windows.history + windows.horizon):
        slot = city.step_of_day[int(index) * windows.stride + step]
        for node in range(2):
            seen = city.readings[(city.step_of_day == slot) & ~own & city.mask[:, node, 0], node, 0]
            if not profile.mask[0, step, node, 0]:
                assert profile.values[0, step, node, 0] == 0
                continue
            assert seen.min() - 1e-6 <= profile.values[0, step, node, 0] <= seen.max() + 1e-6


@given(windows_of_cities(), st.integers(0, 99))
def test_what_stands_under_the_mask_has_no_influence(drawn, seed):
    city, windows, index = drawn
    spoiled = replace(city, readings=city.readings.masked_fill(~city.mask, torch.nan))
    one, other = (profile_of(c, windows, index, None, seed) for c in (city, spoiled))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(windows_of_cities(), st.integers(0, 99))
def test_scaling_the_readings_scales_the_profile(drawn, seed):
    city, windows, index = drawn
    doubled = profile_of(replace(city, readings=2 * city.readings), windows, index, 2, seed)
    once = profile_of(city, windows, index, 2, seed)
    torch.testing.assert_close(doubled.values, 2 * once.values)
    assert torch.equal(doubled.mask, once.mask)
