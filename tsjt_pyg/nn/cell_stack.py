"""Cells on top of each other: each reads the states of the one below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from .accelerate import FAST
from .adapters import GOING_ON, CellAdapter, Run, adapt, embedded, summary, temporal_name
from .recurrences import State
from .road_graph import RoadGraph


def stacked(cell: Module | Sequence[Module]) -> Module:
    """A single cell as it is, several as a list of modules."""
    return cell if isinstance(cell, Module) else ModuleList(cell)


def cells_of(stack: Module) -> list[Module]:
    """The cells from the lowest to the highest."""
    return list(stack) if isinstance(stack, ModuleList) else [stack]


def check_stack(cells: Sequence[Module], history: int) -> list[CellAdapter]:
    """The adapters of cells that fit each other.

    Raises:
        TypeError: If one is not known.
        ValueError: If there is none, two do not fit or one reads another history; says which.
    """
    if not cells:
        raise ValueError("cell must be a module or a sequence of at least one, found an empty sequence")
    adapters = [adapt(cell) for cell in cells]
    for cell, adapter in zip(cells, adapters, strict=True):
        if adapter.periods not in (None, history):
            what = "len_input" if type(cell).__name__ == "MSTGCN" else "periods"
            raise ValueError(
                f"history must equal the {what} of {type(cell).__name__} ({adapter.periods}), found {history}"
            )
    _check_sizes(cells, adapters, "cell")
    for number, (cell, adapter) in enumerate(zip(cells[:-1], adapters, strict=False)):
        if adapter.periods is not None:
            raise ValueError(_one_state(number, cell))
    return adapters


def check_decoder(
    decoder: Sequence[Module], cells: Sequence[Module], adapters: Sequence[CellAdapter]
) -> list[CellAdapter]:
    """The adapters of a decoder that can go on from where the cells stopped.

    Raises:
        TypeError: If one of its cells is not known.
        ValueError: If they are not as many as the cells, have no state to start from, or one of another size.
    """
    if len(decoder) != len(cells):
        raise ValueError(
            f"decoder must have as many cells as cell ({len(cells)}), each of which starts from the final state of "
            f"one of them, found {len(decoder)}"
        )
    own = [adapt(cell) for cell in decoder]
    _check_sizes(decoder, own, "decoder")
    for number, (above, below) in enumerate(zip(own, adapters, strict=True)):
        for name, cell, adapter in (("cell", cells[number], below), ("decoder", decoder[number], above)):
            if not adapter.state:
                raise ValueError(
                    f"{name} {number} ({type(cell).__name__}) has no state to hand over, which an encoder-decoder "
                    f"needs. Use one of {', '.join(GOING_ON)}, or decoder=None"
                )
        if above.state != below.state:
            raise ValueError(
                f"decoder {number} ({type(decoder[number]).__name__}) must start from a state like that of cell "
                f"{number} ({type(cells[number]).__name__}), of {list(below.state)} channels, found "
                f"{list(above.state)}; use the same kind of cell with the same out_channels"
            )
    return own


def run_stack(
    cells: Sequence[Module],
    x: Tensor,
    graph: RoadGraph,
    starts: Sequence[State] | None = None,
    node_embedding: Tensor | None = None,
    compile: bool = False,
) -> tuple[Tensor, list[State]]:
    """What the highest cell knows at the end, and what each would go on from.

    Args:
        cells: Checked cells.
        x: ``[N, T, B, C]``.
        graph: The road network.
        starts: What each cell starts from; default: zero.
        node_embedding: ``[N, D]``, for the cells that need one.
        compile: Compile the cells which :func:`tsjt_pyg.nn.accelerate` takes, but for :class:`torch.nn.GRU`.

    Shapes:
        - **output:** ``[N, B, F]``, and ``[N, B, F]`` each
    """
    ends: list[State] = []
    steps = x.size(1)
    for number, cell in enumerate(cells):
        adapter = adapt(cell)
        start = None if starts is None else starts[number]
        run = _compiled(adapter.run) if compile and temporal_name(cell) in FAST else adapter.run
        found = run(cell, x, embedded(adapter, graph, node_embedding), start)
        ends.append(found.end)
        if number + 1 < len(cells):
            if len(found.states) != steps:
                raise ValueError(_one_state(number, cell))
            x = found.states.transpose(0, 1)
    return summary(adapter, found), ends


@cache
def _compiled(run: Run) -> Run:
    """Once for all models: a model that kept what was compiled could not be pickled."""
    return torch.compile(run)


def _check_sizes(cells: Sequence[Module], adapters: Sequence[CellAdapter], name: str) -> None:
    for number, (below, above) in enumerate(pairwise(adapters)):
        if below.out_channels != above.in_channels:
            raise ValueError(
                f"{name} {number + 1} ({type(cells[number + 1]).__name__}) must read the {below.out_channels} channels "
                f"of {name} {number} ({type(cells[number]).__name__}), found {above.in_channels} input channels"
            )


def _one_state(number: int, cell: Module) -> str:
    return (
        f"cell {number} ({type(cell).__name__}) gives one state for the whole window, and the cell above it reads one "
        f"for each step; put it last"
    )
