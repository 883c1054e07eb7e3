"""Checkpoints: written whole or not at all, loaded without running code, and only where no byte has changed."""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..data import City
from ..data.atomic import atomic_path
from .sealed_file import DamagedFileError, UnsealedFileError, check_seal, save_sealed

logger = logging.getLogger(__name__)

FORMAT = "tsjt_pyg.checkpoint/2"
LAST, BEST, CONFIG, METRICS = "last.pt", "best.pt", "config.json", "metrics.json"

ABOUT = ("config", "versions", "city", "support", "scaler", "verdicts")
"""What a checkpoint holds beside the state of the training."""


class DamagedCheckpointError(ValueError):
    """The file is half-written or damaged, or no checkpoint at all."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason, self.remedy = reason, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes of a training are told, too."""
        return type(self), (self.reason, self.remedy)


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


def save_checkpoint(path: Path, content: Mapping[str, Any], keep: int | None = None) -> None:
    """Writes ``content`` (tensors, numbers, strings, lists and dicts of them) to ``path``.

    Args:
        path: The file.
        content: What it should hold.
        keep: How many to keep, this one included: what was at ``last.pt`` moves to ``last-1.pt``, that to
            ``last-2.pt``, and so on. None: ``path`` is written over, and no other file touched.
    """
    with atomic_path(path) as temporary:
        save_sealed(temporary, {"format": FORMAT, **content})
        # Only now that the new one lies on the disk; at any moment there is a good file at path.
        if keep is not None:
            _move_older(path, keep)


def _move_older(path: Path, keep: int) -> None:
    for number, file in reversed(list(_older(path))):
        if number + 1 < keep:
            file.replace(_numbered(path, number + 1))
        else:
            file.unlink()
    if keep > 1 and path.is_file():
        try:
            _numbered(path, 1).hardlink_to(path)
        except OSError:  # a file system without links: for a moment there is no file at path
            path.replace(_numbered(path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _older(path: Path) -> Iterator[tuple[int, Path]]:
    """The older ones beside ``path`` and their numbers, ascending."""
    pattern = re.compile(rf"{re.escape(path.stem)}-([1-9]\d*){re.escape(path.suffix)}")
    matches = ((pattern.fullmatch(file.name), file) for file in path.parent.glob(f"{path.stem}-*{path.suffix}"))
    yield from sorted((int(match[1]), file) for match, file in matches if match)


def kept_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, the newest first."""
    last = folder / LAST
    return [*([last] if last.is_file() else []), *(file for _, file in _older(last))]


def save_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON to ``path``."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def best_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What ``best.pt`` holds, from what ``last.pt`` does."""
    best = {"model": content["best_model"], "step": content["best_step"], "validation_loss": content["best_loss"]}
    return {**best, **{key: content[key] for key in ABOUT}}


def load_checkpoint(path: str | Path, *, prefer: str = BEST) -> dict[str, Any]:
    """The content of a checkpoint.

    Of a folder whose ``best.pt`` is damaged or not there, it is taken from the newest checkpoint that is good; of one
    whose ``last.pt`` is, it is the one before. A warning says so.

    Args:
        path: A ``.pt`` file, or a run's folder.
        prefer: Which file of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged (of a folder: all are) or not one of ours.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_file(path)
    if prefer == LAST:
        return load_newest(path)[0]
    try:
        return _load_file(path / prefer)
    except (FileNotFoundError, DamagedCheckpointError) as error:
        if not kept_checkpoints(path):
            raise
        content, file = load_newest(path)
        reason = error.reason if isinstance(error, DamagedCheckpointError) else f"there is no {path / prefer}"
        logger.warning("%s; what it held was taken from %s", reason, file)
        return best_of(content)


def load_newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The newest good checkpoint of a run's folder, and its file; damaged ones are passed over with a warning.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If all are damaged, or the newest good one is not one of ours.
    """
    files = kept_checkpoints(folder)
    damaged: list[str] = []
    for file in files or [folder / LAST]:
        try:
            content = _load_file(file)
        except DamagedCheckpointError as error:
            damaged.append(error.reason)
            continue
        for reason in damaged:
            logger.warning("%s; the one before it is taken: %s, step %s", reason, file, content.get("step"))
        return content, file
    raise DamagedCheckpointError(
        "; ".join(damaged),
        f"No checkpoint in {folder} is good: train again in another folder, or delete this one",
    )


def _load_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        folder = file.parent if file.suffix == ".pt" else file
        raise FileNotFoundError(f"checkpoint: there is no file {file}; `tsjt train --output {folder}` writes one")
    try:
        check_seal(file)
    except UnsealedFileError as error:
        found = _format_of(file)
        if found not in (FORMAT, None):
            raise _other_format(file, found) from error
        raise _damaged(file, error) from error
    except DamagedFileError as error:
        raise _damaged(file, error) from error
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if content["format"] != FORMAT:
        raise _other_format(file, content["format"])
    return content


def _damaged(file: Path, error: DamagedFileError) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{file}: not a checkpoint, or a damaged one ({error})",
        f"Its folder may hold a good one: `tsjt train --resume` and `tsjt forecast --checkpoint {file.parent}` look "
        "for it",
    )


def _other_format(file: Path, found: Any) -> ValueError:
    return ValueError(
        f"{file}: expected a checkpoint of format {FORMAT}, found {found}; use the version of tsjt_pyg that wrote it, "
        "or train again in another folder"
    )


def _format_of(file: Path) -> Any:
    """What a file says that it is, "none" where it does not; None where it cannot be loaded."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    return content.get("format", "none") if isinstance(content, dict) else "none"


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> None:
    """Raises a ValueError that says what differs between the run in a checkpoint and the one that would resume it."""
    there, here = dict(_flat(saved)), dict(_flat(now))
    refuse_other_run(
        [
            f"{key} (there {there.get(key)!r}, here {here.get(key)!r})"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ],
        file,
    )


def refuse_other_run(differing: list[str], file: Path) -> None:
    """Raises a ValueError that names these differences, where there are any."""
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"resume: {file} is from another run: {'; '.join(differing[:5])}{more}. Use the same settings, or "
            "another output folder"
        )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their path, as in ``sources[0].name``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield f"{path}, how many", len(value)
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{i}]")
    else:
        yield path, value
