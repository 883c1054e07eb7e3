"""What a report shows, read from the folder of a comparison or of a training."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...training import STRATEGIES, ModelConfig
from ...training.checkpoint import CONFIG, METRICS
from ..details import CITY, LAST_VALUE, RUN, Arrays, load_details
from ..metrics import Errors
from ..naive import NAIVE_FITS
from ..table import REFERENCE, Comparison, RunRecord

_NAIVE = tuple(NAIVE_FITS)[:4]
"""What every comparison of the command line has."""


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
        f"{folder}: there is neither comparison.json nor {METRICS} in it; give the folder that `tsjt compare --output`, "
        "`tsjt demo` or `tsjt train` wrote to"
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
    return Shown(folder, comparison, details, city, _command(protocol), _call(protocol), remedy, lost=lost)


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
            f"{folder}: {METRICS} or {CONFIG} is not one that `tsjt train` wrote, or is damaged ({error!r}); the command "
            "that made it, with --resume, writes them anew"
        ) from error
    minutes = [float(city["minutes"]) * (step + 1) for step in range(horizon)]
    comparison = Comparison(records, minutes, str(city["unit"]), protocol, metrics["seconds"])
    details = {("last value", None): last_value, (name, seed): run}
    words = ["tsjt", "train", *_options(protocol), "--strategy", name, "--seed", seed, "--output", folder.name]
    call = _call(protocol, training=True)
    return Shown(folder, comparison, details, city, shlex.join(map(str, words)), call, "", compared=False)


def _options(protocol: dict[str, Any]) -> list[Any]:
    """The options that `tsjt compare` and `tsjt train` share."""
    model = protocol["model"]
    named = {
        "target": protocol["target"],
        "sources": ",".join(protocol["sources"]) or None,
        "channel": protocol["channels"][0],
        "visible-days": f"{protocol['visible_days']:g}",
        "validation-days": f"{protocol['validation_days']:g}",
        "steps": protocol["steps"],
        "batch-size": protocol["batch_size"],
        "lr": f"{protocol['lr']:g}",
        "cell": model["cell"],
        "hidden": model["hidden_channels"],
        "prompts": model["num_prompts"],
        "history": protocol["history"],
        "horizon": protocol["horizon"],
        "nodes-per-batch": protocol.get("nodes_per_batch"),
        "threads": protocol.get("threads"),
        "device": protocol.get("device"),
    }
    words = [word for name, value in named.items() if value is not None for word in (f"--{name}", value)]
    return [*words, "--profile" if model["profile"] else "--no-profile"]


def _command(protocol: dict[str, Any]) -> str | None:
    """`tsjt compare …`, if it can say all of the protocol."""
    model, seeds, strategies = protocol["model"], protocol["seeds"], protocol["strategies"]
    known = {name: asdict(strategy) for name, strategy in STRATEGIES.items()}
    usual = asdict(ModelConfig())
    if (
        not isinstance(model, dict)
        or any(model.get(name) != usual[name] for name in ("K", "prompt_channels", "channels"))
        or seeds != list(range(len(seeds)))
        or any(known.get(strategy["name"]) != strategy for strategy in strategies)
        or tuple(protocol.get("naive", _NAIVE)) != _NAIVE
    ):
        return None
    names = ",".join(strategy["name"] for strategy in strategies)
    words = ["tsjt", "compare", *_options(protocol), "--strategies", names, "--seeds", len(seeds)]
    return shlex.join(map(str, words))


def _call(protocol: dict[str, Any], training: bool = False) -> str:
    """The call in Python; cities are loaded by name, and a model that is none of ModelConfig's has to be put in."""
    model = protocol["model"]
    own = not isinstance(model, dict)
    build = "model" if own else f"ModelConfig({_arguments(model)})"
    known = {name: asdict(strategy) for name, strategy in STRATEGIES.items()}
    strategies = [
        repr(strategy["name"]) if known.get(strategy["name"]) == strategy else f"Strategy({_arguments(strategy)})"
        for strategy in protocol["strategies"]
    ]
    shared = {name: protocol[name] for name in ("steps", "batch_size", "lr", "validation_days")}
    if "nodes_per_batch" in protocol:
        shared["nodes_per_batch"] = protocol["nodes_per_batch"]
    channels = protocol["channels"]
    task = f"{protocol['target']!r}, {protocol['sources']!r}, channel={channels[0]!r}"
    lines = [
        "import torch" if training else "",
        "from tsjt_pyg.datasets import load_task",
        "" if training else "from tsjt_pyg.evaluation import compare",
        f"from tsjt_pyg.training import {'ModelConfig, Strategy, fit' if training else 'ModelConfig, Strategy'}",
        "",
        "# Data sets that `tsjt cities` lists; cities of your own: the same City objects, with the fingerprints above.",
        f"target, sources = load_task({task})" + ("" if len(channels) == 1 else f"  # with channels {channels}"),
    ]
    if own:
        lines.append("# model: your own, as printed above")
    if training:
        lines += [
            f"visible, test = target.few_shot({protocol['visible_days']!r})",
            f"torch.manual_seed({protocol['seeds'][0]})",
            f"result = fit({build}{'' if own else '.build()'}, visible, sources, {strategies[0]}, "
            f"seed={protocol['seeds'][0]}, {_arguments(shared)})",
        ]
    else:
        more = {name: protocol[name] for name in ("visible_days", "seeds", "device", "threads") if name in protocol}
        naive = [name for name in protocol.get("naive", ())]
        if naive and tuple(naive) != _NAIVE:
            more["naive"] = naive
        lines += [
            "compare(",
            "    target,",
            "    sources,",
            f"    [{', '.join(strategies)}],",
            f"    model={build},",
            *(f"    {name}={value!r}," for name, value in {**more, **shared}.items()),
            ")",
        ]
    return "\n".join(line for number, line in enumerate(lines) if line or number == 4)


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
