"""What the filter did, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tsjt_pyg.optim.skew_filter import RECORD

#: What is said of a source and a scope.
QUANTITIES = ("cosine", "conflict_rate", "source_norm", "target_norm", "kappa")


def stats_of(
    counts: Tensor, records: Tensor, sources: Sequence[str], scopes: Sequence[str], per: str | None
) -> dict[str, Any]:
    """Summaries of the records of :class:`~tsjt_pyg.optim.TargetSkewedOptimizer`; see its ``stats``."""
    known = [[dict(zip(RECORD, values, strict=False)) for values in of_source] for of_source in records.cpu().tolist()]
    if per is None:
        steps, skipped = counts.cpu().tolist()
        # Of several sources the mean; the norms are those of one source too.
        of_sources = [_summary(of_scopes) for of_scopes in known] or [_summary([])]
        mean = {key: math.fsum(s[key] for s in of_sources) / len(of_sources) for key in QUANTITIES}
        return {**mean, "steps": int(steps), "skipped_steps": int(skipped)}
    if per == "source":
        return {name: _summary(of_scopes) for name, of_scopes in zip(sources, known, strict=True)}
    if per == "scope":
        return {
            name: {scope: _summary([record]) for scope, record in zip(scopes, of_scopes, strict=True)}
            for name, of_scopes in zip(sources, known, strict=True)
        }
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
