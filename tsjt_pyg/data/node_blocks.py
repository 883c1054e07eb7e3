"""A city cut into blocks of nodes that fit into a batch, each with a halo of the nodes around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

if TYPE_CHECKING:
    from .city import City


@dataclass(frozen=True, eq=False)
class NodeBlock:
    """A part of a city: its core, and the halo that the core's forecasts may depend on.

    Nodes and edges are in the order of the city's, which some layers depend on (DCRNN).

    Shapes:
        - ``nodes``: ``[n]`` int64, positions among the city's nodes, ascending
        - ``core_mask``: ``[n]`` bool, which of them are the core
        - ``edge_index``: ``[2, e]``, the edges between them, from and to, as positions in ``nodes``
        - ``edge_weight``: ``[e]``
    """

    nodes: Tensor
    core_mask: Tensor
    edge_index: Tensor
    edge_weight: Tensor

    @property
    def core(self) -> Tensor:
        """Positions of the core's nodes among the city's."""
        return self.nodes[self.core_mask]

    def __repr__(self) -> str:
        halo = int((~self.core_mask).sum())
        return f"NodeBlock(core of {len(self.nodes) - halo} nodes, halo of {halo}, {self.edge_index.shape[1]} edges)"


class NodeBlocks:
    r"""A partition of a city's nodes into cores of equal size (to within one node), each with its halo.

    The road network is halved again and again, each time in the order of a breadth-first search (reverse
    Cuthill–McKee), so that cores are compact and their borders short: recursive graph bisection, Simon, "Partitioning
    of unstructured problems for parallel processing", Computing Systems in Engineering 2, 1991.

    The halo of a core is every node within ``num_hops`` edges of it, in either direction. With :math:`r` the receptive
    field of a model in hops, forecasts of the core are those of the whole city if

    - ``num_hops`` :math:`\ge r`, for a model that uses edges and weights as they are,
    - ``num_hops`` :math:`\ge r + 1`, for one that divides by the degrees of nodes (GCN, Chebyshev, diffusion): the
      outermost nodes of the halo lack edges, so their degrees are wrong.

    A recurrent graph cell looks some hops further with every step, so that a halo is a matter of precision:
    docs/large_cities.md has what it costs, measured.

    Args:
        city: The city; its readings are not looked at.
        block_size: Nodes of a core at most.
        num_hops: Width of the halo; 0: none.

    Raises:
        ValueError: If ``block_size`` is below 1 or ``num_hops`` below 0.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> city = load_city("demo/riverton")
        >>> for block in NodeBlocks(city, block_size=40, num_hops=2):
        ...     for batch in city.windows(12, 12).batches(64, block=block):
        ...         x, y_mask = batch.x, batch.y_mask
    """

    def __init__(self, city: City, block_size: int, num_hops: int = 1) -> None:
        if block_size < 1:
            raise ValueError(f"block_size: expected at least 1 node, found {block_size}")
        if num_hops < 0:
            raise ValueError(f"num_hops: expected 0 (no halo) or more, found {num_hops}")
        self.num_nodes, self.block_size, self.num_hops = city.num_nodes, block_size, num_hops
        edges = city.edge_index.cpu().numpy()
        ones = np.ones(edges.shape[1], np.int32)
        roads = coo_array((ones, (edges[0], edges[1])), shape=(city.num_nodes, city.num_nodes)).tocsr()
        roads = _pattern(roads + roads.T)
        cores = _bisected(roads, np.arange(city.num_nodes), -(-city.num_nodes // block_size))
        self._blocks = _with_halo(cores, roads, num_hops, edges, city.edge_weight.cpu())

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, number: int) -> NodeBlock:
        return self._blocks[number]

    def __iter__(self) -> Iterator[NodeBlock]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        seen = sum(len(block.nodes) for block in self) / self.num_nodes
        return (
            f"NodeBlocks({len(self)} of at most {self.block_size} of {self.num_nodes} nodes, num_hops={self.num_hops}: "
            f"with their halos {seen:.2f} times the nodes)"
        )


def node_blocks(city: City, nodes_per_batch: int | None, num_hops: int) -> NodeBlocks | None:
    """The blocks of a city of more nodes than ``nodes_per_batch``; ``None`` where the whole city fits into a batch."""
    if nodes_per_batch is None or (city.num_nodes <= nodes_per_batch and nodes_per_batch >= 1):
        return None
    return NodeBlocks(city, nodes_per_batch, num_hops)


def _bisected(roads: csr_array, nodes: np.ndarray, count: int) -> list[np.ndarray]:
    """The given nodes in ``count`` parts whose sizes differ by at most one."""
    if count == 1:
        return [nodes]
    nodes = nodes[reverse_cuthill_mckee(roads[nodes][:, nodes], symmetric_mode=True)]
    left, (size, larger) = count // 2, divmod(len(nodes), count)
    border = left * size + min(left, larger)
    return _bisected(roads, nodes[:border], left) + _bisected(roads, nodes[border:], count - left)


def _with_halo(
    cores: list[np.ndarray], roads: csr_array, num_hops: int, edges: np.ndarray, weight: Tensor
) -> list[NodeBlock]:
    """All blocks at once, in time proportional to their nodes and edges."""
    numbers = np.repeat(np.arange(len(cores)), [len(core) for core in cores])
    seen = _marks(numbers, np.concatenate(cores), (len(cores), roads.shape[0]))
    for _ in range(num_hops):
        seen = _pattern(seen + seen @ roads)
    number = np.arange(edges.shape[1])
    starts, ends = (_marks(nodes, number, (roads.shape[0], len(number))) for nodes in edges)
    inside = (seen @ starts).multiply(seen @ ends).tocsr()  # rows: blocks, columns: the edges within them
    blocks = []
    for i, core in enumerate(cores):
        nodes, taken = np.sort(_row(seen, i)), np.sort(_row(inside, i))
        index = np.searchsorted(nodes, edges[:, taken])
        tensors = (torch.from_numpy(part) for part in (nodes, np.isin(nodes, core), index, taken))
        node, core_mask, edge_index, edge = tensors
        blocks.append(NodeBlock(node.long(), core_mask, edge_index.long().contiguous(), weight[edge.long()]))
    return blocks


def _marks(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return coo_array((np.ones(len(rows), np.int32), (rows, columns)), shape=shape).tocsr()


def _pattern(matrix: csr_array) -> csr_array:
    """The matrix with a 1 wherever it has an entry."""
    matrix = matrix.tocsr()
    matrix.data[:] = 1
    return matrix


def _row(matrix: csr_array, row: int) -> np.ndarray:
    """The columns in which a row has entries."""
    found: np.ndarray = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return found
