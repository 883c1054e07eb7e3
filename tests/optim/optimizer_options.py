"""The one table of option combinations that every contract test of the optimizer runs over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
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
    like = next(model.parameters()) if isinstance(model, nn.Module) else torch.empty(0)
    x, y = (torch.randn(shape, generator=generator).to(like) for shape in ((8, 3), (8, 2)))
    return (model(x) - y).square().mean(), (model(x * 0.9) + y).square().mean()


def two_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]


@dataclass
class Option:
    name: str
    base: Callable[..., Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    params: Callable[[Any], Any] = lambda model: model.parameters()
    device: str = "cpu"
    #: The package that has the base, if it is another one than torch.
    package: str | None = None

    def skip_unless_possible(self) -> None:
        if self.package is not None and find_spec(self.package) is None:
            pytest.skip(f"{self.name} needs {self.package}, which is not installed")
        if self.device == "cuda" and not torch.cuda.is_available():
            pytest.skip(f"{self.name} needs a CUDA device")

    def plain(self, model: nn.Module) -> Optimizer:
        return in_training_mode(self.base(self.params(model.to(self.device)), **self._fresh_kwargs()))

    def skewed(self, model: nn.Module, **kwargs: Any) -> TargetSkewedOptimizer:
        params = self.params(model.to(self.device))
        optimizer = TargetSkewedOptimizer(params, base=self.base, **self._fresh_kwargs(), **kwargs)
        return in_training_mode(optimizer)

    def _fresh_kwargs(self) -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in self.kwargs.items()}


def in_training_mode(optimizer: Any) -> Any:
    """The optimizer; schedule-free ones keep two sets of weights and have to be told which is wanted."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def schedule_free(name: str) -> Callable[..., Optimizer]:
    """An optimizer of the package schedulefree, which is imported when one is built."""

    def build(params: Any, **kwargs: Any) -> Optimizer:
        import schedulefree

        built: Optimizer = getattr(schedulefree, name)(params, **kwargs)
        return built

    return build


#: Every option that remembers something from step to step, as arguments and names of the sources.
STATEFUL: dict[str, tuple[dict[str, Any], tuple[str | None, ...]]] = {
    "the paper's": ({}, (None,)),
    "ema": ({"normal": "ema"}, (None,)),
    "balance": ({"balance": 0.5, "gamma_source": 0.5}, (None,)),
    "vaccine": ({"filter": "vaccine", "ema_rate": 0.5}, (None,)),
    "lag": ({"lag": 3}, (None,)),
    "several sources": ({"gamma_source": {"pems04": 0.3, "los": 0.7}}, ("pems04", "los")),
    "tensor ema gate": ({"scope": "tensor", "normal": "ema", "filter": "gate", "balance": 0.3}, (None,)),
    "group vaccine lag": ({"scope": "group", "filter": "vaccine", "lag": 2}, (None,)),
    "held out": ({"normal": "held_out", "filter": "cosine_gate", "balance": 1.0}, (None,)),
    "everything": (
        {
            "filter": "vaccine",
            "scope": "tensor",
            "normal": "ema",
            "balance": 0.5,
            "max_kappa": 2.0,
            "ema_rate": 0.3,
            "lag": 2,
            "gamma_target": 0.4,
        },
        ("pems04", "los", "jonas"),
    ),
    "sign": ({"filter": "sign", "balance": 0.5, "normal": "ema"}, ("pems04", "los")),
}


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
    Option("adamw-schedulefree", schedule_free("AdamWScheduleFree"), {"lr": 0.01}, package="schedulefree"),
    Option(
        "adamw-schedulefree-decay",
        schedule_free("AdamWScheduleFree"),
        {"lr": 0.01, "weight_decay": 0.1, "warmup_steps": 3},
        two_groups,
        package="schedulefree",
    ),
    Option("sgd-schedulefree", schedule_free("SGDScheduleFree"), {"lr": 0.1}, package="schedulefree"),
    Option("adam-capturable", Adam, {"lr": 0.01, "capturable": True}, device="cuda"),
    Option("adam-fused-cuda", Adam, {"lr": 0.01, "fused": True}, device="cuda"),
]


def train(
    model: nn.Module, optimizer: TargetSkewedOptimizer, steps: range, sources: Sequence[str | None] = (None,)
) -> None:
    """Some steps with these sources, and with held-out data where the options ask for them."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, optimizer, step, sources)
        optimizer.step()


def backward(
    model: nn.Module, optimizer: TargetSkewedOptimizer, step: int, sources: Sequence[str | None] = (None,)
) -> None:
    if optimizer.skew_filter.normal == "held_out":
        with optimizer.held_out():
            losses(model, step + 500)[1].backward()
    of_sources, target_loss = round_of(model, step, sources)
    optimizer.backward(of_sources[None] if sources == (None,) else of_sources, target_loss)


def round_of(model: nn.Module, step: int, sources: Sequence[str | None]) -> tuple[dict[str | None, Tensor], Tensor]:
    """The losses of several sources, each with data of its own, and that of the target."""
    of_sources = {name: losses(model, step + 100 * i)[0] for i, name in enumerate(sources)}
    return of_sources, losses(model, step)[1]


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def raw_gradients(model: nn.Module, loss: Tensor, retain_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=retain_graph))


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
