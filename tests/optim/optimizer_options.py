"""The one table of option combinations that every contract test of the optimizer runs over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from tsjt_pyg.optim import TargetSkewedOptimizer


def small_model(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model


def losses(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
    """Source and target loss of one step, on data that differ from step to step and pull apart."""
    generator = torch.Generator().manual_seed(1000 + step)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    return (model(x) - y).square().mean(), (model(x * 0.9) + y).square().mean()


def two_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]


@dataclass
class Option:
    name: str
    base: Callable[..., Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    params: Callable[[Any], Any] = lambda model: model.parameters()

    def plain(self, model: nn.Module) -> Optimizer:
        return self.base(self.params(model), **self._fresh_kwargs())

    def skewed(self, model: nn.Module, **kwargs: Any) -> TargetSkewedOptimizer:
        return TargetSkewedOptimizer(self.params(model), base=self.base, **self._fresh_kwargs(), **kwargs)

    def _fresh_kwargs(self) -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in self.kwargs.items()}


OPTIONS = [
    Option("sgd", SGD, {"lr": 0.1}),
    Option("sgd-momentum", SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    Option("adam", Adam, {"lr": 0.01}),
    Option("adam-amsgrad-decay", Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    Option("adam-foreach", Adam, {"lr": 0.01, "foreach": True}),
    Option("adam-fused", Adam, {"lr": 0.01, "fused": True}),
    Option("adam-tensor-lr", Adam, {"lr": torch.tensor(0.01)}),
    Option("adam-groups", Adam, {"lr": 0.01}, two_groups),
    Option("adam-named", Adam, {"lr": 0.01}, lambda model: model.named_parameters()),
    Option("adam-partial", partial(Adam, betas=(0.8, 0.9)), {"lr": 0.01}),
    Option("adamw", AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    Option("rmsprop", RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    Option("adagrad", Adagrad, {"lr": 0.05}),
    Option("nadam", NAdam, {"lr": 0.01}),
]


def train(model: nn.Module, optimizer: TargetSkewedOptimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        optimizer.backward(*losses(model, step))
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def raw_gradients(model: nn.Module, loss: Tensor, retain_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=retain_graph))


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
