"""Every pure function of the filters against the published formula, written here in numpy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsjt_pyg.optim.filters import (
    aggregate,
    agreeing,
    balance_factor,
    binary_gate,
    combine,
    cosine,
    cosine_gate,
    gramian,
    paper_weights,
    projection_coefficient,
    skew,
    vaccine_coefficient,
)
from tsjt_pyg.optim.filters.matrix import weighting_of

Array = NDArray[np.float64]

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


def random(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def flat(gradient: Sequence[Tensor]) -> Array:
    dense = [g.to_dense() if g.is_sparse else g for g in gradient]
    return np.concatenate([g.detach().double().numpy().ravel() for g in dense]) if dense else np.zeros(0)


def assert_close(actual: Tensor, expected: Array | float, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=rtol, atol=1e-300)


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


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_the_gramian_of_many_gradients_holds_all_inner_products(m: int) -> None:
    gradients = [random((3, 2), (0,), (), (7,), seed=i) for i in range(m)]
    rows = np.stack([flat(g) for g in gradients])
    gram = gramian(*gradients)
    assert gram.dtype is torch.float64
    np.testing.assert_allclose(gram.numpy(), rows @ rows.T, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_gramian_of_large_and_small_tensors_is_exact_to_the_dtype_in_which_it_sums(dtype: torch.dtype) -> None:
    shapes = [(3,), (2**13 + 1,), (2**18 + 3,), (5, 5), (2**12,), (300,)]
    gradients = [random(*shapes, seed=i, dtype=dtype) for i in range(3)]
    rows = np.stack([flat(g) for g in gradients])
    lengths = np.linalg.norm(rows, axis=1)
    atol = (1e-14 if dtype is torch.float64 else 1e-5) * np.outer(lengths, lengths)
    assert (np.abs(gramian(*gradients).numpy() - rows @ rows.T) <= atol).all()


def test_a_scope_has_the_gramian_of_its_own_parameters() -> None:
    gradients = [random((3, 2), (4,), (2, 2), (5,), seed=i) for i in range(3)]
    scopes = [2, 0, 2, 3]
    gram = gramian(*gradients, scopes=scopes)
    assert gram.shape == (4, 3, 3)
    for scope in range(4):
        rows = np.stack([flat([g for g, of in zip(gs, scopes, strict=True) if of == scope]) for gs in gradients])
        np.testing.assert_allclose(gram[scope].numpy(), rows @ rows.T, rtol=1e-13)
    assert not gram[1].any()
    torch.testing.assert_close(gram.sum(0), gramian(*gradients))


def test_scopes_without_parameters_have_zeros_up_to_the_number_that_was_asked_for() -> None:
    s, t = random((3,), (2,)), random((3,), (2,), seed=1)
    gram = gramian(s, t, scopes=[1, 1], num_scopes=4)
    assert gram.shape == (4, 2, 2)
    torch.testing.assert_close(gram[1], gramian(s, t))
    assert not gram[[0, 2, 3]].any()
    assert gramian([], [], scopes=[], num_scopes=2).tolist() == [[[0.0, 0.0]] * 2] * 2
    assert gramian([], [], scopes=[]).shape == (0, 2, 2)


def test_a_gramian_over_mixed_dtypes_layouts_and_scopes_adds_up_the_right_parts() -> None:
    dtypes = [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.float32]
    gradients = [[random((4, 3), seed=10 * i + k, dtype=d)[0] for k, d in enumerate(dtypes)] for i in range(3)]
    gradients[1][1] = gradients[1][1].double()  # two dtypes for one parameter
    gradients[0][4], gradients[2][4] = gradients[0][4].to_sparse(1), gradients[2][4].to_sparse(1)
    gradients[0][2] = gradients[0][2].T.contiguous().T
    scopes = [0, 1, 0, 1, 1]
    gram = gramian(*gradients, scopes=scopes)
    for scope in range(2):
        rows = np.stack([flat([g for g, of in zip(gs, scopes, strict=True) if of == scope]) for gs in gradients])
        np.testing.assert_allclose(gram[scope].numpy(), rows @ rows.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_element_shows_in_the_gramian_of_its_scope_only(bad: float) -> None:
    s, t = random((3,), (2,)), random((3,), (2,), seed=1)
    s[1][0] = bad
    gram = gramian(s, t, scopes=[0, 1])
    assert gram[0].isfinite().all()
    assert not gram[1, 0].isfinite().any()
    assert gram[1, 1, 1].isfinite()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "tensors", "one tensor", "mixed"])
def test_combine_is_the_weighted_sum(kind: str, in_place: bool) -> None:
    gradients = [random((3, 2), (0,), (), (7,), seed=i) for i in range(3)]
    values = [0.5, -2.0, 3.0]
    weights = {
        "numbers": values,
        "tensors": [torch.tensor(v, dtype=torch.float64) for v in values],
        "one tensor": torch.tensor(values, dtype=torch.float64),
        "mixed": [0.5, torch.tensor(-2.0), 3.0],
    }[kind]
    expected = sum(w * flat(g) for w, g in zip(values, gradients, strict=True))
    before = [[t.clone() for t in g] for g in gradients]
    result = combine(weights, *gradients, in_place=in_place)
    np.testing.assert_allclose(flat(result), expected, rtol=1e-13, atol=1e-13)
    untouched = 2 if in_place else 3
    for old, new in zip(before[:untouched], gradients[:untouched], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert all((a is b) == in_place for a, b in zip(result, gradients[-1], strict=True))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("large", [2, 2**17 + 5])
def test_every_scope_has_its_own_weights(in_place: bool, large: int) -> None:
    scopes = [1, 0, 1, 2]
    gradients = [random((3, 2), (large,), (2, 2), (5,), seed=i) for i in range(3)]
    weights = [random((3,), seed=9)[0], 2.0, random((3,), seed=8)[0]]
    expected = [
        sum(
            (float(w[of]) if isinstance(w, Tensor) else w) * flat([g[i]])
            for w, g in zip(weights, gradients, strict=True)
        )
        for i, of in enumerate(scopes)
    ]
    result = combine(weights, *gradients, scopes=scopes, in_place=in_place)
    np.testing.assert_allclose(flat(result), np.concatenate(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_sum_has_the_dtype_of_the_last_gradient_and_halves_are_summed_in_float32(
    dtype: torch.dtype, in_place: bool
) -> None:
    gradients = [random((40,), (3, 3), seed=i, dtype=dtype) for i in range(3)]
    expected = 1000.0 * flat(gradients[0]) - 999.5 * flat(gradients[1]) + 0.5 * flat(gradients[2])
    result = combine([1000.0, torch.tensor(-999.5), 0.5], *gradients, in_place=in_place)
    assert {g.dtype for g in result} == {dtype}
    size = float(np.abs(expected).max())
    eps = torch.finfo(dtype).eps
    assert np.abs(flat(result) - expected).max() <= size * max(eps, 8e-7 if eps > 1e-8 else 0)


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_of_one_parameter_may_have_different_dtypes(in_place: bool) -> None:
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    pairs = [(a, b) for a in dtypes for b in dtypes]
    s = [random((4,), seed=i, dtype=a)[0] for i, (a, _) in enumerate(pairs)]
    t = [random((4,), seed=99 + i, dtype=b)[0] for i, (_, b) in enumerate(pairs)]
    expected = [0.7 * flat([a]) - 0.3 * flat([b]) for a, b in zip(s, t, strict=True)]
    for g, e, (_, b) in zip(combine([0.7, -0.3], s, t, in_place=in_place), expected, pairs, strict=True):
        assert g.dtype is b
        np.testing.assert_allclose(flat([g]), e, rtol=0, atol=4 * max(torch.finfo(b).eps, 1e-7))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("sparse", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_a_sum_is_sparse_where_all_gradients_are(sparse: tuple[int, ...], in_place: bool) -> None:
    gradients = [random((5, 3), (4,), seed=i) for i in range(3)]
    for i, g in enumerate(gradients):
        g[0][[i, i + 1]] = 0
    expected = 0.5 * flat(gradients[0]) - 2 * flat(gradients[1]) + 3 * flat(gradients[2])
    for i in sparse:
        gradients[i][0] = gradients[i][0].to_sparse(1)
    last = gradients[2][0].clone()
    result = combine([0.5, -2.0, 3.0], *gradients, in_place=in_place)
    assert result[0].is_sparse == (len(sparse) == 3)
    np.testing.assert_allclose(flat(result), expected, atol=1e-14)
    assert torch.equal(gradients[2][0].to_dense(), last.to_dense())  # never overwritten
    assert (result[1] is gradients[2][1]) == in_place


def test_combine_writes_into_memory_of_any_format() -> None:
    s, t = random((6, 4)), random((4, 6), seed=1)
    for given in (t[0].T, t[0].T.contiguous()):
        last = given.clone(memory_format=torch.preserve_format)
        expected = 0.5 * s[0] + 2 * last
        assert torch.equal(combine([0.5, 2.0], s, [last], in_place=True)[0], expected)
        assert torch.equal(last, expected)


def test_a_weight_beyond_the_dtype_is_capped_so_that_the_sum_stays_finite() -> None:
    largest = torch.finfo(torch.float32).max
    s, t = torch.zeros(2), torch.full((2,), 1e-30)
    for weight in (1e200, -1e200):
        (g,) = combine([1.0, torch.tensor(weight, dtype=torch.float64)], [s], [t])
        torch.testing.assert_close(g, torch.full((2,), math.copysign(largest, weight)) * t)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_nonfinite_element_shows_in_the_sum_whatever_its_weight(position: int, dtype: torch.dtype) -> None:
    for weights in ([0.0, 0.0, 0.0], torch.zeros(3), [1.0, 1.0, 1.0]):
        gradients = [random((4,), (2,), seed=i, dtype=dtype) for i in range(3)]
        gradients[position][0][1] = math.inf
        first, second = combine(weights, *gradients)
        assert first.isfinite().tolist() == [True, False, True, True]
        assert second.isfinite().all()


def test_combine_refuses_a_wrong_number_of_weights_or_entries() -> None:
    s, t = random((2,)), random((2,), seed=1)
    with pytest.raises(ValueError, match="there must be one weight a gradient, but there are 3 for 2"):
        combine([1.0, 1.0, 1.0], s, t)
    with pytest.raises(ValueError, match="there must be one weight a gradient, but there are 1 for 2"):
        combine(torch.ones(1), s, t)
    with pytest.raises(ValueError, match="each list must hold one gradient a parameter, but they have 1 and 0 entries"):
        combine([1.0, 1.0], s, [])


def test_gramian_refuses_lists_of_different_length() -> None:
    with pytest.raises(
        ValueError, match="each list must hold one gradient a parameter, but they have 1 and 1 and 2 entries"
    ):
        gramian(random((2,)), random((2,)), random((2,), (2,)))


def test_an_aggregator_gets_the_matrix_and_its_vector_becomes_gradients() -> None:
    gradients = [random((3, 2), (), (4,), seed=i) for i in range(3)]
    seen: list[Tensor] = []

    def aggregator(matrix: Tensor) -> Tensor:
        seen.append(matrix)
        return matrix.abs().max(0).values

    result = aggregate(aggregator, *gradients)
    expected = np.stack([flat(g) for g in gradients])
    assert np.array_equal(seen[0].numpy(), expected)
    assert [g.shape for g in result] == [(3, 2), (), (4,)]
    assert np.array_equal(flat(result), np.abs(expected).max(0))


def test_an_aggregator_refuses_sparse_gradients_and_lists_of_different_length() -> None:
    s, t = random((3, 2)), random((3, 2), seed=1)
    for sparse in (([s[0].to_sparse(1)], t), (s, [t[0].to_sparse(1)])):
        with pytest.raises(ValueError, match="needs the matrix of all gradients, but one of them is sparse: use a wei"):
            aggregate(lambda matrix: matrix.sum(0), *sparse)
    with pytest.raises(ValueError, match="have 1 and 2 entries"):
        aggregate(lambda matrix: matrix.sum(0), s, [*t, *t])


def test_a_function_of_the_gramian_is_its_own_weighting() -> None:
    def rule(gram: Tensor) -> Tensor:
        return gram.diagonal()

    assert weighting_of(rule) is rule
