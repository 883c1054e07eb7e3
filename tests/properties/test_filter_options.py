"""Properties of the optimizer under all its options, over trainings of random networks with several cities.

The reference, written from the formulas alone, is in filter_reference.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from filter_reference import Array, Reference, arrays, assert_close, assert_same, flat, gradients_of, tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from network_problems import FILTERS, HELD_OUT, TARGET, Gradient, Training, block, trainings
from torch import Tensor
from torch.optim import SGD

from tsjt_pyg.optim import TargetSkewedOptimizer, projection_coefficient


def with_options(training: Training, **changes: Any) -> Training:
    return replace(training, options={**training.options, **changes})


fast = settings(max_examples=40, deadline=None)


@settings(max_examples=200, deadline=None)
@given(trainings())
def test_every_round_leaves_the_gradient_of_the_formulas_and_steps_along_it(training: Training) -> None:
    reference, lr = Reference(training.options, training.scopes), 1e-3
    optimizer = training.optimizer(lr=lr)
    for step, names in enumerate(training.rounds):
        expected = reference.step(
            gradients_of(training, step), names, restored=not training.in_one_call and names[-1] != TARGET
        )
        actual = training.play(optimizer, step)
        assert_close(actual, expected, reference.slack * reference.size)
        before = [p.detach().clone() for p in training.model.parameters()]
        optimizer.step()
        stepped = [b if g is None else b.add(g, alpha=-lr) for b, g in zip(before, actual, strict=True)]
        assert all(torch.equal(p, e) for p, e in zip(training.model.parameters(), stepped, strict=True))
    assert optimizer.stats()["steps"] == len(training.rounds)


@fast
@given(trainings(filters=("project", "gate", "sign"), lags=(1,), max_kappas=(None,)))
def test_what_is_kept_of_the_sources_does_not_oppose_the_normal_in_any_scope(training: Training) -> None:
    reference = Reference(training.options, training.scopes)
    for step, gradient in enumerate(training.run()):
        found = gradients_of(training, step)
        reference.step(found, training.rounds[step], restored=True)
        for scope in set(training.scopes):
            kept, normal = kept_and_normal(training, reference, arrays(gradient), found, scope)
            assert kept @ normal >= -reference.slack * reference.size * np.linalg.norm(normal)


@fast
@given(trainings(filters=("vaccine",), lags=(1,), max_kappas=(None,), max_sources=1))
def test_a_vaccinated_source_has_at_least_the_cosine_that_it_had_on_average(training: Training) -> None:
    training = with_options(training, gamma_source=1.0)
    reference = Reference(training.options, training.scopes)
    for step, gradient in enumerate(training.run()):
        found = gradients_of(training, step)
        goals = {scope: memory.goal for (_, scope), memory in reference.memory.items()}
        reference.step(found, training.rounds[step], restored=True)
        for scope in set(training.scopes):
            kept, normal = kept_and_normal(training, reference, arrays(gradient), found, scope)
            goal = min(goals.get(scope, 0.0), 0.999)
            slack = reference.slack * reference.size * np.linalg.norm(normal)
            assert kept @ normal >= goal * np.linalg.norm(kept) * np.linalg.norm(normal) - slack


def kept_and_normal(
    training: Training,
    reference: Reference,
    gradient: list[Array | None],
    found: dict[str, list[Array | None]],
    scope: int,
) -> tuple[Array, Array]:
    """What a round leaves of all sources in one scope, where the target has a gradient too, and the normal there."""
    members = [i for i, n in enumerate(reference.normal) if n is not None and training.scopes[i] == scope]
    if not members:
        return np.zeros(0), np.zeros(0)
    share = training.options["gamma_target"]
    return (
        flat([gradient[i] for i in members]) - share * flat([found[TARGET][i] for i in members]),
        flat([reference.normal[i] for i in members]),
    )


@fast
@given(trainings(), st.floats(1e-6, 1e6))
def test_scaling_all_losses_scales_the_gradient(training: Training, factor: float) -> None:
    assert_same(training.run(factor=factor), training.run(), training, factor)


@fast
@given(trainings(), st.randoms(use_true_random=False))
def test_the_order_of_groups_and_of_their_parameters_does_not_matter(training: Training, random: Any) -> None:
    groups = [random.sample(group, len(group)) for group in random.sample(training.groups, len(training.groups))]
    assert_same(replace(training, groups=groups).run(), training.run(), training)


@fast
@given(trainings(), st.randoms(use_true_random=False))
def test_the_order_of_the_blocks_does_not_matter(training: Training, random: Any) -> None:
    rounds = [random.sample(names, len(names)) for names in training.rounds]
    assert_same(replace(training, rounds=rounds).run(), training.run(), training)


@fast
@given(trainings())
def test_backward_is_the_same_as_blocks(training: Training) -> None:
    assert_same(replace(training, in_one_call=True).run(), replace(training, in_one_call=False).run(), training)


@fast
@given(trainings(scopes=("tensor",), everywhere=True))
def test_scope_tensor_filters_every_tensor_as_if_there_were_no_other(training: Training) -> None:
    assert_same(each_alone(training, [[i] for i in training.order]), training.run(), training)


@fast
@given(trainings(scopes=("group",), everywhere=True))
def test_scope_group_filters_every_group_as_if_there_were_no_other(training: Training) -> None:
    assert_same(each_alone(training, training.groups), training.run(), training)


def each_alone(training: Training, parts: list[list[int]]) -> list[Gradient]:
    """The gradients of trainings of a part of the parameters each, put together."""
    together: list[Gradient] = [[None] * len(training.order) for _ in training.rounds]
    for part in parts:
        others = frozenset(training.order) - frozenset(part)
        cities = {name: replace(city, detached=others) for name, city in training.cities.items()}
        alone = replace(training, groups=[part], cities=cities).run(scope="global")
        for total, gradient in zip(together, alone, strict=True):
            assert all(gradient[i] is None for i in others)
            for i in part:
                total[i] = gradient[i]
    return together


@fast
@given(trainings())
def test_one_group_is_global_and_groups_of_one_tensor_are_scope_tensor(training: Training) -> None:
    one = with_options(replace(training, groups=[training.order]), scope="global")
    assert_same(one.run(scope="group"), one.run(), one)
    single = with_options(replace(training, groups=[[i] for i in training.order]), scope="tensor")
    assert_same(single.run(scope="group"), single.run(), single)


@fast
@given(trainings(normals=("ema",)))
def test_an_average_of_rate_one_is_the_gradient_of_the_batch(training: Training) -> None:
    training = with_options(training, ema_rate=1.0)
    assert_same(training.run(), training.run(normal="batch"), training)


@fast
@given(trainings(normals=("held_out",)))
def test_holding_out_what_the_target_trains_on_is_the_gradient_of_the_batch(training: Training) -> None:
    cities = {**training.cities, HELD_OUT: training.cities[TARGET]}
    batch = [[name for name in names if name != HELD_OUT] for names in training.rounds]
    training = replace(training, cities=cities)
    plain = with_options(replace(training, rounds=batch), normal="batch")
    assert_same(training.run(), plain.run(), training)


@fast
@given(trainings(balances=(0.3, 1.0)))
def test_balancing_leaves_one_source_of_the_norm_of_the_target_alone(training: Training) -> None:
    """A source that is the target itself, and so of its norm in every scope."""
    cities = dict.fromkeys(training.cities, training.cities[TARGET])
    training = replace(training, cities=cities)
    assert_same(training.run(), training.run(balance=0.0), training)


@fast
@given(trainings(filters=("project", "vaccine")))
def test_a_cap_that_is_never_reached_changes_nothing_and_a_cap_of_zero_filters_nothing(training: Training) -> None:
    training = with_options(training, balance=0.0, max_kappa=None)
    uncapped = training.run()
    for g, h in zip(training.run(max_kappa=1e300), uncapped, strict=True):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(g, h, strict=True))
    plain = Reference({**training.options, "filter": "none", "lag": 1}, training.scopes)
    expected = [plain.step(gradients_of(training, k), names) for k, names in enumerate(training.rounds)]
    for g, e, atol in zip(training.run(max_kappa=0.0), expected, tolerances(training), strict=True):
        assert_close(g, e, atol)


@fast
@given(trainings(filters=("vaccine",), max_rounds=1))
def test_the_first_vaccination_is_a_projection(training: Training) -> None:
    assert_same(training.run(), training.run(filter="project"), training)


@fast
@given(trainings(filters=FILTERS[:4], everywhere=True))
def test_weights_last_as_long_as_the_gradients_stay_the_same(training: Training) -> None:
    training = replace(training, repeated=True, rounds=[training.rounds[0]] * len(training.rounds))
    assert_same(training.run(), training.run(lag=1), training)


@fast
@given(trainings(max_sources=2, everywhere=True))
def test_one_source_under_two_names_at_half_its_weight_is_one_source(training: Training) -> None:
    names = [name for name in training.cities if name not in (TARGET, HELD_OUT)]
    gammas = training.options["gamma_source"]
    halves = {
        copy: (gammas[name] if isinstance(gammas, dict) else gammas) / 2
        for name in names
        for copy in (name, f"{name} again")
    }
    cities = {**training.cities, **{f"{name} again": training.cities[name] for name in names}}
    rounds = [[*of, *(f"{name} again" for name in of if name in names)] for of in training.rounds]
    twice = replace(training, cities=cities, rounds=rounds)
    assert_same(twice.run(gamma_source=halves), training.run(), training)


@fast
@given(trainings(filters=("project",), normals=("batch",), lags=(1,), balances=(0.0,), max_kappas=(None,)))
def test_the_papers_rule_as_a_function_of_the_gramian_is_the_papers_rule(training: Training) -> None:
    share = training.options["gamma_target"]
    training = with_options(training, gamma_source=0.7)

    def rule(gram: Tensor) -> Tensor:
        ends = [[i, -1] for i in range(len(gram) - 1)]
        kappas = [projection_coefficient(gram[ends_of][:, ends_of]) for ends_of in ends]
        return torch.stack([torch.full_like(gram[0, 0], 0.7)] * len(kappas) + [share + 0.7 * sum(kappas)])

    params = list(training.model.parameters())
    groups = [{"params": [params[i] for i in group]} for group in training.groups]
    optimizer = TargetSkewedOptimizer(groups, SGD, lr=0.0, filter=rule, scope=training.options["scope"])
    actual = []
    for step in range(len(training.rounds)):
        actual.append(training.play(optimizer, step))
        optimizer.step()
    assert_same(actual, training.run(), training)


@fast
@given(trainings())
def test_a_source_without_weight_leaves_the_target_alone(training: Training) -> None:
    training = with_options(training, gamma_source=0.0)
    for step, gradient in enumerate(training.run()):
        names = training.rounds[step]
        if TARGET not in names or not training.source_names(step):
            continue
        found = gradients_of(training, step)
        for g, t, s in zip(arrays(gradient), found[TARGET], found[training.source_names(step)[0]], strict=True):
            if s is not None and t is not None:
                np.testing.assert_allclose(g, training.options["gamma_target"] * t, rtol=1e-13)


@settings(max_examples=100, deadline=None)
@given(trainings(max_rounds=3), st.randoms(use_true_random=False), st.integers(2, 3))
def test_blocks_in_any_order_add_up_to_one_block_of_each_kind(training: Training, random: Any, parts: int) -> None:
    """Several batches of every city a round: interleaved blocks, and one block a city with the sum of the losses."""
    interleaved, summed = training.optimizer(), training.optimizer()
    reference = Reference(training.options, training.scopes)
    for step, names in enumerate(training.rounds):
        batches = [replace(training, seed=training.seed + 1000 * i) for i in range(parts)]
        blocks = [(name, [batch]) for name in names for batch in batches]
        random.shuffle(blocks)
        actual = left_by(interleaved, blocks, step)
        expected = left_by(summed, [(name, batches) for name in sorted(names, key=lambda n: n == TARGET)], step)
        gradients = {name: arrays(raw_sum(batches, step, name)) for name in names}
        reference.step(gradients, names, restored=True)
        assert_close(actual, arrays(expected), 2 * reference.slack * reference.size)


def left_by(optimizer: TargetSkewedOptimizer, blocks: list[tuple[str, list[Training]]], step: int) -> Gradient:
    """The gradient that one round of blocks leaves, each with the sum of some losses."""
    optimizer.zero_grad()
    for name, batches in blocks:
        with block(optimizer, name):
            torch.stack([batch.loss(step, name) for batch in batches]).sum().backward()
    gradient = [None if p.grad is None else p.grad.clone() for p in blocks[0][1][0].model.parameters()]
    optimizer.step()
    return gradient


def raw_sum(batches: list[Training], step: int, name: str) -> Gradient:
    of_parameters = zip(*(batch.gradient(step, name) for batch in batches), strict=True)
    return [None if g[0] is None else torch.stack(g).sum(0) for g in of_parameters]
