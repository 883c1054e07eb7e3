"""All of a city but its road network, checked before there is a city."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, cast, get_type_hints

import numpy as np
import pandas as pd
from torch import Tensor

from .clean import ReadingsLike, clean_readings
from .graph import MatrixLike
from .ids import check_ids
from .places import check_positions
from .units import known_unit

DEFAULT_START = pd.Timestamp("2001-01-01")
"""A Monday, midnight: the time of the first step where nothing else is known."""

DEFAULT_INTERVAL = pd.Timedelta(minutes=5)


class AboutReadings(TypedDict, total=False):
    """What every constructor of :class:`~tsjt_pyg.data.City` takes beside readings and road network; all optional.

    Args:
        name: Name of the city. Default: ``"city"``.
        mask: Bool, shape of the readings, ``True`` = observed; combined with their NaNs.
        node_ids: One unique id a node. Default: the columns of a table, the nodes of a networkx graph, or 0, 1, ….
        channels: One name a channel. Default: ``"reading"``, or the keys of a mapping of tables.
        units: One unit a channel; of its spellings (``"kph"``) the usual one (``"km/h"``) is kept, see
            :mod:`tsjt_pyg.data.units`. Default: none.
        start: Local time of the first step. Default: a table's index, or 2001-01-01, a Monday.
        interval: Time between two steps. Default: a table's index, or 5 minutes.
    """

    name: str
    mask: np.ndarray | Tensor
    node_ids: Sequence[object]
    channels: Sequence[str] | str
    units: Sequence[str] | str
    start: str | pd.Timestamp
    interval: str | pd.Timedelta


class About(AboutReadings, total=False):
    """The same, with positions where the road network does not come from them.

    Args:
        positions: Latitude and longitude in degrees, ``[N, 2]`` or a table with a column for the node id or indexed
            by it; see :func:`~tsjt_pyg.data.places.check_positions`.
    """

    positions: MatrixLike


class CityParts(TypedDict):
    """Arguments of :class:`~tsjt_pyg.data.City` that do not describe its road network."""

    name: str
    readings: Tensor
    mask: Tensor
    node_ids: tuple[str, ...]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    start: pd.Timestamp
    interval: pd.Timedelta
    pos: Tensor | None


def city_parts(
    readings: ReadingsLike,
    about: AboutReadings | About,
    graph_ids: Sequence[str] | None = None,
    positions: MatrixLike | None = None,
) -> CityParts:
    """Readings and what is said about them, checked and completed with what a table says and with defaults.

    Args:
        readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
        about: What the user said.
        graph_ids: Node ids of a graph, for readings that carry none.
        positions: As in :class:`About`, where they are an argument of their own.

    Raises:
        ValueError: If parts do not fit each other.
        TypeError: If ``about`` has an unknown key.
    """
    known = get_type_hints(About)
    unknown = sorted(set(about) - set(known))
    if unknown:
        raise TypeError(f"City: unknown argument {unknown[0]!r}; known are {', '.join(known)}")
    clean = clean_readings(readings, about.get("mask"))
    num_nodes, num_channels = clean.readings.shape[1:]
    given_ids = about.get("node_ids")
    if given_ids is not None and clean.node_ids is not None:
        raise ValueError(
            "node_ids: the readings are a table, whose columns are the node ids; leave node_ids out, and rename the "
            "columns if they are not"
        )
    from_graph = given_ids is None and clean.node_ids is None and graph_ids is not None
    if given_ids is None:
        given_ids = clean.node_ids or graph_ids or range(num_nodes)
    node_ids = check_ids(given_ids, num_nodes, "graph" if from_graph else "node_ids")
    start, interval = about.get("start"), about.get("interval")
    for argument, given, found in (("start", start, clean.start), ("interval", interval, clean.interval)):
        if given is not None and found is not None:
            raise ValueError(f"{argument}: the readings' index says {found}; leave {argument} out")
    positions = cast(About, about).get("positions", positions)
    return {
        "name": about.get("name", "city"),
        "readings": clean.readings,
        "mask": clean.mask,
        "node_ids": node_ids,
        "channels": _names(about.get("channels"), clean.channels, num_channels, "channels", "reading"),
        "units": tuple(map(known_unit, _names(about.get("units"), None, num_channels, "units", ""))),
        "start": _start(start) if start is not None else clean.start or DEFAULT_START,
        "interval": parse_interval(interval) if interval is not None else clean.interval or DEFAULT_INTERVAL,
        "pos": None if positions is None else check_positions(positions, node_ids),
    }


def _names(
    given: Sequence[str] | str | None, found: tuple[str, ...] | None, count: int, argument: str, default: str
) -> tuple[str, ...]:
    if isinstance(given, str):
        given = (given,)
    names = found
    if given is not None:
        names = () if isinstance(given, Mapping) or not isinstance(given, Iterable) else tuple(given)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{argument}: expected one text a channel, in the order of the channels, found {given!r}")
    if names is None:
        names = (default,) * count if count == 1 or not default else tuple(f"{default}_{i}" for i in range(count))
    if len(names) != count:
        raise ValueError(f"{argument}: the readings have {count} channels, found {list(names)}")
    return names


def _start(start: str | pd.Timestamp) -> pd.Timestamp:
    try:
        found = pd.Timestamp(start)
    except ValueError as error:
        raise ValueError(f"start: expected a time (such as '2024-03-01 00:00'), found {start!r} ({error})") from error
    if found is pd.NaT:
        raise ValueError(f"start: expected a time (such as '2024-03-01 00:00'), found {start!r}")
    check_local(found)
    return found


def check_local(start: pd.Timestamp) -> None:
    """Refuses a time with a time zone: a city's steps are local times without one."""
    if start.tz is not None:
        raise ValueError(
            f"start: the time {start} has the time zone {start.tz}, a city keeps local time without one; convert it to "
            "the city's with pandas.Timestamp(start).tz_convert('America/Los_Angeles').tz_localize(None)"
        )


def interval_text(interval: pd.Timedelta) -> str:
    """An interval as people say it: ``"10 min"``."""
    return f"{interval.total_seconds() / 60:g} min"


def parse_interval(interval: str | pd.Timedelta) -> pd.Timedelta:
    """An interval with its unit; a bare number is refused."""
    if isinstance(interval, int | float):  # pandas would take it for nanoseconds
        raise ValueError(f"interval: expected a time with its unit (such as '5min'), found the number {interval}")
    try:
        return pd.Timedelta(interval)
    except ValueError as error:
        raise ValueError(f"interval: expected a time with its unit (such as '5min'), found {interval!r}") from error
