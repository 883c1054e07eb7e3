"""Readings, roads and positions that come in files of their own, joined by node id and never by order.

One rule everywhere: **the readings say which nodes there are, and in which order.** A road or a position of a node
without readings is left out; a node with readings but without a road stays, isolated; positions count only if every
node has one. Each of these is logged with its number. Files that have no id in common do not belong together: an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ..data import City
from ..data.graph import Edges, edges_from_distances
from ..data.ids import check_ids, id_text
from ..data.places import check_positions
from ..data.rows import row_blocks

logger = logging.getLogger(__name__)


def _joined(ids: Sequence[str], node_ids: Sequence[str], path: Path, what: str) -> None:
    """Logs on which side nodes are missing."""
    there, read = set(ids), set(node_ids)
    if not there & read:
        raise ValueError(
            f"{path}: it has none of the {len(node_ids)} nodes with readings (for example {node_ids[0]!r}; here "
            f"{next(iter(ids), None)!r}); the files belong to different cities or name their nodes differently"
        )
    if there - read:
        unread = there - read
        logger.info("%s: %s of %d nodes without readings are left out: %r", path, what, len(unread), sorted(unread)[:5])
    if read - there:
        bare = read - there
        logger.warning(
            "%s: %d of %d nodes with readings have no %s here: %r", path, len(bare), len(read), what, sorted(bare)[:5]
        )


def edges_by_id(matrix: np.ndarray, ids: Sequence[str], node_ids: Sequence[str], path: Path) -> Edges:
    """The roads of an adjacency matrix whose rows and columns are ``ids``, among ``node_ids``.

    Args:
        matrix: ``[M, M]`` weights; an edge from row to column for each weight above 0. May lie on disk.
        ids: Its nodes, in order.
        node_ids: The nodes with readings, in order.
        path: Its file, for messages.

    Raises:
        ValueError: On a wrong shape, ids that occur twice or are all unknown, or a negative or infinite weight.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: expected a square matrix of weights, one row and column for each node, found "
            f"{matrix.dtype} {[*matrix.shape]}"
        )
    if len(ids) != len(matrix):
        raise ValueError(f"{path}: it has {len(matrix)} rows and columns, and {len(ids)} nodes are named")
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: node {_twice(ids)!r} occurs more than once; each node needs exactly one row")
    _joined(ids, node_ids, path, "roads")
    position = {node: i for i, node in enumerate(node_ids)}
    rows = np.array([i for i, node in enumerate(ids) if node in position])
    part = matrix if len(rows) == len(matrix) else matrix[rows][:, rows]
    bad = ~(part >= 0) | ~(part < np.inf)  # NaN is neither
    if bad.any():
        i, j = (int(rows[k]) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"{path}: found {matrix[i, j]} from node {ids[i]!r} to node {ids[j]!r}; weights must be finite and not "
            "negative, 0 where there is no road"
        )
    source, target = np.nonzero(part)
    to = np.array([position[ids[i]] for i in rows])
    index = torch.from_numpy(np.stack([to[source], to[target]]))
    weight = torch.from_numpy(np.asarray(part[source, target], dtype=np.float32))
    order = torch.argsort(index[0] * len(node_ids) + index[1])
    return Edges(index[:, order], weight[order])


def _twice(ids: Sequence[str]) -> str:
    return next(node for node in ids if list(ids).count(node) > 1)


def edges_by_distance(
    table: pd.DataFrame, node_ids: Sequence[str], path: Path, sigma: float | None = None, threshold: float = 0.0
) -> Edges:
    """The roads of a table of distances among ``node_ids``, weighted by the Gaussian kernel.

    Args:
        table: Columns ``from``, ``to`` (ids as text) and ``cost`` (metres).
        node_ids: The nodes with readings, in order.
        path: Its file, for messages.
        sigma: See :func:`~tsjt_pyg.data.graph.gaussian_kernel`.
        threshold: Smallest weight that is kept.

    Raises:
        ValueError: If no row is about two of the nodes, or a distance is negative or no number.
    """
    table = table.assign(**{column: table[column].map(id_text) for column in ("from", "to")})
    ids = list(dict.fromkeys([*table["from"], *table["to"]]))
    _joined(ids, node_ids, path, "roads")
    bad = ~(table["cost"] >= 0) | ~np.isfinite(table["cost"])
    if bad.any():
        row = table[bad].iloc[0]
        raise ValueError(
            f"{path}: found {row['cost']} from node {row['from']!r} to node {row['to']!r}; distances must be "
            "finite and not negative"
        )
    known = set(node_ids)
    rows = table[table["from"].isin(known) & table["to"].isin(known)]
    try:
        return edges_from_distances(rows, node_ids, sigma, threshold)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def positions_by_id(table: pd.DataFrame, node_ids: Sequence[str], path: Path) -> torch.Tensor | None:
    """Positions of ``node_ids`` from ``sensor_id``, ``latitude``, ``longitude``; ``None`` if one is absent.

    Raises:
        ValueError: If an id occurs twice at different places, or degrees are out of range.
    """
    table = table.assign(sensor_id=table["sensor_id"].map(id_text)).dropna(subset=["latitude", "longitude"])
    table = table.drop_duplicates(["sensor_id", "latitude", "longitude"]).set_index("sensor_id")
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise ValueError(f"{path}: node {twice!r} is at two places")
    absent = sorted(set(node_ids) - set(table.index))
    if len(absent) == len(node_ids):
        _joined(list(table.index), node_ids, path, "positions")
    if absent:
        logger.warning(
            "%s: positions are left out, for %d of %d nodes have none: %r", path, len(absent), len(node_ids), absent[:5]
        )
        return None
    try:
        return check_positions(table, node_ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def checked_ids(ids: Sequence[object], number: int, path: Path) -> list[str]:
    """Node ids of a file, unique and as many as there are nodes."""
    try:
        return list(check_ids(ids, number, "node ids"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class Steps(NamedTuple):
    """The rows of a file as steps of a regular time: row ``order[i]`` is step ``steps[i]``; both grow with ``i``."""

    order: np.ndarray
    steps: np.ndarray
    total: int
    start: pd.Timestamp
    interval: pd.Timedelta

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """``size`` steps at a time: the rows that are there, the places of them in the block, and its length."""
        for first in range(0, self.total, size):
            length = min(size, self.total - first)
            there = slice(*np.searchsorted(self.steps, [first, first + length]))
            yield self.order[there], self.steps[there] - first, length


def regular_steps(index: pd.DatetimeIndex, path: Path) -> Steps:
    """The times of a file's rows as steps.

    The interval is the most frequent gap; what falls between two steps is an error, not rounded.

    Raises:
        ValueError: If a time is absent, occurs twice or is no step, or nearly all steps are left out.
    """
    if index.tz is not None:
        raise ValueError(f"{path}: its times have a time zone ({index.tz}); bring them as local time")
    if index.isna().any():
        raise ValueError(f"{path}: row {int(index.isna().argmax())} has no time")
    if index.has_duplicates:
        raise ValueError(f"{path}: the time {index[index.duplicated()][0]} occurs more than once; keep one row of each")
    if len(index) < 2:
        raise ValueError(f"{path}: found {len(index)} rows; an interval takes at least 2")
    order = np.arange(len(index))
    if not index.is_monotonic_increasing:
        logger.info("%s: its rows are not in the order of time; they were sorted", path)
        order = np.argsort(index.to_numpy(), kind="stable")
        index = index[order]
    gaps = np.diff(index.to_numpy())
    kinds, counts = np.unique(gaps, return_counts=True)
    interval = kinds[counts.argmax()]
    odd = gaps % interval != np.timedelta64(0)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            f"{path}: {index[row + 1]} comes {pd.Timedelta(gaps[row])} after the time before it, no multiple of the "
            f"interval {pd.Timedelta(interval)}; resample to one interval"
        )
    steps = np.concatenate([[0], np.cumsum(gaps // interval)])
    total = int(steps[-1]) + 1
    if total > 10 * len(index):
        worst = int(gaps.argmax())
        raise ValueError(
            f"{path}: {len(index)} of {total} steps are there; look at the gap from {index[worst]} to "
            f"{index[worst + 1]}"
        )
    if total > len(index):
        logger.info("%s: %d of %d steps are left out; they are missing readings here", path, total - len(index), total)
    return Steps(order, steps, total, index[0], pd.Timedelta(interval))


def on_regular_grid(
    values: np.ndarray, index: pd.DatetimeIndex, path: Path
) -> tuple[np.ndarray, pd.Timestamp, pd.Timedelta]:
    """``values`` ``[T, ...]`` in the order of time, with NaN where a step is left out, its start and its interval.

    Raises:
        ValueError: See :func:`regular_steps`.
    """
    found = regular_steps(index, path)
    if not index.is_monotonic_increasing:
        values = values[found.order]
    if found.total > len(index):
        whole = np.full((found.total, *values.shape[1:]), np.nan, dtype=values.dtype)
        whole[found.steps] = values
        values = whole
    return values, found.start, found.interval


def noted(city: City, path: Path) -> City:
    """The city, after what is unusual in it was logged: nodes without a reading, no road between two nodes.

    Raises:
        ValueError: If nothing was observed.
    """
    seen = torch.zeros(city.num_nodes, dtype=torch.bool, device=city.mask.device)
    for (mask,) in row_blocks(city.mask):  # of a mapped city no more is read at a time
        seen |= mask.any(dim=2).any(dim=0)
    if not seen.any():
        raise ValueError(
            f"{path}: found no reading in {city.num_steps} steps of {city.num_nodes} nodes; all are missing"
        )
    dead = [node for node, alive in zip(city.node_ids, seen.tolist(), strict=True) if not alive]
    if dead:
        logger.warning("%s: %d of %d nodes have no reading at all: %r", path, len(dead), city.num_nodes, dead[:5])
    if not (city.edge_index[0] != city.edge_index[1]).any():
        logger.warning("%s: no two of its %d nodes are joined by a road", path, city.num_nodes)
    return city
