"""The inner products of several gradients, from which every filter takes its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.distributed.tensor import DTensor, Partial

from tsjt_pyg.optim.filters.grouping import (
    alike,
    bucket_elements,
    check_paired,
    constant,
    filled_buckets,
    holds_dtensors,
    locals_of,
    take,
)

# Large tensors are read in slices that stay in the cache between the products.
_CPU_SLICE_ELEMENTS = 2**20
_SLICE_ELEMENTS = 2**26
# Up to here widening to float64 costs nothing that one could measure.
_WIDE_ELEMENTS = 2**11
# A sum of squares that float32 holds only in part counts as 0.
_SMALLEST_NARROW_SQUARE = 1e-30


def gramian(
    *gradients: Sequence[Tensor],
    scopes: Sequence[int] | None = None,
    num_scopes: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    r"""The inner products :math:`G_{ij} = \langle g_i, g_j\rangle` of :math:`m` gradients.

    Float64 gradients and small float32 ones are multiplied and summed in float64, large ones in float32 (halves are
    widened to it first), in slices whose sums are added in float64. So no squared float16 norm overflows; a large one
    whose norm is above 1e19 gives infinity, and one below 1e-15 counts as zero.

    DTensors give their global products: the local ones are summed over the mesh dimensions that shard them.

    Args:
        gradients: :math:`m` lists with one tensor a parameter each; dtypes, devices and layouts (strided or sparse COO)
            may be mixed.
        scopes: for every parameter the scope to which it belongs, counted from 0. None: all belong to one.
        num_scopes: how many scopes there are. None: as many as the last one in ``scopes`` says.
        groups: which parameters have gradients of one kind, if that is known already.

    Returns:
        float64 tensor ``[m, m]``, or ``[number of scopes, m, m]`` where ``scopes`` is given, on the device of one of
        the gradients (float32 on devices that have no float64).

    Raises:
        ValueError: if the lists differ in length, or a DTensor holds partial sums.

    Example:
        >>> gramian([torch.tensor([1.0, -2.0])], [torch.tensor([0.0, 1.0])])
        tensor([[ 5., -2.],
                [-2.,  1.]], dtype=torch.float64)
    """
    check_paired(*gradients)
    if scopes is None:
        return _gramian_of_one_scope(gradients, groups)
    per_scope: dict[int, list[int]] = {}
    for i, scope in enumerate(scopes):
        per_scope.setdefault(scope, []).append(i)
    count = max(per_scope, default=-1) + 1 if num_scopes is None else num_scopes
    of_scope = {k: _gramian_of_one_scope([[g[i] for i in of] for g in gradients]) for k, of in per_scope.items()}
    device = next((g.device for g in of_scope.values() if g.device.type != "cpu"), torch.device("cpu"))
    # Made where it is needed: a copy to the device would wait for it.
    nothing = torch.zeros(len(gradients), len(gradients), dtype=widest(device), device=device)
    grams = [of_scope[k].to(device) if k in of_scope else nothing for k in range(count)]
    return torch.stack(grams) if grams else nothing.expand(0, -1, -1)


def _gramian_of_one_scope(
    gradients: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[int]] | None = None
) -> Tensor:
    if not holds_dtensors(gradients[0]):
        return _local_gramian(gradients, groups)
    of_mesh: dict[object, list[int]] = {}
    for i, t in enumerate(gradients[0]):
        of_mesh.setdefault((t.device_mesh, t.placements) if isinstance(t, DTensor) else None, []).append(i)
    total: Tensor | None = None
    for members in of_mesh.values():
        # Products of one mesh are summed over the same processes.
        part = take(gradients, members)
        gram = _local_gramian([locals_of(g) for g in part])
        if isinstance(part[0][0], DTensor):
            gram = _sum_over_shards(gram, part[0][0])
        total = gram if total is None else total + gram.to(total.device)
    assert total is not None
    return total


def _sum_over_shards(gram: Tensor, like: DTensor) -> Tensor:
    if any(p.is_partial() for p in like.placements):
        raise ValueError(
            f"a gradient is a DTensor with placements {like.placements}, whose partial sums have no inner product; "
            "allowed are Shard and Replicate: redistribute the gradients first"
        )
    placements = [Partial() if p.is_shard() else p for p in like.placements]
    return DTensor.from_local(gram, like.device_mesh, placements, run_check=False).full_tensor()


def _local_gramian(gradients: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[int]] | None = None) -> Tensor:
    m = len(gradients)
    pairs = [(i, j) for i in range(m) for j in range(i, m)]
    narrow: list[Tensor] = []
    wide: list[Tensor] = []
    dot = torch.dot
    for members in alike(gradients) if groups is None else groups:
        for vectors in _pieces(take(gradients, members)):
            sums = narrow if vectors[0].dtype is torch.float32 else wide
            for i, j in pairs:
                sums.append(dot(vectors[i], vectors[j]))
    total: Tensor | None = None
    for sums in (narrow, wide):
        if not sums:
            continue
        device = sums[-1].device
        here = sums if len({s.get_device() for s in sums}) == 1 else [s.to(device) for s in sums]
        parts = torch.stack(here).view(-1, len(pairs)).sum(0, dtype=widest(device))
        places, squares = _places(m, device)
        if sums is narrow:
            # A product, so that nan stays: it has to be seen.
            parts = parts * (parts.take(squares).amin(0) >= _SMALLEST_NARROW_SQUARE)
        gram = parts.take(places)
        total = gram if total is None else total + gram.to(total.device)
    return torch.zeros(m, m, dtype=torch.float64) if total is None else total


@constant
def _places(m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the product of every two vectors stands in the list of pairs, and where each pair's two squares stand."""
    pairs = [(i, j) for i in range(m) for j in range(i, m)]
    places = [[pairs.index((min(i, j), max(i, j))) for j in range(m)] for i in range(m)]
    squares = [[pairs.index((i, i)) for i, _ in pairs], [pairs.index((j, j)) for _, j in pairs]]
    return torch.tensor(places, device=device), torch.tensor(squares, device=device)


def widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _pieces(gradients: Sequence[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
    """Of gradients that are alike: the same piece of each as a vector, until all pieces have been handed out."""
    first = gradients[0][0]
    if any(g[0].layout is not torch.strided for g in gradients):
        yield _aligned([g[0] for g in gradients])
        return
    dtype = first.dtype
    if dtype.is_complex:
        gradients = [[torch.view_as_real(t.resolve_conj()) for t in g] for g in gradients]
        dtype = dtype.to_real()
    elif any(g[0].dtype is not dtype for g in gradients):  # comes alone
        dtype = widest(first.device)
        gradients = [[g[0].to(dtype)] for g in gradients]
    # Halves are widened piece by piece.
    work = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    slice_size = _CPU_SLICE_ELEMENTS if first.device.type == "cpu" else _SLICE_ELEMENTS
    capacity = bucket_elements(first.device)
    sizes = [t.numel() for t in gradients[0]]
    small: list[int] = []
    for i, size in enumerate(sizes):
        if size < capacity // 4:
            small.append(i)
            continue
        flat = [g[i].reshape(-1) for g in gradients]
        for piece in (flat,) if size <= slice_size else zip(*(v.split(slice_size) for v in flat), strict=True):
            yield piece if work is dtype else [v.to(work) for v in piece]
    of_small = take(gradients, small)
    for run in filled_buckets([sizes[i] for i in small], capacity):
        gathered = [_flatten_dense_tensors(g[run.start : run.stop]) for g in of_small]
        of_run = widest(first.device) if gathered[0].numel() <= _WIDE_ELEMENTS else work
        yield gathered if of_run is dtype else [v.to(of_run) for v in gathered]


def _aligned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sparse tensors, with dense ones among them or not, as vectors over the elements that any of them stores."""
    wide = widest(tensors[0].device)
    if not all(t.is_sparse for t in tensors):
        return [(t.to_dense() if t.is_sparse else t).reshape(-1).to(wide) for t in tensors]
    # Zeros on the elements of all of them give them one pattern.
    everywhere = tensors[0] * 0.0
    for t in tensors[1:]:
        everywhere = everywhere + t * 0.0
    return [(t + everywhere).coalesce().values().reshape(-1).to(wide) for t in tensors]
