"""Convolutions over the roads and over time: MSTGCN."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigs
from torch import Tensor
from torch_geometric.utils import get_laplacian, to_scipy_sparse_matrix

from ..propagation import Propagation
from ..recurrences import State, Steps
from ..road_graph import RoadGraph

EXACT = 300
"""Nodes up to which all eigenvalues of a Laplacian are computed, in some hundredths of a second."""


def run_mstgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    """The layer as PyG-Temporal computes it where it is given a list of road networks, one a step.

    Where it is given a single one, its reshape mixes nodes with channels as soon as there is more than one channel, so
    that the result depends on how nodes are numbered; that is not reproduced. Like the layer itself, this does not look
    at edge weights.
    """
    assert state is None, "the layer reads whole windows and has no state to start from"
    nodes, _, windows, _ = x.shape
    x = x.transpose(1, 2)
    for block in cell._blocklist:
        x = _block(block, x, graph)
    # The last convolution takes steps for channels and covers all of its input.
    out = cell._final_conv(x.flatten(0, 1)[:, :, None])
    out = out.view(nodes, windows, -1)
    return Steps(out.unsqueeze(0), out, ())


def mstgcn_history(cell: Any) -> int:
    """The only history that the layer can read: its ``len_input``, which must be a multiple of ``time_strides``."""
    return int(cell._final_conv.in_channels * cell._blocklist[0]._time_conv.stride[1])


def _block(block: Any, x: Tensor, graph: RoadGraph) -> Tensor:
    """``[N, B, T, C] -> [N, B, T / stride, F]``."""
    nodes, windows = x.shape[:2]
    along_roads = torch.relu(_chebyshev_conv(block._cheb_conv, x, graph))
    over_time, residual = (
        conv(features.flatten(0, 1).transpose(1, 2)[:, :, None])  # [N * B, F, 1, T / stride]
        for conv, features in ((block._time_conv, along_roads), (block._residual_conv, x))
    )
    out = torch.relu(residual + over_time).squeeze(2).transpose(1, 2)
    normed: Tensor = block._layer_norm(out).view(nodes, windows, out.size(1), -1)
    return normed


def _chebyshev_conv(conv: Any, x: Tensor, graph: RoadGraph) -> Tensor:
    def build() -> Propagation:
        index, norm = conv.__norm__(
            graph.edge_index, graph.num_nodes, None, conv.normalization, _largest_eigenvalue(graph), dtype=x.dtype
        )
        return Propagation(index, norm, graph.num_nodes)

    terms = [x]
    if len(conv.lins) > 1:
        laplacian = graph.operator(("scaled laplacian", conv.normalization, x.dtype), build)
        terms.append(laplacian(x))
        for _ in range(2, len(conv.lins)):
            terms.append(2.0 * laplacian(terms[-1]) - terms[-2])
    weight = torch.cat([lin.weight for lin in conv.lins], dim=1)
    return torch.nn.functional.linear(torch.cat(terms, dim=-1), weight, conv.bias)


def _largest_eigenvalue(graph: RoadGraph) -> float | Tensor:
    """Of the Laplacian without weights, as PyG's ``LaplacianLambdaMax`` finds it, but always the same: the solver would
    start from a random vector. Without roads it is zero, by which nobody can divide: then 1.

    Exact up to :data:`EXACT` nodes. In larger cities it is found to a thousandth, or bounded from above by twice the
    largest degree where the solver does not converge, as along a one-way road: it only scales the Laplacian.
    """
    index, nodes = graph.edge_index, graph.num_nodes
    if torch.compiler.is_exporting():  # the program finds it anew for every road network, of EXACT nodes at most
        roads = (index[0] != index[1]).to(torch.float64)
        degree = roads.new_zeros(nodes).index_add(0, index[0], roads)
        joined = roads.new_zeros(nodes * nodes).index_add(0, index[0] * nodes + index[1], roads)
        values = torch.linalg.eigvals(torch.diag(degree) - joined.view(nodes, nodes))
        largest = values.gather(0, values.abs().argmax(keepdim=True)).real
        return torch.where(roads.any(), largest.squeeze(0), 1.0)
    if not bool((index[0] != index[1]).any()):
        return 1.0
    index, weight = get_laplacian(index, index.new_ones(index.size(1), dtype=torch.float64), num_nodes=nodes)
    laplacian = to_scipy_sparse_matrix(index, weight, nodes).tocsr()
    if nodes <= EXACT:
        values = np.linalg.eigvals(laplacian.toarray())
        return float(values[np.abs(values).argmax()].real)
    start = np.cos(np.arange(nodes))  # not the constant one, which the Laplacian makes zero
    try:
        found = eigs(laplacian, k=1, which="LM", return_eigenvectors=False, v0=start, tol=1e-3, maxiter=200)
        return float(found.real.item())
    except ArpackNoConvergence:
        return float(abs(laplacian).sum(axis=1).max())
