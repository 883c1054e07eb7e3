"""The inner products of several gradients, from which every filter takes its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.distributed.tensor import DTensor, Partial

from tsjt_pyg.optim.filters.grouping import (
    alike,
    bucket_elements,
    check_paired,
    filled_buckets,
    holds_dtensors,
    locals_of,
    take,
)

# So many tensors of one shape are worth buckets of their own.
_FREQUENT = 8
# Large tensors are read in slices that stay in the cache between the products.
_CPU_SLICE_ELEMENTS = 2**20
_SLICE_ELEMENTS = 2**26
# Up to here widening to float64 costs nothing that one could measure.
_WIDE_ELEMENTS = 2**10
# As a method it is not dispatched, which takes as long as the product of small vectors.
array_dot = np.ndarray.dot
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
    plain = _are_plain(gradients)
    #: By device and whether float32 summed them: for each pair the products of its pieces.
    products: dict[tuple[torch.device, bool], list[list[Any]]] = {}
    for members in alike(gradients) if groups is None else groups:
        of_group = take(gradients, members)
        device = of_group[0][0].device
        for vectors in _pieces(of_group, plain):
            first = vectors[0][0]
            dot: Callable[..., Any]
            dot, narrowest = (torch.dot, torch.float32) if isinstance(first, Tensor) else (array_dot, np.float32)
            narrow = first.dtype == narrowest
            of_kind = products.setdefault((device, narrow), [[] for _ in pairs])
            for of_pair, (i, j) in zip(of_kind, pairs, strict=True):
                of_pair += map(dot, vectors[i], vectors[j])
            del first, vectors  # else the scratch of two pieces would be there at a time
    grams = [
        (_sum_of_numbers if plain and device.type == "cpu" else _sum_of_tensors)(of_kind, m, narrow)
        for (device, narrow), of_kind in products.items()
    ]
    # On the device that is not the host, if there is one.
    place = next((gram.device for gram in grams if not gram.is_cpu), torch.device("cpu"))
    total = torch.zeros(m, m, dtype=widest(place), device=place) if len(grams) != 1 else grams.pop()
    for gram in grams:
        total = total + gram.to(place)
    return total


def _are_plain(gradients: Sequence[Sequence[Tensor]]) -> bool:
    """Whether values may be taken out of the tensors: not out of tracers, subclasses, and what has a graph."""
    if torch.compiler.is_compiling() or any(set(map(type, g)) != {Tensor} for g in gradients):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for g in gradients for t in g))


def _sum_of_numbers(products: Sequence[Sequence[Any]], m: int, narrow: bool) -> Tensor:
    """The gramian of products on the host, where numbers are faster than tensors."""
    sums = [sum(map(float, of_pair)) for of_pair in products]
    rows = [[sums[k] for k in of_row] for of_row in _places(m)]
    if narrow:
        counts = [rows[i][i] >= _SMALLEST_NARROW_SQUARE for i in range(m)]
        if not all(counts):
            # A product, so that nan stays: it has to be seen.
            rows = [[rows[i][j] * (counts[i] and counts[j]) for j in range(m)] for i in range(m)]
    return torch.from_numpy(np.array(rows))


def _sum_of_tensors(products: Sequence[Sequence[Tensor]], m: int, narrow: bool) -> Tensor:
    """The same without waiting for the device."""
    device = products[0][0].device
    sums = torch.stack([t for of_pair in products for t in of_pair]).view(len(products), -1)
    of_pairs = sums.sum(1, dtype=widest(device)).unbind()
    gram = torch.stack([of_pairs[k] for of_row in _places(m) for k in of_row]).view(m, m)
    if narrow:
        counts = gram.diagonal() >= _SMALLEST_NARROW_SQUARE
        gram = gram * (counts * counts[:, None])
    return gram


def _places(m: int) -> list[list[int]]:
    """Where the product of every two vectors stands in the list of pairs."""
    return [[min(i, j) * m - min(i, j) * (min(i, j) + 1) // 2 + max(i, j) for j in range(m)] for i in range(m)]


def widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _pieces(gradients: Sequence[Sequence[Tensor]], plain: bool) -> Iterator[Sequence[list[Any]]]:
    """Of gradients that are alike: the same pieces of each as lists of vectors, until all have been handed out.

    Small ones are gathered. Plain tensors on the CPU, unless large, come as arrays of NumPy, whose products cost less
    than half of what torch's do there.
    """
    first = gradients[0][0]
    if any(g[0].layout is not torch.strided for g in gradients):
        yield [[v] for v in _aligned([g[0] for g in gradients])]
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
    on_cpu = first.device.type == "cpu"
    slice_size = _CPU_SLICE_ELEMENTS if on_cpu else _SLICE_ELEMENTS
    capacity = bucket_elements(first.device)
    plain = plain and on_cpu and work is dtype
    others: list[int] = []
    for shape, members in _by_shape(gradients[0]).items():
        size = shape.numel()
        of_shape = take(gradients, members)
        if plain and _WIDE_ELEMENTS < size < capacity and (arrays := _as_arrays(of_shape)):
            yield arrays
        elif size >= capacity // 4:
            for of_one in zip(*of_shape, strict=True):
                for piece in zip(*(t.reshape(-1).split(slice_size) for t in of_one), strict=True):
                    yield [[v.to(work)] for v in piece]
        elif len(members) < _FREQUENT or not shape:
            others += members
        else:
            count = capacity // max(1, size)
            for start in range(0, len(members), count):
                # Several times faster than with a view of each as a vector.
                parts = [g[start : start + count] for g in of_shape]
                yield _gathered([torch.cat(list(part)).reshape(-1) for part in parts], work, plain)
    of_others = take(gradients, others)
    for run in filled_buckets([t.numel() for t in of_others[0]], capacity):
        yield _gathered([_flatten_dense_tensors(g[run.start : run.stop]) for g in of_others], work, plain)


def _gathered(vectors: list[Tensor], dtype: torch.dtype, plain: bool) -> list[list[Any]]:
    """In this dtype, and small ones in the widest there is."""
    to = widest(vectors[0].device) if vectors[0].numel() <= _WIDE_ELEMENTS else dtype
    wide = [[v.to(to)] for v in vectors]
    return (_as_arrays(wide) if plain else None) or wide


def _as_arrays(gradients: Sequence[Sequence[Tensor]]) -> list[list[Any]] | None:
    try:
        return [[array.ravel() for array in map(Tensor.numpy, g)] for g in gradients]
    except RuntimeError:  # a view that negates has none
        return None


def _by_shape(tensors: Sequence[Tensor]) -> Mapping[torch.Size, Sequence[int]]:
    shapes = [t.shape for t in tensors]
    if len(set(shapes)) == 1:
        return {shapes[0]: range(len(shapes))}
    members: dict[torch.Size, list[int]] = {}
    for i, shape in enumerate(shapes):
        members.setdefault(shape, []).append(i)
    return members


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
