"""A city as the objects that PyG and PyG-Temporal pipelines take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset

from .._compat import import_temporal

if TYPE_CHECKING:
    from .city import City


def _snapshots(city: City, history: int, horizon: int) -> dict[str, Tensor]:
    """Views of all windows in the layout of PyG-Temporal: time last, and a single channel's target without channels."""
    windows = city.windows(history, horizon)
    views = {"x": windows.x, "y": windows.y, "x_mask": windows.x_mask, "mask": windows.y_mask}
    views = {name: view.movedim(1, -1) for name, view in views.items()}
    if city.num_channels == 1:
        views["y"], views["mask"] = views["y"].squeeze(2), views["mask"].squeeze(2)
    return views


class _FloatSequence:
    """A sequence of float32 numpy arrays over a view, made one at a time (signals take no bool and no tensor)."""

    def __init__(self, view: Tensor) -> None:
        self.view = view

    def __len__(self) -> int:
        return self.view.shape[0]

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            return _FloatSequence(self.view[item])
        if not -len(self) <= item < len(self):
            raise IndexError(f"snapshot {item} of {len(self)}")
        array: np.ndarray = self.view[item].to(torch.float32).numpy()
        return array


def to_signal(city: City, history: int = 12, horizon: int = 12) -> Any:
    """The windows of a city as a :class:`torch_geometric_temporal.signal.StaticGraphTemporalSignal`.

    No reading is copied: the signal's features and targets are views, and a snapshot is made when it is asked for.
    Each snapshot carries the additional attributes ``mask`` (shape of ``y``) and ``x_mask`` (shape of ``x``), 1.0 where
    observed (signals drop bool arrays).

    Shapes of a snapshot:
        - ``x``: ``[N, C, T_in]``
        - ``y``: ``[N, T_out]`` for one channel, else ``[N, C, T_out]``
        - ``edge_attr``: ``[E]``, the weights
    """
    import_temporal()
    from torch_geometric_temporal.signal import StaticGraphTemporalSignal

    views = {name: _FloatSequence(view.cpu()) for name, view in _snapshots(city, history, horizon).items()}
    return StaticGraphTemporalSignal(
        city.edge_index.cpu().numpy(),
        city.edge_weight.cpu().numpy(),
        views["x"],
        views["y"],
        mask=views["mask"],
        x_mask=views["x_mask"],
    )


class WindowDataset(Dataset):
    """The windows of a city as a :class:`torch_geometric.data.Dataset`, for PyG's ``DataLoader``.

    One :class:`~torch_geometric.data.Data` a window: ``x`` ``[N, C, T_in]``, ``y`` ``[N, T_out]`` (one channel) or
    ``[N, C, T_out]``, bool ``mask`` and ``x_mask`` in their shapes, ``edge_index``, and the weights in ``edge_attr``.
    ``x`` and ``y`` are views of the city's readings.
    """

    def __init__(self, city: City, history: int = 12, horizon: int = 12) -> None:
        super().__init__()
        self.city = city
        self._views = _snapshots(city, history, horizon)

    def len(self) -> int:
        """Number of windows."""
        return self._views["x"].shape[0]

    def get(self, idx: int) -> Data:
        """Window ``idx``."""
        snapshot = {name: view[idx] for name, view in self._views.items()}
        return Data(edge_index=self.city.edge_index, edge_attr=self.city.edge_weight, **snapshot)
