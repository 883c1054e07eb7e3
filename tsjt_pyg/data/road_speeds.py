"""How fast a road is: what OpenStreetMap's ``maxspeed`` and ``highway`` say of it."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

_log = logging.getLogger(__name__)

TAGS = ("highway", "maxspeed", "speed_kph", "travel_time")
"""Attributes of a road that say how fast it is, as OSMnx names them."""

HIGHWAY_SPEEDS: Mapping[str, float] = {
    "motorway": 90,
    "motorway_link": 45,
    "trunk": 85,
    "trunk_link": 40,
    "primary": 65,
    "primary_link": 30,
    "secondary": 55,
    "secondary_link": 25,
    "tertiary": 40,
    "tertiary_link": 20,
    "unclassified": 25,
    "residential": 25,
    "living_street": 10,
    "service": 15,
}
"""km/h by highway class where no road of a graph has a limit: the car profile of `OSRM <https://project-osrm.org>`_."""

_KMH = {"": 1.0, "km/h": 1.0, "kmh": 1.0, "kph": 1.0, "mph": 1.60934, "knots": 1.852}
_SPEED = re.compile(r"(\d+(?:[.,]\d+)?) ?(km/h|kmh|kph|mph|knots)?", re.IGNORECASE)
# What the OpenStreetMap wiki allows beside numbers; a country's rule such as "RO:urban" has a colon.
_NO_NUMBER = re.compile(r"none|signals|variable|walk|implicit|unposted|[A-Za-z-]{2,6}:[\w.-]+", re.IGNORECASE)


def as_list(value: object) -> list[object]:
    """The values of a tag that may be one, several (OSMnx joins roads), or several as text (GraphML)."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = ast.literal_eval(value)  # literals only: no code is run
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    if isinstance(value, list | tuple | set):
        return [one for one in value if not _absent(one)]
    return [] if _absent(value) else [value]


def _absent(value: object) -> bool:
    return value is None or value == "" or value == "None" or (isinstance(value, float) and np.isnan(value))


def parse_maxspeed(value: object) -> float:
    """A ``maxspeed`` in km/h; NaN where it says nothing that is a number (``"none"``, ``"signals"``, ``"RO:urban"``).

    Args:
        value: A number, text such as ``"50"``, ``"25 mph"`` or ``"30|50"`` (one a lane), or a list of them, whose mean
            counts, as in OSMnx.

    Raises:
        ValueError: If it is none of these, or not positive.
    """
    speeds = [_one_speed(text.strip()) for one in as_list(value) for text in re.split(r"[|;]", str(one))]
    known = [speed for speed in speeds if not np.isnan(speed)]
    return float(np.mean(known)) if known else np.nan


def _one_speed(text: str) -> float:
    match = _SPEED.fullmatch(text)
    if match is None:
        if _NO_NUMBER.fullmatch(text):
            return np.nan
        raise ValueError(f"found {text!r}")
    speed = float(match[1].replace(",", ".")) * _KMH[(match[2] or "").lower()]
    if not speed > 0:
        raise ValueError(f"found {text!r}")
    return speed


def _numbers(tags: pd.DataFrame, tag: str, roads: Sequence[str]) -> np.ndarray | None:
    """A tag that is a positive number on every road; ``None`` where not every road has it."""
    if any(_absent(value) for value in tags[tag]):
        return None
    values = pd.to_numeric(tags[tag], errors="coerce").to_numpy(dtype=np.float64)
    lowest = 0.0 if tag == "travel_time" else np.finfo(np.float64).tiny
    bad = ~((values >= lowest) & np.isfinite(values))
    if bad.any():
        worst = int(np.argmax(bad))
        raise ValueError(
            f"graph: road {roads[worst]!r} has {tag} = {tags[tag].iloc[worst]}; expected a positive number"
        )
    return values


def free_flow_speeds(tags: pd.DataFrame, roads: Sequence[str], speeds: Mapping[str, float] | None = None) -> np.ndarray:
    """km/h of each road ``[S]``, by the rule of :func:`osmnx.routing.add_edge_speeds` (osmnx itself is not needed).

    ``speed_kph`` where every road has it. Otherwise ``maxspeed``; without it, what ``speeds`` says of the road's
    ``highway`` class (of several the first), else the mean of that class, else the mean of all classes; where no road
    has a ``maxspeed``, :data:`HIGHWAY_SPEEDS`. How many speeds were assumed is logged.

    Raises:
        ValueError: If a ``maxspeed`` cannot be read, or nothing is known of a road's class.
    """
    said = _numbers(tags, "speed_kph", roads)
    if said is not None:
        return said
    found = np.full(len(roads), np.nan)
    for i, value in enumerate(tags["maxspeed"]):
        try:
            found[i] = parse_maxspeed(value)
        except ValueError as error:
            raise ValueError(
                f"graph: road {roads[i]!r} has maxspeed = {value!r} ({error}); expected a positive number in km/h, or "
                "with its unit ('30 mph'); mend the tag, or give every edge a speed_kph"
            ) from error
    given = dict(speeds or {})
    for name, speed in given.items():
        if not 0 < float(speed) < np.inf:
            raise ValueError(f"speeds: {name!r} is {speed}; expected a positive number of km/h")
    classes = pd.Series([str(next(iter(as_list(value)), "unknown")) for value in tags["highway"]], dtype=object)
    if np.isnan(found).all():
        means = {**HIGHWAY_SPEEDS, **given}
        overall = np.nan
    else:
        of_class = pd.Series(found).groupby(classes).mean().dropna()
        means = {**{str(name): float(speed) for name, speed in of_class.items()}, **given}
        overall = float(np.mean(list(means.values())))
    absent = np.isnan(found)
    found[absent] = classes[absent].map(means).to_numpy(dtype=np.float64)
    found[np.isnan(found)] = overall
    if np.isnan(found).any():
        worst = int(np.argmax(np.isnan(found)))
        raise ValueError(
            f"graph: nothing says how fast road {roads[worst]!r} (highway {classes[worst]!r}) is, and no road has a "
            f"maxspeed; pass speeds={{{classes[worst]!r}: …}} in km/h"
        )
    if absent.any():
        _log.info("%d of %d roads have no maxspeed; their speed is assumed by highway class", absent.sum(), len(found))
    return found


def travel_seconds(
    length: np.ndarray, tags: pd.DataFrame, roads: Sequence[str], speeds: Mapping[str, float] | None = None
) -> np.ndarray:
    """Seconds along each road ``[S]``: its ``travel_time`` where every road has one, else length / speed.

    Args:
        length: Metres ``[S]``.
        tags: One row a road, with the columns :data:`TAGS`.
        roads: Ids of the roads, for messages.
        speeds: km/h by highway class, for roads without a limit; see :func:`free_flow_speeds`.

    Raises:
        ValueError: If speeds cannot be had, or lengths are unknown.
    """
    said = _numbers(tags, "travel_time", roads) if speeds is None else None
    if said is not None:
        return said
    if np.isnan(length).any():
        raise ValueError(
            "weight: travel times need the roads' lengths; give edges a 'length' in metres, or nodes x and y "
            "(longitude and latitude)"
        )
    return length / (free_flow_speeds(tags, roads, speeds) / 3.6)
