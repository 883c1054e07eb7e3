"""How source and target are combined in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .run import TrainingRun


class StepPlan(NamedTuple):
    """Which losses a step uses, with which weight (0: not computed at all)."""

    source_weight: float
    target_weight: float


@dataclass(frozen=True)
class Strategy:
    """How the source cities take part in training for the target city.

    All strategies train the same network, in one or two phases: in the first
    ``pretrain_share`` of the steps the source loss alone, then ``source_weight * source loss + target_weight * target
    loss``. With ``skewed=True`` the two gradients are not added but filtered by
    :class:`~tsjt_pyg.optim.TargetSkewedOptimizer`, with these weights as its ``gamma_source`` and ``gamma_target``.

    Args:
        name: Name in tables and on the command line.
        source_weight: Weight of the source loss.
        target_weight: Weight of the target loss.
        pretrain_share: Share of the steps, in [0, 1), that come first and see the sources only.
        skewed: Whether the source gradient is filtered.
        guard: Whether each source is judged first, on the visible days of the target alone, and left out where it does
            not help (:func:`~tsjt_pyg.training.guard.judge_sources`). Where none is left, this is ``target_only_2x``:
            the target alone with twice the steps, which are as many gradients.
        step_factor: How many times the optimizer steps it takes. A joint step needs two gradients: ``target_only`` with
            twice the steps costs what a joint training does.
        average: Whether, where sources take part, the running average of the parameters after the last step is the
            result instead of the parameters on the way that the validation day liked best. Learning from the target
            alone needs that choice: a few days are overfitted soon.

    Raises:
        ValueError: If a weight is negative, both are 0, or ``pretrain_share`` is outside [0, 1).
    """

    name: str
    source_weight: float = 1.0
    target_weight: float = 1.0
    pretrain_share: float = 0.0
    skewed: bool = False
    guard: bool = False
    average: bool = False
    step_factor: int = 1

    def __post_init__(self) -> None:
        if self.source_weight < 0 or self.target_weight < 0 or self.source_weight + self.target_weight == 0:
            raise ValueError(
                f"strategy {self.name!r}: expected weights >= 0, not both 0; found source_weight={self.source_weight}, "
                f"target_weight={self.target_weight}"
            )
        if not 0 <= self.pretrain_share < 1:
            raise ValueError(f"strategy {self.name!r}: expected pretrain_share in [0, 1), found {self.pretrain_share}")
        if self.step_factor < 1:
            raise ValueError(f"strategy {self.name!r}: expected step_factor >= 1, found {self.step_factor}")
        if self.skewed and not (self.source_weight > 0 and self.target_weight > 0):
            raise ValueError(f"strategy {self.name!r}: skewed=True filters two gradients, so both weights must be > 0")

    @property
    def uses_sources(self) -> bool:
        """Whether it needs source cities."""
        return self.source_weight > 0 or self.pretrain_share > 0

    def filter_options(self) -> dict[str, Any]:
        """Arguments of the :class:`~tsjt_pyg.optim.TargetSkewedOptimizer` of a skewed strategy."""
        return {"gamma_source": self.source_weight, "gamma_target": self.target_weight}

    def run_type(self) -> type[TrainingRun]:
        """What carries the training out; a subclass of this may bring steps of another kind."""
        from .run import TrainingRun

        return TrainingRun

    def pretrain_steps(self, steps: int) -> int:
        """How many of ``steps`` see the sources only before the target."""
        return round(self.pretrain_share * steps)

    def plan(self, step: int, steps: int) -> StepPlan:
        """The losses of step ``step`` (from 0) of ``steps``."""
        if step < self.pretrain_steps(steps):
            return StepPlan(1.0, 0.0)
        return StepPlan(self.source_weight, self.target_weight)


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("target_only", source_weight=0.0),
        Strategy("target_only_2x", source_weight=0.0, step_factor=2),
        Strategy("source_only", target_weight=0.0),
        Strategy("pooled"),
        Strategy("finetune", source_weight=0.0, pretrain_share=0.5),
        Strategy("tsjt", skewed=True, guard=True, average=True),
        Strategy("tsjt_paper", source_weight=0.001, target_weight=0.2, skewed=True),
    )
}
"""Strategies by name."""


def get_strategy(strategy: str | Strategy) -> Strategy:
    """The strategy of this name, or the strategy itself.

    Raises:
        ValueError: If there is none of this name.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, or a Strategy; found {strategy!r}")
    return STRATEGIES[strategy]


def get_strategies(strategies: Iterable[str | Strategy]) -> list[Strategy]:
    """Several strategies with distinct names."""
    found = [get_strategy(strategy) for strategy in strategies]
    names = [strategy.name for strategy in found]
    if len(set(names)) != len(names):
        raise ValueError(f"strategies: names must be distinct, found {names}")
    if not names:
        raise ValueError("strategies: expected at least one")
    return found
