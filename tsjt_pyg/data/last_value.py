"""The simplest forecast: what was read last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rows import column_blocks

if TYPE_CHECKING:
    from .city import City
    from .profile import Profile


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


def towards_profile(last: Tensor, profile: Profile, history: int, share: float) -> Tensor:
    """From the last value a part of the way to the node's typical day; the last value where that is unknown.

    Args:
        last: ``[B, T_out, N, C]``.
        profile: Of the windows' history and horizon.
        history: Steps of the history.
        share: 0: the last value; 1: the profile.

    Returns:
        ``[B, T_out, N, C]``.
    """
    known = profile.mask[:, history:]
    return torch.where(known, last + share * (profile.values[:, history:] - last), last)


def node_means(city: City) -> Tensor:
    """Mean of each node's and channel's observed readings ``[N, C]``; the city's mean where a node has none."""
    totals, counts = [], []
    for readings, mask in column_blocks(city.readings, city.mask):
        observed = mask.double()
        totals.append((readings.double() * observed).sum(dim=0))
        counts.append(observed.sum(dim=0))
    total, count = torch.cat(totals), torch.cat(counts)
    overall = total.sum(dim=0) / count.sum(dim=0).clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1), overall).float()
