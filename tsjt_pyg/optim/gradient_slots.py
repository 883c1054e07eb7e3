"""Keeps the source and the target gradient apart while autograd knows only one ``.grad`` a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Filter = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], tuple[list[Tensor | None], Tensor | None]]


class GradientSlots:
    """The gradients of one round, that is, from one ``zero_grad()`` or ``step()`` to the next.

    Inside a block, ``.grad`` holds what the blocks of that kind have gathered so far, so that autograd (and the reducer
    of DDP) add to it; outside, it holds one ordinary gradient: the filtered one, or the only one there is. Whatever
    ``.grad`` held that no block wrote is an *outer* gradient: it is set aside during blocks and added, unfiltered, to
    what the filter returns.

    All state lies in this one object and is changed in place, because wrappers of optimizers copy references to
    attributes.

    Args:
        filter_gradients: called with the two lists of gradients whenever one of them has changed.
    """

    def __init__(self, filter_gradients: Filter) -> None:
        self._filter = filter_gradients
        self._gathered: dict[str, dict[Tensor, Tensor]] = {}
        self._outer: dict[Tensor, Tensor] = {}
        # What the last block left in `.grad`, with the counter that tells whether it was changed in place since.
        self._written: dict[Tensor, tuple[Tensor, int]] = {}
        self.open_block: str | None = None
        #: Gramian of this round; None as long as no parameter has both gradients.
        self.gram: Tensor | None = None

    def clear(self) -> None:
        """Forget the round. ``.grad`` is left as it is."""
        self._gathered.clear()
        self._outer.clear()
        self._written.clear()
        self.gram = None

    @contextmanager
    def block(self, kind: str, params: Callable[[], list[Tensor]]) -> Iterator[None]:
        """Gather what backward passes inside the block leave in ``.grad`` as the gradient of one kind."""
        if self.open_block is not None:
            raise RuntimeError(
                f"{kind}() was entered inside {self.open_block}(), but a gradient belongs to one of the two: leave the "
                "first block before entering the next (for losses of one forward: backward(source_loss, target_loss))"
            )
        self.open_block = kind
        try:
            self._enter(kind, params())
            yield
            self._leave(kind, params())
        except BaseException:
            # backward may have added a part of its gradients to those of earlier blocks, so none can be trusted.
            self.clear()
            for p in params():
                p.grad = None
            raise
        finally:
            self.open_block = None

    @torch.no_grad()
    def _enter(self, kind: str, params: list[Tensor]) -> None:
        if self._written_by_others(params):
            self.clear()
            self._outer = {p: p.grad.clone() for p in params if p.grad is not None}
        self._written.clear()
        mine = self._gathered.get(kind, {})
        for p in params:
            p.grad = mine.get(p)
        # What is out of its slot now may be a view of a bucket (DDP) that the backward pass of this block overwrites.
        for other, gradients in self._gathered.items():
            if other != kind:
                for p, g in gradients.items():
                    gradients[p] = g.clone()

    @torch.no_grad()
    def _leave(self, kind: str, params: list[Tensor]) -> None:
        self._gathered[kind] = {p: p.grad for p in params if p.grad is not None}
        source, target = self._gathered.get("source", {}), self._gathered.get("target", {})
        filtered, self.gram = self._filter([source.get(p) for p in params], [target.get(p) for p in params])
        self._written.clear()
        for p, g in zip(params, filtered, strict=True):
            outer = self._outer.get(p)
            if outer is not None:
                # torch adds a sparse tensor to a dense one, but not the other way round.
                g = outer if g is None else g + outer if outer.is_sparse else outer + g
            p.grad = g
            if g is not None:
                self._written[p] = (g, g._version)

    def _written_by_others(self, params: list[Tensor]) -> bool:
        for p in params:
            written, version = self._written.get(p, (None, 0))
            if p.grad is not written or (written is not None and written._version != version):
                return True
        return False


def share_graph(first: Tensor, second: Tensor) -> bool:
    """Whether the two backward passes run through a common node (leaves apart, which no pass frees)."""

    def walk(root: Tensor) -> Iterator[Any]:
        seen, waiting = set(), [root.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen and not node.name().endswith("AccumulateGrad"):
                seen.add(node)
                yield node
                waiting += [following for following, _ in node.next_functions]

    nodes = set(walk(first))
    return any(node in nodes for node in walk(second))
