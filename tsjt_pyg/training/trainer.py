"""Training of one model for one target city."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data import City, NodeBlocks, StandardScaler, SupportProfile
from ..data.arguments import check_counts, check_number
from ..data.city_check import check_readings
from ..data.pairs import check_comparable
from ..notebook import facts
from ..optim import TargetSkewedOptimizer
from .batches import TrainingBatches
from .distributed import ALONE, OneProcess
from .guard import SourceVerdict, guard_steps, judge_sources
from .model_config import ModelConfig
from .model_state import check_channels, load_model_state, model_state, unwrapped, window_size
from .run import TrainingRun
from .run_folder import RunFolder
from .skipped_steps import MAX_SKIPPED
from .strategies import Strategy, get_strategy

logger = logging.getLogger(__name__)

MOST_SUPPORT_DAYS = 7
"""Support days of a training window at most: a week says what a typical day is, more would only take time."""

VALIDATION_WINDOWS = 48
"""Windows that choose the checkpoint, evenly spread: neighbours in time say nearly the same."""

LARGEST_LR = 1e6
"""Far beyond all use; torch fails on step sizes that float32 cannot hold."""

Progress = Callable[[int, int], None]
"""Called with the number of finished steps and of all steps."""


class TrainingStopped(KeyboardInterrupt):
    """:func:`fit` was asked to stop, and did after a whole step and its checkpoint; the message says how to go on."""


@dataclass
class FitResult:
    """What :func:`fit` found.

    Args:
        model: The model, holding the chosen checkpoint's parameters.
        scaler: Fitted on the target's visible training days.
        strategy: What was trained.
        best_step: Optimizer steps of the chosen checkpoint.
        validation_loss: Its masked MAE on the validation day, in standard deviations of the training days.
        log: One entry an evaluation: step, source and target loss since the last, validation loss, skipped steps since
            the last.
        stats: :meth:`~tsjt_pyg.optim.TargetSkewedOptimizer.stats`, empty for strategies without a filter.
        conflict: Cosine, conflict, norms and kappa of every step, as from
            :meth:`~tsjt_pyg.optim.SkewHistory.to_frame`; None for strategies without a filter.
        seconds: Wall time of this call.
        support: The visible days, for forecasts by a model that takes a support profile; None for any other, and for
            one that learned from a single day alone, whose own windows have no profile to learn from.
        last_model: State of the model after the last step.
        verdicts: What the guard found of each source; empty for strategies without one.
        guard_seconds: Of ``seconds``, what the guard took.
        skipped_steps: Steps that were left out because a loss or gradient was not finite.
        blocks: The blocks of the target's nodes that it was trained in, to forecast it in; None where every batch held
            the whole city.
    """

    model: torch.nn.Module
    scaler: StandardScaler
    strategy: Strategy
    best_step: int = 0
    validation_loss: float = math.inf
    log: list[dict[str, float | int | None]] = field(default_factory=list, repr=False)
    stats: dict[str, float] = field(default_factory=dict)
    conflict: pd.DataFrame | None = field(default=None, repr=False)
    seconds: float = 0.0
    support: SupportProfile | None = None
    last_model: dict[str, Tensor] = field(default_factory=dict, repr=False)
    verdicts: list[SourceVerdict] = field(default_factory=list)
    guard_seconds: float = 0.0
    skipped_steps: int = 0
    blocks: NodeBlocks | None = None

    def _repr_html_(self) -> str:
        last = self.log[-1] if self.log else {}
        losses = [f"{name.removesuffix('_loss')} {last[name]:.4g}" for name in _LOSSES if last.get(name) is not None]
        pairs: list[tuple[str, object]] = [
            ("strategy", self.strategy.name),
            ("best step", f"{self.best_step} of {last.get('step', self.best_step)}"),
            ("validation loss", f"{self.validation_loss:.4g} (of the best step)"),
            ("last losses", ", ".join(losses)),
            ("skipped steps", self.skipped_steps),
            ("seconds", f"{self.seconds:.1f}"),
            *(("source", verdict) for verdict in self.verdicts),
            *self.stats.items(),
        ]
        return facts((name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in pairs)


_LOSSES = ("source_loss", "target_loss", "validation_loss")


def training_split(visible: City, validation_days: float, history: int) -> tuple[City, City]:
    """``(training, validation)`` of a city's visible days.

    The last ``validation_days`` validate. Their windows' horizons lie in them entirely; their histories may reach back,
    as a forecast's would, but no window that is learned from reaches into them.

    Raises:
        ValueError: If the visible days are too few.
    """
    check_number("validation_days", validation_days, "a number of days")
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
    max_skipped: int = MAX_SKIPPED,
    validation_days: float = 1.0,
    evaluations: int = 15,
    nodes_per_batch: int | None = None,
    num_hops: int = 1,
    output: str | Path | None = None,
    checkpoint_every: int = 100,
    keep: int = 2,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    processes: OneProcess = ALONE,
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
        max_skipped: Steps in a row that may be left out, because a loss or gradient is not finite, before the training
            stops with an error. What is left out changes neither parameters nor moments nor their running average.
        validation_days: How much of the end of the visible days chooses the checkpoint.
        evaluations: The validation day is forecast before the first step, every ``steps // evaluations`` steps, at the
            end of a pre-training and after the last step; a strategy of twice the steps does it twice as often.
        nodes_per_batch: A city, target or source, of more nodes is learned from, and forecast, in blocks of at most so
            many (:class:`~tsjt_pyg.data.NodeBlocks`): every step sees one block of it, and errors are those of the
            block's core. Default: every batch holds the whole city.
        num_hops: Width of the halo around the core of a block.
        output: Folder for ``last.pt``, ``best.pt`` and ``config.json``; created where absent. Default: nothing is
            written.
        checkpoint_every: Steps from one ``last.pt`` to the next.
        keep: How many of them are kept: ``last.pt`` and, before it, ``last-1.pt``, ``last-2.pt``, …
        resume: Continue from ``output``'s newest good checkpoint where there is one; a warning names damaged ones.
        config: What ``output`` should hold beside the arguments of this function, as plain numbers and strings. The
            settings of a model that :class:`ModelConfig` built are there in any case, as ``"model"``.
        progress: Called after every step.
        stop: Asked after every step whether to stop there, for example because a signal came; then the step's
            checkpoint is written first.
        processes: That train together (:class:`~tsjt_pyg.training.Processes`): all of them call this with the same
            arguments and get the same result, and the first one writes the files.

    Raises:
        ValueError: If cities do not fit each other or the model, the visible days are too few, or what should be
            resumed is damaged or another run; the error says what differs.
        FloatingPointError: If ``max_skipped`` steps in a row were not finite, or the validation loss is not; it names
            the city and the window.
        OSError: If a checkpoint cannot be written; those before it stay good.
        TrainingStopped: If ``stop`` said so.
    """
    started = time.perf_counter()
    check_cities(target, sources)
    strategy = get_strategy(strategy)
    check_counts(
        steps=steps,
        batch_size=batch_size,
        checkpoint_every=checkpoint_every,
        keep=keep,
        evaluations=evaluations,
        max_skipped=max_skipped,
    )
    check_counts(least=0, seed=seed)
    if not isinstance(lr, Real) or not 0 < lr <= LARGEST_LR:
        raise ValueError(f"lr: expected a positive learning rate, at most {LARGEST_LR:g}, found {lr!r}")
    check_number("max_grad_norm", max_grad_norm, "a positive length", above=0)
    check_base(base)
    if batch_size < processes.size:
        raise ValueError(
            f"batch_size: expected at least one window for each of {processes.size} processes, found {batch_size}"
        )
    size: dict[str, Any] = {"nodes_per_batch": nodes_per_batch, "num_hops": num_hops}
    check_blocks(model, **size)
    check_sources(target, sources, strategy)
    for argument, cities in (("target", [target]), ("sources", sources if strategy.uses_sources else [])):
        for city in cities:
            check_readings(city, argument)
    check_channels(model, target)
    history, horizon = window_size(model)
    training, validation = training_split(target, validation_days, history)
    # Numbers of numpy, as sweeps have them, would be written to a checkpoint that is not loaded again.
    steps, batch_size, seed, evaluations = map(int, (steps, batch_size, seed, evaluations))
    lr, max_grad_norm, validation_days = map(float, (lr, max_grad_norm, validation_days))
    built_by = getattr(unwrapped(model), "config", None)
    settings = {
        **({"model": built_by.as_dict()} if isinstance(built_by, ModelConfig) else {}),
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
        **({} if nodes_per_batch is None else size),
        **({} if processes.number_format == "32" else {"precision": processes.number_format}),
        "target": {"name": target.name, "fingerprint": target.fingerprint()},
        "sources": [{"name": city.name, "fingerprint": city.fingerprint()} for city in sources],
    }
    processes.check_same(
        {
            **settings,
            "output": output is not None,
            "checkpoint_every": checkpoint_every,
            "resume": resume,
            "max_skipped": max_skipped,
        }
    )
    placed = processes.place(model)
    folder = None
    if output is not None:
        folder = processes.first(lambda: RunFolder(Path(output), settings, target, resume, keep))
    with folder or nullcontext():
        saved = processes.first(partial(folder.load, model)) if folder is not None and folder.resumes else None
        every = max(1, steps // evaluations)
        steps *= strategy.step_factor
        optimizing: dict[str, Any] = {"lr": lr, "base": base, "max_grad_norm": max_grad_norm}
        most = max(1, min(MOST_SUPPORT_DAYS, round(target.num_steps / target.steps_per_day)))
        verdicts: list[SourceVerdict] = []
        guard_seconds = 0.0
        taken = list(sources) if strategy.uses_sources else []
        if taken and strategy.guard:
            if saved is not None:
                verdicts = [SourceVerdict(**verdict) for verdict in saved["verdicts"]]
            else:
                few = guard_steps(steps, len(taken))
                verdicts = judge_sources(
                    model, target, taken, steps=few, batch_size=batch_size, seed=seed, most=most, **optimizing, **size
                )
                verdicts = processes.first(partial(list, verdicts))
                guard_seconds = time.perf_counter() - started
            taken = [city for city, verdict in zip(taken, verdicts, strict=True) if verdict.weight > 0]
            for verdict in verdicts:
                logger.info("%s", verdict)
            if not taken:
                steps *= 2  # as many gradients, without the sources' half of them
        batches = TrainingBatches(model, training, taken, most, batch_size, seed, **size, processes=processes)
        stride = max(1, (validation.num_steps - history - horizon + 1) // VALIDATION_WINDOWS)
        run = strategy.run_type()(
            model=placed,
            strategy=strategy,
            steps=steps,
            batches=batches,
            validation=validation.windows(history, horizon, stride),
            averaged=strategy.average and bool(taken),
            processes=processes,
            max_skipped=max_skipped,
            **optimizing,
        )
        if saved is not None:
            run.load(saved)
        _train(run, folder, verdicts, every, checkpoint_every, progress, stop)
    last_model = {name: value.detach().clone() for name, value in processes.whole(model_state(placed)).items()}
    load_model_state(model, processes.whole(run.best_model))
    return FitResult(
        model,
        batches.target.scaler,
        strategy,
        run.best_step,
        run.best_loss,
        run.log,
        run.optimizer.stats() if isinstance(run.optimizer, TargetSkewedOptimizer) else {},
        None if run.conflict is None else run.conflict.to_frame(),
        time.perf_counter() - started,
        support=None if batches.target.support is None else SupportProfile(target),
        last_model=last_model,
        verdicts=verdicts,
        guard_seconds=guard_seconds,
        blocks=batches.target.blocks,
        skipped_steps=run.skipped_steps,
    )


def _train(
    run: TrainingRun,
    folder: RunFolder | None,
    verdicts: list[SourceVerdict],
    every: int,
    checkpoint_every: int,
    progress: Progress | None,
    stop: Callable[[], bool] | None,
) -> None:
    """The steps that are left of a run, with an evaluation after ``every`` of them and what is written of them."""
    steps, processes = run.steps, run.processes
    pretrain = run.strategy.pretrain_steps(steps)

    def save(folder: RunFolder) -> None:
        processes.first(partial(folder.save, run, run.state(), verdicts))

    run.model.train()
    try:
        while run.step < steps:
            if run.step == 0:
                run.evaluate()  # the untrained model, which forecasts the last value, competes too
            if run.step == pretrain > 0:
                run.start_tuning()
            run.train_step()
            if run.step % every == 0 or run.step in (pretrain, steps):
                run.evaluate()
            stopping = run.step < steps and processes.any(stop is not None and stop())
            if folder is not None and (stopping or run.step % checkpoint_every == 0) and run.step < steps:
                save(folder)
            if progress is not None:
                progress(run.step, steps)
            if stopping:
                way_on = "nothing was written" if folder is None else processes.first(folder.way_on)
                raise TrainingStopped(f"stopped at step {run.step} of {steps}; {way_on}")
    except TrainingStopped:
        raise
    except KeyboardInterrupt:
        # Not saved here: the interrupt may have come between two halves of a step.
        if folder is not None:
            logger.warning("stopped at step %d of %d; %s", run.step, steps, folder.way_on())
        raise
    if folder is not None:
        save(folder)


def check_blocks(model: torch.nn.Module, nodes_per_batch: int | None, num_hops: int) -> None:
    """Raises a ValueError if there can be no such blocks, or the model needs all nodes of a city at once."""
    if nodes_per_batch is None:
        return
    check_counts(nodes_per_batch=nodes_per_batch)
    check_counts(least=0, num_hops=num_hops)
    if getattr(model, "city_embedding", None) is not None:
        raise ValueError(
            "nodes_per_batch: the model has a city_embedding, one row for every node of a city, and cannot be shown "
            "a part of them; leave one of the two out"
        )


def check_base(base: type[torch.optim.Optimizer]) -> None:
    """Raises a ValueError if it is no class of optimizers that step along the gradients that are there."""
    if not (isinstance(base, type) and issubclass(base, torch.optim.Optimizer)):
        raise ValueError(f"base: expected a class of optimizers such as torch.optim.Adam, found {base!r}")
    if issubclass(base, torch.optim.LBFGS):
        raise ValueError("base: LBFGS computes losses again within a step; expected a class such as torch.optim.Adam")


def check_cities(target: City, sources: Sequence[City]) -> None:
    """Raises a TypeError if something is no city, a name perhaps."""
    for argument, cities in (("target", [target]), ("sources", sources)):
        if isinstance(cities, City | str) or not isinstance(cities, Sequence):
            raise TypeError(f"{argument}: expected a list of cities, found {cities!r}")
        for city in cities:
            if not isinstance(city, City):
                raise TypeError(
                    f"{argument}: expected a City, found {city!r}; tsjt_pyg.datasets.load_city(name) loads one"
                )


def check_sources(target: City, sources: Sequence[City], strategy: Strategy) -> None:
    """Raises a ValueError if the strategy needs sources and there are none, or one does not fit the target."""
    if strategy.uses_sources and not sources:
        raise ValueError(f"sources: strategy {strategy.name!r} learns from source cities, found none")
    for city in sources:
        check_comparable(city, target, "sources")
