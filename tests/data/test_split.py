"""Visible days and test period."""

from __future__ import annotations

import pandas as pd
import pytest
import torch


def test_the_visible_days_come_first_and_nothing_is_lost(make_city):
    city = make_city(num_steps=100, start="2024-03-02 12:00", interval="1h", missing=0.1)
    visible, test = city.few_shot(days=3)
    assert (visible.num_steps, test.num_steps) == (72, 28)
    assert visible.start == city.start
    assert test.start == pd.Timestamp("2024-03-05 12:00")
    assert torch.equal(torch.cat([visible.readings, test.readings]), city.readings)
    assert torch.equal(torch.cat([visible.mask, test.mask]), city.mask)


def test_both_are_views(make_city):
    city = make_city(num_steps=100, interval="1h")
    for part in city.few_shot(2):
        for tensor, whole in [(part.readings, city.readings), (part.mask, city.mask)]:
            assert tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_a_part_of_a_day(make_city):
    assert make_city(num_steps=100, interval="1h").few_shot(0.5).visible.num_steps == 12


@pytest.mark.parametrize("days", [0, -1, 0.01, 4, 5, float("nan"), float("inf")])
def test_days_must_leave_a_test_period(make_city, days):
    with pytest.raises(ValueError, match=rf"days: Ede has 4.00 days of readings; expected more than 0.*found {days}"):
        make_city(num_steps=96, interval="1h", name="Ede").few_shot(days)
