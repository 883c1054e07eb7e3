"""Rows of tensors ``[T, ...]``, in memory or in a file: gathered as windows, in order, or block by block.

A file is read into the batch that needs it, not through the pages of its mapping: pages that were looked at count as
memory of the process, however large the file. One thread copies: a copy that is shared out over torch's threads is
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
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .recycle import Recycled

BLOCK = 2**15
"""Entries that :func:`row_blocks` takes at a time: they stay in a core's cache, and one thread works on them."""

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


def row_blocks(*tensors: Tensor, block: int = BLOCK) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equally many rows, some rows of each at a time, in order: views, or copies of what is in a file.

    Args:
        *tensors: ``[T, ...]`` each.
        block: Entries of the first tensor at a time; at least a row.
    """
    rows = max(1, block // max(1, tensors[0].shape[1:].numel()))
    for first in range(0, len(tensors[0]), rows):
        last = min(first + rows, len(tensors[0]))
        yield tuple(read_rows(tensor, first, last) for tensor in tensors)


def take(tensor: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """``tensor[rows]`` ``[*rows.shape, n, ...]``, of the given columns (default: all), which alone are read.

    A row is looked up once, however often it is named: windows overlap, and columns are scattered in memory.
    """
    if columns is None:
        return tensor[rows]
    once, where = rows.unique(return_inverse=True)
    return tensor[once[:, None], columns][where]


def column_blocks(*tensors: Tensor, block: int = 2**24) -> Iterator[tuple[Tensor, ...]]:
    """Views of equally shaped tensors ``[T, N, ...]``, some columns of each at a time, in order.

    For what is computed by column and needs temporary copies: as many entries as ``block`` (or a column) at most.
    """
    first, *_ = tensors
    width = max(1, block // max(1, first[:, :1].numel()))
    for begin in range(0, first.shape[1], width):
        yield tuple(tensor[:, begin : begin + width] for tensor in tensors)


class WindowReader:
    """Windows over the rows of a tensor, each cut into consecutive parts.

    Args:
        tensor: ``[T, ...]``.
        lengths: Rows of each part.
        stride: Rows from one window to the next.
    """

    def __init__(self, tensor: Tensor, lengths: tuple[int, ...], stride: int) -> None:
        self.tensor, self.lengths, self.stride = tensor, lengths, stride
        self.offsets = tuple(accumulate(lengths[:-1], initial=0))
        self.file = mapped_file(tensor)
        self.memory = [Recycled() for _ in lengths]
        self.views = self._cut(tensor, (len(tensor) - sum(lengths)) // stride + 1)
        in_memory = self.file is None and tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0
        self.array = tensor.numpy() if in_memory else None
        if self.array is not None:  # numpy copies a window, or a part of one, as one item
            self.whole = self._items(self.array, 0, sum(lengths))
            self.parts = [self._items(self.array, *part) for part in zip(self.offsets, lengths, strict=True)]

    def __reduce__(self) -> tuple[type[WindowReader], tuple[Tensor, tuple[int, ...], int]]:
        return WindowReader, (self.tensor, self.lengths, self.stride)  # a pickle of the items would hold every window

    def _cut(self, rows: Tensor, count: int) -> list[Tensor]:
        """Views of the first ``count`` windows over ``rows``, one ``[count, length, ...]`` a part."""
        step, *inner = rows.stride()
        first, shape = int(rows.storage_offset()), rows.shape[1:]
        return [
            rows.as_strided((count, length, *shape), (self.stride * step, step, *inner), first + offset * step)
            for offset, length in zip(self.offsets, self.lengths, strict=True)
        ]

    def _items(self, array: np.ndarray, offset: int, length: int) -> np.ndarray:
        row = array[0].nbytes
        count = (len(array) - offset - length) // self.stride + 1
        return np.ndarray((count,), f"V{length * row}", array, offset * row, (self.stride * row,))

    def _gathered(self, items: np.ndarray, index: np.ndarray, length: int) -> Tensor:
        values = torch.from_numpy(items[index].view(self.array.dtype))  # type: ignore[union-attr]
        return values.view(len(index), length, *self.tensor.shape[1:])

    def at(self, index: Tensor, copy: bool = True, pin: bool = False) -> list[Tensor]:
        """The windows of the given numbers ``[B]``: one ``[B, length, ...]`` a part.

        Args:
            index: int64, on the tensor's device; not checked.
            copy: Whether the parts are contiguous; otherwise they may be views of one copy of the windows.
            pin: Whether the copies are in pinned memory.
        """
        if self.array is None and self.file is None:
            parts = [view.index_select(0, index) for view in self.views]
            return [part.pin_memory() for part in parts] if pin else parts
        numbers = index.numpy()
        if self.file is None and not pin:
            if copy:
                return [self._gathered(p, numbers, n) for p, n in zip(self.parts, self.lengths, strict=True)]
            return list(self._gathered(self.whole, numbers, sum(self.lengths)).split(self.lengths, dim=1))
        shapes = [(len(index), length, *self.tensor.shape[1:]) for length in self.lengths]
        if pin:
            outs = [torch.empty(shape, dtype=self.tensor.dtype, device="cpu", pin_memory=True) for shape in shapes]
        else:
            outs = [memory.empty(shape, self.tensor.dtype) for memory, shape in zip(self.memory, shapes, strict=True)]
        arrays = [out.numpy() for out in outs]
        begins = (numbers * self.stride).tolist()
        if self.file is not None:
            start, row = _first_byte(self.tensor), _row_bytes(self.tensor)
            for b in numbers.argsort().tolist():  # a disk is read in one direction
                self.file.read_into([array[b] for array in arrays], start + begins[b] * row)
        elif self.array is not None:
            for offset, length, array in zip(self.offsets, self.lengths, arrays, strict=True):
                for b, begin in enumerate(begins):
                    array[b] = self.array[begin + offset : begin + offset + length]
        return outs

    def in_order(
        self, first: int, count: int, copy: bool = True, device: torch.device | None = None, pin: bool = False
    ) -> list[Tensor]:
        """The windows ``first .. first + count - 1``. They overlap: their rows are read, and moved, once.

        Args:
            first: Number of the first window.
            count: Number of windows, at least 1.
            copy: Whether each window gets memory of its own; otherwise the parts are views of the rows.
            device: Where the parts are wanted; default: where the tensor is.
            pin: Whether the rows go there through pinned memory.
        """
        if self.file is None and device is None:
            views = [view[first : first + count] for view in self.views]
        else:
            begin = first * self.stride
            rows = read_rows(self.tensor, begin, begin + (count - 1) * self.stride + sum(self.lengths), pin)
            views = self._cut(rows if device is None else rows.to(device, non_blocking=pin), count)
        return [_copied(view) for view in views] if copy else views


def _copied(view: Tensor) -> Tensor:
    if view.device.type != "cpu":
        return view.clone(memory_format=torch.contiguous_format)
    return torch.from_numpy(view.numpy().copy(order="C"))
