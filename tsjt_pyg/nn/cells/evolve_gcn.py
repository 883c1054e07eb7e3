"""A graph convolution whose weight evolves: EvolveGCNO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from ..propagation import Propagation
from ..recurrences import State, Steps
from ..road_graph import RoadGraph


def run_evolve_gcno(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    """The weight starts anew in every pass, so that none depends on the one before.

    The weights know the number of the step and nothing of the readings: they are the same for all windows. Nodes have
    no state; what is given for each step is the convolution's output there.
    """
    assert state is None, "nodes have no state to start from"
    weights = []
    weight = cell.initial_weight
    for _ in range(x.size(1)):
        _, weight = cell.recurrent_layer(weight, weight)
        weights.append(weight.squeeze(0))
    outputs = torch.einsum("ntbi,tio->tnbo", _propagated(cell.conv_layer, x, graph), torch.stack(weights))
    return Steps(outputs, outputs[-1], ())


def _propagated(conv: Any, x: Tensor, graph: RoadGraph) -> Tensor:
    def build() -> Propagation:
        index, weight = graph.edge_index, graph.weight(x.dtype)
        if conv.normalize:
            index, weight = gcn_norm(index, weight, graph.num_nodes, conv.improved, conv.add_self_loops, dtype=x.dtype)
        elif weight is None:
            weight = x.new_ones(index.size(1))
        return Propagation(index, weight, graph.num_nodes)

    return graph.operator(("evolving", conv.normalize, conv.improved, conv.add_self_loops, x.dtype), build)(x)
