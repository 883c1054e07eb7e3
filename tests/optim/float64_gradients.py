"""Random gradients in torch, and the same flat in numpy and float64, which references are written in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def random(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def flat(gradient: Sequence[Tensor]) -> Array:
    dense = [g.to_dense() if g.is_sparse else g for g in gradient]
    return np.concatenate([g.detach().double().numpy().ravel() for g in dense]) if dense else np.zeros(0)


def assert_close(actual: Tensor, expected: Array | float, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=rtol, atol=1e-300)
