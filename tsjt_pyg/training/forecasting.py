"""Windows in original units in, forecasts in original units out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..data import StandardScaler, WindowBatch, Windows


def forecast_scaled(model: torch.nn.Module, batch: WindowBatch, scaler: StandardScaler) -> Tensor:
    """Forecast ``[B, T_out, N, C]`` in scaled units, of a batch in original units."""
    forecast: Tensor = model(
        scaler.transform(batch.x, batch.x_mask),
        batch.edge_index,
        batch.edge_weight,
        x_mask=batch.x_mask,
        time_of_day=batch.time_of_day,
    )
    return forecast


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
