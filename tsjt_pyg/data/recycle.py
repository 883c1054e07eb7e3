"""Memory of large batches that is used again once nobody holds the batch."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Recycled:
    """Tensors of one size after another, in the memory of those that are gone.

    What the allocator does with a freed batch of a state depends on what lies beside it: it may keep it, so that a
    process grows to several batches, or return it, so that the next one is paid for page by page. Here there are as
    many as are held at a time.
    """

    def __init__(self) -> None:
        self._size, self._free = 0, list[np.ndarray]()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU with any content; no view of it, and no storage, is left of one whose memory it has."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(*shape, dtype=dtype)
        if size != self._size:  # what comes back of another size has no list to come back to
            self._size, self._free = size, []
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        held = memory[:]  # the tensor's storage holds this very view, and nothing else does
        weakref.finalize(held, self._free.append, memory).atexit = False
        return torch.from_numpy(held).view(dtype).view(*shape)
