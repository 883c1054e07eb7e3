"""Every node on its own: torch's GRU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recurrences import State, Steps
from ..road_graph import RoadGraph


def run_gru(cell: torch.nn.GRU, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    nodes, steps, windows, channels = x.shape
    sequences = x.transpose(0, 1).reshape(steps, nodes * windows, channels)
    if cell.batch_first:
        sequences = sequences.transpose(0, 1)
    states, last = cell(sequences, None if state is None else state[0])
    if cell.batch_first:
        states = states.transpose(0, 1)
    return [step.view(nodes, windows, -1) for step in states.contiguous().unbind(0)], (last,)
