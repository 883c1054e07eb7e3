"""Pictures of the evidence."""

from __future__ import annotations

from pathlib import Path

from evidence_changes import DEFAULT, Evidence, label
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tsjt_pyg.data.atomic import atomic_path

# Okabe and Ito's palette (2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.55"


def plot_changes(evidence: Evidence, path: Path) -> None:
    """The default against the target alone, setting by setting, with the runs as dots."""
    figure = Figure(figsize=(8.6, 0.55 * len(evidence.settings) + 1.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, setting in enumerate(evidence.settings):
        reference = evidence.reference(setting)
        for name, colour, shift in ((DEFAULT, BLUE, -0.14), ("gradient boosting", ORANGE, 0.14)):
            change = evidence.change(setting, name, reference)
            if change is None:
                continue
            mine, other = evidence.runs(setting, name)["mae"], evidence.runs(setting, reference)["mae"]
            both = mine.index.intersection(other.index)
            axes.plot(100 * (mine[both] / other[both] - 1), [row + shift] * len(both), ".", color=colour, alpha=0.45)
            axes.plot([change.low, change.high], [row + shift] * 2, color=colour, linewidth=2)
            told = name if row == 0 else None
            axes.plot(
                change.percent, row + shift, "o" if name == DEFAULT else "s", color=colour, markersize=7, label=told
            )
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(evidence.settings)), [label(s) for s in evidence.settings], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("MAE against training on the target alone (%; left is better)")
    axes.set_title("Test errors; dots: runs, lines: 95 % intervals of the mean", fontsize=10, loc="left")
    axes.legend(fontsize=9, loc="best")
    _save(figure, path)


def plot_poisons(evidence: Evidence, path: Path) -> None:
    """The default with real and with spoiled sources."""
    kinds = ["", *evidence.poisons()]
    figure = Figure(figsize=(8.6, 0.5 * len(kinds) + 1.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, poison in enumerate(kinds):
        for setting in evidence.settings:
            change = evidence.change(setting, DEFAULT, evidence.reference(setting), poison)
            if change is not None:
                marker = "o" if setting[1] == 3 else "D"
                axes.plot(change.percent, row, marker, color=ORANGE if poison else BLUE, markersize=7, alpha=0.75)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.axvline(1.5, color="0.3", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(kinds)), ["real sources", *kinds[1:]], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("MAE of tsjt against training on the target alone (%; left is better; dotted: +1.5 %)")
    axes.set_title("A marker a setting: circles 3 visible days, diamonds 1", fontsize=10, loc="left")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
