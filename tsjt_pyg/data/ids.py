"""Node ids: one text for each node, however an array, a table, a graph or a file spells it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def id_text(value: object) -> str:
    """A node id as text: 773869, ``"773869"``, ``b"773869"`` and 773869.0 are one id, ``"007"`` and 7 are two.

    A tuple, as OSMnx labels roads, is its parts joined: ``(u, v, key)`` is ``"u-v-key"``.
    """
    if isinstance(value, tuple):
        return "-".join(map(id_text, value))
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    text = str(value).strip()
    whole, point, rest = text.partition(".")
    return whole if point and not rest.strip("0") and whole.isdigit() else text


def check_ids(node_ids: Sequence[object], num_nodes: int, argument: str = "node_ids") -> tuple[str, ...]:
    """Node ids as unique text, one a node."""
    if isinstance(node_ids, str | bytes) or not isinstance(node_ids, Iterable):
        raise ValueError(f"{argument}: expected a list of ids, one for each node, found {node_ids!r}")
    ids = tuple(map(id_text, node_ids))
    if len(ids) != num_nodes:
        raise ValueError(f"{argument}: expected {num_nodes} ids, one for each node of the readings, found {len(ids)}")
    if len(set(ids)) != len(ids):
        twice = next(node for node in ids if ids.count(node) > 1)
        raise ValueError(f"{argument}: {twice!r} occurs more than once; node ids must be unique")
    return ids
