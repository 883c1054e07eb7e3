"""What the recurrences in memory at hand share, whose backward passes are written out: the products and the buffers.

On a CPU what these recurrences cost beyond their products is memory: a tensor fresh from the system is paid for page
by page, several times what the arithmetic on it takes, and one that has left the cache costs as much again. Here the
buffers of one step serve all steps, products are added up in place, the polynomials of a state are not kept for the
backward pass, windows go through all steps in groups whose features stay in the cache, and of large cities whatever
concerns each node alone goes through in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .basis import Basis

ROWS = 4096
"""Rows (node and window) of a group and of a block: at 64 channels a tensor of them is 1 MiB."""


def of_plain(
    run: Callable[..., Any], of_outputs: Sequence[Tensor | None], inputs: Sequence[Any], ctx: Any
) -> Iterator[Tensor | None]:
    """Gradients of what the plain recurrence gives, which can be differentiated again."""
    # Views: where one of them was made of another, that way to it is none of this function's.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    states, _, end = run(*inputs)
    pairs = [(out, g) for out, g in zip((states, *end), of_outputs, strict=True) if g is not None]
    needed = [tensor for tensor, need in zip(inputs, ctx.needs_input_grad[2:], strict=True) if need]
    found = torch.autograd.grad(
        [out for out, _ in pairs], needed, [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    rest = iter(found)
    return (next(rest) if need else None for need in ctx.needs_input_grad[2:])


def groups(start: Tensor) -> list[slice]:
    """Of about equally many windows, of :data:`ROWS` rows at most, but never less than a window."""
    nodes, windows = start.size(0), max(1, start.size(1))
    count = -(-windows // max(1, ROWS // max(1, nodes)))
    size = -(-windows // count)
    return [slice(first, min(first + size, windows)) for first in range(0, windows, size)]


def of_group(group: slice, *tensors: Tensor) -> list[Tensor]:
    """Its windows of ``[..., B, C]``, each in one piece."""
    return [tensor[..., group, :].contiguous() for tensor in tensors]


class Parts:
    """Room for ``[..., B, C]``, of each group in one piece; of large cities, whose groups are a window each, all of it
    in one tensor, so that nothing is copied to join it.

    Args:
        groups: As of :func:`groups`.
        like: A tensor of that shape.
    """

    def __init__(self, groups: list[slice], like: Tensor) -> None:
        *lead, windows, channels = like.shape
        axes = range(like.dim())
        self._whole: Tensor | None = None
        if len(groups) in (1, windows):
            order = axes if len(groups) == 1 else (axes[-2], *axes[:-2], axes[-1])
            self._whole = torch.empty_permuted(like.shape, tuple(order), dtype=like.dtype, device=like.device)
            self.groups = [self._whole[..., group, :] for group in groups]
        else:
            self.groups = [like.new_empty(*lead, group.stop - group.start, channels) for group in groups]

    def joined(self) -> Tensor:
        return torch.cat(self.groups, dim=-2) if self._whole is None else self._whole


def begin(out: Tensor, gradient: Tensor | None, group: slice) -> Tensor:
    """That of a group's last state, the first of a backward pass."""
    return out.zero_() if gradient is None else out.copy_(gradient[:, group])


def flat(x: Tensor) -> Tensor:
    return x.view(-1, x.size(-1))


def blocks(state: Tensor) -> Iterator[slice]:
    count = state.numel() // state.size(-1)
    return (slice(first, first + ROWS) for first in range(0, count, ROWS))


def at(terms: list[Tensor], rows: slice) -> list[Tensor]:
    return [flat(term)[rows] for term in terms]


def buffers(basis: Basis, like: Tensor) -> list[Tensor]:
    """Memory for a basis; the first, the features themselves, is set by the caller."""
    return [like, *(torch.empty_like(like) for _ in basis.terms)]


def per_step(x: Tensor, channels: int, keep: bool) -> Tensor:
    """``[T, N * B, channels]``, the same memory at every step unless it is kept for the backward pass."""
    steps, rows = x.size(0), x.size(1) * x.size(2)
    if keep:
        return x.new_empty(steps, rows, channels)
    return x.new_empty(1, rows, channels).expand(steps, -1, -1)


def chunks(weights: Any, bases: tuple[Basis, Basis]) -> list[tuple[Tensor, ...]]:
    """A weight a polynomial: the first tensor's over the input's basis, the others' over the state's."""
    return [w.chunk(len(basis)) for w, basis in zip(weights, (bases[0], *[bases[1]] * (len(weights) - 1)), strict=True)]


def project(out: Tensor, bias: Tensor, terms: list[Tensor], weights: tuple[Tensor, ...]) -> None:
    torch.addmm(bias, terms[0], weights[0], out=out)
    add_products(out, terms[1:], weights[1:])


def add_products(out: Tensor, terms: list[Tensor], weights: tuple[Tensor, ...]) -> Tensor:
    for term, weight in zip(terms, weights, strict=True):
        out.addmm_(term, weight)
    return out


def pull_products(terms: list[Tensor], gradient: Tensor, weights: tuple[Tensor, ...]) -> None:
    for term, weight in zip(terms, weights, strict=True):
        torch.mm(gradient, weight.t(), out=term)


def pull_sum(out: Tensor, gradients: list[Tensor], weights: Sequence[Tensor], add: bool = False) -> None:
    for gradient, weight in zip(gradients, weights, strict=True):
        if add:
            out.addmm_(gradient, weight.t())
        else:
            torch.mm(gradient, weight.t(), out=out)
        add = True


def add_outer(out: tuple[Tensor, ...], terms: list[Tensor], gradient: Tensor) -> None:
    for weight, term in zip(out, terms, strict=True):
        weight.addmm_(term.t(), gradient)


def add_outers(out: Sequence[Tensor], features: Tensor, gradients: list[Tensor]) -> None:
    for weight, gradient in zip(out, gradients, strict=True):
        weight.addmm_(features.t(), gradient)


def sigmoid_backward_(gradient: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, output, grad_input=gradient)


def tanh_backward_(gradient: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)
