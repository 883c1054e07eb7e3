"""Every node on its own: torch's GRU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recurrences import State, Steps
from ..road_graph import RoadGraph


def run_gru(cell: torch.nn.GRU, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    """State: that of each layer, the lowest first."""
    nodes, steps, windows, channels = x.shape
    sequences = x.transpose(0, 1).reshape(steps, nodes * windows, channels)
    if cell.batch_first:
        sequences = sequences.transpose(0, 1)
    start = None if state is None else torch.stack([layer.flatten(0, 1) for layer in state])
    states, last = cell(sequences, start)
    if cell.batch_first:
        states = states.transpose(0, 1)
    handed_on = last.view(cell.num_layers, nodes, windows, -1).unbind(0)
    return Steps(states.reshape(steps, nodes, windows, -1), handed_on[-1], handed_on)
