"""nan and inf: skipped by a GradScaler if there is one, by the optimizer itself if not."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from optimizer_options import equal, gradients, losses, raw_gradients, train, weights
from torch import nn
from torch.optim import Adam

from tsjt_pyg.optim import TargetSkewedOptimizer, skew

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["source", "target", "outside"])
def test_a_nonfinite_step_is_skipped_counted_and_reported(
    model: nn.Module, twin: nn.Module, caplog: pytest.LogCaptureFixture, bad: float, kind: str
) -> None:
    ours, other = (TargetSkewedOptimizer(net.named_parameters(), Adam) for net in (model, twin))
    train(model, ours, range(2))
    train(twin, other, range(2))
    before, state = weights(model), copy.deepcopy(ours.base.state_dict()["state"])
    ours.zero_grad()
    source_loss, target_loss = losses(model, 7)
    if kind == "outside":
        (source_loss * bad).backward()
    else:
        ours.backward(source_loss * (bad if kind == "source" else 1), target_loss * (bad if kind == "target" else 1))
    with caplog.at_level(logging.WARNING, logger="tsjt_pyg"):
        ours.step()
    assert "step skipped: nan or inf in the gradient of 0.weight, 0.bias, 2.weight and 1 more" in caplog.text
    assert equal(weights(model), before)
    for key, value in ours.base.state_dict()["state"].items():
        assert equal(list(value.values()), list(state[key].values()))
    assert ours.stats() == {**other.stats(), "skipped_steps": 1}
    train(model, ours, range(2, 4))
    train(twin, other, range(2, 4))
    assert equal(weights(model), weights(twin))


def test_a_nonfinite_gradient_of_a_city_specific_parameter_is_seen_too() -> None:
    shared, own = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TargetSkewedOptimizer([shared, own], Adam)
    optimizer.backward(shared.sum() + own.sum() * float("inf"), shared.sum())
    optimizer.step()
    assert optimizer.stats()["skipped_steps"] == 1
    assert torch.equal(shared, torch.ones(2))


def test_it_can_raise_instead(model: nn.Module) -> None:
    optimizer, before = TargetSkewedOptimizer(model.parameters(), Adam, on_nonfinite="raise"), weights(model)
    source_loss, target_loss = losses(model, 0)
    optimizer.backward(source_loss, target_loss * float("nan"))
    with pytest.raises(RuntimeError, match=r"nan or inf in the gradient of parameter 0 of group 0.*only finite"):
        optimizer.step()
    assert equal(weights(model), before)
    optimizer.zero_grad()
    train(model, optimizer, range(1))
    assert optimizer.stats()["steps"] == 1


def test_finite_gradients_whose_sum_overflows_are_not_skipped() -> None:
    p = nn.Parameter(torch.ones(4))
    optimizer = TargetSkewedOptimizer([p], torch.optim.SGD, lr=1e-38)
    p.grad = torch.full((4,), 2e38)
    optimizer.step()
    assert optimizer.stats() | {"steps": 1, "skipped_steps": 0} == optimizer.stats()
    torch.testing.assert_close(p.detach(), torch.full((4,), -1.0))


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_filtering_clipping_and_stepping_equal_the_unscaled_run(
    model: nn.Module, twin: nn.Module, fused: bool
) -> None:
    ours, other = (TargetSkewedOptimizer(net.parameters(), Adam, lr=0.01, fused=fused) for net in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for step in range(4):
        ours.zero_grad()
        source_loss, target_loss = losses(model, step)
        ours.backward(scaler.scale(source_loss), scaler.scale(target_loss))
        scaler.unscale_(ours)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(ours)
        scaler.update()
        other.zero_grad()
        other.backward(*losses(twin, step))
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
    torch.testing.assert_close(weights(model), weights(twin))
    assert ours.stats()["cosine"] == pytest.approx(other.stats()["cosine"], rel=1e-4)


@pytest.mark.parametrize("kind", ["source", "target"])
@pytest.mark.parametrize("order", ["source first", "target first"])
def test_an_inf_in_either_gradient_makes_the_scaler_skip_and_leaves_nothing_stale(
    model: nn.Module, kind: str, order: str
) -> None:
    optimizer, before = TargetSkewedOptimizer(model.parameters(), Adam, preset="paper"), weights(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    blocks = [(optimizer.source, 0, "source"), (optimizer.target, 1, "target")]
    for block, which, name in blocks if order == "source first" else blocks[::-1]:
        with block():
            scaler.scale(losses(model, 0)[which]).backward()
            if name == kind:
                model[0].weight.grad[1, 1] = float("inf")
    assert not all(g.isfinite().all() for g in gradients(model))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    assert equal(weights(model), before)
    assert optimizer.stats()["steps"] == optimizer.stats()["skipped_steps"] == 0
    optimizer.zero_grad()
    optimizer.backward(*losses(model, 1))
    expected, _ = skew(*(raw_gradients(model, loss) for loss in losses(model, 1)), 0.001, 0.2)
    assert equal(gradients(model), expected)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_scaler_works_with_one_kind_of_block_only(model: nn.Module, which: str) -> None:
    optimizer, before = TargetSkewedOptimizer(model.parameters(), Adam), weights(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with getattr(optimizer, which)():
        scaler.scale(losses(model, 0)[0]).backward()
    scaler.step(optimizer)
    assert not equal(weights(model), before)
