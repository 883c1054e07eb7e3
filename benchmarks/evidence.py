"""Is a city forecast better with other cities than without? Every strategy on every task, restartable.

Tasks (target, sources), 1 or 3 visible days, several days to start from: a *setting* is a task with a number of visible
days, and every strategy is trained in it five times, from different first days with different seeds. A run is one
call of :func:`tsjt_pyg.evaluation.compare`; its record is a line of ``records.jsonl``, and what is there is not run
again. Then :mod:`evidence_report` makes the tables and pictures of ``docs/results.md``.

    python benchmarks/evidence.py --root FOLDER_OF_CITIES              # hours
    python benchmarks/evidence.py --root FOLDER_OF_CITIES --quick      # minutes; into runs/evidence-quick
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import joblib
import torch
from evidence_changes import UNTIL_NOW
from poisons import POISONS, another_quantity
from rich.progress import Progress
from rivals import RIVALS
from torch_geometric_temporal.nn.recurrent import GConvGRU
from variants import NUM_PROMPTS, UNGUARDED, VARIANTS, variant_network

from tsjt_pyg import City, Forecaster
from tsjt_pyg.datasets import load_task
from tsjt_pyg.datasets.task import Task
from tsjt_pyg.evaluation import compare
from tsjt_pyg.evaluation.naive import NAIVE_FITS
from tsjt_pyg.training import STRATEGIES, ModelConfig, Strategy, fit

RESULTS = Path(__file__).parent / "results" / "evidence"

TASKS: dict[str, tuple[str, list[str], str, int]] = {
    "speed-la": ("los_loop", ["pems04", "pems08"], "speed", 12),
    "speed-sb": ("pems08", ["los_loop", "pems04"], "speed", 12),
    "taxi-dc": ("jonas_dc", ["jonas_nyc"], "taxi_demand", 6),
    "bike-dc": ("jonas_dc", ["jonas_nyc"], "bike_demand", 6),
}
"""Target, sources, channel, steps of the horizon."""

STARTS: dict[tuple[str, int], tuple[int, ...]] = {
    ("speed-la", 3): (0, 1, 2, 3, 0),
    ("speed-la", 1): (0, 1, 2, 4, 5),
    ("speed-sb", 3): (0, 1, 0, 1, 0),
    ("speed-sb", 1): (0, 1, 2, 3, 0),
    ("taxi-dc", 3): (0, 10, 20, 40, 60),
    ("taxi-dc", 1): (0, 10, 20, 40, 60),
    ("bike-dc", 3): (0, 10, 20, 40, 60),
    ("bike-dc", 1): (0, 10, 20, 40, 60),
}
"""First visible day of the run with seed 0, 1, …: as many different ones as the data allow."""

VALIDATION_DAYS = {3: 1.0, 1: 0.25}

NETWORK = {"cell": "GConvGRU", "hidden_channels": 32, "K": 2}
TRAINING = {"steps": 300, "batch_size": 8, "lr": 5e-3}

CORE = ("target_only", "target_only_2x", "source_only", "pooled", "finetune", "tsjt_paper", "tsjt")

PLAIN, PLAIN_2X = "target_only, plain network", "target_only_2x, plain network"
PAPER_PROMPTS = "tsjt_paper with prompts"
NO_PROFILE_2X = "target_only_2x, without profile"


@dataclass(frozen=True)
class Run:
    """One training, or the naive forecasts (``strategy="naive"``)."""

    task: str
    days: int
    start: int
    seed: int
    strategy: str
    poison: str = ""

    @property
    def key(self) -> str:
        return "|".join(str(value) for value in asdict(self).values())


def plain_network(horizon: int) -> Forecaster:
    """Neither centred nor with a profile: the network of the papers, with the same cell."""
    size = int(NETWORK["hidden_channels"])
    return Forecaster(GConvGRU(size, size, int(NETWORK["K"])), 12, horizon, center=False)


def strategy_of(name: str) -> Strategy:
    """The strategy of this name."""
    special = {
        PLAIN: "target_only",
        PLAIN_2X: "target_only_2x",
        PAPER_PROMPTS: "tsjt_paper",
        NO_PROFILE_2X: "target_only_2x",
    }
    if name in special:
        return replace(STRATEGIES[special[name]], name=name)
    known = {**STRATEGIES, **{strategy.name: strategy for strategy in (*RIVALS, *VARIANTS)}}
    return known[name]


def network_of(name: str, horizon: int) -> ModelConfig | Callable[[], torch.nn.Module]:
    """The network of a strategy: the same for all that do not name another."""
    if name in (PLAIN, PLAIN_2X):
        return partial(plain_network, horizon)
    config = ModelConfig(**NETWORK, horizon=horizon)  # type: ignore[arg-type]
    if name == NO_PROFILE_2X:
        return replace(config, profile=False)
    return replace(config, num_prompts=NUM_PROMPTS) if name == PAPER_PROMPTS else variant_network(name, config)


def poisoned(task: Task, poison: str, root: str | None) -> list[City]:
    """The task's sources, spoiled; ``"one of two"`` leaves a good one beside a shuffled one."""
    if not poison:
        return task.sources
    if poison == "one of two":
        spoiled = POISONS["shuffled time"](task.sources[-1])
        return [task.sources[0], replace(spoiled, name=f"{spoiled.name} (shuffled time)")]
    if poison == "another quantity":
        return [another_quantity(task.target, root)]
    return [replace(POISONS[poison](city), name=f"{city.name} ({poison})") for city in task.sources]


@lru_cache(maxsize=1)
def cities(task: str, root: str | None) -> Task:
    target, sources, channel, _ = TASKS[task]
    return load_task(target, sources, root, channel)


def plan(quick: bool) -> list[Run]:
    """All runs, the ones that most depends on first."""
    settings = [("taxi-dc", 3)] if quick else list(STARTS)
    rivals = [strategy.name for strategy in RIVALS]
    variants = [strategy.name for strategy in VARIANTS]
    poisons = (*POISONS, "another quantity", "one of two")
    groups: list[Iterable[tuple[str, str]]] = [
        [("naive", ""), *((name, "") for name in (*CORE, PLAIN))],
        [("tsjt", poison) for poison in (*poisons, UNTIL_NOW)],
        [(name, "") for name in (*rivals, PLAIN_2X, NO_PROFILE_2X, PAPER_PROMPTS)],
        [*((name, "") for name in variants), *((UNGUARDED, poison) for poison in poisons)],
    ]
    if quick:
        groups = [[("naive", ""), *((name, "") for name in CORE)], [("tsjt", "shuffled time")]]
    # All of what matters most for all seeds, the rest seed by seed: at any time there is a table without holes.
    first = [(seed, groups[0]) for seed in range(1 if quick else 5)]
    then = [(seed, group) for seed in range(1 if quick else 5) for group in groups[1:]]
    return [
        Run(task, days, STARTS[task, days][seed], seed, name, poison)
        for seed, group in (*first, *then)
        for name, poison in group
        for task, days in settings
        if poison != UNTIL_NOW or task.endswith("-dc")  # the sources of the others are of other years
    ]


def carry_out(run: Run, root: str | None, training: dict[str, Any]) -> dict[str, Any]:
    """The record of a run."""
    task, horizon = cities(run.task, root), TASKS[run.task][3]
    first, last = (day * task.target.steps_per_day for day in (run.start, run.start + run.days))
    target = task.target.between(first, task.target.num_steps)
    if run.poison == UNTIL_NOW:
        assert all((c.start, c.interval) == (task.target.start, task.target.interval) for c in task.sources)
        sources = [city.between(0, last) for city in task.sources]
    else:
        sources = poisoned(task, run.poison, root)
    naive = run.strategy == "naive"
    about = {"key": run.key, **asdict(run), "source": _source_digest()}
    try:
        found = compare(
            target,
            sources,
            [strategy_of("target_only" if naive else run.strategy)],
            visible_days=run.days,
            seeds=[run.seed],
            model=network_of(run.strategy, horizon),
            validation_days=VALIDATION_DAYS[run.days],
            naive=list(NAIVE_FITS) if naive else [],
            verbose=False,
            **{**training, "steps": 1} if naive else training,
        )
    except (ArithmeticError, RuntimeError) as error:  # a rival's solver, or a loss that is not finite
        return {**about, "failed": f"{type(error).__name__}: {error}", "runs": []}
    records = [record for record in found.to_dict()["runs"] if (record["seed"] is None) == naive]
    return {**about, "unit": found.unit, "minutes": found.minutes, "runs": _rounded(records)}


def _rounded(value: Any) -> Any:
    """Six significant digits: a record is a line that one can read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def settings_of(training: dict[str, Any]) -> dict[str, Any]:
    """What all records of a file have in common; records of other settings are not comparable."""
    return {
        "network": NETWORK,
        "training": training,
        "validation_days": {str(k): v for k, v in VALIDATION_DAYS.items()},
    }


def read_head(file: Path) -> dict[str, Any]:
    """Settings, date and versions of a file of records; empty where there is none yet."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        head: dict[str, Any] = json.loads(next(lines))
    return head


def read_records(file: Path, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The records of a file, whose first line says the settings; a last line that was cut off is left out.

    Raises:
        ValueError: If they are of other settings.
    """
    if not file.is_file():
        return []
    head, lines = read_head(file), file.read_text(encoding="utf-8").splitlines(keepends=True)
    if settings is not None and head["settings"] != settings:
        raise ValueError(
            f"{file}: its runs have the settings {head['settings']}, these {settings}; give another --output"
        )
    return [json.loads(line) for line in lines[1:] if line.endswith("\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.environ.get("TSJT_CITIES"), help="folder of the cities")
    parser.add_argument("--quick", action="store_true", help="one setting, a few steps")
    parser.add_argument("--only", default="", metavar="KEY", help="runs whose key holds this: 'taxi-dc|3|0|0|tsjt|'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--hours", type=float, default=None, help="start no further run after so many hours")
    parser.add_argument("--output", type=Path, default=None, help="folder of records.jsonl")
    parser.add_argument("--costs", action="store_true", help="time tsjt beside target_only, and nothing else")
    parser.add_argument("--only-report", action="store_true", help="make tables and pictures of the records there are")
    arguments = parser.parse_args()
    output = arguments.output or (Path("runs/evidence-quick") if arguments.quick else RESULTS)
    training = {**TRAINING, "steps": 40} if arguments.quick else TRAINING
    file = output / "records.jsonl"
    settings = settings_of(training)
    done = {record["key"] for record in read_records(file, settings)}
    todo = [run for run in plan(arguments.quick) if run.key not in done and arguments.only in run.key]
    if arguments.costs:
        costs = measure_costs(arguments.root, training, repeats=1 if arguments.quick else 3)
        output.mkdir(parents=True, exist_ok=True)
        (output / "costs.json").write_text(json.dumps(_rounded(costs), indent=1) + "\n", encoding="utf-8")
    elif not arguments.only_report:
        _run_all(todo, file, settings, arguments.root, arguments.jobs, arguments.hours)
    from evidence_report import write_report

    write_report(read_records(file), read_head(file), output, docs=output == RESULTS)


def measure_costs(root: str | None, training: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Processor seconds of ``fit`` with strategies "target_only" and "tsjt" in turn, in one thread.

    In a table of wall times of runs hours apart, the machine's other work would be measured.
    """
    torch.set_num_threads(1)
    found = []
    for task, days in (("speed-la", 3), ("speed-sb", 3), ("taxi-dc", 3), ("taxi-dc", 1)):
        target, sources = cities(task, root)
        visible, _ = target.few_shot(days)
        for repeat in range(repeats):
            seconds = {}
            for name in ("target_only", "tsjt"):
                torch.manual_seed(repeat)
                model = network_of(name, TASKS[task][3]).build()  # type: ignore[union-attr]
                before = time.process_time()
                result = fit(model, visible, sources, name, validation_days=VALIDATION_DAYS[days], **training)
                seconds[name] = time.process_time() - before
            guard = result.guard_seconds / result.seconds
            found.append({"task": task, "days": days, "repeat": repeat, **seconds, "guard_share": guard})
    return found


def _run_all(
    todo: list[Run], file: Path, settings: dict[str, Any], root: str | None, jobs: int, hours: float | None
) -> None:
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        head = {"settings": settings, "date": str(date.today()), "python": platform.python_version(), **_versions()}
        file.write_text(json.dumps(head) + "\n", encoding="utf-8")
    _drop_cut_line(file)

    def before_the_deadline() -> Iterator[Any]:
        for run in todo:
            if deadline is None or time.monotonic() < deadline:
                yield joblib.delayed(carry_out)(run, root, settings["training"])

    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch=jobs, batch_size=1)
    with Progress(transient=True) as progress, file.open("a", encoding="utf-8") as records:
        bar = progress.add_task("runs", total=len(todo))
        for record in parallel(before_the_deadline()):
            records.write(json.dumps(record) + "\n")
            records.flush()
            progress.advance(bar)


def _drop_cut_line(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _versions() -> dict[str, Any]:
    from tsjt_pyg.evaluation.comparison import _versions as versions

    return {"versions": versions()}


@lru_cache(maxsize=1)
def _source_digest() -> str:
    """SHA-256 of the library's code: which state of it made the record."""
    import tsjt_pyg

    digest = hashlib.sha256()
    for path in sorted(Path(tsjt_pyg.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    # As a module that the other processes can import, where the cities of a task stay loaded.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    import evidence

    evidence.main()
