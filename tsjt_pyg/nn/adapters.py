"""How each recurrent cell is run over a batch of windows, with the cell's own parameters.

The cells of torch-geometric-temporal take one window and one step at a time, and build the normalised graph anew for
each gate of each step. Here a whole batch of windows of one city goes through at once and the graph is built once. The
numbers are the cell's own (up to rounding), and so are the parameters: nothing is copied, ``state_dict`` is unchanged.

Cells are recognised by the name of their class and its package, so that this module works without
torch-geometric-temporal as long as only :class:`torch.nn.GRU` is used.

Not reproduced: forward hooks on a cell's inner layers (their ``forward`` is not called) and ``cached=True`` (the graph
of the call at hand is used, always). A3TGCN creates its ``_attention`` on the GPU where one is visible; move the model
as a whole (``model.to(device)``) before its first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from .cells.chebyshev import run_gc_lstm, run_gconv_gru, run_gconv_lstm
from .cells.diffusion import run_batched_dcrnn, run_dcrnn
from .cells.gcn import run_a3tgcn, run_tgcn
from .cells.gru import run_gru
from .recurrences import State, Steps
from .road_graph import RoadGraph, road_graph

Run = Callable[[Any, Tensor, RoadGraph, "State | None"], Steps]


class CellAdapter(NamedTuple):
    """A recognised cell.

    Args:
        in_channels: Channels the cell reads at each step.
        out_channels: Channels of its hidden state.
        periods: The only history the cell can read, or ``None`` if it reads any.
        run: Cell, x ``[N, T, B, C]``, road network and the state to start from (``None``: zero) to the states after
            each step, ``[N, B, F]`` each (a single one for a cell which has a state for the window only), and the
            state that a further step would start from.
    """

    in_channels: int
    out_channels: int
    periods: int | None
    run: Run


def adapt(cell: Module) -> CellAdapter:
    """The adapter of a cell.

    Raises:
        TypeError: If the cell is none of those supported.
        ValueError: If it is one, set up in a way that has no final state for each node.
    """
    if isinstance(cell, torch.nn.GRU):
        if cell.bidirectional:
            raise ValueError("cell is a bidirectional torch.nn.GRU; a forecast reads forward: use bidirectional=False")
        return CellAdapter(cell.input_size, cell.hidden_size, None, run_gru)
    run = _temporal_run(cell)
    if run is None:
        kind = type(cell)
        raise TypeError(
            f"cell must be torch.nn.GRU or one of {', '.join(_RUNS)} of torch_geometric_temporal (a subclass with a "
            f"forward of its own is a cell of its own); found {kind.__module__}.{kind.__qualname__}"
        )
    known: Any = cell
    return CellAdapter(known.in_channels, known.out_channels, getattr(known, "periods", None), run)


def hidden_states(cell: Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> list[Tensor]:
    """The hidden state of every node after each step of a batch of windows of one city.

    Shapes:
        - **input:** x ``[B, T, N, C]``, edge_index ``[2, E]``, edge_weight ``[E]`` *(optional)*
        - **output:** ``T`` tensors ``[B, N, F]``; for A3TGCN a single one
    """
    adapter = adapt(cell)
    if adapter.periods not in (None, x.size(1)):
        raise ValueError(f"cell reads windows of exactly {adapter.periods} steps (periods), x has {x.size(1)}")
    graph = road_graph(edge_index, edge_weight, x.size(2))
    states, _ = adapter.run(cell, x.permute(2, 1, 0, 3), graph, None)
    return [state.transpose(0, 1) for state in states]


def final_state(cell: Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
    """The hidden state of every node at the end of each window.

    Shapes:
        - **input:** x ``[B, T, N, C]``, edge_index ``[2, E]``, edge_weight ``[E]`` *(optional)*
        - **output:** ``[B, N, F]``
    """
    return hidden_states(cell, x, edge_index, edge_weight)[-1]


def reset_cell(cell: Module) -> None:
    """Draws a cell's parameters anew, the way its constructor does (most cells have no ``reset_parameters``)."""
    for module in cell.modules():
        for name in ("reset_parameters", "_set_parameters", "_DConv__reset_parameters"):
            if hasattr(module, name):
                getattr(module, name)()
        if isinstance(getattr(module, "_attention", None), torch.nn.Parameter):
            torch.nn.init.uniform_(module._attention)  # type: ignore[arg-type]


def _temporal_run(cell: Module) -> Run | None:
    for base in type(cell).__mro__:
        if base.__module__.startswith("torch_geometric_temporal.") and base.__name__ in _RUNS:
            # torch's parametrizations subclass a module and leave its forward alone: still the same cell.
            return _RUNS[base.__name__] if type(cell).forward is base.forward else None  # type: ignore[attr-defined]
    return None


_RUNS: dict[str, Run] = {
    "GConvGRU": run_gconv_gru,
    "GConvLSTM": run_gconv_lstm,
    "GCLSTM": run_gc_lstm,
    "TGCN": run_tgcn,
    "TGCN2": run_tgcn,
    "A3TGCN": run_a3tgcn,
    "A3TGCN2": run_a3tgcn,
    "DCRNN": run_dcrnn,
    "BatchedDCRNN": run_batched_dcrnn,
}
