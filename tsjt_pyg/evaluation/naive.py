"""Forecasts that need no network: what every strategy has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from ..data import City, WindowBatch
from ..training import training_split

NaiveForecast = Callable[[WindowBatch, City], Tensor]
"""From a batch of windows, and the city they are windows of, to a forecast ``[B, T_out, N, C]`` in original units."""


def last_value(x: Tensor, x_mask: Tensor, default: Tensor) -> Tensor:
    """The last observed reading of each node in its history; ``default`` ``[N, C]`` where there is none.

    Args:
        x: ``[B, T_in, N, C]``.
        x_mask: bool, the same shape.
        default: ``[N, C]``.

    Returns:
        ``[B, N, C]``.
    """
    steps = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1, 1)
    newest = (x_mask * steps).amax(dim=1)
    value = x.gather(1, (newest - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(newest > 0, value, default)


def node_means(city: City) -> Tensor:
    """Mean of each node's and channel's observed readings ``[N, C]``; the city's mean where a node has none."""
    readings, mask = city.readings.double(), city.mask.double()
    count = mask.sum(dim=0)
    overall = (readings * mask).sum(dim=(0, 1)) / mask.sum(dim=(0, 1)).clamp(min=1)
    return torch.where(count > 0, (readings * mask).sum(dim=0) / count.clamp(min=1), overall).float()


def fit_last_value(visible: City) -> NaiveForecast:
    """The last observed reading, for every step of the horizon."""
    default = node_means(visible)

    def forecast(batch: WindowBatch, city: City) -> Tensor:
        last = last_value(batch.x, batch.x_mask, default)
        return last.unsqueeze(1).expand_as(batch.y)

    return forecast


def fit_historical_average(visible: City) -> NaiveForecast:
    """Each node's mean over the visible days at the same time of day; its overall mean where that is unobserved."""
    slots, per_day = visible.step_of_day, visible.steps_per_day
    shape = (per_day, *visible.readings.shape[1:])
    total = torch.zeros(shape, dtype=torch.float64).index_add_(0, slots, (visible.readings * visible.mask).double())
    count = torch.zeros(shape, dtype=torch.float64).index_add_(0, slots, visible.mask.double())
    average = torch.where(count > 0, total / count.clamp(min=1), node_means(visible).double()).float()

    def forecast(batch: WindowBatch, city: City) -> Tensor:
        history, horizon = batch.x.shape[1], batch.y.shape[1]
        first = city.step_of_day[batch.index] + history
        slot = (first.unsqueeze(-1) + torch.arange(horizon)) % per_day
        return average[slot]

    return forecast


def fit_linear(
    visible: City,
    history: int,
    horizon: int,
    validation_days: float = 1.0,
    alphas: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
) -> NaiveForecast:
    """Ridge regression of each node's horizon on its own history, both relative to the last observed reading.

    The penalty is the one of ``alphas`` with the smallest absolute error on the validation day, one for the whole city;
    the regression is then fitted to all visible days. Missing readings of a history count as its last one; each step of
    the horizon is fitted to the windows in which it was observed.
    """
    default = node_means(visible)
    scale = float(visible.readings[visible.mask].double().std()) or 1.0
    training, validation = training_split(visible, validation_days, history)

    def arrays(city: City) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        windows = city.windows(history, horizon)
        batch = windows.batch(torch.arange(len(windows)))
        last = last_value(batch.x, batch.x_mask, default).unsqueeze(1)
        x = torch.where(batch.x_mask, batch.x - last, 0.0) / scale
        y = torch.where(batch.y_mask, batch.y - last, 0.0) / scale
        return _by_node(x), _by_node(y), _by_node(batch.y_mask)

    def regressions(city: City, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        found = [_masked_ridge(*node, alpha) for node in zip(*arrays(city), strict=True)]
        return np.stack([weight for weight, _ in found]), np.stack([bias for _, bias in found])

    x, y, observed = arrays(validation)

    def error(alpha: float) -> float:
        weight, bias = regressions(training, alpha)
        found = x @ weight.transpose(0, 2, 1) + bias[:, None]
        return float(np.abs(found - y)[observed].mean())

    weight, bias = (torch.from_numpy(part).float() for part in regressions(visible, min(alphas, key=error)))
    num_channels = visible.num_channels

    def forecast(batch: WindowBatch, city: City) -> Tensor:
        last = last_value(batch.x, batch.x_mask, default).unsqueeze(1)
        x = torch.where(batch.x_mask, batch.x - last, 0.0) / scale
        flat = x.permute(2, 0, 1, 3).flatten(2)
        change = torch.baddbmm(bias.unsqueeze(1), flat, weight.transpose(1, 2))
        return last + scale * change.unflatten(2, (horizon, num_channels)).permute(1, 2, 0, 3)

    return forecast


def _masked_ridge(x: np.ndarray, y: np.ndarray, observed: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[O, F]`` and intercepts ``[O]`` of ``x`` ``[W, F]`` on each column of ``y`` ``[W, O]``, where observed.

    A column without an observation gets zeros: the last reading.
    """
    if observed.all():
        ridge = Ridge(alpha=alpha).fit(x, y)
        return ridge.coef_, ridge.intercept_
    weight, bias = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    for column in range(y.shape[1]):
        rows = observed[:, column]
        if rows.any():
            ridge = Ridge(alpha=alpha).fit(x[rows], y[rows, column])
            weight[column], bias[column] = ridge.coef_, ridge.intercept_
    return weight, bias


def _by_node(windows: Tensor) -> np.ndarray:
    """``[W, T, N, C]`` to ``[N, W, T * C]``."""
    array: np.ndarray = windows.permute(2, 0, 1, 3).flatten(2).numpy()
    return array
