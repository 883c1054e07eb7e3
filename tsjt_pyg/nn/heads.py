"""From what the cells know at the end of a window to its forecast: at once, or step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from .adapters import adapt, reset_cell
from .cell_stack import cells_of, run_stack, stacked
from .recurrences import State
from .road_graph import RoadGraph


def direct_head(in_channels: int, hidden_channels: int, outputs: int) -> Sequential:
    """An MLP that gives all steps at once and starts at zero."""
    head = Sequential(Linear(in_channels, hidden_channels), ReLU(), Linear(hidden_channels, outputs))
    reset_direct_head(head)
    return head


def reset_direct_head(head: Sequential) -> None:
    """Draws the head anew."""
    for layer in head:
        if isinstance(layer, Linear):
            layer.reset_parameters()
    start_at_zero(head[-1])


def start_at_zero(layer: Module) -> None:
    """Sets a last layer to zero, so that the untrained model forecasts the last value."""
    assert isinstance(layer, Linear)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


class RecurrentHead(Module):
    r"""The decoder of an encoder-decoder: cells that go on from where others stopped.

    .. math::
        \mathbf{h}^{k} = \mathrm{cell}(\mathbf{W} [\, \mathbf{o}^{k - 1} \, \Vert \, \mathbf{c}^k \,] + \mathbf{b},
        \mathbf{h}^{k - 1}), \quad
        \mathbf{o}^k = \mathbf{W}^{\prime} \mathbf{h}^k + \mathbf{b}^{\prime}, \quad \mathbf{o}^0 = \mathbf{0},

    with :math:`\mathbf{c}^k` what is known of step :math:`k`. The readout starts at zero.

    Args:
        cell: A cell or a sequence of them.
        out_channels: Channels of a forecast.
        step_channels: Channels of what is known of each step beforehand.
    """

    def __init__(self, cell: Module | Sequence[Module], out_channels: int, step_channels: int) -> None:
        super().__init__()
        cell = stacked(cell)
        cells = cells_of(cell)
        self.out_channels = out_channels
        self.embedding = Linear(out_channels + step_channels, adapt(cells[0]).in_channels)
        self.cell = cell
        self.readout = Linear(adapt(cells[-1]).out_channels, out_channels)
        start_at_zero(self.readout)

    def reset_parameters(self) -> None:
        self.embedding.reset_parameters()
        for cell in cells_of(self.cell):
            reset_cell(cell)
        start_at_zero(self.readout)

    def forward(
        self,
        states: Sequence[State],
        known: Tensor,
        graph: RoadGraph,
        node_embedding: Tensor | None,
        compile: bool = False,
    ) -> Tensor:
        """``known`` is ``[N, horizon, B, step_channels]``, the forecast ``[N, horizon, B, out_channels]``."""
        cells = cells_of(self.cell)
        output = known.new_zeros(known.size(0), known.size(2), self.out_channels)
        outputs = []
        for step in known.unbind(1):
            x = self.embedding(torch.cat([output, step], dim=-1))
            hidden, states = run_stack(cells, x.unsqueeze(1), graph, states, node_embedding, compile)
            output = self.readout(hidden)
            outputs.append(output)
        return torch.stack(outputs, dim=1)
