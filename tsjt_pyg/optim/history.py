"""Diagnostics of every step of a TargetSkewedOptimizer, without waiting for the device."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from tsjt_pyg.optim.skew_filter import RECORD
from tsjt_pyg.optim.target_skewed import TargetSkewedOptimizer


class ScalarWriter(Protocol):
    """What ``torch.utils.tensorboard.SummaryWriter`` and its likes can do."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class SkewHistory:
    """Keeps what the filter found in every step: cosine, conflict, norms and kappa, by source and scope.

    A hook on ``step()`` copies the optimizer's records, a few numbers on its device, and waits for nothing; they are
    read when :meth:`to_frame` is called or, with a writer, in every ``every``-th step at once.

    Args:
        optimizer: whose steps to follow, from now on.
        writer: gets all quantities as scalars, tagged ``{prefix}/{quantity}`` (with several sources
            ``{prefix}/{source}/{quantity}``, with several scopes ``…/{scope}/{quantity}`` too).
            ``torch.utils.tensorboard.SummaryWriter`` is one.
        every: how many steps are read at once for the writer.
        prefix: first part of the tags.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = TargetSkewedOptimizer([p], torch.optim.SGD, lr=0.1)
        >>> history = SkewHistory(optimizer)
        >>> optimizer.backward(p.sum(), -p.sum())
        >>> optimizer.step()
        >>> history.to_frame()[["step", "conflict", "kappa"]].values.tolist()
        [[1, True, 1.0]]
    """

    def __init__(
        self,
        optimizer: TargetSkewedOptimizer,
        writer: ScalarWriter | None = None,
        *,
        every: int = 50,
        prefix: str = "skew",
    ) -> None:
        if not isinstance(optimizer, TargetSkewedOptimizer):
            raise TypeError(
                f"optimizer must be a TargetSkewedOptimizer, but is a {type(optimizer).__name__}; of a wrapper, give "
                "what it wraps (its .optimizer)"
            )
        if every < 1:
            raise ValueError(f"every must be at least 1, but is {every!r}")
        self.writer, self.every, self.prefix = writer, every, prefix
        self._own = optimizer.skew_state
        # The first entry is what was before the first step, since counters only tell by their change.
        self._counts = [self._own.counts.clone()]
        self._records = [self._own.records.clone()]
        self._given = 0
        self._handle = optimizer.register_step_post_hook(lambda *_: self._look())

    def __len__(self) -> int:
        """Number of steps followed."""
        return len(self._counts) - 1

    def _look(self) -> None:
        self._counts.append(self._own.counts.clone())
        self._records.append(self._own.records.clone())
        if self.writer is not None and len(self) - self._given >= self.every:
            self.flush()

    def to_frame(self) -> pd.DataFrame:
        """One row a step, source and scope; waits for the device.

        Returns:
            Columns ``step`` (counted from the optimizer's first, skipped ones included), ``source``, ``scope``,
            ``skipped`` (nan or inf), ``filtered`` (whether this step had gradients to filter; else the quantities are
            those of the last one that had), ``conflict``, and the quantities of
            :meth:`~tsjt_pyg.optim.TargetSkewedOptimizer.stats`: ``cosine``, ``source_norm``, ``target_norm``,
            ``kappa``.
        """
        return self._frame(0)

    def _frame(self, start: int) -> pd.DataFrame:
        """The rows from that step on."""
        sources, scopes = self._own.sources, self._own.scope_names()
        counts = torch.stack(self._counts[start:]).cpu()
        records = torch.stack([_padded(r, len(sources), len(scopes)) for r in self._records[start:]]).cpu()
        fields = {name: records[..., i].double() for i, name in enumerate(RECORD)}
        # Where sources and scopes vary fastest, as the rows do.
        steps = counts.sum(1)[1:, None, None].expand(-1, len(sources), len(scopes))
        skipped = (counts[1:, 1] > counts[:-1, 1])[:, None, None].expand_as(steps)
        norms = fields["source_square"].sqrt() * fields["normal_square"].sqrt()
        columns = {
            "step": steps.long(),
            "skipped": skipped,
            "filtered": fields["filtered"][1:] > fields["filtered"][:-1],
            "conflict": fields["conflicts"][1:] > fields["conflicts"][:-1],
            "cosine": (fields["dot"] / norms.clamp(min=torch.finfo(norms.dtype).tiny))[1:],
            "source_norm": fields["source_square"].sqrt()[1:],
            "target_norm": fields["target_square"].sqrt()[1:],
            "kappa": fields["kappa"][1:],
        }
        frame = pd.DataFrame({name: column.reshape(-1).numpy() for name, column in columns.items()})
        names = [(source, scope) for source in sources for scope in scopes] * (len(counts) - 1)
        frame.insert(1, "source", [source for source, _ in names])
        frame.insert(2, "scope", [scope for _, scope in names])
        return frame

    def flush(self) -> None:
        """Give the writer the steps that it has not got yet; waits for the device."""
        if self.writer is None or self._given == len(self):
            return
        frame = self._frame(self._given)
        self._given = len(self)
        several = [name for name in ("source", "scope") if frame[name].nunique() > 1]
        for row in frame[frame["filtered"]].to_dict("records"):
            tag = "/".join([self.prefix, *(row[name] for name in several)])
            for quantity in ("conflict", "cosine", "source_norm", "target_norm", "kappa"):
                self.writer.add_scalar(f"{tag}/{quantity}", float(row[quantity]), row["step"])
        self.writer.add_scalar(f"{self.prefix}/skipped_steps", float(self._counts[-1][1]), int(self._counts[-1].sum()))

    def close(self) -> None:
        """Follow no further steps, and give the writer what it has not got yet."""
        self._handle.remove()
        self.flush()

    def state_dict(self) -> dict[str, Tensor]:
        """What was followed, to continue after a break; loads with ``weights_only=True``."""
        sources, scopes = self._own.records.shape[:2]
        return {
            "counts": torch.stack(self._counts),
            "records": torch.stack([_padded(r, sources, scopes) for r in self._records]),
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue what another history followed; load the optimizer's state too, which knows the sources."""
        self._counts = list(state_dict["counts"].to(self._own.counts.device).unbind())
        self._records = list(state_dict["records"].to(self._own.records.device).unbind())
        self._given = len(self)


def _padded(records: Tensor, sources: int, scopes: int) -> Tensor:
    """A record from before a source or a scope joined, with zeros for it."""
    if records.shape[:2] == (sources, scopes):
        return records
    padded = records.new_zeros(sources, scopes, records.shape[2])
    padded[: records.shape[0], : records.shape[1]] = records
    return padded
