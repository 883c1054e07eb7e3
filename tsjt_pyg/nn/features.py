"""What a forecaster sees of a window: readings with the missing ones filled, and the clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .road_graph import check_edges

_ROUNDING = 1e-4
"""Share of a day by which a time may be off, so that midnight is the next day's; far below any interval."""


def fill(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Readings with the missing ones filled, the last observed value ``[B, 1, N, C]``, and the mask as numbers.

    What stands at a missing entry is never multiplied, only replaced, so that NaN is as good as any value there.
    """
    if mask is None:
        return x, x[:, -1:], torch.ones_like(x)
    steps = torch.arange(1, x.size(1) + 1, device=x.device).view(1, -1, 1, 1)
    last = (steps * mask).amax(dim=1, keepdim=True)  # 0: none observed
    level = torch.where(last > 0, x.gather(1, (last - 1).clamp(min=0)), 0.0)
    return torch.where(mask, x, level), level, mask.to(x.dtype)


def clock_features(
    like: Tensor, steps: int, time_of_day: Tensor | None, day_of_week: Tensor | None, uses: tuple[bool, bool]
) -> Tensor | None:
    """Sine and cosine of the time of day and of the day of the week, ``[B, steps, 2 or 4]``; 0 where one is not known.

    Args:
        like: Readings ``[B, ...]``.
        steps: Number of steps.
        time_of_day: ``[B, steps]``, fraction of the day.
        day_of_week: ``[B, steps]``, 0 = Monday.
        uses: Whether the time of day is wanted, and the day of the week; ``None`` is given where neither is.
    """
    parts = []
    for wanted, phase, period in zip(uses, (time_of_day, day_of_week), (1, 7), strict=True):
        if not wanted:
            continue
        if phase is None:
            parts.append(like.new_zeros(like.size(0), steps, 2))
        else:
            angle = 2.0 * math.pi / period * phase
            parts.append(torch.stack([angle.sin(), angle.cos()], dim=-1).to(like.dtype))
    return torch.cat(parts, dim=-1) if parts else None


def horizon_clock(
    time_of_day: Tensor | None, day_of_week: Tensor | None, horizon: int
) -> tuple[Tensor | None, Tensor | None]:
    """Time of day and day of the week of the steps that follow a history, ``[B, horizon]`` each.

    They go on in the step from the last but one to the last step of the history. A step that lasts a day or longer is
    known only where both are given. Where the time of day is not, the day of the week stays as it was last.

    Args:
        time_of_day: ``[B, T]`` with ``T >= 2``, fraction of the day.
        day_of_week: ``[B, T]``, 0 = Monday.
        horizon: Steps that follow.
    """
    if time_of_day is None:
        return None, None if day_of_week is None else day_of_week[:, -1:].expand(-1, horizon)
    days, period = time_of_day.double(), 1
    if day_of_week is not None:
        days, period = days + day_of_week, 7
    step = (days[:, -1:] - days[:, -2:-1] + _ROUNDING) % period - _ROUNDING
    later = days[:, -1:] + step * torch.arange(1, horizon + 1, device=days.device)
    midnight = (later + _ROUNDING).floor()
    return (later - midnight).to(time_of_day.dtype), None if day_of_week is None else midnight.long() % 7


def profile_features(
    x: Tensor,
    level: Tensor,
    horizon: int,
    profile: Tensor | None,
    mask: Tensor | None,
    same_type: Tensor | None,
    center: bool,
) -> Tensor:
    """The support profile at history and horizon, ``[B, T + horizon, N, 2 C + 1]``: the profile's difference to
    ``level`` (itself where not ``center``), what is known of it, and whether its days are of the step's own type.

    All 0 where there is none. Without ``mask`` all of ``profile`` is known, without ``same_type`` all is of its type.
    """
    windows, steps, nodes, channels = x.shape
    if profile is None:
        return x.new_zeros(windows, steps + horizon, nodes, 2 * channels + 1)
    difference = profile - level if center else profile
    known = x.new_ones(profile.shape) if mask is None else mask.to(x.dtype)
    same = x.new_ones(profile.shape[:2]) if same_type is None else same_type.to(x.dtype)
    if mask is not None:
        difference = torch.where(mask, difference, 0.0)
    same = same[:, :, None, None].expand(-1, -1, nodes, 1)
    return torch.cat([difference, known, same], dim=-1)


def check_window(
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    x_mask: Tensor | None,
    time_of_day: Tensor | None,
    day_of_week: Tensor | None,
    history: int,
    in_channels: int,
) -> None:
    """Raises a ValueError that says which argument of :meth:`Forecaster.forward` is not as it must be."""
    if x.dim() != 4 or x.size(1) != history or x.size(3) != in_channels or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point [B, {history}, N, {in_channels}] (history={history}, "
            f"in_channels={in_channels}), found {x.dtype} {list(x.shape)}"
        )
    if x_mask is not None and (x_mask.shape != x.shape or x_mask.dtype != torch.bool):
        raise ValueError(
            f"x_mask must be bool {list(x.shape)} like x (True = observed), found {x_mask.dtype} {list(x_mask.shape)}"
        )
    if time_of_day is not None and (time_of_day.shape != x.shape[:2] or not time_of_day.is_floating_point()):
        raise ValueError(
            f"time_of_day must be floating point {list(x.shape[:2])}, the fraction of the day of each history "
            f"step, found {time_of_day.dtype} {list(time_of_day.shape)}"
        )
    if day_of_week is not None and (day_of_week.shape != x.shape[:2] or day_of_week.dtype != torch.long):
        raise ValueError(
            f"day_of_week must be int64 {list(x.shape[:2])}, the day of each history step (0 = Monday), found "
            f"{day_of_week.dtype} {list(day_of_week.shape)}"
        )
    check_edges(edge_index, edge_weight, x.size(2))
    # What follows looks at values: free on the CPU, but on an accelerator it would wait for all work queued there, and
    # a program that is exported cannot go one way or the other.
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        return
    # Hours or minutes would all look like midnight. One day more or less is the same time.
    if time_of_day is not None and not bool(((time_of_day > -1) & (time_of_day < 2)).all()):
        raise ValueError(
            f"time_of_day must be the fraction of the day in [0, 1), found {float(time_of_day.min()):g} to "
            f"{float(time_of_day.max()):g}; divide hours by 24"
        )
    if (
        day_of_week is not None
        and day_of_week.numel()
        and not 0 <= int(day_of_week.min()) <= int(day_of_week.max()) < 7
    ):
        raise ValueError(
            f"day_of_week must be 0 (Monday) to 6 (Sunday), found {int(day_of_week.min())} to {int(day_of_week.max())}"
        )
    _check_finite("x", x, "x_mask", x_mask)


def check_profile(
    x: Tensor, horizon: int, profile: Tensor | None, mask: Tensor | None, same_type: Tensor | None
) -> None:
    """Raises a ValueError that says what of a support profile is not as it must be beside the window ``x``."""
    if profile is None:
        if mask is not None or same_type is not None:
            given = "profile_mask" if mask is not None else "profile_same_type"
            raise ValueError(f"profile must be given with {given}, which says something about it, found None")
        return
    windows, steps, nodes, channels = x.shape
    shape = [windows, steps + horizon, nodes, channels]
    if list(profile.shape) != shape or not profile.is_floating_point():
        raise ValueError(
            f"profile must be floating point {shape}, at the {steps} history steps of x and the {horizon} steps of the "
            f"horizon, found {profile.dtype} {list(profile.shape)}"
        )
    if mask is not None and (list(mask.shape) != shape or mask.dtype != torch.bool):
        raise ValueError(
            f"profile_mask must be bool {shape} like profile (True = known), found {mask.dtype} {list(mask.shape)}"
        )
    if same_type is not None and (list(same_type.shape) != shape[:2] or same_type.dtype != torch.bool):
        raise ValueError(
            f"profile_same_type must be bool {shape[:2]}, one a step of profile, found {same_type.dtype} "
            f"{list(same_type.shape)}"
        )
    if x.device.type == "cpu" and not torch.compiler.is_exporting():
        _check_finite("profile", profile, "profile_mask", mask)


def _check_finite(name: str, values: Tensor, mask_name: str, mask: Tensor | None) -> None:
    finite = torch.isfinite(values) if mask is None else torch.isfinite(values) | ~mask
    if not bool(finite.all()):
        raise ValueError(
            f"{name} must be finite wherever it is observed, found {int((~finite).sum())} observed entries that are "
            f"NaN or infinite; mark missing readings with False in {mask_name}"
        )
