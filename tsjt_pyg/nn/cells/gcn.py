"""Cells of plain graph convolutions: TGCN, A3TGCN, and their batched forms.

TGCN2 and A3TGCN2 compute what TGCN and A3TGCN do, for batches; the ``batch_size`` they are built with is never used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from ..basis import Basis, Term, itself
from ..propagation import Propagation
from ..recurrences import GRUWeights, State, Steps, gru_states, project
from ..road_graph import RoadGraph


def run_tgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    # The road network comes before the layers' weights here, where there are few channels.
    basis = Basis((Term(_gcn_propagation(cell, x, graph), 0),), first=1)
    return gru_states(x, basis, itself, _tgcn_weights(cell), state)


def run_a3tgcn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    # Every period starts from a zero state, so that there is no recurrence: the reset gate has nothing to reset and
    # H = (1 - Z) * candidate.
    tgcn = cell._base_tgcn
    weights, channels = _tgcn_weights(tgcn), cell.out_channels
    gates = torch.cat([-weights.inputs[:, :channels], weights.inputs[:, 2 * channels :]], dim=1)
    bias = torch.cat([-weights.bias[:channels], weights.bias[2 * channels :]])
    propagate, attention = _gcn_propagation(tgcn, x, graph), torch.softmax(cell._attention, dim=0)
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for step, share in zip(x.unbind(1), attention, strict=True):  # one by one: all at once they leave the cache
        keep, candidate = project(propagate(step.contiguous()), gates, bias).chunk(2, dim=-1)
        out = out + share * torch.sigmoid(keep) * torch.tanh(candidate)
    return Steps(out.unsqueeze(0), out, (out,))


def _gcn_propagation(cell: Any, x: Tensor, graph: RoadGraph) -> Propagation:
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

    return graph.operator(("gcn", conv.improved, conv.add_self_loops, conv.flow, x.dtype), build)


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
        inputs=torch.cat(inputs, dim=1),
        bias=torch.cat(biases),
        state_gates=torch.cat(states[:2], dim=1),
        state_candidate=states[2],
    )
