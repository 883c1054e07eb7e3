"""What a city-wide forecast costs where it is served: latency of one forecast of all nodes, by every way there is.

Untrained models of ModelConfig's defaults in simulated cities of 207, 2,000 and 20,000 nodes, with the profiles of
three visible days: the bare forward pass, SavedModel.forecast, both kinds of exported programs, and `tsjt forecast` as
a process of its own, start-up included.

    python benchmarks/serving.py [--nodes 207,2000,20000] [--threads 1,2] [--repeats 200] [--processes 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from data import about, table
from models import road_network

from tsjt_pyg.data import City
from tsjt_pyg.training import ModelConfig, SavedModel, fit

FORWARD = "bare forward pass"
SAVED = "SavedModel.forecast"
OF_CITY = "program of SavedModel.export"
ANY_CITY = "program of Forecaster.export"
PROCESS = "`tsjt forecast`, a process"
WAYS = (FORWARD, SAVED, OF_CITY, ANY_CITY, PROCESS)

Times = dict[str, list[tuple[float, float]]]
"""Seconds, and those of all processors together."""


def example_city(nodes: int) -> City:
    """Four days in steps of 15 minutes, each node with a daily wave of its own; one reading in twenty is missing."""
    rng = np.random.default_rng(0)
    phase = np.arange(4 * 96)[:, None] / 96 * 2 * np.pi - rng.random(nodes)
    readings = (40 + 8 * np.sin(phase) + rng.normal(0, 1, phase.shape)).astype(np.float32)
    readings[rng.random(readings.shape) < 0.05] = np.nan
    edges = road_network(nodes, torch.device("cpu"))
    ids = [f"sensor-{number}" for number in range(nodes)]
    return City.from_edge_index(
        readings, *edges, name="example", node_ids=ids, units="km/h", start="2024-03-04", interval="15min"
    )


def saved_run(city: City, folder: Path) -> SavedModel:
    """A checkpoint after a single step, which leaves the weights as good as untrained."""
    visible, _ = city.few_shot(3)
    config = ModelConfig()
    torch.manual_seed(0)
    settings = {"steps": 1, "batch_size": 1, "strategy": "target_only", "validation_days": 0.25}
    fit(config.build(), visible, output=folder, config={"model": config.as_dict()}, **settings)
    return SavedModel.load(folder)


def last_readings(city: City, history: int) -> pd.DataFrame:
    """The end of the third day and the beginning of the fourth."""
    steps = slice(3 * 96 - history // 2, 3 * 96 - history // 2 + history)
    values = city.readings[steps, :, 0].masked_fill(~city.mask[steps, :, 0], torch.nan).numpy()
    return pd.DataFrame(values, index=city.time[steps], columns=city.node_ids)


def ways(saved: SavedModel, readings: pd.DataFrame, folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Each way in this process as a function without arguments that gives ``[horizon, N]`` in original units."""
    saved.export(folder / "of_city.pt2")
    saved.model.export(folder / "any_city.pt2")
    of_city, any_city = (torch.export.load(folder / f"{name}.pt2").module() for name in ("of_city", "any_city"))
    values = torch.tensor(readings.to_numpy())[None]
    seconds = torch.tensor([int((readings.index[-1] - pd.Timestamp(0)).total_seconds())])
    taken: dict[str, torch.Tensor] = {}

    def note(_: object, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        taken.update(zip(("x", "edge_index", "edge_weight"), given, strict=True), **named)

    handle = saved.model.register_forward_pre_hook(note, with_kwargs=True)
    saved.forecast(readings)
    handle.remove()

    def original(scaled: torch.Tensor) -> np.ndarray:
        return np.asarray(saved.scaler.inverse_transform(scaled)[0, :, :, 0])

    return {
        FORWARD: lambda: original(saved.model(**taken)),
        SAVED: lambda: saved.forecast(readings).to_numpy(),
        OF_CITY: lambda: of_city(readings=values, time=seconds)[0].numpy(),
        ANY_CITY: lambda: original(any_city(**taken)),
    }


def check_agreement(found: dict[str, Callable[[], np.ndarray]], scale: float) -> None:
    """What is compared forecasts the same."""
    expected = found[SAVED]()
    for name, run in found.items():
        difference = float(np.abs(run() - expected).max())
        if not difference <= 1e-5 * scale:
            raise AssertionError(f"{name}: differs from {SAVED} by {difference:.2g}")


def processors() -> float:
    """Seconds that this process and those it waited for have computed."""
    return time.process_time() + sum(os.times()[2:4])


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Of each in every repetition, in turn, after a warm-up."""
    times: Times = {name: [] for name in runs}
    for repeat in range(-2, repeats):
        for name, run in runs.items():
            begin = time.perf_counter(), processors()
            run()
            if repeat >= 0:
                times[name].append((time.perf_counter() - begin[0], processors() - begin[1]))
    return times


def process_times(folder: Path, readings: pd.DataFrame, threads: int, repeats: int) -> list[tuple[float, float]]:
    """Of whole processes: CSV in, CSV out."""
    readings.to_csv(folder / "readings.csv")
    command = [sys.executable, "-m", "tsjt_pyg", "forecast", "--checkpoint", str(folder)]
    command += ["--readings", str(folder / "readings.csv"), "--output", str(folder / "forecast.csv")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    run = {PROCESS: lambda: subprocess.run(command, env=environment, check=True, capture_output=True)}
    return measure(run, repeats)[PROCESS] if repeats else []


def measure_city(nodes: int, threads: list[int], repeats: int, processes: int) -> dict[int, Times]:
    """Of each number of threads."""
    city, found = example_city(nodes), {}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        with torch.enable_grad():
            saved = saved_run(city, folder)
        readings = last_readings(city, saved.model.history)
        runs = ways(saved, readings, folder)
        check_agreement(runs, float(saved.scaler.std))
        for number in threads:
            torch.set_num_threads(number)
            found[number] = measure(runs, repeats)
            found[number][PROCESS] = process_times(folder, readings, number, processes)
    return found


def rows_of(nodes: int, found: dict[int, Times]) -> list[list[str]]:
    rows = []
    for way in WAYS:
        for threads, times in found.items():
            if not times[way]:
                continue
            milliseconds, computed = 1e3 * np.array(times[way]).T
            shown = [f"{np.quantile(milliseconds, share):,.1f}" for share in (0.5, 0.95, 0.99)]
            few = [shown[0], *["too few"] * 2] if len(milliseconds) < 20 else shown
            rows.append([way, f"{nodes:,}", str(threads), *few, f"{computed.mean():,.1f}", str(len(computed))])
            rows[-1].append("not measured")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="207,2000,20000")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=200, help="forecasts a way; a tenth of it at 20,000 nodes")
    parser.add_argument("--processes", type=int, default=5, help="processes, after two that warm the disk's cache")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.md")
    arguments = parser.parse_args()
    threads = [int(number) for number in arguments.threads.split(",")]
    rows = []
    for nodes in (int(number) for number in arguments.nodes.split(",")):
        repeats = max(2, arguments.repeats * min(10, 20_000 // nodes) // 10)
        rows += rows_of(nodes, measure_city(nodes, threads, repeats, arguments.processes))
    header = [
        "way",
        "nodes",
        "threads",
        "median (ms)",
        "p95 (ms)",
        "p99 (ms)",
        "computing, mean (ms)",
        "forecasts",
        "GPU (ms)",
    ]
    text = "\n".join(
        [
            "# Serving",
            "",
            *about(max(threads)),
            "One forecast of all nodes: 12 steps in, 12 out, 5 % of the readings missing, a profile of three visible",
            "days; untrained weights of `ModelConfig()` (GConvGRU, 32 channels). The ways of one process take turns,",
            "so that all see the same machine; every way was first checked to forecast the same. The bare forward",
            "pass and the program of `Forecaster.export` get scaled tensors; the latter makes its graph operators anew",
            "in every call, because each may be of another city. The process reads and writes CSVs, start-up included.",
            "Computing: the time of all processors together, which other work on a shared machine changes less;",
            "latency beyond it is waiting for a processor.",
            "",
            *table(header, rows),
        ]
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
