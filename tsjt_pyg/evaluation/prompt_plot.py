"""Which roads of two cities share prompts, on their maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..data.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.city import City
    from ..nn.node_prompting import NodePrompting

# Okabe and Ito's colours and two of Tol's, told apart by the colour-blind; slots beyond them are grey.
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#F0E442",
    "#332288",
    "#882255",
    "#117733",
)
_OTHER = "0.75"


@torch.no_grad()
def mean_slot_share(prompting: NodePrompting, city: City, readings: Tensor, history: int) -> Tensor:
    """How much each slot contributes to each node's prompts, over all of a city's windows of ``history`` steps.

    Args:
        prompting: The module, trained.
        city: Whose road network it is.
        readings: ``[T, N, C]`` as the model sees them: scaled, missing ones filled.
        history: Steps of a window.

    Returns:
        ``[N, S]``, rows that sum to one.
    """
    total, count = torch.zeros(city.num_nodes, prompting.num_prompts, device=prompting.keys.device), 0
    for start in range(0, readings.size(0) - history + 1, history):
        window = readings[start : start + history].to(prompting.keys)
        total += prompting.slot_share(
            window, city.edge_index.to(window.device), city.edge_weight.to(window.device)
        ).mean(dim=0)
        count += 1
    if not count:
        raise ValueError(f"readings must have at least history={history} steps, found {readings.size(0)}")
    return (total / count).cpu()


def plot_shared_prompts(
    cities: Sequence[City], shares: Sequence[Tensor], path: str | Path, *, title: str | None = None
) -> Path:
    """Draws cities side by side, each node in the colour of the slot that contributes most to its prompts.

    Nodes of one colour draw on the same slot, in whichever city they are. The slots that lead at most nodes have a
    colour each, the others are grey; the larger a dot, the more its slot contributes.

    Args:
        cities: Two or more, with positions.
        shares: ``[N, S]`` of each, such as from :func:`mean_slot_share`.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        title: Default: what is to be seen.

    Raises:
        ValueError: If a city has no positions, or the shares do not fit the cities.
    """
    path = Path(path)
    if len(cities) < 2 or len(shares) != len(cities):
        raise ValueError(
            f"shares must be one [N, S] a city, of two cities or more, found {len(shares)} of {len(cities)} cities"
        )
    for city, share in zip(cities, shares, strict=True):
        if city.pos is None:
            raise ValueError(
                f"cities: {city.name} has no positions to draw it by; give its constructor positions= (latitude, "
                f"longitude)"
            )
        if share.shape != (city.num_nodes, shares[0].size(-1)):
            raise ValueError(
                f"shares of {city.name} must be [{city.num_nodes}, {shares[0].size(-1)}], found {list(share.shape)}"
            )
    leading = [share.argmax(dim=1).numpy() for share in shares]
    # Evenly by city, however many nodes it has.
    use = np.stack([np.bincount(lead, minlength=shares[0].size(1)) / len(lead) for lead in leading]).sum(axis=0)
    order = [int(slot) for slot in np.argsort(-use, kind="stable") if use[slot] > 0]
    colour = {slot: _COLOURS[i] if i < len(_COLOURS) else _OTHER for i, slot in enumerate(order)}

    figure = Figure(figsize=(5.4 * len(cities), 5.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cities), squeeze=False)[0]
    for axes, city, share, lead in zip(panels, cities, shares, leading, strict=True):
        assert city.pos is not None
        pos = side_by_side(city.pos.cpu().numpy())
        index = city.edge_index.cpu().numpy()
        lines = np.stack([pos[index[0]], pos[index[1]]], axis=1)[..., ::-1]
        axes.add_collection(LineCollection(list(lines), colors="0.82", linewidths=0.8, zorder=1))
        strength = share.max(dim=1).values.numpy()
        size = float(np.clip(7000 / city.num_nodes, 8, 70)) * (0.35 + 0.65 * strength / strength.max())
        colours = [colour[int(slot)] for slot in lead]
        axes.scatter(pos[:, 1], pos[:, 0], s=size, c=colours, edgecolors="0.2", linewidths=0.4, zorder=2)
        axes.set_aspect(1 / max(np.cos(np.radians(pos[:, 0].mean())), 0.05))
        axes.set_title(f"{city.name}, {city.num_nodes} nodes", fontsize=11)
        axes.set_axis_off()
    handles = []
    for slot in [slot for slot in order if colour[slot] != _OTHER]:
        percent = " / ".join(f"{100 * (lead == slot).mean():.0f}" for lead in leading)
        handles.append(_dot(colour[slot], f"slot {slot}: {percent} %"))
    if len(order) > len(_COLOURS):
        handles.append(_dot(_OTHER, f"{len(order) - len(_COLOURS)} other slots"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9.5)
    figure.suptitle("Roads of one colour draw on the same prompt" if title is None else title, fontsize=13)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format=path.suffix.lstrip(".") or "png")
    return path


def side_by_side(pos: np.ndarray) -> np.ndarray:
    """Nodes of one place, such as the two directions of a road, on a small circle around it."""
    extent = max(float(np.ptp(pos, axis=0).max()), 1e-9)
    pairs = cKDTree(pos).query_pairs(0.006 * extent, output_type="ndarray")
    joined = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(pos), len(pos)))
    _, member = connected_components(joined, directed=False)
    size = np.bincount(member)
    moved = pos.copy()
    for place in np.flatnonzero(size > 1):
        here = np.flatnonzero(member == place)
        angle = 2 * np.pi * np.arange(len(here)) / len(here)
        moved[here] = pos[here].mean(axis=0) + 0.011 * extent * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return moved


def _dot(colour: str, label: str) -> Line2D:
    dot = Line2D([], [], linestyle="", marker="o", markersize=8, color=colour, label=label)
    dot.set_markeredgecolor("0.2")
    dot.set_markeredgewidth(0.4)
    return dot
