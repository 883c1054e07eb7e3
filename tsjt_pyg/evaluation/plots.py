"""Pictures of results, legible to the colour-blind: every line has a colour, a dash and a marker of its own."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.atomic import atomic_path
from .palette import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    import pandas as pd

    from .table import Comparison


def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Error by step of the horizon for every strategy, and the gain over ``target_only`` with its interval.

    Args:
        comparison: What to draw.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
    """
    path = Path(path)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    trained = [name for name in comparison.names if comparison.runs(name)[0].seed is not None]
    naive = [name for name in comparison.names if name not in trained]
    style = {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(trained, cycle(COLOURS), cycle(MARKERS), strict=False)
    }
    minutes = np.asarray(comparison.minutes)
    # A historical average far above the rest would press the lines together, so it may leave
    # the picture; the legend then says so.
    near = np.concatenate(
        [np.mean([r.errors.mae for r in comparison.runs(n)], axis=0) for n in (*trained, "last value")]
    )
    margin = 0.08 * (near.max() - near.min()) or 1.0
    left.set_ylim(near.min() - margin, near.max() + margin)
    for name, dash in zip(naive, cycle(DASHES), strict=False):
        mae = comparison.runs(name)[0].errors.mae
        label = name if min(mae) < near.max() + margin else f"{name} (above the picture)"
        left.plot(minutes, mae, color="0.55", linestyle=dash, linewidth=1.5, label=label)
    for name in trained:
        maes = np.array([run.errors.mae for run in comparison.runs(name)])
        left.plot(minutes, maes.mean(axis=0), linewidth=1.8, markersize=5, label=name, **style[name])
        if len(maes) > 1:
            left.fill_between(minutes, maes.min(axis=0), maes.max(axis=0), color=style[name]["color"], alpha=0.12)
    left.set_xticks(minutes[comparison.reported_steps] if len(minutes) > 6 else minutes)
    left.set_xlabel("time ahead (minutes)")
    left.set_ylabel(f"MAE on the test period ({comparison.unit})" if comparison.unit else "MAE on the test period")
    left.set_title("Error by horizon (band: range over seeds)", fontsize=10, loc="left")
    left.grid(alpha=0.3)
    left.legend(fontsize=8, ncols=2, loc="best")

    shown = [name for name in trained if comparison.gain(name) is not None]
    for row, name in enumerate(shown):
        gain = comparison.gain(name)
        assert gain is not None
        right.plot(gain.percent, row, markersize=8, linestyle="none", **style[name])
        if gain.low is not None and gain.high is not None:
            right.plot([gain.low, gain.high], [row, row], color=style[name]["color"], linewidth=2.2)
    right.axvline(0, color="0.3", linewidth=1)
    right.set_yticks(range(len(shown)), shown, fontsize=9)
    right.invert_yaxis()
    right.set_xlabel("gain over target_only (% of MAE; right is better)")
    right.set_title("Gain with 95 % interval over seeds", fontsize=10, loc="left")
    right.grid(axis="x", alpha=0.3)
    figure.suptitle(comparison.title, fontsize=11, x=0.01, ha="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip(".") or "png")
    return path


def plot_conflict(frame: pd.DataFrame, path: str | Path, *, window: int | None = None) -> Path:
    """How source and target gradients got on over training.

    Above, the cosine of every filtered step (dots, crosses under conflict) with its running mean; below, the running
    share of steps in conflict, and what the filter added to the target's weight, kappa. Of several scopes, their mean.

    Args:
        frame: What :meth:`tsjt_pyg.optim.SkewHistory.to_frame` returns.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        window: Steps of the running means. Default: a twentieth of the steps, 10 at least.

    Raises:
        ValueError: If no step was filtered.
    """
    path = Path(path)
    filtered = frame[frame["filtered"]]
    if filtered.empty:
        raise ValueError("frame: no step had both a source and a target gradient, so there is no conflict to draw")
    quantities = ["cosine", "conflict", "kappa"]
    steps = filtered.groupby(["source", "step"], sort=True)[quantities].mean()
    window = max(10, frame["step"].nunique() // 20) if window is None else window
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1])
    right = bottom.twinx()
    names = list(dict.fromkeys(steps.index.get_level_values("source")))
    for name, colour, marker in zip(names, cycle(COLOURS), cycle(MARKERS), strict=False):
        of_source = steps.loc[name]
        mean = of_source.rolling(window, min_periods=1).mean()
        opposed = of_source["cosine"] < 0
        top.plot(of_source.index[~opposed], of_source["cosine"][~opposed], ".", color=colour, alpha=0.35, markersize=5)
        top.plot(of_source.index[opposed], of_source["cosine"][opposed], "x", color=colour, alpha=0.7, markersize=5)
        label = "all steps" if len(names) == 1 else name
        options = {"color": colour, "marker": marker, "markevery": max(1, len(mean) // 12), "markersize": 5}
        top.plot(mean.index, mean["cosine"], linewidth=2, label=f"{label}, mean of {window}", **options)
        bottom.plot(mean.index, 100 * mean["conflict"], linewidth=2, **options)
        right.plot(mean.index, mean["kappa"], linewidth=1.5, linestyle=":", **options)
    top.axhline(0, color="0.3", linewidth=1)
    top.set_ylabel("cosine of source and target")
    top.set_title("Agreement of the gradients (crosses: conflict)", fontsize=10, loc="left")
    top.legend(fontsize=8, loc="upper right")
    bottom.set_ylabel("steps in conflict (%, solid)")
    bottom.set_ylim(-3, 103)
    right.set_ylabel("kappa (dotted)")
    right.set_ylim(bottom=-0.03 * right.get_ylim()[1])
    bottom.set_xlabel("optimizer step")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip(".") or "png")
    return path
