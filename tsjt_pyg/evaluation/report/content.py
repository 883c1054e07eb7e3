"""The numbers that the pictures of a report are drawn from, as JSON can hold them."""

from __future__ import annotations

import base64
import re
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from ..advice import advise
from ..palette import COLOURS, DASHES, MARKERS
from ..prompt_plot import side_by_side
from .run_folder import Shown

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MOST_DOTS, MOST_ROADS = 4000, 15_000
"""Nodes and roads of a map at most, evenly chosen: a browser draws no more of them in good time."""

MOST_FORECASTS = 650_000
"""Numbers of forecasts and readings in the page at most: 2 MB."""

BINS = 60
"""Points of a line over training."""

_PLOTLY_MARKERS = dict(
    zip("osD^vP*", ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star"), strict=True)
)
_PLOTLY_DASHES = ("dot", "dash", "dashdot", "longdash", "1px,5px", "longdashdot")


def content(shown: Shown) -> dict[str, Any]:
    """Everything that is drawn; a picture that lacks what it needs is absent."""
    found = {
        "unit": shown.comparison.unit,
        "reference": shown.reference,
        "series": series(shown),
        "first": chosen(shown),
        "lines": {
            name: picture
            for name, picture in (
                ("horizon", _horizon(shown)),
                ("hour", _by(shown, "hour")),
                ("weekday", _by(shown, "weekday")),
            )
            if picture
        },
        "map": _map(shown),
        "forecasts": _forecasts(shown),
        "conflict": conflict(shown),
        "prompts": prompts(shown),
    }
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def series(shown: Shown) -> list[dict[str, Any]]:
    """Name and looks of every forecast: strategies as in comparison.png, naive ones grey and dashed."""
    trained = [name for name in shown.names if shown.trained(name)]
    looks: dict[str, dict[str, str]] = {
        name: {"colour": colour, "marker": _PLOTLY_MARKERS[marker], "dash": "solid"}
        for name, colour, marker in zip(trained, cycle(COLOURS), cycle(MARKERS), strict=False)
    }
    naive = [name for name in shown.names if name not in trained]
    assert len(_PLOTLY_DASHES) == len(DASHES)
    for name, dash in zip(naive, cycle(_PLOTLY_DASHES), strict=False):
        looks[name] = {"colour": "#808080", "marker": "", "dash": dash}
    return [{"name": name, **looks[name]} for name in shown.names]


def chosen(shown: Shown) -> list[str]:
    """The forecasts that one looks at first: the reference and the best strategy that is another."""
    trained = [name for name in shown.names if shown.trained(name) and name != shown.reference]
    best = min(trained, key=lambda name: mean_mae(shown, name), default=None)
    preferred = "tsjt" if "tsjt" in trained else best
    return [name for name in (shown.reference, preferred) if name is not None]


def mean_mae(shown: Shown, name: str) -> float:
    """Over all steps of the horizon, mean of the runs."""
    return float(np.mean([run.errors.mean_mae for run in shown.comparison.runs(name)]))


def _horizon(shown: Shown) -> dict[str, Any]:
    rows = {name: np.array([run.errors.mae for run in shown.comparison.runs(name)]) for name in shown.names}
    return _lines(shown, [f"{minutes:g}" for minutes in shown.comparison.minutes], rows, "time ahead (minutes)")


def _by(shown: Shown, by: str) -> dict[str, Any] | None:
    rows = {name: maes for name in shown.names if (maes := shown.mae(name, by)) is not None}
    if not rows:
        return None
    if by == "hour":
        return _lines(shown, [f"{hour:02d}" for hour in range(24)], rows, "hour that was forecast")
    return _lines(shown, [day[:3] for day in WEEKDAYS], rows, "day that was forecast")


def _lines(shown: Shown, x: list[str], rows: dict[str, np.ndarray], title: str) -> dict[str, Any]:
    """Mean and range over the seeds of each forecast; one far above all strategies is not shown at first."""
    lines = {}
    for name, maes in rows.items():
        lines[name] = {"mean": rounded(maes.mean(axis=0))}
        if len(maes) > 1:
            lines[name].update(low=rounded(maes.min(axis=0)), high=rounded(maes.max(axis=0)))
    trained = [mean_mae(shown, name) for name in rows if shown.trained(name)]
    bar = 1.3 * max(trained, default=np.inf)
    return {
        "x": x,
        "title": title,
        "lines": lines,
        "hidden": [name for name in rows if not shown.trained(name) and mean_mae(shown, name) > bar],
    }


def _map(shown: Shown) -> dict[str, Any] | None:
    """MAE of every forecast by node, and its gain over the reference, pooled over the seeds."""
    names = [name for name in shown.names if shown.arrays(name, "node")]
    if shown.city is None or not names:
        return None
    mae = {}
    for name in names:
        total, count = np.sum(shown.arrays(name, "node"), axis=0)
        mae[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    ids = shown.city["node_ids"]
    nodes = _evenly(len(ids), MOST_DOTS)
    found: dict[str, Any] = {
        "ids": ids[nodes].tolist(),
        "of": len(ids),
        "mae": {name: rounded(values[nodes], 3) for name, values in mae.items()},
    }
    found["mae_range"] = _limits(np.concatenate([mae[name] for name in names]), (2, 95))
    if shown.reference in mae:
        base = mae[shown.reference]
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = {name: 100 * (base - mae[name]) / base for name in names if name != shown.reference}
        gain = {name: np.where(np.isfinite(values), values, np.nan) for name, values in gain.items()}
        if gain:
            found["gain"] = {name: rounded(values[nodes], 3) for name, values in gain.items()}
            # Those of naive forecasts are large, and would leave no colour for the others.
            ranged = [values for name, values in gain.items() if shown.trained(name)] or list(gain.values())
            found["gain_range"] = _limits(np.abs(np.concatenate(ranged)), (0, 95))
    if "pos" not in shown.city:
        return found
    pos = shown.city["pos"]
    edges = shown.city["edges"]
    edges = edges[:, _evenly(edges.shape[1], MOST_ROADS)]
    dots = side_by_side(pos[nodes]) if len(nodes) > 1 else pos[nodes]
    where = pos.copy()
    where[nodes] = dots
    roads = np.full((edges.shape[1], 3, 2), np.nan)
    roads[:, 0], roads[:, 1] = where[edges[0]], where[edges[1]]
    latitude = float(np.radians(np.nanmean(pos[:, 0])))
    found.update(
        latitude=np.round(dots[:, 0], 5).tolist(),
        longitude=np.round(dots[:, 1], 5).tolist(),
        roads_latitude=_numbers(np.round(roads[..., 0].ravel(), 5)),
        roads_longitude=_numbers(np.round(roads[..., 1].ravel(), 5)),
        aspect=float(1 / max(np.cos(latitude), 0.05)),
    )
    return found


def _forecasts(shown: Shown) -> dict[str, Any] | None:
    """Forecasts of the first seed and readings, as 16-bit numbers: a page may hold many of them."""
    names = [name for name in shown.names if shown.first(name, "forecasts") is not None]
    if shown.city is None or not names:
        return None
    nodes, readings = shown.city["nodes"], shown.city["readings"]
    most = max(1, MOST_FORECASTS // (len(readings) * (len(names) + 1)))
    columns = _evenly(len(nodes), most)
    ids = shown.city["node_ids"][nodes[columns]]
    order = sorted(range(len(ids)), key=lambda place: _natural(str(ids[place])))
    columns = columns[order]
    tables = {"": readings[:, columns]}
    for name in names:
        table = shown.first(name, "forecasts")
        assert table is not None
        tables[name] = table[:, columns]
    low = min(float(np.nanmin(table, initial=np.inf)) for table in tables.values())
    high = max(float(np.nanmax(table, initial=-np.inf)) for table in tables.values())
    if not np.isfinite([low, high]).all():
        return None
    scale = (high - low) / 65_000 or 1.0
    mae = {name: np.sum(shown.arrays(name, "node"), axis=0)[:, nodes[columns]] for name in names}
    return {
        "ids": [str(ids[place]) for place in order],
        "of": len(shown.city["node_ids"]),
        "start": pd.Timestamp(str(shown.city["start"])).isoformat(),
        "minutes": float(shown.city["minutes"]),
        "channel": str(shown.city["channel"]),
        "low": low,
        "scale": scale,
        "tables": {name: _packed(table, low, scale) for name, table in tables.items()},
        "mae": {name: rounded(np.where(n > 0, total / np.maximum(n, 1), np.nan)) for name, (total, n) in mae.items()},
        "hidden": [name for name in names if name not in chosen(shown)],
    }


def conflict(shown: Shown) -> dict[str, Any]:
    """Cosine, share of steps in conflict (%) and kappa over training, by strategy and source, mean over the seeds."""
    found: dict[str, Any] = {}
    for name in shown.skewed:
        parts = (shown.arrays(name, what) for what in ("conflict_source", "conflict_step", "conflict"))
        frames = [
            pd.DataFrame(values, columns=["cosine", "conflict", "kappa"]).assign(source=source, step=step)
            for source, step, values in zip(*parts, strict=True)
        ]
        frame = pd.concat(frames)
        width = max(1, -(-int(frame["step"].max()) // BINS))
        frame["bin"] = (frame["step"] - 1) // width
        found[name] = {"width": width, "runs": len(frames), "sources": {}}
        for given, rows in frame.groupby("source", sort=False):
            source = "all sources" if given == "source" else str(given)  # the name of a mixture of them
            means = rows.groupby("bin")[["cosine", "conflict", "kappa"]].mean()
            found[name]["sources"][source] = {
                "step": (means.index * width + (width + 1) / 2).tolist(),
                "cosine": rounded(means["cosine"].to_numpy(float)),
                "conflict": rounded(100 * means["conflict"].to_numpy(float)),
                "kappa": rounded(means["kappa"].to_numpy(float)),
                "mean": rounded((rows[["cosine", "conflict", "kappa"]].mean() * [1, 100, 1]).to_numpy(float)),
                "steps": len(rows),
            }
    return found


def prompts(shown: Shown) -> dict[str, Any] | None:
    """Share of each slot in the prompts of each city, in percent, of the first run of a strategy that has them all."""
    trained = [name for name in shown.names if shown.first(name, "prompt_share") is not None]
    if not trained:
        return None
    name = next((name for name in chosen(shown)[::-1] if name in trained), trained[-1])
    share, cities = shown.first(name, "prompt_share"), shown.first(name, "prompt_city")
    assert share is not None
    assert cities is not None
    return {
        "strategy": name,
        "seed": shown.comparison.runs(name)[0].seed,
        "cities": cities.tolist(),
        "share": [rounded(100 * row, 3) for row in share],
    }


def advice_of(shown: Shown) -> tuple[str, bool | None]:
    """What the comparison advises, and whether it is to transfer; ``None`` where there is nothing to go by."""
    advice = advise(shown.comparison) if shown.compared else None
    if advice is not None:
        return advice.text, advice.transfer
    if shown.compared:
        return "No advice: it takes a strategy with sources and one without, each with a result.", None
    return (
        "No advice: this is one training. `tsjt compare` trains every strategy on the same days and says whether the "
        "sources help.",
        None,
    )


def rounded(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """As JSON can hold them: ``None`` for nan."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in np.asarray(values, float)]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _evenly(count: int, most: int) -> np.ndarray:
    places: np.ndarray = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    return places


def _limits(values: np.ndarray, percentiles: tuple[float, float]) -> list[float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return [0.0, 1.0]
    low, high = np.percentile(values, percentiles)
    return [float(low), float(high) if high > low else float(low) + 1.0]


def _packed(table: np.ndarray, low: float, scale: float) -> str:
    """int16 ``[P, S]``, little endian, in base64; -32768 for nan."""
    numbers = np.where(np.isfinite(table), np.round((table - low) / scale) - 32_500, -32_768)
    return base64.b64encode(numbers.T.astype("<i2").tobytes()).decode()


def _natural(text: str) -> list[tuple[int, int, str]]:
    """``9`` before ``10``."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
