"""A run's folder: what is written to it, and what a run that continues finds there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch

from ..data import City
from ..data.atomic import remove_leftovers
from .checkpoint import (
    BEST,
    CONFIG,
    LAST,
    best_of,
    check_same_run,
    describe_city,
    kept_checkpoints,
    load_newest,
    refuse_other_run,
    save_checkpoint,
    save_json,
)
from .guard import SourceVerdict
from .model_state import differences, model_state
from .run import TrainingRun

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class RunFolder:
    """A run's folder.

    Args:
        path: The folder; it need not exist.
        settings: Of the run.
        target: Its visible days.
        resume: Whether the run that is there is continued.
        keep: How many checkpoints of the last steps to keep.

    Raises:
        ValueError: If the settings are not plain, ``path`` is a file, holds a run that is not to be continued, or
            another training is writing to it.
    """

    def __init__(self, path: Path, settings: dict[str, Any], target: City, resume: bool, keep: int) -> None:
        try:
            settings = json.loads(json.dumps(settings, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: expected plain numbers and strings that JSON can hold ({error})") from error
        self.path, self.settings, self.keep = path, settings, keep
        # Copies: of a view, torch would save the memory behind it, which holds the days after the visible ones, too.
        readings, mask = target.readings.clone(), target.mask.clone()
        self.support = {"readings": readings, "mask": mask, "start": str(target.start)}
        self.about = {"config": settings, "versions": _versions(), "city": describe_city(target)}
        self.saved_step: int | None = None
        self._last_is_good = True
        self._lock: int | None = None
        if path.exists() and not path.is_dir():
            raise ValueError(f"output: {path} is a file, expected a folder")
        self.resumes = bool(kept_checkpoints(path))
        if self.resumes and not resume:
            raise ValueError(
                f"output: {path} holds a run already; resume=True (--resume) continues it, another folder keeps both"
            )
        if path.exists():
            self._claim()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Lets other trainings write to the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self, model: torch.nn.Module) -> dict[str, Any]:
        """The state of the run that is continued, from its newest good checkpoint.

        Raises:
            ValueError: If no checkpoint is good, or it is of another run or another model; the error says what differs.
        """
        content, file = load_newest(self.path)
        check_same_run(content["config"], self.settings, file)
        if "optimizer" not in content:
            raise ValueError(f"resume: {file} holds a model alone, as best.pt does, so no training can be continued")
        refuse_other_run(differences(content["model"], model_state(model)), file)
        if content["versions"] != _versions():
            raise ValueError(
                f"resume: {file} is of {_text(content['versions'])}, here is {_text(_versions())}, with which it would "
                "not end with the same bits; install those versions, or give another output folder"
            )
        self.saved_step = content["step"]
        self._last_is_good = file.name == LAST
        return content

    def save(self, run: TrainingRun, state: Mapping[str, Any], verdicts: Sequence[SourceVerdict]) -> None:
        """Writes the run as it is after a step, when its :meth:`~TrainingRun.state` was taken.

        Raises:
            ValueError: If another training writes to the folder.
            OSError: If it cannot be written; the error names the file and the way to go on.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim()
            remove_leftovers(self.path)
            content = {
                **state,
                **self.about,
                "support": {} if run.batches.target.support is None else self.support,
                "scaler": run.batches.target.scaler.state_dict(),
                "verdicts": [asdict(verdict) for verdict in verdicts],
            }
            save_json(self.path / CONFIG, self.settings)
            if self.saved_step != run.step or not self._last_is_good:
                # A damaged last.pt is written over; in the place of an older one it would push out a good one.
                keep = self.keep if self._last_is_good else None
                save_checkpoint(self.path / LAST, content, keep)
                self.saved_step, self._last_is_good = run.step, True
            save_checkpoint(self.path / BEST, best_of(content))
        except OSError as error:
            stopped = OSError(f"stopped at step {run.step} of {run.steps}: {error}; {self.way_on()}")
            stopped.errno = error.errno
            raise stopped from error

    def _claim(self) -> None:
        """Makes the folder this training's, until its end or that of the process."""
        if fcntl is None or self._lock is not None:
            return
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"output: another training is writing to {self.path}; wait for its end, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            os.close(lock)
            return
        self._lock = lock

    def __getstate__(self) -> dict[str, Any]:
        """What the other processes of a training are told: they write nothing."""
        return {"path": self.path, "resumes": self.resumes, "saved_step": None, "_lock": None}

    def way_on(self) -> str:
        """How a run that stopped goes on."""
        if self.saved_step is None:
            return "there is no checkpoint yet"
        return f"resume=True (--resume) continues from step {self.saved_step}, {self.path / LAST}"


def _versions() -> dict[str, str]:
    """Of what decides the bits of a run."""
    return {name: version(name) for name in ("tsjt-pyg", "torch")}


def _text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
