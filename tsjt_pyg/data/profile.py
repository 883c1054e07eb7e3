"""A support profile: what a node's readings were at this time of day, on a few other days."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .rows import take
from .windows import Windows

if TYPE_CHECKING:
    from .city import City

_DAY = pd.Timedelta(days=1)
_EPOCH = pd.Timestamp(0)
_SATURDAY = 5


class Profile(NamedTuple):
    """Support profiles of a batch of windows.

    Shapes:
        - ``values``: ``[B, T_in + T_out, N, C]``, in original units, 0 where there is none
        - ``mask``: bool, the same shape, ``True`` where a support day was observed
        - ``same_type``: ``[B, T_in + T_out]`` bool, whether the support days are of the step's own type (working day or
          weekend)
    """

    values: Tensor
    mask: Tensor
    same_type: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Profile:
        """The profiles on another device."""
        return Profile(*(part.to(device, non_blocking=non_blocking) for part in self))


class SupportProfile:
    r"""The typical day of every node, made of a few *support days*, as a window sees it.

    With :math:`D` the support days of a window, and :math:`D_t \subseteq D` those of the type of the day of step
    :math:`t` (Monday to Friday, or Saturday and Sunday; all of :math:`D` where none is), the profile of step :math:`t`
    is the mean of what was observed at its time of day,

    .. math::
        p_t = \frac{1}{|D_t|} \sum_{d \in D_t} x_{d, \tau(t)} .

    Days that the window itself touches are never among its support days, so a profile holds nothing of what is to be
    forecast. A city with years of readings can be seen as one with few: drawing one or a few of its days at random for
    every window (``most``) teaches a network to use a profile made of as few days as the target city has, weekends that
    have only working days to go by among them.

    Args:
        support: The support days: of a target city its visible days.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> visible, test = load_city("demo/riverton").few_shot(days=3)
        >>> windows = test.windows(12, 12)
        >>> profile = SupportProfile(visible).at(windows, torch.arange(8))
    """

    def __init__(self, support: City) -> None:
        self.support = support
        self._per_day = support.steps_per_day
        midnight = support.start.normalize()
        self._first_day = (midnight - _EPOCH) // _DAY
        self._late = int((support.start - midnight) // support.interval)
        self.num_days = -(-(self._late + support.num_steps) // self._per_day)

    def __repr__(self) -> str:
        return f"SupportProfile({self.num_days} days of {self.support.name!r})"

    def at(
        self,
        windows: Windows,
        index: Tensor,
        most: int | None = None,
        generator: torch.Generator | None = None,
        nodes: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Profile:
        """Profiles of the windows of the given numbers, at their history and their horizon.

        Args:
            windows: Of the support city or of another part of it.
            index: int64 ``[B]``, numbers of windows.
            most: Draw 1 to ``most`` support days at random for every window; default: all of them.
            generator: Source of randomness.
            nodes: int64 ``[n]``, positions of the nodes whose profiles are wanted; default: all. Others are not read.
            rows: Which of the windows' profiles are wanted; days are drawn for all of them nevertheless, so that a part
                of a batch sees what it would see in the whole.

        Raises:
            ValueError: If the windows are of a city with other nodes, channels, interval or times of day, or ``most``
                is below 1.
        """
        self._check(windows.city, most)
        late = (windows.city.start - self.support.start.normalize()) // windows.city.interval
        first = index.cpu() * windows.stride + int(late)
        return self.after(first, windows.history + windows.horizon, most, generator, nodes, rows)

    def after(
        self,
        first: Tensor,
        length: int,
        most: int | None = None,
        generator: torch.Generator | None = None,
        nodes: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Profile:
        """Profiles of any times, which need not be those of a city's windows.

        Args:
            first: int64 ``[B]``, the first step of each, counted from the midnight that begins the support's first day.
            length: Steps of each.
            most: As in :meth:`at`.
            generator: Source of randomness.
            nodes: As in :meth:`at`.
            rows: As in :meth:`at`.
        """
        step = first[:, None] + torch.arange(length, device=first.device)
        day = step.div(self._per_day, rounding_mode="floor")
        step = step - day * self._per_day
        step, day, days = step[rows], day[rows], self._days(day, most, generator)[rows]
        same = _weekend(days + self._first_day)[:, :, None] == _weekend(day + self._first_day)[:, None, :]
        row = days[:, :, None] * self._per_day + step[:, None, :] - self._late
        there = (days >= 0)[:, :, None] & (row >= 0) & (row < self.support.num_steps)
        same_type = (same & there).any(dim=1)
        used = there & (same | ~same_type[:, None])
        row = row.clamp(0, self.support.num_steps - 1).to(self.support.readings.device)
        nodes = None if nodes is None else nodes.to(row.device)
        observed = take(self.support.mask, row, nodes) & used[..., None, None].to(row.device)
        count = observed.sum(dim=1)
        total = take(self.support.readings, row, nodes).masked_fill(~observed, 0.0).sum(dim=1)
        return Profile(total / count.clamp(min=1), count > 0, same_type.to(row.device))

    def _days(self, day: Tensor, most: int | None, generator: torch.Generator | None) -> Tensor:
        """Support days of every window ``[B, K]``, -1 where there are no more."""
        candidates = torch.arange(self.num_days, device=day.device).expand(day.size(0), -1)
        own = (candidates >= day[:, :1]) & (candidates <= day[:, -1:])
        if most is None:
            return candidates.masked_fill(own, -1)
        # Random numbers sort the days; those of the window itself come last.
        order = torch.rand(own.shape, generator=generator).masked_fill(own, 2.0)
        rank = order.argsort(dim=1)[:, :most]
        number = torch.randint(1, most + 1, (len(day), 1), generator=generator)
        taken = (torch.arange(rank.shape[1]) < number) & ~own.gather(1, rank)
        return rank.masked_fill(~taken, -1)

    def _check(self, city: City, most: int | None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most: expected at least 1 support day, found {most}")
        for name in ("node_ids", "channels", "interval"):
            here, there = getattr(self.support, name), getattr(city, name)
            if here is not there and tuple(here) != tuple(there) if name != "interval" else here != there:
                raise ValueError(
                    f"windows: {city.name} has other {name} than the support days of {self.support.name}; a profile is "
                    "of the same nodes, so give the windows of the same city"
                )
        if (city.start - self.support.start) % city.interval != pd.Timedelta(0):
            raise ValueError(
                f"windows: {city.name} starts at {city.start}, which is no whole number of {city.interval} from the "
                f"start of the support days, {self.support.start}"
            )


def _weekend(day: Tensor) -> Tensor:
    """Whether a day, counted from 1970-01-01 (a Thursday), is a Saturday or a Sunday."""
    return (day + 3) % 7 >= _SATURDAY
