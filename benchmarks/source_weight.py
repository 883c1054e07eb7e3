"""Which weight of the source gradient is the library's default: decided on validation days, never on test days.

Trains target_only, pooled and the filtered joint training with several source weights on real cross-city tasks, and
prints the validation loss of each relative to target_only's. The weight with the smallest mean over the tasks is
``DEFAULT_GAMMA_SOURCE`` of :mod:`tsjt_pyg.optim`, and the weight of the strategies "tsjt" and "pooled".

    python benchmarks/source_weight.py --root FOLDER_OF_CITIES
"""

from __future__ import annotations

import argparse
import os
from datetime import date
from pathlib import Path

import numpy as np

from tsjt_pyg.datasets import load_task
from tsjt_pyg.evaluation import Comparison, compare
from tsjt_pyg.training import ModelConfig, Strategy

TASKS = {
    "speed-la": ("los_loop", ["pems04", "pems08"], "speed", 12),
    "taxi-dc": ("jonas_dc", ["jonas_nyc"], "taxi_demand", 6),
}
WEIGHTS = (1.0, 0.3)


def strategies() -> list[Strategy]:
    """Target only, and each weight with and without the filter."""
    found = [Strategy("target_only", source_weight=0.0), Strategy("tsjt_paper", 0.001, 0.2, skewed=True)]
    for weight in WEIGHTS:
        found.append(Strategy(f"pooled {weight:g}:1", source_weight=weight))
        found.append(Strategy(f"tsjt {weight:g}:1", source_weight=weight, skewed=True))
    return found


def validation_change(comparison: Comparison, name: str) -> float:
    """Percent by which the validation loss differs from target_only's, mean over seeds; negative is better."""
    mine = [run.validation_loss for run in comparison.runs(name)]
    reference = [run.validation_loss for run in comparison.runs("target_only")]
    return 100 * (float(np.mean(np.array(mine, float))) / float(np.mean(np.array(reference, float))) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None, help="folder of the real cities (default: TSJT_CITIES)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "source_weight.md")
    arguments = parser.parse_args()

    changes: dict[str, list[float]] = {}
    versions: dict[str, str] = {}
    for task, (target, sources, channel, horizon) in TASKS.items():
        cities = load_task(target, sources, arguments.root, channel)
        found = compare(
            *cities,
            strategies(),
            seeds=arguments.seeds,
            steps=arguments.steps,
            model=ModelConfig(horizon=horizon, profile=False),
            jobs=arguments.jobs,
        )
        versions = found.protocol["versions"]
        for name in found.names[4:]:
            changes.setdefault(name, []).append(validation_change(found, name))
        print({name: round(values[-1], 2) for name, values in changes.items()}, "on", task, flush=True)
    lines = [
        "# Validation loss against target_only, in percent (negative is better)",
        "",
        f"3 visible days, {arguments.steps} steps, {arguments.seeds} seeds, GConvGRU; {date.today()}, CPU, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Made by `benchmarks/source_weight.py`.",
        "",
        "| strategy | " + " | ".join(TASKS) + " | mean |",
        "|---" + "|---:" * (len(TASKS) + 1) + "|",
    ]
    for name, values in sorted(changes.items(), key=lambda item: float(np.mean(item[1]))):
        cells = [f"{value:+.2f}" for value in (*values, float(np.mean(values)))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
