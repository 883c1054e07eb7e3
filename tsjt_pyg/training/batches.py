"""Training batches as a pure function of the step, each city seen through its own statistics and support days."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import City, CityPairLoader, Profile, StandardScaler, SupportProfile, WindowBatch
from ..data.pairs import shuffled_index
from .forecasting import forecast_scaled, takes_profile
from .losses import masked_mae
from .model_state import window_size


class CityBatches:
    """Windows of one city, with its scaler and, where the model takes one, a support profile for each.

    The support days of a window are drawn from the other days of the city, at most as many as the target has to show.
    """

    def __init__(self, city: City, history: int, horizon: int, most: int | None) -> None:
        self.windows = city.windows(history, horizon)
        try:
            self.scaler = StandardScaler().fit(city.readings, city.mask)
        except ValueError as error:
            raise ValueError(f"{city.name}: {error}") from error
        self.most = most
        self.support = None if most is None else SupportProfile(city)

    def loss(self, model: torch.nn.Module, batch: WindowBatch, seed: int) -> Tensor:
        """The masked MAE of a batch of these windows, in scaled units; ``seed`` draws the support days."""
        device = next(model.parameters()).device
        profile: Profile | None = None
        if self.support is not None:
            generator = torch.Generator().manual_seed(seed % 2**63)
            profile = self.support.at(self.windows, batch.index, self.most, generator).to(device)
        batch = batch.to(device)
        forecast = forecast_scaled(model, batch, self.scaler, profile)
        return masked_mae(forecast, self.scaler.transform(batch.y), batch.y_mask)


class TrainingBatches:
    """The source and the target batch of every step.

    Args:
        model: The model, which may take a support profile.
        training: The target's days that are learned from.
        sources: The source cities.
        most: Support days of a window at most; see :class:`CityBatches`.
        batch_size: Windows a batch.
        seed: Seed of order and support days.
        weights: How often each source takes its turn; ``None``: all equally.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        training: City,
        sources: Sequence[City],
        most: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        size = window_size(model)
        # Who never saw a profile in training cannot read one later: a single day has none for its own windows.
        learns_profile = takes_profile(model) and any(_has_profiles(city, *size) for city in (*sources, training))
        support_days = most if learns_profile else None
        self.target = CityBatches(training, *size, support_days)
        self.sources = [CityBatches(city, *size, support_days) for city in sources]
        self.pairs = (
            CityPairLoader([s.windows for s in self.sources], self.target.windows, batch_size, seed, weights)
            if self.sources
            else None
        )
        self.batch_size, self.seed = batch_size, seed

    def loss(self, model: torch.nn.Module, step: int, source: bool) -> Tensor:
        """The masked MAE of step ``step``'s source or target batch, in scaled units."""
        # Another seed for the source's days than for the target's, so that the two are not drawn in step.
        days_seed = self.seed * 1_000_003 + 2 * step + source
        if source:
            assert self.pairs is not None
            batch, which = self.pairs.source_batch(step)
            return self.sources[which].loss(model, batch, days_seed)
        windows = self.target.windows
        batch = windows.batch(shuffled_index(len(windows), self.batch_size, step, self.seed))
        return self.target.loss(model, batch, days_seed)


def _has_profiles(city: City, history: int, horizon: int) -> bool:
    """Whether some time of day of the city's windows was observed on another of its days, too."""
    support, windows = SupportProfile(city), city.windows(history, horizon)
    if support.num_days > 2:
        return True
    index = torch.linspace(0, len(windows) - 1, min(16, len(windows))).round().long()
    return bool(support.at(windows, index).mask.any())
