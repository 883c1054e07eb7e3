"""The filters as pure functions: dtypes, layouts, missing entries, extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tsjt_pyg.optim import combine, gramian, paper_weights, projection_coefficient, skew
from tsjt_pyg.optim.filters import grouping


def random(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def test_gramian_holds_the_three_inner_products() -> None:
    s, t = random((3, 2), (), (4,), (0, 3)), random((3, 2), (), (4,), (0, 3), seed=1)
    flat_s, flat_t = (torch.cat([g.flatten() for g in gs]).double() for gs in (s, t))
    expected = torch.stack((flat_s, flat_t)) @ torch.stack((flat_s, flat_t)).T
    torch.testing.assert_close(gramian(s, t), expected)
    assert gramian([], []).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_buckets_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = random((3, 2), (5,), (4,)), random((3, 2), (5,), (4,), seed=1)
    whole = skew(s, t, 0.7, 0.3)
    monkeypatch.setattr(grouping, "_CPU_BUCKET_ELEMENTS", 6)
    split = skew(s, t, 0.7, 0.3)
    torch.testing.assert_close(split[0], whole[0])
    torch.testing.assert_close(split[1], whole[1])


def test_dtypes_and_memory_formats_may_be_mixed() -> None:
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float32]
    s = [random((4, 3), seed=i, dtype=dtype)[0] for i, dtype in enumerate(dtypes)]
    t = [random((4, 3), seed=i + 9, dtype=dtype)[0] - g for i, (dtype, g) in enumerate(zip(dtypes, s, strict=True))]
    t[4] = t[4].T.contiguous().T
    expected, _ = skew([g.double() for g in s], [g.double() for g in t], 0.7, 0.3)
    actual, gram = skew(s, t, 0.7, 0.3)
    assert gram is not None
    assert gram[0, 1] < 0
    for a, e, dtype in zip(actual, expected, dtypes, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a, e.to(dtype))


@pytest.mark.parametrize("sparse", ["both", "source", "target"])
def test_sparse_gradients_give_what_dense_ones_do(sparse: str) -> None:
    s, t = random((4, 3), (5, 2)), random((4, 3), (5, 2), seed=1)
    t = [b - a for a, b in zip(s, t, strict=True)]
    s[0][[0, 2]], t[0][[1]] = 0, 0
    expected, gram = skew(s, t, 0.7, 0.3)
    # Twice a half: duplicate indices, as an embedding makes them.
    halves = [(g[0] / 2).to_sparse(1) for g in (s, t)]
    sparse_s, sparse_t = (
        torch.sparse_coo_tensor(
            torch.cat([h.indices()] * 2, 1), torch.cat([h.values()] * 2), h.shape, check_invariants=True
        )
        for h in halves
    )
    actual, sparse_gram = skew(
        [sparse_s if sparse != "target" else s[0], s[1]], [sparse_t if sparse != "source" else t[0], t[1]], 0.7, 0.3
    )
    assert actual[0].is_sparse == (sparse == "both")
    torch.testing.assert_close(actual[0].to_dense(), expected[0])
    torch.testing.assert_close(actual[1], expected[1])
    torch.testing.assert_close(sparse_gram, gram)


def test_complex_gradients_count_as_pairs_of_real_ones() -> None:
    s, t = random((4, 2)), random((4, 2), seed=1)
    t = [t[0] - s[0]]
    expected, gram = skew(s, t, 0.7, 0.3)
    actual, complex_gram = skew([torch.view_as_complex(s[0])], [torch.view_as_complex(t[0])], 0.7, 0.3)
    torch.testing.assert_close(torch.view_as_real(actual[0]), expected[0])
    torch.testing.assert_close(complex_gram, gram)


def test_missing_entries_pass_through_untouched_and_uncounted() -> None:
    (a, b, c), (x, y) = random((2,), (3,), (2,)), random((2,), (2,), seed=1)
    actual, gram = skew([a, b, None, None], [x, None, y, None], 0.7, 0.3)
    expected, expected_gram = skew([a], [x], 0.7, 0.3)
    assert torch.equal(actual[0], expected[0])
    assert actual[1] is b
    assert actual[2] is y
    assert actual[3] is None
    assert torch.equal(gram, expected_gram)
    assert skew([b, None], [None, c], 0.7, 0.3) == ([b, c], None)


def test_a_zero_target_gradient_leaves_the_weighted_source_gradient() -> None:
    s = random((3,), (2, 2))
    actual, _ = skew(s, [torch.zeros_like(g) for g in s], 0.7, 0.3)
    torch.testing.assert_close(actual, [0.7 * g for g in s])
    zeros, _ = skew([torch.zeros(3)], [torch.zeros(3)], 0.7, 0.3)
    assert torch.equal(zeros[0], torch.zeros(3))


@pytest.mark.parametrize("scale_t", [1e-40, 1e-30, 1e-15, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("scale_s", [1e-30, 1.0, 1e30])
def test_the_conflict_is_removed_at_any_scale_of_float32(scale_s: float, scale_t: float) -> None:
    s, t = torch.tensor([3.0, -4.0]) * scale_s, torch.tensor([0.0, 1.0]) * scale_t
    (g,), gram = skew([s], [t], 1.0, 0.0)
    assert projection_coefficient(gram) == pytest.approx(4 * scale_s / scale_t, rel=1e-3)
    assert g.isfinite().all()
    if 1e-38 < scale_s / scale_t < 1e38:  # float32 holds the weight
        torch.testing.assert_close(g, torch.tensor([3.0, 0.0]) * scale_s, rtol=1e-5, atol=1e-5 * scale_s)


def test_a_squared_float16_norm_does_not_overflow() -> None:
    large = torch.full((1000,), 6e4, dtype=torch.float16)
    (g,), gram = skew([-large], [large], 1.0, 0.5)
    assert gram[0, 0] == 1000 * float(large[0]) ** 2
    torch.testing.assert_close(g, large / 2)


def test_a_projection_beyond_the_range_of_float16_is_exact() -> None:
    large, small = torch.full((10,), 6e4, dtype=torch.float16), torch.full((10,), 6e-8, dtype=torch.float16)
    (g,), gram = skew([large], [-small], 1.0, 0.0)
    assert projection_coefficient(gram) > torch.finfo(torch.float16).max
    torch.testing.assert_close(g, torch.zeros_like(large), rtol=0, atol=0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gammas", [(1.0, 1.0), (0.001, 0.2), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("others", [1.0, -1.0, 0.0])
def test_a_nonfinite_element_of_either_gradient_reaches_the_result(
    bad: float, gammas: tuple[float, float], others: float
) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        broken = torch.tensor([1.0, bad, 1.0], dtype=dtype)
        whole = torch.full((3,), others, dtype=dtype)
        for s, t in ((broken, whole), (whole, broken)):
            assert not skew([s], [t], *gammas)[0][0].isfinite().all()


def test_the_steps_of_the_filter_compose() -> None:
    s, t = random((3,), (2,)), random((3,), (2,), seed=1)
    gram = gramian(s, t)
    pair = paper_weights(gram, 0.7, 0.3)
    assert pair.tolist() == [pytest.approx(0.7), pytest.approx(0.3 + 0.7 * float(projection_coefficient(gram)))]
    # Not to the bit: which of the two products comes first depends on whether their weights are numbers.
    torch.testing.assert_close(combine(pair, s, t), skew(s, t, 0.7, 0.3)[0])


class OnDevice(Tensor):
    """Stands in for tensors outside of the host's memory, where reading a value waits."""


def test_inputs_are_left_alone_and_nothing_branches_on_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = ([g.as_subclass(OnDevice) for g in random((3,), (2, 2), seed=k)] for k in (0, 1))
    before = [g.clone() for g in s + t]

    def refuse(*args: object) -> None:
        raise AssertionError("the filter waited for a tensor's value")

    for method in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, method, refuse)
    filtered, _ = skew(s, t, 0.7, 0.3)
    assert {type(g) for g in filtered} == {OnDevice}
    monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, s + t, strict=True))


@pytest.mark.parametrize("size", [3, 2000, 20_000])
def test_the_inner_products_have_a_graph_where_the_gradients_have_one(size: int) -> None:
    s, t = (torch.randn(size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gramian([s], [t])[0, 1].backward()
    torch.testing.assert_close(s.grad, t.detach())


def test_a_view_that_negates_counts_as_what_it_shows() -> None:
    z = torch.randn(2000, dtype=torch.complex64)
    negated = z.conj().imag  # holds the positive values and a mark
    assert negated.is_neg()
    assert float(gramian([negated], [torch.ones(2000)])[0, 1]) == pytest.approx(
        -float(z.imag.sum()), rel=1e-4, abs=1e-3
    )


def test_lists_of_different_length_are_refused() -> None:
    for call in (gramian, lambda s, t: combine(torch.ones(2), s, t), lambda s, t: skew(s, t, 1.0, 1.0)):
        with pytest.raises(ValueError, match="have 1 and 2 entries"):
            call(random((2,)), random((2,), (2,)))
