"""Node-adaptive cell: AGCRN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..recurrences import State, Steps
from ..road_graph import RoadGraph


class EmbeddedGraph(RoadGraph):
    """A road network with an embedding of its nodes, ``[N, channels]``.

    AGCRN's graph is made of the embedding alone; it does not look at the roads.
    """

    def __init__(self, graph: RoadGraph, embedding: Tensor) -> None:
        super().__init__(graph.edge_index, graph.edge_weight, graph.num_nodes)
        self.embedding = embedding


def run_agcrn(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    r"""With :math:`\mathbf{A} = \mathrm{softmax}(\mathrm{ReLU}(\mathbf{E} \mathbf{E}^{\top}))`, dense by its nature,
    and weights and biases :math:`\mathbf{E} \mathbf{W}` of each node's own."""
    if not isinstance(graph, EmbeddedGraph):
        raise ValueError("AGCRN needs embeddings of the nodes: run it in a Forecaster with a city_embedding")
    embedding = graph.embedding.to(x.dtype)
    similarity = torch.softmax(torch.relu(embedding @ embedding.t()), dim=1)
    channels, order = x.size(-1), cell.K
    convs = (cell._gate, cell._update)
    pools = [torch.einsum("nd,dkio->nkio", embedding, conv.weights_pool) for conv in convs]
    of_input = torch.cat([pool[:, :, :channels] for pool in pools], dim=-1).flatten(1, 2)
    gates_of_state, candidate_of_state = (pool[:, :, channels:].flatten(1, 2) for pool in pools)
    bias = torch.cat([embedding @ conv.bias_pool for conv in convs], dim=-1)

    inputs = torch.baddbmm(bias[:, None], _basis(x, similarity, order).flatten(1, 2), of_input)
    inputs = inputs.view(*x.shape[:-1], -1)
    hidden = inputs.new_zeros(x.size(0), x.size(2), cell.out_channels) if state is None else state[0]
    states = []
    for step in inputs.unbind(1):
        of_gates, of_candidate = step.split([2 * cell.out_channels, cell.out_channels], dim=-1)
        gates = torch.sigmoid(of_gates + _basis(hidden, similarity, order) @ gates_of_state)
        reset, update = gates.chunk(2, dim=-1)
        basis = _basis(reset * hidden, similarity, order)
        hidden = torch.lerp(torch.tanh(of_candidate + basis @ candidate_of_state), hidden, update)
        states.append(hidden)
    return Steps(torch.stack(states), hidden, (hidden,))


def _basis(features: Tensor, similarity: Tensor, order: int) -> Tensor:
    """Chebyshev polynomials of the similarity, side by side: ``[N, ..., C] -> [N, ..., K * C]``."""
    flat = features.flatten(1)
    terms = [flat, similarity @ flat]
    if order == 1:  # PyG-Temporal's sum broadcasts the one weight over both
        terms = [terms[0] + terms[1]]
    for _ in range(2, order):
        terms.append(2.0 * (similarity @ terms[-1]) - terms[-2])
    return torch.cat([term.view(features.shape) for term in terms], dim=-1)
