"""The network of the command line and of comparisons, as plain settings that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._compat import import_temporal
from ..nn import Forecaster, NodePrompting

GRAPH_FREE = "GRU"
CELLS = ("GConvGRU", "GConvLSTM", "GCLSTM", "TGCN", "A3TGCN", "DCRNN", GRAPH_FREE)
_WITH_K = ("GConvGRU", "GConvLSTM", "GCLSTM", "DCRNN")


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a :class:`~tsjt_pyg.nn.Forecaster`.

    Args:
        cell: One of :data:`CELLS`; ``"GRU"`` is graph-free (:class:`torch.nn.GRU`, shared by all nodes).
        hidden_channels: Size of the cell's hidden state, and of what it is given.
        K: Filter size of the cells that have one.
        num_prompts: Slots of the prompt bank; 0: no node prompts.
        prompt_channels: Size of a node prompt.
        history: Steps in.
        horizon: Steps out.
        channels: Channels in and out.

    Raises:
        ValueError: If ``cell`` is unknown or a size is not positive.
    """

    cell: str = "GConvGRU"
    hidden_channels: int = 32
    K: int = 2
    num_prompts: int = 0
    prompt_channels: int = 8
    history: int = 12
    horizon: int = 12
    channels: int = 1

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, found {self.cell!r}")
        for argument in ("hidden_channels", "K", "prompt_channels", "history", "horizon", "channels"):
            if getattr(self, argument) < 1:
                raise ValueError(f"{argument}: expected at least 1, found {getattr(self, argument)}")
        if self.num_prompts < 0:
            raise ValueError(f"num_prompts: expected 0 (no node prompts) or more, found {self.num_prompts}")

    def build(self) -> Forecaster:
        """A new model, drawn from torch's global random generator."""
        size = self.hidden_channels
        cell: torch.nn.Module
        if self.cell == GRAPH_FREE:
            cell = torch.nn.GRU(size, size, batch_first=True)
        else:
            import_temporal()
            from torch_geometric_temporal.nn import recurrent

            extra: dict[str, int] = {"K": self.K} if self.cell in _WITH_K else {}
            if self.cell == "A3TGCN":
                extra = {"periods": self.history}
            cell = getattr(recurrent, self.cell)(size, size, **extra)
        prompting = NodePrompting(self.channels, self.prompt_channels, self.num_prompts) if self.num_prompts else None
        return Forecaster(
            cell,
            history=self.history,
            horizon=self.horizon,
            in_channels=self.channels,
            out_channels=self.channels,
            prompting=prompting,
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain numbers and strings."""
        return asdict(self)
