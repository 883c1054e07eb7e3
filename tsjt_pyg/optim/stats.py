"""What the filter did, as plain numbers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from tsjt_pyg.notebook import table
from tsjt_pyg.optim.skew_filter import RECORD

#: What is said of a source and a scope.
QUANTITIES = ("cosine", "conflict_rate", "source_norm", "target_norm", "kappa")


class Stats(dict[str, Any]):
    """A dictionary that notebooks show as a table; copies and pickles of it are plain ones."""

    def _repr_html_(self) -> str:
        rows = [((), self), *_inner((), self)]
        named = [(names, found) for names, found in rows if not any(isinstance(v, dict) for v in found.values())]
        keys = list(dict.fromkeys(key for _, found in named for key in found))
        cells = ([" ".join(names), *(_shown(found.get(key, "")) for key in keys)] for names, found in named)
        return table(["", *keys], cells)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        # What torch.load(weights_only=True) reads: it knows ordered dictionaries, not classes of ours.
        return OrderedDict, (), None, None, iter(self.items())


def _inner(names: tuple[str, ...], found: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All dictionaries in a dictionary, with their names."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield (*names, name), value
            yield from _inner((*names, name), value)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stats_of(counts: Tensor, records: Tensor, sources: Sequence[str], scopes: Sequence[str], per: str | None) -> Stats:
    """Summaries of the records of :class:`~tsjt_pyg.optim.TargetSkewedOptimizer`; see its ``stats``."""
    known = [[dict(zip(RECORD, values, strict=False)) for values in of_source] for of_source in records.cpu().tolist()]
    if per is None:
        steps, skipped = counts.cpu().tolist()
        # Of several sources the mean; the norms are those of one source too.
        of_sources = [_summary(of_scopes) for of_scopes in known] or [_summary([])]
        mean = {key: math.fsum(s[key] for s in of_sources) / len(of_sources) for key in QUANTITIES}
        return Stats({**mean, "steps": int(steps), "skipped_steps": int(skipped)})
    if per == "source":
        return Stats({name: _summary(of_scopes) for name, of_scopes in zip(sources, known, strict=True)})
    if per == "scope":
        return Stats(
            {
                name: {scope: _summary([record]) for scope, record in zip(scopes, of_scopes, strict=True)}
                for name, of_scopes in zip(sources, known, strict=True)
            }
        )
    raise ValueError(f"per must be 'source', 'scope' or None, but is {per!r}")


def _summary(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of one source over its scopes: the inner products add up, and kappa is weighed by what it multiplies."""

    def total(key: str) -> float:
        return math.fsum(r[key] for r in records)

    norms = math.sqrt(total("source_square")) * math.sqrt(total("normal_square"))
    removed = math.fsum(r["kappa"] * r["normal_square"] for r in records)
    return {
        "cosine": total("dot") / norms if norms > 0 else 0.0,
        "conflict_rate": total("conflicts") / total("filtered") if total("filtered") else 0.0,
        "source_norm": math.sqrt(total("source_square")),
        "target_norm": math.sqrt(total("target_square")),
        "kappa": removed / total("normal_square") if total("normal_square") else 0.0,
    }
