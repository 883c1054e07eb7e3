"""Readings that cannot be true are no longer counted as observed; what each rule found is told by node."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import torch

from .faults import dead_nodes, find_beyond, find_outliers, find_stuck
from .missing import counted
from .nodes import drop_nodes
from .parts import parse_interval
from .units import unit_limits

if TYPE_CHECKING:
    from .city import City

logger = logging.getLogger(__name__)

RULES = ("dead", "negative", "limits", "stuck", "outliers")
"""In this order; a reading counts for the first rule that finds it."""

DEFAULT_STUCK = "6h"

Limits = bool | Mapping[str, tuple[float | None, float | None]]


class Rules(TypedDict, total=False):
    """What :func:`repair` takes beside the city."""

    dead: bool | Literal["mask", "drop"] | None
    limits: Limits
    stuck: str | pd.Timedelta | None
    outliers: float | None


@dataclass(frozen=True, eq=False)
class Faults:
    """What the rules found in a city.

    Args:
        rule: uint8 ``[T, N, C]``: 0 where nothing was found, else 1 + the position of the rule in ``RULES``.
        dead: bool ``[N, C]``: nothing observed but zeros, or nothing at all.
    """

    rule: np.ndarray
    dead: np.ndarray

    def counts(self, axis: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Readings found by each rule, summed over the axes."""
        return {name: (self.rule == number).sum(axis=axis) for number, name in enumerate(RULES, start=1)}


@dataclass(frozen=True, eq=False)
class RepairReport:
    """What a repair changed.

    Args:
        city: Name of the city.
        observed: Observed readings before.
        nodes: Readings that each rule masked: a row a node (of the city before the repair), a column a rule.
        channels: The same, a row a channel.
        dead: Nodes with nothing but zeros, or nothing at all, in every channel.
        dropped: Those of them that were dropped.
        dropped_edges: Edges that went with them.
        without_limits: Channels whose readings were not held against any limit, since their unit says none.
    """

    city: str
    observed: int
    nodes: pd.DataFrame
    channels: pd.DataFrame
    dead: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    dropped_edges: int = 0
    without_limits: tuple[str, ...] = ()

    @property
    def masked(self) -> int:
        """Readings masked by all rules together; each counts once."""
        return int(self.channels.to_numpy().sum())

    def __str__(self) -> str:
        text = f"{self.city}: masked {self.masked:,} of {self.observed:,} observed readings"
        found = [rule for rule in RULES if self.nodes[rule].any()]
        if found:
            parts = [
                f"{rule} {self.nodes[rule].sum():,} ({counted((self.nodes[rule] > 0).sum(), 'node')})" for rule in found
            ]
            text += ": " + ", ".join(parts)
        if self.dead:
            text += f"; {counted(len(self.dead), 'node')} dead in every channel"
        if self.dropped:
            text += f", dropped with {counted(self.dropped_edges, 'edge')}"
        if self.without_limits:
            text += f"; limits are not known of {', '.join(self.without_limits)}"
        return text


class Repair(NamedTuple):
    """The repaired city, and what was changed to make it."""

    city: City
    report: RepairReport


def find_faults(
    city: City,
    *,
    dead: bool = True,
    limits: Limits = True,
    stuck: str | pd.Timedelta | None = DEFAULT_STUCK,
    outliers: float | None = None,
) -> Faults:
    """Finds what :func:`repair` would mask, and changes nothing; arguments and errors as there.

    It takes a few times the memory of one channel's readings.
    """
    bounds = _bounds(city, limits)
    longest = None if stuck is None or stuck is False else _steps(city, stuck)
    number = isinstance(outliers, int | float) and not isinstance(outliers, bool)
    if outliers is not None and not (number and 0 < outliers < math.inf):
        raise ValueError(f"outliers: expected a positive number of deviations (such as 10) or None, found {outliers!r}")
    hours = city.time.hour.to_numpy()
    rule = np.zeros(tuple(city.readings.shape), dtype=np.uint8)
    dead_in = np.zeros(rule.shape[1:], dtype=bool)
    for channel, (low, high) in enumerate(bounds):
        values = city.readings[..., channel].cpu().numpy()
        left = city.mask[..., channel].cpu().numpy().copy()
        dead_in[:, channel] = dead_nodes(values, left)

        def masks(name: str, found: np.ndarray, left: np.ndarray = left, channel: int = channel) -> None:
            rule[..., channel][found] = 1 + RULES.index(name)
            left &= ~found

        if dead:
            masks("dead", left & dead_in[:, channel])
        if low >= 0:
            masks("negative", find_beyond(values, left, 0.0, math.inf))
        masks("limits", find_beyond(values, left, low, high))
        if longest is not None:
            masks("stuck", find_stuck(values, left, hours, longest))
        if outliers is not None:
            masks("outliers", find_outliers(values, left, hours, outliers))
    return Faults(rule, dead_in)


def repair(
    city: City,
    *,
    dead: bool | Literal["mask", "drop"] | None = True,
    limits: Limits = True,
    stuck: str | pd.Timedelta | None = DEFAULT_STUCK,
    outliers: float | None = None,
) -> Repair:
    """The city in which readings that cannot be true count as not observed, and a report by node.

    The mask only ever goes from ``True`` to ``False``. A reading that is masked becomes 0, as everywhere in a city; all
    others stay as they are, and so does the city that is repaired. A reading counts for the first rule that finds it.

    Args:
        city: The city.
        dead: What becomes of nodes whose observed readings are all zero: ``True`` (or ``"mask"``) masks them channel by
            channel, ``"drop"`` also drops nodes that are dead in every channel, with their edges, ``False`` leaves
            them. Where zero is a true reading (trips in a zone where nobody lives), choose ``False``.
        limits: ``True``: what each channel's unit allows, see :data:`~tsjt_pyg.data.units.LIMITS` (a channel of another
            unit has no limits, which the report says); a mapping from channel to ``(low, high)``, ``None`` for no
            limit, overrides it; ``False``: no limits. Negative readings of a channel whose lower limit is 0 or more are
            counted apart.
        stuck: A node is stuck where it shows one value for longer than this while the city moves and the value is out
            of place, see :func:`~tsjt_pyg.data.faults.find_stuck`; ``None``: not looked for.
        outliers: Readings more than this many deviations from their node's median at that hour of the day, see
            :func:`~tsjt_pyg.data.faults.find_outliers`. Default: not looked for, since rare jams are such outliers, and
            a forecast is needed most there.

    Raises:
        ValueError: If an argument is none of these, a limit's channel is unknown, or every node would be dropped.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> city, report = load_city("demo/riverton").repair(stuck="30min", dead="drop")
        >>> print(report)
        demo/riverton: masked 626 of 533,214 observed readings: stuck 626 (27 nodes)
    """
    if not (dead in ("mask", "drop") or dead is None or isinstance(dead, bool)):
        raise ValueError(f"dead: expected True, False, 'mask' or 'drop', found {dead!r}")
    faults = find_faults(city, dead=bool(dead), limits=limits, stuck=stuck, outliers=outliers)
    dead_ids = tuple(node for i, node in enumerate(city.node_ids) if faults.dead[i].all())
    at_fault = torch.from_numpy(faults.rule > 0).to(city.mask.device)
    repaired = replace(city, readings=city.readings.masked_fill(at_fault, 0.0), mask=city.mask & ~at_fault)
    dropped = dead_ids if dead == "drop" else ()
    if len(dropped) == city.num_nodes:
        raise ValueError(
            f"dead: every node of {city.name} is dead (nothing observed but zeros), so none would be left; choose "
            "dead=False if its zeros are readings"
        )
    left = drop_nodes(repaired, dropped) if dropped else repaired
    report = RepairReport(
        city=city.name,
        observed=int(city.mask.sum()),
        nodes=pd.DataFrame(faults.counts((0, 2)), index=pd.Index(city.node_ids, name="node")),
        channels=pd.DataFrame(faults.counts((0, 1)), index=pd.Index(city.channels, name="channel")),
        dead=dead_ids,
        dropped=dropped,
        dropped_edges=city.num_edges - left.num_edges,
        without_limits=without_limits(city, limits),
    )
    logger.log(logging.WARNING if report.without_limits else logging.INFO, "%s", report)
    return Repair(left, report)


def without_limits(city: City, limits: Limits = True) -> tuple[str, ...]:
    """Channels that have no limits though they are asked for, with the unit that is not known, for messages."""
    given = limits if isinstance(limits, Mapping) else {}
    return tuple(
        f"{channel} (unit {unit!r})" if unit else f"{channel} (no unit)"
        for channel, unit in zip(city.channels, city.units, strict=True)
        if limits is not False and channel not in given and unit_limits(unit) is None
    )


def _bounds(city: City, limits: Limits) -> list[tuple[float, float]]:
    known = [unit_limits(unit) or (-math.inf, math.inf) for unit in city.units]
    if isinstance(limits, bool):
        return known if limits else [(-math.inf, math.inf)] * city.num_channels
    if not isinstance(limits, Mapping):
        raise ValueError(f"limits: expected True, False or {{channel: (low, high)}}, found {limits!r}")
    for channel, bounds in limits.items():
        if channel not in city.channels:
            raise ValueError(f"limits: {city.name} has the channels {list(city.channels)}, found {channel!r}")
        try:
            low, high = bounds
            low = -math.inf if low is None else float(low)
            high = math.inf if high is None else float(high)
        except (TypeError, ValueError) as error:
            raise ValueError(f"limits: channel {channel!r}: expected (low, high), found {bounds!r}") from error
        if not low <= high:
            raise ValueError(f"limits: channel {channel!r}: low must not be above high, found {bounds!r}")
        known[city.channels.index(channel)] = (low, high)
    return known


def _steps(city: City, stuck: str | pd.Timedelta) -> int:
    try:
        longest = parse_interval(stuck)
    except ValueError as error:
        raise ValueError(f"stuck: expected a time with its unit (such as '6h') or None, found {stuck!r}") from error
    if longest < city.interval:
        raise ValueError(f"stuck: expected at least {city.name}'s interval {city.interval}, found {longest}")
    return int(longest // city.interval)
