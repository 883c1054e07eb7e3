"""What the commands print with: two consoles, errors in one line, a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import typer
from joblib.externals.loky.process_executor import BrokenProcessPool
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def plain(text: str) -> str:
    """Text whose brackets are not markup."""
    return text.replace("[", r"\[")


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal's error stream; silent where there is none."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = launched_rank() > 0 or not errors.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=hidden) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
