"""The ways to batches that ``data.py`` measures: ours, PyG-Temporal's and tsl's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
METR_LA_LOADER = "PyG-Temporal, index batching as its METR-LA loader sets it up"
TSL = "tsl, StaticGraphLoader"
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


def index_batching(name: str, city: City, with_time: bool = False) -> Peer:
    """PyG-Temporal's windows; its METR-LA loader repeats the time of day at every node, as a second channel."""
    values = city.readings.numpy()
    if with_time:
        clock = city.time_of_day.numpy()[:, None, None]
        values = np.concatenate([values, np.broadcast_to(clock, values.shape).astype(np.float32)], axis=-1)
    dataset = index_dataset_class()(np.arange(num_windows(city.num_steps)), values, HISTORY, lazy=False, gpu=False)
    channels = city.num_channels

    def loader(order: Tensor | None) -> Iterator[list[Tensor]]:
        yield from DataLoader(dataset, BATCH_SIZE, sampler=None if order is None else order.tolist())

    return Peer(name, loader, lambda batch: (batch[0][..., :channels], batch[1][..., :channels]))


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
    dataset_class, loader_class = tsl_classes()
    dataset = dataset_class(city.readings.numpy(), window=HISTORY, horizon=HORIZON, stride=1)

    def loader(order: Tensor | None) -> Iterator[Any]:
        yield from loader_class(dataset, BATCH_SIZE, sampler=None if order is None else order.tolist())

    return Peer(TSL, loader, lambda batch: (batch.input.x, batch.target.y))


def index_dataset_class() -> type:
    """PyG-Temporal's IndexDataset, which needs dask for lazy data alone."""
    import_temporal()
    with stood_in("dask", "dask.array"):
        from torch_geometric_temporal.signal.index_dataset import IndexDataset
    return IndexDataset


def tsl_classes() -> tuple[type, type]:
    """tsl's data set and loader, which use neither torch-sparse nor torch-scatter (its layers do)."""
    with stood_in("torch_sparse", "torch_scatter", "torch_scatter.utils"):
        from tsl.data import SpatioTemporalDataset
        from tsl.data.loader import StaticGraphLoader
    return SpatioTemporalDataset, StaticGraphLoader


class _Unused(ModuleType):
    """A module whose every name exists and is never called."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def stood_in(package: str, *others: str) -> Iterator[None]:
    """What is imported inside finds an empty package where the real one is not installed."""
    absent = [] if importlib.util.find_spec(package) is not None else [package, *others]
    compile_script = torch.jit.script
    try:
        for name in absent:
            sys.modules[name] = _Unused(name)
            torch.jit.script = lambda function, *_, **__: function  # it would look into functions that are not there
        yield
    finally:
        torch.jit.script = compile_script
        for name in absent:
            del sys.modules[name]


def makers() -> dict[str, Callable[[City], Peer]]:
    """All ways there are here, by name."""
    found: dict[str, Callable[[City], Peer]] = {
        COPIED: partial(ours, COPIED, copy=True),
        VIEWS: partial(ours, VIEWS, copy=False),
        MAPPED: partial(ours, MAPPED, copy=False),
        INDEX: partial(index_batching, INDEX),
        METR_LA_LOADER: partial(index_batching, METR_LA_LOADER, with_time=True),
        "PyG-Temporal, StaticGraphTemporalSignal": static_signal,
    }
    if importlib.util.find_spec("tsl") is not None:
        found[TSL] = tsl_loader
    return found
