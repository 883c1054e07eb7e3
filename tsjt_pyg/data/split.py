"""Which target steps one may learn from."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .city import City


class FewShotSplit(NamedTuple):
    """The visible days of a city and the test period after them."""

    visible: City
    test: City


def few_shot_steps(days: float, num_steps: int, steps_per_day: int, name: str) -> int:
    """Number of steps in ``days`` days (of the city's own interval).

    Raises:
        ValueError: If that is no step, or all there are.
    """
    steps = round(days * steps_per_day) if isinstance(days, Real) and math.isfinite(days) else 0
    if not 0 < steps < num_steps:
        raise ValueError(
            f"days: {name} has {num_steps / steps_per_day:.2f} days of readings; expected more than 0 and fewer than "
            f"that, found {days!r} (the steps after the visible days are the test period)"
        )
    return steps
