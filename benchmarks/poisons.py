"""Source cities that must not help, and must not hurt: real ones, spoiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tsjt_pyg import City
from tsjt_pyg.datasets import load_city

Poison = Callable[[City], City]


def shuffled_time(city: City) -> City:
    """Every step somewhere else in time, all nodes together."""
    order = torch.randperm(city.num_steps, generator=_generator())
    return replace(city, readings=city.readings[order], mask=city.mask[order])


def reversed_days(city: City) -> City:
    """Every day from its evening to its morning."""
    steps, per_day = torch.arange(city.num_steps), city.steps_per_day
    whole = city.num_steps // per_day * per_day
    order = torch.cat([steps[:whole].view(-1, per_day).flip(1).flatten(), steps[whole:]])
    return replace(city, readings=city.readings[order], mask=city.mask[order])


def noise(city: City) -> City:
    """Independent noise with each node's own mean and standard deviation."""
    observed = city.mask.to(city.readings.dtype)
    count = observed.sum(dim=0).clamp(min=1)
    mean = (city.readings * observed).sum(dim=0) / count
    std = (((city.readings - mean) * observed).square().sum(dim=0) / count).sqrt()
    drawn = mean + std * torch.randn(city.readings.shape, generator=_generator())
    return replace(city, readings=drawn.masked_fill(~city.mask, 0.0))


def wrong_units(city: City) -> City:
    """A tenth of the nodes in kilometres, the others in miles, with nothing that says so."""
    other = torch.rand(city.num_nodes, generator=_generator()) < 0.1
    factor = torch.where(other, 1.609344, 1.0).view(1, -1, 1)
    return replace(city, readings=city.readings * factor)


def another_quantity(city: City, root: str | Path | None = None) -> City:
    """Bike trips in New York (for a city of bike trips: taxi trips), named and timed as what the city has."""
    trips = load_city("jonas_nyc", root).select("taxi_demand" if "bike_demand" in city.channels else "bike_demand")
    return replace(trips, channels=city.channels, units=city.units, interval=city.interval)


def wrong_clock(city: City) -> City:
    """Six hours late: the rush hour of the morning is at noon."""
    shift = city.steps_per_day // 4
    return replace(city, readings=city.readings.roll(shift, dims=0), mask=city.mask.roll(shift, dims=0))


def drifting_level(city: City) -> City:
    """Every day has another level, by a draw of the readings' own standard deviation: a gauge that is set anew."""
    days = torch.arange(city.num_steps) // city.steps_per_day
    drawn = torch.randn(int(days[-1]) + 1, generator=_generator()) * city.readings[city.mask].std()
    readings = city.readings + drawn[days].view(-1, 1, 1)
    return replace(city, readings=readings.masked_fill(~city.mask, 0.0))


LATER = ("wrong clock", "drifting level")
"""Poisons that were thought of after the guard's bounds were set, which saw the others' test errors."""

POISONS: dict[str, Poison] = {
    "shuffled time": shuffled_time,
    "reversed days": reversed_days,
    "noise": noise,
    "wrong units": wrong_units,
    "wrong clock": wrong_clock,
    "drifting level": drifting_level,
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
