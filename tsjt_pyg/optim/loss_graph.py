"""What a loss was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def graph_of(loss: Tensor) -> tuple[set[Any], set[Tensor]]:
    """The nodes of a loss's graph that its backward pass frees, and the leaves to which it adds a gradient."""
    nodes: set[Any] = set()
    leaves: set[Tensor] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        if node.name().endswith("AccumulateGrad"):
            leaves.add(node.variable)  # type: ignore[attr-defined]
            continue
        nodes.add(node)
        waiting += [following for following, _ in node.next_functions]
    return nodes, leaves
