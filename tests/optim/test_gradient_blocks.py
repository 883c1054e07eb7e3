"""The two gradients: gathered in blocks, filtered as soon as both are there, one ordinary ``.grad`` outside."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from optimizer_options import equal, gradients, losses, raw_gradients, small_model, train, weights
from torch import Tensor, nn
from torch.optim import SGD, SparseAdam

from tsjt_pyg.optim import TargetSkewedOptimizer, skew


def optimizer_for(model: nn.Module) -> TargetSkewedOptimizer:
    return TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, gamma_source=0.7, gamma_target=0.3)


def filtered(sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    return skew(sources, targets, 0.7, 0.3)[0]


def assert_close(actual: list, expected: list) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def conflicting(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    source_loss, target_loss = losses(model, 0)
    g_s, g_t = raw_gradients(model, source_loss), raw_gradients(model, target_loss)
    assert sum((s * t).sum() for s, t in zip(g_s, g_t, strict=True)) < 0
    return g_s, g_t


@pytest.mark.parametrize("order", ["st", "ts"])
def test_grad_is_filtered_on_leaving_the_second_block_in_either_order(model: nn.Module, order: str) -> None:
    optimizer, (g_s, g_t) = optimizer_for(model), conflicting(model)
    blocks = {"s": (optimizer.source, 0, g_s), "t": (optimizer.target, 1, g_t)}
    for i, kind in enumerate(order):
        block, which, gradient = blocks[kind]
        with block():
            assert gradients(model) == [None] * 4
            losses(model, 0)[which].backward()
        assert equal(gradients(model), gradient if i == 0 else filtered(g_s, g_t))


@pytest.mark.parametrize("order", [*sorted(set(itertools.permutations("sstt"))), tuple("stststst"), tuple("tsss")])
def test_blocks_accumulate_and_every_exit_gives_the_filter_of_what_is_there(
    model: nn.Module, order: tuple[str, ...]
) -> None:
    optimizer = optimizer_for(model)
    sums: dict[str, list[Tensor]] = {}
    for step, kind in enumerate(order):
        which = "st".index(kind)
        with optimizer.source() if kind == "s" else optimizer.target():
            losses(model, step)[which].backward()
        new = raw_gradients(model, losses(model, step)[which])
        sums[kind] = new if kind not in sums else [a + b for a, b in zip(sums[kind], new, strict=True)]
        assert_close(gradients(model), filtered(sums["s"], sums["t"]) if len(sums) == 2 else sums[kind])


def test_gradients_that_autograd_puts_into_one_place_are_not_written_twice() -> None:
    p, q = (nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(2))

    def loss(to: float) -> Tensor:
        return (p.unsqueeze(0) + q.unsqueeze(0) - to).square().sum()

    g_s, g_t = (list(torch.autograd.grad(loss(to), [p, q])) for to in (9.0, -5.0))
    expected = filtered([g.clone() for g in g_s], [g.clone() for g in g_t])
    loss(0.0).backward()
    assert p.grad.data_ptr() == q.grad.data_ptr()
    optimizer = TargetSkewedOptimizer([p, q], SGD, lr=0.1, gamma_source=0.7, gamma_target=0.3)
    optimizer.zero_grad()
    optimizer.backward(loss(9.0), loss(-5.0))
    assert_close([p.grad, q.grad], expected)


def test_several_backward_passes_in_one_block_add_up(model: nn.Module) -> None:
    optimizer, (g_s, g_t) = optimizer_for(model), conflicting(model)
    with optimizer.source():
        losses(model, 0)[0].backward()
        losses(model, 0)[0].backward()
    with optimizer.target():
        losses(model, 0)[1].backward()
    assert_close(gradients(model), filtered([2 * g for g in g_s], g_t))


def test_backward_is_the_two_blocks_in_one_call(model: nn.Module) -> None:
    optimizer, (g_s, g_t) = optimizer_for(model), conflicting(model)
    optimizer.backward(*losses(model, 0))
    assert equal(gradients(model), filtered(g_s, g_t))


@pytest.mark.parametrize("shared", ["forward", "first layer", "the loss itself"])
def test_backward_works_when_the_losses_share_a_graph(model: nn.Sequential, shared: str) -> None:
    def make() -> tuple[Tensor, Tensor]:
        x = torch.arange(12.0).view(4, 3) / 10
        hidden = model[1](model[0](x))
        if shared == "first layer":
            return model[2](hidden).square().mean(), (hidden - 1).square().mean()
        y = model[2](hidden)
        loss = y.square().mean()
        return loss, (loss if shared == "the loss itself" else (y - 1).square().mean())

    source_loss, target_loss = make()
    params = list(model.parameters())
    g_s = torch.autograd.grad(source_loss, params, retain_graph=True)
    g_t = torch.autograd.grad(target_loss, params, allow_unused=True)
    optimizer = optimizer_for(model)
    optimizer.backward(*make())
    assert_close(gradients(model), filtered(list(g_s), list(g_t)))


def test_separate_graphs_are_freed_one_after_the_other(model: nn.Module) -> None:
    source_loss, target_loss = losses(model, 0)
    optimizer_for(model).backward(source_loss, target_loss)
    for loss in (source_loss, target_loss):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()


def test_clipping_and_the_base_see_the_filtered_gradient(model: nn.Module) -> None:
    optimizer, (g_s, g_t), before = optimizer_for(model), conflicting(model), weights(model)
    expected = filtered(g_s, g_t)
    optimizer.backward(*losses(model, 0))
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    total = torch.cat([g.flatten() for g in expected]).norm()
    assert norm.item() == pytest.approx(total.item(), rel=1e-5)
    optimizer.step()
    assert_close(weights(model), [b - 0.1 * g * (0.1 / total) for b, g in zip(before, expected, strict=True)])


def test_a_parameter_with_one_gradient_keeps_it_and_one_without_any_stays_none() -> None:
    a, b, c, d, frozen = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(5))
    frozen.requires_grad_(False)
    optimizer = TargetSkewedOptimizer([a, b, c, d, frozen], SGD, lr=0.1, gamma_source=0.7, gamma_target=0.3)
    before = frozen.clone()
    with optimizer.source():
        (-a.sum() + 100 * b.sum() + frozen.sum()).backward()
    with optimizer.target():
        (a.sum() + 7 * c.sum()).backward()
    torch.testing.assert_close(a.grad, torch.full((2,), 0.3))
    torch.testing.assert_close(b.grad, torch.full((2,), 100.0), rtol=0, atol=0)
    torch.testing.assert_close(c.grad, torch.full((2,), 7.0), rtol=0, atol=0)
    assert d.grad is None
    assert frozen.grad is None
    optimizer.step()
    assert optimizer.stats()["cosine"] == pytest.approx(-1)
    assert torch.equal(frozen, before)


def test_no_common_parameter_means_nothing_to_filter() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TargetSkewedOptimizer([a, b], SGD, lr=0.1, gamma_source=0.5)
    optimizer.backward(a.sum(), -b.sum())
    assert torch.equal(a.grad, torch.ones(2))
    assert torch.equal(b.grad, -torch.ones(2))
    optimizer.step()
    assert optimizer.stats()["conflict_rate"] == 0


def test_zero_grad_and_step_forget_both_gradients(model: nn.Module) -> None:
    g_t = raw_gradients(model, losses(model, 1)[1])
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.0)
    for forget in (optimizer.zero_grad, optimizer.step):
        with optimizer.source():
            losses(model, 0)[0].backward()
        forget()
        for p in model.parameters():
            p.grad = None
        with optimizer.target():
            losses(model, 1)[1].backward()
        assert equal(gradients(model), g_t)
        optimizer.zero_grad()


def test_the_models_own_zero_grad_clears_the_round_too(model: nn.Module) -> None:
    optimizer = optimizer_for(model)
    with optimizer.source():
        losses(model, 0)[0].backward()
    model.zero_grad()
    with optimizer.target():
        losses(model, 1)[1].backward()
    assert equal(gradients(model), raw_gradients(model, losses(model, 1)[1]))


@pytest.mark.parametrize("kind", ["source", "target"])
def test_an_exception_in_a_block_ends_the_round(model: nn.Module, twin: nn.Module, kind: str) -> None:
    optimizer, before = optimizer_for(model), weights(model)
    with optimizer.source():
        losses(model, 0)[0].backward()

    def fail_half_way() -> None:
        with getattr(optimizer, kind)():
            losses(model, 0)[1].backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert gradients(model) == [None] * 4
    assert equal(weights(model), before)
    with optimizer.target():
        losses(model, 1)[1].backward()
    assert equal(gradients(model), raw_gradients(model, losses(model, 1)[1]))
    train(model, optimizer, range(2))
    train(twin, optimizer_for(twin), range(2))
    assert equal(weights(model), weights(twin))


def test_nesting_blocks_is_an_error_and_so_is_a_step_inside(model: nn.Module) -> None:
    optimizer = optimizer_for(model)
    with pytest.raises(RuntimeError, match=r"target\(\) was entered inside source\(\)"), optimizer.source():
        optimizer.target().__enter__()
    with pytest.raises(RuntimeError, match=r"step\(\) was called inside target\(\)"), optimizer.target():
        optimizer.step()
    optimizer.backward(*losses(model, 0))
    optimizer.step()


def test_a_backward_pass_before_the_blocks_is_added_unfiltered(model: nn.Module) -> None:
    optimizer, (g_s, g_t) = optimizer_for(model), conflicting(model)
    extra = raw_gradients(model, losses(model, 5)[0])
    losses(model, 5)[0].backward()
    optimizer.backward(*losses(model, 0))
    assert_close(gradients(model), [e + g for e, g in zip(extra, filtered(g_s, g_t), strict=True)])
    with optimizer.source():
        losses(model, 0)[0].backward()
    twice = [2 * g for g in g_s]
    assert_close(gradients(model), [e + g for e, g in zip(extra, filtered(twice, g_t), strict=True)])
    optimizer.zero_grad()
    optimizer.backward(*losses(model, 0))
    assert equal(gradients(model), filtered(g_s, g_t))


def test_a_backward_pass_between_rounds_of_blocks_starts_a_new_round_on_top(model: nn.Module) -> None:
    optimizer, (g_s, g_t) = optimizer_for(model), conflicting(model)
    extra = raw_gradients(model, losses(model, 5)[0])
    optimizer.backward(*losses(model, 0))
    losses(model, 5)[0].backward()
    first = [e + g for e, g in zip(extra, filtered(g_s, g_t), strict=True)]
    assert_close(gradients(model), first)
    g_s, g_t = (raw_gradients(model, loss) for loss in losses(model, 1))
    optimizer.backward(*losses(model, 1))
    assert_close(gradients(model), [e + g for e, g in zip(first, filtered(g_s, g_t), strict=True)])


def test_gradients_changed_between_blocks_are_warned_about_once(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = optimizer_for(model)
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.source():
            losses(model, 0)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with optimizer.target():
            losses(model, 0)[1].backward()
        optimizer.step()
    assert caplog.text.count("changed since source() was left") == 1
    assert "target() begins anew" in caplog.text


def test_without_zero_grad_after_a_step_gradients_pile_up_as_in_torch(model: nn.Module) -> None:
    optimizer = optimizer_for(model)
    optimizer.backward(*losses(model, 0))
    left = gradients(model)
    optimizer.step()
    g_s, g_t = (raw_gradients(model, loss) for loss in losses(model, 1))
    optimizer.backward(*losses(model, 1))
    assert_close(gradients(model), [a + b for a, b in zip(left, filtered(g_s, g_t), strict=True)])


def test_gradients_that_are_views_of_a_bucket_are_copied(model: nn.Module) -> None:
    """As under DDP(gradient_as_bucket_view=True): each backward pass overwrites the gradients of the one before."""
    params, bucket = list(model.parameters()), torch.zeros(sum(p.numel() for p in model.parameters()))
    views = [v.view_as(p) for v, p in zip(bucket.split([p.numel() for p in params]), params, strict=True)]

    def backward(loss: Tensor) -> None:
        loss.backward()
        for p, view in zip(params, views, strict=True):
            if p.grad is not view:
                view.copy_(p.grad)
            p.grad = view

    optimizer, other = optimizer_for(model), optimizer_for(twin := small_model())
    backward(losses(model, 9)[0])  # outside the blocks
    losses(twin, 9)[0].backward()
    for step in range(2):
        with optimizer.source():
            backward(losses(model, step)[0])
        with optimizer.target():
            backward(losses(model, step)[1])
        other.backward(*losses(twin, step))
    assert equal(gradients(model), gradients(twin))


def test_sparse_gradients_stay_sparse() -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    optimizer = TargetSkewedOptimizer(embedding.parameters(), SparseAdam, gamma_source=0.7, gamma_target=0.3)
    g_s, g_t = torch.zeros(6, 3), torch.zeros(6, 3)
    g_s[[0, 1]], g_t[[1, 2]] = -1.0, 2.0
    g_s[1] *= 2  # row 1 is looked up twice
    optimizer.backward(-embedding(torch.tensor([0, 1, 1])).sum(), 2 * embedding(torch.tensor([1, 2])).sum())
    assert embedding.weight.grad.is_sparse
    torch.testing.assert_close(embedding.weight.grad.to_dense(), filtered([g_s], [g_t])[0])
    before = embedding.weight.detach().clone()
    optimizer.step()
    changed = (embedding.weight != before).any(1)
    assert changed.tolist() == [True, True, True, False, False, False]


def bytes_alive() -> int:
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    storages = [
        t.untyped_storage() for t in tensors if t.layout == torch.strided
    ]  # sparse ones of other tests have none
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize("shapes", [[(30, 10)] * 20, [(300, 100)] * 2], ids=["packed", "each by itself"])
def test_one_copy_of_the_gradients_beyond_grad_until_the_step(shapes: list[tuple[int, int]]) -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = TargetSkewedOptimizer(params, SGD, lr=0.1)
    size = sum(4 * p.numel() for p in params)
    for _ in range(2):
        optimizer.zero_grad()
        start = bytes_alive()
        for n, block in enumerate([optimizer.source, optimizer.target, optimizer.source, optimizer.target]):
            with block():
                sum((p * p).sum() for p in params).backward()
            assert bytes_alive() - start == pytest.approx(min(n + 1, 2) * size, abs=2000)
        optimizer.step()
        assert bytes_alive() - start == pytest.approx(size, abs=2000)  # .grad
