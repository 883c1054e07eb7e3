"""One progress bar for terminals, notebooks and the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


@contextmanager
def progress_bar(
    description: str = "", *, unit: str = "step", hidden: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar, as the argument ``progress`` of :func:`~tsjt_pyg.training.fit` and of
    :func:`~tsjt_pyg.evaluation.compare`.

    In a notebook it is a widget where ipywidgets is installed, else a line of text; on a terminal a line of the error
    stream; elsewhere, as in a log file, nothing.

    Args:
        description: What is done, before the bar.
        unit: What is counted; ``"B"`` for bytes.
        hidden: Show nothing, as in all processes of a training but the first.

    Example:
        >>> from tsjt_pyg.training import progress_bar
        >>> with progress_bar("training") as progress:
        ...     for done in range(3):
        ...         progress(done + 1, 3)
    """
    notebook = _in_notebook()
    bar: Any = tqdm(
        desc=description or None,
        total=None,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024,
        dynamic_ncols=not notebook,
        disable=hidden or (not notebook and not sys.stderr.isatty()),
    )

    def show(done: int, total: int | None) -> None:
        if total != bar.total:
            bar.reset(total)
        bar.update(done - bar.n)

    with bar:
        yield show


def _in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook; IPython on a terminal is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
