"""Checkpoints: written whole or not at all, loaded without running code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data import City
from ..data.atomic import atomic_path

FORMAT = "tsjt_pyg.checkpoint/1"
LAST, BEST, CONFIG, METRICS = "last.pt", "best.pt", "config.json", "metrics.json"


def describe_city(city: City) -> dict[str, Any]:
    """What a forecast for this city needs later, without its readings."""
    return {
        "name": city.name,
        "edge_index": city.edge_index,
        "edge_weight": city.edge_weight,
        "node_ids": list(city.node_ids),
        "channels": list(city.channels),
        "units": list(city.units),
        "interval_seconds": city.interval.total_seconds(),
    }


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` (tensors, numbers, strings, lists and dicts of them) to ``path``."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def save_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON to ``path``."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_checkpoint(path: str | Path, *, prefer: str = BEST) -> dict[str, Any]:
    """The content of a checkpoint.

    Args:
        path: A ``.pt`` file, or a run's folder.
        prefer: Which file of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or not one of ours.
    """
    file = Path(path)
    if file.is_dir():
        file = file / prefer
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {file}; `tsjt train --output {Path(path)}` writes one")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: not a checkpoint, or a damaged one ({reason})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{file}: expected a checkpoint of format {FORMAT}, found {found}")
    return content


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> None:
    """Raises a ValueError that says what differs between the run in a checkpoint and the one that would resume it."""
    differing = [
        f"{key} (there {saved.get(key)!r}, here {now.get(key)!r})"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(
            f"resume: {file} is from another run: {'; '.join(differing)}. Use the same settings, or "
            "another output folder"
        )
