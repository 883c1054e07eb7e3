"""A model for raw readings of one city: original units and local time in, original units out."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module

from ..data import StandardScaler, SupportProfile
from ..nn import Forecaster

_EPOCH = pd.Timestamp(0)
_DAY = 86_400


class CityForecaster(Module):
    """A forecaster with the scaler, the road network and the visible days of its city.

    The road network does not change: what is made of it is made once, and an exported program holds it.

    Args:
        model: Of one channel in and out.
        scaler: That it was trained with.
        edge_index: ``[2, E]``.
        edge_weight: ``[E]``.
        interval: Time from one step to the next, of whole seconds.
        support: The visible days, for a model that takes a profile.

    Shapes:
        - **input:** readings ``[B, history, N]`` in original units, NaN (or infinite) where nothing was observed; time
          ``[B]`` int64 on the CPU, local time of each last reading in seconds since 1970-01-01 00:00
        - **output:** ``[B, horizon, N]`` in original units, finite whatever is missing

    Raises:
        ValueError: If the interval is no whole number of seconds.
    """

    def __init__(
        self,
        model: Forecaster,
        scaler: StandardScaler,
        edge_index: Tensor,
        edge_weight: Tensor,
        interval: pd.Timedelta,
        support: SupportProfile | None = None,
    ) -> None:
        super().__init__()
        seconds = interval.total_seconds()
        if seconds < 1 or seconds != int(seconds):
            raise ValueError(f"interval: expected a whole number of seconds, found {interval}")
        self.model = model
        self.scaler = scaler
        self.support = support if model.profile else None
        self.interval = int(seconds)
        self._roads = edge_index, edge_weight  # no buffers: torch.export then takes them for what never changes

    def forward(self, readings: Tensor, time: Tensor) -> Tensor:
        model, x = self.model, readings.unsqueeze(-1)
        if x.device != self._roads[0].device:
            self._roads = self._roads[0].to(x.device), self._roads[1].to(x.device)
        observed = torch.isfinite(x)
        steps = torch.arange(1 - model.history, 1, device=time.device) * self.interval
        seconds = time[:, None] + steps
        known: dict[str, Any] = {"time_of_day": (seconds % _DAY).to(torch.float64).div(_DAY).to(x)}
        if model.day_of_week:  # 1970-01-01 was a Thursday
            known["day_of_week"] = ((seconds.div(_DAY, rounding_mode="floor") + 3) % 7).to(x.device)
        if self.support is not None:
            first = self._steps_of_support(seconds[:, 0])
            profile = self.support.after(first, model.history + model.horizon).to(x.device)
            known["profile"] = self.scaler.transform(profile.values, profile.mask)
            known["profile_mask"], known["profile_same_type"] = profile.mask, profile.same_type
        scaled = self.scaler.transform(x.masked_fill(~observed, 0.0), observed)
        forecast: Tensor = model(scaled, *self._roads, x_mask=observed, **known)
        return self.scaler.inverse_transform(forecast)[..., 0]

    def _steps_of_support(self, seconds: Tensor) -> Tensor:
        """The nearest steps of the visible days' grid, counted from the midnight that begins them."""
        assert self.support is not None
        start = self.support.support.start
        late = int((start - start.normalize()).total_seconds()) // self.interval
        since = seconds - int((start - _EPOCH).total_seconds())
        return (2 * since + self.interval).div(2 * self.interval, rounding_mode="floor") + late
