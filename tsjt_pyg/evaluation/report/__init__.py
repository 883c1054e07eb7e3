"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from pathlib import Path

from ...data.atomic import atomic_path
from .page import page
from .run_folder import read_run


def write_report(run: str | Path, output: str | Path | None = None) -> Path:
    """Writes what a run found as one self-contained, interactive HTML page.

    The table with intervals and the advice; errors by horizon, hour of the day and day of the week; a map of the road
    network by error and by gain; forecasts against readings; gradient conflict, prompt sharing, what the guard found,
    and everything needed to repeat it. It opens from the disk, in any browser, without a network. Needs plotly:
    ``pip install 'tsjt-pyg[viz]'``.

    Args:
        run: Folder that :func:`compare` (``output=``), ``tsjt compare`` or ``tsjt train`` wrote to. Of an older one,
            the page holds what is there, and says how to get the rest.
        output: The file. Default: ``report.html`` in that folder.

    Returns:
        The file.

    Raises:
        ImportError: If plotly is not installed.
        FileNotFoundError: If the folder holds no run.
        ValueError: If a file of it is damaged; the error names it.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> from tsjt_pyg.evaluation import compare
        >>> city, *sources = (load_city(f"demo/{name}").select("speed") for name in ("riverton", "gridport"))
        >>> strategies = ["target_only", "pooled"]
        >>> comparison = compare(city, sources, strategies, seeds=1, steps=1, output="runs/mine", verbose=False)
        >>> write_report("runs/mine").name
        'report.html'
    """
    run = Path(run)
    text = page(read_run(run))
    output = run / "report.html" if output is None else Path(output)
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return output


__all__ = ["write_report"]
