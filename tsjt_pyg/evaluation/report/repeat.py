"""The command, and the call in Python, that make a run again."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from ...training import STRATEGIES, ModelConfig
from ..comparison import NAIVE

_FIT = ("steps", "batch_size", "lr", "validation_days", "nodes_per_batch")
"""Settings that `compare` and `fit` share."""


def compare_command(protocol: dict[str, Any]) -> str | None:
    """`tsjt compare …`; ``None`` if it cannot say all of the protocol."""
    seeds, strategies = protocol["seeds"], protocol["strategies"]
    options = _options(protocol)
    if (
        options is None
        or seeds != list(range(len(seeds)))
        or not all(map(_is_known, strategies))
        or protocol.get("naive", list(NAIVE)) != list(NAIVE)
    ):
        return None
    names = ",".join(strategy["name"] for strategy in strategies)
    return _joined("tsjt", "compare", *options, "--strategies", names, "--seeds", len(seeds))


def train_command(protocol: dict[str, Any], output: str) -> str | None:
    """`tsjt train …`; ``None`` if it cannot say all of the protocol."""
    [strategy], [seed] = protocol["strategies"], protocol["seeds"]
    options = _options(protocol)
    if options is None or not _is_known(strategy):
        return None
    return _joined("tsjt", "train", *options, "--strategy", strategy["name"], "--seed", seed, "--output", output)


def compare_call(protocol: dict[str, Any]) -> str:
    """The call of :func:`~tsjt_pyg.evaluation.compare`."""
    named = ("visible_days", "seeds", "naive", "device", "threads", *_FIT)
    arguments = {name: protocol[name] for name in named if name in protocol}
    if arguments.get("naive") == list(NAIVE):
        del arguments["naive"]
    lines = [
        "from tsjt_pyg.evaluation import compare",
        "from tsjt_pyg.training import ModelConfig, Strategy",
        *_cities(protocol),
        "compare(",
        "    target,",
        "    sources,",
        f"    [{', '.join(map(_strategy, protocol['strategies']))}],",
        f"    model={_model(protocol)},",
        *(f"    {name}={value!r}," for name, value in arguments.items()),
        ")",
    ]
    return "\n".join(lines)


def train_call(protocol: dict[str, Any]) -> str:
    """The call of :func:`~tsjt_pyg.training.fit`."""
    [strategy], [seed] = protocol["strategies"], protocol["seeds"]
    arguments = {"seed": seed, **{name: protocol[name] for name in _FIT if name in protocol}}
    lines = [
        "import torch",
        "",
        "from tsjt_pyg.training import ModelConfig, Strategy, fit",
        *_cities(protocol),
        f"visible, test = target.few_shot(days={protocol['visible_days']!r})",
        f"torch.manual_seed({seed})",
        f"model = {_model(protocol)}.build()",
        f"result = fit(model, visible, sources, {_strategy(strategy)}, {_arguments(arguments)})",
    ]
    return "\n".join(lines)


def _cities(protocol: dict[str, Any]) -> list[str]:
    names, channels = [protocol["target"], *protocol["sources"]], protocol["channels"]
    about = [
        "",
        "# root= where they lie. Cities of your own: the same objects, whose fingerprints are in the table below.",
    ]
    if len(channels) == 1:
        call = f"target, sources = load_task({names[0]!r}, {names[1:]!r}, channel={channels[0]!r})"
        return ["from tsjt_pyg.datasets import load_task", *about, call]
    call = f"target, *sources = (load_city(name).select({channels!r}) for name in {names!r})"
    return ["from tsjt_pyg.datasets import load_city", *about, call]


def _model(protocol: dict[str, Any]) -> str:
    model = protocol["model"]
    return f"ModelConfig({_arguments(model)})" if isinstance(model, dict) else "your_model  # as printed below"


def _strategy(strategy: dict[str, Any]) -> str:
    return repr(strategy["name"]) if _is_known(strategy) else f"Strategy({_arguments(strategy)})"


def _is_known(strategy: dict[str, Any]) -> bool:
    known = STRATEGIES.get(strategy["name"])
    return known is not None and asdict(known) == strategy


def _options(protocol: dict[str, Any]) -> list[Any] | None:
    """Options that `tsjt compare` and `tsjt train` share; ``None`` if they cannot say all of the protocol."""
    model, usual = protocol["model"], asdict(ModelConfig())
    if not isinstance(model, dict) or any(model[name] != usual[name] for name in ("K", "prompt_channels", "channels")):
        return None
    named = {
        "target": protocol["target"],
        "sources": ",".join(protocol["sources"]) or None,
        "channel": protocol["channels"][0],
        "visible-days": protocol["visible_days"],
        "validation-days": protocol["validation_days"],
        "steps": protocol["steps"],
        "batch-size": protocol["batch_size"],
        "lr": protocol["lr"],
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


def _joined(*words: Any) -> str:
    return shlex.join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
