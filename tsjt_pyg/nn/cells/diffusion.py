"""Diffusion cells: DCRNN, BatchedDCRNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from ..basis import Basis, Term, itself
from ..propagation import Propagation
from ..recurrences import GRUWeights, State, Steps, gru_states
from ..road_graph import RoadGraph
from .weights import biases


def run_dcrnn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    return _diffusion_states(cell, x, _diffusion_basis(cell.K, x, graph, merge=True), state)


def run_batched_dcrnn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    """The numbers of DCRNN, but for parallel edges and those of weight zero, which this cell can run with.

    It compares the road network of a call with that of the call before by value, alone and without the number of
    nodes: after an in-place change of ``edge_weight`` it uses the old one. Not reproduced.
    """
    return _diffusion_states(cell, x, _diffusion_basis(cell.K, x, graph, merge=False), state)


def _diffusion_states(cell: Any, x: Tensor, basis: Basis, state: State | None) -> Steps:
    channels = x.size(-1)
    gates = [_diffusion_weight(conv) for conv in (cell.conv_x_z, cell.conv_x_r, cell.conv_x_h)]
    of_state = [weight[:, channels:].flatten(0, 1) for weight in gates]
    weights = GRUWeights(
        inputs=torch.cat([weight[:, :channels].flatten(0, 1) for weight in gates], dim=1),
        bias=biases(cell.conv_x_z, cell.conv_x_r, cell.conv_x_h),
        state_gates=torch.cat(of_state[:2], dim=1),
        state_candidate=of_state[2],
    )
    return gru_states(x, basis, basis, weights, state)


def _diffusion_weight(conv: Any) -> Tensor:
    """``[2 K - 1, C + F, F]``: the two directions share the features themselves, then take turns."""
    outward, inward = conv.weight
    return torch.cat([(outward[:1] + inward[:1]), torch.stack([outward[1:], inward[1:]], dim=1).flatten(0, 1)], dim=0)


def _diffusion_basis(order: int, x: Tensor, graph: RoadGraph, merge: bool) -> Basis:
    if order == 1:
        return itself
    outward, inward = graph.operator(("random walks", merge, x.dtype), lambda: _random_walks(graph, x, merge))
    terms = [Term(outward, 0), Term(inward, 0)]
    for k in range(2, order):
        # PyG-Temporal subtracts the features themselves at every order, not the term before the last.
        terms += [Term(outward, 2 * k - 3, 0), Term(inward, 2 * k - 2, 0)]
    return Basis(tuple(terms))


def _random_walks(graph: RoadGraph, x: Tensor, merge: bool) -> tuple[Propagation, Propagation]:
    """The random walks along and against the edges as PyG-Temporal's DConv has them.

    Its numbers are kept, oddities included: a weight counts only in the degrees, and the e-th reversed edge in the
    order of ``dense_to_sparse(adj.T)`` is divided by the in-degree of ``edge_index[0, e]``. So on a directed graph the
    result depends on the order of the edges and the numbering of the nodes; with both directions of every road
    present and edges sorted by row (a coalesced ``edge_index``) it does not.

    Where DConv fails there is nothing to keep. It cannot run with parallel or zero-weight edges: they are added up
    and dropped. It gives inf and NaN where a node with an out-edge has no in-edge: exactly those nodes get a self-loop
    of weight 1. In both cases the edges are then sorted by row.

    BatchedDConv (``merge=False``) does run with parallel and zero-weight edges: each is walked on its own. It gives inf
    where all edges out of a node weigh nothing: those are dropped.
    """
    nodes, (row, col), weight = graph.num_nodes, graph.edge_index, graph.weight(x.dtype)
    if weight is None:
        weight = x.new_ones(row.size(0))
    # No number of edges depends on the values: an exported program has to know it. An edge that is not walked is
    # behind the others and weighs nothing.
    if merge:
        key, order = (row * nodes + col).sort(stable=True)
        first = torch.diff(key, prepend=key.new_full((1,), -1)) != 0
        summed = torch.zeros_like(weight).index_add(0, first.cumsum(0) - 1, weight[order])[first.cumsum(0) - 1]
        walked = first & (summed != 0)
        plain = walked.all()
        walked = walked | plain
        row, col = (torch.where(plain, end, end[order]) for end in (row, col))
        weight = torch.where(plain, weight, summed)
    else:
        walked = _degree(weight, row, nodes)[row] != 0
    row, col, weight, walked = _ordered((~walked).long(), row, col, torch.where(walked, weight, 0.0), walked)
    sources_only = (_degree(weight, col, nodes) == 0) & (_degree(weight, row, nodes) != 0)
    loops = torch.arange(nodes, device=row.device)
    row, col = torch.cat([row, loops]), torch.cat([col, loops])
    weight, walked = torch.cat([weight, sources_only.to(weight.dtype)]), torch.cat([walked, sources_only])
    by_row = torch.where(walked, row * nodes + col, nodes * nodes)
    as_it_is = torch.arange(row.size(0), device=row.device)
    key = torch.where(sources_only.any(), by_row, as_it_is)
    row, col, weight, walked = _ordered(key, row, col, weight, walked)
    outward, inward = (_degree(weight, end, nodes) for end in (row, col))
    outward, inward = (
        torch.where(walked, degree.masked_fill(degree == 0, 1.0).reciprocal()[row], 0.0) for degree in (outward, inward)
    )
    reverse = torch.stack(_ordered(torch.where(walked, col * nodes + row, nodes * nodes), col, row))
    return Propagation(torch.stack([row, col]), outward, nodes), Propagation(reverse, inward, nodes)


def _ordered(key: Tensor, *tensors: Tensor) -> list[Tensor]:
    order = key.argsort(stable=True)
    return [tensor[order] for tensor in tensors]


def _degree(weight: Tensor, index: Tensor, nodes: int) -> Tensor:
    return scatter(weight, index, dim_size=nodes, reduce="sum")
