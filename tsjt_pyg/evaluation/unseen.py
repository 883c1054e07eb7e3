"""The test period: that it can be measured on, and that no source shows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data import City
from ..data.city_check import check_readings


def check_test_period(test: City, sources: Sequence[City], history: int, horizon: int) -> None:
    """Whether the test period can be measured on: found out before a training, not after it.

    Raises:
        ValueError: If it is shorter than a window, a reading in it is not finite, or a source holds it.
    """
    for city in sources:
        if _has_readings_of(city, test):
            raise ValueError(f"sources: {city.name} holds the target's test period; leave it out")
    check_readings(test, "target")
    test.windows(history, horizon)


def _has_readings_of(city: City, test: City) -> bool:
    """Whether some nodes are those of the test period, and everything observed then is read there, too."""
    if city.interval != test.interval or city.channels != test.channels:
        return False
    late = (test.start - city.start) / test.interval
    first, last = max(0.0, late), min(city.num_steps, late + test.num_steps)
    rows = {node: row for row, node in enumerate(city.node_ids)}
    common = [(rows[node], row) for row, node in enumerate(test.node_ids) if node in rows]
    if late != int(late) or first >= last or not common:
        return False
    here, there = (torch.tensor(side) for side in zip(*common, strict=True))
    steps, shift = slice(int(first), int(last)), slice(int(first - late), int(last - late))
    mask = test.mask[shift][:, there]
    same = city.mask[steps][:, here] & (city.readings[steps][:, here] == test.readings[shift][:, there])
    return bool(mask.any()) and bool(same[mask].all())
