"""History and horizon windows over a city's readings, as views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .city import City


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows of one city, side by side.

    Shapes:
        - ``x``, ``x_mask``: ``[B, T_in, N, C]``, readings (0 where missing) and what was observed of them
        - ``y``, ``y_mask``: ``[B, T_out, N, C]``
        - ``time_of_day``: ``[B, T_in]``, fraction of the day in [0, 1)
        - ``index``: ``[B]``, number of the window in its :class:`Windows`
        - ``edge_index``: ``[2, E]``, ``edge_weight``: ``[E]``, the city's road network
    """

    x: Tensor
    y: Tensor
    x_mask: Tensor
    y_mask: Tensor
    time_of_day: Tensor
    index: Tensor
    edge_index: Tensor
    edge_weight: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> WindowBatch:
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return replace(self, **moved)


class Windows:
    """All windows of ``history`` steps and the ``horizon`` steps that follow, of one city.

    Window ``i`` has the history ``i * stride .. i * stride + history - 1``. :attr:`x`, :attr:`y` and the masks are
    views of the city's tensors: no reading is copied until a batch is gathered, on the tensors' own device.

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
        self._time_of_day = city.time_of_day.to(city.readings.device)

    def __len__(self) -> int:
        return (self.city.num_steps - self.history - self.horizon) // self.stride + 1

    def __repr__(self) -> str:
        return f"Windows({len(self)} of {self.city.name!r}, history={self.history}, horizon={self.horizon})"

    def _view(self, tensor: Tensor, offset: int, length: int) -> Tensor:
        span = tensor[offset : offset + (len(self) - 1) * self.stride + length]
        return span.unfold(0, length, self.stride).movedim(-1, 1)

    @property
    def x(self) -> Tensor:
        """Histories ``[W, T_in, N, C]``, a view."""
        return self._view(self.city.readings, 0, self.history)

    @property
    def y(self) -> Tensor:
        """Horizons ``[W, T_out, N, C]``, a view."""
        return self._view(self.city.readings, self.history, self.horizon)

    @property
    def x_mask(self) -> Tensor:
        """What was observed of :attr:`x`, a view."""
        return self._view(self.city.mask, 0, self.history)

    @property
    def y_mask(self) -> Tensor:
        """What was observed of :attr:`y`, a view."""
        return self._view(self.city.mask, self.history, self.horizon)

    def batch(self, index: Tensor) -> WindowBatch:
        """The windows of the given numbers ``[B]``, gathered.

        Raises:
            IndexError: If a number is not in ``0 .. len(self) - 1``.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"index: expected windows 0 to {len(self) - 1}, found {index.tolist()}")
        index = index.to(self.city.readings.device)
        first = index.unsqueeze(-1) * self.stride
        steps = first + torch.arange(self.history + self.horizon, device=index.device)
        steps_in, steps_out = steps[:, : self.history], steps[:, self.history :]
        return WindowBatch(
            x=self.city.readings[steps_in],
            y=self.city.readings[steps_out],
            x_mask=self.city.mask[steps_in],
            y_mask=self.city.mask[steps_out],
            time_of_day=self._time_of_day[steps_in],
            index=index,
            edge_index=self.city.edge_index,
            edge_weight=self.city.edge_weight,
        )

    def batches(
        self,
        batch_size: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[WindowBatch]:
        """One pass over all windows.

        Args:
            batch_size: Windows a batch.
            shuffle: In random order, drawn from ``generator`` (default: torch's global one).
            drop_last: Leave out a last batch that is not full.
            generator: Source of randomness (on the CPU).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        for index in order.split(batch_size):
            if drop_last and len(index) < batch_size:
                return
            yield self.batch(index)
