"""One fixed, weighted graph applied many times to node features: ``out[i] = sum over edges (j, i) of w_ji x[j]``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

# torch says so once per process; nothing here uses more of CSR than one product.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class Propagation:
    """The linear operator of a weighted graph, built once and applied to any number of features.

    Nodes come first and everything else (steps, windows, channels) lies beside the features, so that one product with
    a sparse matrix serves all of them. There is no dense form for small cities: at 207 nodes it took 5 times as long
    with 7 edges a node, 2.6 times with 14, and it is the faster one only where about a quarter of all pairs are joined.

    Args:
        edge_index: ``[2, E]``, from ``edge_index[0]`` to ``edge_index[1]``; parallel edges add up.
        weight: ``[E]``.
        num_nodes: Number of nodes ``N``.
    """

    def __init__(self, edge_index: Tensor, weight: Tensor, num_nodes: int) -> None:
        self.edge_index = edge_index
        self.weight = weight
        self.num_nodes = num_nodes
        self._bags: tuple[Tensor, Tensor, Tensor] | None = None
        if torch.compiler.is_exporting():  # the program knows no sparse matrices
            self.matrices: tuple[Tensor, Tensor] | None = None
            self._bags = self._sorted()
            return
        # A learned edge weight needs its own gradient, which the matrix product below does not give; and torch has no
        # CSR product for half precision or for other devices.
        self.matrices = None
        if (
            not weight.requires_grad
            and weight.dtype in (torch.float32, torch.float64)
            and weight.device.type in ("cpu", "cuda")
        ):
            here = weight != 0  # what weighs nothing is not worth its room
            index, values = (edge_index, weight) if bool(here.all()) else (edge_index[:, here], weight[here])
            matrix = self._csr(index.flip(0), values)
            self.matrices = (matrix, self._csr(index, values))
            # No views of the matrix, which torch.export would have to take along.
            self._bags = matrix.col_indices().clone(), matrix.crow_indices()[:-1].clone(), matrix.values().clone()

    def _csr(self, index: Tensor, values: Tensor) -> Tensor:
        size = (self.num_nodes, self.num_nodes)
        matrix = torch.sparse_coo_tensor(index, values, size, check_invariants=False)
        return matrix.coalesce().to_sparse_csr()

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, ...] -> [N, ...]``."""
        flat = x.reshape(self.num_nodes, -1)
        if self.matrices is not None and flat.dtype == self.weight.dtype and not torch.compiler.is_compiling():
            out: Tensor = _SparseProduct.apply(flat, *self.matrices)
        elif torch.compiler.is_exporting() and self._bags is not None:  # sums messages without making them first
            index, starts, weight = self._bags
            weight = weight.to(flat.dtype)
            out = torch.nn.functional.embedding_bag(index, flat, starts, mode="sum", per_sample_weights=weight)
        else:  # the compiler knows no sparse matrices
            source, target = self.edge_index
            messages = flat[source] * self.weight.to(flat.dtype).unsqueeze(-1)
            out = torch.zeros_like(flat).index_add(0, target, messages)
        return out.view(x.shape)

    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each node's in-edges come from, where those of a node begin, and their weights."""
        source, target = self.edge_index
        order = target.argsort(stable=True)
        sizes = target.new_zeros(self.num_nodes).index_add(0, target, torch.ones_like(target))
        return source[order], sizes.cumsum(0) - sizes, self.weight[order]

    def apply_(self, out: Tensor, x: Tensor, *, beta: float = 0.0, alpha: float = 1.0, transpose: bool = False) -> None:
        """``out = beta * out + alpha * A x`` in the memory of ``out``, without a gradient; contiguous ``[N, ...]``."""
        assert self.matrices is not None
        flat = out.view(self.num_nodes, -1)
        flat.addmm_(self.matrices[transpose], x.view(self.num_nodes, -1), beta=beta, alpha=alpha)


class _SparseProduct(torch.autograd.Function):
    """``A @ x`` for a constant CSR matrix, with its transpose at hand: torch's own backward transposes it every time,
    which costs ten times the product."""

    @staticmethod
    def forward(x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # it would turn the matrix into half precision
            return matrix @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.matrix, ctx.transpose = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _SparseProduct.apply(gradient.contiguous(), ctx.transpose, ctx.matrix), None, None
