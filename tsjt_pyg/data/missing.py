"""What was not observed: how much, where, when, and whether in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from .city import City

BLOCK = pd.Timedelta(hours=1)
"""A gap of this length or more is a block, a shorter one is scattered."""


@dataclass(frozen=True, eq=False)
class MissingPattern:
    """Where a city has nothing observed.

    A gap is a run of consecutive steps that are missing at one node in one channel.

    Args:
        share: Of all entries, in [0, 1].
        by_node: Share of each node's entries.
        by_channel: Share of each channel's entries.
        by_hour: Share of the entries of each hour of the day that the city has steps in.
        gaps: Number of gaps.
        longest_gap: Longest gap of each node, in any channel.
        in_blocks: Share of the missing entries that lie in gaps of an hour or more; 0 if nothing is missing.
        empty_nodes: Nodes with nothing observed in any channel.
        empty_steps: Steps with nothing observed at any node.
    """

    share: float
    by_node: pd.Series
    by_channel: pd.Series
    by_hour: pd.Series
    gaps: int
    longest_gap: pd.Series
    in_blocks: float
    empty_nodes: tuple[str, ...]
    empty_steps: int

    def __str__(self) -> str:
        if not self.share:
            return "nothing"
        text = (
            f"{self.share:.2%} in {counted(self.gaps, 'gap')}, {self.in_blocks:.0%} of it in gaps of an hour or more; "
            f"longest gap {_brief(self.longest_gap.max())} (node {self.longest_gap.idxmax()})"
        )
        if self.empty_nodes:
            text += f"; {counted(len(self.empty_nodes), 'node')} never observed"
        return text + (f"; {counted(self.empty_steps, 'step')} with nothing observed" if self.empty_steps else "")


def missing_pattern(city: City) -> MissingPattern:
    """The pattern of what is missing in a city: where ``city.mask`` is ``False``."""
    missing = ~city.mask.cpu().numpy()
    nodes = pd.Index(city.node_ids, name="node")
    longest = np.zeros(city.num_nodes, dtype=np.int64)
    gaps, in_blocks = 0, 0
    for channel in range(city.num_channels):
        for node in range(city.num_nodes):
            lengths = gap_lengths(missing[:, node, channel])
            gaps += len(lengths)
            in_blocks += int(lengths[lengths * (city.interval / BLOCK) >= 1].sum())
            longest[node] = max(longest[node], lengths.max(initial=0))
    hours = city.time.hour.to_numpy()
    by_step = pd.Series(missing.mean(axis=(1, 2)))
    total = int(missing.sum())
    return MissingPattern(
        share=total / missing.size,
        by_node=pd.Series(missing.mean(axis=(0, 2)), index=nodes, name="missing"),
        by_channel=pd.Series(missing.mean(axis=(0, 1)), index=pd.Index(city.channels, name="channel"), name="missing"),
        by_hour=by_step.groupby(hours).mean().rename_axis("hour").rename("missing"),
        gaps=gaps,
        longest_gap=pd.Series(
            pd.to_timedelta(longest * city.interval.total_seconds(), unit="s"), index=nodes, name="longest_gap"
        ),
        in_blocks=in_blocks / total if total else 0.0,
        empty_nodes=tuple(node for i, node in enumerate(city.node_ids) if missing[:, i].all()),
        empty_steps=int(missing.all(axis=(1, 2)).sum()),
    )


def gap_lengths(missing: np.ndarray) -> np.ndarray:
    """Lengths of the runs of ``True`` in a bool ``[T]``, in steps and in their order."""
    change = np.diff(missing.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(change == -1) - np.flatnonzero(change == 1)


def counted(count: int, thing: str) -> str:
    """How many of a thing, in words: ``"1 node"``, ``"1,024 nodes"``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _brief(time: pd.Timedelta) -> str:
    minutes = time.total_seconds() / 60
    if minutes < 120:
        return f"{minutes:g} min"
    return f"{minutes / 60:.3g} h" if minutes < 2880 else f"{minutes / 1440:.3g} days"
