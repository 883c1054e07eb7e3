"""Properties of the optimizer under all its options, over trainings of random networks with several cities.

The reference is written here from the formulas alone: numpy, float64, one flat vector a source and scope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_problems import FILTERS, HELD_OUT, TARGET, Gradient, Training, block, trainings
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD

from tsjt_pyg.optim import TargetSkewedOptimizer, projection_coefficient

Array = NDArray[np.float64]


@dataclass
class Memory:
    """What is known of one source and scope from earlier rounds."""

    source_norm: float = 0.0
    target_norm: float = 0.0
    goal: float = 0.0
    kappa: float = 0.0
    factor: float = 1.0
    #: The factor before the gate: what the cosine multiplies, it is known to so many digits of.
    ungated: float = 1.0


@dataclass
class Reference:
    """The whole filter of a training, step by step, as the published formulas say."""

    options: dict[str, Any]
    scopes: list[int]
    normals: dict[int, Array] = field(default_factory=dict)
    memory: dict[tuple[str, int], Memory] = field(default_factory=dict)
    ages: dict[str, int] = field(default_factory=dict)
    due: bool = True
    #: To how much the inputs of the formulas are known so far, and the result, both relative to the terms' size.
    precision: float = 1e-15
    slack: float = 2e-13
    #: The size of the terms of the last round.
    size: float = 0.0

    #: What the sources of the last round must not oppose.
    normal: list[Array | None] = field(default_factory=list)

    def step(
        self, gradients: dict[str, list[Array | None]], names: list[str], restored: bool = False
    ) -> list[Array | None]:
        """The gradient after one round.

        Args:
            gradients: of every city.
            names: the cities that take part, in the order of their blocks.
            restored: whether the target gradient was overwritten by a filtered one and restored, which costs digits
                where the source gradients are much larger.
        """
        count = len(self.scopes)
        nothing: list[Array | None] = [None] * count
        sources = {name: gradients[name] for name in names if name not in (TARGET, HELD_OUT)}
        target, held_out = (gradients[name] if name in names else nothing for name in (TARGET, HELD_OUT))
        shared = [i for i in range(count) if target[i] is not None and any(g[i] is not None for g in sources.values())]
        total: list[Array | None] = [None] * count
        for i in range(count):
            if i in shared:
                total[i] = self.options["gamma_target"] * target[i]
            else:
                given = [g[i] for g in (*sources.values(), target) if g[i] is not None]
                total[i] = np.sum(given, axis=0) if given else None
        self.size = sum(float(np.linalg.norm(g)) for g in total if g is not None)
        self.normal = nothing
        if not shared:
            return total
        self.due = any(self.ages.get(name, 0) % self.options["lag"] == 0 for name in sources)
        if restored:
            self._lose_digits(sources, target, shared)
        self.normal = [self._normal(i, target[i], held_out[i]) if i in shared else None for i in range(count)]
        for name, gradient in sources.items():
            gammas = self.options["gamma_source"]
            gamma = gammas[name] if isinstance(gammas, dict) else gammas
            for scope in range(max(self.scopes) + 1):
                members = [i for i in shared if self.scopes[i] == scope]
                s = [np.zeros_like(target[i]) if gradient[i] is None else gradient[i] for i in members]
                kept = self._kept(
                    self.memory.setdefault((name, scope), Memory()),
                    _flat(s),
                    _flat([self.normal[i] for i in members]),
                    _flat([target[i] for i in members]),
                    gamma,
                )
                for i, part in zip(members, np.split(kept, np.cumsum([v.size for v in s])[:-1]), strict=False):
                    total[i] = total[i] + gamma * part.reshape(total[i].shape)
        self.ages |= {name: self.ages.get(name, 0) + 1 for name in sources}
        self.normals |= {i: self._average(i, g) for i, g in enumerate(target) if g is not None}
        return total

    def _lose_digits(
        self, sources: dict[str, list[Array | None]], target: list[Array | None], shared: list[int]
    ) -> None:
        for scope in set(self.scopes):
            members = [i for i in shared if self.scopes[i] == scope]
            own = self.options["gamma_target"] * np.linalg.norm(_flat([target[i] for i in members]))
            others = sum(np.linalg.norm(_flat([g[i] for i in members])) for g in sources.values())
            if own > 0:
                self.precision = max(self.precision, 1e-15 * float(others / own))
                self.slack = max(self.slack, 200 * self.precision)

    def _normal(self, i: int, target: Array, held_out: Array | None) -> Array:
        if self.options["normal"] == "batch":
            return target
        if self.options["normal"] == "ema":
            return self._average(i, target)
        return np.zeros_like(target) if held_out is None else held_out

    def _average(self, i: int, target: Array) -> Array:
        rho = self.options["ema_rate"]
        return (1 - rho) * self.normals[i] + rho * target if i in self.normals else target

    def _kept(self, memory: Memory, s: Array, n: Array, t: Array, gamma: float) -> Array:
        if self.due:
            self._decide(memory, s, n, t)
        if self.options["filter"] == "sign":
            s = np.where(np.sign(s) * np.sign(n) < 0, 0.0, s)
        self.size += gamma * float(memory.ungated * np.linalg.norm(s) + memory.kappa * np.linalg.norm(n))
        return memory.factor * s + memory.kappa * n

    def _decide(self, memory: Memory, s: Array, n: Array, t: Array) -> None:
        rho, r, rule = self.options["ema_rate"], self.options["balance"], self.options["filter"]
        memory.factor, memory.kappa = 1.0, 0.0
        if r > 0:
            memory.source_norm += rho * (np.linalg.norm(s) - memory.source_norm)
            memory.target_norm += rho * (np.linalg.norm(t) - memory.target_norm)
            if memory.source_norm > 0:
                memory.factor = r * memory.target_norm / memory.source_norm + (1 - r)
            s = memory.factor * s
        memory.ungated = memory.factor
        dot, norm_s, norm_n = float(s @ n), float(np.linalg.norm(s)), float(np.linalg.norm(n))
        cosine = dot / (norm_s * norm_n) if norm_s > 0 and norm_n > 0 else 0.0
        if rule == "project":
            memory.kappa = max(0.0, -dot / norm_n**2) if norm_n > 0 else 0.0
        elif rule == "gate":
            memory.factor *= dot >= 0
        elif rule == "cosine_gate":
            memory.factor *= max(0.0, cosine) if norm_n > 0 else 1.0
        elif rule == "vaccine":
            memory.kappa = self._lift(cosine, min(memory.goal, 0.999), norm_s, norm_n)
            memory.goal += rho * (cosine - memory.goal)
        if self.options["max_kappa"] is not None:
            memory.kappa = min(memory.kappa, self.options["max_kappa"])

    def _lift(self, cosine: float, goal: float, norm_s: float, norm_n: float) -> float:
        if cosine >= goal or norm_n == 0:
            return 0.0
        sine = math.sqrt(max(0.0, 1 - cosine**2))
        # Of gradients that are all but parallel the sine, and with it the formula, is known to few digits.
        self.slack = max(self.slack, 200 * self.precision / max(sine, math.sqrt(self.precision)))
        root = math.sqrt(1 - goal**2)
        return norm_s * (goal * sine - cosine * root) / (norm_n * root)


def _flat(gradients: list[Array | None]) -> Array:
    return np.concatenate([np.zeros(0), *(g.ravel() for g in gradients if g is not None)])


def arrays(gradient: Gradient) -> list[Array | None]:
    return [None if g is None else g.numpy() for g in gradient]


def assert_close(actual: Gradient, expected: list[Array | None], atol: float) -> None:
    assert [g is None for g in actual] == [g is None for g in expected]
    for a, e in zip(arrays(actual), expected, strict=True):
        if a is not None:
            np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def gradients_of(training: Training, step: int) -> dict[str, list[Array | None]]:
    return {name: arrays(training.gradient(step, name)) for name in training.rounds[step]}


def tolerances(training: Training) -> list[float]:
    """How far rounding may move the gradient of every round."""
    reference, allowed = Reference(training.options, training.scopes), []
    for step, names in enumerate(training.rounds):
        reference.step(gradients_of(training, step), names, restored=True)
        allowed.append(reference.slack * reference.size)
    return allowed


def assert_same(actual: list[Gradient], expected: list[Gradient], training: Training, factor: float = 1.0) -> None:
    for a, e, atol in zip(actual, expected, tolerances(training), strict=True):
        assert_close(a, [None if g is None else factor * g for g in arrays(e)], 4 * factor * atol)


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
        _flat([gradient[i] for i in members]) - share * _flat([found[TARGET][i] for i in members]),
        _flat([reference.normal[i] for i in members]),
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
