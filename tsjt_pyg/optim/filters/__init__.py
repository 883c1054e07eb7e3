"""Gradient filters as pure functions: inner products, rules that turn them into weights, weighted sums.

A gradient is a list of tensors, one a parameter (a single flat vector is a list of one). A filter takes three steps, so
that another rule only has to replace the second: :func:`gramian` reduces the gradients to their inner products, a rule
such as :func:`paper_weights` turns these into weights, :func:`combine` returns the weighted sum.
"""

from tsjt_pyg.optim.filters.combination import combine
from tsjt_pyg.optim.filters.inner_products import gramian
from tsjt_pyg.optim.filters.matrix import aggregate
from tsjt_pyg.optim.filters.rules import (
    agreeing,
    balance_factor,
    binary_gate,
    cosine,
    cosine_gate,
    paper_weights,
    projection_coefficient,
    skew,
    vaccine_coefficient,
)

__all__ = [
    "aggregate",
    "agreeing",
    "balance_factor",
    "binary_gate",
    "combine",
    "cosine",
    "cosine_gate",
    "gramian",
    "paper_weights",
    "projection_coefficient",
    "skew",
    "vaccine_coefficient",
]
