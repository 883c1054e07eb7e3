"""PyG-Temporal's cells as shipped, called over windows ``[B, T, N, C]`` the way each allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from tsjt_pyg._compat import import_temporal

BATCHED = "batched"
WINDOW_BY_WINDOW = "window by window"


class Peer(NamedTuple):
    """A cell: how it is made (for so many steps) and called, its polynomials, and how many gates it has.

    ``input_terms`` and ``state_terms`` are the polynomials of the road network which are multiplied by a weight.
    ``propagations`` are the sparse products of input and of state (the latter for each time its basis is needed).
    """

    make: Callable[[int, int], nn.Module]
    way: str
    gates: int
    input_terms: int
    state_terms: int
    propagations: tuple[int, int]

    def forward_backward(self, cell: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> None:
        """All states of all windows, and the gradient of their sum."""
        if self.way == BATCHED:
            zero = x.new_zeros(x.size(0), x.size(2), cell.out_channels)  # type: ignore[arg-type]
            state: tuple[Any, ...] = (zero, zero)[: 1 + (self.gates == 4)]
            _sum_of_states(cell, x.unbind(1), edge_index, edge_weight, state).backward()
            return
        for window in x:
            if hasattr(cell, "periods"):
                cell(window.permute(1, 2, 0), edge_index, edge_weight).sum().backward()
            else:
                _sum_of_states(cell, window.unbind(0), edge_index, edge_weight, ()).backward()


def _sum_of_states(cell: nn.Module, steps: Any, edge_index: Tensor, edge_weight: Tensor, state: tuple[Any, ...]) -> Any:
    total: Any = 0.0
    for step in steps:
        out = cell(step, edge_index, edge_weight, *state)
        state = out if isinstance(out, tuple) else (out,)
        total = total + state[0].sum()
    return total


def peers() -> dict[str, Peer]:
    """By name; ``K`` is 2."""
    cells = import_temporal().nn.recurrent
    return {
        "GConvGRU": Peer(lambda size, _: cells.GConvGRU(size, size, 2), BATCHED, 3, 2, 2, (1, 2)),
        "GConvLSTM": Peer(lambda size, _: cells.GConvLSTM(size, size, 2), BATCHED, 4, 2, 2, (1, 1)),
        "GCLSTM": Peer(lambda size, _: cells.GCLSTM(size, size, 2), BATCHED, 4, 1, 2, (0, 1)),
        "TGCN": Peer(lambda size, _: cells.TGCN(size, size), WINDOW_BY_WINDOW, 3, 1, 1, (1, 0)),
        # Its state is zero at every step: no reset gate, and nothing to multiply the state with.
        "A3TGCN": Peer(lambda size, steps: cells.A3TGCN(size, size, steps), WINDOW_BY_WINDOW, 2, 1, 0, (1, 0)),
        "DCRNN": Peer(lambda size, _: cells.DCRNN(size, size, 2), WINDOW_BY_WINDOW, 3, 3, 3, (2, 4)),
    }
