"""Training of one model for one target city."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data import City, CityPairLoader, StandardScaler, Windows
from ..data.pairs import check_comparable, shuffled_index
from ..optim import SkewHistory, TargetSkewedOptimizer
from .checkpoint import (
    BEST,
    CONFIG,
    LAST,
    check_same_run,
    describe_city,
    load_checkpoint,
    save_checkpoint,
    save_json,
)
from .forecasting import forecast_scaled, forecast_windows
from .losses import masked_mae
from .strategies import Strategy, get_strategy

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of finished steps and of all steps."""


@dataclass
class FitResult:
    """What :func:`fit` found.

    Args:
        model: The model, holding the chosen checkpoint's parameters.
        scaler: Fitted on the target's visible training days.
        strategy: What was trained.
        best_step: Optimizer steps of the chosen checkpoint.
        validation_loss: Its masked MAE on the validation day, in standard deviations of the training days.
        log: One entry an evaluation: step, source and target loss since the last, validation loss.
        stats: :meth:`~tsjt_pyg.optim.TargetSkewedOptimizer.stats`, empty for strategies without a filter.
        conflict: Cosine, conflict, norms and kappa of every step, as from
            :meth:`~tsjt_pyg.optim.SkewHistory.to_frame`; None for strategies without a filter.
        seconds: Wall time of this call.
    """

    model: torch.nn.Module
    scaler: StandardScaler
    strategy: Strategy
    best_step: int = 0
    validation_loss: float = math.inf
    log: list[dict[str, float | int | None]] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    conflict: pd.DataFrame | None = None
    seconds: float = 0.0


def training_split(visible: City, validation_days: float, history: int) -> tuple[City, City]:
    """``(training, validation)`` of a city's visible days.

    The last ``validation_days`` validate. Their windows' horizons lie in them entirely; their histories may reach back,
    as a forecast's would, but no window that is learned from reaches into them.

    Raises:
        ValueError: If the visible days are too few.
    """
    if not math.isfinite(validation_days):
        raise ValueError(f"validation_days: expected a number of days, found {validation_days}")
    steps = round(validation_days * visible.steps_per_day)
    border = visible.num_steps - steps
    if steps < 1 or border < 1:
        raise ValueError(
            f"visible days: {visible.name} has {visible.num_steps / visible.steps_per_day:.2f} visible days and the "
            f"last {validation_days:g} of them choose the checkpoint, so none is left to learn from; show more days "
            "(visible_days, --visible-days) or set validation_days (--validation-days) below that"
        )
    return visible.between(0, border), visible.between(max(0, border - history), visible.num_steps)


def fit(
    model: torch.nn.Module,
    target: City,
    sources: Sequence[City] = (),
    strategy: str | Strategy = "tsjt",
    *,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
    base: type[torch.optim.Optimizer] = torch.optim.Adam,
    max_grad_norm: float = 5.0,
    validation_days: float = 1.0,
    evaluations: int = 15,
    output: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Trains ``model`` to forecast ``target`` with the help of ``sources``.

    It is given the *visible* days of the target and cannot see more. Their last day chooses the checkpoint; statistics
    come from the days before it. Each source has its own statistics, of its whole series. On the CPU the same arguments
    (with a model of the same parameters) give the same bits, resumed or not.

    Args:
        model: A :class:`~tsjt_pyg.nn.Forecaster`, or a module with its ``forward``, ``history`` and ``horizon``.
        target: The visible days of the target city, as from :meth:`City.few_shot`.
        sources: The source cities, with the target's channels and interval.
        strategy: Name or :class:`Strategy`.
        steps: Optimizer steps.
        batch_size: Windows a step, of the source and of the target.
        lr: Learning rate of ``base``.
        seed: Seed of the loaders.
        base: Optimizer class.
        max_grad_norm: Gradients longer than this are shortened to it.
        validation_days: How much of the end of the visible days chooses the checkpoint.
        evaluations: The validation day is forecast before the first step, every ``steps // evaluations`` steps, at the
            end of a pre-training and after the last step.
        output: Folder for ``last.pt``, ``best.pt`` and ``config.json``; created where absent. Default: nothing is
            written.
        checkpoint_every: Steps from one ``last.pt`` to the next.
        resume: Continue from ``output``'s ``last.pt`` where there is one.
        config: What ``output`` should hold beside the arguments of this function, as plain numbers and strings.
        progress: Called after every step.

    Raises:
        ValueError: If cities do not fit each other or the model, or the visible days are too few.
        FloatingPointError: If the loss is no longer finite.
    """
    started = time.perf_counter()
    strategy = get_strategy(strategy)
    for argument, value in (("steps", steps), ("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"{argument}: expected at least 1, found {value}")
    if not lr > 0:
        raise ValueError(f"lr: expected a positive learning rate, found {lr}")
    if evaluations < 1:
        raise ValueError(f"evaluations: expected at least 1, found {evaluations}")
    check_sources(target, sources, strategy)
    history, horizon = int(model.history), int(model.horizon)  # type: ignore[arg-type]
    training, validation = training_split(target, validation_days, history)
    run = _Run(
        model=model,
        strategy=strategy,
        steps=steps,
        lr=lr,
        base=base,
        max_grad_norm=max_grad_norm,
        batches=_Batches(training, sources if strategy.uses_sources else (), history, horizon, batch_size, seed),
        validation=validation.windows(history, horizon),
    )
    settings = {
        **(config or {}),
        "strategy": asdict(strategy),
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "base": base.__name__,
        "max_grad_norm": max_grad_norm,
        "validation_days": validation_days,
        "evaluations": evaluations,
        "target": {"name": target.name, "fingerprint": target.fingerprint()},
        "sources": [{"name": city.name, "fingerprint": city.fingerprint()} for city in sources],
    }
    folder = None if output is None else _Folder(Path(output), settings, target, resume)
    if folder is not None and resume and (folder.path / LAST).is_file():
        run.load(folder.load())
    every, pretrain = max(1, steps // evaluations), strategy.pretrain_steps(steps)
    model.train()
    try:
        while run.step < steps:
            if run.step == 0:
                run.evaluate()  # the untrained model, which forecasts the last value, competes too
            if run.step == pretrain > 0:
                run.optimizer.state.clear()  # moments of the pre-training do not belong to the tuning
            run.train_step()
            if run.step % every == 0 or run.step in (pretrain, steps):
                run.evaluate()
            if folder is not None and run.step % checkpoint_every == 0 and run.step < steps:
                folder.save(run)
            if progress is not None:
                progress(run.step, steps)
    except KeyboardInterrupt:
        # Not saved here: the interrupt may have come between two halves of a step.
        if folder is not None and folder.saved:
            logger.warning(
                "stopped at step %d of %d; resume=True continues from %s", run.step, steps, folder.path / LAST
            )
        raise
    if folder is not None:
        folder.save(run)
    model.load_state_dict(run.best_model)
    return FitResult(
        model,
        run.batches.scaler,
        strategy,
        run.best_step,
        run.best_loss,
        run.log,
        run.optimizer.stats() if isinstance(run.optimizer, TargetSkewedOptimizer) else {},
        None if run.conflict is None else run.conflict.to_frame(),
        time.perf_counter() - started,
    )


def check_sources(target: City, sources: Sequence[City], strategy: Strategy) -> None:
    """Raises a ValueError if the strategy needs sources and there are none, or one does not fit the target."""
    if strategy.uses_sources and not sources:
        raise ValueError(f"sources: strategy {strategy.name!r} learns from source cities, found none")
    for city in sources:
        check_comparable(city, target, "sources")


class _Batches:
    """Training batches as a pure function of the step, with each city's own scaler."""

    def __init__(
        self, training: City, sources: Sequence[City], history: int, horizon: int, batch_size: int, seed: int
    ) -> None:
        self.scaler = StandardScaler().fit(training.readings, training.mask)
        self.source_scalers = [StandardScaler().fit(city.readings, city.mask) for city in sources]
        self.target_windows: Windows = training.windows(history, horizon)
        windows = [city.windows(history, horizon) for city in sources]
        self.pairs = CityPairLoader(windows, self.target_windows, batch_size, seed) if windows else None
        self.batch_size, self.seed = batch_size, seed

    def loss(self, model: torch.nn.Module, step: int, source: bool) -> Tensor:
        """The masked MAE of step ``step``'s source or target batch, in scaled units."""
        device = next(model.parameters()).device
        scaler = self.scaler
        if source:
            assert self.pairs is not None
            batch, which = self.pairs.source_batch(step)
            scaler = self.source_scalers[which]
        else:
            batch = self.target_windows.batch(
                shuffled_index(len(self.target_windows), self.batch_size, step, self.seed)
            )
        batch = batch.to(device)
        return masked_mae(forecast_scaled(model, batch, scaler), scaler.transform(batch.y), batch.y_mask)


class _Run:
    """State of a training run and its two moves: a step and an evaluation."""

    def __init__(
        self,
        model: torch.nn.Module,
        strategy: Strategy,
        steps: int,
        lr: float,
        base: type[torch.optim.Optimizer],
        max_grad_norm: float,
        batches: _Batches,
        validation: Windows,
    ) -> None:
        self.model, self.strategy, self.steps = model, strategy, steps
        self.batches, self.validation, self.max_grad_norm = batches, validation, max_grad_norm
        self.optimizer: torch.optim.Optimizer
        self.conflict: SkewHistory | None = None
        if strategy.skewed:
            self.optimizer = TargetSkewedOptimizer(
                model.parameters(),
                base=base,
                gamma_source=strategy.source_weight,
                gamma_target=strategy.target_weight,
                lr=lr,
            )
            self.conflict = SkewHistory(self.optimizer)
        else:
            self.optimizer = base(model.parameters(), lr=lr)  # type: ignore[call-arg]
        self.step = 0
        self.best_step, self.best_loss = 0, math.inf
        self.best_model: dict[str, Tensor] = {}
        self.log: list[dict[str, float | int | None]] = []
        self._losses: dict[str, list[Tensor]] = {"source_loss": [], "target_loss": []}

    def train_step(self) -> None:
        plan = self.strategy.plan(self.step, self.steps)
        losses = {
            source: self.batches.loss(self.model, self.step, source)
            for source, weight in ((True, plan.source_weight), (False, plan.target_weight))
            if weight > 0
        }
        self.optimizer.zero_grad()
        if isinstance(self.optimizer, TargetSkewedOptimizer) and len(losses) == 2:
            self.optimizer.backward(losses[True], losses[False])
        else:
            weights = {True: plan.source_weight, False: plan.target_weight}
            torch.stack([weights[source] * loss for source, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        for source, loss in losses.items():
            self._losses["source_loss" if source else "target_loss"].append(loss.detach())
        self.step += 1

    def evaluate(self) -> None:
        """Forecasts the validation day and remembers the model if it is the best so far."""
        total, count = 0.0, 0
        std = self.batches.scaler.std
        for batch, forecast in forecast_windows(self.model, self.validation, self.batches.scaler):
            error = ((forecast - batch.y).abs() / std.to(forecast.device)).masked_fill(~batch.y_mask, 0.0)
            total += error.sum(dtype=torch.float64).item()
            count += int(batch.y_mask.sum())
        if count == 0:
            raise ValueError(f"target: {self.validation.city.name} has no observed reading on its validation day")
        loss = total / count
        means = {name: torch.stack(v).mean().item() if v else None for name, v in self._losses.items()}
        self._losses = {name: [] for name in self._losses}
        if not math.isfinite(loss) or any(m is not None and not math.isfinite(m) for m in means.values()):
            raise FloatingPointError(
                f"the loss is not finite after step {self.step} ({means}, validation {loss}); lower lr (--lr)"
            )
        self.log.append({"step": self.step, **means, "validation_loss": loss})
        if loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss
            self.best_model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "conflict": {} if self.conflict is None else self.conflict.state_dict(),
            "step": self.step,
            "best_model": self.best_model,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "log": self.log,
            "losses": self._losses,
            "rng": torch.get_rng_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.conflict is not None:
            self.conflict.load_state_dict(state["conflict"])
        self.step, self.log = state["step"], state["log"]
        device = next(self.model.parameters()).device
        self._losses = {name: [loss.to(device) for loss in losses] for name, losses in state["losses"].items()}
        self.best_model, self.best_step, self.best_loss = state["best_model"], state["best_step"], state["best_loss"]
        torch.set_rng_state(state["rng"])


class _Folder:
    """A run's folder."""

    def __init__(self, path: Path, settings: dict[str, Any], target: City, resume: bool) -> None:
        self.path, self.settings, self.city = path, settings, describe_city(target)
        self.saved = False
        try:
            json.dumps(settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: expected plain numbers and strings that JSON can hold ({error})") from error
        if (path / LAST).is_file() and not resume:
            raise ValueError(
                f"output: {path} holds a run already; resume=True (--resume) continues it, another folder keeps both"
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"output: {path} is a file, expected a folder")

    def save(self, run: _Run) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        about = {"config": self.settings, "city": self.city, "scaler": run.batches.scaler.state_dict()}
        save_json(self.path / CONFIG, self.settings)
        save_checkpoint(self.path / LAST, {**run.state(), **about})
        best = {"model": run.best_model, "step": run.best_step, "validation_loss": run.best_loss}
        save_checkpoint(self.path / BEST, {**best, **about})
        self.saved = True

    def load(self) -> dict[str, Any]:
        content = load_checkpoint(self.path, prefer=LAST)
        check_same_run(content["config"], self.settings, self.path / LAST)
        self.saved = True
        return content
