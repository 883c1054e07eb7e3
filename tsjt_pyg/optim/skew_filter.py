"""The options of the filter by name, and how they act together on the gradients of one round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsjt_pyg.optim.filters import (
    aggregate,
    agreeing,
    balance_factor,
    binary_gate,
    combine,
    cosine,
    cosine_gate,
    gramian,
    projection_coefficient,
    vaccine_coefficient,
)
from tsjt_pyg.optim.filters.combination import Weight
from tsjt_pyg.optim.filters.matrix import weighting_of

FILTERS = ("project", "gate", "cosine_gate", "sign", "vaccine")
SCOPES = ("global", "tensor", "group")
NORMALS = ("batch", "ema", "held_out")

# What is known of every source and scope, in this order: two counters, the inner products of the last filtered step
# (after balancing), what the rule made of them, and running averages.
RECORD = (
    "filtered",
    "conflicts",
    "source_square",
    "dot",
    "normal_square",
    "target_square",
    "kappa",
    "factor",
    "source_average",
    "target_average",
    "goal",
)

Gradient = Sequence[Tensor | None]


@dataclass
class Round:
    """The gradients of one round, one entry a parameter each, and what earlier rounds left."""

    sources: Mapping[str, Gradient]
    target: Gradient
    #: The target gradient's running average or the held-out gradient; None where the target gradient is the normal.
    normal: Gradient | None
    #: For every parameter its scope; None if there is one for all.
    scopes: Sequence[int] | None
    #: ``[sources, scopes, len(RECORD)]``, in the order of ``sources``.
    records: Tensor
    #: Whether to look at the gradients, or to take the weights of the last time (``lag``).
    refresh: bool = True
    #: Whether the target gradient may be overwritten.
    in_place: bool = False


@dataclass
class Filtered:
    """What a filter made of a round."""

    gradient: list[Tensor | None]
    #: The records as they are once the step is taken; None if nothing was filtered.
    records: Tensor | None = None
    #: Not below any element of the filtered gradients; not finite if one of the round's gradients is not.
    bound: Tensor | None = None
    #: Positions of the gradients that passed unfiltered.
    unfiltered: list[int] = field(default_factory=list)
    #: Gives the target gradient back if it was overwritten.
    undo: Callable[[], None] | None = None


@dataclass(frozen=True)
class SkewFilter:
    """A filter by its options, which :class:`~tsjt_pyg.optim.TargetSkewedOptimizer` documents and checks."""

    gamma_source: float | Mapping[str, float] = 1.0
    gamma_target: float = 1.0
    rule: str | Callable[[Tensor], Tensor] = "project"
    scope: str = "global"
    normal: str = "batch"
    balance: float = 0.0
    max_kappa: float | None = None
    ema_rate: float = 0.1
    lag: int = 1

    @property
    def may_overwrite_target(self) -> bool:
        """Whether the target gradient can be had back from the filtered one."""
        return self.gamma_target > 0 and self.rule in FILTERS and self.rule != "sign" and self.normal != "ema"

    @property
    def weighs_losses(self) -> bool:
        """Whether one backward pass of the weighted losses gives the filtered gradient, once the weights are known."""
        return self.rule in FILTERS and self.rule != "sign" and self.scope == "global" and self.normal == "batch"

    def gamma_of(self, source: str) -> float:
        return self.gamma_source[source] if isinstance(self.gamma_source, Mapping) else self.gamma_source

    def __call__(self, round_: Round) -> Filtered:
        """Filter the source gradients of a round and add them to the target's."""
        filtered, members = _set_apart(round_)
        if not members:
            return filtered
        vectors = self._vectors(round_, members)
        scopes = None if round_.scopes is None else [round_.scopes[i] for i in members]
        fields = [dict(zip(RECORD, (r if scopes else r[0]).unbind(-1), strict=True)) for r in round_.records]
        filtered.records = round_.records
        gram = None
        if round_.refresh:
            gram = gramian(*vectors, scopes=scopes, num_scopes=round_.records.shape[1]).to(round_.records.device)
            fields = [self._updated(known, gram, i) for i, known in enumerate(fields)]
            rows = [torch.stack(list(known.values()), dim=-1) for known in fields]
            filtered.records = torch.stack(rows).view_as(round_.records)
        weighting = None if self.rule in FILTERS else weighting_of(self.rule)
        if self.rule in FILTERS:
            weights = self.weights(list(round_.sources), fields, len(vectors))
        elif weighting is not None and gram is not None:
            weights = _weights_of_scopes(weighting, gram)
        else:
            aggregated = _aggregate_scopes(self.rule, vectors, scopes)  # type: ignore[arg-type]
            for i, g in zip(members, aggregated, strict=True):
                filtered.gradient[i] = g
            return filtered
        if gram is not None:
            norms = gram.diagonal(dim1=-2, dim2=-1).sqrt().unbind(-1)
            filtered.bound = torch.stack([(n * w).abs().sum() for n, w in zip(norms, weights, strict=True)]).sum()
        if self.rule == "sign":
            along = self._normal(vectors, len(round_.sources))
            vectors[: len(round_.sources)] = [agreeing(g, along) for g in vectors[: len(round_.sources)]]
        result = combine(weights, *vectors, scopes=scopes, in_place=round_.in_place)
        for i, g in zip(members, result, strict=True):
            filtered.gradient[i] = g
        if round_.in_place:
            filtered.undo = _undo(weights, vectors, result, scopes)
        return filtered

    def _vectors(self, round_: Round, members: Sequence[int]) -> list[list[Tensor]]:
        """The gradients of the sources, of the normal if it is another one than the target's, and of the target."""
        target = [t for i in members if (t := round_.target[i]) is not None]
        vectors = [_filled(g, members, target) for g in round_.sources.values()]
        if round_.normal is not None:
            # Without an average yet, the first target gradient is the average.
            vectors.append(_filled(round_.normal, members, target, instead=self.normal == "ema"))
        return [*vectors, target]

    def _normal(self, vectors: list[list[Tensor]], num_sources: int) -> Sequence[Tensor]:
        if self.normal == "ema":
            return torch._foreach_lerp(vectors[num_sources], vectors[-1], self.ema_rate)
        return vectors[num_sources]  # the held-out gradient, or the target's, which then comes next

    def _shares_of_normal(self, num_sources: int) -> dict[int, float]:
        """The normal as a sum of gradients: their position in the gramian and their weight."""
        if self.normal == "ema":
            return {num_sources: 1 - self.ema_rate, -1: self.ema_rate}
        return {num_sources if self.normal == "held_out" else -1: 1.0}

    def _updated(self, known: dict[str, Tensor], gram: Tensor, i: int) -> dict[str, Tensor]:
        """The record of one source after a look at the inner products."""
        ss, tt = gram[..., i, i], gram[..., -1, -1]
        if self.normal == "batch":
            sn, nn = gram[..., i, -1], tt
        else:
            shares = self._shares_of_normal(gram.shape[-1] - 2)
            sn = torch.stack([w * gram[..., i, k] for k, w in shares.items()]).sum(0)
            nn = torch.stack([v * w * gram[..., j, k] for j, v in shares.items() for k, w in shares.items()]).sum(0)
        factor: Tensor | None = None
        source_average, target_average, goal = known["source_average"], known["target_average"], known["goal"]
        if self.balance:
            source_average = source_average.lerp(ss.sqrt(), self.ema_rate)
            target_average = target_average.lerp(tt.sqrt(), self.ema_rate)
            factor = balance_factor(source_average, target_average, self.balance)
            ss, sn = ss * factor.square(), sn * factor
        pair = torch.stack((ss, sn, sn, nn), dim=-1).unflatten(-1, (2, 2))
        kappa: Tensor | None = None
        if self.rule == "project":
            kappa = projection_coefficient(pair)
        elif self.rule == "vaccine":
            kappa, goal = vaccine_coefficient(pair, goal), goal.lerp(cosine(pair), self.ema_rate)
        elif self.rule in ("gate", "cosine_gate"):
            gate = binary_gate(pair) if self.rule == "gate" else cosine_gate(pair)
            factor = gate if factor is None else factor * gate
        if kappa is None:
            kappa = torch.zeros_like(ss)
        elif self.max_kappa is not None:
            kappa = kappa.clamp(max=self.max_kappa)
        updated = (
            known["filtered"] + 1,
            known["conflicts"] + (sn < 0),
            ss,
            sn,
            nn,
            tt,
            kappa,
            torch.ones_like(ss) if factor is None else factor,
            source_average,
            target_average,
            goal,
        )
        return dict(zip(RECORD, updated, strict=True))

    def weights(self, names: Sequence[str], fields: Sequence[dict[str, Tensor]], num_vectors: int) -> list[Weight]:
        """The weight of every gradient, from the factor and the kappa of every source."""
        weights: list[Weight] = [*[0.0] * (num_vectors - 1), self.gamma_target]
        shares = self._shares_of_normal(len(names))
        scales = bool(self.balance) or self.rule in ("gate", "cosine_gate")
        for i, (name, known) in enumerate(zip(names, fields, strict=True)):
            gamma = self.gamma_of(name)
            weights[i] = gamma * known["factor"] if scales else gamma
            if self.rule in ("project", "vaccine"):
                for k, share in shares.items():
                    weights[k] = weights[k] + gamma * share * known["kappa"]
        return weights


def _set_apart(round_: Round) -> tuple[Filtered, list[int]]:
    """Positions of the parameters with a target gradient and a source gradient; all others keep the sum they have."""
    filtered = Filtered(list(round_.target))
    members: list[int] = []
    for i, of_one in enumerate(zip(round_.target, *round_.sources.values(), strict=True)):
        given = [g for g in of_one if g is not None]
        if len(given) == len(of_one) or (of_one[0] is not None and len(given) > 1):
            members.append(i)
        elif given:
            total = given[0]
            for g in given[1:]:
                total = total + g
            filtered.gradient[i] = total
            filtered.unfiltered.append(i)
    return filtered, members


def _filled(
    gradient: Gradient, members: Sequence[int], target: Sequence[Tensor], instead: bool = False
) -> list[Tensor]:
    """One gradient of the members, with zeros (or the target's) where there is none."""
    found = [gradient[i] for i in members]
    return [(t if instead else torch.zeros_like(t)) if g is None else g for g, t in zip(found, target, strict=True)]


def _weights_of_scopes(weighting: Callable[[Tensor], Tensor], gram: Tensor) -> list[Weight]:
    """What a function of the gramian says, scope by scope."""
    weights = weighting(gram) if gram.dim() == 2 else torch.stack([weighting(g) for g in gram])
    if weights.shape != gram.shape[:-1]:
        raise ValueError(
            f"filter must return one weight a gradient, shape {list(gram.shape[-1:])}, but returned shape "
            f"{list(weights.shape[gram.dim() - 2 :])}"
        )
    return list(weights.to(gram.device).unbind(-1))


def _aggregate_scopes(
    aggregator: Callable[[Tensor], Tensor], vectors: Sequence[Sequence[Tensor]], scopes: Sequence[int] | None
) -> list[Tensor]:
    if scopes is None:
        return aggregate(aggregator, *vectors)
    result: list[Tensor] = list(vectors[-1])
    for scope in sorted(set(scopes)):
        members = [i for i, of_one in enumerate(scopes) if of_one == scope]
        for i, g in zip(members, aggregate(aggregator, *([v[i] for i in members] for v in vectors)), strict=True):
            result[i] = g
    return result


def _undo(
    weights: list[Weight], vectors: list[list[Tensor]], result: list[Tensor], scopes: Sequence[int] | None
) -> Callable[[], None]:
    """What gives the last gradient back where it was overwritten."""
    kept = [i for i, (g, t) in enumerate(zip(result, vectors[-1], strict=True)) if g is t]
    if len(kept) < len(result):
        vectors = [[v[i] for i in kept] for v in vectors]
        scopes = None if scopes is None else [scopes[i] for i in kept]
    inverse: list[Weight] = [*(-w / weights[-1] for w in weights[:-1]), 1.0 / weights[-1]]

    def undo() -> None:
        combine(inverse, *vectors, scopes=scopes, in_place=True)

    return undo
