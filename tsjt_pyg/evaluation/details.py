"""What is kept of a run beside its errors, for the report: found in the pass that measures them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import City, StandardScaler, WindowBatch
from ..data.atomic import atomic_path
from ..data.last_value import node_means
from ..nn import NodePrompting
from ..nn.features import fill

if TYPE_CHECKING:
    from ..training.trainer import FitResult

FOLDER = "details"
"""Of a comparison's or training's folder, with a file for every run and one for the city."""

CITY, RUN, LAST_VALUE = "city", "run", "last_value"
"""Names of files in it: the target city and, of a training, its run and the last value as the forecast. Those of a
comparison's runs are their keys."""

MOST_DAYS, MOST_STEPS, MOST_NODES = 3, 864, 60
"""What is kept of forecasts at most: enough to look at, and a page that holds all of it stays small."""

SHARE_WINDOWS = 56
"""Windows of a city that say which slots its nodes draw on, evenly spread over its readings."""

Arrays = dict[str, np.ndarray]
"""By name, as a file holds them."""


@dataclass(frozen=True)
class Excerpt:
    """The part of a test period whose forecasts are kept: windows that follow on each other without overlap.

    Args:
        first: The first window.
        count: How many; each is ``horizon`` steps after the one before.
        nodes: ``[P]``, positions of the nodes among the city's, ascending.
        history: Steps in.
        horizon: Steps out.
    """

    first: int
    count: int
    nodes: Tensor
    history: int
    horizon: int

    @property
    def steps(self) -> slice:
        """The steps of the test period that are forecast."""
        start = self.first + self.history
        return slice(start, start + self.count * self.horizon)

    @classmethod
    def choose(cls, visible: City, test: City, history: int, horizon: int) -> Excerpt:
        """The first days, with one of a weekend if there is one, and nodes of low to high mean readings.

        At most :data:`MOST_DAYS` days, :data:`MOST_STEPS` steps and :data:`MOST_NODES` nodes, of those that were
        observed in these days. They begin at midnight, or with the first step that is forecast.
        """
        count = max(1, min(MOST_DAYS * test.steps_per_day, MOST_STEPS) // horizon)
        midnights = (test.step_of_day == 0).nonzero().flatten().tolist()
        fitting = [step for step in midnights if history <= step <= test.num_steps - count * horizon]
        weekend = test.day_of_week >= 5
        both = [step for step in (history, *fitting) if weekend[step : step + count * horizon].any()]
        start = next(iter(both or fitting), history)
        count = min(count, (test.num_steps - start) // horizon)
        observed = test.mask[start : start + count * horizon, :, 0].any(dim=0)
        if not observed.any():
            observed[:] = True
        level = node_means(visible)[:, 0]
        candidates = observed.nonzero().flatten()
        ordered = candidates[level[candidates].argsort(stable=True)]
        places = torch.linspace(0, len(ordered) - 1, min(MOST_NODES, len(ordered))).round().long()
        return cls(start - history, count, ordered[places].sort().values, history, horizon)


class ErrorDetails:
    """Sums of absolute errors by hour of the day, day of the week and node, batch by batch, in float64, and the
    forecasts of an excerpt.

    Hours and days are those that were forecast. As in :class:`~tsjt_pyg.evaluation.HorizonErrors`, all observed entries
    count alike, whatever their step of the horizon.

    Args:
        city: That the windows are of, the test period.
        excerpt: Whose forecasts to keep, of the first channel.
    """

    def __init__(self, city: City, excerpt: Excerpt) -> None:
        self.excerpt = excerpt
        self._hour, self._weekday = torch.tensor(city.time.hour.to_numpy()).long(), city.day_of_week
        # Rows: absolute error, entries.
        self._hours, self._weekdays, self._nodes = (
            torch.zeros(2, size, dtype=torch.float64) for size in (24, 7, city.num_nodes)
        )
        self._forecasts = torch.full((excerpt.count, excerpt.horizon, len(excerpt.nodes)), torch.nan)

    def update(self, absolute: Tensor, forecast: Tensor, batch: WindowBatch) -> None:
        """Adds a batch.

        Args:
            absolute: float64 ``[B, T_out, N, C]``, the absolute error, 0 where nothing was observed.
            forecast: ``[B, T_out, N, C]``.
            batch: What was forecast.
        """
        nodes = None if batch.block is None else batch.block.nodes.cpu()
        index = batch.index.cpu()
        steps = index[:, None] + self.excerpt.history + torch.arange(self.excerpt.horizon)
        for row, values in enumerate((absolute, batch.y_mask)):
            by_step = values.sum(dim=(2, 3)).double().cpu().flatten()
            self._hours[row].index_add_(0, self._hour[steps.flatten()], by_step)
            self._weekdays[row].index_add_(0, self._weekday[steps.flatten()], by_step)
            by_node = values.sum(dim=(0, 1, 3)).double().cpu()
            self._nodes[row].index_add_(0, torch.arange(len(by_node)) if nodes is None else nodes, by_node)
        late = index - self.excerpt.first
        horizon = self.excerpt.horizon
        rows = ((late >= 0) & (late % horizon == 0) & (late < self.excerpt.count * horizon)).nonzero().flatten()
        if len(rows):
            kept, here = torch.arange(len(self.excerpt.nodes)), self.excerpt.nodes
            if batch.block is not None and nodes is not None:
                place = torch.searchsorted(nodes, here).clamp(max=len(nodes) - 1)
                mine = (nodes[place] == here) & batch.block.core_mask.cpu()[place]
                kept, here = kept[mine], place[mine]
            part = forecast[rows.to(forecast.device)][:, :, here.to(forecast.device), 0].float().cpu()
            self._forecasts[(late[rows] // horizon)[:, None, None], torch.arange(horizon)[:, None], kept] = part

    def arrays(self) -> Arrays:
        """``hour`` ``[2, 24]``, ``weekday`` ``[2, 7]`` and ``node`` ``[2, N]``: sums and how many entries; and
        ``forecasts`` ``[S, P]`` of the excerpt, its steps laid end to end."""
        return {
            "hour": self._hours.numpy(),
            "weekday": self._weekdays.numpy(),
            "node": self._nodes.numpy(),
            "forecasts": self._forecasts.flatten(0, 1).numpy(),
        }


def city_arrays(test: City, excerpt: Excerpt, fingerprint: str) -> Arrays:
    """What the report draws of the target city: its roads, and the readings of the excerpt and no others.

    Shapes:
        - ``node_ids``: ``[N]``, ``pos``: ``[N, 2]`` where there are positions, ``edges``: ``[2, E]``, each road once
        - ``nodes``: ``[P]``, ``readings``: ``[S, P]`` of the excerpt, nan where nothing was observed
    """
    steps = excerpt.steps
    readings = test.readings[steps][:, excerpt.nodes, 0]
    readings = readings.masked_fill(~test.mask[steps][:, excerpt.nodes, 0], torch.nan)
    edges = test.edge_index.cpu().numpy()
    edges = np.unique(np.sort(edges[:, edges[0] != edges[1]], axis=0), axis=1)
    about = {
        "name": test.name,
        "channel": test.channels[0],
        "channels": test.num_channels,
        "unit": test.units[0],
        "start": str(test.time[steps.start]),
        "minutes": test.interval.total_seconds() / 60,
        "test_days": test.num_steps / test.steps_per_day,
        "size": [excerpt.history, excerpt.horizon],
        "fingerprint": fingerprint,
    }
    return {
        **{name: np.array(value) for name, value in about.items()},
        "node_ids": np.array(test.node_ids),
        **({} if test.pos is None else {"pos": test.pos.cpu().numpy()}),
        "edges": edges.astype(np.int32),
        "nodes": excerpt.nodes.numpy(),
        "readings": readings.cpu().numpy(),
    }


def fit_arrays(result: FitResult, visible: City, sources: Sequence[City], history: int) -> Arrays:
    """What a training shows: how source and target gradients got on, and which prompts the cities draw on.

    Returns:
        Of skewed strategies ``conflict_source``, ``conflict_step`` and ``conflict`` ``[R, 3]``: cosine, whether there
        was conflict, kappa of each filtered step and source, of several scopes the mean. Of models with node prompts
        ``prompt_city`` and ``prompt_share`` ``[cities, S]``: how much each slot contributes, mean over nodes and
        windows; the first city is the target, by its visible days, the others are the sources that took part.
    """
    found: Arrays = {}
    if result.conflict is not None:
        found.update(_conflict(result.conflict))
    prompting = next((part for part in result.model.modules() if isinstance(part, NodePrompting)), None)
    if prompting is not None:
        left_out = {verdict.name for verdict in result.verdicts if verdict.weight == 0}
        taken = [city for city in sources if result.strategy.uses_sources and city.name not in left_out]
        shares = [_slot_share(prompting, visible, result.scaler, history)]
        for city in taken:
            scaler = StandardScaler().fit(city.readings, city.mask)
            shares.append(_slot_share(prompting, city, scaler, history))
        found["prompt_city"] = np.array([visible.name, *(city.name for city in taken)])
        found["prompt_share"] = np.stack(shares)
    return found


def _conflict(frame: pd.DataFrame) -> Arrays:
    quantities = ["cosine", "conflict", "kappa"]
    steps = frame[frame["filtered"]].groupby(["source", "step"], sort=True)[quantities].mean()
    return {
        "conflict_source": steps.index.get_level_values("source").to_numpy().astype(str),
        "conflict_step": steps.index.get_level_values("step").to_numpy().astype(np.int64),
        "conflict": steps.to_numpy(np.float32),
    }


@torch.no_grad()
def _slot_share(prompting: NodePrompting, city: City, scaler: StandardScaler, history: int) -> np.ndarray:
    """``[S]``, a window at a time, so that a large city needs no more memory than its forecast."""
    device = prompting.keys.device
    windows = city.windows(history, 1)
    numbers = torch.linspace(0, len(windows) - 1, min(SHARE_WINDOWS, len(windows))).round().long()
    total = torch.zeros(prompting.num_prompts, dtype=torch.float64)
    for number in numbers:
        batch = windows.batch(number[None], device)
        filled, _, _ = fill(scaler.transform(batch.x, batch.x_mask), batch.x_mask)
        share = prompting.slot_share(filled, batch.edge_index, batch.edge_weight)
        total += share.mean(dim=(0, 1, 2)).double().cpu()
    return (total / len(numbers)).numpy()


def details_file(folder: str | Path, name: str) -> Path:
    """Where the details of a run lie, by its key, or those of the :data:`CITY`."""
    return Path(folder) / FOLDER / f"{name}.npz"


def save_details(folder: str | Path, name: str, arrays: Mapping[str, Any]) -> None:
    """Writes them whole or not at all."""
    file = details_file(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary, temporary.open("wb") as opened:
        np.savez_compressed(opened, **arrays)


def load_details(folder: str | Path, name: str) -> Arrays | None:
    """What :func:`save_details` wrote; ``None`` if it is not there.

    Raises:
        ValueError: If the file is damaged.
    """
    file = details_file(folder, name)
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file}: it is damaged ({error}); delete it, and the command that made it makes it again (`tsjt train` "
            "with --resume)"
        ) from error
