"""The training loss: errors of observed entries only."""

from __future__ import annotations

from torch import Tensor


def masked_mae(forecast: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean absolute error :math:`\frac{1}{|M|} \sum_{i \in M} |\hat y_i - y_i|` over the observed entries.

    Differentiable, without a synchronisation of host and device; 0 where nothing was observed. What stands under a
    ``False`` mask has no influence, be it NaN.

    Args:
        forecast: Any shape.
        y: The same shape.
        mask: bool, the same shape, ``True`` = observed; default: all.
    """
    check_shapes(forecast, y, mask)
    if mask is None:
        return (forecast - y).abs().mean()
    error = (forecast - y.masked_fill(~mask, 0.0)).abs()
    return error.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def check_shapes(forecast: Tensor, y: Tensor, mask: Tensor | None) -> None:
    """Raises a ValueError where shapes differ: broadcasting them would give a plausible, wrong number."""
    if forecast.shape != y.shape or (mask is not None and mask.shape != y.shape):
        shapes = [[*forecast.shape], [*y.shape], None if mask is None else [*mask.shape]]
        raise ValueError(f"forecast, y and mask: expected one shape, found {shapes[0]}, {shapes[1]} and {shapes[2]}")
