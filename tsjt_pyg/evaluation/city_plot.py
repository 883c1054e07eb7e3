"""A city on a map: its roads, coloured by what was read on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..data.atomic import atomic_path

if TYPE_CHECKING:
    from ..data.city import City
    from ..data.road_network import Roads

_COLOURS = "viridis"  # legible to the colour-blind, and in grey
_UNOBSERVED = "0.78"


def plot_city(
    city: City,
    path: str | Path,
    *,
    step: int | str | pd.Timestamp | None = None,
    channel: str | None = None,
    roads: Roads | None = None,
    title: str | None = None,
) -> Path:
    """Draws the road network coloured by reading; grey is what was not observed.

    With ``roads``, segments that are nodes of the city are drawn along their shapes, the two directions of a road side
    by side (each on the right of its direction); other nodes are dots over the roads. Without, edges are straight.

    Args:
        city: With positions.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        step: Which step, as a number or a time. Default: the mean of what was observed at all steps.
        channel: Which channel. Default: the first.
        roads: The roads that the city was made of; see :func:`~tsjt_pyg.data.city_roads.read_roads`.
        title: Default: name of the city, time and channel.

    Raises:
        ValueError: If the city has no positions, or no such channel or step.
    """
    path = Path(path)
    if city.pos is None:
        raise ValueError(
            f"city: {city.name} has no positions to draw it by; give its constructor positions= (latitude, longitude)"
        )
    channel = city.channels[0] if channel is None else channel
    if channel not in city.channels:
        raise ValueError(f"channel: {city.name} has {list(city.channels)}, found {channel!r}")
    values, when = _values(city, step, city.channels.index(channel))
    pos = city.pos.cpu().numpy()
    aspect = 1 / max(
        np.cos(np.radians(pos[:, 0].mean())), 0.05
    )  # a degree of longitude is shorter than one of latitude
    height, width = np.maximum(np.ptp(pos, axis=0), 1e-3) * [aspect, 1]
    figure = Figure(figsize=(9, float(np.clip(7.2 * height / width, 3.2, 11)) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    observed = values[~np.isnan(values)]
    low, high = (float(observed.min()), float(observed.max())) if len(observed) else (0.0, 1.0)
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), _COLOURS), ax=axes, shrink=0.85, pad=0.02)
    unit = city.units[city.channels.index(channel)]
    bar.set_label(f"{channel} ({unit})" if unit else channel)
    dots = np.ones(city.num_nodes, bool)
    if roads is None:
        index = city.edge_index.cpu().numpy()
        lines = np.stack([pos[index[0]], pos[index[1]]], axis=1)[..., ::-1]
        faint = float(np.clip(200 / max(len(lines), 1), 0.15, 0.8))
        axes.add_collection(LineCollection(list(lines), colors="0.6", linewidths=0.8, alpha=faint, zorder=1))
    else:
        segment = {name: i for i, name in enumerate(roads.segment_ids)}
        nodes = [segment.get(node, -1) for node in city.node_ids]
        is_segment = np.array([node >= 0 for node in nodes])
        blank = np.ones(len(segment), bool)
        blank[[node for node, value in zip(nodes, values, strict=True) if node >= 0 and not np.isnan(value)]] = False
        side = 0.0025 * float(max(height, width)) if is_segment.any() else 0.0
        shapes = [_beside(shape, side, aspect) for shape in roads.shapes]
        grey = [shapes[i] for i in np.flatnonzero(blank)]
        axes.add_collection(LineCollection(grey, colors=_UNOBSERVED, linewidths=0.9, zorder=1))
        shown = np.flatnonzero(is_segment & ~np.isnan(values))
        coloured = [shapes[nodes[i]] for i in shown]
        drawn = LineCollection(coloured, array=values[shown], cmap=_COLOURS, clim=(low, high), linewidths=2.2, zorder=2)
        drawn.set_capstyle("round")
        axes.add_collection(drawn)
        dots = ~is_segment
    size = float(np.clip(6000 / max(dots.sum(), 1), 6, 60))
    blank_dots, dots = pos[dots & np.isnan(values)], dots & ~np.isnan(values)
    axes.scatter(blank_dots[:, 1], blank_dots[:, 0], s=size, color="white", edgecolors="0.4", linewidths=0.4, zorder=3)
    colour = {"c": values[dots], "cmap": _COLOURS, "vmin": low, "vmax": high}
    axes.scatter(pos[dots, 1], pos[dots, 0], s=size, edgecolors="0.25", linewidths=0.4, zorder=4, **colour)
    axes.autoscale_view()
    axes.set_aspect(aspect)
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("longitude (°)", fontsize=9)
    axes.set_ylabel("latitude (°)", fontsize=9)
    share = f"{len(observed)} of {city.num_nodes} nodes observed"
    axes.set_title(f"{city.name}, {when}" if title is None else title, fontsize=11, loc="left")
    axes.set_title(share, fontsize=8, loc="right", color="0.35")
    for spine in axes.spines.values():
        spine.set_color("0.8")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format=path.suffix.lstrip(".") or "png")
    return path


def _values(city: City, step: int | str | pd.Timestamp | None, channel: int) -> tuple[np.ndarray, str]:
    """One reading a node (NaN where nothing was observed), and when it was."""
    readings = city.readings[..., channel].cpu().numpy().astype(np.float64)
    mask = city.mask[..., channel].cpu().numpy()
    if step is None:
        count = mask.sum(axis=0)
        total = np.where(mask, readings, 0).sum(axis=0)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0), "mean of all steps"
    if isinstance(step, str | pd.Timestamp):
        try:
            time = pd.Timestamp(step)
        except ValueError as error:
            raise ValueError(
                f"step: expected a number or a time (such as {str(city.start)!r}), found {step!r}"
            ) from error
        number = int((time - city.start) // city.interval)
    else:
        number = int(step) + (city.num_steps if step < 0 else 0)
    if not 0 <= number < city.num_steps:
        raise ValueError(
            f"step: {city.name} has {city.num_steps} steps from {city.start} to {city.time[-1]}, found {step!r}"
        )
    return np.where(mask[number], readings[number], np.nan), f"{city.time[number]:%Y-%m-%d %H:%M}"


def _beside(shape: np.ndarray, side: float, aspect: float) -> np.ndarray:
    """A shape (latitude, longitude) as points (longitude, latitude), moved to the right by ``side`` degrees."""
    points = shape[:, ::-1]
    if not side:
        return points
    steps = np.diff(points * [1, aspect], axis=0)
    steps /= np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
    along = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    return points + side * np.stack([along[:, 1], -along[:, 0] / aspect], axis=1)
