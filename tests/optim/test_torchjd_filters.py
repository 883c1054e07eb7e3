"""Weightings and aggregators of torchjd as filters: what they make of the matrix of gradients is what is stepped on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_options import gradients, losses, raw_gradients, round_of, train, two_groups, weights
from torch import Tensor, nn
from torch.optim import SGD, Adam, SparseAdam

from tsjt_pyg.optim import TargetSkewedOptimizer
from tsjt_pyg.optim.filters.matrix import weighting_of

aggregation = pytest.importorskip("torchjd.aggregation")

AGGREGATORS: dict[str, Callable[[], Any]] = {
    "PCGrad": aggregation.PCGrad,
    "GradVac": aggregation.GradVac,
    "UPGrad": aggregation.UPGrad,
    "MGDA": aggregation.MGDA,
    "CAGrad": lambda: aggregation.CAGrad(c=0.5),
    "IMTLG": aggregation.IMTLG,
    "AlignedMTL": aggregation.AlignedMTL,
    "ConFIG": aggregation.ConFIG,
    "GradDrop": aggregation.GradDrop,
    "Mean": aggregation.Mean,
    "Sum": aggregation.Sum,
    "Constant": aggregation.Constant,
}
#: Those that need the gradients themselves, not only their inner products.
NEED_THE_MATRIX = {"ConFIG", "GradDrop", "Mean", "Sum", "Constant"}
SOURCES = {2: (None,), 4: ("pems04", "los", "jonas")}

named = pytest.mark.parametrize("name", AGGREGATORS)


def build(name: str, m: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    if name == "Constant":
        return aggregation.Constant(torch.linspace(0.5, 2.0, m, dtype=dtype))
    try:
        made = AGGREGATORS[name]()
    except ImportError as missing:
        pytest.skip(f"torchjd's {name} lacks what it needs: {missing}")
    return made


def aggregated(
    name: str, aggregator: Any, model: nn.Module, step: int, sources: tuple[str | None, ...]
) -> list[Tensor]:
    """torchjd's own aggregation of the matrix: the sources in the order of their blocks, the target last."""
    of_sources, target_loss = round_of(model, step, sources)
    rows = [raw_gradients(model, loss) for loss in (*of_sources.values(), target_loss)]
    matrix = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    # Inner products are in float64, as ours are.
    vector = aggregator(matrix if name in NEED_THE_MATRIX else matrix.double()).to(matrix.dtype)
    sizes = [p.numel() for p in model.parameters()]
    return [v.view_as(p) for v, p in zip(vector.split(sizes), model.parameters(), strict=True)]


def leave(
    optimizer: TargetSkewedOptimizer, model: nn.Module, step: int, sources: tuple[str | None, ...]
) -> list[Tensor | None]:
    """The gradient of one round."""
    optimizer.zero_grad()
    of_sources, target_loss = round_of(model, step, sources)
    optimizer.backward(of_sources, target_loss)
    return gradients(model)


def assert_close(actual: list[Tensor | None], wanted: list[Tensor]) -> None:
    for a, w in zip(actual, wanted, strict=True):
        tolerance = 1e-4 if w.dtype is torch.float32 else 1e-9
        torch.testing.assert_close(a, w, rtol=tolerance, atol=tolerance * float(w.abs().max()))


@named
@pytest.mark.parametrize("m", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_torchjds_own_aggregation(name: str, m: int, dtype: torch.dtype, model: nn.Module) -> None:
    """In several steps, for those that remember something, and with the same random numbers."""
    model = model.to(dtype)
    ours, theirs = (build(name, m, dtype) for _ in range(2))
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.02, filter=ours)
    for step in range(4):
        torch.manual_seed(step)
        wanted = aggregated(name, theirs, model, step, SOURCES[m])
        torch.manual_seed(step)
        assert_close(leave(optimizer, model, step, SOURCES[m]), wanted)
        optimizer.step()
    assert optimizer.stats()["steps"] == 4
    assert optimizer.stats()["conflict_rate"] > 0


@named
def test_what_needs_inner_products_only_never_sees_the_gradients(name: str) -> None:
    found = weighting_of(build(name))
    assert (found is None) == (name in NEED_THE_MATRIX)
    assert found is None or isinstance(found, aggregation.Weighting)


@pytest.mark.parametrize("name", ["PCGrad", "UPGrad", "MGDA", "IMTLG", "AlignedMTL"])
def test_a_weighting_is_the_same_filter_as_its_aggregator(name: str, model: nn.Module, twin: nn.Module) -> None:
    weighting = getattr(aggregation, f"{name}Weighting")()
    pair = [(model, weighting), (twin, build(name))]
    for net, rule in pair:
        torch.manual_seed(0)
        train(net, TargetSkewedOptimizer(net.parameters(), Adam, filter=rule), range(4), SOURCES[4])
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True))


@named
@pytest.mark.parametrize("m", SOURCES)
def test_scope_group_aggregates_every_group_by_itself(name: str, m: int, model: nn.Sequential) -> None:
    ours = build(name, m)
    optimizer = TargetSkewedOptimizer(two_groups(model), SGD, lr=0.0, filter=ours, scope="group")
    of_groups = [model[0], model[2]]
    theirs = build(name, m)
    # The random numbers are drawn group after group, and so is what GradVac remembers.
    for step in range(3):
        torch.manual_seed(step)
        of_sources, target_loss = round_of(model, step, SOURCES[m])
        kept = [(loss, [*group.parameters()]) for group in of_groups for loss in (*of_sources.values(), target_loss)]
        flat = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])
            for loss, params in kept
        ]
        matrices = torch.stack(flat[:m]), torch.stack(flat[m:])
        wanted = []
        for matrix, group in zip(matrices, of_groups, strict=True):
            vector = theirs(matrix if name in NEED_THE_MATRIX else matrix.double()).float()
            sizes = [p.numel() for p in group.parameters()]
            wanted += [v.view_as(p) for v, p in zip(vector.split(sizes), group.parameters(), strict=True)]
        torch.manual_seed(step)
        assert_close(leave(optimizer, model, step, SOURCES[m]), wanted)
        optimizer.step()


@pytest.mark.parametrize("name", sorted(set(AGGREGATORS) - NEED_THE_MATRIX))
def test_scope_tensor_weighs_every_tensor_by_itself(name: str, model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0, filter=build(name), scope="tensor")
    theirs = build(name)
    source_loss, target_loss = losses(model, 0)
    raw = [raw_gradients(model, loss, retain_graph=True) for loss in (source_loss, target_loss)]
    torch.manual_seed(0)
    wanted = [
        theirs(torch.stack([s.flatten(), t.flatten()]).double()).float().view_as(s) for s, t in zip(*raw, strict=True)
    ]
    torch.manual_seed(0)
    assert_close(leave(optimizer, model, 0, (None,)), wanted)


@pytest.mark.parametrize("name", sorted(NEED_THE_MATRIX))
def test_scope_tensor_is_refused_where_the_aggregator_would_be_called_for_every_tensor(
    name: str, model: nn.Module
) -> None:
    with pytest.raises(
        ValueError, match="scope='tensor' would call the aggregator for every tensor: use its weighting, or 'group'"
    ):
        TargetSkewedOptimizer(model.parameters(), filter=build(name), scope="tensor")


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda gram: gram.sum(), r"\[\]"),
        (lambda gram: gram, r"\[2, 2\]"),
        (lambda gram: gram[0, :1], r"\[1\]"),
        (lambda gram: torch.ones(3), r"\[3\]"),
    ],
)
def test_a_filter_that_returns_a_wrong_shape_is_told_which_is_right(
    model: nn.Sequential, scope: str, wrong: Callable[[Tensor], Tensor], shape: str
) -> None:
    optimizer = TargetSkewedOptimizer(two_groups(model), SGD, lr=0.1, filter=wrong, scope=scope)
    message = rf"filter must return one weight a gradient, shape \[2\], but returned shape {shape}$"
    with pytest.raises(ValueError, match=message):
        optimizer.backward(*losses(model, 0))


def test_an_aggregator_of_another_number_of_gradients_says_so(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, filter=build("Constant", 3))
    with pytest.raises(ValueError, match="should have 3 rows"):
        optimizer.backward(*losses(model, 0))


@named
def test_sparse_gradients_are_weighed_but_not_aggregated(name: str) -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    optimizer = TargetSkewedOptimizer(embedding.parameters(), SparseAdam, filter=build(name))
    source_loss = -embedding(torch.tensor([0, 1])).sum()
    target_loss = embedding(torch.tensor([1, 2, 2])).square().sum()
    if name in NEED_THE_MATRIX:
        with pytest.raises(
            ValueError, match="an aggregator needs the matrix of all gradients, but one of them is sparse"
        ):
            optimizer.backward(source_loss, target_loss)
        return
    rows = [torch.autograd.grad(loss, embedding.weight, retain_graph=True)[0] for loss in (source_loss, target_loss)]
    torch.manual_seed(0)
    wanted = build(name)(torch.stack([g.to_dense().flatten() for g in rows]).double()).float().view(6, 3)
    torch.manual_seed(0)
    optimizer.backward(source_loss, target_loss)
    assert embedding.weight.grad.is_sparse
    torch.testing.assert_close(embedding.weight.grad.to_dense(), wanted)
    optimizer.step()


@named
def test_a_parameter_of_one_city_keeps_its_gradient(name: str) -> None:
    shared, own = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = TargetSkewedOptimizer([own, shared], SGD, lr=0.1, filter=build(name))
    directions = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0])
    torch.manual_seed(0)
    optimizer.backward(shared @ directions[0] + 7 * own.sum(), shared @ directions[1])
    assert own.grad.tolist() == [7.0, 7.0]
    torch.manual_seed(0)
    matrix = torch.stack(directions)
    wanted = build(name)(matrix if name in NEED_THE_MATRIX else matrix.double()).float()
    torch.testing.assert_close(shared.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["UPGrad", "ConFIG"])
def test_further_blocks_start_from_the_gradients_as_they_were(name: str, model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, filter=build(name))
    for step in range(2):
        optimizer.backward(*losses(model, step))
    accumulated = gradients(model)
    optimizer.zero_grad()
    pairs = [losses(model, step) for step in range(2)]
    optimizer.backward(pairs[0][0] + pairs[1][0], pairs[0][1] + pairs[1][1])
    torch.testing.assert_close(accumulated, gradients(model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["UPGrad", "Mean"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_gradient_is_not_stepped_on(name: str, bad: float, model: nn.Module) -> None:
    """Solvers may refuse nan themselves, too; then nothing is changed either."""
    optimizer, before = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, filter=build(name)), weights(model)
    source_loss, target_loss = losses(model, 0)
    try:
        optimizer.backward(source_loss * bad, target_loss)
    except (ValueError, RuntimeError, TypeError):
        assert gradients(model) == [None] * 4
    else:
        optimizer.step()
        assert optimizer.stats()["skipped_steps"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
