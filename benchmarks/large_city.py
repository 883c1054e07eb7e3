"""What a large city costs: memory and seconds of an epoch at 1,000, 10,000 and 100,000 nodes, in blocks and as a whole.

A synthetic grid of roads with simulated readings of three days at 5 minutes; a GConvGRU trained with ``fit`` on the
target alone. An epoch: every node is in the core of a block once, with 8 windows. Memory is that of a process of its
own, which may take 8 GiB; for the growth of time, steps of all sizes take turns in one process. Then what the halo
costs: a bundled city forecast and trained in blocks.

    python benchmarks/large_city.py [--sizes 1000,10000,100000] [--turns 151] [--output FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

import tsjt_pyg
from tsjt_pyg.data import City, NodeBlocks
from tsjt_pyg.data.node_blocks import node_blocks
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation.metrics import HorizonErrors
from tsjt_pyg.training import ModelConfig, fit, forecast_windows
from tsjt_pyg.training.batches import TrainingBatches

BATCH_SIZE, HIDDEN, DAYS = 8, 32, 3
NODES_PER_BATCH, NUM_HOPS = 500, 1
LIMIT = 8 * 2**30
MIB = 2**20
HALOS_IN_TURNS = (1, 2)
CITY, HALO_BLOCK, HALOS = "demo/gridport", 46, (0, 1, 2, 4)


# --- a city of any size


def road_grid(num_nodes: int, days: int = DAYS, seed: int = 0) -> City:
    """A grid of two-way roads, every tenth of them closed, its nodes in random order, with daily waves that travel."""
    rng = np.random.default_rng(seed)
    side = math.ceil(math.sqrt(num_nodes))
    place = np.arange(side * side).reshape(side, side)
    right = np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()])
    down = np.stack([place[:-1].ravel(), place[1:].ravel()])
    roads = np.concatenate([right, down], axis=1)
    roads = roads[:, (roads < num_nodes).all(axis=0) & (rng.random(roads.shape[1]) > 0.1)]
    roads = rng.permutation(num_nodes)[roads]
    roads = np.concatenate([roads, roads[::-1]], axis=1)
    weight = np.tile(rng.uniform(0.2, 1.0, roads.shape[1] // 2), 2).astype(np.float32)
    order = np.lexsort((roads[1], roads[0]))
    hour = np.arange(days * 288, dtype=np.float32)[:, None] / 288 * 2 * np.pi
    phase = rng.uniform(0, 1, num_nodes).astype(np.float32)
    readings = rng.standard_normal((len(hour), num_nodes), dtype=np.float32)
    readings += 55 - 12 * np.sin(hour) * np.cos(phase) - 6 * np.cos(2 * hour) * np.sin(phase)
    return City.from_edge_index(
        readings, torch.from_numpy(roads[:, order]), torch.from_numpy(weight[order]), name="grid", channels="speed"
    )


# --- a process


def peak() -> int:
    """Bytes that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(num_nodes: int, whole: bool, epochs: int) -> dict[str, float]:
    """Trains for some epochs, in a process of its own; seconds are the median epoch's."""
    torch.manual_seed(0)
    model = ModelConfig(cell="GConvGRU", hidden_channels=HIDDEN, profile=False).build()
    before = peak()
    city = road_grid(num_nodes)
    begin = time.process_time()
    blocks = None if whole else node_blocks(city, NODES_PER_BATCH, NUM_HOPS)
    cutting = time.process_time() - begin
    steps = 1 if blocks is None else len(blocks)
    walls, cpus = [], []

    def progress(done: int, total: int) -> None:
        walls.append(time.perf_counter())
        cpus.append(time.process_time())

    # One step more than the epochs: the first one is after a validation, as the last one is before one.
    fit(
        model,
        city,
        [],
        "target_only",
        steps=epochs * steps + 2,
        batch_size=BATCH_SIZE,
        validation_days=0.05,
        evaluations=1,
        nodes_per_batch=None if whole else NODES_PER_BATCH,
        num_hops=NUM_HOPS,
        progress=progress,
    )
    ends = range(0, epochs * steps + 1, steps)
    return {
        "memory": peak(),
        "before": before,
        "cutting": cutting,
        "wall": statistics.median(walls[b] - walls[a] for a, b in itertools.pairwise(ends)),
        "cpu": statistics.median(cpus[b] - cpus[a] for a, b in itertools.pairwise(ends)),
    }


def in_process(num_nodes: int, whole: bool, epochs: int) -> dict[str, float] | None:
    """The same in a new process; ``None`` where it runs out of memory."""
    command = [sys.executable, __file__, "--child", str(num_nodes), str(int(whole)), str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    if "allocate memory" in done.stderr or "MemoryError" in done.stderr or "bad_alloc" in done.stderr:
        return None
    raise RuntimeError(f"{num_nodes} nodes: {done.stderr}")


# --- growth with the size


def epochs_in_turns(sizes: list[int], turns: int) -> list[dict[str, float]]:
    """CPU seconds of an epoch by size and width of the halo: the median step times the number of blocks.

    Steps of all sizes take turns, so that what else the machine does slows all of them down alike.
    """
    rows = []
    for size in sizes:
        city = road_grid(size)
        for num_hops in HALOS_IN_TURNS:
            torch.manual_seed(0)
            model = ModelConfig(cell="GConvGRU", hidden_channels=HIDDEN, profile=False).build()
            optimizer = torch.optim.Adam(model.parameters())
            batches = TrainingBatches(
                model, city, [], 1, BATCH_SIZE, 0, nodes_per_batch=NODES_PER_BATCH, num_hops=num_hops
            )
            rows.append((size, num_hops, model, optimizer, batches, list[float]()))
    for step in range(-1, turns):  # the first one warms up
        for _, _, model, optimizer, batches, taken in rows:
            begin = time.process_time()
            optimizer.zero_grad()
            batches.loss(model, step + 1, source=False).backward()
            optimizer.step()
            if step >= 0:
                taken.append(time.process_time() - begin)
    found = []
    for size, num_hops, _, _, batches, taken in rows:
        blocks = batches.target.blocks
        seen = size if blocks is None else sum(len(block.nodes) for block in blocks)
        count = 1 if blocks is None else len(blocks)
        cpu = count * statistics.median(taken)
        found.append({"size": size, "halo": num_hops, "blocks": count, "seen": seen / size, "cpu": cpu})
    return found


# --- what a halo costs


def halo_costs(steps: int) -> list[dict[str, float | None]]:
    """Of a bundled city: forecasts in blocks by a model that learned from the whole city, and by one that did not."""
    city = load_city(CITY).select("speed")
    visible, rest = city.few_shot(3)
    windows = rest.between(0, 2 * rest.steps_per_day).windows(12, 12, stride=6)

    def trained(most: int | None, num_hops: int) -> torch.nn.Module:
        torch.manual_seed(0)
        model = ModelConfig(cell="GConvGRU", hidden_channels=HIDDEN).build()
        found = fit(
            model,
            visible,
            [],
            "target_only",
            steps=steps,
            batch_size=BATCH_SIZE,
            evaluations=4,
            nodes_per_batch=most,
            num_hops=num_hops,
        )
        results.append(found)
        found.model.load_state_dict(found.last_model)  # the chosen one may be the untrained one, which knows no roads
        return found.model

    def forecasts(model: torch.nn.Module, blocks: NodeBlocks | None) -> tuple[torch.Tensor, float]:
        found = torch.empty(len(windows), 12, city.num_nodes, 1)
        errors = HorizonErrors(12)
        of = results[-1]
        for batch, forecast in forecast_windows(model, windows, of.scaler, support=of.support, blocks=blocks):
            first, last = int(batch.index[0]), int(batch.index[-1]) + 1
            if batch.block is None:
                found[first:last] = forecast
            else:
                found[first:last, :, batch.block.core] = forecast[:, :, batch.block.core_mask]
            errors.update(forecast, batch.y, batch.y_mask)
        return found, errors.compute().mean_mae

    results: list = []
    model = trained(None, 0)
    whole, error = forecasts(model, None)
    rows: list[dict[str, float | None]] = [
        {"halo": None, "seen": 1.0, "difference": 0.0, "largest": 0.0, "error": error, "trained": error}
    ]
    for num_hops in HALOS:
        blocks = NodeBlocks(city, HALO_BLOCK, num_hops)
        found, error = forecasts(model, blocks)
        gap = (found - whole).abs()
        learned = trained(HALO_BLOCK, num_hops)
        rows.append(
            {
                "halo": num_hops,
                "seen": sum(len(block.nodes) for block in blocks) / city.num_nodes,
                "difference": gap.mean().item(),
                "largest": gap.max().item(),
                "error": error,
                "trained": forecasts(learned, blocks)[1],
            }
        )
    return rows


# --- the report


def memory_table(runs: dict[int, dict[str, float]], wholes: dict[int, dict[str, float] | None]) -> str:
    lines = [
        "| nodes | peak memory (MiB) | CPU s/epoch | wall s/epoch | whole city in a batch: MiB | CPU s/epoch |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, run in runs.items():
        whole = wholes[size]
        as_whole = f"{whole['memory'] / MIB:,.0f} | {whole['cpu']:.2f}" if whole else "more than 8 GiB | not measured"
        lines.append(f"| {size:,} | {run['memory'] / MIB:,.0f} | {run['cpu']:.2f} | {run['wall']:.2f} | {as_whole} |")
    return "\n".join(lines)


def growth_table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| nodes | halo (hops) | blocks | nodes seen | CPU s/epoch | µs a node | from the size before "
        "| from the smallest |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    before: dict[float, list[float]] = {}  # by halo: what a node took at every size so far
    for row in rows:
        a_node = row["cpu"] / row["size"]
        last = before.setdefault(row["halo"], [])
        last.append(a_node)
        halo = row["halo"] if row["blocks"] > 1 else "none"
        lines.append(
            f"| {row['size']:,} | {halo} | {row['blocks']} | {row['seen']:.2f} x | {row['cpu']:.2f} | "
            f"{a_node * 1e6:.0f} | {a_node / last[-2:][0] - 1:+.0%} | {a_node / last[0] - 1:+.0%} |"
        )
    return "\n".join(lines)


def halo_table(rows: list[dict[str, float | None]]) -> str:
    lines = [
        "| halo (hops) | nodes seen | mean difference (km/h) | largest | MAE | MAE, trained in such blocks |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        halo = "whole city" if row["halo"] is None else f"{row['halo']}"
        lines.append(
            f"| {halo} | {row['seen']:.2f} x | {row['difference']:.4f} | {row['largest']:.2f} | {row['error']:.3f} | "
            f"{row['trained']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000", help="Numbers of nodes.")
    parser.add_argument("--turns", type=int, default=151, help="Steps of every size of the second table.")
    parser.add_argument("--halo-steps", type=int, default=100, help="Steps of each training of the third table.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "large_city.md")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        num_nodes, whole, epochs = arguments.child
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
        torch.set_num_threads(1)
        print(json.dumps(measure(num_nodes, bool(whole), epochs)))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    runs: dict[int, dict[str, float]] = {}
    for size in sizes:
        found = in_process(size, whole=False, epochs=max(1, 20_000 // size))
        if found is None:
            raise MemoryError(f"{size} nodes: more than 8 GiB")
        runs[size] = found
    memory = memory_table(runs, {size: in_process(size, whole=True, epochs=1) for size in sizes})
    torch.set_num_threads(1)
    growth, halos = growth_table(epochs_in_turns(sizes, arguments.turns)), halo_table(halo_costs(arguments.halo_steps))
    network = load_city(CITY)
    epochs = ", ".join(str(max(1, 20_000 // size)) for size in sizes)
    before = runs[sizes[0]]["before"] / MIB
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torch-geometric", "scipy"))
    text = f"""# A large city

Made by `python benchmarks/large_city.py --sizes {arguments.sizes} --turns {arguments.turns}` on {date.today()} with
tsjt_pyg {tsjt_pyg.__version__}, {versions}, Python {platform.python_version()}, one thread of {os.cpu_count()} cores
({platform.machine()}). CPU seconds are the process's own.

A synthetic grid of roads with {DAYS} days of simulated readings every 5 minutes; GConvGRU, {HIDDEN} hidden channels,
{BATCH_SIZE} windows of 12 + 12 steps a step, blocks of at most {NODES_PER_BATCH:,} nodes. An epoch: every node is
in the core of a block once.

## Memory

`fit` in a process of its own with a limit of 8 GiB, which had {before:,.0f} MiB before there was a city; halos of
width {NUM_HOPS}. Seconds as they were timed there: the median of {epochs} epochs. Cutting the largest city into
blocks took {runs[sizes[-1]]["cutting"]:.1f} s.

{memory}

## Time

Steps of all sizes took turns in one process; an epoch is the median of {arguments.turns} steps times the number of
blocks. *Nodes seen*: those of all blocks with their halos, beside the city's. Last columns:
growth of the CPU seconds a node, with a halo of that width.

{growth}

## What a halo costs

`{CITY}` ({network.num_nodes} nodes, {network.num_edges} edges) in blocks of at most {HALO_BLOCK} nodes; GConvGRU,
{arguments.halo_steps} steps on three visible days of the target alone, two days forecast. *Difference*: of forecasts in
blocks from forecasts of the whole city by the same model, which was trained on the whole city. Last column: models
trained and forecast in blocks, as many steps of as many windows. All models are those after their last step.

{halos}
"""
    print(text)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
