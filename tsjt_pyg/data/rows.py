"""Rows of tensors ``[T, ...]``, in memory or in a file: gathered as windows, in order, or block by block.

A file is read into the batch that needs it, not through the pages of its mapping: pages that were looked at count as
memory of the process, however large the file. One thread copies. A copy that is shared out over torch's threads is
hardly faster for a batch's megabyte and, where the cores have other work too, waits for the slowest of them.
"""

from __future__ import annotations

import io
import mmap
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 2**23
"""What :func:`row_blocks` reads at a time: large enough for a disk, small beside a model."""

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # of Linux: a file larger than memory may be mapped


@dataclass(frozen=True)
class MappedFile:
    """The open file behind a mapped tensor; ``offset`` is the byte at which the tensor's storage begins."""

    file: io.FileIO
    path: Path
    offset: int

    def read_into(self, arrays: Sequence[np.ndarray], position: int) -> None:
        """Fills contiguous arrays, one after the other, from byte ``position`` of the storage on.

        Raises:
            ValueError: If the file ends before: it was cut after it was opened.
        """
        buffers = [array.data.cast("B") for array in arrays if array.size]
        position += self.offset
        while buffers:
            got = os.preadv(self.file.fileno(), buffers, position)
            if got == 0:
                raise ValueError(f"{self.path}: the file ends at byte {position}, expected more: it is truncated")
            position += got
            while buffers and got >= len(buffers[0]):
                got -= len(buffers.pop(0))
            if got:
                buffers[0] = buffers[0][got:]


_mapped: dict[int, MappedFile] = {}
"""The file of each mapped storage, by its address, for as long as the mapping lives."""


def map_file(path: Path, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
    """A tensor whose readings stay in the file until they are asked for.

    Writing to it changes the tensor and never the file.
    """
    file = io.FileIO(path)
    if hasattr(mmap, "MAP_PRIVATE"):
        flags = mmap.MAP_PRIVATE | (_NORESERVE if sys.platform == "linux" else 0)
        pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    else:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    count = int(np.prod(shape, dtype=np.int64))
    tensor = torch.frombuffer(pages, dtype=dtype, count=count, offset=offset).view(*shape)
    address = tensor.untyped_storage().data_ptr()
    _mapped[address] = MappedFile(file, path, offset)
    weakref.finalize(pages, _forget, address)
    return tensor


def _forget(address: int) -> None:
    _mapped.pop(address).file.close()


def mapped_file(tensor: Tensor) -> MappedFile | None:
    """The file behind a tensor of :func:`map_file` or a view of whole rows of one, or ``None``."""
    if not _mapped or tensor.device.type != "cpu" or not tensor.is_contiguous() or not hasattr(os, "preadv"):
        return None
    return _mapped.get(tensor.untyped_storage().data_ptr())


def _row_bytes(tensor: Tensor) -> int:
    return tensor.shape[1:].numel() * tensor.element_size()


def _first_byte(tensor: Tensor) -> int:
    """Of a view's first row, from where the storage begins."""
    return int(tensor.storage_offset()) * tensor.element_size()


def read_rows(tensor: Tensor, first: int, last: int, pin: bool = False) -> Tensor:
    """The rows ``first <= t < last``: a view of a tensor in memory, a copy of one in a file or where pinned."""
    file = mapped_file(tensor)
    if file is None and not pin:
        return tensor[first:last]
    rows = torch.empty((last - first, *tensor.shape[1:]), dtype=tensor.dtype, device="cpu", pin_memory=pin)
    if file is None:
        np.copyto(rows.numpy(), tensor[first:last].numpy())
    else:
        file.read_into([rows.numpy()], _first_byte(tensor) + first * _row_bytes(tensor))
    return rows


def row_blocks(*tensors: Tensor, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equally many rows, some rows of each at a time, in order."""
    rows = max(1, block_bytes // max(1, _row_bytes(tensors[0])))
    for first in range(0, len(tensors[0]), rows):
        last = min(first + rows, len(tensors[0]))
        yield tuple(read_rows(tensor, first, last) for tensor in tensors)


def windows_at(tensor: Tensor, first: Tensor, lengths: Sequence[int], pin: bool = False) -> list[Tensor]:
    """Windows that begin at the rows ``first`` ``[B]``, cut into consecutive parts, copied.

    Args:
        tensor: ``[T, ...]``.
        first: int64, on the tensor's device.
        lengths: Rows of each part.
        pin: Whether the copies are in pinned memory.

    Returns:
        One ``[B, length, ...]`` a part, contiguous.
    """
    shapes = [(len(first), length, *tensor.shape[1:]) for length in lengths]
    file = mapped_file(tensor)
    offsets = np.cumsum([0, *lengths[:-1]]).tolist()
    if file is not None:
        parts = [torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=pin) for shape in shapes]
        arrays = [part.numpy() for part in parts]
        start = _first_byte(tensor)
        begins = first.numpy()
        for b in begins.argsort().tolist():  # a disk is read in one direction
            file.read_into([array[b] for array in arrays], start + int(begins[b]) * _row_bytes(tensor))
        return parts
    if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel():
        return [_gathered(tensor, first, offset, shape, pin) for offset, shape in zip(offsets, shapes, strict=True)]
    steps = [
        first.unsqueeze(-1) + torch.arange(o, o + n, device=first.device) for o, n in zip(offsets, lengths, strict=True)
    ]
    parts = [tensor.index_select(0, step.view(-1)).view(shape) for step, shape in zip(steps, shapes, strict=True)]
    return [part.pin_memory() for part in parts] if pin else parts


def _gathered(tensor: Tensor, first: Tensor, offset: int, shape: Sequence[int], pin: bool) -> Tensor:
    """One part of :func:`windows_at` from contiguous memory: numpy copies a window, or a row, as one item."""
    array = tensor.numpy()
    length, row = shape[1], _row_bytes(tensor)
    begins = first.numpy()
    if pin:
        steps = (begins[:, None] + np.arange(offset, offset + length)).reshape(-1)
        out = torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        items = np.ndarray((len(tensor),), f"V{row}", array)
        np.take(items, steps, out=out.numpy().reshape(-1).view(f"V{row}"), mode="clip")  # "clip": without a buffer
        return out
    items = np.ndarray((len(tensor) - offset - length + 1,), f"V{length * row}", array, offset * row, (row,))
    return torch.from_numpy(items[begins].view(array.dtype)).view(shape)


def windows_in_order(
    tensor: Tensor,
    first: int,
    count: int,
    stride: int,
    lengths: Sequence[int],
    copy: bool = True,
    device: torch.device | None = None,
    pin: bool = False,
) -> list[Tensor]:
    """Windows that begin at the rows ``first``, ``first + stride``, …, cut into consecutive parts.

    They overlap: their rows are read, and moved to ``device``, once.

    Args:
        tensor: ``[T, ...]``.
        first: First row of the first window.
        count: Number of windows.
        stride: Rows from one window to the next.
        lengths: Rows of each part.
        copy: Whether each window gets memory of its own; otherwise the results are views of the rows.
        device: Where the results are; default: where the tensor is.
        pin: Whether the rows pass through pinned memory.

    Returns:
        One ``[B, length, ...]`` a part; contiguous if ``copy``.
    """
    rows = read_rows(tensor, first, first + (count - 1) * stride + sum(lengths), pin)
    if device is not None:
        rows = rows.to(device, non_blocking=pin)
    parts, offset = [], rows.storage_offset()
    step, *inner = rows.stride()
    for length in lengths:
        shape = (count, length, *rows.shape[1:])
        parts.append(rows.as_strided(shape, (stride * step, step, *inner), offset))
        offset += length * step
    return [_copied(part) for part in parts] if copy else parts


def _copied(view: Tensor) -> Tensor:
    if view.device.type != "cpu":
        return view.clone(memory_format=torch.contiguous_format)
    return torch.from_numpy(view.numpy().copy(order="C"))
