"""A city seen otherwise: some of its steps or channels, longer steps, other names, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch

from .parts import interval_text, parse_interval
from .units import summed_unit

if TYPE_CHECKING:
    from .city import City

Reduce = Literal["mean", "sum"]


def between(city: City, first: int, last: int) -> City:
    """The steps ``first <= t < last``, as views."""
    if not 0 <= first < last <= city.num_steps:
        raise ValueError(f"between: expected 0 <= first < last <= {city.num_steps}, found {first} and {last}")
    return replace(
        city,
        readings=city.readings[first:last],
        mask=city.mask[first:last],
        start=city.start + first * city.interval,
    )


def select(city: City, channels: Sequence[str] | str) -> City:
    """The city with the given channels, in that order."""
    names = [channels] if isinstance(channels, str) else list(channels)
    unknown = [name for name in names if name not in city.channels]
    if unknown or not names:
        raise ValueError(f"channels: {city.name} has {list(city.channels)}, found {names}")
    index = [city.channels.index(name) for name in names]
    if tuple(names) == city.channels:
        return city
    return replace(
        city,
        readings=city.readings[..., index],
        mask=city.mask[..., index],
        channels=tuple(names),
        units=tuple(city.units[i] for i in index),
    )


def rename(city: City, names: Mapping[str, str]) -> City:
    """The city with other names of channels; readings, units and order stay.

    Args:
        city: The city.
        names: From a channel to its new name; channels that are not in it keep theirs.

    Raises:
        ValueError: If a channel is unknown, or two channels would have one name.
    """
    unknown = [name for name in names if name not in city.channels]
    if unknown:
        raise ValueError(f"rename: {city.name} has the channels {list(city.channels)}, found {unknown[0]!r}")
    channels = tuple(names.get(name, name) for name in city.channels)
    twice = [name for name in channels if channels.count(name) > 1]
    if twice:
        raise ValueError(
            f"rename: each channel needs a name of its own, found {twice[0]!r} twice; {city.name} has the channels "
            f"{list(city.channels)}"
        )
    return replace(city, channels=channels)


def to_frame(city: City, channel: str | None = None) -> pd.DataFrame:
    """One channel's readings as a wide table: a row a step, a column a node id, NaN where nothing was observed.

    Args:
        city: The city.
        channel: Default: its only channel.

    Returns:
        float32 in original units; the index holds the times and is named ``time``.

    Raises:
        ValueError: If the channel is unknown, or the city has several and none is said.
    """
    if channel is None and city.num_channels > 1:
        raise ValueError(f"channel: {city.name} has {list(city.channels)}, say which with channel=")
    part = city if channel is None else select(city, channel)
    values = part.readings[..., 0].masked_fill(~part.mask[..., 0], torch.nan).cpu().numpy()
    return pd.DataFrame(values, index=city.time.rename("time"), columns=list(city.node_ids))


def resample(city: City, interval: str | pd.Timedelta, reduce: Reduce = "mean") -> City:
    """The city at a longer interval; a new entry is observed where all the old ones in it are.

    A mean keeps its unit. A sum counts over a longer time: of three readings in ``"veh/5min"`` it is in
    ``"veh/15min"``. A unit that says no time, such as ``"trips"``, stays.

    Args:
        city: The city.
        interval: A multiple of the city's interval; steps that do not fill a last one are dropped.
        reduce: ``"mean"`` (speeds, occupancy) or ``"sum"`` (counts).

    Raises:
        ValueError: If the interval is no multiple or longer than the city, or ``reduce`` is neither.
    """
    longer = parse_interval(interval)
    if longer < city.interval or longer % city.interval != pd.Timedelta(0):
        raise ValueError(
            f"interval: expected a multiple of {interval_text(city.interval)}, found {interval_text(longer)}"
        )
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce: expected 'mean' or 'sum', found {reduce!r}")
    factor = int(longer // city.interval)
    steps = city.num_steps // factor
    if steps == 0:
        raise ValueError(f"interval: {city.name} has {city.num_steps} steps, {interval_text(longer)} takes {factor}")
    blocks = city.readings[: steps * factor].reshape(steps, factor, city.num_nodes, city.num_channels)
    mask = city.mask[: steps * factor].reshape(blocks.shape).all(dim=1)
    readings = blocks.sum(dim=1) if reduce == "sum" else blocks.mean(dim=1)
    units = tuple(summed_unit(unit, factor) for unit in city.units) if reduce == "sum" else city.units
    return replace(city, readings=readings.masked_fill(~mask, 0.0), mask=mask, interval=longer, units=units)
