"""Cells of plain graph convolutions: TGCN, A3TGCN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from ..propagation import Propagation
from ..recurrences import GRUWeights, State, Steps, gru_states, itself, project
from ..road_graph import RoadGraph


def run_tgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    return gru_states(_gcn_propagated(cell, x, graph), itself, itself, _tgcn_weights(cell), state)


def run_a3tgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    # Every period starts from a zero state, so that there is no recurrence: the reset gate has nothing to reset and
    # H = (1 - Z) * candidate.
    tgcn = cell._base_tgcn
    weights, channels = _tgcn_weights(tgcn), cell.out_channels
    x = _gcn_propagated(tgcn, x, graph)
    update = project(x, weights.input_gates[:, :channels], weights.bias_gates[:channels])
    candidate = project(x, weights.input_candidate, weights.bias_candidate)
    states = torch.sigmoid(-update) * torch.tanh(candidate)
    attention = torch.softmax(cell._attention, dim=0)
    out = torch.einsum("ntbf,t->nbf", states, attention)
    return [out], (out,)


def _gcn_propagated(cell: Any, x: Tensor, graph: RoadGraph) -> Tensor:
    """The road network applied to the input: it comes before the layers' weights here, where there are few channels."""
    conv = cell.conv_z

    def build() -> Propagation:
        index, weight = gcn_norm(
            graph.edge_index,
            graph.weight(x.dtype),
            graph.num_nodes,
            conv.improved,
            conv.add_self_loops,
            conv.flow,
            dtype=x.dtype,
        )
        return Propagation(index, weight, graph.num_nodes)

    return graph.operator(("gcn", conv.improved, conv.add_self_loops, conv.flow, x.dtype), build)(x)


def _tgcn_weights(cell: Any) -> GRUWeights:
    """Nothing lies between a gate's graph convolution and the input half of its linear layer: both are one map."""
    gates = ((cell.conv_z, cell.linear_z), (cell.conv_r, cell.linear_r), (cell.conv_h, cell.linear_h))
    inputs, biases, states = [], [], []
    for conv, linear in gates:
        of_input, of_state = linear.weight.chunk(2, dim=1)
        inputs.append((of_input @ conv.lin.weight).t())
        biases.append(of_input @ conv.bias + linear.bias)
        states.append(of_state.t())
    return GRUWeights(
        input_gates=torch.cat(inputs[:2], dim=1),
        input_candidate=inputs[2],
        bias_gates=torch.cat(biases[:2]),
        bias_candidate=biases[2],
        state_gates=torch.cat(states[:2], dim=1),
        state_candidate=states[2],
    )
