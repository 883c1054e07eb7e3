"""The recurrences of :mod:`tsjt_pyg.nn.recurrences` in memory at hand, with their backward passes written out.

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


class GRUInPlace(torch.autograd.Function):
    """The states after each step, ``[T, N, B, F]``, and the last of them in memory of its own.

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
        weights = inputs, bias, state_gates, state_candidate
        kept: list[Tensor] = []
        parts = []
        for group in _groups(start):
            part, gates = _run_gru(bases, keep, weights, *_of_group(group, x, start))
            parts.append(part)
            if keep:
                kept.append(gates)
        states = _joined(parts)
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, start, *weights, states, *kept)
        return states, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, of_states: Tensor | None, of_last: Tensor | None) -> tuple[Tensor | None, ...]:
        x, start, *weights, states = ctx.saved_tensors[:7]
        bases = ctx.bases
        if torch.is_grad_enabled():  # second derivatives: those of the plain recurrence
            from .recurrences import GRUWeights, plain_gru_states

            def plain(x: Tensor, start: Tensor, *weights: Tensor) -> Any:
                return plain_gru_states(x, bases[0], bases[1], GRUWeights(*weights), start)

            return None, None, *_of_plain(plain, (of_states, of_last), (x, start, *weights), ctx)
        grads = [torch.zeros_like(weight) for weight in weights]
        d_x, d_start = [], []
        for group, gates in zip(_groups(start), ctx.saved_tensors[7:], strict=True):
            windows = _of_group(group, x, start, states)
            d_x.append(torch.zeros_like(windows[0]) if ctx.needs_input_grad[2] else None)
            d_start.append(_of_end(of_last, group, windows[1]))
            of_part = None if of_states is None else of_states[:, :, group]
            _pull_gru(bases, weights, grads, (*windows, gates), of_part, d_x[-1], d_start[-1])
        return None, None, _joined(d_x), _joined(d_start), *grads


def _run_gru(
    bases: tuple[Basis, Basis], keep: bool, weights: Sequence[Tensor], x: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """States ``[T, N, B, F]`` and gates ``[T, N * B, 3 F]`` of a group of windows."""
    inputs, bias, state_gates, state_candidate = weights
    size = start.size(-1)
    of_input, of_gates, of_candidate = _chunks((inputs, state_gates, state_candidate), bases)
    gates = _per_step(x, bias.numel(), keep)
    states = x.new_empty(x.size(0), *start.shape)
    input_terms, state_terms, reset_terms = (
        _buffers(bases[0], x[0]),
        _buffers(bases[1], start),
        _buffers(bases[1], start),
    )
    reset_terms[0] = torch.empty_like(start)
    state = start
    for step, gate, new in zip(x, gates, states, strict=True):
        input_terms[0], state_terms[0] = step, state
        bases[0].fill(input_terms)
        bases[1].fill(state_terms)
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
    return states, gates


def _pull_gru(
    bases: tuple[Basis, Basis],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    known: Sequence[Tensor],
    of_states: Tensor | None,
    d_x: Tensor | None,
    d_state: Tensor,
) -> None:
    """The transpose of :func:`_run_gru`; ``known`` are x, start, states and gates.

    Adds to the gradients of weights and input, and turns that of the last state into that of the state to start from.
    """
    (inputs, _, state_gates, state_candidate), (x, start, states, gates) = weights, known
    size = start.size(-1)
    of_input, of_gates, of_candidate = _chunks((inputs, state_gates, state_candidate), bases)
    d_bias, first = grads[1], bases[1].first
    d_of_input, d_of_gates, d_of_candidate = _chunks((grads[0], *grads[2:]), bases)
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
        if of_states is not None:
            d_state += of_states[t]
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
                for d_of_part, of_part, part in zip(d_of_parts, of_parts, parts, strict=True):
                    _add_outers(d_of_part, _flat(x[t])[rows], part)
                    if d_x is not None:
                        _pull_sum(_flat(d_x[t])[rows], part, of_part, add=True)
            else:
                of_all = _flat(d_gate)[rows]
                d_bias += of_all.sum(0)
                _add_outer(d_of_input, _at(input_terms[bases[0].first :], rows), of_all)
                if d_x is not None:
                    _pull_products(_at(d_inputs[bases[0].first :], rows), of_all, of_input)
        if d_x is not None and not shared:
            bases[0].pull(d_inputs)


class LSTMInPlace(torch.autograd.Function):
    """The hidden states after each step, ``[T, N, B, F]``, the last of them and the last memory.

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
        weights = inputs, bias, of_state, peepholes
        kept: list[Tensor] = []
        parts, ends = [], []
        for group in _groups(start):
            part, memories, gates = _run_lstm(bases, keep, weights, *_of_group(group, x, start, start_memory))
            parts.append(part)
            ends.append(memories[-1].clone())
            if keep:
                kept += memories, gates
        states = _joined(parts)
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, start, start_memory, *weights, states, *kept)
        return states, states[-1].clone(), _joined(ends)

    @staticmethod
    def backward(
        ctx: Any, of_states: Tensor | None, of_last: Tensor | None, of_memory: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, start, start_memory, *weights, states = ctx.saved_tensors[:8]
        bases = ctx.bases
        if torch.is_grad_enabled():
            from .recurrences import LSTMWeights, plain_lstm_states

            def plain(x: Tensor, start: Tensor, start_memory: Tensor, *weights: Any) -> Any:
                return plain_lstm_states(x, bases[0], bases[1], LSTMWeights(*weights), (start, start_memory))

            given = (x, start, start_memory, *weights)
            return None, None, *_of_plain(plain, (of_states, of_last, of_memory), given, ctx)
        grads = [None if weight is None else torch.zeros_like(weight) for weight in weights]
        d_x, d_start, d_memory = [], [], []
        for group, *kept in zip(_groups(start), ctx.saved_tensors[8::2], ctx.saved_tensors[9::2], strict=True):
            windows = _of_group(group, x, start, start_memory, states)
            d_x.append(torch.zeros_like(windows[0]) if ctx.needs_input_grad[2] else None)
            d_start.append(_of_end(of_last, group, windows[1]))
            d_memory.append(_of_end(of_memory, group, windows[2]))
            of_part = None if of_states is None else of_states[:, :, group]
            _pull_lstm(bases, weights, grads, (*windows, *kept), of_part, d_x[-1], d_start[-1], d_memory[-1])
        return None, None, _joined(d_x), _joined(d_start), _joined(d_memory), *grads


def _run_lstm(
    bases: tuple[Basis, Basis],
    keep: bool,
    weights: Sequence[Tensor | None],
    x: Tensor,
    start: Tensor,
    start_memory: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """States and memories ``[T, N, B, F]`` (the last memory alone unless kept) and gates ``[T, N * B, 4 F]`` of a group
    of windows."""
    inputs, bias, of_state, peepholes = weights
    assert bias is not None
    size = start.size(-1)
    input_weights, state_weights = _chunks((inputs, of_state), bases)
    gates = _per_step(x, bias.numel(), keep)
    states = x.new_empty(x.size(0), *start.shape)
    memories = torch.empty_like(states) if keep else x.new_empty(1, *start.shape).expand_as(states)
    input_terms, state_terms = _buffers(bases[0], x[0]), _buffers(bases[1], start)
    state, old = start, start_memory
    for step, gate, new, memory in zip(x, gates, states, memories, strict=True):
        input_terms[0], state_terms[0] = step, state
        bases[0].fill(input_terms)
        bases[1].fill(state_terms)
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
            torch.tanh(after, out=_flat(new)[rows]).mul_(leave)
        state, old = new, memory
    return states, memories, gates


def _pull_lstm(
    bases: tuple[Basis, Basis],
    weights: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    known: Sequence[Tensor],
    of_states: Tensor | None,
    d_x: Tensor | None,
    d_state: Tensor,
    d_memory: Tensor,
) -> None:
    """The transpose of :func:`_run_lstm`; ``known`` are x, state and memory to start from, states, memories and gates.

    Adds to the gradients of weights and input, and turns those of the last state and memory into those of what to start
    from.
    """
    x, start, start_memory, states, memories, gates = known
    inputs, _, of_state, peepholes = weights
    d_inputs_weight, d_bias, d_of_state, d_peepholes = grads
    assert d_bias is not None
    input_weights, state_weights = _chunks((inputs, of_state), bases)
    d_input_weights, d_state_weights = _chunks((d_inputs_weight, d_of_state), bases)
    d_gate = torch.empty_like(gates[0])
    input_terms, state_terms = _buffers(bases[0], x[0]), _buffers(bases[1], start)
    d_inputs, d_states = _buffers(bases[0], x[0]), _buffers(bases[1], start)
    d_states[0] = d_state
    for t in range(len(states) - 1, -1, -1):
        state, old = (states[t - 1], memories[t - 1]) if t else (start, start_memory)
        if of_states is not None:
            d_state += of_states[t]
        input_terms[0], state_terms[0] = x[t], state
        bases[0].fill(input_terms)
        bases[1].fill(state_terms)
        if d_x is not None:
            d_inputs[0] = d_x[t]
        for rows in _blocks(state):
            before, after, d_after = (_flat(m)[rows] for m in (old, memories[t], d_memory))
            enter, forget, candidate, leave = gates[t][rows].chunk(4, dim=1)
            d_enter, d_forget, d_candidate, d_leave = d_gate[rows].chunk(4, dim=1)
            d_new, squashed = _flat(d_state)[rows], after.tanh()
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


def _of_plain(
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


def _groups(start: Tensor) -> list[slice]:
    """Of about equally many windows, of :data:`ROWS` rows at most, but never less than a window."""
    nodes, windows = start.size(0), max(1, start.size(1))
    count = -(-windows // max(1, ROWS // max(1, nodes)))
    size = -(-windows // count)
    return [slice(first, first + size) for first in range(0, windows, size)]


def _of_group(group: slice, *tensors: Tensor) -> list[Tensor]:
    """Its windows of ``[..., B, C]``, each in one piece."""
    return [tensor[..., group, :].contiguous() for tensor in tensors]


def _of_end(gradient: Tensor | None, group: slice, like: Tensor) -> Tensor:
    """That of a group's last state, in memory of its own."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient[:, group].clone(memory_format=torch.contiguous_format)


def _joined(groups: list[Any]) -> Any:
    """``[..., B, C]`` of all windows; None if there is none of any group."""
    return groups[0] if len(groups) == 1 or groups[0] is None else torch.cat(groups, dim=-2)


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
