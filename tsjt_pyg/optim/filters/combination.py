"""The weighted sum of several gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsjt_pyg.optim.filters.grouping import alike, bucket_elements, check_paired, filled_buckets, locals_of, take

# From here on, a launch for every tensor costs less than scratch memory.
_LARGE_ELEMENTS = 2**16

Weight = Tensor | float


def combine(
    weights: Sequence[Weight] | Tensor,
    *gradients: Sequence[Tensor],
    scopes: Sequence[int] | None = None,
    in_place: bool = False,
) -> list[Tensor]:
    r""":math:`\sum_i w_i g_i`, for every parameter in the dtype of its last gradient.

    float16 and bfloat16 gradients are combined in float32. A weight is capped at the largest number of the dtype in
    which it multiplies (reached when :math:`\|g_s\| > 3\cdot10^{38}\|g_t\|` in float32), so that finite gradients stay
    finite.

    Args:
        weights: one weight a gradient: a number, a tensor without dimensions, or, with ``scopes``, a tensor with one
            weight a scope.
        gradients: lists with one tensor a parameter each.
        scopes: for every parameter the scope to which it belongs, counted from 0.
        in_place: overwrite the last gradient (except where it is sparse or of less precision than the work) and return
            it. On the CPU this takes no memory.

    Returns:
        One tensor a parameter, sparse where all gradients are.

    Raises:
        ValueError: if the lists differ in length, or their number differs from that of the weights.

    Example:
        >>> combine([2.0, 1.0], [torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 3.0])])
        [tensor([2., 3.])]
    """
    check_paired(*gradients)
    if len(weights) != len(gradients):
        raise ValueError(f"there must be one weight a gradient, but there are {len(weights)} for {len(gradients)}")
    combined: dict[int, Tensor] = {}
    for alike_members in alike(gradients):
        for members in _buckets(gradients[-1], alike_members):
            of_bucket = take(gradients, members)
            last = of_bucket[-1][0]
            work = torch.float32 if last.dtype in (torch.float16, torch.bfloat16) else last.dtype
            factors = [_factors(w, members, scopes, last.device, work) for w in weights]
            if any(g[0].layout is not torch.strided for g in of_bucket):
                total = _sum([_factor(f, 0) for f in factors], [g[0].to(work) for g in of_bucket])
                combined[members[0]] = total.to(last.dtype)
                continue
            out = list(of_bucket[-1]) if in_place else [g.clone() for g in of_bucket[-1]]
            parts = [list(locals_of(g)) for g in (*of_bucket[:-1], out)]
            if work is not last.dtype or any(g[0].dtype is not work for g in parts):
                for k, result in enumerate(parts[-1]):
                    result.copy_(_sum([_factor(f, k) for f in factors], [g[k].to(work) for g in parts]))
            else:
                _scale_(parts[-1], factors[-1])
                for f, g in zip(factors[:-1], parts[:-1], strict=True):
                    _add_scaled_(parts[-1], f, g)
            combined.update(zip(members, out, strict=True))
    return [combined[i] for i in range(len(gradients[-1]))]


def _factors(
    weight: Weight, members: Sequence[int], scopes: Sequence[int] | None, device: torch.device, dtype: torch.dtype
) -> list[Tensor] | float:
    """The weight of every member in the dtype of the multiplication; a number is one for all."""
    if not isinstance(weight, Tensor):
        return float(weight)
    largest = torch.finfo(dtype).max
    w = weight.clamp(-largest, largest).to(device, dtype)
    if w.dim() == 0 or scopes is None:
        return [w] * len(members)
    of_scope = w.unbind()
    return [of_scope[scopes[i]] for i in members]


def _factor(factors: list[Tensor] | float, k: int) -> Weight:
    return factors[k] if isinstance(factors, list) else factors


def _scale_(out: list[Tensor], factors: list[Tensor] | float) -> None:
    if not isinstance(factors, list):
        if factors != 1.0:
            torch._foreach_mul_(out, factors)
    elif all(f is factors[0] for f in factors):
        torch._foreach_mul_(out, factors[0])
    else:
        torch._foreach_mul_(out, factors)


def _add_scaled_(out: list[Tensor], factors: list[Tensor] | float, gradients: list[Tensor]) -> None:
    if not isinstance(factors, list):
        torch._foreach_add_(out, gradients, alpha=factors)
    elif out[0].device.type == "cpu":
        torch._foreach_addcmul_(out, gradients, factors)
    elif out[0].numel() >= _LARGE_ELEMENTS:
        for total, g, f in zip(out, gradients, factors, strict=True):
            total.addcmul_(g, f)
    else:
        torch._foreach_add_(out, list(torch._foreach_mul(gradients, factors)))


def _sum(factors: Sequence[Weight], gradients: Sequence[Tensor]) -> Tensor:
    total = gradients[-1] * factors[-1]
    for f, g in zip(factors[:-1], gradients[:-1], strict=True):
        # torch adds a sparse tensor to a dense one, but not the other way round.
        total = g * f + total if total.is_sparse else total + g * f
    return total


def _buckets(gradients: Sequence[Tensor], members: Sequence[int]) -> list[Sequence[int]]:
    """On the CPU all at once; elsewhere what keeps the scratch memory small."""
    device = gradients[members[0]].device
    if device.type == "cpu":
        return [members]
    sizes = {i: gradients[i].numel() for i in members}
    large = [i for i in members if sizes[i] >= _LARGE_ELEMENTS]
    small = [i for i in members if sizes[i] < _LARGE_ELEMENTS]
    runs = filled_buckets([sizes[i] for i in small], bucket_elements(device))
    return [*([large] if large else []), *(small[run.start : run.stop] for run in runs)]
