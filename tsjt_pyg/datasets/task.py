"""A forecasting task: one target city and its sources, brought to one channel and one interval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..data import City
from ..data.parts import interval_text
from ..data.units import adds_up
from .catalogue import default_sources, load_city

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """The whole target city, and the source cities with its channel and interval."""

    target: City
    sources: list[City]


def load_task(
    target: str, sources: Sequence[str] | None = None, root: str | Path | None = None, channel: str | None = None
) -> Task:
    """Loads target and sources, selects a channel that all have, and resamples sources to the target's interval.

    Args:
        target: Name of the target city, as :func:`load_city` takes it.
        sources: Names of the source cities; default: the other present ones of the target's group.
        root: Folder of the cities that are not bundled.
        channel: Default: the first channel of the target that every source has.

    Raises:
        ValueError: If a name or channel is unknown, the target is among its sources, no channel is shared, or a
            source's interval is longer than the target's or no part of it.
        FileNotFoundError: If a city's files are missing.
    """
    city = load_city(target, root)
    names = list(sources) if sources is not None else default_sources(target, root)
    if target in names:
        raise ValueError(f"sources: {target!r} is the target, so it cannot be one of its own sources")
    if len(set(names)) != len(names):
        raise ValueError(f"sources: each city may be named once, found {', '.join(names)}")
    others = [load_city(name, root) for name in names]
    shared = [name for name in city.channels if all(name in other.channels for other in others)]
    if channel is None:
        if not shared:
            have = "; ".join(f"{other.name}: {', '.join(other.channels)}" for other in (city, *others))
            raise ValueError(
                f"channel: target and sources have no channel in common ({have}); one that goes by another name can be "
                "renamed with City.rename, or in the tables of a city of one's own"
            )
        channel = shared[0]
    selected = city.select(channel)
    return Task(selected, [_resampled(other.select(channel), selected) for other in others])


def _resampled(source: City, target: City) -> City:
    if source.interval == target.interval:
        return source
    if source.interval > target.interval:
        raise ValueError(
            f"sources: {source.name} has a reading every {interval_text(source.interval)}, the target every "
            f"{interval_text(target.interval)}; a finer one cannot be made of it, so resample the target "
            "(City.resample) or leave this source out"
        )
    reduce: Literal["sum", "mean"] = "sum" if adds_up(source.units[0], source.interval) else "mean"
    logger.info("%s: %s of its readings over %s, the target's interval", source.name, reduce, target.interval)
    return source.resample(target.interval, reduce)
