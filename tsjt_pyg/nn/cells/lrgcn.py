"""Relational cell: LRGCN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from ..basis import Basis, Term
from ..propagation import Propagation
from ..recurrences import LSTMWeights, State, Steps, lstm_states
from ..road_graph import RoadGraph
from .weights import biases


def run_lrgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    basis = _relational_basis(cell.num_relations, x, graph)
    input_convs = (cell.conv_x_i, cell.conv_x_f, cell.conv_x_c, cell.conv_x_o)
    state_convs = (cell.conv_h_i, cell.conv_h_f, cell.conv_h_c, cell.conv_h_o)
    weights = LSTMWeights(
        inputs=_relational_weight(*input_convs),
        bias=biases(*input_convs) + biases(*state_convs),
        state=_relational_weight(*state_convs),
        peepholes=None,
    )
    return lstm_states(x, basis, basis, weights, state)


def edge_relations(edge_weight: Tensor | None, edge_index: Tensor, num_relations: int) -> Tensor:
    """The relation of each edge, ``[E]`` int64: its class among ``num_relations`` classes of equally many edges by
    weight, the lightest in class 0.

    Edges of equal weight are in one class, that of the first of them, so that the order of the edges does not matter;
    without weights, all are in class 0.
    """
    if edge_weight is None:
        return edge_index.new_zeros(edge_index.size(1))
    weight = edge_weight.detach().contiguous()
    lighter = torch.searchsorted(weight.sort().values, weight)  # how many edges weigh less
    return lighter * num_relations // max(1, weight.numel())


def _relational_basis(num_relations: int, x: Tensor, graph: RoadGraph) -> Basis:
    def build() -> list[Propagation]:
        relation = edge_relations(graph.edge_weight, graph.edge_index, num_relations)
        means = []
        for number in range(num_relations):
            index = graph.edge_index[:, relation == number]
            ones = x.new_ones(index.size(1))  # torch.bincount would not say how many it counts
            count = scatter(ones, index[1], dim_size=graph.num_nodes, reduce="sum")
            means.append(Propagation(index, count.reciprocal()[index[1]], graph.num_nodes))
        return means

    means = graph.operator(("relations", num_relations, x.dtype), build)
    return Basis(tuple(Term(mean, 0) for mean in means))


def _relational_weight(*convs: Any) -> Tensor:
    """``[(1 + R) * C, F * len(convs)]``: each node's own share, then one a relation."""
    return torch.cat([torch.cat([conv.root, *_of_relations(conv)], dim=0) for conv in convs], dim=1)


def _of_relations(conv: Any) -> Tensor:
    """``[R, C, F]``."""
    if conv.num_bases is None:
        weight: Tensor = conv.weight
        return weight
    return torch.einsum("rb,bio->rio", conv.comp, conv.weight)
