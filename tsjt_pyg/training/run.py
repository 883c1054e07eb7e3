"""State of a training and its two moves: a step and an evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import Windows
from ..optim import SkewHistory, TargetSkewedOptimizer
from .batches import TrainingBatches
from .distributed import ALONE, OneProcess
from .forecasting import forecast_windows
from .model_state import load_model_state, model_state
from .skipped_steps import MAX_SKIPPED, blame, nan_gradient_unless_finite
from .strategies import StepPlan, Strategy

logger = logging.getLogger(__name__)

AVERAGE_RATE = 0.02
"""Of the running average of the parameters: it looks back over about fifty steps."""


class TrainingRun:
    """A model in training.

    Args:
        model: The model.
        strategy: What every step does.
        steps: Optimizer steps.
        lr: Learning rate.
        base: Optimizer class.
        max_grad_norm: Gradients longer than this are shortened to it.
        batches: Source and target batches.
        validation: Windows that choose the checkpoint.
        averaged: Whether the running average of the parameters after the last step is the result, whatever the
            validation says.
        processes: That train it together, and placed the model.
        max_skipped: Steps in a row that may be left out, because they are not finite, before the training stops.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        strategy: Strategy,
        steps: int,
        lr: float,
        base: type[torch.optim.Optimizer],
        max_grad_norm: float,
        batches: TrainingBatches,
        validation: Windows,
        averaged: bool = False,
        processes: OneProcess = ALONE,
        max_skipped: int = MAX_SKIPPED,
    ) -> None:
        self.processes, self.trained = processes, processes.wrap(model)
        self.model, self.strategy, self.steps = model, strategy, steps
        self.batches, self.validation, self.max_grad_norm = batches, validation, max_grad_norm
        self.optimizer: torch.optim.Optimizer
        self.conflict: SkewHistory | None = None
        if strategy.skewed and batches.sources:
            self.optimizer = TargetSkewedOptimizer(
                model.parameters(),
                base=base,
                lr=lr,
                **strategy.filter_options(),
            )
            self.conflict = SkewHistory(self.optimizer)
        else:
            self.optimizer = base(model.parameters(), lr=lr)  # type: ignore[call-arg]
        self.step = 0
        self.max_skipped, self.skipped_steps, self.skipped_in_a_row = max_skipped, 0, 0
        self.best_step, self.best_loss = 0, math.inf
        self.best_model: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = self._copy() if averaged else {}
        self.log: list[dict[str, float | int | None]] = []
        self._losses: dict[str, list[Tensor]] = {"source_loss": [], "target_loss": []}

    def plan(self) -> StepPlan:
        """What the next step does."""
        plan = self.strategy.plan(self.step, self.steps)
        return plan if self.batches.sources else StepPlan(0.0, 1.0)

    def train_step(self) -> None:
        """A step, unless its gradient is not finite: then nothing changes but the number of the step.

        Raises:
            FloatingPointError: If ``max_skipped`` steps in a row were not; it names the city and the window.
        """
        plan = self.plan()
        losses = {
            source: nan_gradient_unless_finite(self.loss(source))
            for source, weight in ((True, plan.source_weight), (False, plan.target_weight))
            if weight > 0
        }
        self.optimizer.zero_grad()
        if isinstance(self.optimizer, TargetSkewedOptimizer) and len(losses) == 2:
            self.optimizer.backward(*(self.processes.scaled(losses[source]) for source in (True, False)))
        else:
            weights = {True: plan.source_weight, False: plan.target_weight}
            total = torch.stack([weights[source] * loss for source, loss in losses.items()]).sum()
            total = self.processes.scaled(total)
            self.processes.prepare(self.trained, total)
            total.backward()
        taken = self.processes.step(self.optimizer, list(self.model.parameters()), self.max_grad_norm)
        self.step += 1
        if not taken:
            self._skip(list(losses))
            return
        self.skipped_in_a_row = 0
        for source, loss in losses.items():
            self._losses["source_loss" if source else "target_loss"].append(loss.detach())
        # The first steps are forgotten sooner, so that the initial parameters do not linger.
        rate = max(AVERAGE_RATE, 1 - self.step / (self.step + 9))
        now = model_state(self.model)
        for name, value in self.average.items():
            if value.is_floating_point():
                value.lerp_(now[name], rate)
            else:
                value.copy_(now[name])

    def _skip(self, kinds: list[bool]) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"training: {self.skipped_in_a_row} steps in a row were left out, because losses or gradients are not "
                f"finite; the last, step {self.step}: {blame(self.model, self.batches, self.step - 1, kinds)}"
            )

    def loss(self, source: bool) -> Tensor:
        """The loss of the next step's source or target batch."""
        return self.batches.loss(self.trained, self.step, source)

    def start_tuning(self) -> None:
        """Between a pre-training and the tuning that follows it."""
        self.optimizer.state.clear()  # the moments of the one do not belong to the other

    def evaluate(self) -> None:
        """Forecasts the validation day and remembers the model if it is the best so far, or the average as it is."""
        if self.average:
            trained = self._copy()
            load_model_state(self.model, self.average)
        loss = self._validation_loss()
        if self.average:
            load_model_state(self.model, trained)
        means = {
            name: self.processes.mean(torch.stack(v)).mean().item() if v else None for name, v in self._losses.items()
        }
        self._losses = {name: [] for name in self._losses}
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss of {self.validation.city.name} is {loss} after step {self.step} ({means}); lower "
                "lr (--lr)"
            )
        skipped = self.skipped_steps - sum(int(entry["skipped_steps"] or 0) for entry in self.log)
        if skipped:
            logger.warning("%d steps up to step %d were left out: they are not finite", skipped, self.step)
        self.log.append({"step": self.step, **means, "validation_loss": loss, "skipped_steps": skipped})
        if self.average or loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss
            self.best_model = {name: value.clone() for name, value in (self.average or self._copy()).items()}

    def _validation_loss(self) -> float:
        total, count = 0.0, 0
        target = self.batches.target
        forecasts = forecast_windows(
            self.model, self.validation, target.scaler, support=target.support, blocks=target.blocks
        )
        for batch, forecast in forecasts:
            std = target.scaler.std.to(forecast.device)
            error = ((forecast - batch.y).abs() / std).masked_fill(~batch.y_mask, 0.0)
            total += error.sum(dtype=torch.float64).item()
            count += int(batch.y_mask.sum())
        if count == 0:
            raise ValueError(
                f"target: {self.validation.city.name} has no observed reading on its validation day, the last "
                "validation_days of the visible ones; make these longer, or show other days"
            )
        # Processes on different devices differ in the last digits, but have to choose the same checkpoint.
        return self.processes.first(lambda: total / count)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in model_state(self.model).items()}

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, as plain values and tensors; subclasses may add to it. All processes have
        to ask for it."""
        device = next(self.model.parameters()).device
        content = {
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "conflict": {} if self.conflict is None else self.conflict.state_dict(),
            "step": self.step,
            "best_model": self.best_model,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "average": self.average,
            "log": self.log,
            "losses": {name: [self.processes.mean(loss) for loss in v] for name, v in self._losses.items()},
            "grad_scaler": self.processes.scaler_state(),
            "skipped": [self.skipped_steps, self.skipped_in_a_row],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return self.processes.whole(content)

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state` gave."""
        here = model_state(self.model)
        load_model_state(self.model, self.processes.parts_of(state["model"], here))
        self.optimizer.load_state_dict(self.processes.optimizer_parts(state["optimizer"], self.optimizer))
        self.processes.load_scaler_state(state.get("grad_scaler", {}))
        if self.conflict is not None:
            self.conflict.load_state_dict(state["conflict"])
        self.step, self.log = state["step"], state["log"]
        self.skipped_steps, self.skipped_in_a_row = state["skipped"]
        device = next(self.model.parameters()).device
        self._losses = {name: [loss.to(device) for loss in losses] for name, losses in state["losses"].items()}
        self.best_model = self.processes.parts_of(state["best_model"], here)
        self.best_step, self.best_loss = state["best_step"], state["best_loss"]
        average = {name: value.to(device) for name, value in state["average"].items()}
        self.average = self.processes.parts_of(average, here)
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], device)
