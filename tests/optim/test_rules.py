"""Every pure function of the filters against the published formula, written here in numpy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from float64_gradients import Array, assert_close, flat, random
from torch import Tensor

from tsjt_pyg.optim.filters import (
    agreeing,
    balance_factor,
    binary_gate,
    cosine,
    cosine_gate,
    paper_weights,
    projection_coefficient,
    skew,
    vaccine_coefficient,
)

#: The rules that need nothing but the inner products.
RULES = {
    "cosine": cosine,
    "project": projection_coefficient,
    "vaccine": lambda gram: vaccine_coefficient(gram, torch.full(gram.shape[:-2], 0.3, dtype=gram.dtype)),
    "gate": binary_gate,
    "cosine_gate": cosine_gate,
    "paper": lambda gram: paper_weights(gram, 0.7, 0.3)[1],
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def vectors(*shape: int, seed: int = 0) -> tuple[Array, Array]:
    """Source gradients and normals with that many leading dimensions, some in conflict and some not."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * 3, rng.normal(size=shape)


def products(s: Array, n: Array) -> Tensor:
    """Inner products ``[..., 2, 2]`` of source and normal ``[..., n]``."""
    rows = np.stack((s, n), axis=-2)
    return torch.from_numpy(rows @ np.swapaxes(rows, -1, -2))


def dots(a: Array, b: Array) -> Array:
    return (a * b).sum(-1)


def norms(a: Array) -> Array:
    return np.sqrt(dots(a, a))


@pytest.mark.parametrize("scopes", [(), (4,), (3, 2)])
def test_the_cosine_is_that_of_the_two_vectors(scopes: tuple[int, ...]) -> None:
    s, n = vectors(*scopes, 5)
    assert_close(cosine(products(s, n)), dots(s, n) / (norms(s) * norms(n)))


@pytest.mark.parametrize("scopes", [(), (4,), (3, 2)])
def test_the_projection_takes_out_the_conflict_and_nothing_else(scopes: tuple[int, ...]) -> None:
    s, n = vectors(*scopes, 5)
    kappa = projection_coefficient(products(s, n))
    expected = np.where(dots(s, n) < 0, -dots(s, n) / dots(n, n), 0.0)
    assert_close(kappa, expected)
    kept = s + kappa.numpy()[..., None] * n
    np.testing.assert_allclose(dots(kept, n), np.maximum(dots(s, n), 0), atol=1e-12)
    assert (norms(kappa.numpy()[..., None] * n) <= norms(s) * (1 + 1e-12)).all()


@pytest.mark.parametrize("goal", [-0.9, -0.2, 0.0, 0.4, 0.95])
@pytest.mark.parametrize("scopes", [(), (4,), (3, 2)])
def test_the_vaccine_lifts_the_cosine_to_its_goal_where_it_lies_below(scopes: tuple[int, ...], goal: float) -> None:
    s, n = vectors(*scopes, 5)
    now = dots(s, n) / (norms(s) * norms(n))
    lift = goal * np.sqrt(1 - now**2) - now * math.sqrt(1 - goal**2)
    expected = np.where(now < goal, norms(s) * lift / (norms(n) * math.sqrt(1 - goal**2)), 0.0)
    kappa = vaccine_coefficient(products(s, n), torch.full(scopes, goal, dtype=torch.float64))
    assert_close(kappa, expected, rtol=1e-10)
    kept = s + kappa.numpy()[..., None] * n
    np.testing.assert_allclose(dots(kept, n) / (norms(kept) * norms(n)), np.maximum(now, goal), rtol=0, atol=1e-10)


def test_the_vaccine_has_a_goal_of_its_own_in_every_scope() -> None:
    s, n = vectors(3, 5)
    gram, goals = products(s, n), torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    together = vaccine_coefficient(gram, goals)
    alone = [vaccine_coefficient(gram[i], goals[i]) for i in range(3)]
    assert together.tolist() == [float(k) for k in alone]


def test_a_vaccine_with_goal_zero_is_the_projection() -> None:
    gram = products(*vectors(50, 3))
    actual = vaccine_coefficient(gram, torch.zeros(50, dtype=torch.float64))
    assert (actual > 0).any()
    assert_close(actual, projection_coefficient(gram).numpy(), rtol=1e-9)


@pytest.mark.parametrize("goal", [1.0, 0.9999])
def test_a_goal_that_cannot_be_reached_is_lowered_to_0_999(goal: float) -> None:
    s, n = vectors(4, 5)
    kappa = vaccine_coefficient(products(s, n), torch.full((4,), goal, dtype=torch.float64))
    kept = s + kappa.numpy()[..., None] * n
    np.testing.assert_allclose(dots(kept, n) / (norms(kept) * norms(n)), 0.999, rtol=1e-9)


def test_the_gates_are_one_bit_and_the_positive_cosine() -> None:
    s, n = vectors(3, 4, 5)
    gram, dot = products(s, n), dots(s, n)
    assert (dot < 0).any()
    assert binary_gate(gram).tolist() == np.where(dot >= 0, 1.0, 0.0).tolist()
    assert_close(cosine_gate(gram), np.maximum(0, dot / (norms(s) * norms(n))))


def test_orthogonal_gradients_do_not_conflict() -> None:
    gram = products(np.array([3.0, 0.0]), np.array([0.0, 2.0]))
    assert [float(RULES[name](gram)) for name in RULES] == [
        0.0,
        0.0,
        pytest.approx(3 / 2 * 0.3 / math.sqrt(1 - 0.09)),
        1.0,
        0.0,
        0.3,
    ]


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        # cosine, projection, vaccine with goal 0.3, gate, cosine gate, the paper's weight of the target
        ("source", [0.0, 0.0, 0.0, 1.0, 0.0, 0.3]),
        ("normal", [0.0, 0.0, 0.0, 1.0, 1.0, 0.3]),
        ("both", [0.0, 0.0, 0.0, 1.0, 1.0, 0.3]),
    ],
)
def test_a_zero_gradient_conflicts_with_nothing(zero: str, expected: list[float]) -> None:
    s, n = (np.zeros(2) if zero in (name, "both") else np.array([3.0, -4.0]) for name in ("source", "normal"))
    gram = products(s, n)
    actual = [float(RULES[name](gram)) for name in RULES]
    assert actual == expected
    assert all(math.copysign(1, value) == 1 for value in actual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-140, 1e-15, 1.0, 1e15, 1e140])
def test_the_rules_neither_overflow_nor_underflow(scale: float, dtype: torch.dtype) -> None:
    if dtype is torch.float32:
        scale = scale ** (1 / 10)
    gram = products(np.array([3.0, -4.0]) * scale, np.array([0.0, 1.0])).to(dtype)
    swapped = products(np.array([0.0, 1.0]), np.array([3.0, -4.0]) * scale).to(dtype)
    for pair, ratio in ((gram, 5 * scale), (swapped, 1 / (5 * scale))):
        assert_close(cosine(pair), -0.8, rtol=1e-5)
        assert_close(projection_coefficient(pair), 0.8 * ratio, rtol=1e-5)
        assert_close(vaccine_coefficient(pair, torch.zeros((), dtype=dtype)), 0.8 * ratio, rtol=1e-4)
        assert_close(cosine_gate(pair), 0.0)


@rules
@pytest.mark.parametrize("scopes", [(4,), (3, 2)])
def test_leading_dimensions_are_mapped_over(rule: Callable[[Tensor], Tensor], scopes: tuple[int, ...]) -> None:
    gram = products(*vectors(*scopes, 5))
    together = rule(gram)
    assert together.shape == scopes
    each = [float(rule(one)) for one in gram.flatten(0, -3)]
    assert together.flatten().tolist() == pytest.approx(each, rel=1e-14)


@rules
def test_the_rules_leave_the_inner_products_alone_and_keep_their_dtype(rule: Callable[[Tensor], Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        gram = products(*vectors(6, 5)).to(dtype)
        before = gram.clone()
        assert rule(gram).dtype is dtype
        assert torch.equal(gram, before)


@pytest.mark.parametrize("name", [name for name in RULES if name != "gate"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_gradient_makes_the_weight_nan_and_leaves_other_scopes_alone(name: str, bad: float) -> None:
    s, n = (np.abs(v) for v in vectors(3, 4))
    s[2] *= -1
    whole = RULES[name](products(s, n))
    for broken in (s, n):
        broken[1, 0] = bad
        gram = products(s, n)
        # What a nan adds up with cannot be told from a conflict.
        gram[1, 0, 1] = gram[1, 1, 0] = math.nan
        actual = RULES[name](gram)
        assert actual.isnan().tolist() == [False, True, False]
        assert torch.equal(actual[[0, 2]], whole[[0, 2]])
        broken[1, 0] = 1.0


def test_nan_does_not_close_the_gate_so_that_the_gradient_that_has_it_shows() -> None:
    gram = torch.full((2, 2), math.nan, dtype=torch.float64)
    assert binary_gate(gram) == 1


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_balancing_brings_the_norm_of_the_source_to_that_of_the_target(strength: float) -> None:
    rng = np.random.default_rng(0)
    source, target = rng.exponential(size=(2, 3, 2))
    factor = balance_factor(torch.from_numpy(source), torch.from_numpy(target), strength)
    assert_close(factor, strength * target / source + 1 - strength)
    assert_close(factor * torch.from_numpy(source), strength * target + (1 - strength) * source)


@pytest.mark.parametrize("target", [0.0, 1e-30, 1.0, 1e5, 1e30])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_balancing_a_zero_source_gradient_leaves_it_zero(target: float, strength: float) -> None:
    factor = balance_factor(torch.zeros((), dtype=torch.float64), torch.tensor(target, dtype=torch.float64), strength)
    assert factor.isfinite()
    assert factor.square() * 0.0 == 0.0


def test_balancing_keeps_nan_visible() -> None:
    nan, one = torch.tensor(math.nan), torch.tensor(1.0)
    assert balance_factor(nan, one, 0.5).isnan()
    assert balance_factor(one, nan, 0.5).isnan()


@pytest.mark.parametrize("layout", ["dense", "sparse", "mixed"])
def test_agreeing_keeps_the_elements_whose_signs_do_not_differ(layout: str) -> None:
    s, n = random((6, 5)), random((6, 5), seed=1)
    s[0][0], n[0][1], s[0][2, :3], n[0][3, :3] = 0, 0, 0, 0
    s[0][4, 0], n[0][4, 0] = 1e-200, -1e-200  # whose product underflows
    expected = np.where(np.sign(s[0].numpy()) * np.sign(n[0].numpy()) < 0, 0.0, s[0].numpy())
    given_s = [s[0].to_sparse(1) if layout != "dense" else s[0]]
    given_n = [n[0].to_sparse(1) if layout == "sparse" else n[0]]
    (kept,) = agreeing(given_s, given_n)
    assert np.array_equal(kept.numpy(), expected)
    assert (kept * n[0] >= 0).all()
    assert not torch.equal(kept, s[0])


def test_agreeing_looks_at_real_and_imaginary_parts_apart() -> None:
    s, n = torch.tensor([1 + 2j, -3 - 4j, 5 - 6j]), torch.tensor([1 - 2j, 3 - 4j, 0j])
    assert agreeing([s], [n])[0].tolist() == [1 + 0j, 0 - 4j, 5 - 6j]


def test_agreeing_keeps_nan_visible() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert agreeing([nan], [torch.tensor([-1.0, 1.0])])[0][0].isnan()


def test_agreeing_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="each list must hold one gradient a parameter, but they have 1 and 2 entries"):
        agreeing(random((2,)), random((2,), (2,)))


def test_the_papers_weights_are_those_of_its_formula_in_every_scope() -> None:
    s, n = vectors(3, 2, 5)
    weights = paper_weights(products(s, n), 0.7, 0.3)
    kappa = np.maximum(0, -dots(s, n) / dots(n, n))
    assert weights.shape == (2, 3, 2)
    assert_close(weights[0], np.full((3, 2), 0.7))
    assert_close(weights[1], 0.3 + 0.7 * kappa)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gammas", [(1.0, 1.0), (0.001, 0.2), (0.0, 1.0), (1.0, 0.0)])
def test_skew_is_the_papers_formula(seed: int, gammas: tuple[float, float]) -> None:
    s, t = random((3, 2), (4,), (), seed=seed), random((3, 2), (4,), (), seed=seed + 50)
    g_s, g_t = flat(s), flat(t)
    kappa = max(0.0, -(g_s @ g_t) / (g_t @ g_t))
    filtered, gram = skew(s, t, *gammas)
    np.testing.assert_allclose(
        flat([g for g in filtered if g is not None]),
        gammas[0] * g_s + (gammas[1] + gammas[0] * kappa) * g_t,
        atol=1e-13,
    )
    assert gram is not None
    assert_close(gram, np.array([[g_s @ g_s, g_s @ g_t], [g_s @ g_t, g_t @ g_t]]), rtol=1e-12)
