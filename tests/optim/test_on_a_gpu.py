"""What only a CUDA device can show: nothing waits for it, a CUDA graph replays the step, fused bases skip alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from optimizer_options import STATEFUL, equal, losses, small_model, two_groups, weights
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tsjt_pyg.optim import SkewHistory, TargetSkewedOptimizer, combine, gramian, skew

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

#: Those whose whole step is on the device; the others ask for the average, which fused bases cannot leave out.
ON_THE_DEVICE = {name: given for name, given in STATEFUL.items() if given[0].get("normal") != "ema"}


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and wishes that lie on the device already."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, generator=generator).cuda(), torch.randn(8, 2, generator=generator).cuda())
        for _ in range(count)
    ]


def one_round(
    model: nn.Module,
    optimizer: TargetSkewedOptimizer,
    batch: tuple[Tensor, Tensor],
    sources: tuple[str | None, ...] = (None,),
    set_to_none: bool = True,
) -> None:
    """One step; also what a CUDA graph captures."""
    x, y = batch
    optimizer.zero_grad(set_to_none=set_to_none)
    if optimizer.skew_filter.normal == "held_out":
        with optimizer.held_out():
            (model(x * 0.8) + y).square().mean().backward()
    for i, name in enumerate(sources):
        with optimizer.source(name):
            (model(x) - (1 + i) * y).square().mean().backward()
    with optimizer.target():
        (model(x * 0.9) + y).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("base", ["fused", "foreach", "capturable", "sgd"])
def test_no_step_waits_for_the_device(name: str, base: str) -> None:
    kwargs, sources = STATEFUL[name]
    model = small_model().cuda()
    made: dict[str, Any] = {
        "fused": {"base": Adam, "fused": True},
        "foreach": {"base": Adam, "foreach": True},
        "capturable": {"base": Adam, "capturable": True},
        "sgd": {"base": SGD, "lr": 0.05, "momentum": 0.9},
    }[base]
    optimizer = TargetSkewedOptimizer(two_groups(model), **made, **kwargs)
    history = SkewHistory(optimizer)
    data = batches(8)
    for batch in data[:4]:  # what is created once, such as the state of the base
        one_round(model, optimizer, batch, sources)
    with no_waiting():
        for batch in data[4:]:
            one_round(model, optimizer, batch, sources)
    assert optimizer.stats()["steps"] == 8
    assert len(history.to_frame()) > 0


def test_backward_in_one_call_does_not_wait_either() -> None:
    model = small_model().cuda()
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, fused=True, lag=2)
    data = batches(8)
    for i, (x, y) in enumerate(data):
        with no_waiting() if i >= 4 else torch.enable_grad():
            optimizer.zero_grad()
            optimizer.backward((model(x) - y).square().mean(), (model(x) + y).square().mean())
            optimizer.step()
    assert optimizer.stats()["steps"] == 8


def test_parameters_of_one_city_do_not_make_it_wait() -> None:
    shared, own = (nn.Parameter(torch.ones(3, device="cuda")) for _ in range(2))
    optimizer = TargetSkewedOptimizer([shared, own], Adam, fused=True, scope="tensor")
    for i in range(4):
        with no_waiting() if i >= 2 else torch.enable_grad():
            optimizer.zero_grad()
            with optimizer.source():
                (shared.sum() + own.sum()).backward()
            with optimizer.target():
                (-shared.sum()).backward()
            optimizer.step()
    assert optimizer.stats()["conflict_rate"] == 1.0


@pytest.mark.parametrize("name", [name for name, (kwargs, _) in STATEFUL.items() if kwargs.get("lag", 1) == 1])
@pytest.mark.parametrize("fused", [False, True])
def test_a_captured_step_replays_to_the_same_parameters(name: str, fused: bool) -> None:
    """``lag`` is left out: which steps look at the gradients is decided by the host."""
    kwargs, sources = STATEFUL[name]
    data = batches(8)
    model, twin = small_model().cuda(), small_model().cuda()
    ours, other = (
        TargetSkewedOptimizer(two_groups(net), Adam, capturable=True, fused=fused, **kwargs) for net in (model, twin)
    )
    for batch in data:
        one_round(twin, other, batch, sources)

    x, y = (torch.empty_like(t) for t in data[0])

    def load(batch: tuple[Tensor, Tensor]) -> None:
        x.copy_(batch[0])
        y.copy_(batch[1])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in data[:3]:
            load(batch)
            one_round(model, ours, (x, y), sources)
    torch.cuda.current_stream().wait_stream(side)
    ours.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_round(model, ours, (x, y), sources)
    for batch in data[3:]:
        load(batch)
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-6)
    assert ours.stats() == pytest.approx(other.stats(), rel=1e-4, abs=1e-6)
    assert ours.stats()["steps"] == 8


@pytest.mark.parametrize("name", ON_THE_DEVICE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_fused_base_skips_nonfinite_steps_without_anybody_waiting(name: str, bad: float) -> None:
    kwargs, sources = STATEFUL[name]
    model, twin = small_model().cuda(), small_model().cuda()
    ours, other = (TargetSkewedOptimizer(two_groups(net), Adam, fused=True, **kwargs) for net in (model, twin))
    data = batches(8)
    lag = kwargs.get("lag", 1)
    for batch in data[: 2 * lag]:
        one_round(model, ours, batch, sources)
        one_round(twin, other, batch, sources)
    before, records = weights(model), ours.skew_state.records.clone()
    broken = (data[0][0] * bad, data[0][1])
    with no_waiting():
        one_round(model, ours, broken, sources)
    assert equal(weights(model), before)
    assert ours.stats()["skipped_steps"] == 1
    assert ours.stats()["steps"] == other.stats()["steps"]
    assert torch.equal(ours.skew_state.records, records)
    assert not hasattr(ours.base, "found_inf")
    if lag == 1:
        one_round(model, ours, data[7], sources)
        one_round(twin, other, data[7], sources)
        assert equal(weights(model), weights(twin))


@pytest.mark.parametrize("what", ["skip", "raise"])
def test_other_bases_look_for_nonfinite_gradients_if_told_to(what: str) -> None:
    model = small_model().cuda()
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, on_nonfinite=what)
    before = weights(model)
    batch = batches(1)[0]
    broken = (batch[0] * float("nan"), batch[1])
    if what == "raise":
        with pytest.raises(RuntimeError, match="nan or inf in the gradient"):
            one_round(model, optimizer, broken)
    else:
        one_round(model, optimizer, broken)
        assert optimizer.stats()["skipped_steps"] == 1
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_device_trains_as_the_cpu_does(name: str) -> None:
    kwargs, sources = STATEFUL[name]
    here, there = small_model(), small_model().cuda()
    optimizers = [TargetSkewedOptimizer(two_groups(net), SGD, **{**kwargs}) for net in (here, there)]
    for x, y in batches(6):
        one_round(here, optimizers[0], (x.cpu(), y.cpu()), sources)
        one_round(there, optimizers[1], (x, y), sources)
    torch.testing.assert_close([w.cpu() for w in weights(there)], weights(here), rtol=1e-3, atol=1e-4)
    assert optimizers[1].stats()["conflict_rate"] == optimizers[0].stats()["conflict_rate"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_filters_give_on_the_device_what_they_give_on_the_cpu(dtype: torch.dtype, in_place: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2**20 + 7,), (300, 300), (), (2**12,)]
    gradients = [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(3)]
    scopes, weighing = [0, 1, 0, 2, 1], [torch.tensor([1.0, -2.0, 0.5]), 0.5, torch.tensor([0.1, 3.0, 1.0])]
    there = [[t.cuda() for t in g] for g in gradients]
    for kwargs in ({}, {"scopes": scopes, "num_scopes": 4}):
        expected = gramian(*gradients, **kwargs)
        size = float(expected.abs().max())
        actual = gramian(*there, **kwargs)
        assert actual.is_cuda
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-6 * size)
    expected_sum = combine(weighing, *[[t.clone() for t in g] for g in gradients], scopes=scopes)
    actual_sum = combine(
        [w.cuda() if isinstance(w, Tensor) else w for w in weighing], *there, scopes=scopes, in_place=in_place
    )
    torch.testing.assert_close([t.cpu() for t in actual_sum], expected_sum)
    assert all((a is b) == in_place for a, b in zip(actual_sum, there[-1], strict=True))


def test_gradients_may_lie_on_several_devices() -> None:
    s, t = ([torch.randn(4, generator=torch.Generator().manual_seed(k + i)) for i in range(2)] for k in (0, 7))
    expected, gram = skew(s, t, 0.7, 0.3)
    actual, mixed_gram = skew([s[0], s[1].cuda()], [t[0], t[1].cuda()], 0.7, 0.3)
    assert [g.device.type for g in actual if g is not None] == ["cpu", "cuda"]
    torch.testing.assert_close([g.cpu() for g in actual if g is not None], expected)
    assert gram is not None
    assert mixed_gram is not None
    torch.testing.assert_close(mixed_gram.cpu(), gram)


def test_a_checkpoint_of_the_device_is_loaded_on_the_cpu_and_back() -> None:
    there, here = small_model().cuda(), small_model()
    first = TargetSkewedOptimizer(there.parameters(), Adam, normal="ema", balance=0.5)
    for batch in batches(3):
        one_round(there, first, batch)
    here.load_state_dict(there.state_dict())
    second = TargetSkewedOptimizer(here.parameters(), Adam, normal="ema", balance=0.5)
    second.load_state_dict(first.state_dict())
    assert second.stats() == pytest.approx(first.stats())
    assert not second.skew_state.records.is_cuda
    again = small_model().cuda()
    third: Optimizer = TargetSkewedOptimizer(again.parameters(), Adam, normal="ema", balance=0.5)
    third.load_state_dict(second.state_dict())
    assert third.skew_state.records.is_cuda
    assert all(normal.is_cuda for normal in third.skew_state.normals() if normal is not None)


def test_a_gradient_scaler_skips_and_unscales_as_on_the_cpu() -> None:
    model = small_model().cuda()
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam, preset="paper", fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
    before = weights(model)
    for bad in (True, False):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            source_loss, target_loss = losses(model, 0)
        optimizer.backward(scaler.scale(source_loss * (float("inf") if bad else 1.0)), scaler.scale(target_loss))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert equal(weights(model), before) == bad
    assert scaler.get_scale() == 2.0**7
    assert optimizer.stats()["steps"] == 1
