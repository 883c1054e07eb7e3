"""The optimizer's filter under all its options, from the formulas alone: numpy, float64, one flat vector a source and
scope."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from network_problems import HELD_OUT, TARGET, Gradient, Training
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Memory:
    """What is known of one source and scope from earlier rounds."""

    source_norm: float = 0.0
    target_norm: float = 0.0
    goal: float = 0.0
    kappa: float = 0.0
    factor: float = 1.0
    #: The factor before the gate: what the cosine multiplies, it is known to so many digits of.
    ungated: float = 1.0


@dataclass
class Reference:
    """The whole filter of a training, step by step, as the published formulas say."""

    options: dict[str, Any]
    scopes: list[int]
    normals: dict[int, Array] = field(default_factory=dict)
    memory: dict[tuple[str, int], Memory] = field(default_factory=dict)
    ages: dict[str, int] = field(default_factory=dict)
    due: bool = True
    #: To how much the inputs of the formulas are known so far, and the result, both relative to the terms' size.
    precision: float = 1e-15
    slack: float = 2e-13
    #: The size of the terms of the last round.
    size: float = 0.0

    #: What the sources of the last round must not oppose.
    normal: list[Array | None] = field(default_factory=list)

    def step(
        self, gradients: dict[str, list[Array | None]], names: list[str], restored: bool = False
    ) -> list[Array | None]:
        """The gradient after one round.

        Args:
            gradients: of every city.
            names: the cities that take part, in the order of their blocks.
            restored: whether the target gradient was overwritten by a filtered one and restored, which costs digits
                where the source gradients are much larger.
        """
        count = len(self.scopes)
        nothing: list[Array | None] = [None] * count
        sources = {name: gradients[name] for name in names if name not in (TARGET, HELD_OUT)}
        target, held_out = (gradients[name] if name in names else nothing for name in (TARGET, HELD_OUT))
        shared = [i for i in range(count) if target[i] is not None and any(g[i] is not None for g in sources.values())]
        total: list[Array | None] = [None] * count
        for i in range(count):
            if i in shared:
                total[i] = self.options["gamma_target"] * target[i]
            else:
                given = [g[i] for g in (*sources.values(), target) if g[i] is not None]
                total[i] = np.sum(given, axis=0) if given else None
        self.size = sum(float(np.linalg.norm(g)) for g in total if g is not None)
        self.normal = nothing
        if not shared:
            return total
        self.due = any(self.ages.get(name, 0) % self.options["lag"] == 0 for name in sources)
        if restored:
            self._lose_digits(sources, target, shared)
        self.normal = [self._normal(i, target[i], held_out[i]) if i in shared else None for i in range(count)]
        for name, gradient in sources.items():
            gammas = self.options["gamma_source"]
            gamma = gammas[name] if isinstance(gammas, dict) else gammas
            for scope in range(max(self.scopes) + 1):
                members = [i for i in shared if self.scopes[i] == scope]
                s = [np.zeros_like(target[i]) if gradient[i] is None else gradient[i] for i in members]
                kept = self._kept(
                    self.memory.setdefault((name, scope), Memory()),
                    flat(s),
                    flat([self.normal[i] for i in members]),
                    flat([target[i] for i in members]),
                    gamma,
                )
                for i, part in zip(members, np.split(kept, np.cumsum([v.size for v in s])[:-1]), strict=False):
                    total[i] = total[i] + gamma * part.reshape(total[i].shape)
        self.ages |= {name: self.ages.get(name, 0) + 1 for name in sources}
        self.normals |= {i: self._average(i, g) for i, g in enumerate(target) if g is not None}
        return total

    def _lose_digits(
        self, sources: dict[str, list[Array | None]], target: list[Array | None], shared: list[int]
    ) -> None:
        for scope in set(self.scopes):
            members = [i for i in shared if self.scopes[i] == scope]
            own = self.options["gamma_target"] * np.linalg.norm(flat([target[i] for i in members]))
            others = sum(np.linalg.norm(flat([g[i] for i in members])) for g in sources.values())
            if own > 0:
                self.precision = max(self.precision, 1e-15 * float(others / own))
                self.slack = max(self.slack, 200 * self.precision)

    def _normal(self, i: int, target: Array, held_out: Array | None) -> Array:
        if self.options["normal"] == "batch":
            return target
        if self.options["normal"] == "ema":
            return self._average(i, target)
        return np.zeros_like(target) if held_out is None else held_out

    def _average(self, i: int, target: Array) -> Array:
        rho = self.options["ema_rate"]
        return (1 - rho) * self.normals[i] + rho * target if i in self.normals else target

    def _kept(self, memory: Memory, s: Array, n: Array, t: Array, gamma: float) -> Array:
        if self.due:
            self._decide(memory, s, n, t)
        if self.options["filter"] == "sign":
            s = np.where(np.sign(s) * np.sign(n) < 0, 0.0, s)
        self.size += gamma * float(memory.ungated * np.linalg.norm(s) + memory.kappa * np.linalg.norm(n))
        return memory.factor * s + memory.kappa * n

    def _decide(self, memory: Memory, s: Array, n: Array, t: Array) -> None:
        rho, r, rule = self.options["ema_rate"], self.options["balance"], self.options["filter"]
        memory.factor, memory.kappa = 1.0, 0.0
        if r > 0:
            memory.source_norm += rho * (np.linalg.norm(s) - memory.source_norm)
            memory.target_norm += rho * (np.linalg.norm(t) - memory.target_norm)
            if memory.source_norm > 0:
                memory.factor = r * memory.target_norm / memory.source_norm + (1 - r)
            s = memory.factor * s
        memory.ungated = memory.factor
        dot, norm_s, norm_n = float(s @ n), float(np.linalg.norm(s)), float(np.linalg.norm(n))
        cosine = dot / (norm_s * norm_n) if norm_s > 0 and norm_n > 0 else 0.0
        if rule == "project":
            memory.kappa = max(0.0, -dot / norm_n**2) if norm_n > 0 else 0.0
        elif rule == "gate":
            memory.factor *= dot >= 0
        elif rule == "cosine_gate":
            memory.factor *= max(0.0, cosine) if norm_n > 0 else 1.0
        elif rule == "vaccine":
            memory.kappa = self._lift(cosine, min(memory.goal, 0.999), norm_s, norm_n)
            memory.goal += rho * (cosine - memory.goal)
        if self.options["max_kappa"] is not None:
            memory.kappa = min(memory.kappa, self.options["max_kappa"])

    def _lift(self, cosine: float, goal: float, norm_s: float, norm_n: float) -> float:
        if cosine >= goal or norm_n == 0:
            return 0.0
        sine = math.sqrt(max(0.0, 1 - cosine**2))
        # Of gradients that are all but parallel the sine, and with it the formula, is known to few digits.
        self.slack = max(self.slack, 200 * self.precision / max(sine, math.sqrt(self.precision)))
        root = math.sqrt(1 - goal**2)
        return norm_s * (goal * sine - cosine * root) / (norm_n * root)


def flat(gradients: list[Array | None]) -> Array:
    return np.concatenate([np.zeros(0), *(g.ravel() for g in gradients if g is not None)])


def arrays(gradient: Gradient) -> list[Array | None]:
    return [None if g is None else g.numpy() for g in gradient]


def assert_close(actual: Gradient, expected: list[Array | None], atol: float) -> None:
    assert [g is None for g in actual] == [g is None for g in expected]
    for a, e in zip(arrays(actual), expected, strict=True):
        if a is not None:
            np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def gradients_of(training: Training, step: int) -> dict[str, list[Array | None]]:
    return {name: arrays(training.gradient(step, name)) for name in training.rounds[step]}


def tolerances(training: Training) -> list[float]:
    """How far rounding may move the gradient of every round."""
    reference, allowed = Reference(training.options, training.scopes), []
    for step, names in enumerate(training.rounds):
        reference.step(gradients_of(training, step), names, restored=True)
        allowed.append(reference.slack * reference.size)
    return allowed


def assert_same(actual: list[Gradient], expected: list[Gradient], training: Training, factor: float = 1.0) -> None:
    for a, e, atol in zip(actual, expected, tolerances(training), strict=True):
        assert_close(a, [None if g is None else factor * g for g in arrays(e)], 4 * factor * atol)
