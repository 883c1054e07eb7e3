"""Road networks as edge lists: from an adjacency matrix, distances or positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor

from .arguments import check_counts, check_number
from .ids import id_text

EARTH_RADIUS = 6_371_008.8
"""Mean radius of the Earth in metres (IUGG)."""

MatrixLike = np.ndarray | Tensor | pd.DataFrame
"""Scipy's and torch's sparse matrices are taken too; they are made dense."""


class Edges(NamedTuple):
    """``edge_index`` ``[2, E]`` int64 (from, to) and ``edge_weight`` ``[E]`` float32."""

    edge_index: Tensor
    edge_weight: Tensor


def make_edges(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Edges:
    """Edges in the order of their nodes, from arrays ``[E]``."""
    order = np.lexsort((target, source))
    index = np.stack([source[order], target[order]]).astype(np.int64)
    return Edges(torch.from_numpy(index), torch.from_numpy(weight[order].astype(np.float32)))


def numbers(matrix: MatrixLike, argument: str) -> np.ndarray:
    dense: Any = matrix
    if isinstance(matrix, Tensor):
        dense = matrix.detach().cpu().to_dense().numpy()
    elif scipy.sparse.issparse(matrix):
        dense = dense.toarray()
    try:
        return np.array(dense, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{argument}: expected an array or table of numbers ({error})") from error


def _square(matrix: MatrixLike, node_ids: Sequence[str], argument: str) -> np.ndarray:
    """The matrix in the order of ``node_ids``; a labelled one is joined by id."""
    num_nodes = len(node_ids)
    if isinstance(matrix, pd.DataFrame):
        table = matrix.set_axis([id_text(c) for c in matrix.columns], axis=1).set_axis(
            [id_text(i) for i in matrix.index], axis=0
        )
        for axis, labels in (("rows", table.index), ("columns", table.columns)):
            absent = sorted(set(node_ids) - set(labels))
            if absent:
                raise ValueError(
                    f"{argument}: node {absent[0]!r} of the readings is not among its {axis} "
                    f"({len(absent)} of {num_nodes} are absent); label rows and columns by node id, or pass an array"
                )
            if labels.has_duplicates:
                twice = labels[labels.duplicated()][0]
                raise ValueError(f"{argument}: node {twice!r} occurs more than once among its {axis}")
        array = numbers(table.loc[list(node_ids), list(node_ids)], argument)
    else:
        array = numbers(matrix, argument)
    if array.shape != (num_nodes, num_nodes):
        raise ValueError(
            f"{argument}: expected shape [{num_nodes}, {num_nodes}], one row and column for each node of the readings, "
            f"found {list(array.shape)}"
        )
    return array


def edges_from_adjacency(adjacency: MatrixLike, node_ids: Sequence[str]) -> Edges:
    """One edge ``i -> j`` for every non-zero ``adjacency[i, j]``, which is its weight.

    Raises:
        ValueError: If the matrix is not ``[N, N]``, or a weight is negative or not finite.
    """
    array = _square(adjacency, node_ids, "adjacency")
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        i, j = (int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"adjacency: found {array[i, j]} from node {node_ids[i]!r} to node {node_ids[j]!r}; weights must be finite "
            "and not negative, 0 where there is no road"
        )
    source, target = np.nonzero(array)
    return make_edges(source, target, array[source, target])


def edges_from_index(edge_index: Tensor, edge_weight: Tensor | None = None) -> Edges:
    """Edges as PyG has them; without weights all weigh 1.

    Raises:
        TypeError: If they are no tensors, nor what a tensor can be made of.
    """
    index = _tensor(edge_index, "edge_index", "an int64 tensor [2, E]")
    if edge_weight is None:
        return Edges(index, torch.ones(index.shape[-1:]))
    return Edges(index, _tensor(edge_weight, "edge_weight", "a tensor [E]").detach().to(torch.float32))


def _tensor(value: Any, argument: str, expected: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{argument}: expected {expected}, found {value!r} ({error})") from error


def gaussian_kernel(distance: np.ndarray, sigma: float | None = None) -> np.ndarray:
    r"""Closeness :math:`w = \exp(-d^2 / \sigma^2)` of nodes that are :math:`d` metres apart.

    Args:
        distance: Metres, ``[E]``.
        sigma: Metres. Default: the root mean square of ``distance``. (`DCRNN <https://arxiv.org/abs/1707.01926>`_ takes
            the standard deviation, of distances between all pairs. Of neighbours, whose distances are much alike, that
            is far too narrow: all weights would be next to 0.)
    """
    if sigma is None:
        sigma = float(np.sqrt(np.mean(np.square(distance)))) or 1.0
    check_number("sigma", sigma, "a positive number of metres", above=0)
    return np.exp(-np.square(distance / sigma))


def edges_from_distances(
    distances: MatrixLike,
    node_ids: Sequence[str],
    sigma: float | None = None,
    threshold: float = 0.1,
) -> Edges:
    """Edges weighted by the Gaussian kernel of road distances; those below ``threshold`` are dropped.

    Args:
        distances: Metres from row to column ``[N, N]`` (inf or NaN, not 0: no road; the diagonal is ignored), or a
            table with the columns ``from``, ``to`` and ``cost`` (or ``distance``), whose nodes are node ids; of
            parallel edges the shortest counts.
        node_ids: The nodes in order.
        sigma: See :func:`gaussian_kernel`.
        threshold: Smallest weight that is kept, in [0, 1).

    Raises:
        ValueError: On a wrong shape, an unknown node, a negative distance, a matrix with 0 between two nodes, a
            ``threshold`` outside [0, 1), or a ``sigma`` that leaves no edge.
    """
    check_number("threshold", threshold, "a weight in [0, 1)", least=0)
    if threshold >= 1:
        raise ValueError(f"threshold: expected a weight in [0, 1), found {threshold}")
    if isinstance(distances, pd.DataFrame) and {"from", "to"} <= {str(c) for c in distances.columns}:
        source, target, metres = _distance_table(distances, node_ids)
    else:
        array = _square(distances, node_ids, "distances")
        np.fill_diagonal(array, np.inf)
        source, target = np.nonzero(np.isfinite(array))
        metres = array[source, target]
        if (metres == 0).any():
            zero = int(np.argmax(metres == 0))
            raise ValueError(
                f"distances: found 0 from node {node_ids[source[zero]]!r} to node {node_ids[target[zero]]!r}; say inf "
                "or NaN where there is no road (and 1 metre for two nodes in one place)"
            )
    if (metres < 0).any():
        worst = int(np.argmax(metres < 0))
        raise ValueError(
            f"distances: found {metres[worst]} from node {node_ids[source[worst]]!r} to node "
            f"{node_ids[target[worst]]!r}; distances must not be negative"
        )
    if not len(metres):
        return make_edges(source, target, metres)
    weight = gaussian_kernel(metres, sigma)
    keep = weight >= threshold
    if not keep.any():
        raise ValueError(
            f"sigma: all {len(metres)} weights are below the threshold {threshold}; the nearest nodes are "
            f"{metres.min():g} metres apart, choose a sigma of that size (in metres) or larger"
        )
    return make_edges(source[keep], target[keep], weight[keep])


def _distance_table(table: pd.DataFrame, node_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cost = next((name for name in ("cost", "distance") if name in table.columns), None)
    if cost is None:
        raise ValueError(f"distances: expected a column 'cost' or 'distance', found {[str(c) for c in table.columns]}")
    position = {node: i for i, node in enumerate(node_ids)}
    rows = pd.DataFrame(
        {
            "from": table["from"].map(id_text).map(position),
            "to": table["to"].map(id_text).map(position),
            "metres": pd.to_numeric(table[cost], errors="coerce"),
        }
    )
    for column in ("from", "to"):
        unknown = rows[column].isna()
        if unknown.any():
            row = int(np.argmax(unknown.to_numpy()))
            raise ValueError(
                f"distances: row {row}, column {column!r}: node {id_text(table[column].iloc[row])!r} is not a node of "
                f"the readings (for example {node_ids[0]!r}); both need the same node ids, so leave out the rows of "
                "other nodes, and name a table of readings' columns by node id (of an array, pass node_ids)"
            )
    bad = ~np.isfinite(rows["metres"].to_numpy(dtype=np.float64))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"distances: row {row}, column {cost!r}: found {table[cost].iloc[row]}, expected metres")
    shortest = rows[rows["from"] != rows["to"]].groupby(["from", "to"])["metres"].min().reset_index()
    return (
        shortest["from"].to_numpy(dtype=np.int64),
        shortest["to"].to_numpy(dtype=np.int64),
        shortest["metres"].to_numpy(dtype=np.float64),
    )


def edges_from_positions(positions: Tensor, k: int = 8, sigma: float | None = None) -> Edges:
    """Each node joined, in both directions, with its ``k`` nearest by great-circle distance (Gaussian kernel).

    Args:
        positions: Latitude and longitude in degrees, ``[N, 2]``.
        k: Number of neighbours, at least 1; fewer where the city has fewer nodes.
        sigma: See :func:`gaussian_kernel`.
    """
    from sklearn.neighbors import NearestNeighbors

    check_counts(k=k)
    num_nodes = positions.shape[0]
    k = min(k, num_nodes - 1)
    if k == 0:
        return make_edges(np.empty(0, int), np.empty(0, int), np.empty(0))
    radians = np.radians(positions.numpy())
    search = NearestNeighbors(n_neighbors=k, metric="haversine", algorithm="ball_tree").fit(radians)
    arc, neighbour = search.kneighbors()  # without an argument a node is not its own neighbour
    pairs = np.stack([np.repeat(np.arange(num_nodes), k), neighbour.ravel()])
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    metres = np.tile(arc.ravel() * EARTH_RADIUS, 2)
    unique, first = np.unique(both, axis=1, return_index=True)
    return make_edges(unique[0], unique[1], gaussian_kernel(metres[first], sigma))


def __getattr__(name: str) -> Any:
    """What :mod:`~tsjt_pyg.data.road_network` holds can be imported from here too."""
    if name in ("RoadNetwork", "road_network_from_networkx"):
        from . import road_network

        return getattr(road_network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
