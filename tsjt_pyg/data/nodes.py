"""A city with some of its nodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .ids import id_text

if TYPE_CHECKING:
    from .city import City

logger = logging.getLogger(__name__)


def keep_nodes(city: City, node_ids: Sequence[object]) -> City:
    """The city with the given nodes, in that order, and the edges between them; how many edges went is logged.

    Raises:
        ValueError: If an id is unknown or given twice, or none is given.
    """
    index = _positions(city, node_ids)
    if not index:
        raise ValueError(f"node_ids: no node of {city.name} would be left, and a city needs at least one")
    new = torch.full((city.num_nodes,), -1)
    new[index] = torch.arange(len(index))
    ends = new.to(city.edge_index.device)[city.edge_index]
    kept = (ends >= 0).all(dim=0)
    logger.info(
        "%s: kept %d of %d nodes and %d of %d edges",
        city.name,
        len(index),
        city.num_nodes,
        int(kept.sum()),
        city.num_edges,
    )
    return replace(
        city,
        readings=city.readings[:, index],
        mask=city.mask[:, index],
        edge_index=ends[:, kept],
        edge_weight=city.edge_weight[kept],
        node_ids=tuple(city.node_ids[i] for i in index),
        pos=None if city.pos is None else city.pos[index],
    )


def drop_nodes(city: City, node_ids: Sequence[object]) -> City:
    """The city without the given nodes and their edges, the others in their order; see :func:`keep_nodes`."""
    dropped = set(_positions(city, node_ids))
    return keep_nodes(city, [node for i, node in enumerate(city.node_ids) if i not in dropped])


def _positions(city: City, node_ids: Sequence[object]) -> list[int]:
    ids = [id_text(node_ids)] if isinstance(node_ids, str) else [id_text(node) for node in node_ids]
    position = {node: i for i, node in enumerate(city.node_ids)}
    unknown = [node for node in ids if node not in position]
    if unknown:
        raise ValueError(
            f"node_ids: {city.name} has no node {unknown[0]!r} ({len(unknown)} of {len(ids)} are unknown; it has "
            f"{city.num_nodes} nodes, for example {city.node_ids[0]!r})"
        )
    if len(set(ids)) != len(ids):
        twice = next(node for node in ids if ids.count(node) > 1)
        raise ValueError(f"node_ids: {twice!r} is given more than once")
    return [position[node] for node in ids]
