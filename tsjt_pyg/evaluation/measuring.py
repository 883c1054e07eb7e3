"""Errors of a model, or of a naive forecast, on a city's windows."""

from __future__ import annotations

import torch

from ..data import City, NodeBlocks, StandardScaler, SupportProfile
from ..training import forecast_windows
from .details import ErrorDetails
from .metrics import Errors, HorizonErrors
from .naive import NaiveForecast

MOST_AT_ONCE = 2**20
"""Windows times nodes of a batch of naive forecasts: a large city has fewer than 64 windows in it."""


def measure(
    model: torch.nn.Module,
    city: City,
    scaler: StandardScaler,
    history: int,
    horizon: int,
    support: SupportProfile | None = None,
    blocks: NodeBlocks | None = None,
    details: ErrorDetails | None = None,
) -> Errors:
    """Errors of a model's forecasts on all windows of a city, in original units; ``details`` are added to."""
    errors = HorizonErrors(horizon)
    windows = city.windows(history, horizon)
    for batch, forecast in forecast_windows(model, windows, scaler, support=support, blocks=blocks):
        absolute = errors.update(forecast, batch.y, batch.y_mask)
        if details is not None:
            details.update(absolute, forecast, batch)
    return errors.compute()


def measure_naive(
    forecast: NaiveForecast, city: City, history: int, horizon: int, details: ErrorDetails | None = None
) -> Errors:
    """Errors of a naive forecast on all windows of a city, in original units; ``details`` are added to."""
    errors = HorizonErrors(horizon)
    at_once = max(1, min(64, MOST_AT_ONCE // city.num_nodes))
    for batch in city.windows(history, horizon).batches(at_once):
        found = forecast(batch, city)
        absolute = errors.update(found, batch.y, batch.y_mask)
        if details is not None:
            details.update(absolute, found, batch)
    return errors.compute()
