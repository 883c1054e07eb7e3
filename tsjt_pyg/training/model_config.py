"""The network of the command line and of comparisons, as plain settings that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._compat import import_temporal
from ..data.arguments import check_counts
from ..nn import Forecaster, GraphWaveNet, NodePrompting
from ..nn.adapters import TEMPORAL_CELLS

GRAPH_FREE = "GRU"
CELLS = (*(name for name in TEMPORAL_CELLS if name != "AGCRN"), "GraphWaveNet", GRAPH_FREE)
"""All cells but AGCRN, which has parameters of its own for every node of every city."""


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a :class:`~tsjt_pyg.nn.Forecaster`.

    Args:
        cell: One of :data:`CELLS`; ``"GRU"`` is graph-free (:class:`torch.nn.GRU`, shared by all nodes).
        hidden_channels: Size of the cell's hidden state, and of what it is given.
        K: Filter size of the cells that have one; DyGrEncoder's number of convolutions, GraphWaveNet's steps of
            diffusion.
        num_prompts: Slots of the prompt bank; 0: no node prompts.
        prompt_channels: Size of a node prompt.
        history: Steps in.
        horizon: Steps out.
        channels: Channels in and out.
        profile: Whether it sees a support profile: each node's typical day, made of a few other days.

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
    profile: bool = True

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, found {self.cell!r}")
        sizes = ("hidden_channels", "K", "prompt_channels", "history", "horizon", "channels")
        check_counts(**{argument: getattr(self, argument) for argument in sizes})
        check_counts(least=0, num_prompts=self.num_prompts)  # 0: no node prompts

    def build(self) -> Forecaster:
        """A new model, drawn from torch's global random generator.

        It carries these settings as its attribute ``config``, so that :func:`~tsjt_pyg.training.fit` keeps them in its
        checkpoints, and :class:`~tsjt_pyg.training.SavedModel` builds the model again.
        """
        prompting = NodePrompting(self.channels, self.prompt_channels, self.num_prompts) if self.num_prompts else None
        model = Forecaster(
            self._cell(),
            history=self.history,
            horizon=self.horizon,
            in_channels=self.channels,
            out_channels=self.channels,
            prompting=prompting,
            profile=self.profile,
        )
        model.config = self  # type: ignore[assignment]
        return model

    def _cell(self) -> torch.nn.Module:
        size = self.hidden_channels
        if self.cell == GRAPH_FREE:
            return torch.nn.GRU(size, size, batch_first=True)
        if self.cell == "GraphWaveNet":
            return GraphWaveNet(size, size, hidden_channels=size, K=self.K)
        nn = import_temporal().nn
        match self.cell:
            case "TGCN":
                settings: dict[str, Any] = {}
            case "TGCN2":
                settings = {"batch_size": 1}  # which it does not look at
            case "A3TGCN":
                settings = {"periods": self.history}
            case "A3TGCN2":
                settings = {"periods": self.history, "batch_size": 1}
            case "LRGCN":
                settings = {"num_relations": 2, "num_bases": 2}  # light and heavy edges
            case "DyGrEncoder":
                return nn.recurrent.DyGrEncoder(size, self.K, "mean", size, 1)
            case "EvolveGCNO":
                return nn.recurrent.EvolveGCNO(size)
            case "MSTGCN":
                return nn.attention.MSTGCN(2, size, self.K, size, size, 1, size, self.history)
            case _:
                settings = {"K": self.K}
        cell: torch.nn.Module = getattr(nn.recurrent, self.cell)(size, size, **settings)
        return cell

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain numbers and strings."""
        return asdict(self)
