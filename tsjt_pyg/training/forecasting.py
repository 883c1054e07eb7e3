"""Windows in original units in, forecasts in original units out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import NodeBlocks, Profile, StandardScaler, SupportProfile, WindowBatch, Windows
from .model_state import unwrapped


def forecast_scaled(
    model: torch.nn.Module, batch: WindowBatch, scaler: StandardScaler, profile: Profile | None = None
) -> Tensor:
    """Forecast ``[B, T_out, N, C]`` in scaled units, of a batch in original units.

    The day of the week, the name of the city and the support profile are given to a model whose ``forward`` has
    arguments of these names: ``day_of_week``, ``city``, ``profile``, ``profile_mask``, ``profile_same_type``.
    """
    known: dict[str, Any] = {"day_of_week": batch.day_of_week, "city": batch.city}
    if profile is not None:
        known["profile"] = scaler.transform(profile.values, profile.mask)
        known["profile_mask"], known["profile_same_type"] = profile.mask, profile.same_type
    more = {name: value for name, value in known.items() if name in _arguments(model)}
    forecast: Tensor = model(
        scaler.transform(batch.x, batch.x_mask),
        batch.edge_index,
        batch.edge_weight,
        x_mask=batch.x_mask,
        time_of_day=batch.time_of_day,
        **more,
    )
    return forecast


def takes_profile(model: torch.nn.Module) -> bool:
    """Whether the model's ``forward`` has an argument ``profile``, and it was not built to ignore it.

    A :class:`~tsjt_pyg.nn.Forecaster` ignores it unless ``profile=True``.
    """
    return "profile" in _arguments(model) and getattr(unwrapped(model), "profile", True) is not False


def _arguments(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """Of a model's ``forward``."""
    return inspect.signature(unwrapped(model).forward).parameters


@torch.no_grad()
def forecast_windows(
    model: torch.nn.Module,
    windows: Windows,
    scaler: StandardScaler,
    batch_size: int = 64,
    support: SupportProfile | None = None,
    blocks: NodeBlocks | None = None,
) -> Iterator[tuple[WindowBatch, Tensor]]:
    """``(batch, forecast [B, T_out, N, C])`` for all windows in order, in original units, in evaluation mode.

    With ``blocks``, all windows of the first block come first, then those of the next. ``batch.block.core`` says which
    nodes ``forecast[:, :, batch.block.core_mask]`` belongs to: every node is in the core of one block. The rest are
    forecasts of the halo, which lack a part of their surroundings; ``batch.y_mask`` is false there.

    Args:
        model: As :func:`~tsjt_pyg.training.fit` takes it.
        windows: Of the city to forecast.
        scaler: That the model was trained with; :attr:`FitResult.scaler`.
        batch_size: Windows a batch.
        support: The city's support days, for a model that takes a profile; :attr:`FitResult.support`. Without them such
            a model forecasts as where nothing is known of other days.
        blocks: Blocks of the city's nodes, where all of them do not fit into a batch; :attr:`FitResult.blocks`.

    Raises:
        ValueError: If the blocks are of a city with another number of nodes.
    """
    if blocks is not None and blocks.num_nodes != windows.city.num_nodes:
        raise ValueError(
            f"blocks: they are of {blocks.num_nodes} nodes, {windows.city.name} has {windows.city.num_nodes}; make "
            "them of the city that is forecast"
        )
    device = next(model.parameters()).device
    sees_profile = support is not None and takes_profile(model)
    was_training = model.training
    model.eval()
    try:
        for block in [None] if blocks is None else blocks:
            nodes = None if block is None else block.nodes
            for batch in windows.batches(batch_size, device=device, block=block):
                profile: Profile | None = None
                if support is not None and sees_profile:
                    profile = support.at(windows, batch.index, nodes=nodes).to(device)
                yield batch, scaler.inverse_transform(forecast_scaled(model, batch, scaler, profile))
    finally:
        model.train(was_training)
