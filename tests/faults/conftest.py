"""A training as a command of its own, which may be killed, and what tells whether it was harmed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SERVER = Path(__file__).with_name("command_server.py")


class Command:
    """A `tsjt …` in a process of its own."""

    def __init__(self, server: subprocess.Popen[str], arguments: list[str], log: Path, largest: int | None) -> None:
        self.server, self.log = server, log
        self.status: int | None = None
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"arguments": arguments, "log": str(log), "largest": largest}) + "\n")
        server.stdin.flush()
        self.process = int(server.stdout.readline())

    def wait(self) -> int:
        """Its exit status; negative: the signal that killed it."""
        if self.status is None:
            assert self.server.stdout is not None
            self.status = int(self.server.stdout.readline())
        return self.status

    def is_running(self) -> bool:
        """Whether it has not ended yet; its server is told of its end at once."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def printed(self) -> str:
        """On both streams, in one line."""
        return " ".join(self.log.read_text(encoding="utf-8").split())

    def kill(self, number: int) -> int:
        """Sends a signal, where the process has not ended, and waits."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)
        return self.wait()


@pytest.fixture(scope="session")
def start_tsjt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts a `tsjt …`; one at a time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    log = tmp_path_factory.mktemp("log") / "tsjt.txt"
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:

        def start(*arguments: Any, largest: int | None = None) -> Command:
            log.write_text("")
            return Command(server, [str(argument) for argument in arguments], log, largest)

        yield start
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def outcome() -> Callable[[Path], Any]:
    """All of a finished run's folder that does not depend on the time of day, as comparable values."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), list(value.shape), value.numpy().tobytes()
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    def of(folder: Path) -> Any:
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["seconds"]
        files = {name: torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")}
        return plain({"metrics": metrics, **files})

    return of
