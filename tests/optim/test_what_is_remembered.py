"""What the options remember from step to step: in checkpoints, over skipped steps, and in memory."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_options import (
    STATEFUL,
    backward,
    equal,
    gradients,
    losses,
    raw_gradients,
    round_of,
    small_model,
    train,
    two_groups,
    weights,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tsjt_pyg.optim import TargetSkewedOptimizer

stateful = pytest.mark.parametrize("name", STATEFUL)


def build(model: nn.Sequential, name: str, **kwargs: Any) -> tuple[TargetSkewedOptimizer, tuple[str | None, ...]]:
    options, sources = STATEFUL[name]
    return TargetSkewedOptimizer(two_groups(model), Adam, **{**options, **kwargs}), sources


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def remembered(optimizer: TargetSkewedOptimizer) -> dict[str, Any]:
    """A copy of everything that the filter keeps."""
    group = {key: value for key, value in optimizer.param_groups[0].items() if key.startswith("skew_")}
    return copy.deepcopy({"group": group, "normals": optimizer.skew_state.normals()})


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@stateful
@pytest.mark.parametrize("after", [1, 4, 5])
def test_resumes_bit_for_bit_in_any_step(model: nn.Sequential, twin: nn.Sequential, name: str, after: int) -> None:
    ours, sources = build(model, name)
    train(model, ours, range(after), sources)
    saved = through_a_file({"model": model.state_dict(), "optimizer": ours.state_dict()})
    assert set(saved["optimizer"]) == {"state", "param_groups"}
    twin.load_state_dict(saved["model"])
    resumed, _ = build(twin, name)
    resumed.load_state_dict(saved["optimizer"])
    assert same(remembered(resumed), remembered(ours))
    for optimizer, net in ((ours, model), (resumed, twin)):
        train(net, optimizer, range(after, after + 5), sources)
    assert equal(weights(model), weights(twin))
    assert same(remembered(resumed), remembered(ours))
    assert resumed.stats(per="scope") == ours.stats(per="scope")


@stateful
def test_a_plain_adam_loads_it_and_goes_on_as_if_it_had_made_the_steps(
    model: nn.Sequential, twin: nn.Sequential, name: str
) -> None:
    ours, sources = build(model, name)
    train(model, ours, range(4), sources)
    twin.load_state_dict(model.state_dict())
    plain = Adam(two_groups(twin))
    plain.load_state_dict(through_a_file(ours.state_dict()))
    for step in range(3):
        for optimizer, net in ((ours, model), (plain, twin)):
            optimizer.zero_grad()
            losses(net, step)[1].backward()
            optimizer.step()
    assert equal(weights(model), weights(twin))


@stateful
def test_a_plain_adams_state_is_loaded_and_what_the_filter_keeps_begins_anew(
    model: nn.Sequential, twin: nn.Sequential, name: str
) -> None:
    plain = Adam(two_groups(model))
    for step in range(3):
        plain.zero_grad()
        losses(model, step)[1].backward()
        plain.step()
    twin.load_state_dict(model.state_dict())
    resumed, sources = build(twin, name)
    train(twin, resumed, range(2), sources)  # which loading forgets
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_a_file(plain.state_dict()))
    assert resumed.stats()["steps"] == 0
    assert resumed.stats(per="source") == {}
    assert resumed.skew_state.normals() == [None] * 4
    fresh, _ = build(model, name)
    fresh.base.load_state_dict(through_a_file(plain.state_dict()))
    fresh.skew_state.make_room()
    for optimizer, net in ((fresh, model), (resumed, twin)):
        train(net, optimizer, range(3, 7), sources)
    assert equal(weights(model), weights(twin))
    assert resumed.stats(per="scope") == fresh.stats(per="scope")


@stateful
@pytest.mark.parametrize("before", STATEFUL)
def test_a_training_may_go_on_with_other_options(
    model: nn.Sequential, twin: nn.Sequential, before: str, name: str
) -> None:
    """What both know of the steps so far is kept, and what only the new ones need begins anew."""
    first, sources = build(model, before, gamma_source=0.5)
    train(model, first, range(4), sources)
    saved = through_a_file(first.state_dict())
    second, _ = build(twin, name, gamma_source=0.5)
    second.load_state_dict(saved)
    assert second.stats()["steps"] == 4
    assert list(second.stats(per="source")) == [source or "source" for source in sources]
    if first.skew_filter.scope == second.skew_filter.scope:
        assert second.stats(per="scope") == first.stats(per="scope")
        for field in set(first.skew_filter.record) & set(second.skew_filter.record):
            columns = [o.skew_state.records[..., o.skew_filter.record.index(field)] for o in (first, second)]
            assert torch.equal(*columns)
        for field in set(second.skew_filter.record) - set(first.skew_filter.record):
            column = second.skew_state.records[..., second.skew_filter.record.index(field)]
            assert torch.equal(column, torch.full_like(column, float(field == "factor")))
    train(twin, second, range(4, 8), sources)
    assert second.stats()["steps"] == 8
    assert second.stats()["skipped_steps"] == 0


def test_a_changed_option_looks_at_the_gradients_at_once(model: nn.Sequential, twin: nn.Sequential) -> None:
    """Else a source whose factor was never made would be dropped until the next refresh."""
    first = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0, lag=4)
    train(model, first, range(2))
    second = TargetSkewedOptimizer(twin.parameters(), SGD, lr=0.0, lag=4, filter="cosine_gate")
    second.load_state_dict(first.state_dict())
    unlagged = TargetSkewedOptimizer(small_model().parameters(), SGD, lr=0.0, filter="cosine_gate")
    other = small_model()
    unlagged = TargetSkewedOptimizer(other.parameters(), SGD, lr=0.0, filter="cosine_gate")
    for optimizer, net in ((second, twin), (unlagged, other)):
        backward(net, optimizer, 2)
    torch.testing.assert_close(gradients(twin), gradients(other))


@stateful
@pytest.mark.parametrize("bad", ["source", "target"])
def test_a_skipped_step_changes_nothing_that_is_remembered(
    model: nn.Sequential, twin: nn.Sequential, name: str, bad: str
) -> None:
    (ours, sources), (other, _) = build(model, name), build(twin, name)
    for net, optimizer in ((model, ours), (twin, other)):
        train(net, optimizer, range(4), sources)
    before, state = weights(model), remembered(ours)
    of_sources, target_loss = round_of(model, 9, sources)
    broken = [loss * (float("nan") if bad == "source" else 1.0) for loss in of_sources.values()]
    ours.zero_grad()
    if ours.skew_filter.normal == "held_out":
        with ours.held_out():
            losses(model, 9)[1].backward()
    ours.backward(dict(zip(of_sources, broken, strict=True)), target_loss * (float("inf") if bad == "target" else 1.0))
    ours.step()
    assert equal(weights(model), before)
    state["group"]["skew_counts"][1] += 1
    assert same(remembered(ours), state)
    for net, optimizer in ((model, ours), (twin, other)):
        train(net, optimizer, range(4, 8), sources)
    assert equal(weights(model), weights(twin))
    assert ours.stats()["skipped_steps"] == 1
    assert ours.stats(per="scope") == other.stats(per="scope")


@pytest.mark.parametrize("rule", ["project", "gate", "cosine_gate", "sign", "vaccine"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_nonfinite_held_out_gradient_does_not_go_unnoticed(model: nn.Module, rule: str, bad: float) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, normal="held_out", filter=rule)
    train(model, optimizer, range(2))
    before, state = weights(model), remembered(optimizer)
    optimizer.zero_grad()
    with optimizer.held_out():
        (losses(model, 9)[1] * bad).backward()
    optimizer.backward(*losses(model, 2))
    optimizer.step()
    assert equal(weights(model), before)
    assert optimizer.stats()["skipped_steps"] == 1
    state["group"]["skew_counts"][1] += 1
    assert same(remembered(optimizer), state)


@stateful
@pytest.mark.parametrize("cleared", ["zero_grad", "zero_grad of the model", "exception", "refused step"])
def test_a_round_that_is_given_up_leaves_no_trace(
    model: nn.Sequential, twin: nn.Sequential, name: str, cleared: str
) -> None:
    kwargs = {"on_nonfinite": "raise"} if cleared == "refused step" else {}
    (ours, sources), (other, _) = build(model, name, **kwargs), build(twin, name)
    for net, optimizer in ((model, ours), (twin, other)):
        train(net, optimizer, range(4), sources)
    state = remembered(ours)
    if cleared == "refused step":
        ours.zero_grad()
    backward(model, ours, 50, sources)
    if cleared == "zero_grad of the model":
        model.zero_grad()
    elif cleared == "exception":

        def fail() -> None:
            with ours.target():
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
    elif cleared == "refused step":
        next(model.parameters()).grad[0, 0] = float("nan")
        with pytest.raises(RuntimeError, match="step\\(\\) refused"):
            ours.step()
        ours.zero_grad()
    else:
        ours.zero_grad()
    assert same(remembered(ours), state)
    for net, optimizer in ((model, ours), (twin, other)):
        train(net, optimizer, range(4, 8), sources)
    assert equal(weights(model), weights(twin))
    assert ours.stats(per="scope") == other.stats(per="scope")


def test_the_average_of_the_target_gradient_is_that_of_the_formula(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, normal="ema", ema_rate=0.3)
    average: list[Tensor] = []
    for step in range(5):
        raw = raw_gradients(model, losses(model, step)[1])
        average = [m + 0.3 * (g - m) for m, g in zip(average, raw, strict=True)] if average else raw
        train(model, optimizer, range(step, step + 1))
        torch.testing.assert_close([optimizer.state[p]["skew_normal"] for p in model.parameters()], average)


@pytest.mark.parametrize("shared", [True, False], ids=["of both cities", "of the target only"])
@pytest.mark.parametrize("overwrites", ["clipping", "base"])
def test_the_average_takes_the_target_gradient_as_it_was_before_anybody_overwrote_it(
    shared: bool, overwrites: str
) -> None:
    class Overwriting(SGD):
        def step(self, closure: Any = None) -> None:
            super().step()
            for p in self.param_groups[0]["params"]:
                p.grad.fill_(123.0)

    other, p = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    base: Callable[..., Optimizer] = Overwriting if overwrites == "base" else SGD
    optimizer = TargetSkewedOptimizer([other, p], base, lr=0.1, normal="ema")
    optimizer.backward(other.sum() + (p.sum() if shared else 0), other.sum() + 3 * p.sum())
    if overwrites == "clipping":
        nn.utils.clip_grad_norm_([other, p], 0.01)
    optimizer.step()
    assert optimizer.state[p]["skew_normal"].tolist() == [3.0, 3.0]
    assert optimizer.state[other]["skew_normal"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", ["project", "gate", "cosine_gate", "sign", "vaccine"])
@pytest.mark.parametrize("scale", [1.0, 1e3, 0.37, 1e-4])
def test_an_average_that_cancels_to_nothing_conflicts_with_nothing(rule: str, scale: float) -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = TargetSkewedOptimizer([p], SGD, lr=0.0, normal="ema", ema_rate=0.1, filter=rule)
    for factor in (scale, -9 * scale):
        optimizer.zero_grad()
        optimizer.backward(0.7 * p.sum(), factor * p.sum())
        expected = [0.7 - 9 * scale] * 3
        left = p.grad.tolist()
        optimizer.step()
    if rule != "sign":  # which asks for the signs of what rounding left
        assert left == pytest.approx(expected)
    assert optimizer.stats()["skipped_steps"] == 0
    assert torch.isfinite(optimizer.skew_state.records).all()


@pytest.mark.parametrize("rule", ["project", "gate", "cosine_gate", "sign", "vaccine"])
@pytest.mark.parametrize("target", [1.0, 1e6])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_balancing_a_source_without_gradient_leaves_the_target_alone(rule: str, target: float, scope: str) -> None:
    p, dead = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = TargetSkewedOptimizer([p, dead], SGD, lr=0.0, filter=rule, scope=scope, balance=0.5)
    optimizer.backward(0 * dead.sum() + (0 if scope == "global" else 1) * p.sum(), target * (dead.sum() + p.sum()))
    assert dead.grad.tolist() == [target] * 3
    optimizer.step()
    assert optimizer.stats()["skipped_steps"] == 0
    assert torch.isfinite(optimizer.skew_state.records).all()


@pytest.mark.parametrize("rule", ["project", "gate", "cosine_gate", "sign", "vaccine"])
@pytest.mark.parametrize("normal", ["batch", "ema", "held_out"])
def test_sparse_gradients_are_filtered_as_dense_ones_under_every_option(rule: str, normal: str) -> None:
    left = []
    for sparse in (True, False):
        embedding = nn.Embedding(6, 3, sparse=sparse)
        nn.init.ones_(embedding.weight)
        optimizer = TargetSkewedOptimizer(
            embedding.parameters(), SGD, lr=0.1, filter=rule, normal=normal, balance=0.5, gamma_source=0.5
        )
        for step in range(3):
            optimizer.zero_grad()
            rows = torch.tensor([step, step + 1, step + 1])
            if normal == "held_out":
                with optimizer.held_out():
                    (embedding(rows + 1) * torch.tensor([1.0, 2.0, -1.0])).sum().backward()
            optimizer.backward(
                -embedding(rows).square().sum(), (embedding(rows + 1) * torch.tensor([1.0, 2.0, 3.0])).sum()
            )
            optimizer.step()
        left.append(embedding.weight.detach())
        assert optimizer.stats()["conflict_rate"] > 0
    torch.testing.assert_close(left[0], left[1])


#: Copies of the gradients beyond ``.grad`` with one source: within a round, and between rounds.
COPIES = {
    "the paper's": ({}, 1, 0),
    "gate": ({"filter": "gate"}, 1, 0),
    "vaccine": ({"filter": "vaccine"}, 1, 0),
    "scope tensor": ({"scope": "tensor"}, 1, 0),
    "lag": ({"lag": 2}, 1, 0),
    "balance": ({"balance": 0.5}, 1, 0),
    "gamma_target=0": ({"gamma_target": 0.0}, 2, 0),
    "sign": ({"filter": "sign"}, 2, 0),
    "own": ({"filter": lambda gram: gram.new_ones(len(gram))}, 2, 0),
    "ema": ({"normal": "ema"}, 3, 1),
    "held out": ({"normal": "held_out"}, 2, 0),
}


def test_copies_of_the_gradients_are_as_many_as_documented_and_do_not_grow_from_step_to_step() -> None:
    def alive() -> dict[str, int]:
        gc.collect()
        shapes = [tuple(o.shape) for o in gc.get_objects() if isinstance(o, Tensor) and o.dim() == 2]
        return {name: shapes.count((1013, i + 2)) for i, name in enumerate(COPIES)}

    trainings = []
    for i, (kwargs, _, _) in enumerate(COPIES.values()):
        p = nn.Parameter(torch.zeros(1013, i + 2))
        trainings.append((p, TargetSkewedOptimizer([p], SGD, lr=0.1, **kwargs)))
    within, between = [], []
    for _ in range(4):
        for p, optimizer in trainings:
            if optimizer.skew_filter.normal == "held_out":
                with optimizer.held_out():
                    (-p).sum().backward()
            with optimizer.source():
                p.sum().backward()
            with optimizer.target():
                (-p).square().sum().backward()
        within.append(alive())
        for _, optimizer in trainings:
            optimizer.step()
            optimizer.zero_grad()
        between.append(alive())
    parameter_and_grad = 2
    # The average does not exist before the first step.
    for counts in within[1:]:
        assert counts == {name: parameter_and_grad + copies for name, (_, copies, _) in COPIES.items()}
    for counts in between:
        assert counts == {name: 1 + kept for name, (_, _, kept) in COPIES.items()}


@pytest.mark.parametrize("gamma_source", [1.0, 0.001])
@pytest.mark.parametrize(("of_source", "of_target"), [(1e6, 1.0), (1.0, 1e6)])
@pytest.mark.parametrize(("order", "at_once"), [("sts", "sst"), ("tst", "stt")])
def test_a_much_larger_gradient_does_not_cost_the_other_its_digits(
    gamma_source: float, of_source: float, of_target: float, order: str, at_once: str
) -> None:
    left = []
    for kinds in (order, at_once):
        sources = iter((of_source * torch.tensor([1.0, 1.0]), of_source * torch.tensor([-3.0, -3.0])))
        targets = iter((of_target * torch.tensor([1.0, -0.9]), of_target * torch.tensor([0.1, 0.2])))
        p = nn.Parameter(torch.zeros(2))
        optimizer = TargetSkewedOptimizer([p], SGD, lr=0.1, gamma_source=gamma_source)
        for kind in kinds:
            with optimizer.source() if kind == "s" else optimizer.target():
                (p @ next(sources if kind == "s" else targets)).backward()
        left.append(p.grad)
    torch.testing.assert_close(left[0], left[1], rtol=1e-4, atol=0)
