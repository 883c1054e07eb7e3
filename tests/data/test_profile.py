"""Support profiles: the mean of other days at the same time of day, and never of the window's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City, Profile, SupportProfile

HISTORY, HORIZON = 4, 3
FIELDS = ("values", "mask", "same_type")


def hours(make_city, num_steps=24 * 9, start="2024-03-04", **about) -> City:
    """Hours from a Monday on."""
    return make_city(num_steps=num_steps, num_nodes=3, start=start, interval="60min", **about)


def day_of(city: City, step: int) -> pd.Timestamp:
    return (city.start + step * city.interval).normalize()


def slow_profile(support: City, windows, number: int, days: list[pd.Timestamp] | None = None):
    """Values, mask and same_type of one window: a loop over its steps and the support's days, in float64."""
    rows = {time: row for row, time in enumerate(support.time)}
    readings, mask = support.readings.double().numpy(), support.mask.numpy()
    length = windows.history + windows.horizon
    times = [windows.city.start + (number * windows.stride + t) * support.interval for t in range(length)]
    own = {time.normalize() for time in times}
    if days is None:
        days = sorted({time.normalize() for time in support.time} - own)
    assert not own & set(days)
    shape = (length, support.num_nodes, support.num_channels)
    values, known, same_type = np.zeros(shape), np.zeros(shape, bool), np.zeros(length, bool)
    for t, time in enumerate(times):
        there = [day for day in days if day + (time - time.normalize()) in rows]
        same = [day for day in there if (day.day_of_week >= 5) == (time.day_of_week >= 5)]
        same_type[t] = bool(same)
        used = [rows[day + (time - time.normalize())] for day in (same or there)]
        for node, channel in np.ndindex(shape[1:]):
            seen = [readings[row, node, channel] for row in used if mask[row, node, channel]]
            known[t, node, channel] = bool(seen)
            values[t, node, channel] = np.mean(seen) if seen else 0.0
    return values, known, same_type


def assert_equals_the_loop(support: City, windows, profile: Profile, index) -> None:
    for place, number in enumerate(index.tolist()):
        values, known, same_type = slow_profile(support, windows, number)
        np.testing.assert_allclose(profile.values[place].numpy(), values, rtol=1e-5)
        assert np.array_equal(profile.mask[place].numpy(), known)
        assert np.array_equal(profile.same_type[place].numpy(), same_type)


@pytest.mark.parametrize("start", ["2024-03-04 00:00", "2024-03-08 07:00", "2024-03-09 23:00"])
@pytest.mark.parametrize("num_steps", [24 * 3, 24 * 9 + 5, 30])
@pytest.mark.parametrize("stride", [1, 5])
def test_it_is_the_mean_of_the_other_days_of_the_steps_type(make_city, start, num_steps, stride):
    city = hours(make_city, num_steps, start, missing=0.3, num_channels=2)
    windows = city.windows(HISTORY, HORIZON, stride)
    index = torch.arange(len(windows)).flip(0)[:: 1 if stride > 1 else 4]
    profile = SupportProfile(city).at(windows, index)
    assert profile.values.shape == profile.mask.shape == (len(index), 7, 3, 2)
    assert (profile.values.dtype, profile.mask.dtype) == (torch.float32, torch.bool)
    assert_equals_the_loop(city, windows, profile, index)


@pytest.mark.parametrize("start", ["2024-03-04", "2024-03-07 13:00"])
@pytest.mark.parametrize("days", [1, 3, 4.25])
def test_windows_of_the_test_period_see_the_visible_days(make_city, start, days):
    visible, test = hours(make_city, start=start, missing=0.2).few_shot(days)
    windows = test.windows(HISTORY, HORIZON, stride=2)
    index = torch.arange(len(windows))
    assert_equals_the_loop(visible, windows, SupportProfile(visible).at(windows, index), index)


def test_windows_before_the_support_days_see_them_too(make_city):
    city = hours(make_city)
    support, windows = city.between(24 * 5 + 3, city.num_steps), city.between(0, 40).windows(HISTORY, HORIZON)
    index = torch.arange(len(windows))
    assert_equals_the_loop(support, windows, SupportProfile(support).at(windows, index), index)


def test_a_weekend_with_working_days_to_go_by_says_so(make_city):
    visible, test = hours(make_city, start="2024-03-06").few_shot(3)  # Wednesday to Friday
    profile = SupportProfile(visible).at(test.windows(HISTORY, HORIZON), torch.tensor([0, 20, 44, 48]))
    assert profile.mask.all()
    expected = visible.readings.view(3, 24, 3, 1).mean(dim=0)
    torch.testing.assert_close(profile.values[0], expected[:7])
    assert not profile.same_type[:2].any()  # Saturday, and over midnight to Sunday
    assert profile.same_type[2].tolist() == [False] * 4 + [True] * 3  # Sunday and Monday
    assert profile.same_type[3].all()


def test_a_window_over_midnight_leaves_out_both_of_its_days(make_city):
    city = hours(make_city, 24 * 3)
    profile = SupportProfile(city).at(
        city.windows(HISTORY, HORIZON), torch.tensor([20])
    )  # Monday 20:00 to Tuesday 2:00
    torch.testing.assert_close(profile.values[0, :4], city.readings[48 + 20 :])
    torch.testing.assert_close(profile.values[0, 4:], city.readings[48:51])


def test_without_another_day_there_is_no_profile(make_city):
    city = hours(make_city, 24)
    windows = city.windows(HISTORY, HORIZON)
    for most in (None, 1, 3):
        profile = SupportProfile(city).at(windows, torch.arange(len(windows)), most)
        assert not profile.mask.any()
        assert not profile.same_type.any()
        assert (profile.values == 0).all()


def test_days_that_are_there_in_part_count_where_they_are(make_city):
    city = hours(make_city, 24 + 12, start="2024-03-04 18:00")  # Monday from 18:00, Tuesday, Wednesday to 5:00
    windows = city.between(6, 36).windows(HISTORY, HORIZON)  # from Tuesday 0:00
    profile = SupportProfile(city).at(windows, torch.tensor([0, 8, 15]))
    assert profile.mask[:, :, 0, 0].tolist() == [[True] * 6 + [False], [False] * 7, [False] * 3 + [True] * 4]
    torch.testing.assert_close(profile.values[0, :6], city.readings[30:])
    torch.testing.assert_close(profile.values[2, 3:], city.readings[:4])
    assert torch.equal(profile.same_type, profile.mask[:, :, 0, 0])


def subset_means(city, windows, number, most):
    """The profile of every choice of 1 to ``most`` other days, by the choice."""
    own = {day_of(city, number + t) for t in range(HISTORY + HORIZON)}
    others = sorted({time.normalize() for time in city.time} - own)
    return {
        chosen: slow_profile(city, windows, number, list(chosen))
        for size in range(1, most + 1)
        for chosen in combinations(others, size)
    }


@pytest.mark.parametrize(("number", "days", "most"), [(2, 4, 1), (2, 4, 2), (2, 4, 3), (20, 5, 2), (2, 3, 9)])
def test_draws_are_of_one_to_most_distinct_other_days_and_all_of_them_come(make_city, number, days, most):
    city = hours(make_city, 24 * days, start="2024-03-07", missing=0.1)  # Thursday, …, Saturday, Sunday
    windows, draws = city.windows(HISTORY, HORIZON), 600
    index = torch.full((draws,), number)
    profile = SupportProfile(city).at(windows, index, most, torch.Generator().manual_seed(3))
    others = days - (1 if number == 2 else 2)
    possible = subset_means(city, windows, number, min(most, others))
    seen: dict[bytes, int] = {}
    for values, mask, same_type in zip(*profile, strict=True):
        fits = [
            chosen
            for chosen, (v, k, s) in possible.items()
            if np.allclose(values, v, rtol=1e-5) and np.array_equal(mask, k) and np.array_equal(same_type, s)
        ]
        assert fits, "no choice of other days has this profile"
        seen[repr(sorted(fits))] = seen.get(repr(sorted(fits)), 0) + 1
    for size in range(1, min(most, others) + 1):  # each number of days is drawn equally often, then each choice of it
        chosen = [c for c in possible if len(c) == size]
        share = (1 if size < others else most - others + 1) / most / len(chosen)
        for choice in chosen:
            found = sum(count for fits, count in seen.items() if repr(choice) in fits)
            assert found >= draws * share - 5 * (draws * share) ** 0.5


def test_different_windows_of_a_batch_draw_days_of_their_own(make_city):
    city = hours(make_city)
    profile = SupportProfile(city).at(city.windows(HISTORY, HORIZON), torch.full((50,), 3), most=1)
    assert len(profile.values.flatten(1).unique(dim=0)) > 3


def test_the_same_generator_gives_the_same_profile_and_another_another(make_city):
    city = hours(make_city)
    windows, index = city.windows(HISTORY, HORIZON), torch.arange(40)
    draw = [SupportProfile(city).at(windows, index, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(draw[0], draw[1], strict=True))
    assert not torch.equal(draw[0].values, draw[2].values)
    state = torch.get_rng_state()
    SupportProfile(city).at(windows, index)
    SupportProfile(city).at(windows, index, 3, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_a_mapped_city_gives_the_same_profile(make_city, tmp_path):
    city = hours(make_city, missing=0.2)
    mapped = City.load(city.save_mapped(tmp_path / "city"))
    index = torch.arange(30)
    for most in (None, 2):
        here, there = (
            SupportProfile(c).at(c.windows(HISTORY, HORIZON), index, most, torch.Generator().manual_seed(0))
            for c in (city, mapped)
        )
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_no_window_gives_an_empty_profile(make_city):
    city = hours(make_city)
    profile = SupportProfile(city).at(city.windows(HISTORY, HORIZON), torch.arange(0), most=2)
    assert profile.values.shape == (0, 7, 3, 1)
    assert profile.same_type.shape == (0, 7)


def test_it_moves_to_another_device_as_a_whole(make_city):
    city = hours(make_city)
    profile = SupportProfile(city).at(city.windows(HISTORY, HORIZON), torch.arange(3))
    moved = profile.to("meta")
    assert isinstance(moved, Profile)
    assert [getattr(moved, name).device.type for name in FIELDS] == ["meta"] * 3
    assert [getattr(moved, name).shape for name in FIELDS] == [getattr(profile, name).shape for name in FIELDS]


def test_its_name_says_how_many_days_it_has(make_city):
    assert (
        repr(SupportProfile(hours(make_city, 30, "2024-03-04 20:00", name="Ede"))) == "SupportProfile(3 days of 'Ede')"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, node_ids=("x", "y", "z")), "has other node_ids than the support days of"),
        (lambda c: replace(c, channels=("other",)), "has other channels than"),
        (lambda c: c.resample("120min"), "has other interval than"),
        (
            lambda c: replace(c, start=c.start + pd.Timedelta("20min")),
            "starts at .* no whole number of",
        ),
    ],
)
def test_windows_that_are_not_of_the_same_city_are_refused(make_city, change, message):
    city = hours(make_city)
    windows = change(city).windows(HISTORY, HORIZON)
    with pytest.raises(ValueError, match=message):
        SupportProfile(city).at(windows, torch.arange(2))


def test_at_least_one_day_has_to_be_drawn(make_city):
    city = hours(make_city)
    with pytest.raises(ValueError, match="most: expected at least 1 support day, found 0"):
        SupportProfile(city).at(city.windows(HISTORY, HORIZON), torch.arange(2), most=0)
