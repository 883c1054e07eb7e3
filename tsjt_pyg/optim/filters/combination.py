"""The weighted sum of several gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.compiler import is_compiling

from tsjt_pyg.optim.filters.grouping import alike, bucket_elements, check_paired, filled_buckets, locals_of, take

# Tensors from here on come alone, on the CPU in slices of that size, which stay in the cache from the first
# multiplication to the last addition.
_LARGE_ELEMENTS = 2**18

Weight = Tensor | float


def combine(
    weights: Sequence[Weight] | Tensor,
    *gradients: Sequence[Tensor],
    scopes: Sequence[int] | None = None,
    in_place: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
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
        in_place: overwrite the last gradient (except where it is sparse) and return it; on the CPU without memory.
        groups: which parameters have gradients of one kind, if that is known already.

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
    result = list(gradients[-1])
    for members in alike(gradients) if groups is None else groups:
        of_group = take(gradients, members)
        last = of_group[-1][0]
        work = torch.float32 if last.dtype in (torch.float16, torch.bfloat16) else last.dtype
        factors = [_factors(w, members, scopes, last, work) for w in weights]
        if any(g[0].layout is not torch.strided for g in of_group):
            result[members[0]] = _sum(_at(factors, 0), [g[0].to(work) for g in of_group]).to(last.dtype)
            continue
        if not in_place:
            k = base_of(weights, last) if all(g[0].dtype is last.dtype for g in of_group) else -1
            of_group.append([t.clone() for t in of_group.pop(k)])
            factors.append(factors.pop(k))
            for i, t in zip(members, of_group[-1], strict=True):
                result[i] = t
        parts = [list(locals_of(g)) for g in of_group]
        if work is not last.dtype or any(g[0].dtype is not work for g in parts):
            for k, total in enumerate(parts[-1]):
                total.copy_(_sum(_at(factors, k), [g[k].to(work) for g in parts]))
        else:
            _combine_(factors, parts)
    return result


#: A list has the weight of every parameter, a number is one for all.
_Factors = list[Tensor] | float


def _factors(
    weight: Weight, members: Sequence[int], scopes: Sequence[int] | None, like: Tensor, dtype: torch.dtype
) -> _Factors:
    """The weight in the dtype of the multiplication."""
    largest = _largest(dtype)
    if not isinstance(weight, Tensor) or weight.dim() == 0:
        scopes = None
    if not isinstance(weight, Tensor) or (
        # On the host a number is at hand, and faster.
        scopes is None and type(weight) is type(like) is Tensor and weight.is_cpu and like.is_cpu and not is_compiling()
    ):
        number = float(weight)
        return math.copysign(largest, number) if abs(number) > largest else number  # nan stays
    w = weight.clamp(-largest, largest) if torch.finfo(weight.dtype).max > largest else weight
    w = w.to(like.device, dtype)
    if scopes is None:
        return [w] * len(members)
    of_scope = w.unbind()
    return [of_scope[scopes[i]] for i in members]


@cache
def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def base_of(weights: Sequence[Weight] | Tensor, like: Tensor) -> int:
    """Position of the gradient to which the others are best added.

    On the CPU it is the first that has a number for its weight, which is mostly 1, so that nothing has to be
    multiplied. If it was overwritten, and is restored and overwritten again, the result has no larger rounding errors.
    """
    numbers = [k for k, w in enumerate(weights) if not isinstance(w, Tensor) and w != 0]
    return numbers[0] if like.is_cpu and numbers else -1


def _at(factors: Sequence[_Factors], k: int) -> list[Weight]:
    return [f[k] if isinstance(f, list) else f for f in factors]


def _combine_(factors: Sequence[_Factors], gradients: Sequence[list[Tensor]]) -> None:
    """Overwrite the last gradient with the weighted sum."""
    out = gradients[-1]
    sizes = [t.numel() for t in out]
    if max(sizes) < _LARGE_ELEMENTS and out[0].is_cpu:
        _combine_small_(factors, gradients)
        return
    for k, size in enumerate(sizes):
        if size >= _LARGE_ELEMENTS:
            slices = [g[k] for g in gradients]
            if out[k].is_cpu and all(t.is_contiguous() for t in slices):
                for piece in zip(*(t.view(-1).split(_LARGE_ELEMENTS) for t in slices), strict=True):
                    _combine_one_(_at(factors, k), piece)
            else:
                _combine_one_(_at(factors, k), slices)
    small = [k for k, size in enumerate(sizes) if size < _LARGE_ELEMENTS]
    for run in filled_buckets([sizes[k] for k in small], bucket_elements(out[0].device)):
        members = small[run.start : run.stop]
        of_bucket = [[f[k] for k in members] if isinstance(f, list) else f for f in factors]
        _combine_small_(of_bucket, [[g[k] for k in members] for g in gradients])


def _combine_one_(weights: Sequence[Weight], gradients: Sequence[Tensor]) -> None:
    out, last = gradients[-1], weights[-1]
    if len(weights) == 2 and not isinstance(weights[0], Tensor) and weights[0] == 1.0:
        # In one pass.
        if isinstance(last, Tensor):
            torch.addcmul(gradients[0], out, last, out=out)
        else:
            torch.add(gradients[0], out, alpha=last, out=out)
        return
    if isinstance(last, Tensor) or last != 1.0:
        out.mul_(last)
    for w, g in zip(weights[:-1], gradients[:-1], strict=True):
        if isinstance(w, Tensor):
            out.addcmul_(g, w)
        else:
            out.add_(g, alpha=w)


def _combine_small_(factors: Sequence[_Factors], gradients: Sequence[list[Tensor]]) -> None:
    out, last = gradients[-1], factors[-1]
    if isinstance(last, list):
        torch._foreach_mul_(out, last[0] if all(f is last[0] for f in last) else last)
    elif last != 1.0:
        torch._foreach_mul_(out, torch.tensor(last, dtype=out[0].dtype))  # several times faster than with a number
    for f, g in zip(factors[:-1], gradients[:-1], strict=True):
        if not isinstance(f, list):
            torch._foreach_add_(out, g, alpha=f)
        elif out[0].is_cpu:
            torch._foreach_addcmul_(out, g, f)
        else:  # where a launch costs more than scratch memory
            torch._foreach_add_(out, list(torch._foreach_mul(g, f[0] if all(x is f[0] for x in f) else f)))


def _sum(weights: Sequence[Weight], gradients: Sequence[Tensor]) -> Tensor:
    total = gradients[-1] * weights[-1]
    for w, g in zip(weights[:-1], gradients[:-1], strict=True):
        # torch adds a sparse tensor to a dense one, but not the other way round.
        total = g * w + total if total.is_sparse else total + g * w
    return total
