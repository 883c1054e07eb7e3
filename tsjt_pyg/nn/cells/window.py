"""A module of one's own that reads whole windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..recurrences import State, Steps
from ..road_graph import RoadGraph


def run_window(cell: Any, x: Tensor, graph: RoadGraph, state: State | None) -> Steps:
    assert state is None, "such a module reads whole windows and has no state to start from"
    nodes, steps, windows, _ = x.shape
    out = cell(x.permute(2, 1, 0, 3).contiguous(), graph.edge_index, graph.edge_weight)
    each_step = (windows, steps, nodes, cell.out_channels)
    whole_window = (windows, nodes, cell.out_channels)
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    # Axis by axis: torch.export takes a comparison of nodes with steps for a condition on the number of nodes.
    if isinstance(out, Tensor) and out.dim() == 4:
        fits = found == (windows, 1 if out.size(1) == 1 else steps, *whole_window[1:])
    else:
        fits = found == whole_window
    if not fits:
        raise ValueError(
            f"cell ({type(cell).__name__}) must return a tensor [B, T, N, F] = {list(each_step)}, [B, 1, N, F] or "
            f"[B, N, F] = {list(whole_window)} with F = cell.out_channels, found "
            f"{list(found) if isinstance(found, tuple) else found}"
        )
    states = out.unsqueeze(1) if out.dim() == 3 else out
    states = states.permute(1, 2, 0, 3)
    return Steps(states, states[-1], ())
