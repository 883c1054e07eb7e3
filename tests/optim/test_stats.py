"""stats() says what the filter did."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tsjt_pyg.optim import TargetSkewedOptimizer


def step(optimizer: TargetSkewedOptimizer, p: nn.Parameter, g_s: list[float], g_t: list[float]) -> None:
    optimizer.zero_grad()
    optimizer.backward(p @ torch.tensor(g_s), p @ torch.tensor(g_t))
    optimizer.step()


def test_all_zero_before_the_first_filtered_step() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1)
    zeros = dict.fromkeys(["cosine", "conflict_rate", "source_norm", "target_norm", "kappa"], 0.0)
    assert optimizer.stats() == {**zeros, "steps": 0, "skipped_steps": 0}
    optimizer.step()
    assert optimizer.stats() == {**zeros, "steps": 1, "skipped_steps": 0}


def test_last_filtered_step_and_shares_over_all_of_them() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1)
    step(optimizer, p, [3.0, 4.0], [0.0, 2.0])
    stats = optimizer.stats()
    assert stats["cosine"] == pytest.approx(0.8)
    assert (stats["source_norm"], stats["target_norm"], stats["kappa"]) == (5.0, 2.0, 0.0)
    assert stats["conflict_rate"] == 0.0
    optimizer.step()  # filters nothing, so it does not count in the rate
    step(optimizer, p, [3.0, -4.0], [0.0, 2.0])
    stats = optimizer.stats()
    assert stats["cosine"] == pytest.approx(-0.8)
    assert (stats["kappa"], stats["conflict_rate"], stats["steps"]) == (2.0, 0.5, 3)
    step(optimizer, p, [1.0, 0.0], [0.0, 2.0])
    assert optimizer.stats()["conflict_rate"] == pytest.approx(1 / 3)
    assert all(type(v) is float for k, v in optimizer.stats().items() if not k.endswith("steps"))
    assert all(type(optimizer.stats()[k]) is int for k in ("steps", "skipped_steps"))


def test_a_zero_gradient_has_cosine_zero() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1)
    step(optimizer, p, [3.0, 4.0], [0.0, 0.0])
    assert optimizer.stats()["cosine"] == 0.0
    assert math.copysign(1, optimizer.stats()["kappa"]) == 1


def test_a_round_that_zero_grad_ended_does_not_count() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1)
    optimizer.backward(p.sum(), -p.sum())
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.stats()["conflict_rate"] == 0.0


def test_accumulated_blocks_count_as_one_step() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1)
    for _ in range(3):
        optimizer.backward(p.sum(), -p.sum())
    optimizer.step()
    stats = optimizer.stats()
    assert (stats["steps"], stats["conflict_rate"]) == (1, 1.0)
    assert stats["source_norm"] == pytest.approx(3 * math.sqrt(2))
