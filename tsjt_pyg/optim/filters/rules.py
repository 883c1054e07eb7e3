r"""Rules: what to do with a source gradient :math:`g_s`, given its inner products with the normal.

The *normal* :math:`n` is the gradient that the source must not oppose: the target gradient :math:`g_t`, a moving
average of it, or the gradient of held-out windows. A pair's inner products are a tensor ``[..., 2, 2]``,

.. math:: G = \begin{bmatrix}\|g_s\|^2 & \langle g_s, n\rangle\\ \cdot & \|n\|^2\end{bmatrix},

as :func:`gramian` returns them; leading dimensions (scopes) are mapped over. The functions here are pure, and none
waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from tsjt_pyg.optim.filters.combination import combine
from tsjt_pyg.optim.filters.grouping import check_paired
from tsjt_pyg.optim.filters.inner_products import gramian


def cosine(gram: Tensor) -> Tensor:
    r""":math:`\cos\varphi = \langle g_s, n\rangle / (\|g_s\|\|n\|)`, and 0 where a norm is 0.

    Args:
        gram: inner products ``[..., 2, 2]`` of source gradient and normal.
    """
    norms = gram[..., 0, 0].sqrt() * gram[..., 1, 1].sqrt()
    return gram[..., 0, 1] / norms.clamp(min=torch.finfo(gram.dtype).tiny)


def projection_coefficient(gram: Tensor) -> Tensor:
    r"""The multiple of :math:`n` that takes the conflicting component out of :math:`g_s`.

    .. math:: \kappa = \max\Big(0, \frac{-\langle g_s, n\rangle}{\|n\|^2 + \mathrm{tiny}}\Big)

    with the smallest normal float64 as tiny: it only decides that 0/0 is 0. Because :math:`\kappa\|n\| \le \|g_s\|`,
    the correction stays bounded when the normal vanishes.

    Source: Zhang et al., "Drawing Informative Gradients from Sources", AAAI 2025, doi 10.1609/aaai.v39i1.32102; the
    same projection on a reference gradient is A-GEM, Chaudhry et al., ICLR 2019, arXiv 1812.00420.

    Args:
        gram: inner products ``[..., 2, 2]`` of source gradient and normal.
    """
    _, dot, _, square = gram.flatten(-2).unbind(-1)
    return projection(dot, square)


@overload
def projection(dot: Tensor, square: Tensor) -> Tensor: ...
@overload
def projection(dot: float, square: float) -> float: ...
def projection(dot: Any, square: Any) -> Any:
    """:func:`projection_coefficient` of inner products that are at hand one by one, as tensors or numbers."""
    if not isinstance(dot, Tensor):
        return 0.0 if dot >= 0 else -dot / (square + sys.float_info.min)
    return dot.clamp(max=0.0).abs_().div_(square + torch.finfo(dot.dtype).tiny)


def vaccine_coefficient(gram: Tensor, goal: Tensor) -> Tensor:
    r"""The multiple of :math:`n` that lifts the cosine of :math:`g_s` and :math:`n` to a goal, if it lies below.

    .. math::
        \kappa = \frac{\|g_s\|\,\big(\hat\varphi\sqrt{1-\varphi^2} - \varphi\sqrt{1-\hat\varphi^2}\big)}
                      {\|n\|\sqrt{1-\hat\varphi^2}} \quad\text{if } \varphi < \hat\varphi, \text{ else } 0,

    where :math:`\varphi` is the :func:`cosine` and :math:`\hat\varphi` the goal. A goal of 0 gives
    :func:`projection_coefficient`.

    Source: Wang et al., "Gradient Vaccine", ICLR 2021, arXiv 2010.05874, equation 2, one-sided: the normal is left as
    it is.

    Args:
        gram: inner products ``[..., 2, 2]`` of source gradient and normal.
        goal: the cosine to reach, ``[...]``, between -1 and 1 (at most 0.999 is used, because 1 cannot be reached).
    """
    now, goal = cosine(gram).clamp(-1.0, 1.0), goal.clamp(-0.999, 0.999)
    root = (1 - goal.square()).sqrt()
    lift = (goal * (1 - now.square()).sqrt() - now * root) / root
    ratio = gram[..., 0, 0].sqrt() / gram[..., 1, 1].sqrt().clamp(min=torch.finfo(gram.dtype).tiny)
    # Not a product with a mask: nan has to stay.
    return torch.where((now >= goal) | (gram[..., 1, 1] == 0), torch.zeros_like(now), lift * ratio)


def binary_gate(gram: Tensor) -> Tensor:
    r"""1 where :math:`\langle g_s, n\rangle \ge 0`, else 0: a source gradient in conflict is dropped.

    Source: Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224, unweighted version.

    Args:
        gram: inner products ``[..., 2, 2]`` of source gradient and normal.
    """
    # As "not below", so that nan does not close the gate and stays visible.
    return 1.0 - (gram[..., 0, 1] < 0).to(gram.dtype)


def cosine_gate(gram: Tensor) -> Tensor:
    r""":math:`\max(0, \cos\varphi)`: the weight of a source gradient that agrees only in part.

    Source: Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224, weighted version.
    A zero normal, which cannot disagree, gives 1.

    Args:
        gram: inner products ``[..., 2, 2]`` of source gradient and normal.
    """
    agreement = cosine(gram).clamp(min=0.0)
    return torch.where(gram[..., 1, 1] == 0, torch.ones_like(agreement), agreement)


def balance_factor(source_norm: Tensor, target_norm: Tensor, strength: float) -> Tensor:
    r"""The factor that brings :math:`\|g_s\|` towards :math:`\|g_t\|`.

    .. math:: r\,\frac{\|g_t\|}{\|g_s\|} + 1 - r

    Source: He et al., "MetaBalance", WWW 2022, arXiv 2203.06801, with moving averages for both norms. A zero source
    gradient, which no factor brings anywhere, gives 1.

    Args:
        source_norm: norm of the source gradient, or a moving average of it.
        target_norm: the same of the target gradient.
        strength: the relaxation :math:`r`, from 0 (leave the norm) to 1 (take the target's).
    """
    factor = strength * target_norm / source_norm.clamp(min=torch.finfo(source_norm.dtype).tiny) + (1 - strength)
    return torch.where(source_norm == 0, torch.ones_like(factor), factor)


def agreeing(sources: Sequence[Tensor], normals: Sequence[Tensor]) -> list[Tensor]:
    r""":math:`g_s` with zeros where its sign and that of :math:`n` differ; a zero agrees with everything.

    Source: the sign rule of AND-mask and Agr-Sum (Mansilla et al., "Domain Generalization via Gradient Surgery", ICCV
    2021, arXiv 2108.01621), one-sided: the target keeps the elements on which the two disagree. What is left of
    :math:`g_s` does not conflict with :math:`n`, element by element.

    Args:
        sources: source gradient of every parameter.
        normals: normal of the same parameters.
    """
    check_paired(sources, normals)
    masked = []
    for s, n in zip(sources, normals, strict=True):
        s, n = (s.to_dense() if s.is_sparse else s), (n.to_dense() if n.is_sparse else n)
        if s.is_complex():
            real = agreeing([torch.view_as_real(s)], [torch.view_as_real(n)])[0]
            masked.append(torch.view_as_complex(real))
        else:
            masked.append(torch.where(s.sign() * n.sign() < 0, s * 0.0, s))
    return masked


def paper_weights(gram: Tensor, gamma_source: float, gamma_target: float) -> Tensor:
    r"""Weights of the target-skewed backward: :math:`(\gamma_s,\ \gamma_t + \gamma_s\kappa)`.

    Source: Zhang et al., "Drawing Informative Gradients from Sources", AAAI 2025, doi 10.1609/aaai.v39i1.32102.

    Args:
        gram: inner products ``[..., 2, 2]`` of source and target gradient.
        gamma_source: weight of the source gradient.
        gamma_target: weight of the target gradient.

    Returns:
        Tensor ``[2, ...]``: the weights of source and target gradient.
    """
    weight_target = gamma_target + gamma_source * projection_coefficient(gram)
    return torch.stack((torch.full_like(weight_target, gamma_source), weight_target))


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
    check_paired(sources, targets)
    both = [(s, t) for s, t in zip(sources, targets, strict=True) if s is not None and t is not None]
    if not both:
        return [t if s is None else s for s, t in zip(sources, targets, strict=True)], None
    shared_s, shared_t = [s for s, _ in both], [t for _, t in both]
    gram = gramian(shared_s, shared_t)
    weights: list[Tensor | float] = [gamma_source, paper_weights(gram, gamma_source, gamma_target)[1]]
    filtered = iter(combine(weights, shared_s, shared_t))
    return [t if s is None else s if t is None else next(filtered) for s, t in zip(sources, targets, strict=True)], gram
