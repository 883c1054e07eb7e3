"""Filters of other libraries: a function of the inner products, or of the whole matrix of gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tsjt_pyg.optim.filters.grouping import check_paired

Weighting = Callable[[Tensor], Tensor]


def weighting_of(rule: Any) -> Weighting | None:
    """The function from inner products to weights that a rule is or holds; None if it needs the gradients themselves.

    Args:
        rule: a torchjd ``Weighting``, a torchjd ``Aggregator``, or any function of the gramian.
    """
    # Whoever made a torchjd object has imported torchjd.
    torchjd = sys.modules.get("torchjd.aggregation")
    if torchjd is not None and isinstance(rule, torchjd.Aggregator):
        weighting: Weighting | None = getattr(rule, "gramian_weighting", None)
        return weighting
    return rule


def aggregate(aggregator: Weighting, *gradients: Sequence[Tensor]) -> list[Tensor]:
    r"""Apply an aggregator to the matrix :math:`[m, n]` of :math:`m` flat gradients.

    Takes memory for :math:`m + 1` copies of the gradients.

    Args:
        aggregator: maps the matrix to a vector of length :math:`n`, as the aggregators of torchjd do.
        gradients: :math:`m` lists with one dense tensor a parameter each.

    Returns:
        One tensor a parameter.

    Raises:
        ValueError: if the lists differ in length, or a gradient is sparse.
    """
    check_paired(*gradients)
    if any(t.layout is not torch.strided for g in gradients for t in g):
        raise ValueError("an aggregator needs the matrix of all gradients, but one of them is sparse: use a weighting")
    matrix = torch.stack([_flatten_dense_tensors(list(g)) for g in gradients])
    return list(_unflatten_dense_tensors(aggregator(matrix), list(gradients[-1])))
