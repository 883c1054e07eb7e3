"""Keeps the gradients of several cities apart while autograd knows only one ``.grad`` a parameter."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsjt_pyg.optim.filters.grouping import locals_of
from tsjt_pyg.optim.parallel import ParallelModels, is_parallel
from tsjt_pyg.optim.skew_filter import Filtered, Gradient

_logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """Whose gradient a block gathers."""

    role: str  # "source", "target" or "held_out"
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.role}({'' if self.name is None else repr(self.name)})"


TARGET = Kind("target")
HELD_OUT = Kind("held_out")

#: Called with all gradients of the round and whether they may be overwritten; None where there is nothing to
#: filter yet.
Filter = Callable[[Mapping[Kind, Gradient], bool], Filtered | None]


class GradientSlots:
    """The gradients of one round, that is, from one ``zero_grad()`` or ``step()`` to the next.

    Inside a block, ``.grad`` holds what the blocks of that kind have gathered so far, so that autograd (and the reducer
    of DDP) add to it; outside, it holds one ordinary gradient: the filtered one, or the sum of what there is. Whatever
    ``.grad`` held that no block wrote is an *outer* gradient: it is set aside during blocks and added, unfiltered, to
    what the filter returns.

    The filter may write its result over one of the gradients, so that one copy beyond ``.grad`` is enough; a further
    block then first takes the filter back.

    All state lies in this one object and is changed in place, because wrappers of optimizers copy references to
    attributes.

    Args:
        filter_gradients: called whenever a gradient has changed.
    """

    def __init__(self, filter_gradients: Filter) -> None:
        self._filter = filter_gradients
        #: What the blocks gathered, one entry a parameter.
        self.gathered: dict[Kind, list[Tensor | None]] = {}
        self._outer: list[Tensor | None] = []
        # What the last block left in `.grad`, and the counters that tell whether it was changed in place since.
        self._written: list[Tensor | None] = []
        self._versions: list[int] = []
        # What `.grad` held when the block was entered, with the same counters.
        self._entered: tuple[list[Tensor | None], list[int]] | None = None
        self.open_block: Kind | None = None
        #: What the filter made of this round; None as long as there is nothing to filter.
        self.filtered: Filtered | None = None
        #: The sources whose weighted losses made this round's gradient in one backward pass.
        self.weighed: list[str] = []
        #: The models that several processes train; known from the first block on.
        self.parallel: ParallelModels | None = None
        self._warned = False
        self._parallel = False
        self._last: Kind | None = None
        self._reductions: list[Any] = []

    def clear(self) -> None:
        """Forget the round. ``.grad`` is left as it is."""
        self.gathered.clear()
        self._outer.clear()
        self._written.clear()
        self.filtered = None
        self.weighed = []
        self._last = None
        self._entered = None

    @property
    def holds_outer(self) -> bool:
        return bool(self._outer)

    @contextmanager
    def block(self, kind: Kind, params: Callable[[], list[Tensor]]) -> Iterator[None]:
        """Gather what backward passes inside the block leave in ``.grad`` as the gradient of one kind."""
        if self.open_block is not None:
            raise RuntimeError(
                f"{kind} was entered inside {self.open_block}, but a gradient belongs to one of the two: leave the "
                "first block before entering the next (for losses of one forward: backward(source_loss, target_loss))"
            )
        if self.parallel is None:
            self.parallel = ParallelModels(params())
        self.open_block = kind
        try:
            if self._last not in (None, kind):
                self.parallel.check_nothing_pending(self._last, kind)
            self._enter(kind, params())
            self._reductions = self.parallel.reductions()
            yield
            self._leave(kind, params())
            self._last = kind
        except BaseException:
            # backward may have added a part of its gradients to those of earlier blocks, so none can be trusted.
            self.clear()
            for p in params():
                p.grad = None
            raise
        finally:
            self.open_block = None

    def _enter(self, kind: Kind, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        if all(g is None for g in grads) and HELD_OUT not in self.gathered:  # also after the model's own zero_grad()
            if self._written:
                self.clear()
        elif self._changed(grads):
            if self.gathered and not self._warned:
                self._warned = True
                _logger.warning(
                    "the gradients were changed since %s was left (clipped, or added to outside of the blocks), so "
                    "they count as ordinary ones from here on, and %s begins anew: change them after the last block",
                    self._last,
                    kind,
                )
            self.clear()
            self._outer = [None if g is None else g.detach().clone() for g in grads]
        elif self.filtered is not None and self.filtered.undo is not None:
            self.filtered.undo()
        self.filtered = None
        self._written.clear()
        for other, gradients in self.gathered.items():
            if other != kind:
                # A view belongs to a buffer, such as a bucket of DDP, that the backward pass of this block overwrites.
                gradients[:] = [g.detach().clone() if g is not None and g._is_view() else g for g in gradients]
        mine = self.gathered.get(kind, [])
        _put(params, grads, mine)
        self._parallel = is_parallel()
        self._entered = (mine, _versions(mine)) if self._parallel else None

    @torch.no_grad()
    def _leave(self, kind: Kind, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        if self.parallel is not None and self._entered is not None:
            mine, versions = self._entered
            if not all(map(operator.is_, grads, mine)) or _versions(grads) != versions:
                self.parallel.check_reduced(self._reductions, kind)
        self.gathered[kind] = list(grads)
        for gradients in self.gathered.values():  # a parameter group may have been added since
            gradients += [None] * (len(params) - len(gradients))
        # A filtered gradient can be taken back but for rounding, which would differ between processes where one of the
        # two has not been reduced yet.
        self.filtered = self._filter(self.gathered, not self._outer and not self._parallel)
        result = _sum_of(self.gathered, len(params)) if self.filtered is None else self.filtered.gradient
        for i, outer in enumerate(self._outer):
            if outer is not None:
                g = result[i]
                result[i] = outer if g is None else _add(outer, g)
        _put(params, grads, result)
        self._written = list(result)
        self._versions = _versions(result)

    def changed_by_others(self, params: Iterable[Tensor]) -> bool:
        """Whether ``.grad`` is not as the last block left it."""
        return self._changed([p.grad for p in params])

    def _changed(self, grads: list[Tensor | None]) -> bool:
        # A parameter group may have been added since.
        if len(grads) < len(self._written) or any(g is not None for g in grads[len(self._written) :]):
            return True
        if not self._written:
            return False
        if all(map(operator.is_, grads, self._written)):
            return _versions(grads) != self._versions
        return not all(map(_is_same, grads, self._written))


def _is_same(grad: Tensor | None, written: Tensor | None) -> bool:
    """Whether it is the same gradient; a forward pass of DDP may have moved it into a new bucket."""
    if grad is written:
        return True
    return grad is not None and written is not None and grad._is_view() and torch.equal(grad, written)


def _put(params: list[Tensor], old: list[Tensor | None], new: list[Tensor | None]) -> None:
    for p, before, after in itertools.zip_longest(params, old, new):
        if after is not before:
            p.grad = after


def _versions(gradients: Iterable[Tensor | None]) -> list[int]:
    """Counts changes in place; of DTensors those of the local part, to which FSDP adds behind its back."""
    given = [g for g in gradients if g is not None]
    return [g._version for g in locals_of(given)]


def _sum_of(gathered: Mapping[Kind, list[Tensor | None]], count: int) -> list[Tensor | None]:
    """The ordinary gradient of a round without anything to filter."""
    if len(gathered) == 1 and HELD_OUT not in gathered:
        return list(*gathered.values())
    result: list[Tensor | None] = [None] * count
    for kind, gradients in gathered.items():
        if kind == HELD_OUT:
            continue
        for i, g in enumerate(gradients):
            total = result[i]
            result[i] = g if total is None else total if g is None else _add(total, g)
    return result


def _add(first: Tensor, second: Tensor) -> Tensor:
    # torch adds a sparse tensor to a dense one, but not the other way round.
    return second + first if first.is_sparse else first + second
