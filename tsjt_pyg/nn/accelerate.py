"""PyG-Temporal's recurrent cells at the speed of their arithmetic, sharing their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module

from tsjt_pyg.nn.adapters import adapt, temporal_name
from tsjt_pyg.nn.road_graph import check_edges, road_graph

FAST = ("GConvGRU", "GConvLSTM", "GCLSTM", "TGCN", "TGCN2", "A3TGCN", "A3TGCN2", "DCRNN", "BatchedDCRNN")
"""Names of the cells of torch-geometric-temporal that :func:`accelerate` takes."""


def accelerate(cell: Module, compile: bool = False) -> Accelerated:
    r"""A module that computes what a recurrent cell of PyG-Temporal does, for whole batches of windows at once.

    .. math::
        \mathbf{H}^t = \mathrm{cell}(\mathbf{X}^t, \mathcal{G}, \mathbf{H}^{t-1}), \quad \mathbf{H}^0 = \mathbf{0}

    The normalised road network is built once a city (recognised by the identity of its tensors) rather than for every
    gate of every step, the gates share one propagation, and all windows go through one sparse product. Outputs and
    gradients are the cell's own up to rounding.

    The parameters are the cell's own, not copies: ``state_dict()`` has the same keys and tensors, loading into either,
    moving either to a device or precision, and training either does so to both.

    Not reproduced: forward hooks on the cell or its inner layers (their ``forward`` is not called); ``cached=True`` and
    the cache of BatchedDCRNN (the road network of the call at hand is used, always); ``lambda_max`` of Chebyshev cells
    (twice the largest entry of the Laplacian, as by default). Where DCRNN and BatchedDCRNN give NaN, at a node with an
    out-edge and no in-edge, that node gets a self-loop.

    Args:
        cell: GConvGRU, GConvLSTM, GCLSTM, TGCN, TGCN2, A3TGCN, A3TGCN2, DCRNN or BatchedDCRNN of
            torch-geometric-temporal, or :class:`torch.nn.GRU` (every node on its own).
        compile: Compile the recurrence with :func:`torch.compile`. Meant for GPUs; the compilation takes a while and
            happens again where shapes change.

    Shapes:
        - **input:** x :math:`(B, T, N, C)`, edge_index :math:`(2, E)`, edge_weight :math:`(E)` *(optional)*
        - **output:** :math:`(B, T, N, F)`, the hidden state after each step. A3TGCN and A3TGCN2, whose ``T`` is their
          ``periods``, have one state a window: :math:`(B, 1, N, F)`

    Raises:
        TypeError: If the cell is none of these.
        ValueError: If it is a bidirectional :class:`torch.nn.GRU`.

    Example:
        >>> from torch_geometric_temporal.nn.recurrent import GConvGRU
        >>> fast = accelerate(GConvGRU(2, 64, K=2))
        >>> edge_index, edge_weight = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
        >>> fast(torch.zeros(8, 12, 2, 2), edge_index, edge_weight).shape  # [B, T, N, 64]
        torch.Size([8, 12, 2, 64])
    """
    return Accelerated(cell, compile)


class Accelerated(Module):
    """What :func:`accelerate` returns."""

    _cell: Module

    def __init__(self, cell: Module, compile: bool = False) -> None:
        super().__init__()
        kind = temporal_name(cell)
        if kind not in FAST and not isinstance(cell, torch.nn.GRU):
            raise TypeError(
                f"cell must be {', '.join(FAST)} of torch_geometric_temporal or torch.nn.GRU, found "
                f"{type(cell).__module__}.{type(cell).__qualname__}; a Forecaster runs other layers, too"
            )
        adapter = adapt(cell)
        self.in_channels, self.out_channels, self.periods = adapter.in_channels, adapter.out_channels, adapter.periods
        self.compile_recurrence = compile
        # Registered nowhere: a submodule would put its name before every key.
        self.__dict__["_cell"] = cell
        # The very dictionaries, so that a parameter replaced in one module is replaced in the other.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[name] = cell.__dict__[name]
        self._set_run()

    def _set_run(self) -> None:
        run = adapt(self._cell).run
        self._run: Callable[..., Any] = torch.compile(run) if self.compile_recurrence else run

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_run()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if x.dim() != 4 or x.size(3) != self.in_channels or self.periods not in (None, x.size(1)) or x.size(1) == 0:
            steps, name = self.periods or "T", type(self._cell).__name__
            raise ValueError(
                f"x must be [B, {steps}, N, {self.in_channels}] for this {name}, found {list(x.shape)}; one window "
                f"[T, N, C] goes in as x[None]"
            )
        check_edges(edge_index, edge_weight, x.size(2))
        graph = road_graph(edge_index, edge_weight, x.size(2))
        steps = self._run(self._cell, x.permute(2, 1, 0, 3), graph, None)
        return steps.states.permute(2, 0, 1, 3)

    def train(self, mode: bool = True) -> Self:
        self._cell.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._cell._apply(fn, recurse)  # some cells have more to do than their parameters
        return self

    def extra_repr(self) -> str:
        return f"cell={type(self._cell).__name__}, compile={self.compile_recurrence}"
