"""Properties of the target-skewed filter, over the gradients of random networks.

The reference is written here from the formula alone: numpy, float64, one flat vector.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_problems import Problem, flat, problems
from torch.optim import SGD

from tsjt_pyg.optim import TargetSkewedOptimizer, skew


def reference(g_s: np.ndarray, g_t: np.ndarray, gamma_source: float, gamma_target: float) -> np.ndarray:
    if g_s @ g_t >= 0 or g_t @ g_t == 0:
        return gamma_source * g_s + gamma_target * g_t
    return gamma_source * (g_s - (g_s @ g_t) / (g_t @ g_t) * g_t) + gamma_target * g_t


def filtered(problem: Problem) -> np.ndarray:
    return flat(skew(problem.sources, problem.targets, problem.gamma_source, problem.gamma_target)[0])


fast = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("conflict", [None, True])
def test_the_filtered_gradient_equals_the_formula(conflict: bool | None) -> None:
    @fast
    @given(problems(conflict))
    def check(problem: Problem) -> None:
        expected = reference(flat(problem.sources), flat(problem.targets), problem.gamma_source, problem.gamma_target)
        np.testing.assert_allclose(filtered(problem), expected, rtol=0, atol=1e-12 * problem.scale)
        optimizer = TargetSkewedOptimizer(
            problem.model.parameters(),
            SGD,
            lr=0.1,
            gamma_source=problem.gamma_source,
            gamma_target=problem.gamma_target,
        )
        optimizer.backward(problem.source_loss, problem.target_loss)
        gradients = [p.grad for p in problem.model.parameters() if p.grad is not None]
        np.testing.assert_allclose(flat(gradients), expected, rtol=0, atol=1e-12 * problem.scale)

    check()


@fast
@given(problems())
def test_the_target_never_gets_less_than_its_own_share(problem: Problem) -> None:
    g, g_t = filtered(problem), flat(problem.targets)
    slack = 1e-12 * problem.scale * np.linalg.norm(g_t)
    assert g @ g_t >= problem.gamma_target * (g_t @ g_t) - slack


@fast
@given(problems(conflict=True))
def test_under_conflict_it_gets_exactly_its_own_share(problem: Problem) -> None:
    g, g_t = filtered(problem), flat(problem.targets)
    slack = 1e-12 * problem.scale * np.linalg.norm(g_t)
    assert g @ g_t == pytest.approx(problem.gamma_target * (g_t @ g_t), rel=0, abs=slack)


@fast
@given(problems(), st.floats(1e-12, 1e12))
def test_scaling_both_gradients_scales_the_result(problem: Problem, factor: float) -> None:
    before = filtered(problem)
    problem.sources = [factor * g for g in problem.sources]
    problem.targets = [factor * g for g in problem.targets]
    np.testing.assert_allclose(filtered(problem), factor * before, rtol=0, atol=1e-12 * problem.scale)


@fast
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_parameters_does_not_matter(problem: Problem, random: object) -> None:
    before = skew(problem.sources, problem.targets, problem.gamma_source, problem.gamma_target)[0]
    order = list(range(len(problem.sources)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = skew(
        [problem.sources[i] for i in order],
        [problem.targets[i] for i in order],
        problem.gamma_source,
        problem.gamma_target,
    )[0]
    for position, i in enumerate(order):
        np.testing.assert_allclose(shuffled[position], before[i], rtol=0, atol=1e-12 * problem.scale)


@fast
@given(problems())
def test_one_flat_vector_gives_what_the_list_of_parameters_gives(problem: Problem) -> None:
    flat_s, flat_t = (torch.from_numpy(flat(g)) for g in (problem.sources, problem.targets))
    (g,), _ = skew([flat_s], [flat_t], problem.gamma_source, problem.gamma_target)
    np.testing.assert_allclose(g.numpy(), filtered(problem), rtol=0, atol=1e-12 * problem.scale)
