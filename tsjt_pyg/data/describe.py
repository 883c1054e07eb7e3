"""What a city is made of: numbers by channel and by node, what is missing, what looks wrong, and one picture of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..notebook import lines, stacked, table
from .missing import MissingPattern, counted, missing_pattern
from .repair import DEFAULT_STUCK, Faults, find_faults, without_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .city import City

FAR = 10.0
"""Deviations from the median from which a reading counts as an outlier here."""


@dataclass(frozen=True, eq=False, repr=False)
class Description:
    """A city described; print it, show it in a notebook, or draw it with :meth:`plot`.

    Args:
        city: The city.
        table: A row a channel: ``unit``, ``count`` (observed readings), ``missing`` (share), ``mean``, ``std``,
            ``min``, ``25%``, ``50%``, ``75%``, ``max``, ``zeros`` (share of the observed), ``dead_nodes``, and the
            readings that the rules of :meth:`City.repair` find: ``negative``, ``limits``, ``stuck``, ``outliers``
            (10 deviations; the readings of dead nodes are not looked at). All of the observed readings only.
        nodes: A row a node: ``in_edges``, ``out_edges``, ``missing`` (share), ``longest_gap``, ``dead`` (in every
            channel), ``negative``, ``limits``, ``stuck``, ``outliers``, and ``mean`` of each channel.
        missing: See :class:`~tsjt_pyg.data.missing.MissingPattern`.
        isolated: Number of nodes without an edge to another.
        components: Number of weakly connected parts of the road network.
        without_limits: Channels whose unit says no limits: ``negative`` and ``limits`` are 0 whatever they hold.
    """

    city: City = field(repr=False)
    table: pd.DataFrame
    nodes: pd.DataFrame
    missing: MissingPattern
    isolated: int
    components: int
    without_limits: tuple[str, ...] = ()

    def facts(self) -> list[str]:
        """The city in lines of text, without the table."""
        city, last = self.city, self.city.time[-1]
        days = city.num_steps / city.steps_per_day
        loose = [f"{self.components} parts"] if self.components > 1 else ["connected"]
        loose += [f"{counted(self.isolated, 'node')} isolated"] if self.isolated else []
        said = [
            f"{city.name}: {city.num_steps:,} steps x {city.num_nodes:,} nodes x "
            f"{counted(city.num_channels, 'channel')}",
            f"time: {city.start:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}, every "
            f"{city.interval.total_seconds() / 60:g} min, {days:.3g} days",
            f"roads: {city.num_edges:,} edges, {', '.join(loose)}; "
            f"{'positions' if city.pos is not None else 'no positions'}",
            f"missing: {self.missing}",
        ]
        doubts = [
            f"{self.table[rule].sum():,} {rule} ({counted((self.nodes[rule] > 0).sum(), 'node')})"
            for rule in ("negative", "limits", "stuck", "outliers")
            if self.table[rule].any()
        ]
        if self.table["dead_nodes"].any():
            doubts.insert(0, f"dead nodes in {counted((self.table['dead_nodes'] > 0).sum(), 'channel')}")
        said.append(f"doubtful readings: {', '.join(doubts) or 'none'}")
        if self.without_limits:
            said.append(f"limits are not known of: {', '.join(self.without_limits)}")
        return said

    def _shown(self) -> pd.DataFrame:
        """The table turned, a column a channel, as text that can be read."""
        return self.table.T.apply(
            lambda row: [_shown(row.name, value) for value in row], axis=1, result_type="broadcast"
        )

    def __str__(self) -> str:
        return "\n".join([*self.facts(), "", self._shown().to_string(header=True)])

    def __repr__(self) -> str:
        return f"Description of {self.city!r}"

    def _repr_html_(self) -> str:
        shown = self._shown()
        rows = ([name, *values] for name, values in zip(shown.index, shown.to_numpy(), strict=True))
        return stacked(lines(self.facts()), table(["", *shown.columns], rows))

    def plot(self, path: str | Path | None = None) -> Figure:
        """One picture: what is missing over time and nodes, the spread and the typical day of each channel, a map.

        Of more than four channels the first four. Without positions, the nodes in the order of their mean take the
        place of the map.

        Args:
            path: A ``.png``, ``.svg`` or ``.pdf`` file to write; an existing one is replaced as a whole.
        """
        from .describe_plot import draw

        return draw(self, None if path is None else Path(path))


def _shown(row: object, value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if row in ("missing", "zeros"):
        return f"{number:.2%}"
    if row in ("count", "dead_nodes", "negative", "limits", "stuck", "outliers"):
        return f"{int(number):,}"
    return "-" if np.isnan(number) else f"{number:.4g}"


def describe(city: City) -> Description:
    """Describes a city; its readings are read, not changed. See :class:`Description`."""
    faults = find_faults(city, stuck=DEFAULT_STUCK, outliers=FAR)
    pattern = missing_pattern(city)
    isolated, components = _parts(city)
    tables = _by_channel(city, faults), _by_node(city, faults, pattern)
    return Description(city, *tables, pattern, isolated, components, without_limits(city))


def _by_channel(city: City, faults: Faults) -> pd.DataFrame:
    rows = []
    for channel, unit in enumerate(city.units):
        mask = city.mask[..., channel].cpu().numpy()
        values = city.readings[..., channel].cpu().numpy()[mask].astype(np.float64)
        row: dict[str, object] = {"unit": unit, "count": len(values), "missing": 1 - len(values) / mask.size}
        if len(values):
            low, first, middle, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
            row |= {"mean": values.mean(), "std": values.std()}
            row |= {"min": low, "25%": first, "50%": middle, "75%": third, "max": high, "zeros": (values == 0).mean()}
        else:
            row |= dict.fromkeys(("mean", "std", "min", "25%", "50%", "75%", "max"), np.nan) | {"zeros": 0.0}
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(city.channels, name="channel"))
    counts = faults.counts((0, 1))
    return table.assign(dead_nodes=faults.dead.sum(axis=0), **{rule: counts[rule] for rule in _DOUBTS})


_DOUBTS = ("negative", "limits", "stuck", "outliers")


def _by_node(city: City, faults: Faults, pattern: MissingPattern) -> pd.DataFrame:
    mask = city.mask.cpu()
    count = mask.sum(dim=0)
    readings = city.readings.cpu().double().masked_fill(~mask, 0.0)
    means = (readings.sum(dim=0) / count).numpy()  # 0 / 0 is NaN: a node that was never observed has no mean
    counts = faults.counts((0, 2))
    ends = city.edge_index.cpu().numpy()
    table = pd.DataFrame(
        {
            "in_edges": np.bincount(ends[1], minlength=city.num_nodes),
            "out_edges": np.bincount(ends[0], minlength=city.num_nodes),
            "missing": pattern.by_node,
            "longest_gap": pattern.longest_gap,
            "dead": faults.dead.all(axis=1),
            **{rule: counts[rule] for rule in _DOUBTS},
        },
        index=pd.Index(city.node_ids, name="node"),
    )
    for channel, name in enumerate(city.channels):
        table[f"mean {name}"] = means[:, channel]
    return table


def _parts(city: City) -> tuple[int, int]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = city.edge_index.cpu().numpy()
    others = ends[:, ends[0] != ends[1]]
    isolated = city.num_nodes - len(np.unique(others))
    matrix = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(city.num_nodes, city.num_nodes))
    return isolated, int(connected_components(matrix, directed=True, connection="weak", return_labels=False))
