r"""Gradient filters: pure functions of a source gradient :math:`g_s` and a target gradient :math:`g_t`.

A gradient is a list of tensors, one a parameter (a single flat vector is a list of one). A filter works in three steps,
so that another rule only has to replace the second:

1. :func:`gramian` reduces the two gradients to their three inner products,
2. a rule such as :func:`paper_weights` turns these into two weights :math:`(w_s, w_t)`,
3. :func:`combine` returns :math:`w_s g_s + w_t g_t`.

:func:`skew` is the three in one call, for gradients of which some entries are missing. Nothing here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements that one reduction takes at a time. On the CPU its scratch memory should fit the cache (2**20 elements took
# ten times as long); on other devices a launch costs more than memory.
_CPU_BUCKET_ELEMENTS = 2**16
_BUCKET_ELEMENTS = 2**24


def gramian(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    r"""The inner products :math:`\begin{bmatrix}\|g_s\|^2 & \langle g_s, g_t\rangle\\ \cdot & \|g_t\|^2\end{bmatrix}`.

    They are accumulated in float64, so that neither the squared norm of a float16 gradient overflows nor that of a tiny
    float32 gradient vanishes.

    Args:
        sources: source gradient of every parameter; dtypes, devices and layouts (strided or sparse COO) may be mixed.
        targets: target gradient of the same parameters.

    Returns:
        float64 tensor ``[2, 2]``, on the device of one of the gradients.
    """
    _check_paired(sources, targets)
    total: Tensor | None = None
    for bucket in _buckets(sources, targets):
        s, t = [sources[i] for i in bucket], [targets[i] for i in bucket]
        if _is_strided(s[0], t[0]):
            flat_s, flat_t = _flat(s), _flat(t)
            products = [flat_s.dot(flat_s), flat_s.dot(flat_t), flat_t.dot(flat_t)]
        else:
            wide_s, wide_t = s[0].to(torch.float64), t[0].to(torch.float64)
            products = [(a * b).sum() for a, b in ((wide_s, wide_s), (wide_s, wide_t), (wide_t, wide_t))]
        ss, st, tt = products
        part = torch.stack((ss, st, st, tt)).view(2, 2)
        total = part if total is None else total + part.to(total.device)
    return torch.zeros(2, 2, dtype=torch.float64) if total is None else total


def projection_coefficient(gram: Tensor) -> Tensor:
    r"""The multiple of :math:`g_t` that takes the conflicting component out of :math:`g_s`.

    .. math:: \kappa = \max\Big(0, \frac{-\langle g_s, g_t\rangle}{\|g_t\|^2 + \mathrm{tiny}}\Big)

    with the smallest normal float64 as tiny: it only decides that 0/0 is 0. Because :math:`\kappa\|g_t\| \le \|g_s\|`,
    the correction stays bounded when the target gradient vanishes.

    Args:
        gram: result of :func:`gramian`.

    Returns:
        Tensor without dimensions.
    """
    return gram[0, 1].clamp(max=0.0).abs() / (gram[1, 1] + torch.finfo(gram.dtype).tiny)


def paper_weights(gram: Tensor, gamma_source: float, gamma_target: float) -> Tensor:
    r"""Weights of the target-skewed backward: :math:`(\gamma_s,\ \gamma_t + \gamma_s\kappa)`.

    Source: Zhang et al., "Drawing Informative Gradients from Sources", AAAI 2025, doi 10.1609/aaai.v39i1.32102.

    Args:
        gram: result of :func:`gramian`.
        gamma_source: weight of the source gradient.
        gamma_target: weight of the target gradient.

    Returns:
        Tensor ``[2]``: the weights of source and target gradient.
    """
    weight_target = gamma_target + gamma_source * projection_coefficient(gram)
    return torch.stack((torch.full_like(weight_target, gamma_source), weight_target))


def combine(sources: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    r""":math:`w_s g_s + w_t g_t`, for every parameter in its own dtype.

    float16 and bfloat16 gradients are combined in float32. A weight is capped at the largest number of the dtype in
    which it multiplies (reached when :math:`\|g_s\| > 3\cdot10^{38}\|g_t\|` in float32), so that finite gradients stay
    finite.

    Args:
        sources: source gradient of every parameter.
        targets: target gradient of the same parameters.
        weights: tensor ``[2]`` with the weights :math:`(w_s, w_t)`.

    Returns:
        One new tensor a parameter, sparse where both gradients are.
    """
    _check_paired(sources, targets)
    combined: dict[int, Tensor] = {}
    for bucket in _buckets(sources, targets):
        dtype = targets[bucket[0]].dtype
        work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        largest = torch.finfo(work).max
        w = weights.clamp(-largest, largest).to(targets[bucket[0]].device, work)
        s, t = [sources[i].to(work) for i in bucket], [targets[i].to(work) for i in bucket]
        if _is_strided(s[0], t[0]):
            out = list(torch._foreach_mul(t, w[1]))
            torch._foreach_add_(out, torch._foreach_mul(s, w[0]))
        else:
            # torch adds a sparse tensor to a dense one, but not the other way round.
            first, second = s[0] * w[0], t[0] * w[1]
            out = [second + first if first.is_sparse else first + second]
        combined.update(zip(bucket, (g.to(dtype) for g in out), strict=True))
    return [combined[i] for i in range(len(targets))]


def skew(
    sources: Sequence[Tensor | None], targets: Sequence[Tensor | None], gamma_source: float, gamma_target: float
) -> tuple[list[Tensor | None], Tensor | None]:
    r"""The paper's filter over all parameters, whichever of the two gradients they have.

    .. math:: g = \gamma_s g_s + (\gamma_t + \gamma_s\kappa) g_t

    A parameter with one of the two gradients keeps exactly that tensor and stays out of the inner products; a parameter
    with neither has none. A target gradient of zero leaves :math:`\gamma_s g_s`. Always :math:`\langle g, g_t\rangle
    \ge \gamma_t\|g_t\|^2`, with equality under conflict, and :math:`g` is homogeneous of degree 1.

    Source: Zhang et al., "Drawing Informative Gradients from Sources", AAAI 2025, doi 10.1609/aaai.v39i1.32102.

    Args:
        sources: source gradient of every parameter, or None.
        targets: target gradient of the same parameters, or None.
        gamma_source: weight of the source gradient.
        gamma_target: weight of the target gradient.

    Returns:
        The filtered gradient of every parameter, and the :func:`gramian` of the parameters that have both gradients
        (None if no parameter does).

    Example:
        >>> g_s, g_t = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
        >>> skew([g_s], [g_t], gamma_source=1.0, gamma_target=0.5)[0]
        [tensor([1.0000, 0.5000])]
    """
    _check_paired(sources, targets)
    both = [(s, t) for s, t in zip(sources, targets, strict=True) if s is not None and t is not None]
    if not both:
        return [t if s is None else s for s, t in zip(sources, targets, strict=True)], None
    shared_s, shared_t = [s for s, _ in both], [t for _, t in both]
    gram = gramian(shared_s, shared_t)
    filtered = iter(combine(shared_s, shared_t, paper_weights(gram, gamma_source, gamma_target)))
    return [t if s is None else s if t is None else next(filtered) for s, t in zip(sources, targets, strict=True)], gram


def _check_paired(sources: Sequence[Tensor | None], targets: Sequence[Tensor | None]) -> None:
    if len(sources) != len(targets):
        raise ValueError(
            "sources and targets must each hold one gradient a parameter, but "
            f"have {len(sources)} and {len(targets)} entries"
        )


def _buckets(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of the gradients that one kernel can take together; those that are not strided come alone."""
    filling: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    elements: dict[tuple[torch.device, torch.dtype], int] = {}
    for i, (s, t) in enumerate(zip(sources, targets, strict=True)):
        if not _is_strided(s, t):
            yield [i]
            continue
        key = (t.device, t.dtype)
        filling.setdefault(key, []).append(i)
        elements[key] = elements.get(key, 0) + t.numel()
        if elements[key] >= (_CPU_BUCKET_ELEMENTS if t.device.type == "cpu" else _BUCKET_ELEMENTS):
            yield filling.pop(key)
            del elements[key]
    yield from filling.values()


def _is_strided(s: Tensor, t: Tensor) -> bool:
    return s.layout is torch.strided and t.layout is torch.strided


def _flat(grads: list[Tensor]) -> Tensor:
    parts = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in grads]
    return torch.cat([g.reshape(-1) for g in parts]).to(torch.float64)
