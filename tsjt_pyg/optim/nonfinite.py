"""Finds gradients that hold nan or inf. Every function here waits for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def all_finite(grads: Sequence[Tensor]) -> bool:
    """Whether no gradient holds nan or inf."""
    # A sum is the cheapest test, but it may also overflow: only then look at each element.
    return all(_sum_is_finite(g) for g in grads) or all(_is_finite(g) for g in grads)


def found_inf_of(grads: Sequence[Tensor]) -> Tensor | None:
    """1 if a gradient holds nan or inf, on the device, without waiting for it; None if there is nothing to look at."""
    some = [g for g in grads if g.numel()]
    if not some:
        return None
    # The largest element: a sum of squares may overflow where nothing is wrong.
    largest = [n.full_tensor() if isinstance(n, DTensor) else n for n in torch._foreach_norm(some, math.inf)]
    return (~torch.stack([n.to(largest[0].device, torch.float32) for n in largest]).isfinite().all()).float()


def describe_nonfinite(param_groups: list[dict[str, Any]]) -> str:
    """Says which parameters have a gradient with nan or inf."""
    names = [
        name_of(group, i, j)
        for i, group in enumerate(param_groups)
        for j, p in enumerate(group["params"])
        if p.grad is not None and not _is_finite(p.grad)
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"nan or inf in the gradient of {', '.join(names[:3])}{more}"


def name_of(group: dict[str, Any], i: int, j: int) -> str:
    """The name of parameter j of group i."""
    return str(group["param_names"][j]) if "param_names" in group else f"parameter {j} of group {i}"


def _sum_is_finite(grad: Tensor) -> bool:
    # float16 sums overflow where no element does.
    dtype = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else None
    return bool(torch.isfinite(grad.sum(dtype=dtype)))


def _is_finite(grad: Tensor) -> bool:
    return bool(torch.isfinite(grad.coalesce().values() if grad.is_sparse else grad).all())
