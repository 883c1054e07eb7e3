"""Units of a channel: converted where both are known and measure the same, refused everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .city import City

KINDS: dict[str, dict[str, float]] = {
    "speed": {"m/s": 1.0, "km/h": 1 / 3.6, "mph": 0.44704},
    "share": {"fraction": 1.0, "%": 0.01},
    "flow": {"veh/h": 1.0, "veh/15min": 4.0, "veh/5min": 12.0},
}
"""By what is measured: each unit in terms of the first. A mile is 1609.344 m exactly."""

LIMITS: dict[str, tuple[float, float]] = {
    "m/s": (0.0, 60.0),
    "km/h": (0.0, 216.0),
    "mph": (0.0, 134.0),
    "fraction": (0.0, 1.0),
    "%": (0.0, 100.0),
    "veh/h": (0.0, 30000.0),
    "veh/15min": (0.0, 7500.0),
    "veh/5min": (0.0, 2500.0),
    "trips": (0.0, float("inf")),
}
"""What no road can show: mean speeds over 60 m/s (216 km/h), more than 12 lanes of 2500 vehicles an hour, negatives."""


def convert_units(city: City, units: str | Mapping[str, str]) -> City:
    r"""The city with readings in other units: :math:`x' = x \cdot a / b`, with a and b from :data:`KINDS`.

    The mask is untouched. In float32 a way there and back is exact to about one part in ten million.

    Args:
        city: The city.
        units: The new unit of every channel that measures the same kind of thing (``"km/h"``: of all speeds); or a
            mapping from channel to its new unit (the others stay as they are).

    Raises:
        ValueError: If a unit is unknown, a channel is unknown or measures something else, or no channel measures it.
    """
    if isinstance(units, str):
        kind = KINDS[_kind(units, "units")]
        wanted = {channel: units for channel, old in zip(city.channels, city.units, strict=True) if old in kind}
        if not wanted:
            have = ", ".join(f"{c} ({u or 'no unit'})" for c, u in zip(city.channels, city.units, strict=True))
            raise ValueError(
                f"units: {city.name} has no channel that could be in {units!r} (that is, one in {', '.join(kind)}); "
                f"it has {have}"
            )
    else:
        wanted = dict(units)
    unknown = [channel for channel in wanted if channel not in city.channels]
    if unknown:
        raise ValueError(f"units: {city.name} has the channels {list(city.channels)}, found {unknown[0]!r}")
    factors, new = [], []
    for channel, old in zip(city.channels, city.units, strict=True):
        unit = wanted.get(channel, old)
        factors.append(1.0 if unit == old else _factor(old, unit, channel))
        new.append(unit)
    readings = city.readings * torch.tensor(factors, device=city.readings.device)
    return replace(city, readings=readings, units=tuple(new))


def _kind(unit: str, argument: str) -> str:
    for kind, known in KINDS.items():
        if unit in known:
            return kind
    every = ", ".join(unit for known in KINDS.values() for unit in known)
    raise ValueError(f"{argument}: cannot convert {unit!r}; known units are {every}")


def _factor(old: str, new: str, channel: str) -> float:
    if not old:
        raise ValueError(
            f"units: channel {channel!r} has no unit, so it cannot become {new!r}; say what its readings are in where "
            "the city is made (units=)"
        )
    kind, other = _kind(old, f"units: channel {channel!r}"), _kind(new, f"units: channel {channel!r}")
    if kind != other:
        raise ValueError(f"units: channel {channel!r} is a {kind} in {old!r}, which cannot become {new!r}, a {other}")
    return KINDS[kind][old] / KINDS[kind][new]
