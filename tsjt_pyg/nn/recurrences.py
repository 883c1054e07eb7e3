"""The two gated recurrences behind PyG-Temporal's cells, over a whole window at once.

All of these cells are gates over linear maps of *bases* of the input and of the state: Chebyshev polynomials of the
road network, diffusion steps, or the plain features. The input's share of every gate is one product for all steps;
only the state's share is left inside the loop over time. Nodes come first: input ``[N, T, B, C]``, state ``[N, B, F]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .basis import Basis
from .gru_in_place import GRUInPlace
from .lstm_in_place import LSTMInPlace

State = tuple[Tensor, ...]
"""What a cell hands from one step to the next, ``[N, B, F]`` each: the hidden state first."""


class Steps(NamedTuple):
    """What a cell makes of a window.

    Args:
        states: The hidden states after each step, ``[T, N, B, F]``; of a cell which has a state for the window only,
            ``T`` is 1.
        last: The last of them. Who needs no more takes this one, whose gradient is one of a single step.
        end: What a further step would start from.
    """

    states: Tensor
    last: Tensor
    end: State


class GRUWeights(NamedTuple):
    """Update gate, reset gate and candidate side by side. A weight is ``[M * C, out]`` over a basis of ``M``."""

    inputs: Tensor
    bias: Tensor
    state_gates: Tensor
    state_candidate: Tensor


class LSTMWeights(NamedTuple):
    """Input gate, forget gate, candidate and output gate side by side; ``peepholes`` ``[3, F]`` from the memory to the
    three gates."""

    inputs: Tensor
    bias: Tensor
    state: Tensor
    peepholes: Tensor | None


def gru_states(
    x: Tensor, input_basis: Basis, state_basis: Basis, weights: GRUWeights, start: State | None = None
) -> Steps:
    r"""The state after each step, starting from ``start`` or from zero.

    .. math::
        \mathbf{Z}, \mathbf{R} = \sigma(\ldots), \quad
        \tilde{\mathbf{H}} = \tanh(\ldots \mathbf{R} \odot \mathbf{H}), \quad
        \mathbf{H} \leftarrow \mathbf{Z} \odot \mathbf{H} + (1 - \mathbf{Z}) \odot \tilde{\mathbf{H}}
    """
    x = x.transpose(0, 1)
    if start is None:
        start = (x.new_zeros(*x.shape[1:-1], weights.state_candidate.size(-1)),)
    tensors = (x, start[0], *weights)
    # GRUInPlace has one basis for both, or one for the input alone: no cell needs more.
    one_basis = input_basis is state_basis or not state_basis.terms
    if one_basis and _runs_in_place(tensors, input_basis, state_basis):
        states, last = GRUInPlace.apply((input_basis, state_basis), _has_gradient(tensors), *tensors)
        return Steps(states, last, (last,))
    return plain_gru_states(x, input_basis, state_basis, weights, start[0])


def lstm_states(
    x: Tensor, input_basis: Basis, state_basis: Basis, weights: LSTMWeights, start: State | None = None
) -> Steps:
    r"""The hidden state after each step, starting from ``start`` (state and memory) or from zero.

    .. math::
        \mathbf{C} \leftarrow \mathbf{F} \odot \mathbf{C} + \mathbf{I} \odot \tilde{\mathbf{C}}, \quad
        \mathbf{H} = \mathbf{O} \odot \tanh(\mathbf{C})

    The output gate looks through its peephole at the new memory, the other two at the old one.
    """
    x = x.transpose(0, 1)
    if start is None:
        start = (x.new_zeros(*x.shape[1:-1], weights.inputs.size(-1) // 4),) * 2
    tensors = (x, *start, *weights)
    if _runs_in_place(tensors, input_basis, state_basis):
        states, last, memory = LSTMInPlace.apply((input_basis, state_basis), _has_gradient(tensors), *tensors)
        return Steps(states, last, (last, memory))
    return plain_lstm_states(x, input_basis, state_basis, weights, start)


def plain_gru_states(x: Tensor, input_basis: Basis, state_basis: Basis, weights: GRUWeights, state: Tensor) -> Steps:
    """:func:`gru_states` by operations that torch differentiates and compiles; x ``[T, N, B, C]``."""
    size = state.size(-1)
    inputs = _projected(input_basis, x, weights.inputs, weights.bias)
    state = state.to(inputs.dtype)  # half precision under autocast
    states = []
    # unbind, not indexing: its backward is one stack instead of a tensor of zeros for each step.
    for step in inputs.unbind(0):
        gates = torch.sigmoid(_add_product(step[..., : 2 * size], state_basis(state), weights.state_gates))
        update, reset = gates.chunk(2, dim=-1)
        inner = _add_product(step[..., 2 * size :], state_basis(state * reset), weights.state_candidate)
        state = torch.lerp(torch.tanh(inner), state, update)
        states.append(state)
    return Steps(torch.stack(states), state, (state,))


def plain_lstm_states(x: Tensor, input_basis: Basis, state_basis: Basis, weights: LSTMWeights, start: State) -> Steps:
    """:func:`lstm_states` by operations that torch differentiates and compiles; x ``[T, N, B, C]``."""
    inputs = _projected(input_basis, x, weights.inputs, weights.bias)
    state, memory = (part.to(inputs.dtype) for part in start)
    states = []
    for step in inputs.unbind(0):
        enter, forget, candidate, leave = _add_product(step, state_basis(state), weights.state).chunk(4, dim=-1)
        if weights.peepholes is not None:
            enter = enter + weights.peepholes[0] * memory
            forget = forget + weights.peepholes[1] * memory
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        if weights.peepholes is not None:
            leave = leave + weights.peepholes[2] * memory
        state = torch.sigmoid(leave) * torch.tanh(memory)
        states.append(state)
    return Steps(torch.stack(states), state, (state, memory))


def _runs_in_place(tensors: tuple[Tensor | None, ...], *bases: Basis) -> bool:
    """On the CPU alone: other devices keep freed memory at hand, and the compiler has plans of its own."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in given)
        and dtype in (torch.float32, torch.float64)
        and all(basis.is_constant(dtype) for basis in bases)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _has_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def project(basis: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[..., M * C] -> [..., out]``."""
    return torch.nn.functional.linear(basis, weight.t(), bias)


def _projected(basis: Basis, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the input adds to the gates, all steps in one product: ``[T, N, B, out]``, a step in one piece."""
    terms = [term.transpose(0, 1) for term in basis(x.transpose(0, 1))]
    return project((torch.cat(terms, dim=-1) if len(terms) > 1 else terms[0]).contiguous(), weight, bias)


def _add_product(inputs: Tensor, basis: list[Tensor], weight: Tensor) -> Tensor:
    joined = torch.cat(basis, dim=-1) if len(basis) > 1 else basis[0]
    flat = torch.addmm(inputs.flatten(0, -2), joined.flatten(0, -2), weight)
    return flat.view(inputs.shape)
