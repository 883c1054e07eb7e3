"""Pictures: what they show of the numbers behind them, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from tsjt_pyg.evaluation import Comparison, Errors, plot_conflict
from tsjt_pyg.evaluation.naive import NAIVE_FITS
from tsjt_pyg.evaluation.plots import plot_comparison
from tsjt_pyg.evaluation.table import RunRecord
from tsjt_pyg.optim import SkewHistory, TargetSkewedOptimizer


@pytest.fixture
def frame() -> pd.DataFrame:
    """30 steps of two sources, of which the first opposes the target in every third step."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], torch.optim.SGD, lr=0.1)
    history = SkewHistory(optimizer)
    for step in range(30):
        optimizer.zero_grad()
        with optimizer.source("a"):
            (p @ torch.tensor([1.0, -1.0 if step % 3 == 0 else 1.0])).backward()
        with optimizer.source("b"):
            p.sum().backward()
        with optimizer.target():
            p[1].backward()
        optimizer.step()
    return history.to_frame()


def drawn(frame: pd.DataFrame, path: Path, monkeypatch: pytest.MonkeyPatch, **options: int) -> Figure:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    assert plot_conflict(frame, path, **options) == path
    return figures[0]


def test_conflict_is_drawn_by_source_with_running_means(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn(frame, tmp_path / "conflict.png", monkeypatch, window=3)
    top, bottom, right = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["a, mean of 3", "b, mean of 3"]
    share_a, share_b = (line.get_ydata() for line in bottom.lines)
    np.testing.assert_allclose(share_a[2:], 100 / 3)
    np.testing.assert_allclose(share_b, 0)
    np.testing.assert_allclose(right.lines[0].get_ydata()[2:], 1 / 3)  # kappa is 1 under conflict
    crosses = next(line for line in top.lines if line.get_marker() == "x")
    assert crosses.get_xdata().tolist() == list(range(1, 31, 3))
    np.testing.assert_allclose(crosses.get_ydata(), -np.sqrt(0.5))
    assert imread(tmp_path / "conflict.png").std() > 0


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_vector_formats_by_suffix(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    assert plot_conflict(frame, tmp_path / f"conflict{suffix}").stat().st_size > 1000


def test_nothing_filtered_is_nothing_to_draw(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["filtered"] = False
    with pytest.raises(ValueError, match=r"no step had both a source and a target gradient"):
        plot_conflict(frame, tmp_path / "conflict.png")
    assert not list(tmp_path.iterdir())


def test_every_naive_forecast_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Errors([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], 1.5, 1.5, 1.5)
    records = [RunRecord(name, None, errors, 0.0) for name in NAIVE_FITS]
    records += [RunRecord("target_only", 0, errors, 0.0)]
    protocol = {
        "target": "here", "sources": ["there"], "channels": ["speed"], "visible_days": 3, "test_days": 4.0,
        "seeds": [0], "steps": 10, "strategies": [],
    }  # fmt: skip
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kw: (figures.append(self), Path(path).write_bytes(b"")))
    plot_comparison(Comparison(records, [5.0, 10.0], "mph", protocol, 1.0), tmp_path / "c.png")
    lines = {line.get_label(): (line.get_linestyle(), line._dash_pattern) for line in figures[0].axes[0].get_lines()}
    naive = [lines[name] for name in NAIVE_FITS]
    assert len({str(style) for style in naive}) == len(NAIVE_FITS)
