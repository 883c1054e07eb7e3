"""Errors in original units, of observed entries only, pooled over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.losses import check_shapes, masked_mae


def masked_rmse(forecast: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Root mean square error :math:`\sqrt{\frac{1}{|M|} \sum_{i \in M} (\hat y_i - y_i)^2}` over the observed entries.

    Pooled: give it all entries at once, or use :class:`HorizonErrors`; a mean of batches' RMSEs is another number.

    Args:
        forecast: Any shape.
        y: The same shape.
        mask: bool, the same shape, ``True`` = observed; default: all.
    """
    check_shapes(forecast, y, mask)
    observed = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    error = (forecast - y.masked_fill(~observed, 0.0)).masked_fill(~observed, 0.0)
    return (error.square().sum() / observed.sum().clamp(min=1)).sqrt()


def masked_mape(forecast: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean absolute percentage error, in percent, over the observed entries with :math:`y_i \neq 0` (0 if none is).

    Args:
        forecast: Any shape.
        y: The same shape.
        mask: bool, the same shape, ``True`` = observed; default: all.
    """
    check_shapes(forecast, y, mask)
    observed = y != 0 if mask is None else mask & (y != 0)
    share = ((forecast - y).abs() / y.abs().masked_fill(~observed, 1.0)).masked_fill(~observed, 0.0)
    return 100.0 * share.sum() / observed.sum().clamp(min=1)


@dataclass
class Errors:
    """MAE, RMSE (original units) and MAPE (percent), by step of the horizon and over all of them.

    Args:
        mae: Mean absolute error of each step of the horizon, over observed entries.
        rmse: Root of the mean squared error of each step.
        mape: Mean absolute error in percent of the reading, of each step, over entries that are not 0.
        mean_mae: The MAE of all entries of all steps.
        mean_rmse: Their RMSE, pooled over the entries, not averaged over the steps.
        mean_mape: Their MAPE.
    """

    mae: list[float]
    rmse: list[float]
    mape: list[float]
    mean_mae: float
    mean_rmse: float
    mean_mape: float


class HorizonErrors:
    """Sums of errors by step of the horizon, batch by batch, in float64.

    Args:
        horizon: Steps of the horizon.

    Example:
        >>> errors = HorizonErrors(horizon=2)
        >>> y = torch.tensor([50.0, 40.0]).view(1, 2, 1, 1)
        >>> by_entry = errors.update(y + 1.5, y, y > 0)
        >>> errors.compute().mean_mae
        1.5
    """

    def __init__(self, horizon: int) -> None:
        # Rows: absolute error, squared error, relative error, entries, entries with y != 0.
        self._sums = torch.zeros(5, horizon, dtype=torch.float64)

    def update(self, forecast: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Adds a batch: ``forecast``, ``y`` and the ``mask`` of what was observed, ``[B, T_out, N, C]`` each.

        Returns its absolute errors, float64, 0 where nothing was observed.
        """
        other = [dim for dim in range(y.dim()) if dim != 1]
        error = (forecast.double() - y.double()).masked_fill(~mask, 0.0)
        nonzero = mask & (y != 0)
        absolute = error.abs()
        share = (absolute / y.double().abs().masked_fill(~nonzero, 1.0)).masked_fill(~nonzero, 0.0)
        parts = (absolute, error.square(), share, mask.double(), nonzero.double())
        self._sums += torch.stack([part.sum(dim=other) for part in parts]).cpu()
        return absolute

    def compute(self) -> Errors:
        """The pooled errors.

        Raises:
            ValueError: If nothing was observed at some step of the horizon.
        """
        if (self._sums[3] == 0).any():
            raise ValueError(
                "test period: no reading was observed, so there is no error to measure; show fewer days (visible_days, "
                "--visible-days) or take a target with readings after them"
            )
        by_step, pooled = self._ratios(self._sums), self._ratios(self._sums.sum(dim=1, keepdim=True))
        return Errors(*by_step, *(values[0] for values in pooled))

    @staticmethod
    def _ratios(sums: Tensor) -> tuple[list[float], list[float], list[float]]:
        absolute, squared, share, count, nonzero = sums
        mape = 100.0 * share / nonzero.clamp(min=1)
        return (absolute / count).tolist(), (squared / count).sqrt().tolist(), mape.tolist()


__all__ = ["Errors", "HorizonErrors", "masked_mae", "masked_mape", "masked_rmse"]
