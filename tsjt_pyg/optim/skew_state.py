"""What a TargetSkewedOptimizer remembers from step to step, kept where torch's optimizers keep theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tsjt_pyg.optim.filters.inner_products import widest
from tsjt_pyg.optim.nonfinite import name_of
from tsjt_pyg.optim.skew_filter import Gradient, SkewFilter

#: Prefix of our keys in the first parameter group.
OWN = "skew_"
_COUNTS, _SOURCES, _RECORDS, _FIELDS, _AGE, _NORMAL = (
    OWN + key for key in ("counts", "sources", "records", "fields", "age", "normal")
)


class SkewState:
    """Counters and records of the filter in the base's first parameter group, the EMA normal in the parameters' state.

    Every checkpoint library of torch carries the first parameter group, and a plain optimizer ignores what it does not
    know there (a key of ``state`` that is no parameter breaks torch.distributed.checkpoint). Tensors change in place.

    Args:
        base: the optimizer whose groups and state hold ours.
        skew_filter: says what there is to remember.
    """

    def __init__(self, base: Optimizer, skew_filter: SkewFilter) -> None:
        self._base = base
        self._filter = skew_filter
        self.make_room()

    @property
    def counts(self) -> Tensor:
        """Steps taken and steps skipped."""
        counts: Tensor = self._group()[_COUNTS]
        return counts

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of their first blocks."""
        names: str = self._group()[_SOURCES]
        return names.split("\n") if names else []

    @property
    def records(self) -> Tensor:
        """What is known of every source and scope, ``[sources, scopes, len(self._filter.record)]``."""
        records: Tensor = self._group()[_RECORDS]
        count = len(self.sources)
        return records if len(records) == count else records[:count]

    def make_room(self, sources: Sequence[str] = ()) -> None:
        """Create what is missing for these sources, the scopes there are now and the filter's options."""
        group = self._group()
        device = group["params"][0].device if group["params"] else torch.device("cpu")
        options: dict[str, Any] = {"dtype": widest(device), "device": device}
        fields = self._filter.record
        if _COUNTS not in group:
            # Names in one string, because checkpoint libraries flatten lists; room for one source, or for those that
            # have a weight, so that such a library finds the shape that it knows.
            gammas = self._filter.gamma_source
            rows = len(gammas) if isinstance(gammas, Mapping) else 1
            group.update({_COUNTS: torch.zeros(2, **options), _SOURCES: "", _FIELDS: "\n".join(fields)})
            group[_RECORDS] = torch.zeros(rows, self._num_scopes(), len(fields), **options)
        new = [name for name in sources if name not in self.sources]
        if new:
            group[_SOURCES] = "\n".join([*self.sources, *new])
        old, since = group[_RECORDS], group[_FIELDS].split("\n")
        size = (max(len(self.sources), len(old)), self._num_scopes())
        if old.shape[:2] != size or since != list(fields):  # a loaded state may be that of other options
            records = torch.zeros(*size, len(fields), **options)
            kept = [name for name in fields if name in since]
            to, of = [fields.index(name) for name in kept], [since.index(name) for name in kept]
            scopes = min(old.shape[1], size[1])
            records[: len(old), :scopes, to] = old[:, :scopes, of]
            group.update({_RECORDS: records, _FIELDS: "\n".join(fields)})
            new = [*new, ""]
        if new and self._filter.lag > 1:
            group[_AGE] = 0  # what is new has no weights yet

    def follow_device(self) -> None:
        """After loading: torch moves a loaded state to the parameters' device, but not what lies in the groups."""
        group = self._group()
        if group["params"]:
            device = group["params"][0].device
            group.update({key: group[key].to(device) for key in (_COUNTS, _RECORDS) if key in group})
        self.make_room()

    def records_of(self, sources: Sequence[str]) -> Tensor:
        rows = [self.sources.index(name) for name in sources]
        # Usually all of them: then the tensor itself, so that nothing is launched.
        return self.records if rows == list(range(len(self.records))) else torch.stack([self.records[i] for i in rows])

    def is_due(self, sources: Sequence[str]) -> bool:
        """Whether the filter has to look at the gradients, or the weights of the last time do (``lag``)."""
        if self._filter.lag == 1 or self._group().get(_AGE, 0) % self._filter.lag == 0:
            return True
        return any(name not in self.sources for name in sources)

    def grow_older(self) -> None:
        """A step with filtered gradients was taken."""
        if self._filter.lag > 1:
            self._group()[_AGE] = self._group().get(_AGE, 0) + 1

    def count_step(self, skipped: Tensor | bool) -> None:
        if isinstance(skipped, Tensor):
            self.counts.add_(torch.stack((1 - skipped, skipped)).to(self.counts))
        else:
            self.counts[int(skipped)] += 1

    def keep(self, sources: Sequence[str], records: Tensor, skipped: Tensor | None) -> None:
        """Make the records of these sources those of a step, unless that step was skipped."""
        if skipped is not None:
            records = torch.where(skipped.to(records.device) > 0, self.records_of(sources), records)
        if list(sources) == self.sources:
            self.records.copy_(records)
            return
        for name, record in zip(sources, records, strict=True):
            self.records[self.sources.index(name)].copy_(record)

    def normals(self) -> list[Tensor | None]:
        """The running average of the target gradient, where there is one yet."""
        state: Mapping[Tensor, Any] = self._base.state
        return [state[p].get(_NORMAL) if p in state else None for group in self._groups() for p in group["params"]]

    @torch.no_grad()
    def move_normals(self, target: Gradient) -> None:
        # After the base's step, because bases initialise the state of a parameter when it is empty.
        normals, gradients = [], []
        params = [p for group in self._groups() for p in group["params"]]
        for p, g in zip(params, target, strict=True):
            if g is None:
                continue
            g = g.to_dense() if g.layout is not torch.strided else g
            if _NORMAL in self._base.state[p]:
                normals.append(self._base.state[p][_NORMAL])
                gradients.append(g)
            else:
                self._base.state[p][_NORMAL] = g.clone()
        if normals:
            torch._foreach_lerp_(normals, gradients, self._filter.ema_rate)

    def scopes(self) -> list[int] | None:
        """For every parameter the scope to which it belongs; None if there is one for all."""
        if self._filter.scope == "global":
            return None
        if self._filter.scope == "tensor":
            return list(range(self._num_scopes()))
        return [i for i, group in enumerate(self._groups()) for _ in group["params"]]

    def scope_names(self) -> list[str]:
        if self._filter.scope == "global":
            return ["global"]
        if self._filter.scope == "group":
            return [str(group.get("name", f"group {i}")) for i, group in enumerate(self._groups())]
        return [name_of(group, i, j) for i, group in enumerate(self._groups()) for j in range(len(group["params"]))]

    def _num_scopes(self) -> int:
        if self._filter.scope == "global":
            return 1
        if self._filter.scope == "group":
            return len(self._groups())
        return sum(len(group["params"]) for group in self._groups())

    def _groups(self) -> list[dict[str, Any]]:
        return self._base.param_groups

    def _group(self) -> dict[str, Any]:
        return self._base.param_groups[0]
