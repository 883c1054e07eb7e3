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
_COUNTS, _SOURCES, _RECORDS, _FIELDS, _AGES, _NORMAL = (
    OWN + key for key in ("counts", "sources", "records", "fields", "ages", "normal")
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
        self._layout = "\n".join((skew_filter.scope, *skew_filter.record))
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
        layout = self._layout
        if _COUNTS not in group:
            # Names in one string, because checkpoint libraries flatten lists; room for one source, or for those that
            # have a weight, so that such a library finds the shape that it knows.
            gammas = self._filter.gamma_source
            rows = len(gammas) if isinstance(gammas, Mapping) else 1
            group.update({_COUNTS: torch.zeros(2, **options), _SOURCES: "", _FIELDS: layout})
            group[_RECORDS] = self._fresh(rows, options)
        elif group[_COUNTS].device != device:  # the model was moved
            group.update({key: group[key].to(device) for key in (_COUNTS, _RECORDS)})
        names = self.sources
        new = [name for name in sources if name not in names]
        if new:
            names += new
            group[_SOURCES] = "\n".join(names)
        old = group[_RECORDS]
        size = (max(len(names), len(old)), self._num_scopes())
        if old.shape[:2] != size or group[_FIELDS] != layout:  # a loaded state may be that of other options
            fields, (scope, *since) = self._filter.record, group[_FIELDS].split("\n")
            records = self._fresh(size[0], options)
            kept = [name for name in fields if name in since] if scope == self._filter.scope else []
            to, of = [fields.index(name) for name in kept], [since.index(name) for name in kept]
            scopes = min(old.shape[1], size[1])
            records[: len(old), :scopes, to] = old[:, :scopes, of]
            if old.shape[1] != size[1] or group[_FIELDS] != layout:
                group.pop(_AGES, None)  # what is new has no weights yet; a new source has no age anyway
            group.update({_RECORDS: records, _FIELDS: layout})

    def _fresh(self, rows: int, options: dict[str, Any]) -> Tensor:
        # A weight that nobody has decided yet is 1.
        start = torch.tensor([float(name == "factor") for name in self._filter.record], **options)
        return start.repeat(rows, self._num_scopes(), 1)

    def records_of(self, sources: Sequence[str]) -> Tensor:
        rows = [self.sources.index(name) for name in sources]
        # Usually all of them: then the tensor itself, so that nothing is launched.
        return self.records if rows == list(range(len(self.records))) else torch.stack([self.records[i] for i in rows])

    def is_due(self, sources: Sequence[str]) -> bool:
        """Whether the filter has to look at the gradients, or the weights of the last time do (``lag``)."""
        if self._filter.lag == 1:
            return True
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"lag={self._filter.lag} decides in every step whether to look at the gradients, which a CUDA graph "
                "cannot: capture with lag=1"
            )
        ages = self._ages()
        return any(ages.get(name, 0) % self._filter.lag == 0 for name in sources)

    def grow_older(self, sources: Sequence[str]) -> None:
        """A step with filtered gradients of these sources was taken."""
        if self._filter.lag > 1 and sources:
            ages = self._ages()
            ages.update({name: ages.get(name, 0) + 1 for name in sources})
            self._group()[_AGES] = "\n".join(str(ages.get(name, 0)) for name in self.sources)

    def _ages(self) -> dict[str, int]:
        """Steps of every source since the first look at its gradients."""
        ages = self._group().get(_AGES, "")
        return dict(zip(self.sources, map(int, ages.split("\n") if ages else ()), strict=False))

    def count_step(self, skipped: Tensor | bool) -> None:
        if isinstance(skipped, Tensor):
            self.counts.add_(torch.stack((1 - skipped, skipped)).to(self.counts))
        else:
            self.counts.unbind()[int(skipped)].add_(1)

    def keep(self, sources: Sequence[str], records: Tensor, skipped: Tensor | None) -> None:
        """Make the records of these sources those of a step, unless that step was skipped."""
        # Whoever mended a gradient before the step may go on with it, but what is remembered stays as it was.
        records = torch.where(records.isfinite(), records, self.records_of(sources)[:, : records.shape[1]])
        if skipped is not None:
            records = torch.where(skipped.to(records.device) > 0, self.records_of(sources), records)
        # A parameter group may have been added since.
        if list(sources) == self.sources:
            self.records[:, : records.shape[1]].copy_(records)
            return
        for name, record in zip(sources, records, strict=True):
            self.records[self.sources.index(name), : len(record)].copy_(record)

    def normals(self) -> list[Tensor | None]:
        """The running average of the target gradient, where there is one yet."""
        state: Mapping[Tensor, Any] = self._base.state
        return [state[p].get(_NORMAL) if p in state else None for group in self._groups() for p in group["params"]]

    @torch.no_grad()
    def move_normals(self, target: Gradient) -> None:
        # After the base's step, because bases initialise the state of a parameter when it is empty.
        params = [p for group in self._groups() for p in group["params"]]
        for p, g in zip(params, target, strict=False):  # a parameter group may have been added since
            if g is None or p.grad is None:  # the base has made no state for it
                continue
            g = g.to_dense() if g.layout is not torch.strided else g
            if _NORMAL in self._base.state[p]:
                normal = self._base.state[p][_NORMAL]
                # One at a time, because each takes scratch memory.
                normal.lerp_(torch.where(g.isfinite(), g, normal), self._filter.ema_rate)
            else:
                self._base.state[p][_NORMAL] = g.nan_to_num(0.0, 0.0, 0.0)

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
