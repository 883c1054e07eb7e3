"""The LSTM of :mod:`tsjt_pyg.nn.recurrences` in memory at hand; :mod:`tsjt_pyg.nn.in_place` says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .basis import Basis
from .in_place import (
    Parts,
    add_outer,
    add_products,
    at,
    begin,
    blocks,
    buffers,
    chunks,
    flat,
    groups,
    of_group,
    of_plain,
    per_step,
    project,
    pull_products,
    sigmoid_backward_,
    tanh_backward_,
)


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
        windows = groups(start)
        parts, ends = Parts(windows, start.expand(x.size(0), *start.shape)), Parts(windows, start)
        for group, states, end in zip(windows, parts.groups, ends.groups, strict=True):
            memories, gates = _run_lstm(bases, keep, weights, states, *of_group(group, x, start, start_memory))
            end.copy_(memories[-1])
            if keep:
                kept += memories, gates
        states = parts.joined()
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, start, start_memory, *weights, states, *kept)
        return states, states[-1].clone(), ends.joined()

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
            return None, None, *of_plain(plain, (of_states, of_last, of_memory), given, ctx)
        grads = [None if weight is None else torch.zeros_like(weight) for weight in weights]
        windows = groups(start)
        d_x = Parts(windows, x) if ctx.needs_input_grad[2] else None
        d_start, d_memory = Parts(windows, start), Parts(windows, start)
        kept = zip(ctx.saved_tensors[8::2], ctx.saved_tensors[9::2], strict=True)
        for i, (group, memories_and_gates) in enumerate(zip(windows, kept, strict=True)):
            known = (*of_group(group, x, start, start_memory, states), *memories_and_gates)
            of_part = None if of_states is None else of_states[:, :, group]
            of_x = None if d_x is None else d_x.groups[i].zero_()
            ends = begin(d_start.groups[i], of_last, group), begin(d_memory.groups[i], of_memory, group)
            _pull_lstm(bases, weights, grads, known, of_part, of_x, *ends)
        of_input = None if d_x is None else d_x.joined()
        return None, None, of_input, d_start.joined(), d_memory.joined(), *grads


def _run_lstm(
    bases: tuple[Basis, Basis],
    keep: bool,
    weights: Sequence[Tensor | None],
    states: Tensor,
    x: Tensor,
    start: Tensor,
    start_memory: Tensor,
) -> tuple[Tensor, Tensor]:
    """Memories ``[T, N, B, F]`` (the last one alone unless kept) and gates ``[T, N * B, 4 F]`` of a group of windows,
    whose states ``[T, N, B, F]`` are written."""
    inputs, bias, of_state, peepholes = weights
    assert bias is not None
    size = start.size(-1)
    input_weights, state_weights = chunks((inputs, of_state), bases)
    gates = per_step(x, bias.numel(), keep)
    memories = x.new_empty(states.shape) if keep else x.new_empty(1, *start.shape).expand_as(states)
    input_terms, state_terms = buffers(bases[0], x[0]), buffers(bases[1], start)
    state, old = start, start_memory
    for step, gate, new, memory in zip(x, gates, states, memories, strict=True):
        input_terms[0], state_terms[0] = step, state
        bases[0].fill(input_terms)
        bases[1].fill(state_terms)
        for rows in blocks(state):
            part, before, after = gate[rows], flat(old)[rows], flat(memory)[rows]
            project(part, bias, at(input_terms[bases[0].first :], rows), input_weights)
            add_products(part, at(state_terms, rows), state_weights)
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
            torch.tanh(after, out=flat(new)[rows]).mul_(leave)
        state, old = new, memory
    return memories, gates


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
    input_weights, state_weights = chunks((inputs, of_state), bases)
    d_input_weights, d_state_weights = chunks((d_inputs_weight, d_of_state), bases)
    d_gate = torch.empty_like(gates[0])
    input_terms, state_terms = buffers(bases[0], x[0]), buffers(bases[1], start)
    d_inputs, d_states = buffers(bases[0], x[0]), buffers(bases[1], start)
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
        for rows in blocks(state):
            before, after, d_after = (flat(m)[rows] for m in (old, memories[t], d_memory))
            enter, forget, candidate, leave = gates[t][rows].chunk(4, dim=1)
            d_enter, d_forget, d_candidate, d_leave = d_gate[rows].chunk(4, dim=1)
            d_new, squashed = flat(d_state)[rows], after.tanh()
            torch.mul(d_new, squashed, out=d_leave)
            sigmoid_backward_(d_leave, leave)
            d_after += tanh_backward_(d_new.mul_(leave), squashed)
            if peepholes is not None and d_peepholes is not None:
                d_after.addcmul_(d_leave, peepholes[2])
                d_peepholes[2] += (d_leave * after).sum(0)
            torch.mul(d_after, candidate, out=d_enter)
            torch.mul(d_after, before, out=d_forget)
            torch.mul(d_after, enter, out=d_candidate)
            sigmoid_backward_(d_enter, enter)
            sigmoid_backward_(d_forget, forget)
            tanh_backward_(d_candidate, candidate)
            d_after.mul_(forget)
            if peepholes is not None and d_peepholes is not None:
                d_after.addcmul_(d_enter, peepholes[0]).addcmul_(d_forget, peepholes[1])
                d_peepholes[0] += (d_enter * before).sum(0)
                d_peepholes[1] += (d_forget * before).sum(0)
            pull_products(at(d_states, rows), d_gate[rows], state_weights)
            add_outer(d_state_weights, at(state_terms, rows), d_gate[rows])
            add_outer(d_input_weights, at(input_terms[bases[0].first :], rows), d_gate[rows])
            d_bias += d_gate[rows].sum(0)
            if d_x is not None:
                pull_products(at(d_inputs[bases[0].first :], rows), d_gate[rows], input_weights)
        bases[1].pull(d_states)
        if d_x is not None:
            bases[0].pull(d_inputs)
