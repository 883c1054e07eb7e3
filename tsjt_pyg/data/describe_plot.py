"""The picture of a described city."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .city import City
    from .describe import Description

MAX_CHANNELS = 4
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette (2008), as in all pictures here
_MAX_STEPS, _MAX_NODES, _MAX_DAY = 480, 240, 96


def draw(description: Description, path: Path | None) -> Figure:
    """Draws what :meth:`Description.plot` says, and writes it where a path is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    city = description.city
    channels = min(city.num_channels, MAX_CHANNELS)
    rows = 1 if channels == 1 else 2
    figure = Figure(figsize=(12, 4.6 + 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[4.2, 2.7 * rows])))
    left, right = top.subplots(1, 2, width_ratios=[1.5, 1])
    _draw_missing(left, description)
    if city.pos is not None:
        _draw_map(right, description)
    else:
        _draw_nodes(right, city)
    panels = bottom.subplots(1, 2) if channels == 1 else bottom.subplots(2, channels)
    panels = np.reshape(panels, (2, channels))
    for channel in range(channels):
        values = np.where(city.mask[..., channel].cpu(), city.readings[..., channel].cpu(), np.nan)
        _draw_spread(panels[0, channel], city, channel, values)
        _draw_day(panels[1, channel], city, channel, values)
    hidden = city.num_channels - channels
    also = f"; channels after the first {channels} not drawn: {hidden}" if hidden else ""
    figure.suptitle("\n".join([*description.facts()[:2]]) + also, fontsize=11, x=0.01, ha="left")
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format=path.suffix.lstrip(".") or "png")
    return figure


def _label(city: City, channel: int) -> str:
    unit = city.units[channel]
    return f"{city.channels[channel]} ({unit})" if unit else city.channels[channel]


def _shares(missing: np.ndarray) -> np.ndarray:
    """Means over blocks of steps and nodes, so that there are no more of them than can be seen: ``[nodes, steps]``."""
    for axis, most in ((0, _MAX_STEPS), (1, _MAX_NODES)):
        size = missing.shape[axis]
        border = np.unique(np.linspace(0, size, min(size, most) + 1).astype(int))
        missing = np.add.reduceat(missing, border[:-1], axis=axis, dtype=np.float32)
        widths = np.diff(border).astype(np.float32)
        missing = missing / (widths[:, None] if axis == 0 else widths[None, :])
    return missing.T


def _draw_missing(axes: Axes, description: Description) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    city = description.city
    missing = (~city.mask).cpu().numpy().mean(axis=2, dtype=np.float32)
    shades = LinearSegmentedColormap.from_list("missing", ["#f4f4f4", _ORANGE, "#5c1f00"])
    first, end = (
        date2num(time.tz_localize(None).to_pydatetime()) for time in (city.start, city.time[-1] + city.interval)
    )
    # The square root lets a single missing reading be seen among the many that share its dot.
    image = axes.imshow(
        100 * _shares(missing),
        aspect="auto",
        interpolation="nearest",
        cmap=shades,
        norm=PowerNorm(0.5, 0, 100),
        extent=(first, end, city.num_nodes, 0),
    )
    axes.xaxis_date()
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylabel("node (row of the readings)")
    share = description.missing.share
    axes.set_title(f"Missing readings: {share:.2%}" if share else "Missing readings: none", fontsize=10, loc="left")
    if not share:
        axes.text(0.5, 0.5, "every reading was observed", transform=axes.transAxes, ha="center", color="0.4")
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, ticks=[0, 5, 25, 50, 100])
    bar.set_label("missing (%)")


def _draw_map(axes: Axes, description: Description) -> None:
    from matplotlib.collections import LineCollection

    city = description.city
    assert city.pos is not None
    place = city.pos.cpu().numpy()[:, ::-1]
    ends = city.edge_index.cpu().numpy()
    crowded = city.num_edges > 4 * city.num_nodes
    lines = LineCollection(place[ends.T].tolist(), colors="0.6", linewidths=0.3 if crowded else 0.8, zorder=1)
    axes.add_collection(lines)
    mean = description.nodes[f"mean {city.channels[0]}"].to_numpy()
    seen = ~np.isnan(mean)
    size = float(np.clip(6000 / city.num_nodes, 4, 45))
    dots = axes.scatter(place[seen, 0], place[seen, 1], c=mean[seen], s=size, cmap="cividis", zorder=2)
    if (~seen).any():
        axes.scatter(place[~seen, 0], place[~seen, 1], marker="x", c=_ORANGE, s=size, zorder=3)
    axes.set_aspect(1 / np.cos(np.radians(place[:, 1].mean())), adjustable="datalim")
    axes.margins(0.05)
    axes.autoscale_view()
    axes.locator_params(nbins=4)
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=8)
    crosses = "" if seen.all() else f"; crosses: {int((~seen).sum())} never observed"
    axes.set_title(f"Map: {city.num_nodes:,} nodes, {city.num_edges:,} edges{crosses}", fontsize=10, loc="left")
    axes.set_xlabel("longitude")
    axes.set_ylabel("latitude")
    axes.figure.colorbar(dots, ax=axes, pad=0.01).set_label(f"mean {_label(city, 0)}")


def _draw_nodes(axes: Axes, city: City) -> None:
    values = np.where(city.mask[..., 0].cpu(), city.readings[..., 0].cpu(), np.nan)
    values = values[:, ~np.isnan(values).all(axis=0)]
    if values.size:
        values = values[:, np.argsort(np.nanmean(values, axis=0))]
        low, middle, high = np.nanquantile(values, [0.05, 0.5, 0.95], axis=0)
        rank = np.arange(values.shape[1])
        axes.fill_between(
            rank, low, high, color=_BLUE, alpha=0.15, linewidth=0, step="mid", label="5 to 95 % of its readings"
        )
        axes.plot(rank, middle, drawstyle="steps-mid", color=_BLUE, linewidth=1.2, label="median")
        axes.legend(fontsize=8, loc="upper left")
    axes.set_xlabel("nodes, by their mean")
    axes.set_ylabel(_label(city, 0))
    axes.set_title(f"Nodes: {city.num_nodes:,} (no positions), {city.num_edges:,} edges", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _draw_spread(axes: Axes, city: City, channel: int, values: np.ndarray) -> None:
    observed = values[~np.isnan(values)]
    if observed.size:
        low, high = float(observed.min()), float(observed.max())
        # The highest thousandth would press the rest together; it is counted in the last bar, and the title says so.
        top = float(np.quantile(observed, 0.999))
        cut = high > low + 1.5 * (top - low) and top > low
        inside = np.minimum(observed, top) if cut else observed
        weights = np.full(observed.size, 100 / observed.size)
        last = top if cut else high
        bins: int | list[float] = 40
        if (observed == np.round(observed)).all() and last > low:  # counts: every bar spans as many whole numbers
            width = np.ceil((last - low + 1) / 40)
            bins = np.arange(low - 0.5, last + width + 0.5, width).tolist()
        axes.hist(inside, bins=bins, weights=weights, color=_BLUE)
        if cut:
            text = f"last bar: {top:.4g} to {high:.4g}"
            axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    else:
        _nothing(axes)
    axes.set_xlabel(_label(city, channel))
    axes.set_title("Readings (share in %)", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _draw_day(axes: Axes, city: City, channel: int, values: np.ndarray) -> None:
    steps = city.step_of_day.cpu().numpy()
    group = steps * min(city.steps_per_day, _MAX_DAY) // city.steps_per_day
    late: Any = pd.Timedelta(0) if not len(steps) else (city.start - city.start.normalize()) % city.interval
    times, bands = [], []
    for part in np.unique(group):
        inside = values[group == part]
        inside = inside[~np.isnan(inside)]
        if inside.size:
            times.append(steps[group == part].mean() / city.steps_per_day * 24 + late / pd.Timedelta(hours=1))
            bands.append(np.quantile(inside, [0.05, 0.25, 0.5, 0.75, 0.95]))
    if times:
        lowest, low, middle, high, highest = np.array(bands).T
        axes.fill_between(times, lowest, highest, color=_BLUE, alpha=0.15, linewidth=0, label="5 to 95 %")
        axes.fill_between(times, low, high, color=_BLUE, alpha=0.35, linewidth=0, label="25 to 75 %")
        axes.plot(times, middle, color=_BLUE, linewidth=1.5, label="median")
        if channel == 0:
            axes.legend(fontsize=8)
    else:
        _nothing(axes)
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 6))
    axes.set_xlabel("hour of the day")
    axes.set_ylabel(_label(city, channel))
    axes.set_title("Typical day (all nodes and days)", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing observed", transform=axes.transAxes, ha="center", va="center", color="0.4")
