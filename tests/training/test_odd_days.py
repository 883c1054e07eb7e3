"""Which share of a city's days is unlike its others: none of a healthy one, much of one that broke half-way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tsjt_pyg.datasets import load_city, load_task
from tsjt_pyg.training.guard import ODD
from tsjt_pyg.training.odd_days import odd_share


@pytest.fixture(scope="module")
def city(commuters):
    return commuters("north", days=10, num_nodes=8, seed=2)


def noise(readings):
    return 40 + 10 * torch.randn(readings.shape, generator=torch.Generator().manual_seed(0))


GARBAGE = {
    "constant": lambda readings: torch.full_like(readings, 50.0),
    "zero": torch.zeros_like,
    "huge": lambda readings: readings * 1e6,
    "alternating": lambda readings: readings * 0 + 100.0 * (torch.arange(len(readings)) % 2)[:, None, None],
    "noise": noise,
    "ten times": lambda readings: readings * 10,
}


def spoiled(city, garbage, first, last, name="spoiled"):
    """Steps ``first .. last`` are garbage, all observed."""
    readings, mask = city.readings.clone(), city.mask.clone()
    readings[first:last] = GARBAGE[garbage](readings[first:last])
    mask[first:last] = True
    return replace(city, name=name, readings=readings, mask=mask)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("first", "last"), [(0, 120), (60, 180), (120, 240)])
def test_a_city_that_is_garbage_half_of_its_days_is_told(city, garbage, first, last):
    assert odd_share(city) == 0
    assert odd_share(spoiled(city, garbage, first, last)) > ODD


@pytest.mark.parametrize("garbage", ["huge", "ten times"])
def test_a_single_day_counts_by_the_variance_it_brings(city, garbage):
    assert odd_share(spoiled(city, garbage, 96, 120)) > ODD


def test_a_single_day_of_ten_that_brings_little_variance_is_forgiven(city):
    assert 0.1 <= odd_share(spoiled(city, "constant", 96, 120)) < ODD


def test_a_feed_that_repeats_its_last_values_is_told_by_hours(commuters):
    many = commuters("many", days=4, num_nodes=12, seed=2)
    assert odd_share(many) == 0
    for nodes, odd in ((12, 0.5), (9, 0.0)):
        city = many.keep_nodes(many.node_ids[:nodes])
        readings, mask = city.readings.clone(), city.mask.clone()
        for first in (30, 60):  # four hours of two days: too few to be told by their spread
            readings[first : first + 4], mask[first : first + 4] = readings[first - 1], mask[first - 1]
        assert odd_share(replace(city, readings=readings, mask=mask)) == pytest.approx(odd, abs=0.02)
    quiet = torch.where((torch.arange(many.num_steps) % 24 < 6)[:, None, None], 0.0, many.readings)
    assert odd_share(replace(many, readings=quiet, mask=torch.ones_like(many.mask))) == 0  # nights without a trip


def test_days_of_which_little_was_observed_say_nothing(city):
    mask = city.mask.clone()
    mask[24:120] = False
    mask[130:144] = False  # a night is left
    assert odd_share(replace(city, mask=mask)) == 0
    assert odd_share(replace(city, mask=torch.zeros_like(mask))) == 0


def test_every_channel_counts(city):
    other = spoiled(city, "constant", 0, 120)
    both = {name: torch.cat([getattr(city, name), getattr(other, name)], 2) for name in ("readings", "mask")}
    assert odd_share(replace(city, **both, channels=("speed", "flow"), units=("km/h", ""))) == odd_share(other) > ODD


def test_there_is_nothing_to_compare_a_single_day_with(city):
    assert odd_share(city.between(0, 47)) == 0


def test_the_level_of_a_city_and_its_unit_do_not_matter(city):
    half = spoiled(city, "noise", 0, 120)
    for one in (city, half):
        scaled = replace(one, readings=1e3 * one.readings)
        assert odd_share(scaled) == pytest.approx(odd_share(one), rel=1e-4)


@pytest.mark.parametrize("name", ["riverton", "ringwood", "gridport"])
def test_the_bundled_cities_have_few_odd_days(name):
    assert odd_share(load_city(f"demo/{name}").select("speed")) < ODD / 2


@pytest.mark.parametrize("name", ["los_loop", "pems04", "pems08", "jonas_nyc", "jonas_dc"])
def test_the_real_cities_have_few_odd_days(real_city, cities_root, name):
    """A snowstorm and a holiday are odd; thresholds leave room for three times as many."""
    channels = ("taxi_demand", "bike_demand") if name.startswith("jonas") else ("speed",)
    for channel in channels:
        assert odd_share(real_city(name).select(channel)) <= ODD / 3
        if name == "jonas_nyc":  # as it is learned from: summed to an hour
            (source,) = load_task("jonas_dc", [name], cities_root, channel).sources
            assert odd_share(source) <= ODD / 3
