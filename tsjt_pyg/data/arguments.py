"""Numbers that a user gave: whether they are numbers, and within bounds."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raises a ValueError that names the first argument that is no whole number of at least ``least``."""
    for argument, value in counts.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{argument}: expected a whole number, at least {least}, found {value!r}")
        if value < least:
            raise ValueError(f"{argument}: expected at least {least}, found {value}")


def check_number(
    argument: str, value: Any, what: str = "a number", least: float = -math.inf, above: float = -math.inf
) -> None:
    """Raises a ValueError that names the argument if it is no finite number, below ``least`` or not above ``above``."""
    if not isinstance(value, Real) or not math.isfinite(value) or value < least or value <= above:
        raise ValueError(f"{argument}: expected {what}, found {value!r}")
