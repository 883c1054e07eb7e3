"""``lag``: how many backward passes there are and with which weights. ``normal="held_out"``: what it asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_options import equal, gradients, losses, raw_gradients, round_of, train, weights
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tsjt_pyg.optim import TargetSkewedOptimizer, gramian, projection_coefficient, skew


class Passes:
    """Counts the backward passes that reach a parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.count = 0
        parameter.register_hook(self._one_more)

    def _one_more(self, gradient: Tensor) -> None:
        self.count += 1

    def since_last(self) -> int:
        count, self.count = self.count, 0
        return count


def passes_of(
    model: nn.Module, optimizer: TargetSkewedOptimizer, steps: range, sources: tuple[str | None, ...] = (None,)
) -> list[int]:
    """Backward passes in every step."""
    passes, counts = Passes(next(model.parameters())), []
    for step in steps:
        train(model, optimizer, range(step, step + 1), sources)
        counts.append(passes.since_last())
    return counts


@pytest.mark.parametrize("rule", ["project", "gate", "cosine_gate", "vaccine"])
def test_in_between_one_backward_pass_of_the_weighted_losses_will_do(model: nn.Module, rule: str) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=3, filter=rule, balance=0.5)
    assert passes_of(model, optimizer, range(8)) == [2, 1, 1, 2, 1, 1, 2, 1]


def test_several_sources_take_one_pass_in_between_too(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=2)
    assert passes_of(model, optimizer, range(4), ("pems04", "los", "jonas")) == [4, 1, 4, 1]


@pytest.mark.parametrize(
    ("kwargs", "passes"),
    [
        ({"scope": "tensor"}, 2),
        ({"scope": "group"}, 2),
        ({"normal": "ema"}, 2),
        ({"normal": "held_out"}, 3),
        ({"filter": "sign"}, 2),
        ({"lag": 1}, 2),
    ],
)
def test_where_one_pass_cannot_give_the_filtered_gradient_there_is_one_a_loss(
    model: nn.Module, kwargs: dict[str, Any], passes: int
) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, **{"lag": 3, **kwargs})
    assert passes_of(model, optimizer, range(5)) == [passes] * 5


@pytest.mark.parametrize("owner", ["source", "target"])
def test_a_parameter_of_one_loss_only_takes_a_pass_a_loss_so_that_it_keeps_its_gradient(owner: str) -> None:
    shared, own = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TargetSkewedOptimizer([shared, own], SGD, lr=0.0, gamma_source=0.3, gamma_target=0.4, lag=3)
    passes = Passes(shared)
    for _ in range(4):
        optimizer.zero_grad()
        extra = 5 * own.sum()
        optimizer.backward(
            shared.sum() + (extra if owner == "source" else 0), shared.sum() + (extra if owner == "target" else 0)
        )
        assert own.grad.tolist() == [5.0, 5.0]
        assert shared.grad.tolist() == pytest.approx([0.7, 0.7])
        assert passes.since_last() == 2
        optimizer.step()


def test_parameters_that_the_optimizer_does_not_have_do_not_count() -> None:
    shared, foreign = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TargetSkewedOptimizer([shared], SGD, lr=0.0, lag=2)
    passes = Passes(shared)
    for expected in (2, 1):
        optimizer.zero_grad()
        optimizer.backward(shared.sum() + foreign.sum(), 2 * shared.sum())
        assert passes.since_last() == expected
        optimizer.step()


def test_losses_that_share_a_forward_pass_take_one_pass_in_between_and_free_the_graph(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0, lag=2)
    for step in range(4):
        output = model(torch.ones(2, 3))
        optimizer.zero_grad()
        loss = output.square().sum()
        optimizer.backward(output.sum(), loss)
        optimizer.step()
        if step % 2:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                loss.backward()


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("sources", [(None,), ("pems04", "los")])
def test_in_between_the_weights_of_the_last_look_are_applied(
    model: nn.Module, in_one_call: bool, sources: tuple[str | None, ...]
) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, gamma_source=0.7, gamma_target=0.3, lag=3)
    kappas: dict[str | None, float] = {}
    for step in range(7):
        of_sources, target_loss = round_of(model, step, sources)
        raw = {name: raw_gradients(model, loss, retain_graph=True) for name, loss in of_sources.items()}
        target = raw_gradients(model, target_loss, retain_graph=True)
        if step % 3 == 0:
            kappas = {name: float(projection_coefficient(gramian(g, target))) for name, g in raw.items()}
        weight = 0.3 + 0.7 * sum(kappas.values())
        expected = [weight * t + 0.7 * sum(s) for t, *s in zip(target, *raw.values(), strict=True)]
        optimizer.zero_grad()
        if in_one_call:
            optimizer.backward(of_sources, target_loss)
        else:
            for name, loss in of_sources.items():
                with optimizer.source(name):
                    loss.backward()
            with optimizer.target():
                target_loss.backward()
        torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
        optimizer.step()
    assert any(kappas.values())


def test_the_statistics_are_those_of_the_steps_that_looked(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=3)
    seen = []
    for step in range(6):
        train(model, optimizer, range(step, step + 1))
        stats = optimizer.stats()
        seen.append({key: value for key, value in stats.items() if key != "steps"})
        assert stats["steps"] == step + 1
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]


def test_steps_without_a_filtered_gradient_do_not_use_the_weights_up(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=2)
    assert passes_of(model, optimizer, range(1)) == [2]
    for _ in range(3):
        optimizer.zero_grad()
        with optimizer.target():
            losses(model, 1)[1].backward()
        optimizer.step()
    assert passes_of(model, optimizer, range(1, 4)) == [1, 2, 1]


def test_a_skipped_step_looks_again(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=3)
    passes = Passes(next(model.parameters()))
    for bad, expected in ((True, 2), (False, 2), (False, 1), (True, 1), (False, 1), (False, 2)):
        optimizer.zero_grad()
        source_loss, target_loss = losses(model, 0)
        optimizer.backward(source_loss * (float("nan") if bad else 1.0), target_loss)
        assert passes.since_last() == expected
        optimizer.step()
    assert optimizer.stats()["skipped_steps"] == 2


def test_a_round_with_blocks_before_or_after_the_one_pass_is_still_right(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0, gamma_source=0.7, gamma_target=0.3, lag=9)
    train(model, optimizer, range(1))
    weight = 0.3 + 0.7 * optimizer.stats()["kappa"]

    def weighted(steps: list[int]) -> list[Tensor]:
        sums = [
            [
                torch.stack(g).sum(0)
                for g in zip(*(raw_gradients(model, losses(model, k)[i]) for k in steps), strict=True)
            ]
            for i in range(2)
        ]
        return [0.7 * s + weight * t for s, t in zip(*sums, strict=True)]

    # A block first: then the rest of the round goes into blocks.
    optimizer.zero_grad()
    with optimizer.source():
        losses(model, 1)[0].backward()
    with optimizer.target():
        losses(model, 1)[1].backward()
    optimizer.backward(*losses(model, 2))
    torch.testing.assert_close(gradients(model), weighted([1, 2]), rtol=1e-4, atol=1e-6)
    # The one pass first, twice, and blocks after it.
    optimizer.zero_grad()
    for step in (1, 2):
        optimizer.backward(*losses(model, step))
    torch.testing.assert_close(gradients(model), weighted([1, 2]), rtol=1e-4, atol=1e-6)
    with optimizer.source():
        losses(model, 3)[0].backward()
    with optimizer.target():
        losses(model, 3)[1].backward()
    torch.testing.assert_close(gradients(model), weighted([1, 2, 3]), rtol=1e-4, atol=1e-6)
    optimizer.step()
    assert optimizer.stats()["steps"] == 2


def test_nonfinite_losses_are_skipped_in_the_one_pass_too(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, lag=3)
    train(model, optimizer, range(1))
    before = weights(model)
    for bad in (float("nan"), float("inf")):
        optimizer.zero_grad()
        source_loss, target_loss = losses(model, 1)
        optimizer.backward(source_loss * bad, target_loss)
        optimizer.step()
    assert equal(weights(model), before)
    assert optimizer.stats()["skipped_steps"] == 2


@pytest.mark.parametrize("block", ["source", "target"])
def test_held_out_blocks_alone_or_with_one_side_leave_the_ordinary_gradient(model: nn.Module, block: str) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, normal="held_out")
    with optimizer.held_out():
        losses(model, 5)[1].backward()
    assert gradients(model) == [None] * 4
    which = {"source": 0, "target": 1}[block]
    with getattr(optimizer, block)():
        losses(model, 0)[which].backward()
    assert equal(gradients(model), raw_gradients(model, losses(model, 0)[which]))
    before = weights(model)
    optimizer.step()
    assert not equal(weights(model), before)
    assert optimizer.stats()["conflict_rate"] == 0


@pytest.mark.parametrize(
    "order", [["held_out", "source", "target"], ["source", "target", "held_out"], ["target", "held_out", "source"]]
)
def test_the_held_out_gradient_corrects_the_source_and_does_not_join_the_step(
    model: nn.Module, order: list[str]
) -> None:
    optimizer = TargetSkewedOptimizer(
        model.parameters(), SGD, lr=0.1, normal="held_out", gamma_source=0.7, gamma_target=0.3
    )
    of_block = {
        "held_out": losses(model, 5)[1] - losses(model, 0)[0],
        "source": losses(model, 0)[0],
        "target": losses(model, 0)[1],
    }
    raw = {kind: raw_gradients(model, loss, retain_graph=True) for kind, loss in of_block.items()}
    kept, gram = skew(raw["source"], raw["held_out"], 0.7, 0.0)
    assert gram is not None
    assert gram[0, 1] < 0
    for kind in order:
        with getattr(optimizer, kind)():
            of_block[kind].backward()
    expected = [k + 0.3 * t for k, t in zip(kept, raw["target"], strict=True)]
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
    optimizer.step()
    assert optimizer.stats()["conflict_rate"] == 1.0


def test_a_held_out_gradient_gathers_over_blocks_and_is_forgotten_with_the_round(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0, normal="held_out")
    results = []
    for stale, steps in ((None, [3, 4]), (7, [4, 3])):
        optimizer.zero_grad()
        if stale is not None:
            with optimizer.held_out():
                losses(model, stale)[1].backward()
            optimizer.zero_grad()
        for step in steps:
            with optimizer.held_out():
                losses(model, step)[1].backward()
        optimizer.backward(*losses(model, 0))
        results.append(gradients(model))
        optimizer.step()
    torch.testing.assert_close(results[0], results[1])


def test_a_round_without_a_held_out_block_is_refused_and_can_be_mended(model: nn.Module, twin: nn.Module) -> None:
    ours, other = (TargetSkewedOptimizer(net.parameters(), SGD, lr=0.1, normal="held_out") for net in (model, twin))
    before = weights(model)
    ours.backward(*losses(model, 0))
    with pytest.raises(
        RuntimeError, match=r"normal='held_out' has no normal yet: step\(\) needs a held_out\(\) block in every round"
    ):
        ours.step()
    assert equal(weights(model), before)
    assert ours.stats()["steps"] == 0
    for optimizer, net in ((ours, model), (other, twin)):
        with optimizer.held_out():
            losses(net, 5)[1].backward()
    other.backward(*losses(twin, 0))
    for optimizer in (ours, other):
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(twin))
    # The gradient of an earlier round does not count.
    ours.zero_grad()
    ours.backward(*losses(model, 1))
    with pytest.raises(RuntimeError, match="has no normal yet"):
        ours.step()


@pytest.mark.parametrize("normal", ["batch", "ema"])
def test_held_out_blocks_need_the_option(model: nn.Module, normal: str) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, normal=normal)
    with pytest.raises(RuntimeError, match=rf"held_out\(\) needs normal='held_out', but normal is '{normal}'"):
        optimizer.held_out()


def test_a_held_out_block_cannot_be_nested(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, normal="held_out")
    with pytest.raises(RuntimeError, match=r"held_out\(\) was entered inside source\('los'\)"), optimizer.source("los"):
        optimizer.held_out().__enter__()
