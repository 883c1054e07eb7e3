"""Polynomials of a road network's operators, applied to node features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .propagation import Propagation


class Term(NamedTuple):
    """One more polynomial: the operator applied to an earlier one, or twice that less another earlier one."""

    operator: Propagation
    of: int
    less: int | None = None


class Basis:
    r"""The features themselves, :math:`\mathbf{X}_0`, and what the terms make of them, in turn:

    .. math::
        \mathbf{X}_k = \mathbf{P}_k \mathbf{X}_{a_k} \quad \textrm{or} \quad
        \mathbf{X}_k = 2 \mathbf{P}_k \mathbf{X}_{a_k} - \mathbf{X}_{b_k}

    Args:
        terms: :math:`\mathbf{P}_k, a_k, b_k` for :math:`k = 1, 2, \ldots` What is made of an earlier term has to have
            that one's operator.
        first: The polynomials before this one serve the others only and are no part of the basis.
    """

    # Of the class too: torch.compile of torch 2.7 asks for them before __init__ has run.
    terms: tuple[Term, ...] = ()
    first: int = 0

    def __init__(self, terms: tuple[Term, ...] = (), first: int = 0) -> None:
        for term in terms:
            for earlier in (term.of, term.less or 0):
                assert earlier == 0 or terms[earlier - 1].operator is term.operator, "a polynomial of one operator"
        self.terms = terms
        self.first = first

    def __len__(self) -> int:
        return len(self.terms) + 1 - self.first

    def __call__(self, features: Tensor) -> list[Tensor]:
        """``[N, ..., C]`` to as many tensors of that shape as there are polynomials."""
        found = [features]
        for operator, of, less in self.terms:
            product = operator(found[of])
            found.append(product if less is None else 2.0 * product - found[less])
        return found[self.first :]

    def is_constant(self, dtype: torch.dtype) -> bool:
        """Whether every operator is a matrix at hand in this precision, as :meth:`fill` and :meth:`pull` need it."""
        return all(term.operator.matrices is not None and term.operator.weight.dtype == dtype for term in self.terms)

    def fill(self, features: list[Tensor], transpose: bool = False) -> None:
        """The same, into memory at hand: from the first of these ``[N, ...]``, overwrites the others.

        With ``transpose``, by the transposed operators: the transpose of every polynomial, each being of one operator.
        """
        for (operator, of, less), out in zip(self.terms, features[1:], strict=True):
            if less is None:
                operator.apply_(out, features[of], transpose=transpose)
            else:
                operator.apply_(out.copy_(features[less]), features[of], beta=-1.0, alpha=2.0, transpose=transpose)

    def pull(self, gradients: list[Tensor]) -> None:
        """The transpose of :meth:`fill`: adds to the first what the gradients of the others are worth there.

        The others are overwritten.
        """
        for position in range(len(self.terms), 0, -1):
            operator, of, less = self.terms[position - 1]
            gradient = gradients[position]
            operator.apply_(gradients[of], gradient, beta=1.0, alpha=1.0 if less is None else 2.0, transpose=True)
            if less is not None:
                gradients[less].sub_(gradient)


itself = Basis()
"""The features alone."""
