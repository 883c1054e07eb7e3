"""A city's road network as the cells see it, with the operators made of it, each built once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

RECENT = 32
"""Road networks whose operators are kept; the one that was not asked for the longest makes room for another."""

_recent: OrderedDict[tuple[Hashable, ...], RoadGraph] = OrderedDict()


class RoadGraph:
    """Edges and weights of one city.

    Args:
        edge_index: ``[2, E]``, from and to.
        edge_weight: ``[E]``, or ``None`` where every edge weighs the same.
        num_nodes: Number of nodes ``N``.
    """

    def __init__(self, edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int) -> None:
        self.edge_index, self.edge_weight, self.num_nodes = edge_index, edge_weight, num_nodes
        self._operators: dict[Hashable, object] = {}

    def weight(self, dtype: torch.dtype) -> Tensor | None:
        """The weights in the given precision."""
        return None if self.edge_weight is None else self.edge_weight.to(dtype)

    @torch.compiler.disable  # what is built once need not be compiled
    def operator(self, key: Hashable, build: Callable[[], T]) -> T:
        """What ``build()`` made of this road network when it was first asked for.

        Args:
            key: Names the operator and everything that it depends on besides the road network.
            build: Makes it.
        """
        if key not in self._operators:
            with torch.inference_mode(False):  # training may need it next
                self._operators[key] = build()
        return self._operators[key]  # type: ignore[return-value]


def road_graph(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int) -> RoadGraph:
    """The road network of these very tensors, with what was built of it before.

    It is recognised by the tensors' identity, never by a flag: other tensors, or the same ones changed in place or
    moved, are another road network. A learned edge weight is another one at every call. What changes a tensor behind
    torch's back (``weight.data[0] = …``, a NumPy array that shares its memory) goes unseen: give a new tensor then.
    """
    if edge_weight is not None and edge_weight.requires_grad:
        return RoadGraph(edge_index, edge_weight, num_nodes)
    if torch.compiler.is_exporting() and type(edge_index) is not Tensor:  # it stands for any city's, and has no memory
        return RoadGraph(edge_index, edge_weight, num_nodes)
    tensors = [edge_index] if edge_weight is None else [edge_index, edge_weight]
    if any(tensor.is_inference() for tensor in tensors):  # they do not count their changes
        return RoadGraph(edge_index, edge_weight, num_nodes)
    # The graph holds the tensors, so that no other can have their ids while it is kept.
    key = (num_nodes, *((id(tensor), tensor._version, _memory(tensor)) for tensor in tensors))
    graph = _recent.pop(key, None) or RoadGraph(edge_index, edge_weight, num_nodes)
    _recent[key] = graph
    if len(_recent) > RECENT:
        _recent.popitem(last=False)
    return graph


def _memory(tensor: Tensor) -> Hashable:
    """What ``tensor.data = …`` changes, as moving a module does to its parameters, without counting it."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.device, tensor.dtype, tensor.shape


def check_edges(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int) -> None:
    """Raises a ValueError that says what of a road network is not as it must be.

    Values are looked at on the CPU alone: an accelerator would wait for all work that is queued there.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.long:
        raise ValueError(f"edge_index must be int64 [2, E], found {edge_index.dtype} {list(edge_index.shape)}")
    if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"edge_weight must be [{edge_index.size(1)}], one weight an edge, found {list(edge_weight.shape)}"
        )
    if edge_index.device.type != "cpu" or not edge_index.numel() or torch.compiler.is_compiling():
        return
    if not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ValueError(
            f"edge_index must name nodes 0 to {num_nodes - 1} (x has {num_nodes} nodes), found "
            f"{int(edge_index.min())} to {int(edge_index.max())}"
        )
    if edge_weight is not None and not bool(torch.isfinite(edge_weight).all()):
        raise ValueError(
            f"edge_weight must be finite, found {int((~torch.isfinite(edge_weight)).sum())} weights that are NaN or "
            "infinite; leave these edges out"
        )
