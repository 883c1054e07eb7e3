"""The ways to batches that ``data.py`` measures: ours, PyG-Temporal's and tsl's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.data import City, WindowBatch

BATCH_SIZE, HISTORY, HORIZON = 64, 12, 12
INDEX = "PyG-Temporal, index batching"
COPIED, VIEWS, MAPPED = "ours", "ours, copy=False", "ours, mapped, copy=False"

Loader = Callable[[Tensor | None], Iterator[Any]]
"""Batches in the given order of the windows, or in their own."""


def num_windows(steps: int) -> int:
    return steps - HISTORY - HORIZON + 1


@dataclass(frozen=True)
class Peer:
    """One way to batches; ``pair`` gives x and y ``[B, T, N, C]`` of what it yields."""

    name: str
    loader: Loader
    pair: Callable[[Any], tuple[Tensor, Tensor]]


def ours(name: str, city: City, copy: bool) -> Peer:
    windows = city.windows(HISTORY, HORIZON)

    def loader(order: Tensor | None) -> Iterator[WindowBatch]:
        # batches() draws its order from the generator as shuffled_order() does.
        generator = torch.Generator().manual_seed(0)
        yield from windows.batches(BATCH_SIZE, shuffle=order is not None, generator=generator, copy=copy)

    return Peer(name, loader, lambda batch: (batch.x, batch.y))


def index_batching(city: City) -> Peer:
    dataset = index_dataset_class()(
        np.arange(num_windows(city.num_steps)), city.readings.numpy(), HISTORY, lazy=False, gpu=False
    )

    def loader(order: Tensor | None) -> Iterator[list[Tensor]]:
        yield from DataLoader(dataset, BATCH_SIZE, sampler=None if order is None else order.tolist())

    return Peer(INDEX, loader, lambda batch: (batch[0], batch[1]))


def static_signal(city: City) -> Peer:
    """Snapshots ``[N, C, T]`` of views, stacked: the signal itself has no batches of windows."""
    import_temporal()
    from torch_geometric_temporal.signal import StaticGraphTemporalSignal

    views = [w.movedim(1, -1).numpy() for w in (city.windows(HISTORY, HORIZON).x, city.windows(HISTORY, HORIZON).y)]
    signal = StaticGraphTemporalSignal(city.edge_index.numpy(), city.edge_weight.numpy(), *map(list, views))

    def loader(order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = torch.arange(len(views[0])) if order is None else order
        for index in numbers.split(BATCH_SIZE):
            snapshots = [signal[number] for number in index.tolist()]
            yield torch.stack([s.x for s in snapshots]), torch.stack([s.y for s in snapshots])

    return Peer(
        "PyG-Temporal, StaticGraphTemporalSignal", loader, lambda pair: (pair[0].movedim(-1, 1), pair[1].movedim(-1, 1))
    )


def tsl_loader(city: City) -> Peer:
    from tsl.data import SpatioTemporalDataset

    dataset = SpatioTemporalDataset(city.readings.numpy(), window=HISTORY, horizon=HORIZON, stride=1)

    def loader(order: Tensor | None) -> Iterator[Any]:
        from tsl.data.loader import StaticGraphLoader

        yield from StaticGraphLoader(dataset, BATCH_SIZE, sampler=None if order is None else order.tolist())

    return Peer("tsl, StaticGraphLoader", loader, lambda batch: (batch.input.x, batch.target.y))


def index_dataset_class() -> type:
    """PyG-Temporal's IndexDataset; its import of dask, which it needs for lazy data alone, is stood in for."""
    import_temporal()
    stand_in = importlib.util.find_spec("dask") is None
    if stand_in:
        sys.modules["dask"] = ModuleType("dask")
        sys.modules["dask.array"] = sys.modules["dask"].array = ModuleType("dask.array")  # type: ignore[attr-defined]
    try:
        from torch_geometric_temporal.signal.index_dataset import IndexDataset
    finally:
        if stand_in:
            del sys.modules["dask"], sys.modules["dask.array"]
    return IndexDataset


def makers() -> dict[str, Callable[[City], Peer]]:
    """All ways there are here, by name."""
    found: dict[str, Callable[[City], Peer]] = {
        COPIED: partial(ours, COPIED, copy=True),
        VIEWS: partial(ours, VIEWS, copy=False),
        MAPPED: partial(ours, MAPPED, copy=False),
        INDEX: index_batching,
        "PyG-Temporal, StaticGraphTemporalSignal": static_signal,
    }
    if importlib.util.find_spec("tsl") is not None:
        found["tsl, StaticGraphLoader"] = tsl_loader
    return found
