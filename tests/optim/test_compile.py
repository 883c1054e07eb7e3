"""torch.compile: of the filters, of whole training steps, of the model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optimizer_options import equal, losses, small_model, train, weights
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tsjt_pyg.optim import TargetSkewedOptimizer, combine, gramian, skew

inductor = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(
            not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler, there is none"
        ),
    ],
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, about functools.cache
        yield
    torch.compiler.reset()


def random(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def weigh(s: list[Tensor], t: list[Tensor]) -> list[Tensor]:
    weights_of_scopes = torch.tensor([[0.5, -2.0], [1.0, 3.0]], dtype=torch.float64)
    return combine(weights_of_scopes, s, t, scopes=[0, 1, 0, 1])


FUNCTIONS: dict[str, Callable[[list[Tensor], list[Tensor]], Any]] = {
    "skew": lambda s, t: skew(s, t, 0.7, 0.3),
    "gramian": gramian,
    "gramian of scopes": lambda s, t: gramian(s, t, t, scopes=[2, 0, 0, 2], num_scopes=4),
    "combine": lambda s, t: combine([0.5, torch.tensor(2.0)], s, t),
    "combine scopes": weigh,
}


def assert_close(actual: Any, expected: Any) -> None:
    """To what sums of float32 are known, against the largest number of a tensor."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(
            actual,
            expected,
            rtol=1e-2 if expected.dtype is torch.bfloat16 else 1e-5,
            atol=1e-6 * float(expected.abs().max()),
        )
        return
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("aot_eager", torch.float32),
        ("aot_eager", torch.bfloat16),
        pytest.param(*inductor.values, torch.float32, marks=inductor.marks),
    ],
)
def test_the_filters_compile_to_one_graph_and_give_the_same(name: str, backend: str, dtype: torch.dtype) -> None:
    shapes = [(3, 4), (5,), (), (40, 300)]
    s, t = random(*shapes, dtype=dtype), random(*shapes, seed=1, dtype=dtype)
    t[0] -= 3 * s[0]
    before = [g.clone() for g in (*s, *t)]
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend=backend)
    expected = FUNCTIONS[name](s, t)
    for _ in range(2):
        assert_close(compiled(s, t), expected)
    assert equal([*s, *t], before)


def test_a_compiled_combine_overwrites_the_last_gradient_where_it_may() -> None:
    s, t = random((3, 4), (5,)), random((3, 4), (5,), seed=1)
    expected = combine([0.5, 2.0], s, t)
    compiled = torch.compile(lambda s, t: combine([0.5, 2.0], s, t, in_place=True), fullgraph=True, backend="aot_eager")
    compiled(s, t)
    torch.testing.assert_close(t, expected)


def step_in_blocks(optimizer: TargetSkewedOptimizer, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    with optimizer.source():
        (model(x) - y).square().mean().backward()
    with optimizer.target():
        loss = (model(x * 0.9) + y).square().mean()
        loss.backward()
    optimizer.step()
    return loss.detach()


def step_in_one_call(optimizer: TargetSkewedOptimizer, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    output = model(torch.cat((x, x * 0.9)))
    source_loss, target_loss = (output[:8] - y).square().mean(), (output[8:] + y).square().mean()
    optimizer.backward(source_loss, target_loss)
    optimizer.step()
    return target_loss.detach()


@pytest.mark.parametrize(
    ("backend", "step", "base", "kwargs"),
    [
        ("aot_eager", step_in_blocks, Adam, {}),
        ("eager", step_in_one_call, SGD, {"lag": 2}),
        pytest.param(
            *inductor.values,
            step_in_blocks,
            SGD,
            {"filter": "vaccine", "scope": "tensor", "normal": "ema", "balance": 0.5},
            marks=inductor.marks,
        ),
    ],
)
def test_a_compiled_training_step_does_what_the_plain_one_does(
    backend: str, step: Callable[..., Tensor], base: type[SGD] | type[Adam], kwargs: dict[str, Any]
) -> None:
    results = []
    for compiled in (False, True):
        model = small_model()
        optimizer = TargetSkewedOptimizer(model.parameters(), base, lr=0.05, **kwargs)
        run = torch.compile(step, backend=backend) if compiled else step
        target_losses = []
        for i in range(4):
            x, y = random((8, 3), (8, 2), seed=i)
            target_losses.append(run(optimizer, model, x, y))
        results.append((weights(model), torch.stack(target_losses), optimizer.stats()))
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=1e-4, atol=1e-5)
    assert results[1][2] == pytest.approx(results[0][2], rel=1e-3)
    assert results[1][2]["steps"] == 4


@pytest.mark.parametrize(
    ("backend", "kwargs"),
    [("aot_eager", {}), ("aot_eager", {"lag": 2}), pytest.param(*inductor.values, {}, marks=inductor.marks)],
)
def test_a_compiled_model_trains_as_the_plain_one_does(
    model: nn.Module, twin: nn.Module, backend: str, kwargs: dict[str, Any]
) -> None:
    compiled = torch.compile(twin, backend=backend)
    ours, other = (TargetSkewedOptimizer(net.named_parameters(), Adam, **kwargs) for net in (model, compiled))
    train(model, ours, range(4))
    train(compiled, other, range(4))
    torch.testing.assert_close(weights(twin), weights(model))
    assert other.stats() == pytest.approx(ours.stats(), rel=1e-4)
    assert ours.stats()["conflict_rate"] > 0


def test_both_cities_may_go_through_a_compiled_model_in_one_call(model: nn.Module, twin: nn.Module) -> None:
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    ours, other = (TargetSkewedOptimizer(net.parameters(), SGD, lr=0.05) for net in (model, twin))
    for i in range(3):
        x, y = random((8, 3), (8, 2), seed=i)
        step_in_one_call(ours, model, x, y)
        step_in_one_call(other, compiled, x, y)
    torch.testing.assert_close(weights(twin), weights(model))


def test_losses_computed_in_one_compiled_function_share_a_graph_and_backward_knows(model: nn.Module) -> None:
    both = torch.compile(losses, backend="aot_eager")
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05)
    optimizer.backward(*both(model, 0))
    compiled = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    optimizer.backward(*losses(model, 0))
    torch.testing.assert_close(compiled, [p.grad for p in model.parameters()])
