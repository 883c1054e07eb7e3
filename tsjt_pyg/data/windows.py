"""History and horizon windows over a city's readings, as views."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .prefetch import on_stream, prefetched
from .rows import WindowReader, take

if TYPE_CHECKING:
    from .city import City
    from .node_blocks import NodeBlock

T = TypeVar("T")

LARGE_BATCH = 2**25
"""Bytes of a batch from a file above which the memory for a second one is not taken without being asked for."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows of one city, side by side.

    Shapes:
        - ``x``, ``x_mask``: ``[B, T_in, N, C]``, readings (0 where missing) and what was observed of them
        - ``y``, ``y_mask``: ``[B, T_out, N, C]``
        - ``time_of_day``: ``[B, T_in]``, fraction of the day in [0, 1)
        - ``index``: ``[B]``, number of the window in its :class:`Windows`
        - ``edge_index``: ``[2, E]``, ``edge_weight``: ``[E]``, the city's road network
        - ``day_of_week``: ``[B, T_in]`` int64, 0 = Monday

    ``city`` is the city's name. A batch of a ``block`` (:class:`~tsjt_pyg.data.NodeBlocks`) has its nodes only, in its
    order, and the roads between them; ``y_mask`` is false outside of its core, so that losses and errors count every
    node once.
    """

    x: Tensor
    y: Tensor
    x_mask: Tensor
    y_mask: Tensor
    time_of_day: Tensor
    index: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    day_of_week: Tensor
    city: str
    block: NodeBlock | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return list(self._tensors().values())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> WindowBatch:
        """The batch on another device."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("city", "block")}


class Windows:
    """All windows of ``history`` steps and the ``horizon`` steps that follow, of one city.

    Window ``i`` has the history ``i * stride .. i * stride + history - 1``. :attr:`x`, :attr:`y` and the masks are
    views of the city's tensors: no reading is copied until a batch is gathered, on the tensors' own device. Batches of
    a mapped city (:meth:`City.save_mapped <tsjt_pyg.data.City.save_mapped>`) are read from its files.

    Args:
        city: The city.
        history: Steps in, at least 1.
        horizon: Steps out, at least 1.
        stride: Steps from one window to the next.

    Raises:
        ValueError: If the city is shorter than one window.
    """

    def __init__(self, city: City, history: int = 12, horizon: int = 12, stride: int = 1) -> None:
        for argument, value in (("history", history), ("horizon", horizon), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{argument}: expected at least 1 step, found {value}")
        if city.num_steps < history + horizon:
            raise ValueError(
                f"history + horizon: {city.name} has {city.num_steps} steps here, fewer than the {history} + {horizon} "
                "of one window; shorten history or horizon, or use more days"
            )
        self.city, self.history, self.horizon, self.stride = city, history, horizon, stride
        self._readings, self._mask = (
            WindowReader(tensor, (history, horizon), stride) for tensor in (city.readings, city.mask)
        )
        clock = (tensor.to(city.readings.device) for tensor in (city.time_of_day, city.day_of_week))
        self._readers = (self._readings, self._mask, *(WindowReader(tensor, (history,), stride) for tensor in clock))
        self._roads: dict[tuple[torch.device, NodeBlock | None], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return (self.city.num_steps - self.history - self.horizon) // self.stride + 1

    def __repr__(self) -> str:
        return f"Windows({len(self)} of {self.city.name!r}, history={self.history}, horizon={self.horizon})"

    @property
    def _window_bytes(self) -> int:
        city = self.city
        entry = city.readings.element_size() + city.mask.element_size()
        return (self.history + self.horizon) * city.num_nodes * city.num_channels * entry

    @property
    def x(self) -> Tensor:
        """Histories ``[W, T_in, N, C]``, a view."""
        return self._readings.views[0]

    @property
    def y(self) -> Tensor:
        """Horizons ``[W, T_out, N, C]``, a view."""
        return self._readings.views[1]

    @property
    def x_mask(self) -> Tensor:
        """What was observed of :attr:`x`, a view."""
        return self._mask.views[0]

    @property
    def y_mask(self) -> Tensor:
        """What was observed of :attr:`y`, a view."""
        return self._mask.views[1]

    def batch(
        self, index: Tensor, device: torch.device | str | None = None, block: NodeBlock | None = None
    ) -> WindowBatch:
        """The windows of the given numbers ``[B]``, copied.

        Args:
            index: int64, numbers of windows.
            device: Where the batch is wanted; default: where the readings are. From the CPU to a GPU it goes through
                pinned memory, without waiting for the copy.
            block: The nodes that are wanted, of the city's :class:`~tsjt_pyg.data.NodeBlocks`; default: all.

        Raises:
            IndexError: If a number is not in ``0 .. len(self) - 1``.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"index: expected windows 0 to {len(self) - 1}, found {index.tolist()}")
        return self._at(index.to(self.city.readings.device), device, block=block)

    def _at(
        self, index: Tensor, device: torch.device | str | None, copy: bool = True, block: NodeBlock | None = None
    ) -> WindowBatch:
        """The windows of the given numbers, which are not checked."""
        if block is not None:
            return self._of_block(index, device, block)
        there, pin = self._way(device)
        parts = [part for reader in self._readers for part in reader.at(index, copy, pin)]
        if there is not None:
            parts = [part.to(there, non_blocking=pin) for part in parts]
        return self._assembled(parts, index, there)

    def _of_block(self, index: Tensor, device: torch.device | str | None, block: NodeBlock) -> WindowBatch:
        """The windows of the given numbers, of a block's nodes: no other node's readings are read."""
        there, pin = self._way(device)
        here, size = index.device, (self.history, self.horizon)
        rows = index[:, None] * self.stride + torch.arange(sum(size), device=here)
        nodes = block.nodes.to(here)
        x, y = take(self.city.readings, rows, nodes).split(size, dim=1)
        x_mask, y_mask = take(self.city.mask, rows, nodes).split(size, dim=1)
        y_mask = y_mask & block.core_mask.to(here)[:, None]
        parts = [x, y, x_mask, y_mask, *(part for reader in self._readers[2:] for part in reader.at(index))]
        if there is not None:
            parts = [(part.pin_memory() if pin else part).to(there, non_blocking=pin) for part in parts]
        return self._assembled(parts, index, there, block)

    def _in_order(self, first: int, count: int, device: torch.device | str | None, copy: bool) -> WindowBatch:
        """The windows ``first .. first + count - 1``; without ``copy`` as overlapping views."""
        index = torch.arange(first, first + count, device=self.city.readings.device)
        if self.stride > self.history + self.horizon:  # do not read or move what lies between them
            return self._at(index, device)
        there, pin = self._way(device)
        parts = [part for reader in self._readers for part in reader.in_order(first, count, copy, there, pin)]
        return self._assembled(parts, index, there)

    def _assembled(
        self, parts: list[Tensor], index: Tensor, device: torch.device | None, block: NodeBlock | None = None
    ) -> WindowBatch:
        x, y, x_mask, y_mask, time_of_day, day_of_week = parts
        if device is not None:
            index = index.to(device)
        edge_index, edge_weight = self._roads_on(index.device, block)
        return WindowBatch(
            x, y, x_mask, y_mask, time_of_day, index, edge_index, edge_weight, day_of_week, self.city.name, block
        )

    def _roads_on(self, device: torch.device, block: NodeBlock | None) -> tuple[Tensor, Tensor]:
        """The roads of the city or of a block: the same tensors every time, so that what models make of them is too."""
        roads = self.city if block is None else block
        if roads.edge_index.device == device:
            return roads.edge_index, roads.edge_weight
        if (device, block) not in self._roads:
            self._roads[device, block] = (roads.edge_index.to(device), roads.edge_weight.to(device))
        return self._roads[device, block]

    def _way(self, device: torch.device | str | None) -> tuple[torch.device | None, bool]:
        """The device to move to (``None``: the readings are there), and whether through pinned memory."""
        here, there = self.city.readings.device, None if device is None else torch.device(device)
        if there is None or (there.type == here.type and there.index in (None, here.index)):
            return None, False
        return there, here.type == "cpu" and there.type == "cuda"

    def batches(
        self,
        batch_size: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        copy: bool = True,
        prefetch: int | None = None,
        block: NodeBlock | None = None,
    ) -> Iterator[WindowBatch]:
        """One pass over all windows.

        Args:
            batch_size: Windows a batch.
            shuffle: In random order, drawn from ``generator`` (default: torch's global one).
            drop_last: Leave out a last batch that is not full.
            generator: Source of randomness (on the CPU).
            device: Where the batches are wanted; default: where the readings are.
            copy: Whether a batch has memory of its own. ``False`` is for reading only and much faster for windows in
                order, which overlap: ``x``, ``y`` and the masks are then views of the city's readings, and what is
                written to them is written to the city. Shuffled windows are always copied.
            prefetch: Batches that a background thread makes in advance. Default: 2 where the readings are on the CPU
                and the batches on a GPU (pinned, copied beside the kernels), else 1 where the readings are in a mapped
                file and a batch is at most 32 MiB, else 0. The thread ends with the loop, however that ends.
            block: The nodes that are wanted, of the city's :class:`~tsjt_pyg.data.NodeBlocks`; default: all. They are
                always copied.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        check_prefetch(prefetch)
        order = None
        if shuffle:
            order = torch.randperm(len(self), generator=generator).to(self.city.readings.device)

        def made() -> Iterator[WindowBatch]:
            for first in range(0, len(self), batch_size):
                count = min(batch_size, len(self) - first)
                if drop_last and count < batch_size:
                    return
                if block is not None:
                    index = torch.arange(first, first + count) if order is None else order[first : first + count]
                    yield self._at(index.to(self.city.readings.device), device, block=block)
                elif order is None:
                    yield self._in_order(first, count, device, copy)
                else:
                    yield self._at(order[first : first + count], device, copy)

        yield from ahead(made, WindowBatch.tensors, [self], batch_size, device, prefetch)


def check_prefetch(prefetch: int | None) -> None:
    """Raises a ValueError if it is neither a number of batches nor ``None``."""
    if prefetch is not None and prefetch < 0:
        raise ValueError(f"prefetch: expected 0 or more batches ahead, found {prefetch}")


def ahead(
    make: Callable[[], Iterator[T]],
    tensors: Callable[[T], list[Tensor]],
    cities: Sequence[Windows],
    batch_size: int,
    device: torch.device | str | None,
    prefetch: int | None,
) -> Generator[T, None, None]:
    """What ``make()`` gives, made in advance as :meth:`Windows.batches` says.

    Args:
        make: Makes batches, or pairs of them.
        tensors: The tensors of one of them.
        cities: The windows that batches are made of.
        batch_size: Windows a batch.
        device: Where the batches are wanted.
        prefetch: As in :meth:`Windows.batches`.
    """
    pinned = any(windows._way(device)[1] for windows in cities)
    if prefetch is None:
        small = max(batch_size * windows._window_bytes for windows in cities) <= LARGE_BATCH
        prefetch = 2 if pinned else int(small and any(windows._readings.file for windows in cities))
    if prefetch == 0:
        yield from make()
    elif pinned:
        assert device is not None
        yield from on_stream(make, torch.device(device), tensors, prefetch)
    else:
        yield from prefetched(make(), prefetch)
