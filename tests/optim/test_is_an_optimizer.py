"""Whatever torch code does with an Optimizer, it can do with ours, around every base of the table."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from optimizer_options import Option, equal, gradients, losses, raw_gradients, small_model, train, weights
from torch import nn
from torch.optim import Optimizer

from tsjt_pyg.optim import skew


def test_is_an_optimizer_whose_groups_state_and_defaults_are_the_bases(option: Option, model: nn.Module) -> None:
    optimizer = option.skewed(model)
    train(model, optimizer, range(1))
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults
    for name in ("param_groups", "state", "defaults"):
        replacement = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, replacement)
        assert getattr(optimizer.base, name) is replacement
    assert not hasattr(optimizer, "optimizer")
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_without_a_source_gradient_every_step_is_the_bases(option: Option, model: nn.Module, twin: nn.Module) -> None:
    ours, plain = option.skewed(model), option.plain(twin)
    for step in range(4):
        for optimizer, net in ((ours, model), (plain, twin)):
            optimizer.zero_grad()
            losses(net, step)[1].backward()
            optimizer.step()
    for step in range(4, 6):
        ours.zero_grad()
        with ours.target():
            losses(model, step)[1].backward()
        ours.step()
        plain.zero_grad()
        losses(twin, step)[1].backward()
        plain.step()
    assert equal(weights(model), weights(twin))
    assert ours.stats()["steps"] == 6
    assert ours.stats()["conflict_rate"] == 0


def test_with_both_gradients_the_base_steps_along_the_filtered_one(
    option: Option, model: nn.Module, twin: nn.Module
) -> None:
    ours, plain = option.skewed(model, gamma_source=0.7, gamma_target=0.3), option.plain(twin)
    for step in range(4):
        ours.zero_grad()
        ours.backward(*losses(model, step))
        ours.step()
        source_loss, target_loss = losses(twin, step)
        filtered, _ = skew(raw_gradients(twin, source_loss), raw_gradients(twin, target_loss), 0.7, 0.3)
        for p, g in zip(twin.parameters(), filtered, strict=True):
            p.grad = g
        plain.step()
    assert equal(weights(model), weights(twin))
    assert ours.stats()["conflict_rate"] > 0


def test_a_step_without_any_gradient_changes_nothing(option: Option, model: nn.Module) -> None:
    optimizer, before = option.skewed(model), weights(model)
    optimizer.step(closure=None)
    assert equal(weights(model), before)


def test_resumes_bit_for_bit_from_a_file_loaded_with_weights_only(
    option: Option, model: nn.Module, twin: nn.Module
) -> None:
    ours = option.skewed(model)
    train(model, ours, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": ours.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert set(saved["optimizer"]) == {"state", "param_groups"}
    twin.load_state_dict(saved["model"])
    resumed = option.skewed(twin)
    resumed.load_state_dict(state_dict=saved["optimizer"])
    assert resumed.stats() == ours.stats()
    train(model, ours, range(3, 6))
    train(twin, resumed, range(3, 6))
    assert equal(weights(model), weights(twin))
    assert resumed.stats() == ours.stats()
    assert resumed.stats()["steps"] == 6


def test_state_dicts_go_back_and_forth_with_a_plain_base(option: Option, model: nn.Module, twin: nn.Module) -> None:
    ours, plain = option.skewed(model), option.plain(twin)
    train(model, ours, range(3))
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    again = small_model()
    again.load_state_dict(model.state_dict())
    back = option.skewed(again)
    pure = option.plain(small_model())
    pure.load_state_dict(copy.deepcopy(ours.base.state_dict()))
    for group in pure.param_groups:
        for key in [key for key in group if key.startswith("skew_")]:
            del group[key]
    back.load_state_dict(pure.state_dict())
    assert back.stats()["steps"] == 0
    for optimizer, net in ((ours, model), (plain, twin), (back, again)):
        optimizer.zero_grad()
        losses(net, 3)[1].backward()
        optimizer.step()
    assert equal(weights(model), weights(twin))
    assert equal(weights(model), weights(again))
    assert back.stats()["steps"] == 1


def test_deepcopy_and_pickle_continue_like_the_original(option: Option, model: nn.Module) -> None:
    ours = option.skewed(model, gamma_source=0.7, on_nonfinite="raise")
    train(model, ours, range(2))
    copies = [copy.deepcopy((model, ours)), pickle.loads(pickle.dumps((model, ours)))]
    train(model, ours, range(2, 4))
    for other_model, other in copies:
        assert (other.gamma_source, other.on_nonfinite) == (0.7, "raise")
        assert other.param_groups is other.base.param_groups
        train(other_model, other, range(2, 4))
        assert equal(weights(model), weights(other_model))
        assert other.stats() == ours.stats()


def test_train_and_eval_reach_a_base_that_has_them(option: Option, model: nn.Module, twin: nn.Module) -> None:
    ours, plain = option.skewed(model), option.plain(twin)
    if not hasattr(plain, "eval"):
        assert not hasattr(ours, "eval")
        assert not hasattr(ours, "train")
        return
    for step in range(3):
        for optimizer, net in ((ours, model), (plain, twin)):
            optimizer.zero_grad()
            losses(net, step)[1].backward()
            optimizer.step()
    in_training = weights(model)
    ours.eval()
    plain.eval()
    assert not equal(weights(model), in_training)
    assert equal(weights(model), weights(twin))
    ours.train()
    plain.train()
    assert equal(weights(model), weights(twin))


def test_a_closure_runs_once_and_first(option: Option, model: nn.Module, twin: nn.Module) -> None:
    ours, other = option.skewed(model), option.skewed(twin)
    calls = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        ours.zero_grad()
        source_loss, target_loss = losses(model, 0)
        ours.backward(source_loss, target_loss)
        return target_loss

    with torch.no_grad():
        loss = ours.step(closure)
    train(twin, other, range(1))
    assert calls == [1]
    assert loss is not None
    assert loss.item() == losses(small_model().to(option.device), 0)[1].item()
    assert equal(weights(model), weights(twin))


def test_zero_grad_clears_gradients_or_fills_them_with_zeros(option: Option, model: nn.Module) -> None:
    optimizer = option.skewed(model)
    optimizer.backward(*losses(model, 0))
    optimizer.zero_grad(set_to_none=False)
    assert all(g is not None and not g.any() for g in gradients(model))
    optimizer.zero_grad()
    assert gradients(model) == [None] * 4


def test_filled_with_zeros_instead_of_cleared_nothing_else_changes(
    option: Option, model: nn.Module, twin: nn.Module
) -> None:
    ours, other = option.skewed(model), option.skewed(twin)
    train(model, ours, range(3))
    for step in range(3):
        other.zero_grad(set_to_none=False)
        other.backward(*losses(twin, step))
        other.step()
    assert equal(weights(model), weights(twin))


def test_repr_names_base_gammas_and_groups_but_not_the_record(option: Option, model: nn.Module) -> None:
    text = repr(option.skewed(model, preset="paper"))
    assert "gamma_source: 0.001" in text
    assert "gamma_target: 0.2" in text
    assert "Parameter Group 0\n" in text
    assert "    lr: " in text
    assert "skew_" not in text
