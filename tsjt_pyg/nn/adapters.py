"""How each recurrent cell is run over a batch of windows, with the cell's own parameters.

The cells of torch-geometric-temporal take one window and one step at a time, and build the normalised graph anew for
each gate of each step. Here a whole batch of windows of one city goes through at once and the graph is built once. The
numbers are the cell's own (up to rounding), and so are the parameters: nothing is copied, ``state_dict`` is unchanged.

Cells are recognised by the name of their class and its package, so that this module works without
torch-geometric-temporal as long as only :class:`torch.nn.GRU` or modules of one's own are used. A module of one's own
has ``in_channels`` and ``out_channels`` and reads whole windows, see :func:`adapt`.

Not reproduced: forward hooks on a cell's inner layers (their ``forward`` is not called) and ``cached=True`` (the graph
of the call at hand is used, always). A3TGCN creates its ``_attention`` on the GPU where one is visible; move the model
as a whole (``model.to(device)``) before its first use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn.inits import glorot, zeros

from .cells.agcrn import EmbeddedGraph, run_agcrn
from .cells.chebyshev import run_gc_lstm, run_gconv_gru, run_gconv_lstm
from .cells.diffusion import run_batched_dcrnn, run_dcrnn
from .cells.dygr_encoder import run_dygr_encoder
from .cells.evolve_gcn import run_evolve_gcno
from .cells.gcn import run_a3tgcn, run_tgcn
from .cells.gru import run_gru
from .cells.lrgcn import run_lrgcn
from .cells.mstgcn import mstgcn_history, run_mstgcn
from .cells.window import run_window
from .recurrences import State, Steps
from .road_graph import RoadGraph, road_graph

Run = Callable[[Any, Tensor, RoadGraph, "State | None"], Steps]

_PACKAGE = "torch_geometric_temporal."


class CellAdapter(NamedTuple):
    """A recognised cell.

    Args:
        in_channels: Channels the cell reads at each step.
        out_channels: Channels of its hidden state.
        periods: The only history the cell can read, or ``None`` if it reads any.
        run: Cell, x ``[N, T, B, C]``, road network and the state to start from (``None``: zero) to what it
            makes of them.
        state: Channels of each tensor that a further step starts from; empty for a cell that cannot go on from where
            it stopped.
        embedding_channels: Channels of the node embedding the cell needs, or ``None`` if it needs none.
        mean: Whether the window is summarised by the mean over its steps instead of the last of them, because nodes
            have no state that would gather what came before.
    """

    in_channels: int
    out_channels: int
    periods: int | None
    run: Run
    state: tuple[int, ...] = ()
    embedding_channels: int | None = None
    mean: bool = False


def adapt(cell: Module) -> CellAdapter:
    """The adapter of a cell.

    Besides the cells known by name, any module is one that has ``in_channels``, ``out_channels`` and
    ``forward(x, edge_index, edge_weight)`` from ``x [B, T, N, C]`` to ``[B, T, N, F]`` (a state for each step),
    ``[B, 1, N, F]`` or ``[B, N, F]`` (one for the window).

    Raises:
        TypeError: If the cell is none of these.
        ValueError: If it is one, set up in a way that has no final state for each node, or its sizes are no numbers.
    """
    known: Any = cell
    if isinstance(cell, torch.nn.GRU):
        if cell.bidirectional:
            raise ValueError("cell is a bidirectional torch.nn.GRU; a forecast reads forward: use bidirectional=False")
        state = (cell.hidden_size,) * cell.num_layers
        return CellAdapter(cell.input_size, cell.hidden_size, None, run_gru, state)
    name = temporal_name(cell)
    if name is None:
        return _own_adapter(cell)
    run = _RUNS[name]
    if name == "DyGrEncoder":
        state = (cell.lstm_out_channels,) * (2 * known.lstm_num_layers)
        return CellAdapter(known.conv_out_channels, known.lstm_out_channels, None, run, state)
    if name == "EvolveGCNO":
        return CellAdapter(known.in_channels, known.in_channels, None, run, mean=True)
    if name == "MSTGCN":
        channels = known._blocklist[0]._residual_conv.in_channels, known._final_conv.out_channels
        return CellAdapter(*channels, mstgcn_history(cell), run)
    return CellAdapter(
        known.in_channels,
        known.out_channels,
        getattr(known, "periods", None),
        run,
        (known.out_channels,) * _STATES.get(name, 0),
        known.embedding_dimensions if name == "AGCRN" else None,
    )


def _own_adapter(cell: Module) -> CellAdapter:
    kind = type(cell)
    found = f"found {kind.__module__}.{kind.__qualname__}"
    sizes = [getattr(cell, name, None) for name in ("in_channels", "out_channels")]
    if any(base.__module__.startswith(_PACKAGE) for base in kind.__mro__) or None in sizes:
        raise TypeError(
            f"cell must be torch.nn.GRU or one of {', '.join(TEMPORAL_CELLS)} of torch_geometric_temporal (a subclass "
            f"with methods of its own is a cell of its own), or a module with in_channels, out_channels and "
            f"forward(x [B, T, N, C], edge_index, edge_weight); {found}"
        )
    for name, size in zip(("in_channels", "out_channels"), sizes, strict=True):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"cell.{name} must be a positive integer, found {size!r} ({kind.__qualname__})")
    try:
        inspect.signature(cell.forward).bind("x", "edge_index", "edge_weight")
    except TypeError as error:
        raise TypeError(
            f"cell.forward must take (x [B, T, N, C], edge_index, edge_weight), {found} with "
            f"forward{inspect.signature(cell.forward)}"
        ) from error
    return CellAdapter(sizes[0], sizes[1], None, run_window)  # type: ignore[arg-type]


def hidden_states(
    cell: Module,
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    node_embedding: Tensor | None = None,
) -> list[Tensor]:
    """The hidden state of every node after each step of a batch of windows of one city.

    Shapes:
        - **input:** x ``[B, T, N, C]``, edge_index ``[2, E]``, edge_weight ``[E]`` *(optional)*, node_embedding
          ``[N, D]`` *(AGCRN only)*
        - **output:** ``T`` tensors ``[B, N, F]``; a single one for a cell which has a state for the window only
    """
    steps = _run(cell, x, edge_index, edge_weight, node_embedding)
    return list(steps.states.transpose(1, 2).unbind(0))


def final_state(
    cell: Module,
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    node_embedding: Tensor | None = None,
) -> Tensor:
    """What is known of every node at the end of each window: its last state, or for EvolveGCNO, whose nodes have
    none, the mean of its outputs over the steps.

    Shapes:
        - **input:** as in :func:`hidden_states`
        - **output:** ``[B, N, F]``
    """
    steps = _run(cell, x, edge_index, edge_weight, node_embedding)
    return summary(adapt(cell), steps).transpose(0, 1)


def _run(
    cell: Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, node_embedding: Tensor | None
) -> Steps:
    adapter = adapt(cell)
    if adapter.periods not in (None, x.size(1)):
        raise ValueError(f"cell reads windows of exactly {adapter.periods} steps (periods), x has {x.size(1)}")
    graph = embedded(adapter, road_graph(edge_index, edge_weight, x.size(2)), node_embedding)
    return adapter.run(cell, x.permute(2, 1, 0, 3), graph, None)


def summary(adapter: CellAdapter, steps: Steps) -> Tensor:
    """The states of a window as one."""
    return steps.states.mean(dim=0) if adapter.mean else steps.last


def embedded(adapter: CellAdapter, graph: RoadGraph, node_embedding: Tensor | None) -> RoadGraph:
    """The road network with the embedding of its nodes, where the cell needs it.

    Raises:
        ValueError: If there is none, or it is of another size.
    """
    if adapter.embedding_channels is None:
        return graph
    shape = [graph.num_nodes, adapter.embedding_channels]
    if node_embedding is None or list(node_embedding.shape) != shape:
        found = None if node_embedding is None else list(node_embedding.shape)
        raise ValueError(f"node_embedding must be {shape} (nodes, the cell's embedding_dimensions), found {found}")
    return EmbeddedGraph(graph, node_embedding)


def reset_cell(cell: Module) -> None:
    """Draws a cell's parameters anew, the way its constructor does (most cells have no ``reset_parameters``).

    Raises:
        ValueError: If a module of the user's own has parameters and no ``reset_parameters``.
    """
    _reset(cell, "cell", False)


def _reset(module: Module, path: str, covered: bool) -> None:
    """``covered``: whether a module around this one draws its parameters."""
    methods = [getattr(module, name) for name in _RESETS if hasattr(module, name)]
    for name, child in module.named_children():
        _reset(child, f"{path}.{name}", covered or bool(methods))
    for method in methods:  # after what lies inside: MSTGCN draws its layers' parameters itself
        method()
    known: Any = module
    if isinstance(getattr(module, "_attention", None), torch.nn.Parameter):
        torch.nn.init.uniform_(known._attention)
    elif type(module).__name__ == "AVWGCN":
        glorot(known.weights_pool)
        zeros(known.bias_pool)
    elif not methods and not covered and any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"{path} ({type(module).__name__}) has parameters and no reset_parameters to draw them anew")


def temporal_name(cell: Module) -> str | None:
    """The name of a cell of torch-geometric-temporal that is known, ``None`` for anything else."""
    for base in type(cell).__mro__:
        if base.__module__.startswith(_PACKAGE) and base.__name__ in _RUNS:
            # torch's parametrizations subclass a module and leave its methods alone: still the same cell.
            own = [name for name, of in vars(base).items() if callable(of) and not name.startswith("__")]
            return base.__name__ if all(getattr(type(cell), name) is getattr(base, name) for name in own) else None
    return None


_RESETS = (
    "reset_parameters",
    "_set_parameters",
    "_reset_parameters",
    "_DConv__reset_parameters",
    "_BatchedDConv__reset_parameters",
)

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
    "LRGCN": run_lrgcn,
    "DyGrEncoder": run_dygr_encoder,
    "AGCRN": run_agcrn,
    "EvolveGCNO": run_evolve_gcno,
    "MSTGCN": run_mstgcn,
}

_STATES = {
    **dict.fromkeys(("GConvGRU", "TGCN", "TGCN2", "DCRNN", "BatchedDCRNN", "AGCRN"), 1),
    **dict.fromkeys(("GConvLSTM", "GCLSTM", "LRGCN"), 2),
}
"""How many tensors of the hidden state's size a cell hands on."""

TEMPORAL_CELLS = tuple(_RUNS)
"""Names of the cells of torch-geometric-temporal that are known."""

GOING_ON = ("torch.nn.GRU", "DyGrEncoder", *(name for name in TEMPORAL_CELLS if name in _STATES))
"""Names of the cells that can go on from where another one stopped."""
