"""The two gated recurrences behind PyG-Temporal's cells, over a whole window at once.

All of these cells are gates over linear maps of *bases* of the input and of the state: Chebyshev polynomials of the
road network, diffusion steps, or the plain features. The input's share of every gate is one product for all steps;
only the state's share is left inside the loop over time. Nodes come first: input ``[N, T, B, C]``, state ``[N, B, F]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Basis = Callable[[Tensor], list[Tensor]]
"""``[N, ..., C]`` to ``M`` tensors of that shape, linear in its argument."""

State = tuple[Tensor, ...]
"""What a cell hands from one step to the next, ``[N, B, F]`` each: the hidden state first."""

Steps = tuple[list[Tensor], State]
"""The hidden states ``[N, B, F]`` after each step, and what a further step would start from."""


class GRUWeights(NamedTuple):
    """Update and reset gate side by side, and the candidate. A weight is ``[M * C, out]`` over a basis of ``M``."""

    input_gates: Tensor
    input_candidate: Tensor
    bias_gates: Tensor
    bias_candidate: Tensor
    state_gates: Tensor
    state_candidate: Tensor


class LSTMWeights(NamedTuple):
    """Input gate, forget gate, candidate and output gate side by side; ``peepholes`` from the memory to the three
    gates."""

    inputs: Tensor
    bias: Tensor
    state: Tensor
    peepholes: tuple[Tensor, Tensor, Tensor] | None


def gru_states(
    x: Tensor, input_basis: Basis, state_basis: Basis, weights: GRUWeights, start: State | None = None
) -> Steps:
    r"""The state after each step, starting from ``start`` or from zero.

    .. math::
        \mathbf{Z}, \mathbf{R} = \sigma(\ldots), \quad
        \tilde{\mathbf{H}} = \tanh(\ldots \mathbf{R} \odot \mathbf{H}), \quad
        \mathbf{H} \leftarrow \mathbf{Z} \odot \mathbf{H} + (1 - \mathbf{Z}) \odot \tilde{\mathbf{H}}
    """
    basis = _steps_first(input_basis(x))
    gate_inputs = project(basis, weights.input_gates, weights.bias_gates)
    candidate_inputs = project(basis, weights.input_candidate, weights.bias_candidate)
    if start is None:
        start = (gate_inputs.new_zeros(*gate_inputs.shape[1:-1], weights.input_candidate.size(-1)),)
    (state,) = start
    states = []
    # unbind, not indexing: its backward is one stack instead of a tensor of zeros for each step.
    for gate_input, candidate_input in zip(gate_inputs.unbind(0), candidate_inputs.unbind(0), strict=True):
        gates = torch.sigmoid(_add_product(gate_input, state_basis(state), weights.state_gates))
        update, reset = gates.chunk(2, dim=-1)
        candidate = torch.tanh(_add_product(candidate_input, state_basis(state * reset), weights.state_candidate))
        state = torch.lerp(candidate, state, update)
        states.append(state)
    return states, (state,)


def lstm_states(
    x: Tensor, input_basis: Basis, state_basis: Basis, weights: LSTMWeights, start: State | None = None
) -> Steps:
    r"""The hidden state after each step, starting from ``start`` (state and memory) or from zero.

    .. math::
        \mathbf{C} \leftarrow \mathbf{F} \odot \mathbf{C} + \mathbf{I} \odot \tilde{\mathbf{C}}, \quad
        \mathbf{H} = \mathbf{O} \odot \tanh(\mathbf{C})

    The output gate looks through its peephole at the new memory, the other two at the old one.
    """
    inputs = project(_steps_first(input_basis(x)), weights.inputs, weights.bias)
    if start is None:
        start = (inputs.new_zeros(*inputs.shape[1:-1], weights.inputs.size(-1) // 4),) * 2
    state, memory = start
    states = []
    for step in inputs.unbind(0):
        parts = _add_product(step, state_basis(state), weights.state).chunk(4, dim=-1)
        enter, forget, candidate, leave = parts
        if weights.peepholes is not None:
            enter = enter + weights.peepholes[0] * memory
            forget = forget + weights.peepholes[1] * memory
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        if weights.peepholes is not None:
            leave = leave + weights.peepholes[2] * memory
        state = torch.sigmoid(leave) * torch.tanh(memory)
        states.append(state)
    return states, (state, memory)


def itself(features: Tensor) -> list[Tensor]:
    """The basis of the features alone."""
    return [features]


def project(basis: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[..., M * C] -> [..., out]``."""
    return torch.nn.functional.linear(basis, weight.t(), bias)


def _steps_first(basis: list[Tensor]) -> Tensor:
    """Steps outermost, so that what one step adds to the gates lies in one piece: ``[T, N, B, M * C]``."""
    return (torch.cat(basis, dim=-1) if len(basis) > 1 else basis[0]).transpose(0, 1).contiguous()


def _add_product(inputs: Tensor, basis: list[Tensor], weight: Tensor) -> Tensor:
    joined = torch.cat(basis, dim=-1) if len(basis) > 1 else basis[0]
    flat = torch.addmm(inputs.flatten(0, -2), joined.flatten(0, -2), weight)
    return flat.view(inputs.shape)
