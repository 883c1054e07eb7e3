"""A gated graph convolution before an LSTM: DyGrEncoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from ..propagation import Propagation
from ..recurrences import State, Steps
from ..road_graph import RoadGraph


def run_dygr_encoder(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    """The convolution has no memory, so that all steps go through it at once. State: the hidden states of the LSTM's
    layers, then their memories."""
    nodes, steps, windows, channels = x.shape
    hidden = _gated_graph_conv(cell.conv_layer, x, graph).transpose(0, 1).reshape(steps, nodes * windows, channels)
    layers = cell.lstm_num_layers
    start = None
    if state is not None:
        joined = torch.stack([tensor.flatten(0, 1) for tensor in state])
        start = (joined[:layers].contiguous(), joined[layers:].contiguous())
    states, (last, memory) = cell.recurrent_layer(hidden, start)
    handed_on = torch.cat([last, memory]).view(2 * layers, nodes, windows, -1).unbind(0)
    return Steps(states.view(steps, nodes, windows, -1), handed_on[layers - 1], handed_on)


def _gated_graph_conv(conv: Any, x: Tensor, graph: RoadGraph) -> Tensor:
    state = x.flatten(0, -2)
    for weight in conv.weight:
        message = _aggregated(conv, (state @ weight).view(graph.num_nodes, -1), graph)
        state = conv.rnn(message.reshape(state.shape), state)
    return state.view(x.shape)


def _aggregated(conv: Any, features: Tensor, graph: RoadGraph) -> Tensor:
    """``[N, M] -> [N, M]``."""
    dtype = features.dtype
    if conv.aggr not in ("add", "mean"):
        out: Tensor = conv.propagate(graph.edge_index, x=features, edge_weight=graph.weight(dtype))
        return out

    def build() -> Propagation:
        weight, target = graph.weight(dtype), graph.edge_index[1]
        if weight is None:
            weight = features.new_ones(target.numel())
        if conv.aggr == "mean":
            ones = torch.ones_like(weight)  # torch.bincount would not say how many it counts
            weight = weight / scatter(ones, target, dim_size=graph.num_nodes, reduce="sum")[target]
        return Propagation(graph.edge_index, weight, graph.num_nodes)

    return graph.operator(("messages", conv.aggr, dtype), build)(features)
