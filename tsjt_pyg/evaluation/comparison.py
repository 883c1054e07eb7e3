"""Strategies side by side on one target city, under one protocol."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import joblib
import torch

from ..data import City
from ..data.arguments import check_counts
from ..data.city_check import check_readings
from ..training import ModelConfig, Strategy, fit, training_split
from ..training.strategies import get_strategies
from ..training.trainer import check_cities, check_sources
from .details import CITY, ErrorDetails, Excerpt, city_arrays, fit_arrays, save_details
from .measuring import measure, measure_naive
from .naive import NAIVE_FITS
from .sweep import FinishedRun, KeptRuns, attempt, dask_client, run_all, run_key
from .table import Comparison, RunFailure, RunRecord
from .unseen import check_test_period

logger = logging.getLogger(__name__)

DEFAULT_STRATEGIES = ("target_only", "target_only_2x", "source_only", "pooled", "finetune", "tsjt_paper", "tsjt")

NAIVE = ("last value", "historical average", "last value and profile", "linear per node")
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

    The runs are independent. One that raises an exception, or whose process is killed, is named in the table and in
    :attr:`Comparison.failures`, and the others go on. Finished ones are kept in ``output``, and not run again when the
    comparison is: neither after a crash, nor with more seeds or strategies. What a run's result depends on (settings,
    cities, versions, this package's code) tells it from others; of a model of your own that is its ``repr`` and its
    initial parameters, so after a change of its code use another folder.

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
        jobs: Runs at the same time, in processes of their own; -1: one a core. Within
            ``joblib.parallel_config("dask")`` the workers of the cluster get the runs instead.
        threads: Threads of each run. The result depends on it in the last digits, not on ``jobs``; on the CPU the same
            seeds give the same table.
        device: Where models are trained.
        output: Folder for ``comparison.json``, ``comparison.csv``, ``comparison.png`` and the finished runs,
            ``runs.jsonl`` and ``details``: what :func:`~tsjt_pyg.evaluation.write_report` makes a page of.
        verbose: Print the table and what it advises.
        progress: Called with finished and all optimizer steps.

    Raises:
        ValueError: If cities, days or settings do not fit, or every run failed; nothing is written then.
    """
    started = time.perf_counter()
    check_cities(target, sources)
    chosen = get_strategies(strategies)
    if not isinstance(seeds, Sequence):
        check_counts(seeds=seeds)
    seed_list = [int(seed) for seed in (seeds if isinstance(seeds, Sequence) else range(seeds))]
    if not seed_list or len(set(seed_list)) < len(seed_list):
        raise ValueError(f"seeds: expected at least one, each once, found {seeds}")
    check_counts(threads=threads)
    if jobs != -1:  # one a core
        check_counts(jobs=jobs)
    if model is None:
        model = ModelConfig(channels=target.num_channels)
    build = model.build if isinstance(model, ModelConfig) else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
    for strategy in chosen:
        check_sources(visible, sources, strategy)
    check_readings(visible, "target")
    check_test_period(test, sources, history, horizon)
    if output is not None:
        _check_folder(Path(output))

    shared = _Shared(
        visible,
        test,
        tuple(sources),
        build,
        (history, horizon),
        Excerpt.choose(visible, test, history, horizon),
        {
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "validation_days": validation_days,
            "nodes_per_batch": nodes_per_batch,
        },
        threads,
        device,
    )
    naive_runs = _naive_runs(naive, shared)
    tasks = [(strategy, seed) for strategy in chosen for seed in seed_list]
    keys = _keys(shared, tasks, model if isinstance(model, ModelConfig) else probe)
    outcomes = _run(shared, tasks, keys, jobs, KeptRuns(None if output is None else Path(output)), progress)
    failures = [outcome for outcome in outcomes if isinstance(outcome, RunFailure)]
    if len(failures) == len(outcomes):
        raise ValueError(f"every run failed; {failures[0]}")
    comparison = Comparison(
        records=[run.record for run in naive_runs] + [run for run in outcomes if isinstance(run, RunRecord)],
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
            "naive": list(naive),
            "device": device,
            "threads": threads,
            "fingerprints": shared.fingerprints,
            "versions": _versions(),
        },
        seconds=time.perf_counter() - started,
        failures=failures,
    )
    if output is not None:
        for run in naive_runs:
            save_details(output, str(run.record.key), run.details)
        save_details(output, CITY, city_arrays(test, shared.excerpt, shared.fingerprints["test"]))
        comparison.save(output)
        from .plots import plot_comparison

        plot_comparison(comparison, Path(output) / "comparison.png")
    if verbose:
        comparison.show()
    return comparison


def _check_folder(path: Path) -> None:
    """What would be found out only after all the training is found out before it."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"output: {path} cannot be written: {existing} is not a folder that may be written to")


@dataclass(frozen=True)
class _Shared:
    """What all runs of a comparison share."""

    visible: City
    test: City
    sources: tuple[City, ...]
    build: Callable[[], torch.nn.Module]
    size: tuple[int, int]
    excerpt: Excerpt
    settings: dict[str, Any]
    threads: int
    device: str

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """SHA-256 of all that is learned from and measured on."""
        return {
            "visible": self.visible.fingerprint(),
            "test": self.test.fingerprint(),
            "sources": [city.fingerprint() for city in self.sources],
        }

    @property
    def about(self) -> dict[str, Any]:
        """What every result depends on."""
        marks = self.fingerprints
        return {"visible": [self.visible.name, marks["visible"]], "test": marks["test"], "versions": _versions()}


def _keys(shared: _Shared, tasks: Sequence[tuple[Strategy, int]], model: ModelConfig | torch.nn.Module) -> list[str]:
    """What tells the result of each run from others, also when the comparison is made again."""
    about = {
        **shared.settings,
        **shared.about,
        "size": shared.size,
        "model": model.as_dict() if isinstance(model, ModelConfig) else [repr(model), _digest(model.state_dict())],
        "threads": shared.threads,
        "device": shared.device,
    }
    sources = [[city.name, mark] for city, mark in zip(shared.sources, shared.fingerprints["sources"], strict=True)]
    return [
        run_key(
            {
                **about,
                "strategy": [type(strategy).__qualname__, asdict(strategy)],
                "seed": seed,
                "sources": sources if strategy.uses_sources else [],
            }
        )
        for strategy, seed in tasks
    ]


def _run(
    shared: _Shared,
    tasks: Sequence[tuple[Strategy, int]],
    keys: Sequence[str],
    jobs: int,
    kept: KeptRuns,
    progress: Callable[[int, int], None] | None,
) -> list[RunRecord | RunFailure]:
    """The outcomes of the tasks in order; those that are kept are not run."""
    found: dict[int, RunRecord | RunFailure] = {}
    for number, key in enumerate(keys):
        record = kept.get(key)
        if record is not None:
            found[number] = record
    if found:
        logger.info("%d of %d runs are kept from before", len(found), len(tasks))
    waiting = [number for number in range(len(tasks)) if number not in found]
    steps = shared.settings["steps"]
    total = len(tasks) * steps

    def finish(number: int, outcome: FinishedRun | RunFailure) -> None:
        if isinstance(outcome, RunFailure):
            logger.warning("failed: %s", outcome)
            found[number] = outcome
        else:
            found[number] = record = replace(outcome.record, key=keys[number])
            kept.add(keys[number], record, outcome.details)
        if progress is not None:
            progress(len(found) * steps, total)

    if jobs == 1 and dask_client() is None:
        for number in waiting:
            report = None if progress is None else partial(_report, progress, len(found) * steps, steps, total)
            finish(number, attempt(partial(_train_and_measure, progress=report), shared, *tasks[number]))
    else:
        some = joblib.cpu_count() if jobs == -1 else jobs
        for place, outcome in run_all(_train_and_measure, shared, [tasks[number] for number in waiting], some):
            finish(waiting[place], outcome)
    return [found[number] for number in range(len(tasks))]


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


def _naive_runs(names: Sequence[str], shared: _Shared) -> list[FinishedRun]:
    visible, test, size = shared.visible, shared.test, shared.size
    validation_days = shared.settings["validation_days"]
    training_split(visible, validation_days, size[0])[0].windows(*size)  # one error for too few days
    runs = []
    for name in names:
        if name not in NAIVE_FITS:
            raise ValueError(f"naive: expected some of {', '.join(NAIVE_FITS)}, found {name!r}")
        started = time.perf_counter()
        forecast = NAIVE_FITS[name](visible, *size, validation_days)
        seconds = time.perf_counter() - started
        details = ErrorDetails(test, shared.excerpt)
        errors = measure_naive(forecast, test, *size, details)
        key = run_key({"naive": name, "size": size, "validation_days": validation_days, **shared.about})
        runs.append(FinishedRun(RunRecord(name, None, errors, seconds, key=key), details.arrays()))
    return runs


def _train_and_measure(
    shared: _Shared, strategy: Strategy, seed: int, progress: Callable[[int, int], None] | None = None
) -> FinishedRun:
    test, size = shared.test, shared.size
    details = ErrorDetails(test, shared.excerpt)
    with _threads(shared.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = shared.build().to(shared.device)
        result = fit(model, shared.visible, shared.sources, strategy, seed=seed, progress=progress, **shared.settings)
        errors = measure(model, test, result.scaler, *size, result.support, result.blocks, details)
        shown = fit_arrays(result, shared.visible, shared.sources, size[0])
        digest = _digest({**model.state_dict(), **result.scaler.state_dict()})
        model.load_state_dict(result.last_model)
        last = measure(model, test, result.scaler, *size, result.support, result.blocks)
    record = RunRecord(
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
    return FinishedRun(record, {**details.arrays(), **shown})


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of parameters (and scaler): two runs that learned the same have the same."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
