"""Chebyshev cells: GConvGRU, GConvLSTM, GCLSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..basis import Basis, Term, itself
from ..propagation import Propagation
from ..recurrences import GRUWeights, LSTMWeights, State, Steps, gru_states, lstm_states
from ..road_graph import RoadGraph
from .weights import biases


def run_gconv_gru(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    basis = _chebyshev_basis(cell.conv_x_z, x, graph)
    input_convs = (cell.conv_x_z, cell.conv_x_r, cell.conv_x_h)
    state_convs = (cell.conv_h_z, cell.conv_h_r, cell.conv_h_h)
    weights = GRUWeights(
        inputs=_chebyshev_weight(*input_convs),
        bias=biases(*input_convs) + biases(*state_convs),
        state_gates=_chebyshev_weight(*state_convs[:2]),
        state_candidate=_chebyshev_weight(state_convs[2]),
    )
    return gru_states(x, basis, basis, weights, state)


def run_gconv_lstm(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    basis = _chebyshev_basis(cell.conv_x_i, x, graph)
    input_convs = (cell.conv_x_i, cell.conv_x_f, cell.conv_x_c, cell.conv_x_o)
    state_convs = (cell.conv_h_i, cell.conv_h_f, cell.conv_h_c, cell.conv_h_o)
    own_bias = torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o], dim=1).squeeze(0)
    weights = LSTMWeights(
        inputs=_chebyshev_weight(*input_convs),
        bias=biases(*input_convs) + biases(*state_convs) + own_bias,
        state=_chebyshev_weight(*state_convs),
        peepholes=torch.cat([cell.w_c_i, cell.w_c_f, cell.w_c_o]),
    )
    return lstm_states(x, basis, basis, weights, state)


def run_gc_lstm(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    convs = (cell.conv_i, cell.conv_f, cell.conv_c, cell.conv_o)
    own_bias = torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o], dim=1).squeeze(0)
    weights = LSTMWeights(
        inputs=torch.cat([cell.W_i, cell.W_f, cell.W_c, cell.W_o], dim=1),
        bias=biases(*convs) + own_bias,
        state=_chebyshev_weight(*convs),
        peepholes=None,
    )
    return lstm_states(x, itself, _chebyshev_basis(cell.conv_i, x, graph), weights, state)


def _chebyshev_basis(conv: Any, x: Tensor, graph: RoadGraph) -> Basis:
    order = len(conv.lins)
    if order == 1:
        return itself

    def build() -> Propagation:
        # The layer's own normalisation, so that every choice of it ("sym", "rw", None) gives the layer's own numbers.
        index, norm = conv.__norm__(
            graph.edge_index, graph.num_nodes, graph.weight(x.dtype), conv.normalization, None, dtype=x.dtype
        )
        return Propagation(index, norm, graph.num_nodes)

    laplacian = graph.operator(("laplacian", conv.normalization, x.dtype), build)
    return Basis((Term(laplacian, 0), *(Term(laplacian, k - 1, k - 2) for k in range(2, order))))


def _chebyshev_weight(*convs: Any) -> Tensor:
    """``[K * C, F * len(convs)]``."""
    return torch.cat([torch.cat([lin.weight for lin in conv.lins], dim=1) for conv in convs], dim=0).t()
