"""The default with a part left out, or with one more: what each is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsjt_pyg import Forecaster, NodePrompting
from tsjt_pyg.nn.features import fill, profile_features
from tsjt_pyg.training import STRATEGIES, ModelConfig, Strategy
from tsjt_pyg.training.run import TrainingRun

UNGUARDED = "tsjt without guard"
NO_PROFILE, UNCENTRED, NO_FLAG = "tsjt without profile", "tsjt without centring", "tsjt without weekend flag"
PROMPTS, PROFILE_PROMPTS = "tsjt with prompts", "tsjt with prompts by profile"
NUM_PROMPTS = 16


@dataclass(frozen=True)
class AveragedNormal(Strategy):
    """The filter's normal is the running average of the target gradients (Bloop, 2402.02998)."""

    def filter_options(self) -> dict[str, Any]:
        return {**super().filter_options(), "normal": "ema"}


@dataclass(frozen=True)
class AdamMetric(Strategy):
    r"""The projection in the metric of Adam's step.

    With :math:`P = 1 / (\sqrt{\hat{v}} + \epsilon)`, by which Adam scales a gradient, the source gradient becomes
    :math:`g_s - \min(0, \langle g_t, P g_s \rangle) / \langle g_t, P g_t \rangle \; g_t`: the *step* that it asks for
    does not oppose the target, to first order and but for the momentum.
    """

    def run_type(self) -> type[TrainingRun]:
        return _AdamMetricRun


class _AdamMetricRun(TrainingRun):
    def loss(self, source: bool) -> Tensor:
        loss = super().loss(source)
        if not self.batches.sources:
            return loss
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([g.flatten() for g in found])
        if source:  # asked for first; its part comes with the target's loss
            self.source_gradient = gradient
            return loss.detach()
        scale = torch.cat([self._scale(p).flatten() for p in parameters])
        conflict = (gradient * scale).dot(self.source_gradient).clamp(max=0)
        kappa = conflict / (gradient * scale).dot(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        wanted = self.source_gradient + (1 - kappa) * gradient
        # A term that is 0 and has this gradient, whatever the loss behind it.
        linear = torch.cat([p.flatten() for p in parameters]).dot(wanted)
        return loss.detach() + linear - linear.detach()

    def _scale(self, parameter: Tensor) -> Tensor:
        state = self.optimizer.state.get(parameter)
        if not state:
            return torch.ones_like(parameter)
        group = self.optimizer.param_groups[0]
        correction = 1 - group["betas"][1] ** float(state["step"])
        return 1 / ((state["exp_avg_sq"] / correction).sqrt() + group["eps"])


class _ByProfile(torch.nn.Module):
    """Node prompts whose queries are readings beside the support profile."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.in_channels, self.prompt_channels = config.channels, config.prompt_channels
        self.inner = NodePrompting(3 * config.channels + 1, config.prompt_channels, NUM_PROMPTS)
        self.typical: Tensor

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        prompts = self.inner(torch.cat([x, self.typical], dim=-1), edge_index, edge_weight)
        return torch.cat([x, prompts[..., -self.prompt_channels :]], dim=-1)

    def reset_parameters(self) -> None:
        self.inner.reset_parameters()


class ProfilePrompted(Forecaster):
    """Its node prompts are drawn by readings and support profile, instead of readings alone."""

    def forward(self, x: Tensor, *graph: Any, **known: Any) -> Tensor:
        _, level, _ = fill(x, known.get("x_mask"))
        profile = [known.get(name) for name in ("profile", "profile_mask", "profile_same_type")]
        assert isinstance(self.prompting, _ByProfile)
        self.prompting.typical = profile_features(x, level, self.horizon, *profile, self.center)[:, : x.size(1)]
        return super().forward(x, *graph, **known)


class Flagless(Forecaster):
    """It is not told whether the days of a profile are of the step's own type."""

    def forward(self, *window: Any, profile_same_type: Tensor | None = None, **known: Any) -> Tensor:
        return super().forward(*window, **known)


def _variant(kind: type[Forecaster], config: ModelConfig, **change: Any) -> Forecaster:
    """A forecaster as ``config.build()`` makes it, of another class."""
    arguments = {"cell": config._cell(), "history": config.history, "horizon": config.horizon, "profile": True}
    if kind is ProfilePrompted:
        arguments["prompting"] = _ByProfile(config)
    return kind(**{**arguments, **change})


def variant_network(name: str, config: ModelConfig) -> ModelConfig | Callable[[], torch.nn.Module]:
    """The network of a variant; ``config`` but for those of another network."""
    if name == NO_PROFILE:
        return replace(config, profile=False)
    if name == PROMPTS:
        return replace(config, num_prompts=NUM_PROMPTS)
    if name == UNCENTRED:
        return partial(_variant, Forecaster, config, center=False)
    if name == NO_FLAG:
        return partial(_variant, Flagless, config)
    return partial(_variant, ProfilePrompted, config) if name == PROFILE_PROMPTS else config


_TSJT = STRATEGIES["tsjt"]
_SAME = {"guard": True, "average": True}

VARIANTS: tuple[Strategy, ...] = (
    replace(_TSJT, name=UNGUARDED, guard=False),
    replace(_TSJT, name="tsjt without filter", skewed=False),
    replace(_TSJT, name="tsjt without average", average=False),
    *(replace(_TSJT, name=name) for name in (NO_PROFILE, UNCENTRED, NO_FLAG, PROMPTS, PROFILE_PROMPTS)),
    AveragedNormal("tsjt with averaged normal", skewed=True, **_SAME),
    AdamMetric("tsjt with Adam's metric", **_SAME),
)
