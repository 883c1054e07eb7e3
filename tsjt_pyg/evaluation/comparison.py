"""Strategies side by side on one target city, under one protocol."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import torch

from ..data import City, NodeBlocks, StandardScaler, SupportProfile
from ..data.city_check import check_readings
from ..training import ModelConfig, Strategy, fit, forecast_windows, training_split
from ..training.strategies import get_strategies
from ..training.trainer import check_cities, check_sources
from .metrics import Errors, HorizonErrors
from .naive import NAIVE_FITS, NaiveForecast
from .table import Comparison, RunRecord

DEFAULT_STRATEGIES = ("target_only", "target_only_2x", "source_only", "pooled", "finetune", "tsjt_paper", "tsjt")

MOST_AT_ONCE = 2**20
"""Windows times nodes of a batch of naive forecasts: a large city has fewer than 64 windows in it."""

NAIVE = ("last value", "historical average", "linear per node")
"""The naive forecasts that every table has; :data:`~tsjt_pyg.evaluation.naive.NAIVE_FITS` has more."""


def compare(
    target: City,
    sources: Sequence[City],
    strategies: Iterable[str | Strategy] = DEFAULT_STRATEGIES,
    *,
    visible_days: float = 3,
    seeds: int | Sequence[int] = 3,
    model: ModelConfig | Callable[[], torch.nn.Module] | None = None,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 3e-3,
    validation_days: float = 1.0,
    nodes_per_batch: int | None = None,
    naive: Sequence[str] = NAIVE,
    jobs: int = 1,
    threads: int = 1,
    device: str = "cpu",
    output: str | Path | None = None,
    verbose: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Trains every strategy with every seed, beside naive forecasts, and measures all on the target's test period.

    Chronological and without a leak: training is given the visible days only, statistics come from the visible training
    days, the last visible day chooses the checkpoint, and the test period is read once, at the end. All strategies have
    the same network, the same initial parameters for a seed, and the same number of optimizer steps. Errors are in
    original units, over observed readings.

    Args:
        target: The whole target city; all its channels are forecast.
        sources: The source cities, with the same channels and interval; their whole series is used.
        strategies: Names or :class:`~tsjt_pyg.training.Strategy` objects.
        visible_days: How many days of the target one may learn from; the rest is the test period.
        seeds: How many (0, 1, …) or which.
        model: Settings, or a function without arguments that returns a model with ``history`` and ``horizon``.
            Default: ``ModelConfig(channels=target.num_channels)``.
        steps: Optimizer steps of every run.
        batch_size: Windows a step, of each city.
        lr: Learning rate.
        validation_days: How much of the end of the visible days chooses the checkpoint.
        nodes_per_batch: Cities of more nodes are learned from and forecast in blocks; see
            :func:`~tsjt_pyg.training.fit`. Default: every batch holds a whole city.
        naive: Which naive forecasts are measured too.
        jobs: Runs at the same time, in processes of their own.
        threads: Threads of each run. The result depends on it in the last digits, not on ``jobs``; on the CPU the same
            seeds give the same table.
        device: Where models are trained.
        output: Folder for ``comparison.json``, ``comparison.csv`` and ``comparison.png``.
        verbose: Print the table and what it advises.
        progress: Called with finished and all optimizer steps.

    Raises:
        ValueError: If cities, days or settings do not fit; nothing is written then.
    """
    started = time.perf_counter()
    check_cities(target, sources)
    chosen = get_strategies(strategies)
    seed_list = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not seed_list or len(set(seed_list)) < len(seed_list):
        raise ValueError(f"seeds: expected at least one, each once, found {seeds}")
    if jobs < 1 or threads < 1:
        raise ValueError(f"jobs and threads: expected at least 1, found {jobs} and {threads}")
    if model is None:
        model = ModelConfig(channels=target.num_channels)
    build = model.build if isinstance(model, ModelConfig) else model
    with torch.random.fork_rng(devices=[]):
        probe = build()
    history, horizon = int(probe.history), int(probe.horizon)  # type: ignore[arg-type]
    target = target.to("cpu")  # the naive forecasts run there; models get their batches where they are
    visible, test = target.few_shot(visible_days)
    names = [city.name for city in sources]
    if len(set(names)) < len(names):
        raise ValueError(
            f"sources: two of them have one name, found {', '.join(names)}; tables tell them apart by it, rename "
            "one with dataclasses.replace(city, name=...)"
        )
    for city in sources:
        if _has_readings_of(city, test):
            raise ValueError(f"sources: {city.name} holds the target's test period; leave it out")
    for strategy in chosen:
        check_sources(visible, sources, strategy)
    check_readings(target, "target")
    if output is not None:
        _check_folder(Path(output))
    test.windows(history, horizon)  # too short a test period is found out now, not after the training

    run = partial(
        _train_and_measure,
        visible=visible,
        test=test,
        sources=tuple(sources),
        build=build,
        size=(history, horizon),
        settings={
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "validation_days": validation_days,
            "nodes_per_batch": nodes_per_batch,
        },
        threads=threads,
        device=device,
    )
    records = _naive_records(naive, visible, test, history, horizon, validation_days)
    tasks = [(strategy, seed) for strategy in chosen for seed in seed_list]
    total = len(tasks) * steps
    if jobs == 1:
        for done, (strategy, seed) in enumerate(tasks):
            report = None if progress is None else partial(_report, progress, done * steps, steps, total)
            records.append(run(strategy, seed, progress=report))
    else:
        with warnings.catch_warnings():
            # A worker that has grown is replaced by a new one; nothing is lost, so nobody needs to hear of it.
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
            parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
            for done, record in enumerate(parallel(joblib.delayed(run)(*task) for task in tasks), start=1):
                records.append(record)
                if progress is not None:
                    progress(done * steps, total)
    comparison = Comparison(
        records=records,
        minutes=[target.interval.total_seconds() / 60 * (step + 1) for step in range(horizon)],
        unit=target.units[0] if target.num_channels == 1 else "",
        protocol={
            "target": target.name,
            "sources": [city.name for city in sources],
            "channels": list(target.channels),
            "visible_days": visible_days,
            "validation_days": validation_days,
            **({} if nodes_per_batch is None else {"nodes_per_batch": nodes_per_batch}),
            "test_days": test.num_steps / test.steps_per_day,
            "history": history,
            "horizon": horizon,
            "seeds": seed_list,
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "model": model.as_dict() if isinstance(model, ModelConfig) else repr(probe),
            "parameters": sum(parameter.numel() for parameter in probe.parameters()),
            "strategies": [asdict(strategy) for strategy in chosen],
            "device": device,
            "threads": threads,
            "versions": _versions(),
        },
        seconds=time.perf_counter() - started,
    )
    if output is not None:
        comparison.save(output)
        from .plots import plot_comparison

        plot_comparison(comparison, Path(output) / "comparison.png")
    if verbose:
        comparison.show()
    return comparison


def _has_readings_of(city: City, test: City) -> bool:
    """Whether some nodes are those of the test period, and everything observed then is read there, too."""
    if city.interval != test.interval or city.channels != test.channels:
        return False
    late = (test.start - city.start) / test.interval
    first, last = max(0.0, late), min(city.num_steps, late + test.num_steps)
    rows = {node: row for row, node in enumerate(city.node_ids)}
    common = [(rows[node], row) for row, node in enumerate(test.node_ids) if node in rows]
    if late != int(late) or first >= last or not common:
        return False
    here, there = (torch.tensor(side) for side in zip(*common, strict=True))
    steps, shift = slice(int(first), int(last)), slice(int(first - late), int(last - late))
    mask = test.mask[shift][:, there]
    same = city.mask[steps][:, here] & (city.readings[steps][:, here] == test.readings[shift][:, there])
    return bool(mask.any()) and bool(same[mask].all())


def _check_folder(path: Path) -> None:
    """What would be found out only after all the training is found out before it."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"output: {path} cannot be written: {existing} is not a folder that may be written to")


def _report(progress: Callable[[int, int], None], before: int, share: int, total: int, step: int, steps: int) -> None:
    progress(before + share * step // steps, total)  # a run may take more steps than others


def _versions() -> dict[str, str]:
    names = ("tsjt-pyg", "torch", "torch-geometric", "torch-geometric-temporal", "numpy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _naive_records(
    names: Sequence[str], visible: City, test: City, history: int, horizon: int, validation_days: float
) -> list[RunRecord]:
    training_split(visible, validation_days, history)[0].windows(history, horizon)  # one error for too few days
    records = []
    for name in names:
        if name not in NAIVE_FITS:
            raise ValueError(f"naive: expected some of {', '.join(NAIVE_FITS)}, found {name!r}")
        started = time.perf_counter()
        forecast = NAIVE_FITS[name](visible, history, horizon, validation_days)
        seconds = time.perf_counter() - started
        records.append(RunRecord(name, None, measure_naive(forecast, test, history, horizon), seconds))
    return records


def _train_and_measure(
    strategy: Strategy,
    seed: int,
    *,
    visible: City,
    test: City,
    sources: tuple[City, ...],
    build: Callable[[], torch.nn.Module],
    size: tuple[int, int],
    settings: dict[str, Any],
    threads: int,
    device: str,
    progress: Callable[[int, int], None] | None = None,
) -> RunRecord:
    with _threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().to(device)
        result = fit(model, visible, sources, strategy, seed=seed, progress=progress, **settings)
        errors = measure(model, test, result.scaler, *size, support=result.support, blocks=result.blocks)
        digest = _digest(model, result.scaler)
        model.load_state_dict(result.last_model)
        last = measure(model, test, result.scaler, *size, support=result.support, blocks=result.blocks)
    return RunRecord(
        strategy.name,
        seed,
        errors,
        result.seconds,
        best_step=result.best_step,
        validation_loss=result.validation_loss,
        digest=digest,
        stats=result.stats,
        last=last,
        sources=[verdict.as_dict() for verdict in result.verdicts],
        guard_seconds=result.guard_seconds,
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(model: torch.nn.Module, scaler: StandardScaler) -> str:
    """SHA-256 of the chosen parameters and the scaler: two runs that learned the same have the same."""
    digest = hashlib.sha256()
    for name, value in sorted({**model.state_dict(), **scaler.state_dict()}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def measure(
    model: torch.nn.Module,
    city: City,
    scaler: StandardScaler,
    history: int,
    horizon: int,
    support: SupportProfile | None = None,
    blocks: NodeBlocks | None = None,
) -> Errors:
    """Errors of a model's forecasts on all windows of a city, in original units."""
    errors = HorizonErrors(horizon)
    windows = city.windows(history, horizon)
    for batch, forecast in forecast_windows(model, windows, scaler, support=support, blocks=blocks):
        errors.update(forecast, batch.y, batch.y_mask)
    return errors.compute()


def measure_naive(forecast: NaiveForecast, city: City, history: int, horizon: int) -> Errors:
    """Errors of a naive forecast on all windows of a city, in original units."""
    errors = HorizonErrors(horizon)
    at_once = max(1, min(64, MOST_AT_ONCE // city.num_nodes))
    for batch in city.windows(history, horizon).batches(at_once):
        errors.update(forecast(batch, city), batch.y, batch.y_mask)
    return errors.compute()
