"""The recurrences of :mod:`tsjt_pyg.nn.recurrences` in memory at hand, with their backward passes written out.

On a CPU what these recurrences cost beyond their products is memory: a tensor fresh from the system is paid for page
by page, several times what the arithmetic on it takes. Here the buffers of one step serve all steps, products are
added up in place, the polynomials of a state are not kept for the backward pass, and whatever concerns each node alone
goes through in blocks of rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .basis import Basis

ROWS = 2048
"""Rows (node and window) of one block: at 64 channels its gates and their inputs stay within 2 MiB, a core's cache."""


class GRUInPlace(torch.autograd.Function):
    """The states after each step, ``[N, B, F]`` each.

    Takes the bases of input and state (one for both, or a state's without terms), ``keep`` (whether there will be a
    backward pass), x ``[T, N, B, C]``, the state to start from, and the tensors of
    :class:`tsjt_pyg.nn.recurrences.GRUWeights`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bases: tuple[Basis, Basis],
        keep: bool,
        x: Tensor,
        start: Tensor,
        inputs: Tensor,
        bias: Tensor,
        state_gates: Tensor,
        state_candidate: Tensor,
    ) -> tuple[Tensor, ...]:
        size = start.size(-1)
        of_input, of_gates, of_candidate = _chunks((inputs, state_gates, state_candidate), bases)
        gates = _per_step(x, bias.numel(), keep)
        input_terms, state_terms, reset_terms = (
            _buffers(bases[0], x[0]),
            _buffers(bases[1], start),
            _buffers(bases[1], start),
        )
        reset_terms[0] = torch.empty_like(start)
        state, states = start, []
        for step, gate in zip(x, gates, strict=True):
            input_terms[0], state_terms[0] = step, state
            bases[0].fill(input_terms)
            bases[1].fill(state_terms)
            new = torch.empty_like(start)
            for rows in _blocks(state):
                part = gate[rows]
                _project(part, bias, _at(input_terms[bases[0].first :], rows), of_input)
                _add_products(part[:, : 2 * size], _at(state_terms, rows), of_gates).sigmoid_()
                torch.mul(_flat(state)[rows], part[:, size : 2 * size], out=_flat(reset_terms[0])[rows])
            bases[1].fill(reset_terms)
            for rows in _blocks(state):
                part = gate[rows]
                candidate = _add_products(part[:, 2 * size :], _at(reset_terms, rows), of_candidate).tanh_()
                torch.lerp(candidate, _flat(state)[rows], part[:, :size], out=_flat(new)[rows])
            state = new
            states.append(new)
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, start, inputs, bias, state_gates, state_candidate, gates if keep else None, *states)
        return tuple(states)

    @staticmethod
    def backward(ctx: Any, *of_states: Tensor | None) -> tuple[Tensor | None, ...]:
        x, start, inputs, bias, state_gates, state_candidate, gates, *states = ctx.saved_tensors
        bases, size = ctx.bases, start.size(-1)
        if torch.is_grad_enabled():  # second derivatives: those of the plain recurrence
            from .recurrences import GRUWeights, plain_gru_states

            def plain(x: Tensor, start: Tensor, *weights: Tensor) -> Any:
                return plain_gru_states(x, bases[0], bases[1], GRUWeights(*weights), start)

            given = (x, start, inputs, bias, state_gates, state_candidate)
            return None, None, *_of_plain(plain, of_states, given, ctx)
        grads = [torch.zeros_like(weight) for weight in (inputs, state_gates, state_candidate)]
        of_input, of_gates, of_candidate = _chunks((inputs, state_gates, state_candidate), bases)
        d_of_input, d_of_gates, d_of_candidate = _chunks(grads, bases)
        d_bias, d_state, first = torch.zeros_like(bias), torch.zeros_like(start), bases[1].first
        d_x = None
        if ctx.needs_input_grad[2]:  # one basis for both: written once, else added to
            d_x = torch.empty_like(x) if bases[0] is bases[1] else torch.zeros_like(x)
        # The transposed operators go through the gradients of the gates rather than of what goes into the gates: the
        # weights' gradients need the same, and no polynomial has to be made again.
        shared = bases[0] is bases[1]
        if shared:
            d_gates, d_candidate = (
                _buffers(bases[1], start.new_empty(*start.shape[:-1], width)) for width in (2 * size, size)
            )
            of_parts = [[w[:, : 2 * size] for w in of_input], [w[:, 2 * size :] for w in of_input]]
            d_of_parts = [[w[:, : 2 * size] for w in d_of_input], [w[:, 2 * size :] for w in d_of_input]]
        else:
            d_gate = start.new_empty(*start.shape[:-1], 3 * size)
            d_gates, d_candidate = [d_gate[..., : 2 * size]], [d_gate[..., 2 * size :]]
            input_terms, d_inputs = _buffers(bases[0], x[0]), _buffers(bases[0], x[0])
        spare = start.new_empty(2, min(ROWS, gates.size(1)), size)
        for t in range(len(states) - 1, -1, -1):
            state, gate = states[t - 1] if t else start, gates[t]
            if (of_this := of_states[t]) is not None:
                d_state += of_this
            for rows in _blocks(state):
                update, candidate = gate[rows, :size], gate[rows, 2 * size :]
                d_new, d_inner, d_update = (_flat(d)[rows] for d in (d_state, d_candidate[0], d_gates[0][..., :size]))
                torch.sub(_flat(state)[rows], candidate, out=d_update).mul_(d_new)
                _sigmoid_backward_(d_update, update)
                torch.addcmul(d_new, d_new, update, value=-1.0, out=d_inner)
                _tanh_backward_(d_inner, candidate)
                d_new.mul_(update)
            bases[1].fill(d_candidate, transpose=True)
            for rows in _blocks(state):
                before, reset, inner = _flat(state)[rows], gate[rows, size : 2 * size], _at(d_candidate[first:], rows)
                kept, d_kept = spare[:, : before.size(0)]
                _pull_sum(d_kept, inner, of_candidate)
                _add_outers(d_of_candidate, torch.mul(before, reset, out=kept), inner)
                _flat(d_state)[rows].addcmul_(d_kept, reset)
                _sigmoid_backward_(torch.mul(d_kept, before, out=_flat(d_gates[0][..., size:])[rows]), reset)
            bases[1].fill(d_gates, transpose=True)
            if not shared:
                input_terms[0], d_inputs[0] = x[t], x[t] if d_x is None else d_x[t]
                bases[0].fill(input_terms)
            for rows in _blocks(state):
                both = _at(d_gates[first:], rows)
                _pull_sum(_flat(d_state)[rows], both, of_gates, add=True)
                _add_outers(d_of_gates, _flat(state)[rows], both)
                if shared:
                    parts = both, _at(d_candidate[first:], rows)
                    d_bias[: 2 * size] += _flat(d_gates[0])[rows].sum(0)
                    d_bias[2 * size :] += _flat(d_candidate[0])[rows].sum(0)
                    for d_weights, weights, gradients in zip(d_of_parts, of_parts, parts, strict=True):
                        _add_outers(d_weights, _flat(x[t])[rows], gradients)
                        if d_x is not None:
                            _pull_sum(_flat(d_x[t])[rows], gradients, weights, add=gradients is not both)
                else:
                    part = _flat(d_gate)[rows]
                    d_bias += part.sum(0)
                    _add_outer(d_of_input, _at(input_terms[bases[0].first :], rows), part)
                    if d_x is not None:
                        _pull_products(_at(d_inputs[bases[0].first :], rows), part, of_input)
            if d_x is not None and not shared:
                bases[0].pull(d_inputs)
        return None, None, d_x, d_state, grads[0], d_bias, grads[1], grads[2]


class LSTMInPlace(torch.autograd.Function):
    """The hidden states after each step and the last memory, ``[N, B, F]`` each.

    Takes what :class:`GRUInPlace` does, a memory to start from too, and the tensors of
    :class:`tsjt_pyg.nn.recurrences.LSTMWeights`, the peepholes ``[3, F]`` as one (or ``None``).
    """

    @staticmethod
    def forward(
        ctx: Any,
        bases: tuple[Basis, Basis],
        keep: bool,
        x: Tensor,
        start: Tensor,
        start_memory: Tensor,
        inputs: Tensor,
        bias: Tensor,
        of_state: Tensor,
        peepholes: Tensor | None,
    ) -> tuple[Tensor, ...]:
        size = start.size(-1)
        input_weights, state_weights = _chunks((inputs, of_state), bases)
        gates = _per_step(x, bias.numel(), keep)
        input_terms, state_terms = _buffers(bases[0], x[0]), _buffers(bases[1], start)
        state, memory, states, memories = start, start_memory, [], []
        for step, gate in zip(x, gates, strict=True):
            input_terms[0], state_terms[0] = step, state
            bases[0].fill(input_terms)
            bases[1].fill(state_terms)
            state, old, memory = torch.empty_like(start), memory, torch.empty_like(start)
            for rows in _blocks(state):
                part, before, after = gate[rows], _flat(old)[rows], _flat(memory)[rows]
                _project(part, bias, _at(input_terms[bases[0].first :], rows), input_weights)
                _add_products(part, _at(state_terms, rows), state_weights)
                enter, forget, candidate, leave = part.chunk(4, dim=1)
                if peepholes is not None:
                    enter.addcmul_(before, peepholes[0])
                    forget.addcmul_(before, peepholes[1])
                part[:, : 2 * size].sigmoid_()
                candidate.tanh_()
                torch.mul(before, forget, out=after).addcmul_(enter, candidate)
                if peepholes is not None:
                    leave.addcmul_(after, peepholes[2])
                leave.sigmoid_()
                torch.tanh(after, out=_flat(state)[rows]).mul_(leave)
            states.append(state)
            memories.append(memory)
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        kept = (gates, *memories[:-1]) if keep else ()
        ctx.save_for_backward(x, start, start_memory, inputs, bias, of_state, peepholes, *states, memory, *kept)
        return *states, memory

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        x, start, start_memory, inputs, bias, of_state, peepholes, *rest = ctx.saved_tensors
        bases, steps = ctx.bases, len(of_outputs) - 1
        if torch.is_grad_enabled():
            from .recurrences import LSTMWeights, plain_lstm_states

            def plain(x: Tensor, start: Tensor, start_memory: Tensor, *weights: Any) -> Any:
                return plain_lstm_states(x, bases[0], bases[1], LSTMWeights(*weights), (start, start_memory))

            given = (x, start, start_memory, inputs, bias, of_state, peepholes)
            return None, None, *_of_plain(plain, of_outputs, given, ctx)
        states, last_memory, gates, memories = rest[:steps], rest[steps], rest[steps + 1], rest[steps + 2 :]
        memories = [start_memory, *memories, last_memory]
        d_weights = [torch.zeros_like(inputs), torch.zeros_like(of_state)]
        input_weights, state_weights = _chunks((inputs, of_state), bases)
        d_input_weights, d_state_weights = _chunks(d_weights, bases)
        d_bias, d_peepholes = torch.zeros_like(bias), None if peepholes is None else torch.zeros_like(peepholes)
        d_x = torch.zeros_like(x) if ctx.needs_input_grad[2] else None
        d_gate = torch.empty_like(gates[0])
        input_terms, state_terms = _buffers(bases[0], x[0]), _buffers(bases[1], start)
        d_inputs, d_states = _buffers(bases[0], x[0]), _buffers(bases[1], start)
        d_states[0] = torch.zeros_like(start)
        d_memory = torch.zeros_like(start) if of_outputs[-1] is None else of_outputs[-1].clone()
        for t in range(steps - 1, -1, -1):
            state = states[t - 1] if t else start
            if (of_this := of_outputs[t]) is not None:
                d_states[0] += of_this
            input_terms[0], state_terms[0] = x[t], state
            bases[0].fill(input_terms)
            bases[1].fill(state_terms)
            if d_x is not None:
                d_inputs[0] = d_x[t]
            for rows in _blocks(state):
                before, after, d_after = (_flat(m)[rows] for m in (memories[t], memories[t + 1], d_memory))
                enter, forget, candidate, leave = gates[t][rows].chunk(4, dim=1)
                d_enter, d_forget, d_candidate, d_leave = d_gate[rows].chunk(4, dim=1)
                d_new, squashed = _flat(d_states[0])[rows], after.tanh()
                torch.mul(d_new, squashed, out=d_leave)
                _sigmoid_backward_(d_leave, leave)
                d_after += _tanh_backward_(d_new.mul_(leave), squashed)
                if peepholes is not None and d_peepholes is not None:
                    d_after.addcmul_(d_leave, peepholes[2])
                    d_peepholes[2] += (d_leave * after).sum(0)
                torch.mul(d_after, candidate, out=d_enter)
                torch.mul(d_after, before, out=d_forget)
                torch.mul(d_after, enter, out=d_candidate)
                _sigmoid_backward_(d_enter, enter)
                _sigmoid_backward_(d_forget, forget)
                _tanh_backward_(d_candidate, candidate)
                d_after.mul_(forget)
                if peepholes is not None and d_peepholes is not None:
                    d_after.addcmul_(d_enter, peepholes[0]).addcmul_(d_forget, peepholes[1])
                    d_peepholes[0] += (d_enter * before).sum(0)
                    d_peepholes[1] += (d_forget * before).sum(0)
                _pull_products(_at(d_states, rows), d_gate[rows], state_weights)
                _add_outer(d_state_weights, _at(state_terms, rows), d_gate[rows])
                _add_outer(d_input_weights, _at(input_terms[bases[0].first :], rows), d_gate[rows])
                d_bias += d_gate[rows].sum(0)
                if d_x is not None:
                    _pull_products(_at(d_inputs[bases[0].first :], rows), d_gate[rows], input_weights)
            bases[1].pull(d_states)
            if d_x is not None:
                bases[0].pull(d_inputs)
        return None, None, d_x, d_states[0], d_memory, d_weights[0], d_bias, d_weights[1], d_peepholes


def _of_plain(run: Any, of_outputs: Any, inputs: Any, ctx: Any) -> Iterator[Tensor | None]:
    """Gradients of what the plain recurrence gives, which can be differentiated again."""
    # Views: where one of them was made of another, that way to it is none of this function's.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    states, last = run(*inputs)
    outputs = [*states, *last[1:]]
    pairs = [(out, g) for out, g in zip(outputs, of_outputs, strict=True) if g is not None]
    needed = [tensor for tensor, need in zip(inputs, ctx.needs_input_grad[2:], strict=True) if need]
    found = torch.autograd.grad(
        [out for out, _ in pairs], needed, [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    rest = iter(found)
    return (next(rest) if need else None for need in ctx.needs_input_grad[2:])


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.size(-1))


def _blocks(state: Tensor) -> Iterator[slice]:
    count = state.numel() // state.size(-1)
    return (slice(first, first + ROWS) for first in range(0, count, ROWS))


def _at(terms: list[Tensor], rows: slice) -> list[Tensor]:
    return [_flat(term)[rows] for term in terms]


def _buffers(basis: Basis, like: Tensor) -> list[Tensor]:
    """Memory for a basis; the first, the features themselves, is set by the caller."""
    return [like, *(torch.empty_like(like) for _ in basis.terms)]


def _per_step(x: Tensor, channels: int, keep: bool) -> Tensor:
    """``[T, N * B, channels]``, the same memory at every step unless it is kept for the backward pass."""
    steps, rows = x.size(0), x.size(1) * x.size(2)
    if keep:
        return x.new_empty(steps, rows, channels)
    return x.new_empty(1, rows, channels).expand(steps, -1, -1)


def _chunks(weights: Any, bases: tuple[Basis, Basis]) -> list[tuple[Tensor, ...]]:
    """A weight a polynomial: the first tensor's over the input's basis, the others' over the state's."""
    return [w.chunk(len(basis)) for w, basis in zip(weights, (bases[0], *[bases[1]] * (len(weights) - 1)), strict=True)]


def _project(out: Tensor, bias: Tensor, terms: list[Tensor], weights: tuple[Tensor, ...]) -> None:
    torch.addmm(bias, terms[0], weights[0], out=out)
    _add_products(out, terms[1:], weights[1:])


def _add_products(out: Tensor, terms: list[Tensor], weights: tuple[Tensor, ...]) -> Tensor:
    for term, weight in zip(terms, weights, strict=True):
        out.addmm_(term, weight)
    return out


def _pull_products(terms: list[Tensor], gradient: Tensor, weights: tuple[Tensor, ...]) -> None:
    for term, weight in zip(terms, weights, strict=True):
        torch.mm(gradient, weight.t(), out=term)


def _pull_sum(out: Tensor, gradients: list[Tensor], weights: Sequence[Tensor], add: bool = False) -> None:
    for gradient, weight in zip(gradients, weights, strict=True):
        if add:
            out.addmm_(gradient, weight.t())
        else:
            torch.mm(gradient, weight.t(), out=out)
        add = True


def _add_outer(out: tuple[Tensor, ...], terms: list[Tensor], gradient: Tensor) -> None:
    for weight, term in zip(out, terms, strict=True):
        weight.addmm_(term.t(), gradient)


def _add_outers(out: Sequence[Tensor], features: Tensor, gradients: list[Tensor]) -> None:
    for weight, gradient in zip(out, gradients, strict=True):
        weight.addmm_(features.t(), gradient)


def _sigmoid_backward_(gradient: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, output, grad_input=gradient)


def _tanh_backward_(gradient: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)
