"""Windows in original units in, forecasts in original units out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..data import StandardScaler, WindowBatch, Windows


def forecast_scaled(model: torch.nn.Module, batch: WindowBatch, scaler: StandardScaler) -> Tensor:
    """Forecast ``[B, T_out, N, C]`` in scaled units, of a batch in original units.

    The day of the week and the name of the city are given to a model whose ``forward`` has an argument ``day_of_week``
    or ``city``.
    """
    forecast: Tensor = model(
        scaler.transform(batch.x, batch.x_mask),
        batch.edge_index,
        batch.edge_weight,
        x_mask=batch.x_mask,
        time_of_day=batch.time_of_day,
        **{name: getattr(batch, name) for name in ("day_of_week", "city") if name in _arguments(model)},
    )
    return forecast


def _arguments(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """Of a model's ``forward``; of a wrapped or compiled model, those of the one inside."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return _arguments(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return inspect.signature(model.forward).parameters if compiled is None else _arguments(compiled)


@torch.no_grad()
def forecast_windows(
    model: torch.nn.Module, windows: Windows, scaler: StandardScaler, batch_size: int = 64
) -> Iterator[tuple[WindowBatch, Tensor]]:
    """``(batch, forecast [B, T_out, N, C])`` for all windows in order, in original units, in evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in windows.batches(batch_size, device=device):
            yield batch, scaler.inverse_transform(forecast_scaled(model, batch, scaler))
    finally:
        model.train(was_training)
