"""Transfer methods of others, as strategies that :func:`tsjt_pyg.evaluation.compare` trains like its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import binary_cross_entropy_with_logits

from tsjt_pyg.data.pairs import shuffled_index
from tsjt_pyg.optim import TargetSkewedOptimizer
from tsjt_pyg.training import Strategy
from tsjt_pyg.training.run import TrainingRun
from tsjt_pyg.training.strategies import StepPlan

TORCHJD: dict[str, tuple[str, dict[str, float]]] = {
    "PCGrad": ("PCGradWeighting", {}),
    "GradVac": ("GradVacWeighting", {"beta": 0.01}),
    "CAGrad": ("CAGradWeighting", {"c": 0.5}),
    "UPGrad": ("UPGradWeighting", {}),
    "IMTL-G": ("IMTLGWeighting", {}),
}
"""Names in tables, and weightings of :mod:`torchjd.aggregation` with the constants of their papers."""


@dataclass(frozen=True)
class Torchjd(Strategy):
    """Joint training whose two gradients are combined by a rule of torchjd."""

    def filter_options(self) -> dict[str, Any]:
        import torchjd.aggregation

        weighting, constants = TORCHJD[self.name]
        return {"filter": getattr(torchjd.aggregation, weighting)(**constants)}

    def run_type(self) -> type[TrainingRun]:
        return _TorchjdRun


class _TorchjdRun(TrainingRun):
    """Also keeps what the rule remembers: GradVac's means."""

    @property
    def _weighting(self) -> torch.nn.Module:
        assert isinstance(self.optimizer, TargetSkewedOptimizer)
        return cast(torch.nn.Module, self.optimizer.skew_filter.rule)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "weighting": dict(self._weighting.state_dict())}

    def load(self, state: Mapping[str, Any]) -> None:
        for means in state["weighting"].values():
            self._weighting(torch.eye(len(means), dtype=means.dtype))  # of a new rule, it makes the place for them
        self._weighting.load_state_dict(state["weighting"])
        super().load(state)


@dataclass(frozen=True)
class FineTune(Strategy):
    """Half of the steps on the sources, then the target, with another learning rate or the head alone.

    Args:
        lr_factor: Of the learning rate, in the second half.
        head_only: Whether only the head is tuned.
    """

    lr_factor: float = 1.0
    head_only: bool = False

    def run_type(self) -> type[TrainingRun]:
        return _FineTuneRun


class _FineTuneRun(TrainingRun):
    def start_tuning(self) -> None:
        super().start_tuning()
        assert isinstance(self.strategy, FineTune)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.strategy.lr_factor
        self._freeze()

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        if self.step > self.strategy.pretrain_steps(self.steps):
            self._freeze()

    def _freeze(self) -> None:
        assert isinstance(self.strategy, FineTune)
        if self.strategy.head_only:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith("head."))
                parameter.grad = None


@dataclass(frozen=True)
class Proportional(Strategy):
    """One city a step, drawn as often as its share of all windows says: what shuffling all data together does."""

    def run_type(self) -> type[TrainingRun]:
        return _ProportionalRun


class _ProportionalRun(TrainingRun):
    def _city(self) -> int:
        """Number of the city whose turn it is: a source, or, last, the target."""
        cities = [*self.batches.sources, self.batches.target]
        windows = torch.tensor([len(city.windows) for city in cities], dtype=torch.float32)
        generator = torch.Generator().manual_seed(self.batches.seed * 1_000_003 + self.step)
        return int(torch.multinomial(windows, 1, generator=generator))

    def plan(self) -> StepPlan:
        source = float(self._city() < len(self.batches.sources))
        return StepPlan(source, 1.0 - source)

    def loss(self, source: bool) -> Tensor:
        return _of_source(self, self._city()) if source else super().loss(source)


def _of_source(run: TrainingRun, which: int) -> Tensor:
    """The loss of a batch of this source at the run's step."""
    batches, city = run.batches, run.batches.sources[which]
    index = shuffled_index(len(city.windows), batches.batch_size, run.step, batches.seed)
    return city.loss(run.model, index, batches.seed * 1_000_003 + run.step)


@dataclass(frozen=True)
class Reptile(Strategy):
    """Meta-learning of an initialisation on the sources, then fine-tuning on the target (Nichol et al., 1803.02999).

    A task is one source city; after ``inner`` steps on it the parameters move by ``rate`` of the way there.
    """

    inner: int = 5
    rate: float = 0.5

    def run_type(self) -> type[TrainingRun]:
        return _ReptileRun


class _ReptileRun(TrainingRun):
    before: Mapping[str, Tensor]

    def train_step(self) -> None:
        strategy = self.strategy
        assert isinstance(strategy, Reptile)
        meta = strategy.pretrain_steps(self.steps)
        if self.step < meta and self.step % strategy.inner == 0:
            self.before = self._copy()
            self.optimizer.state.clear()
        super().train_step()
        if self.step <= meta and (self.step % strategy.inner == 0 or self.step == meta):
            now = self.model.state_dict()
            self.model.load_state_dict({k: v.lerp(now[k], strategy.rate) for k, v in self.before.items()})

    def state(self) -> dict[str, Any]:
        return {**super().state(), "before": dict(getattr(self, "before", {}))}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.before = state["before"]

    def loss(self, source: bool) -> Tensor:
        if not source:
            return super().loss(source)
        assert isinstance(self.strategy, Reptile)
        return _of_source(self, self.step // self.strategy.inner % len(self.batches.sources))


@dataclass(frozen=True)
class DomainAdversarial(Strategy):
    """Joint training of states in which a discriminator cannot tell the cities apart (Ganin et al., 1505.07818).

    Args:
        adversary: Weight of the reversed gradient.
    """

    adversary: float = 0.1

    def run_type(self) -> type[TrainingRun]:
        return _AdversarialRun


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grad, None


class _AdversarialRun(TrainingRun):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        hidden = self.model.head[-1].in_features  # type: ignore[index,union-attr]
        device = next(self.model.parameters()).device
        self.discriminator = Sequential(Linear(hidden, hidden), ReLU(), Linear(hidden, 1)).to(device)
        self.optimizer.add_param_group({"params": list(self.discriminator.parameters())})
        self.hidden = hidden
        self.state_seen: Tensor | None = None
        self.model.head.register_forward_pre_hook(self._remember)  # type: ignore[union-attr]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "discriminator": self.discriminator.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.discriminator.load_state_dict(state["discriminator"])

    def _remember(self, _: torch.nn.Module, given: tuple[Tensor]) -> None:
        self.state_seen = given[0][..., : self.hidden]

    def loss(self, source: bool) -> Tensor:
        found = super().loss(source)
        assert self.state_seen is not None
        assert isinstance(self.strategy, DomainAdversarial)
        told = self.discriminator(_Reverse.apply(self.state_seen, self.strategy.adversary))
        return found + binary_cross_entropy_with_logits(told, torch.full_like(told, float(source)))


_TWICE: dict[str, Any] = {"source_weight": 0.0, "pretrain_share": 0.5, "step_factor": 2}
"""Of one gradient a step: twice the steps are the compute of a joint training."""

RIVALS: tuple[Strategy, ...] = (
    Strategy("pooled, averaged", average=True),
    Strategy("pooled .3:1", source_weight=0.3),
    Strategy("pooled .1:1", source_weight=0.1),
    Proportional("by size 2x", step_factor=2),
    FineTune("finetune 2x", **_TWICE),
    FineTune("finetune 2x, lr .3", lr_factor=0.3, **_TWICE),
    FineTune("finetune 2x, lr .1", lr_factor=0.1, **_TWICE),
    FineTune("finetune 2x, head", head_only=True, **_TWICE),
    Reptile("reptile 2x", **_TWICE),
    DomainAdversarial("domain-adversarial"),
    *(Torchjd(name, skewed=True) for name in TORCHJD),
)
