"""What is missing: shares, gaps and blocks against plain counting."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data.missing import gap_lengths, missing_pattern


@pytest.mark.parametrize("row", ["", "1", "0", "0110111", "1100", "0000", "111", "10101"])
def test_gap_lengths_are_those_of_groupby(row):
    flags = np.array([c == "1" for c in row], dtype=bool)
    assert gap_lengths(flags).tolist() == [len(list(run)) for key, run in groupby(row) if key == "1"]


def test_the_pattern_is_that_of_plain_counting(make_city):
    city = make_city(
        num_steps=200, num_nodes=4, num_channels=2, missing=0.3, interval="15min", start="2024-03-04 07:30"
    )
    mask = city.mask.clone()
    mask[40:60, 2] = False
    mask[:, 3] = False
    mask[100] = False
    city = replace(city, mask=mask)
    missing = ~mask.numpy()
    found = missing_pattern(city)
    columns = ["".join("01"[int(m)] for m in missing[:, n, c]) for n in range(4) for c in range(2)]
    gaps = [[len(list(run)) for key, run in groupby(column) if key == "1"] for column in columns]
    every = [steps for column in gaps for steps in column]
    assert found.share == pytest.approx(missing.mean())
    assert found.by_node.tolist() == pytest.approx(missing.mean(axis=(0, 2)).tolist())
    assert found.by_channel.tolist() == pytest.approx(missing.mean(axis=(0, 1)).tolist())
    hours = pd.date_range("2024-03-04 07:30", periods=200, freq="15min").hour
    assert found.by_hour.loc[13] == pytest.approx(missing[hours == 13].mean())
    assert found.by_hour.index.tolist() == list(range(24))
    assert found.gaps == len(every)
    assert found.in_blocks == pytest.approx(sum(g for g in every if g >= 4) / sum(every))
    longest = [max(gaps[2 * n] + gaps[2 * n + 1]) for n in range(4)]
    assert found.longest_gap.tolist() == [pd.Timedelta("15min") * steps for steps in longest]
    assert found.empty_nodes == ("3",)
    assert found.empty_steps == int(missing.all(axis=(1, 2)).sum()) >= 1
    assert "longest gap 2.08 days (node 3); 1 node never observed; " in str(found)


def test_nothing_missing_is_said_so(make_city):
    found = missing_pattern(make_city())
    assert (found.share, found.gaps, found.in_blocks, found.empty_nodes, found.empty_steps) == (0, 0, 0, (), 0)
    assert str(found) == "nothing"


def test_scattered_and_blocks_are_told_apart(make_city):
    city = make_city(num_steps=100, num_nodes=2)
    mask = torch.ones_like(city.mask)
    mask[::10, 0] = False
    assert missing_pattern(replace(city, mask=mask)).in_blocks == 0
    mask[50:62, 1] = False
    found = missing_pattern(replace(city, mask=mask))
    assert found.in_blocks == pytest.approx(12 / 22)
    assert str(found) == (
        "11.00% in 11 gaps, 55% of it in gaps of an hour or more; longest gap 60 min (node 1); "
        "2 steps with nothing observed"
    )
