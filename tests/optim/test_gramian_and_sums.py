"""Inner products and weighted sums of gradients against numpy and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from float64_gradients import flat, random
from torch import Tensor

from tsjt_pyg.optim.filters import (
    aggregate,
    combine,
    gramian,
)
from tsjt_pyg.optim.filters.matrix import weighting_of


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
