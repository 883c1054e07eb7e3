"""The GRU of :mod:`tsjt_pyg.nn.recurrences` in memory at hand; :mod:`tsjt_pyg.nn.in_place` says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .basis import Basis
from .in_place import (
    Parts,
    add_outer,
    add_outers,
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
    pull_sum,
    sigmoid_backward_,
    tanh_backward_,
)


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
        windows = groups(start)
        parts = Parts(windows, start.expand(x.size(0), *start.shape))
        for group, states in zip(windows, parts.groups, strict=True):
            gates = _run_gru(bases, keep, weights, states, *of_group(group, x, start))
            if keep:
                kept.append(gates)
        states = parts.joined()
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

            return None, None, *of_plain(plain, (of_states, of_last), (x, start, *weights), ctx)
        grads = [torch.zeros_like(weight) for weight in weights]
        windows = groups(start)
        d_x = Parts(windows, x) if ctx.needs_input_grad[2] else None
        d_start = Parts(windows, start)
        for i, (group, gates) in enumerate(zip(windows, ctx.saved_tensors[7:], strict=True)):
            of_part = None if of_states is None else of_states[:, :, group]
            of_x = None if d_x is None else d_x.groups[i].zero_()
            of_start = begin(d_start.groups[i], of_last, group)
            _pull_gru(bases, weights, grads, (*of_group(group, x, start, states), gates), of_part, of_x, of_start)
        return None, None, None if d_x is None else d_x.joined(), d_start.joined(), *grads


def _run_gru(
    bases: tuple[Basis, Basis], keep: bool, weights: Sequence[Tensor], states: Tensor, x: Tensor, start: Tensor
) -> Tensor:
    """Gates ``[T, N * B, 3 F]`` of a group of windows, whose states ``[T, N, B, F]`` are written."""
    inputs, bias, state_gates, state_candidate = weights
    size = start.size(-1)
    of_input, of_gates, of_candidate = chunks((inputs, state_gates, state_candidate), bases)
    gates = per_step(x, bias.numel(), keep)
    input_terms, state_terms, reset_terms = (
        buffers(bases[0], x[0]),
        buffers(bases[1], start),
        buffers(bases[1], start),
    )
    reset_terms[0] = torch.empty_like(start)
    state = start
    for step, gate, new in zip(x, gates, states, strict=True):
        input_terms[0], state_terms[0] = step, state
        bases[0].fill(input_terms)
        bases[1].fill(state_terms)
        for rows in blocks(state):
            part = gate[rows]
            project(part, bias, at(input_terms[bases[0].first :], rows), of_input)
            add_products(part[:, : 2 * size], at(state_terms, rows), of_gates).sigmoid_()
            torch.mul(flat(state)[rows], part[:, size : 2 * size], out=flat(reset_terms[0])[rows])
        bases[1].fill(reset_terms)
        for rows in blocks(state):
            part = gate[rows]
            candidate = add_products(part[:, 2 * size :], at(reset_terms, rows), of_candidate).tanh_()
            torch.lerp(candidate, flat(state)[rows], part[:, :size], out=flat(new)[rows])
        state = new
    return gates


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
    of_input, of_gates, of_candidate = chunks((inputs, state_gates, state_candidate), bases)
    d_bias, first = grads[1], bases[1].first
    d_of_input, d_of_gates, d_of_candidate = chunks((grads[0], *grads[2:]), bases)
    # The transposed operators go through the gradients of the gates rather than of what goes into the gates: the
    # weights' gradients need the same, and no polynomial has to be made again.
    shared = bases[0] is bases[1]
    if shared:
        d_gates, d_candidate = (
            buffers(bases[1], start.new_empty(*start.shape[:-1], width)) for width in (2 * size, size)
        )
        of_parts = [[w[:, : 2 * size] for w in of_input], [w[:, 2 * size :] for w in of_input]]
        d_of_parts = [[w[:, : 2 * size] for w in d_of_input], [w[:, 2 * size :] for w in d_of_input]]
    else:
        d_gate = start.new_empty(*start.shape[:-1], 3 * size)
        d_gates, d_candidate = [d_gate[..., : 2 * size]], [d_gate[..., 2 * size :]]
        input_terms, d_inputs = buffers(bases[0], x[0]), buffers(bases[0], x[0])
    most = min(next(blocks(start), slice(0)).stop, gates.size(1))
    spare = start.new_empty(2, most, size)
    for t in range(len(states) - 1, -1, -1):
        state, gate = states[t - 1] if t else start, gates[t]
        if of_states is not None:
            d_state += of_states[t]
        for rows in blocks(state):
            update, candidate = gate[rows, :size], gate[rows, 2 * size :]
            d_new, d_inner, d_update = (flat(d)[rows] for d in (d_state, d_candidate[0], d_gates[0][..., :size]))
            torch.sub(flat(state)[rows], candidate, out=d_update).mul_(d_new)
            sigmoid_backward_(d_update, update)
            torch.addcmul(d_new, d_new, update, value=-1.0, out=d_inner)
            tanh_backward_(d_inner, candidate)
            d_new.mul_(update)
        bases[1].fill(d_candidate, transpose=True)
        for rows in blocks(state):
            before, reset, inner = flat(state)[rows], gate[rows, size : 2 * size], at(d_candidate[first:], rows)
            kept, d_kept = spare[:, : before.size(0)]
            pull_sum(d_kept, inner, of_candidate)
            add_outers(d_of_candidate, torch.mul(before, reset, out=kept), inner)
            flat(d_state)[rows].addcmul_(d_kept, reset)
            sigmoid_backward_(torch.mul(d_kept, before, out=flat(d_gates[0][..., size:])[rows]), reset)
        bases[1].fill(d_gates, transpose=True)
        if not shared:
            input_terms[0], d_inputs[0] = x[t], x[t] if d_x is None else d_x[t]
            bases[0].fill(input_terms)
        for rows in blocks(state):
            both = at(d_gates[first:], rows)
            pull_sum(flat(d_state)[rows], both, of_gates, add=True)
            add_outers(d_of_gates, flat(state)[rows], both)
            if shared:
                parts = both, at(d_candidate[first:], rows)
                d_bias[: 2 * size] += flat(d_gates[0])[rows].sum(0)
                d_bias[2 * size :] += flat(d_candidate[0])[rows].sum(0)
                for d_of_part, of_part, part in zip(d_of_parts, of_parts, parts, strict=True):
                    add_outers(d_of_part, flat(x[t])[rows], part)
                    if d_x is not None:
                        pull_sum(flat(d_x[t])[rows], part, of_part, add=True)
            else:
                of_all = flat(d_gate)[rows]
                d_bias += of_all.sum(0)
                add_outer(d_of_input, at(input_terms[bases[0].first :], rows), of_all)
                if d_x is not None:
                    pull_products(at(d_inputs[bases[0].first :], rows), of_all, of_input)
        if d_x is not None and not shared:
            bases[0].pull(d_inputs)
