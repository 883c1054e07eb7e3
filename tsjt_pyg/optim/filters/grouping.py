"""Which gradients one kernel can take together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# Above, NumPy's BLAS would wake threads of its own, which disturb those of torch.
_CPU_BUCKET_ELEMENTS = 2**13
_BUCKET_ELEMENTS = 2**20


def check_paired(*gradients: Sequence[Tensor | None]) -> None:
    lengths = [len(g) for g in gradients]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"each list must hold one gradient a parameter, but they have {' and '.join(map(str, lengths))} entries"
        )


def alike(gradients: Sequence[Sequence[Tensor]]) -> list[Sequence[int]]:
    """Indices of the parameters whose gradients are strided and of one device and dtype; others come alone."""
    # Sets of all tensors first: in nearly all models there is one kind, and a loop over tensors is slow.
    dtypes = {t.dtype for g in gradients for t in g}
    layouts = {t.layout for g in gradients for t in g}
    devices = {device for g in gradients for device in map(Tensor.get_device, g)}
    if len(dtypes) == len(devices) == 1 and layouts == {torch.strided}:
        return [range(len(gradients[0]))]
    groups: dict[object, list[int]] = {}
    for i, of_one in enumerate(zip(*gradients, strict=True)):
        first = of_one[0]
        together = all(t.layout is torch.strided and t.dtype is first.dtype for t in of_one)
        groups.setdefault((first.device, first.dtype) if together else i, []).append(i)
    return list(groups.values())


def take(gradients: Sequence[Sequence[Tensor]], members: Sequence[int]) -> list[Sequence[Tensor]]:
    if len(members) == len(gradients[0]):
        return list(gradients)
    return [[g[i] for i in members] for g in gradients]


def bucket_elements(device: torch.device) -> int:
    """So many elements of smaller tensors are taken together; larger tensors come alone, where they lie.

    On the CPU the scratch memory has to fit the cache, and to stay small beside one copy of the gradients; elsewhere a
    launch costs more than memory.
    """
    return _CPU_BUCKET_ELEMENTS if device.type == "cpu" else _BUCKET_ELEMENTS


def filled_buckets(sizes: Sequence[int], capacity: int) -> Iterator[range]:
    """Runs of consecutive tensors, each closed as soon as its sizes reach the capacity."""
    start = filled = 0
    for i, size in enumerate(sizes):
        filled += size
        if filled >= capacity:
            yield range(start, i + 1)
            start, filled = i + 1, 0
    if start < len(sizes):
        yield range(start, len(sizes))


def locals_of(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of DTensors the part that this process holds; other tensors as they are."""
    if not holds_dtensors(gradients):
        return gradients
    return [t.to_local() if isinstance(t, DTensor) else t for t in gradients]


def holds_dtensors(gradients: Sequence[Tensor]) -> bool:
    # Types first: isinstance() with a tensor class is slow.
    kinds = set(map(type, gradients))
    return kinds != {Tensor} and any(issubclass(kind, DTensor) for kind in kinds)
