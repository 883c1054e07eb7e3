"""Random networks in float64 with losses that pull apart, and the gradients that autograd finds for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from tsjt_pyg.optim import TargetSkewedOptimizer

ACTIVATIONS = {"tanh": nn.Tanh, "softplus": nn.Softplus, "none": nn.Identity}


@dataclass
class Problem:
    """A float64 network with two losses, and the two gradients autograd finds for them."""

    model: nn.Module
    source_loss: Tensor
    target_loss: Tensor
    sources: list[Tensor]
    targets: list[Tensor]
    gamma_source: float
    gamma_target: float

    @property
    def dot(self) -> float:
        return float(flat(self.sources) @ flat(self.targets))

    @property
    def scale(self) -> float:
        """The size of the terms that the filter adds up, against which its rounding errors are measured."""
        n_s, n_t = np.linalg.norm(flat(self.sources)), np.linalg.norm(flat(self.targets))
        return float(self.gamma_source * n_s + self.gamma_target * n_t)


def flat(gradients: list[Tensor]) -> np.ndarray:
    return np.concatenate([g.detach().numpy().ravel() for g in gradients])


@st.composite
def networks(draw: st.DrawFn, max_layers: int = 3) -> tuple[nn.Sequential, torch.Generator]:
    """A network with random weights, and the generator that made them."""
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=max_layers + 1))
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    bias = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64), activation()]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, generator


def data(model: nn.Sequential, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, what one city wants of the network for them, and noise of the same shape."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    widths = (linear[0].in_features, linear[-1].out_features, linear[-1].out_features)
    x, y, noise = (torch.randn(7, width, generator=generator, dtype=torch.float64) for width in widths)
    return x, y, noise


@st.composite
def problems(draw: st.DrawFn, conflict: bool | None = None) -> Problem:
    model, generator = draw(networks())
    # From a target that wants the opposite of the source (-1) to one that wants the same (1).
    agreement = draw(st.floats(-1, 1))
    gammas = draw(st.sampled_from([(1.0, 1.0), (0.001, 0.2), (1.0, 0.0), (0.5, 3.0)]))
    x, y, noise = data(model, generator)
    source_loss = (model(x) - y).square().mean()
    target_loss = (model(x) - (agreement * y + 0.3 * noise)).square().mean() * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    if conflict:
        target_loss = (agreement - 1.5) * source_loss + 0.1 * target_loss
    params = list(model.parameters())
    sources = list(torch.autograd.grad(source_loss, params, retain_graph=True))
    targets = list(torch.autograd.grad(target_loss, params, retain_graph=True))
    problem = Problem(model, source_loss, target_loss, sources, targets, *gammas)
    assume(np.linalg.norm(flat(sources)) > 1e-6 and np.linalg.norm(flat(targets)) > 1e-6)
    if conflict:
        assume(problem.dot < 0)
    return problem


FILTERS = ("project", "gate", "cosine_gate", "sign", "vaccine")
SCOPES = ("global", "tensor", "group")
NORMALS = ("batch", "ema", "held_out")
TARGET, HELD_OUT = "target", "held_out"

#: One gradient: an entry a parameter, None where the loss does not reach it.
Gradient = list[Tensor | None]


@dataclass
class City:
    """How the losses of one city differ from those of the others."""

    agreement: float
    scale: float
    noise: int
    #: Positions of the parameters that its losses do not reach.
    detached: frozenset[int] = frozenset()


@dataclass
class Training:
    """A network, some cities, and the options and rounds of a training; its data depend on seed and round only."""

    model: nn.Sequential
    seed: int
    options: dict[str, Any]
    #: Positions of the parameters in every parameter group.
    groups: list[list[int]]
    cities: dict[str, City]
    #: For every round the cities that take part, in the order of their blocks.
    rounds: list[list[str]]
    #: Whether :meth:`play` calls ``backward()`` where that is possible, instead of opening blocks.
    in_one_call: bool
    #: Whether the data are the same in all rounds.
    repeated: bool = False

    @property
    def order(self) -> list[int]:
        """Positions of the parameters in the order of the groups, which is that of the optimizer."""
        return [i for group in self.groups for i in group]

    @property
    def scopes(self) -> list[int]:
        """For every parameter of the network its scope."""
        count = len(self.order)
        of_group = [next(k for k, group in enumerate(self.groups) if i in group) for i in range(count)]
        return {"global": [0] * count, "tensor": list(range(count)), "group": of_group}[self.options["scope"]]

    def source_names(self, step: int) -> list[str]:
        return [name for name in self.rounds[step] if name not in (TARGET, HELD_OUT)]

    def loss(self, step: int, name: str) -> Tensor:
        city = self.cities[name]
        x, y, _ = data(self.model, torch.Generator().manual_seed(self.seed + (0 if self.repeated else step)))
        noise = data(self.model, torch.Generator().manual_seed(city.noise))[2]
        weights = {
            key: p.detach() if i in city.detached else p for i, (key, p) in enumerate(self.model.named_parameters())
        }
        output = torch.func.functional_call(self.model, weights, (x,))
        return city.scale * (output - (city.agreement * y + 0.3 * noise)).square().mean()

    def gradient(self, step: int, name: str) -> Gradient:
        """What autograd finds for one loss alone."""
        params = list(self.model.parameters())
        return list(torch.autograd.grad(self.loss(step, name), params, allow_unused=True))

    def optimizer(self, lr: float = 0.0, **changes: Any) -> TargetSkewedOptimizer:
        params = list(self.model.parameters())
        groups = [{"params": [params[i] for i in group]} for group in self.groups]
        return TargetSkewedOptimizer(groups, SGD, lr=lr, **{**self.options, **changes})

    def play(self, optimizer: TargetSkewedOptimizer, step: int, factor: float = 1.0) -> Gradient:
        """The gradient that one round leaves in ``.grad``, before the step that ends it."""
        self.model.zero_grad()
        optimizer.zero_grad()
        names, sources = self.rounds[step], self.source_names(step)
        one_call = self.in_one_call and sources and TARGET in names
        for name in [HELD_OUT] * (HELD_OUT in names) if one_call else names:
            with block(optimizer, name):
                (factor * self.loss(step, name)).backward()
        if one_call:
            losses = {name: factor * self.loss(step, name) for name in sources}
            optimizer.backward(losses, factor * self.loss(step, TARGET))
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def run(self, factor: float = 1.0, **changes: Any) -> list[Gradient]:
        """The gradients of all rounds."""
        optimizer, gradients = self.optimizer(**changes), []
        for step in range(len(self.rounds)):
            gradients.append(self.play(optimizer, step, factor))
            optimizer.step()
        return gradients


def block(optimizer: TargetSkewedOptimizer, name: str) -> AbstractContextManager[None]:
    if name == TARGET:
        return optimizer.target()
    return optimizer.held_out() if name == HELD_OUT else optimizer.source(name)


@st.composite
def trainings(
    draw: st.DrawFn,
    filters: Sequence[str] = FILTERS,
    scopes: Sequence[str] = SCOPES,
    normals: Sequence[str] = NORMALS,
    lags: Sequence[int] = (1, 2, 3),
    balances: Sequence[float] = (0.0, 0.3, 1.0),
    max_kappas: Sequence[float | None] = (None, 0.1, 1.0),
    scales: Sequence[float] = (1e-3, 1.0, 1e3),
    max_sources: int = 3,
    max_rounds: int = 5,
    everywhere: bool = False,
) -> Training:
    """Any training, or one with some of the options only; ``everywhere`` lets every loss reach every parameter."""
    model, generator = draw(networks(max_layers=2))
    count = len(list(model.parameters()))
    rule = draw(st.sampled_from(filters))
    sources = [f"city {i}" for i in range(draw(st.integers(1, max_sources)))]
    options = {
        "filter": rule,
        "scope": draw(st.sampled_from(scopes)),
        "normal": draw(st.sampled_from(normals)),
        "balance": draw(st.sampled_from(balances)),
        "max_kappa": draw(st.sampled_from(max_kappas)) if rule in ("project", "vaccine") else None,
        "ema_rate": draw(st.sampled_from([0.1, 0.5, 1.0])),
        "lag": draw(st.sampled_from(lags)),
        "gamma_source": draw(st.sampled_from([1.0, 0.3, 0.0, {name: 0.2 + 0.5 * i for i, name in enumerate(sources)}])),
        "gamma_target": draw(st.sampled_from([1.0, 0.2, 0.0])),
    }
    of_group = [draw(st.integers(0, 2)) for _ in range(count)]
    groups = [members for k in range(3) if (members := [i for i in range(count) if of_group[i] == k])]

    # All sources reach the same parameters; the target, and what is held out of it, may reach others.
    some = st.sets(st.integers(0, count - 1), max_size=0 if everywhere else min(1, count - 1))
    of_sources, of_target, of_held_out = (frozenset(draw(some)) for _ in range(3))
    detached = {**dict.fromkeys(sources, of_sources), TARGET: of_target, HELD_OUT: of_held_out}
    cities = {
        name: City(draw(st.floats(-1, 1)), draw(st.sampled_from(scales)), noise, unreached)
        for noise, (name, unreached) in enumerate(detached.items())
    }
    rounds = []
    for _ in range(draw(st.integers(1, max_rounds))):
        present = [name for name in sources if draw(st.integers(0, 4)) > 0] or sources[:1]
        # Now and then one side only.
        missing = draw(st.sampled_from(["nothing"] * 6 + ["sources", "target"])) if not everywhere else "nothing"
        names = [*(present if missing != "sources" else []), *([TARGET] if missing != "target" else [])]
        if options["normal"] == "held_out":
            names.append(HELD_OUT)
        rounds.append(draw(st.permutations(names)))
    in_one_call = draw(st.booleans())
    return Training(model, generator.initial_seed(), options, groups, cities, rounds, in_one_call)
