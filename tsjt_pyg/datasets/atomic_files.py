"""What ``config.json`` says beside LibCity's atomic files, and the names that it gives to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import read_json

CONFIG = "config.json"

_KEYS = {".geo": "geo_file", ".rel": "rel_file", ".dyna": "data_files", ".grid": "data_files"}
"""Where the names of the files are found."""


def read_info(folder: Path) -> dict[str, Any]:
    """What is under ``info`` in the ``config.json`` of ``folder``; empty where there is no such file.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / CONFIG
    info = read_json(path).get("info", {}) if path.is_file() else {}
    if not isinstance(info, dict):
        raise ValueError(f"{path}: expected an object under 'info', found {type(info).__name__}")
    return info


def first_of(said: Any, default: str) -> str:
    """A name in ``config.json``: text, or a list of one; never a path out of the folder."""
    found = said[0] if isinstance(said, list) and said else said
    return Path(found).name if isinstance(found, str) and found else default


def atomic_names(folder: Path) -> dict[str, str]:
    """The names that ``config.json`` gives to the files, by their ending; none where it is damaged."""
    try:
        info = read_info(folder)
    except ValueError:  # the reader says so; a list of cities goes on
        return {}
    said = {ending: first_of(info.get(key), "") for ending, key in _KEYS.items()}
    return {ending: f"{name}{ending}" for ending, name in said.items() if name}
