"""What a report shows, read from the folder of a comparison or of a training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ...training.checkpoint import CONFIG, METRICS
from ..details import CITY, LAST_VALUE, RUN, Arrays, load_details
from ..metrics import Errors
from ..table import REFERENCE, Comparison, RunRecord
from .repeat import compare_call, compare_command, train_call, train_command


@dataclass(frozen=True)
class Shown:
    """A run and its details.

    Args:
        folder: Where it lies.
        comparison: Its table; of a training, that of its strategy beside the last value.
        details: Of each run that has them, by name and seed.
        city: The target city's details, if they are there.
        command: The command that repeats it; ``None`` where no command can.
        call: The call in Python that does.
        remedy: What to do where details are missing.
        compared: Whether it is a comparison.
    """

    folder: Path
    comparison: Comparison
    details: dict[tuple[str, int | None], Arrays]
    city: Arrays | None
    command: str | None
    call: str
    remedy: str
    compared: bool = True
    lost: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Strategies and naive forecasts with a result."""
        return self.comparison.names

    @property
    def reference(self) -> str | None:
        """What gains are measured against: ``target_only``, of a training the last value."""
        return next((name for name in (REFERENCE, "last value") if name in self.names), None)

    def trained(self, name: str) -> bool:
        """Whether it is a strategy, not a naive forecast."""
        return self.comparison.runs(name)[0].seed is not None

    def arrays(self, name: str, what: str) -> list[np.ndarray]:
        """Of every run of this name that has it."""
        found = [self.details.get((name, run.seed), {}).get(what) for run in self.comparison.runs(name)]
        return [array for array in found if array is not None]

    def first(self, name: str, what: str) -> np.ndarray | None:
        """Of the first run of this name that has it."""
        return next(iter(self.arrays(name, what)), None)

    def mae(self, name: str, by: str) -> np.ndarray | None:
        """``[runs, …]`` by hour, weekday or node: nan where nothing was observed."""
        sums = self.arrays(name, by)
        if not sums:
            return None
        total = np.stack(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            means: np.ndarray = total[:, 0] / total[:, 1]
        return means

    @cached_property
    def skewed(self) -> list[str]:
        """Strategies whose gradients were filtered, and whose history is there."""
        return [name for name in self.names if any(len(steps) for steps in self.arrays(name, "conflict_step"))]


def read_run(folder: Path) -> Shown:
    """The run in a folder.

    Raises:
        FileNotFoundError: If it is no folder of a comparison or of a training.
        ValueError: If a file in it is damaged, or a training wrote no details.
    """
    if (folder / "comparison.json").is_file():
        return _comparison(folder)
    if (folder / METRICS).is_file():
        return _training(folder)
    raise FileNotFoundError(
        f"{folder}: there is neither comparison.json nor {METRICS} in it; give the folder that `tsjt compare "
        "--output`, `tsjt demo` or `tsjt train` wrote to"
    )


def _comparison(folder: Path) -> Shown:
    comparison = Comparison.load(folder)
    details, lost = {}, []
    for run in comparison.records:
        found = None if run.key is None else load_details(folder, run.key)
        if found is None:
            lost.append(run.name if run.seed is None else f"{run.name}, seed {run.seed}")
        else:
            details[run.name, run.seed] = found
    city = load_details(folder, CITY)
    protocol = comparison.protocol
    if city is not None:
        # The folder may have been used for another comparison that did not get to its end.
        same = protocol.get("fingerprints", {}).get("test") == str(city["fingerprint"])
        if not same or city["size"].tolist() != [protocol["history"], protocol["horizon"]]:
            city = None
    remedy = "The same comparison with the same output folder makes what is missing; runs that have all are kept."
    return Shown(
        folder, comparison, details, city, compare_command(protocol), compare_call(protocol), remedy, lost=lost
    )


def _training(folder: Path) -> Shown:
    try:
        metrics, config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (METRICS, CONFIG))
        city, last_value, run = (load_details(folder, name) for name in (CITY, LAST_VALUE, RUN))
        if city is None or last_value is None or run is None:
            raise ValueError(
                f"{folder}: the details of this training are not there; the command that made it, with --resume, "
                "writes them without training anew"
            )
        name, seed = config["strategy"]["name"], config["seed"]
        history, horizon = city["size"].tolist()
        model = config.get("model", "a model of its own")
        records = [
            RunRecord("last value", None, Errors(**metrics["test_last_value"]), 0.0),
            RunRecord(
                name,
                seed,
                Errors(**metrics["test"]),
                metrics["seconds"],
                best_step=metrics["best_step"],
                validation_loss=metrics["validation_loss"],
                stats=metrics["optimizer"],
                sources=metrics["sources"],
            ),
        ]
        protocol = {
            "target": config["target"]["name"],
            "sources": [source["name"] for source in config["sources"]],
            "channels": [config.get("channel", str(city["channel"]))],
            "visible_days": config["visible_days"],
            "test_days": float(city["test_days"]),
            "history": history,
            "horizon": horizon,
            "seeds": [seed],
            "model": model,
            "strategies": [config["strategy"]],
            **{key: config[key] for key in ("steps", "batch_size", "lr", "validation_days", "base", "max_grad_norm")},
            **({"nodes_per_batch": config["nodes_per_batch"]} if "nodes_per_batch" in config else {}),
            "fingerprints": {
                "visible": config["target"]["fingerprint"],
                "test": str(city["fingerprint"]),
                "sources": [source["fingerprint"] for source in config["sources"]],
            },
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}: {METRICS} or {CONFIG} is not one that `tsjt train` wrote, or is damaged ({error!r}); the "
            "command that made it, with --resume, writes them anew"
        ) from error
    minutes = [float(city["minutes"]) * (step + 1) for step in range(horizon)]
    comparison = Comparison(records, minutes, str(city["unit"]), protocol, metrics["seconds"])
    details = {("last value", None): last_value, (name, seed): run}
    command, call = train_command(protocol, folder.name), train_call(protocol)
    return Shown(folder, comparison, details, city, command, call, "", compared=False)
