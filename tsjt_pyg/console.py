"""What the commands print with: two consoles, errors in one line, a log above the bar."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import typer
from joblib.externals.loky.process_executor import BrokenProcessPool
from rich.console import Console
from rich.logging import RichHandler
from tqdm import tqdm

from .stop_signals import StopSignals
from .training.distributed import launched_rank

errors = Console(stderr=True)
out = Console()

EXPECTED = (ValueError, ImportError, FloatingPointError, OSError, torch.OutOfMemoryError, BrokenProcessPool)
"""What the user can mend; anything else is a fault of ours and shows its traceback."""


@contextmanager
def clear_errors() -> Iterator[StopSignals]:
    """What the user can mend ends in one line and status 2; Ctrl-C in status 130, SIGTERM in 143."""
    stop = StopSignals()
    try:
        with stop:
            yield stop
    except EXPECTED as error:
        who = f"rank {launched_rank()}: " if launched_rank() else ""
        errors.print(f"{who}[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as interrupt:
        errors.print(plain(str(interrupt)) or "stopped", highlight=False, soft_wrap=True)
        raise typer.Exit(stop.exit_status) from None


class LogHandler(RichHandler):
    """Lines of the log on the error stream, above a progress bar that is there."""

    def __init__(self) -> None:
        super().__init__(console=errors, show_time=False, show_path=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes the bar away for the line."""
        with tqdm.external_write_mode(file=errors.file):
            super().emit(record)


def plain(text: str) -> str:
    """Text whose brackets are not markup."""
    return text.replace("[", r"\[")
