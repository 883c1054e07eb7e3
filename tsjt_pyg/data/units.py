"""Units of a channel: converted where both are known and measure the same, refused everywhere else.

A unit is known by its usual spellings: ``"kph"``, ``"kmh"`` and ``"km/hr"`` are ``"km/h"``. Vehicles are counted by any
time: ``"veh/h"``, ``"veh/5min"``, ``"veh/day"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
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


_SPELLINGS = {
    "m/s": ("mps", "m/sec", "meters/s", "metres/s", "ms-1"),
    "km/h": ("kmh", "kph", "kmph", "km/hr", "km/hour", "kmh-1"),
    "mph": ("mi/h", "mi/hr", "miles/h", "miles/hr", "mile/h", "miles/hour"),
    "%": ("percent", "pct"),
    "veh/h": ("vph", "veh/hr"),
}
_KNOWN = {spelling: unit for unit, others in _SPELLINGS.items() for spelling in (unit, *others)} | {
    unit: unit for unit in LIMITS
}
_VEHICLES = ("veh", "vehs", "vehicle", "vehicles")
_PER = re.compile(r"(.*\S)\s*/\s*(\d*)\s*(s|sec|second|min|minute|h|hr|hour|d|day)s?", re.IGNORECASE)
_DAY, _HOUR, _MINUTE, _SECOND = (pd.Timedelta(1, unit) for unit in ("D", "h", "min", "s"))
_TIMES = {"s": _SECOND, "m": _MINUTE, "h": _HOUR, "d": _DAY}


class Counted(NamedTuple):
    """What is counted, and over which time: ``"veh/5min"`` is vehicles over five minutes."""

    what: str
    over: pd.Timedelta

    def __str__(self) -> str:
        units = ((_DAY, "day"), (_HOUR, "h"), (_MINUTE, "min"), (_SECOND, "s"))
        unit, name = next((unit, name) for unit, name in units if self.over % unit == pd.Timedelta(0))
        return f"{self.what}/{self.over // unit if self.over > unit else ''}{name}"


def known_unit(unit: str) -> str:
    """The usual spelling of a known unit: ``"kph"`` and ``"KM / H"`` are ``"km/h"``; an unknown one as it is."""
    text = "".join(unit.split()).lower()
    if text in _KNOWN:
        return _KNOWN[text]
    counted = _counted(text)
    return str(counted) if counted is not None and counted.what == "veh" else unit


def counted_unit(unit: str) -> Counted | None:
    """What a unit counts; ``None`` where it is a speed, a share, or says no time."""
    unit = known_unit(unit)
    return None if unit in KINDS["speed"] or unit in KINDS["share"] else _counted(unit)


def _counted(text: str) -> Counted | None:
    found = _PER.fullmatch(text.strip())
    if found is None or (found[2] and not int(found[2])):
        return None
    what = "veh" if found[1].lower() in _VEHICLES else found[1]
    return Counted(what, int(found[2] or 1) * _TIMES[found[3][0].lower()])


def unit_limits(unit: str) -> tuple[float, float] | None:
    """Lowest and highest reading that a unit allows, from :data:`LIMITS`; ``None`` where it is not known."""
    unit = known_unit(unit)
    counted = counted_unit(unit)
    if counted is not None and counted.what == "veh":
        return LIMITS.get(unit, (0.0, LIMITS["veh/h"][1] * (counted.over / _HOUR)))
    return LIMITS.get(unit)


def adds_up(unit: str, interval: pd.Timedelta) -> bool:
    """Whether readings over ``interval`` are counts of what happened in it, so that a longer one has their sum."""
    counted = counted_unit(unit)
    return known_unit(unit) == "trips" if counted is None else counted.over == interval


def summed_unit(unit: str, count: int) -> str:
    """Unit of the sum of ``count`` readings: of three in ``"veh/5min"`` it is ``"veh/15min"``, of trips ``"trips"``."""
    counted = counted_unit(unit)
    return unit if counted is None else str(Counted(counted.what, counted.over * count))


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
        kind, _ = _measured(units, "units")
        wanted = {c: units for c, old in zip(city.channels, city.units, strict=True) if kind == kind_of(old)}
        if not wanted:
            have = ", ".join(f"{c} ({u or 'no unit'})" for c, u in zip(city.channels, city.units, strict=True))
            raise ValueError(
                f"units: {city.name} has no channel that could be in {units!r} (that is, one in "
                f"{', '.join(KINDS[kind])}); it has {have}"
            )
    else:
        wanted = dict(units)
    unknown = [channel for channel in wanted if channel not in city.channels]
    if unknown:
        raise ValueError(f"units: {city.name} has the channels {list(city.channels)}, found {unknown[0]!r}")
    factors, new = [], []
    for channel, old in zip(city.channels, city.units, strict=True):
        unit = known_unit(wanted.get(channel, old))
        factors.append(1.0 if unit == known_unit(old) else _factor(old, unit, channel))
        new.append(unit)
    readings = city.readings * torch.tensor(factors, device=city.readings.device)
    return replace(city, readings=readings, units=tuple(new))


def kind_of(unit: str) -> str | None:
    """What a unit measures, a key of :data:`KINDS`; ``None`` where it is not known."""
    return None if (found := _measure(unit)) is None else found[0]


def unit_factor(old: str, new: str, argument: str) -> float:
    """What readings in ``old`` are multiplied by to be in ``new``.

    Raises:
        ValueError: If one is not known, or they measure different things.
    """
    kind, size = _measured(old, argument)
    other, new_size = _measured(new, argument)
    if kind != other:
        raise ValueError(f"{argument} is a {kind} in {old!r}, which cannot become {new!r}, a {other}")
    return size / new_size


def _measure(unit: str) -> tuple[str, float] | None:
    """What a unit measures, and its size in terms of the first of that kind."""
    unit = known_unit(unit)
    for kind, known in KINDS.items():
        if unit in known:
            return kind, known[unit]
    counted = counted_unit(unit)
    return ("flow", _HOUR / counted.over) if counted is not None and counted.what == "veh" else None


def _measured(unit: str, argument: str) -> tuple[str, float]:
    found = _measure(unit)
    if found is None:
        every = ", ".join(unit for known in KINDS.values() for unit in known)
        raise ValueError(f"{argument}: cannot convert {unit!r}; known units are {every} (or veh by another time)")
    return found


def _factor(old: str, new: str, channel: str) -> float:
    if not old:
        raise ValueError(
            f"units: channel {channel!r} has no unit, so it cannot become {new!r}; say what its readings are in where "
            "the city is made (units=)"
        )
    return unit_factor(old, new, f"units: channel {channel!r}")
