"""Whatever is broken, what comes of it is a finite result or an error in plain words: no hang, no foreign traceback."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from broken_inputs import VISIBLE_DAYS, check_clear, cities, fittings, models, outcome, some, tables
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tsjt_pyg import City, cli, console
from tsjt_pyg.data import regular_time
from tsjt_pyg.evaluation import compare, sweep
from tsjt_pyg.training import FitResult, ModelConfig, fit, forecast_windows
from tsjt_pyg.training.guard import guard_steps

QUIET = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def usual(name: str = "usual", days: int = 5, nodes: int = 3) -> City:
    hour = np.arange(24 * days)[:, None] / 24 * 2 * np.pi
    level = 40 + 8 * np.sin(hour - np.arange(nodes)) + np.random.default_rng(len(name)).normal(size=(24 * days, nodes))
    ring = np.roll(np.eye(nodes), 1, axis=1)
    return City.from_adjacency(level.astype(np.float32), ring, name=name, interval="60min", start="2024-03-04")


@st.composite
def examples(draw: Any) -> dict[str, Any]:
    """What is called, and with what."""
    fitting, config = draw(fittings()), draw(models())
    others = ["none", "itself", "twice", "channel", "interval", "junk"]
    sources = some(draw, ["usual", "broken", "both"], others, 15)
    return {
        "call": draw(st.sampled_from(["city", "tables", "fit", "fit", "fit", "compare", "command"])),
        "tables": draw(tables()),
        "city": draw(cities())[1],
        "other": draw(cities())[1],
        "target": draw(st.sampled_from(["usual", "broken", "broken"])),
        "sources": sources,
        "visible_days": some(draw, [2, 3], VISIBLE_DAYS, 10),
        "fitting": fitting,
        "config": config,
    }


def check_finite(result: FitResult, test: City) -> None:
    assert math.isfinite(result.validation_loss)
    for state in (result.model.state_dict(), result.last_model):
        assert all(value.isfinite().all() for value in state.values())
    model = result.model
    windows = test.windows(model.history, model.horizon)
    for _, forecast in forecast_windows(model, windows, result.scaler, support=result.support):
        assert forecast.isfinite().all()
        break


@contextmanager
def caught_in(module: Any, name: str) -> Iterator[list[BaseException]]:
    """The errors that are being handled when a function of a module, which only tells of them, is called."""
    seen: list[BaseException] = []
    told = getattr(module, name)

    def look(*arguments: Any) -> Any:
        error = sys.exception()
        if error is not None:
            seen.append(error)
        return told(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, look)
        yield seen


def sources_of(kind: str, target: City, broken: City) -> list[Any]:
    good = usual("source", 4, 5)
    if target.num_channels == 2:
        good = replace(
            good,
            readings=good.readings.repeat(1, 1, 2),
            mask=good.mask.repeat(1, 1, 2),
            channels=target.channels,
            units=target.units,
        )
    else:
        good = replace(good, channels=target.channels, units=target.units)
    return {
        "usual": [good],
        "broken": [broken],
        "both": [good, broken],
        "none": [],
        "itself": [target],
        "twice": [good, good],
        "channel": [replace(usual(), name="other", channels=("flow",))],
        "interval": [replace(usual(), name="other", interval=pd.Timedelta("30min"))],
        "junk": ["demo/riverton"],
    }[kind]


def run(example: dict[str, Any], folder: Path) -> str:
    """How it ended."""
    if example["call"] == "tables":
        return read_tables(*example["tables"], folder)
    kind, city = outcome(example["city"])
    if kind == "error":
        if example["call"] == "city":
            return "city: error"
        city = usual("another")
    if example["call"] == "city":
        kind, _ = outcome(lambda: (city.describe(), city.fingerprint(), city.save(folder / "city.npz")))
        return f"city: {kind}"
    broken = city
    kind, other = outcome(example["other"])
    target = broken if example["target"] == "broken" else usual()
    sources = sources_of(example["sources"], target, other if kind == "result" and target is broken else broken)
    fitting, days = example["fitting"], example["visible_days"]
    if example["call"] == "command":
        return f"command: {command(example, target, sources, folder)}"
    if example["call"] == "fit":

        def train() -> tuple[FitResult, City]:
            torch.manual_seed(0)
            model = ModelConfig(**example["config"]).build()
            visible, test = target.few_shot(days)
            test.windows(model.history, model.horizon)
            return fit(model, visible, sources, **fitting), test

        kind, found = outcome(train)
        if kind == "result":
            check_finite(*found)
        return f"fit: {kind}"

    def measured() -> Any:
        return compare(
            target,
            sources,
            ["target_only", fitting["strategy"]] if fitting["strategy"] != "target_only" else ["target_only"],
            visible_days=days,
            seeds=1,
            model=ModelConfig(**example["config"]),
            steps=fitting["steps"],
            batch_size=fitting["batch_size"],
            lr=fitting["lr"],
            validation_days=fitting["validation_days"],
            verbose=False,
        )

    with caught_in(sweep, "_described") as seen:
        kind, found = outcome(measured)
    for error in seen:
        check_clear(error)
    if kind == "result":
        assert all(math.isfinite(record.errors.mean_mae) for record in found.records)
    return f"compare: {kind}"


def read_tables(readings: pd.DataFrame, sensors: pd.DataFrame, how: dict[str, Any], folder: Path) -> str:
    """The tables as they are, and as files: a city with finite readings either way, or the same refusal."""
    readings.to_csv(folder / "readings.csv")
    sensors.to_csv(folder / "sensors.csv", index=False)
    ends = []
    for files in ((readings, sensors), (folder / "readings.csv", folder / "sensors.csv")):
        kind, city = outcome(lambda files=files: City.from_tables(*files, **how))
        if kind == "result":
            assert city.readings.isfinite().all()
        ends.append(kind)
    outcome(lambda: regular_time(readings, **{key: how[key] for key in ("interval",) if key in how}))
    return f"tables: {ends[1]}"


def command(example: dict[str, Any], target: City, sources: list[Any], folder: Path) -> str:
    """``tsjt train`` on the city as a file, with the same settings as texts."""
    fitting, config = example["fitting"], example["config"]
    paths = []
    for number, city in enumerate([target, *sources]):
        if not isinstance(city, City):
            paths.append(str(city))
            continue
        kind, path = outcome(lambda city=city, number=number: city.save(folder / f"{number}.npz"))
        if kind == "error":
            return kind
        paths.append(str(path))
    given = {
        "target": paths[0],
        "sources": ",".join(paths[1:]),
        "strategy": fitting["strategy"],
        "visible-days": example["visible_days"],
        "validation-days": fitting["validation_days"],
        "steps": fitting["steps"],
        "batch-size": fitting["batch_size"],
        "lr": fitting["lr"],
        "seed": fitting["seed"],
        "cell": config["cell"],
        "hidden": config["hidden_channels"],
        "prompts": config["num_prompts"],
        "history": config["history"],
        "horizon": config["horizon"],
        "output": folder / "run",
    }
    arguments = ["train", *(f"--{name}={value}" for name, value in given.items())]
    with caught_in(console, "plain") as seen:
        kind, found = outcome(lambda: CliRunner().invoke(cli.app, arguments))
    assert kind == "result"
    assert bool(seen) == ("error:" in found.output)  # what is caught is what is printed
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise AssertionError(f"a traceback instead of a line: {found.exception!r}") from found.exception
    assert found.exit_code in (0, 2), found.output
    for error in seen:
        check_clear(error)
    if found.exit_code == 0:
        assert torch.load(folder / "run" / "best.pt", weights_only=True)["validation_loss"] < math.inf
    return "result" if found.exit_code == 0 else "error"


def check(example: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    event(run(example, tmp_path_factory.mktemp("broken")))  # counted by pytest --hypothesis-show-statistics


@settings(max_examples=25, **QUIET)
@given(example=examples())
def test_a_few_broken_inputs_end_in_a_finite_result_or_a_clear_error(example, tmp_path_factory):
    check(example, tmp_path_factory)


@pytest.mark.slow
@settings(max_examples=500, **QUIET)
@given(example=examples())
def test_500_broken_inputs_end_in_a_finite_result_or_a_clear_error(example, tmp_path_factory):
    check(example, tmp_path_factory)


def test_the_harness_tells_a_foreign_error_from_one_of_ours():
    with pytest.raises(AssertionError, match="RuntimeError: inconsistent tensor size"):
        outcome(lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(AssertionError, match="was raised at"):
        outcome(lambda: pd.Timedelta("soon"))
    with pytest.raises(AssertionError, match="was not raised, but happened"):
        outcome(lambda: guard_steps("100", 1))
    assert outcome(lambda: usual().few_shot(0))[0] == "error"
    assert outcome(lambda: usual().num_nodes) == ("result", 3)
