"""Forecasts that need no network: what every strategy has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from torch import Tensor

from ..data import City, SupportProfile, WindowBatch
from ..data.last_value import last_value, node_means, towards_profile
from ..training import training_split

NaiveForecast = Callable[[WindowBatch, City], Tensor]
"""From a batch of windows, and the city they are windows of, to a forecast ``[B, T_out, N, C]`` in original units."""


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


def fit_last_value_and_profile(visible: City) -> NaiveForecast:
    """The mean of the last observed reading and the node's typical day, of the visible days, at the same time.

    Of days of the step's own type, working day or weekend, where there are some
    (:class:`~tsjt_pyg.data.SupportProfile`); the last reading alone where that time of day was not observed.
    """
    default, support = node_means(visible), SupportProfile(visible)

    def forecast(batch: WindowBatch, city: City) -> Tensor:
        history = batch.x.shape[1]
        last = last_value(batch.x, batch.x_mask, default).unsqueeze(1).expand_as(batch.y)
        profile = support.at(city.windows(history, batch.y.shape[1]), batch.index)
        return towards_profile(last, profile, history, 0.5)

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


def fit_global_linear(
    visible: City,
    history: int,
    horizon: int,
    validation_days: float = 1.0,
    alphas: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
) -> NaiveForecast:
    """Ridge regression of the horizon on the history and the time of day, one for all nodes.

    History and horizon are relative to the last observed reading, which is a feature itself; the penalty is chosen on
    the validation day as in :func:`fit_linear`.
    """
    features = _LagFeatures(visible)
    training, validation = training_split(visible, validation_days, history)
    found = features.table(validation, history, horizon)

    def regression(city: City, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        return _masked_ridge(*features.table(city, history, horizon), alpha)

    def error(alpha: float) -> float:
        weight, bias = regression(training, alpha)
        return float(np.abs(found[0] @ weight.T + bias - found[1])[found[2]].mean())

    weight, bias = regression(visible, min(alphas, key=error))
    return features.forecast(lambda x: x @ weight.T + bias)


def fit_boosting(
    visible: City, history: int, horizon: int, validation_days: float = 1.0, max_rows: int = 20_000, seed: int = 0
) -> NaiveForecast:
    """Gradient-boosted trees on the features of :func:`fit_global_linear`, one model a step of the horizon.

    scikit-learn's :class:`~sklearn.ensemble.HistGradientBoostingRegressor` with absolute error, stopped early on a
    tenth of its rows, as it does by default for many rows.

    Args:
        visible: The visible days, all of which are fitted.
        history: Steps in.
        horizon: Steps out.
        validation_days: Not used: nothing is chosen.
        max_rows: Rows (windows of nodes) drawn at random, so that it takes seconds.
        seed: Seed of the drawing.
    """
    features = _LagFeatures(visible)
    x, y, observed = features.table(visible, history, horizon)
    rows = np.random.default_rng(seed).permutation(len(x))[:max_rows]
    models = []
    for step in range(y.shape[1]):
        kept = rows[observed[rows, step]]
        model = HistGradientBoostingRegressor(loss="absolute_error", early_stopping=True, random_state=seed)
        models.append(model.fit(x[kept], y[kept, step]) if len(kept) > 1 else None)

    def predict(table: np.ndarray) -> np.ndarray:
        nothing = np.zeros(len(table))
        return np.stack([nothing if model is None else model.predict(table) for model in models], axis=1)

    return features.forecast(predict)


class _LagFeatures:
    """Windows of single nodes as rows: history relative to the last reading, that reading, the time of day."""

    def __init__(self, visible: City) -> None:
        self.default = node_means(visible)
        self.scale = float(visible.readings[visible.mask].double().std()) or 1.0

    def table(self, city: City, history: int, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features ``[R, F]``, targets ``[R, T_out * C]`` and which of them were observed, of all windows."""
        windows = city.windows(history, horizon)
        batch = windows.batch(torch.arange(len(windows)))
        x, last = self._rows(batch)
        y = torch.where(batch.y_mask, batch.y - last, 0.0) / self.scale
        return x, self._flat(y), self._flat(batch.y_mask)

    def forecast(self, predict: Callable[[np.ndarray], np.ndarray]) -> NaiveForecast:
        """The forecast of a model of rows."""

        def forecast(batch: WindowBatch, city: City) -> Tensor:
            x, last = self._rows(batch)
            change = torch.from_numpy(predict(x)).float()
            windows, steps, nodes, channels = batch.y.shape
            return last + self.scale * change.view(windows, nodes, steps, channels).transpose(1, 2)

        return forecast

    def _rows(self, batch: WindowBatch) -> tuple[np.ndarray, Tensor]:
        last = last_value(batch.x, batch.x_mask, self.default).unsqueeze(1)
        x = torch.where(batch.x_mask, batch.x - last, 0.0) / self.scale
        angle = 2 * torch.pi * batch.time_of_day[:, -1:]
        clock = torch.cat([angle.sin(), angle.cos()], dim=1)[:, None, None].expand(-1, 1, x.shape[2], -1)
        parts = (self._flat(x), self._flat(last / self.scale), self._flat(clock))
        return np.concatenate(parts, axis=1), last

    @staticmethod
    def _flat(windows: Tensor) -> np.ndarray:
        """``[W, T, N, C]`` to ``[W * N, T * C]``."""
        array: np.ndarray = windows.transpose(1, 2).flatten(2).flatten(0, 1).numpy()
        return array


def _masked_ridge(x: np.ndarray, y: np.ndarray, observed: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[O, F]`` and intercepts ``[O]`` of ``x`` ``[W, F]`` on each column of ``y`` ``[W, O]``, where observed.

    A column without an observation gets zeros: the last reading.
    """
    if observed.all():
        ridge = Ridge(alpha=alpha).fit(x, y)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)  # of one column it gives vectors
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


NAIVE_FITS: dict[str, Callable[[City, int, int, float], NaiveForecast]] = {
    "last value": lambda visible, *_: fit_last_value(visible),
    "historical average": lambda visible, *_: fit_historical_average(visible),
    "last value and profile": lambda visible, *_: fit_last_value_and_profile(visible),
    "linear per node": fit_linear,
    "global linear": fit_global_linear,
    "gradient boosting": fit_boosting,
}
"""From visible days, history, horizon and validation days to the forecast, by name."""
