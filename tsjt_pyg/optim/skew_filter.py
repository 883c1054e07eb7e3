"""The options of the filter by name, and how they act together on the gradients of one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

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
    vaccine_coefficient,
)
from tsjt_pyg.optim.filters.combination import Weight, base_of
from tsjt_pyg.optim.filters.grouping import alike, locals_of, take
from tsjt_pyg.optim.filters.matrix import weighting_of
from tsjt_pyg.optim.filters.rules import projection

FILTERS = ("project", "gate", "cosine_gate", "sign", "vaccine")
SCOPES = ("global", "tensor", "group")
NORMALS = ("batch", "ema", "held_out")

# What is known of every source and scope: two counters; of the last filtered step the inner products (after balancing)
# and kappa; and what only some options need, see SkewFilter.record.
RECORD = ("filtered", "conflicts", "source_square", "dot", "normal_square", "target_square", "kappa")

Gradient = Sequence[Tensor | None]
# Tensors, or numbers where those are at hand.
_Fields = dict[str, Any]
# They have too few digits to be restored.
_HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Round:
    """The gradients of one round, one entry a parameter each, and what earlier rounds left."""

    sources: Mapping[str, Gradient]
    target: Gradient
    #: The target gradient's running average or the held-out gradient; None where the target gradient is the normal.
    normal: Gradient | None
    #: For every parameter its scope; None if there is one for all.
    scopes: Sequence[int] | None
    #: ``[sources, scopes, len(SkewFilter.record)]``, in the order of ``sources``.
    records: Tensor
    #: Whether to look at the gradients, or to take the weights of the last time (``lag``).
    refresh: bool = True
    #: Whether the gradients may be overwritten.
    in_place: bool = False


@dataclass
class Filtered:
    """What a filter made of a round."""

    gradient: list[Tensor | None]
    #: Makes the records as they are once the step is taken; None if nothing was filtered.
    make_records: Callable[[], Tensor] | None = None
    #: Whether the records tell if all filtered gradients are finite.
    tells_finite: bool = False
    #: Positions of the gradients that passed unfiltered.
    unfiltered: list[int] = field(default_factory=list)
    #: Gives the gradient back that was overwritten.
    undo: Callable[[], None] | None = None
    _records: Tensor | None = None

    @property
    def records(self) -> Tensor | None:
        """The records as they are once the step is taken, made when they are first asked for."""
        if self._records is None and self.make_records is not None:
            self._records = self.make_records()
        return self._records


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
    def may_overwrite(self) -> bool:
        """Whether a gradient that the filtered one has overwritten can be had back."""
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
        if self.normal == "ema":
            # Clipping and the base may overwrite `.grad`, but the average needs the target gradient as it was.
            for i in filtered.unfiltered:
                if (g := filtered.gradient[i]) is not None and g is round_.target[i]:
                    filtered.gradient[i] = g.clone()
        if not members:
            return filtered
        vectors = self._vectors(round_, members)
        scopes = None if round_.scopes is None else [round_.scopes[i] for i in members]
        gram, groups = None, alike(vectors)
        if round_.refresh:
            gram = gramian(*vectors, scopes=scopes, num_scopes=round_.records.shape[1], groups=groups)
            gram = gram.to(round_.records.device)
            found = self._decide(round_, gram)
            filtered.make_records = partial(self._new_records, round_, found)
        else:
            found = self._fields(round_)
            filtered.make_records = lambda: round_.records
        weighting = None if self.rule in FILTERS else weighting_of(self.rule)
        if self.rule in FILTERS:
            weights = self._weights(list(round_.sources), found, len(vectors))
            filtered.tells_finite = round_.refresh
        elif weighting is not None and gram is not None:
            weights = _weights_of_scopes(weighting, gram)
        else:
            aggregated = _aggregate_scopes(self.rule, vectors, scopes)  # type: ignore[arg-type]
            for i, g in zip(members, aggregated, strict=True):
                filtered.gradient[i] = g
            return filtered
        if self.rule == "sign":
            along = self._normal(vectors, len(round_.sources))
            vectors[: len(round_.sources)] = [agreeing(g, along) for g in vectors[: len(round_.sources)]]
        in_place = round_.in_place and _can_be_restored(vectors, groups)
        if in_place:
            k = base_of(weights, vectors[-1][0])
            weights.append(weights.pop(k))
            vectors.append(vectors.pop(k))
        result = combine(weights, *vectors, scopes=scopes, in_place=in_place, groups=groups)
        if len(members) == len(filtered.gradient):
            filtered.gradient = list(result)
        else:
            for i, g in zip(members, result, strict=True):
                filtered.gradient[i] = g
        if in_place:
            filtered.undo = _undo(weights, vectors, result, scopes)
        return filtered

    def _vectors(self, round_: Round, members: Sequence[int]) -> list[list[Tensor]]:
        """The gradients of the sources, of the normal if it is another one than the target's, and of the target."""
        target = [t for t in round_.target if t is not None]
        if len(target) > len(members):
            target = [t for i in members if (t := round_.target[i]) is not None]
        vectors = [_filled(g, members, target) for g in round_.sources.values()]
        if round_.normal is not None:
            # Without an average yet, the first target gradient is the average.
            vectors.append(_filled(round_.normal, members, target, instead=self.normal == "ema"))
        return [*vectors, target]

    def _normal(self, vectors: list[list[Tensor]], num_sources: int) -> Sequence[Tensor]:
        if self.normal == "ema":
            average, target = ([t.to_dense() if t.is_sparse else t for t in g] for g in vectors[num_sources:])
            return torch._foreach_lerp(average, target, self.ema_rate)
        return vectors[num_sources]  # the held-out gradient, or the target's, which then comes next

    def _shares_of_normal(self, num_sources: int) -> dict[int, float]:
        """The normal as a sum of gradients: their position in the gramian and their weight."""
        if self.normal == "ema":
            return {num_sources: 1 - self.ema_rate, -1: self.ema_rate}
        return {num_sources if self.normal == "held_out" else -1: 1.0}

    def _fields(self, round_: Round, start: int = 0) -> list[_Fields]:
        """The records of every source by the names of their fields, from one field on."""
        rows = round_.records.unbind() if round_.scopes is not None else [r[0] for r in round_.records.unbind()]
        return [dict(zip(self.record[start:], row[..., start:].unbind(-1), strict=True)) for row in rows]

    def _decide(self, round_: Round, gram: Tensor) -> list[_Fields]:
        """What follows for every source from its record and the inner products; fields that stay are missing."""
        own = len(self.record) > len(RECORD)
        known = self._fields(round_, len(RECORD)) if own else [{} for _ in round_.sources]
        flat = gram.flatten(-2)
        entries = flat.tolist() if self._takes_numbers(flat) else flat.unbind(-1)
        return [self._decide_one(fields, gram, entries, i) for i, fields in enumerate(known)]

    def _takes_numbers(self, entries: Tensor) -> bool:
        """Whether to go on with Python's numbers: for what is done in most steps they are ten times as fast."""
        options = (self.rule, self.scope, self.normal, self.balance, self.max_kappa)
        on_host = type(entries) is Tensor and entries.is_cpu and not torch.compiler.is_compiling()
        return on_host and options == ("project", "global", "batch", 0.0, None)

    def _decide_one(self, known: _Fields, gram: Tensor, entries: Sequence[Any], i: int) -> _Fields:
        m = gram.shape[-1]
        ss, sn, tt = entries[i * m + i], entries[i * m + m - 1], entries[-1]
        nn = tt
        if self.normal != "batch":
            shares = self._shares_of_normal(m - 2)
            sn = torch.stack([w * gram[..., i, k] for k, w in shares.items()]).sum(0)
            terms = torch.stack([v * w * gram[..., j, k] for j, v in shares.items() for k, w in shares.items()])
            nn = terms.sum(0)
            # Where the average and the gradient cancel, only rounding errors are left, a negative square among them.
            gone = nn < 1e-12 * terms.abs().sum(0)
            sn, nn = sn.masked_fill(gone, 0.0), nn.masked_fill(gone, 0.0)
        if self.balance:
            known["source_average"] = known["source_average"].lerp(ss.sqrt(), self.ema_rate)
            known["target_average"] = known["target_average"].lerp(tt.sqrt(), self.ema_rate)
            known["factor"] = balance_factor(known["source_average"], known["target_average"], self.balance)
            ss, sn = ss * known["factor"].square(), sn * known["factor"]
        if self.rule == "project":
            known["kappa"] = projection(sn, nn)
        elif self.rule == "vaccine":
            pair = torch.stack((ss, sn, sn, nn), dim=-1).unflatten(-1, (2, 2))
            known["kappa"] = vaccine_coefficient(pair, known["goal"])
            known["goal"] = known["goal"].lerp(cosine(pair), self.ema_rate)
        elif self.rule in ("gate", "cosine_gate"):
            pair = torch.stack((ss, sn, sn, nn), dim=-1).unflatten(-1, (2, 2))
            gate = binary_gate(pair) if self.rule == "gate" else cosine_gate(pair)
            known["factor"] = known["factor"] * gate if self.balance else gate
        if self.max_kappa is not None:
            known["kappa"] = known["kappa"].clamp(max=self.max_kappa)
        return {"source_square": ss, "dot": sn, "normal_square": nn, "target_square": tt, **known}

    def _new_records(self, round_: Round, found: Sequence[_Fields]) -> Tensor:
        if numbers := not isinstance(found[0]["dot"], Tensor):
            known = [dict(zip(self.record, row, strict=True)) for (row,) in round_.records.tolist()]
        else:
            known = self._fields(round_)
        new = []
        for old, fields in zip(known, found, strict=True):
            counted = {"filtered": old["filtered"] + 1.0, "conflicts": old["conflicts"] + (fields["dot"] < 0)}
            values = {**fields, **counted}
            if "kappa" not in values:
                values["kappa"] = torch.zeros_like(old["kappa"])
            new.append([values[name] for name in self.record])
        if numbers:
            return torch.tensor(new, dtype=round_.records.dtype).view_as(round_.records)
        rows = [torch.stack(columns, dim=-1) for columns in new]
        return (rows[0] if len(rows) == 1 else torch.stack(rows)).view_as(round_.records)

    @cached_property
    def record(self) -> tuple[str, ...]:
        """Names of what is remembered of every source and scope."""
        return (
            *RECORD,
            *(("factor",) if self.balance or self.rule in ("gate", "cosine_gate") else ()),
            *(("source_average", "target_average") if self.balance else ()),
            *(("goal",) if self.rule == "vaccine" else ()),
        )

    def last_weights(self, names: Sequence[str], records: Tensor) -> list[Weight]:
        """The weights of the sources' losses and of the target's that the last look at their gradients gave."""
        found = [dict(zip(self.record, of_source[0].unbind(), strict=True)) for of_source in records.unbind()]
        return self._weights(names, found, len(names) + 1)

    def _weights(self, names: Sequence[str], found: Sequence[_Fields], num_vectors: int) -> list[Weight]:
        """The weight of every gradient."""
        weights: list[Weight] = [*[0.0] * (num_vectors - 1), self.gamma_target]
        shares = self._shares_of_normal(len(names))
        for i, (name, fields) in enumerate(zip(names, found, strict=True)):
            gamma = self.gamma_of(name)
            weights[i] = gamma * fields["factor"] if "factor" in self.record else gamma
            if self.rule in ("project", "vaccine"):
                for k, share in shares.items():
                    correction = fields["kappa"] if gamma * share == 1.0 else fields["kappa"] * (gamma * share)
                    weights[k] = weights[k] + correction
        return weights

    def bound(self, names: Sequence[str], records: Sequence[Sequence[Sequence[float]]]) -> float:
        """Not below any element of the filtered gradients; not finite if one of the round's gradients is not."""
        total = 0.0
        for name, of_source in zip(names, records, strict=True):
            for row in of_source:
                known = dict(zip(self.record, row, strict=True))
                correction = known["kappa"] * math.sqrt(known["normal_square"])
                total += self.gamma_of(name) * (math.sqrt(known["source_square"]) + correction)
                total += self.gamma_target * math.sqrt(known["target_square"]) + 0.0 * known["dot"]
        return total


def _set_apart(round_: Round) -> tuple[Filtered, Sequence[int]]:
    """Positions of the parameters with a target gradient and a source gradient; all others keep the sum they have."""
    filtered = Filtered(list(round_.target))
    # Types first: in nearly all models every parameter has every gradient, and a loop over tensors is slow.
    if not any(type(None) in set(map(type, g)) for g in (round_.target, *round_.sources.values())):
        return filtered, range(len(round_.target))
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


def _can_be_restored(vectors: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[int]]) -> bool:
    """Whether gradients that were overwritten with the filtered ones can be had back from them."""
    if torch.compiler.is_compiling() or any(g[group[0]].dtype in _HALVES for g in vectors for group in groups):
        return False
    # Not if two lie in the same place: autograd gives one to parameters that were added as views.
    places: set[int] = set()
    count = 0
    for group in groups:
        strided = [g for g in take(vectors, group) if g[0].layout is torch.strided]
        count += len(group) * len(strided)
        for g in strided:
            places.update(map(Tensor.data_ptr, locals_of(g)))
    return len(places) == count


def _filled(
    gradient: Gradient, members: Sequence[int], target: Sequence[Tensor], instead: bool = False
) -> list[Tensor]:
    """One gradient of the members, with zeros (or the target's) where there is none."""
    found = [g for g in gradient if g is not None]
    if len(found) == len(gradient) == len(members):
        return found
    return [
        g if (g := gradient[i]) is not None else t if instead else torch.zeros_like(t)
        for i, t in zip(members, target, strict=True)
    ]


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

    def undo() -> None:
        kept = [i for i, (g, t) in enumerate(zip(result, vectors[-1], strict=True)) if g is t]
        inverse: list[Weight] = [*(-w / weights[-1] for w in weights[:-1]), 1.0 / weights[-1]]
        of_kept = None if scopes is None else [scopes[i] for i in kept]
        with torch.no_grad():
            combine(inverse, *take(vectors, kept), scopes=of_kept, in_place=True)

    return undo
