"""How the optimizer is built: bases, parameters, presets, and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from optimizer_options import equal, losses, small_model, train, weights
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from tsjt_pyg.optim import TargetSkewedOptimizer


def test_base_may_be_a_class_a_partial_or_an_instance() -> None:
    results = []
    for make in (
        lambda model: TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1, momentum=0.9),
        lambda model: TargetSkewedOptimizer(model.parameters(), partial(SGD, momentum=0.9), lr=0.1),
        lambda model: TargetSkewedOptimizer(model.parameters(), SGD(model.parameters(), lr=0.1, momentum=0.9)),
        lambda model: TargetSkewedOptimizer(None, SGD(model.parameters(), lr=0.1, momentum=0.9)),
        lambda model: TargetSkewedOptimizer(
            model.named_parameters(), SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        ),
        lambda model: TargetSkewedOptimizer(
            [{"params": model[0].parameters()}, {"params": model[2].parameters()}],
            SGD(model.parameters(), lr=0.1, momentum=0.9),
        ),
    ):
        model = small_model()
        train(model, make(model), range(3))
        results.append(weights(model))
    assert all(equal(results[0], other) for other in results[1:])


def test_the_default_base_is_adam(model: nn.Module) -> None:
    assert type(TargetSkewedOptimizer(model.parameters()).base) is Adam


def test_gammas_come_from_the_default_the_preset_or_the_caller(model: nn.Module) -> None:
    def gammas(**kwargs: object) -> tuple[float, float]:
        optimizer = TargetSkewedOptimizer(model.parameters(), **kwargs)
        return optimizer.gamma_source, optimizer.gamma_target

    assert gammas() == (1.0, 1.0)
    assert gammas(preset="paper") == (0.001, 0.2)
    assert gammas(preset="paper", gamma_source=0.001, gamma_target=0.2) == (0.001, 0.2)
    assert gammas(gamma_source=0, gamma_target=2) == (0.0, 2.0)
    assert gammas(gamma_source=0.5) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"preset": "papers"}, ValueError, r"preset must be one of \['paper'\] or None, but is 'papers'"),
        ({"preset": "paper", "gamma_source": 1.0}, ValueError, r"gamma_source=1.0 contradicts preset='paper'.*0.001"),
        ({"preset": "paper", "gamma_target": 0.3}, ValueError, r"gamma_target=0.3 contradicts preset='paper'.*0.2"),
        ({"gamma_source": -1}, ValueError, "gamma_source must be finite and not negative, but is -1"),
        ({"gamma_target": float("nan")}, ValueError, "gamma_target must be finite and not negative, but is nan"),
        ({"gamma_target": "1"}, TypeError, "gamma_target must be a number or None, but is '1'"),
        ({"gamma_source": True}, TypeError, "gamma_source must be a number or None, but is True"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be 'skip', 'raise' or None, but is 'ignore'"),
        ({"base": 3}, TypeError, "base must be a torch.optim.Optimizer class.*3 gave int"),
        ({"base": lambda params: "x"}, TypeError, "base must be a torch.optim.Optimizer class.*gave str"),
        ({"base": LBFGS}, TypeError, "LBFGS evaluates the loss itself"),
        ({"base": TargetSkewedOptimizer}, TypeError, "would filter twice"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
)
def test_refuses_wrong_arguments_and_says_why(
    model: nn.Module, kwargs: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TargetSkewedOptimizer(model.parameters(), **kwargs)


def test_refuses_an_instance_with_arguments_or_other_parameters(model: nn.Module, twin: nn.Module) -> None:
    base = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"base is an instance and takes no further arguments, but got \['lr'\]"):
        TargetSkewedOptimizer(model.parameters(), base, lr=0.1)
    with pytest.raises(ValueError, match="of 4 given and 4 held, 0 are the same"):
        TargetSkewedOptimizer(twin.parameters(), base)
    with pytest.raises(TypeError, match="params must be given unless base is an optimizer instance"):
        TargetSkewedOptimizer(None, SGD)


def test_named_parameters_keep_their_names(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.named_parameters(), Adam)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [n for n, _ in model.named_parameters()]


def test_an_added_group_reaches_the_base_and_is_filtered(model: nn.Sequential) -> None:
    class Recording(SGD):
        def add_param_group(self, param_group: dict) -> None:
            super().add_param_group(param_group)
            added.append(len(self.param_groups))

    added: list[int] = []
    optimizer = TargetSkewedOptimizer(model[0].parameters(), Recording, lr=0.1, gamma_source=0.0)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.2})
    assert added == [1, 2]
    source_loss, target_loss = losses(model, 0)
    expected = torch.autograd.grad(target_loss, list(model.parameters()), retain_graph=True)
    before = weights(model)
    optimizer.backward(source_loss, target_loss)
    optimizer.step()
    for p, b, g, lr in zip(model.parameters(), before, expected, (0.1, 0.1, 0.2, 0.2), strict=True):
        torch.testing.assert_close(p.detach(), b - lr * g)


def test_a_base_written_elsewhere_keeps_its_own_state_dict_methods(model: nn.Module) -> None:
    class Marked(Optimizer):
        def __init__(self, params: object) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data -= group["lr"]

        def state_dict(self) -> dict:
            return {**super().state_dict(), "mark": 1}

        def load_state_dict(self, state_dict: dict) -> None:
            calls.append(state_dict["mark"])
            super().load_state_dict(state_dict)

    calls: list[int] = []
    optimizer, before = TargetSkewedOptimizer(model.parameters(), Marked), weights(model)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [1]
    optimizer.step()
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.1)
