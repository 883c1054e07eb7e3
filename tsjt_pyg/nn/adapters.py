"""How each recurrent cell is run over a batch of windows, with the cell's own parameters.

The cells of torch-geometric-temporal take one window and one step at a time, and build the normalised graph anew for
each gate of each step. Here a whole batch of windows of one city goes through at once and the graph is built once. The
numbers are the cell's own (up to rounding), and so are the parameters: nothing is copied, ``state_dict`` is unchanged.

Cells are recognised by the name of their class and its package, so that this module works without
torch-geometric-temporal as long as only :class:`torch.nn.GRU` is used.

Not reproduced: forward hooks on a cell's inner layers (their ``forward`` is not called) and ``cached=True`` (the graph
of the call at hand is used, always). A3TGCN creates its ``_attention`` on the GPU where one is visible; move the model
as a whole (``model.to(device)``) before its first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import scatter

from tsjt_pyg.nn.propagation import Propagation
from tsjt_pyg.nn.recurrences import Basis, GRUWeights, LSTMWeights, gru_states, lstm_states, project

Run = Callable[[Any, Tensor, Tensor, "Tensor | None"], list[Tensor]]


class CellAdapter(NamedTuple):
    """A recognised cell.

    Args:
        in_channels: Channels the cell reads at each step.
        out_channels: Channels of its hidden state.
        periods: The only history the cell can read, or ``None`` if it reads any.
        run: Cell, x ``[N, T, B, C]``, edge_index, edge_weight to the states after each step, ``[N, B, F]`` each (a
            single one for a cell which has a state for the window only).
    """

    in_channels: int
    out_channels: int
    periods: int | None
    run: Run


def adapt(cell: Module) -> CellAdapter:
    """The adapter of a cell.

    Raises:
        TypeError: If the cell is none of those supported.
        ValueError: If it is one, set up in a way that has no final state for each node.
    """
    if isinstance(cell, torch.nn.GRU):
        if cell.bidirectional:
            raise ValueError("cell is a bidirectional torch.nn.GRU; a forecast reads forward: use bidirectional=False")
        return CellAdapter(cell.input_size, cell.hidden_size, None, _run_gru)
    run = _temporal_run(cell)
    if run is None:
        kind = type(cell)
        raise TypeError(
            f"cell must be torch.nn.GRU or one of {', '.join(_RUNS)} of torch_geometric_temporal (a subclass with a "
            f"forward of its own is a cell of its own); found {kind.__module__}.{kind.__qualname__}"
        )
    known: Any = cell
    return CellAdapter(known.in_channels, known.out_channels, getattr(known, "periods", None), run)


def hidden_states(cell: Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> list[Tensor]:
    """The hidden state of every node after each step of a batch of windows of one city.

    Shapes:
        - **input:** x ``[B, T, N, C]``, edge_index ``[2, E]``, edge_weight ``[E]`` *(optional)*
        - **output:** ``T`` tensors ``[B, N, F]``; for A3TGCN a single one
    """
    adapter = adapt(cell)
    if adapter.periods not in (None, x.size(1)):
        raise ValueError(f"cell reads windows of exactly {adapter.periods} steps (periods), x has {x.size(1)}")
    if edge_weight is not None:
        edge_weight = edge_weight.to(x.dtype)
    states = adapter.run(cell, x.permute(2, 1, 0, 3).contiguous(), edge_index, edge_weight)
    return [state.transpose(0, 1) for state in states]


def final_state(cell: Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
    """The hidden state of every node at the end of each window.

    Shapes:
        - **input:** x ``[B, T, N, C]``, edge_index ``[2, E]``, edge_weight ``[E]`` *(optional)*
        - **output:** ``[B, N, F]``
    """
    return hidden_states(cell, x, edge_index, edge_weight)[-1]


def reset_cell(cell: Module) -> None:
    """Draws a cell's parameters anew, the way its constructor does (most cells have no ``reset_parameters``)."""
    for module in cell.modules():
        for name in ("reset_parameters", "_set_parameters", "_DConv__reset_parameters"):
            if hasattr(module, name):
                getattr(module, name)()
        if isinstance(getattr(module, "_attention", None), torch.nn.Parameter):
            torch.nn.init.uniform_(module._attention)  # type: ignore[arg-type]


def _temporal_run(cell: Module) -> Run | None:
    for base in type(cell).__mro__:
        if base.__module__.startswith("torch_geometric_temporal.") and base.__name__ in _RUNS:
            # torch's parametrizations subclass a module and leave its forward alone: still the same cell.
            return _RUNS[base.__name__] if type(cell).forward is base.forward else None  # type: ignore[attr-defined]
    return None


# --- torch.nn.GRU ----------------------------------------------------------------------------------------------------


def _run_gru(cell: torch.nn.GRU, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    nodes, steps, windows, channels = x.shape
    sequences = x.transpose(0, 1).reshape(steps, nodes * windows, channels)
    states = cell(sequences.transpose(0, 1))[0].transpose(0, 1) if cell.batch_first else cell(sequences)[0]
    return [state.view(nodes, windows, -1) for state in states.contiguous().unbind(0)]


# --- Chebyshev cells: GConvGRU, GConvLSTM, GCLSTM --------------------------------------------------------------------


def _run_gconv_gru(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    basis = _chebyshev_basis(cell.conv_x_z, x, edge_index, edge_weight)
    weights = GRUWeights(
        input_gates=_chebyshev_weight(cell.conv_x_z, cell.conv_x_r),
        input_candidate=_chebyshev_weight(cell.conv_x_h),
        bias_gates=_bias(cell.conv_x_z, cell.conv_x_r) + _bias(cell.conv_h_z, cell.conv_h_r),
        bias_candidate=_bias(cell.conv_x_h) + _bias(cell.conv_h_h),
        state_gates=_chebyshev_weight(cell.conv_h_z, cell.conv_h_r),
        state_candidate=_chebyshev_weight(cell.conv_h_h),
    )
    return gru_states(x, basis, basis, weights)


def _run_gconv_lstm(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    basis = _chebyshev_basis(cell.conv_x_i, x, edge_index, edge_weight)
    input_convs = (cell.conv_x_i, cell.conv_x_f, cell.conv_x_c, cell.conv_x_o)
    state_convs = (cell.conv_h_i, cell.conv_h_f, cell.conv_h_c, cell.conv_h_o)
    own_bias = torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o], dim=1).squeeze(0)
    weights = LSTMWeights(
        inputs=_chebyshev_weight(*input_convs),
        bias=_bias(*input_convs) + _bias(*state_convs) + own_bias,
        state=_chebyshev_weight(*state_convs),
        peepholes=(cell.w_c_i, cell.w_c_f, cell.w_c_o),
    )
    return lstm_states(x, basis, basis, weights)


def _run_gc_lstm(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    convs = (cell.conv_i, cell.conv_f, cell.conv_c, cell.conv_o)
    own_bias = torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o], dim=1).squeeze(0)
    weights = LSTMWeights(
        inputs=torch.cat([cell.W_i, cell.W_f, cell.W_c, cell.W_o], dim=1),
        bias=_bias(*convs) + own_bias,
        state=_chebyshev_weight(*convs),
        peepholes=None,
    )
    return lstm_states(x, _itself, _chebyshev_basis(cell.conv_i, x, edge_index, edge_weight), weights)


def _chebyshev_basis(conv: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Basis:
    order, nodes = len(conv.lins), x.size(0)
    if order == 1:
        return _itself
    # The layer's own normalisation, so that every choice of it ("sym", "rw", None) gives the layer's own numbers.
    index, norm = conv.__norm__(edge_index, nodes, edge_weight, conv.normalization, None, dtype=x.dtype)
    laplacian = Propagation(index, norm, nodes)

    def basis(features: Tensor) -> list[Tensor]:
        terms = [features, laplacian(features)]
        for _ in range(2, order):
            terms.append(2.0 * laplacian(terms[-1]) - terms[-2])
        return terms

    return basis


def _chebyshev_weight(*convs: Any) -> Tensor:
    """``[K * C, F * len(convs)]``."""
    return torch.cat([torch.cat([lin.weight for lin in conv.lins], dim=1) for conv in convs], dim=0).t()


def _bias(*layers: Any) -> Tensor:
    """Biases side by side; zeros where a layer has none."""
    return torch.cat(
        [
            layer.bias if layer.bias is not None else next(layer.parameters()).new_zeros(layer.out_channels)
            for layer in layers
        ]
    )


def _itself(features: Tensor) -> list[Tensor]:
    return [features]


# --- GCN cells: TGCN, A3TGCN -----------------------------------------------------------------------------------------


def _run_tgcn(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    return gru_states(_gcn_propagated(cell, x, edge_index, edge_weight), _itself, _itself, _tgcn_weights(cell))


def _run_a3tgcn(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    # Every period starts from a zero state, so that there is no recurrence: the reset gate has nothing to reset and
    # H = (1 - Z) * candidate.
    tgcn = cell._base_tgcn
    weights, channels = _tgcn_weights(tgcn), cell.out_channels
    x = _gcn_propagated(tgcn, x, edge_index, edge_weight)
    update = project(x, weights.input_gates[:, :channels], weights.bias_gates[:channels])
    candidate = project(x, weights.input_candidate, weights.bias_candidate)
    states = torch.sigmoid(-update) * torch.tanh(candidate)
    attention = torch.softmax(cell._attention, dim=0)
    return [torch.einsum("ntbf,t->nbf", states, attention)]


def _gcn_propagated(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
    """The road network applied to the input: it comes before the layers' weights here, where there are few channels."""
    conv, nodes = cell.conv_z, x.size(0)
    index, weight = gcn_norm(
        edge_index, edge_weight, nodes, conv.improved, conv.add_self_loops, conv.flow, dtype=x.dtype
    )
    return Propagation(index, weight, nodes)(x)


def _tgcn_weights(cell: Any) -> GRUWeights:
    """Nothing lies between a gate's graph convolution and the input half of its linear layer: both are one map."""
    gates = ((cell.conv_z, cell.linear_z), (cell.conv_r, cell.linear_r), (cell.conv_h, cell.linear_h))
    inputs, biases, states = [], [], []
    for conv, linear in gates:
        of_input, of_state = linear.weight.chunk(2, dim=1)
        inputs.append((of_input @ conv.lin.weight).t())
        biases.append(of_input @ conv.bias + linear.bias)
        states.append(of_state.t())
    return GRUWeights(
        input_gates=torch.cat(inputs[:2], dim=1),
        input_candidate=inputs[2],
        bias_gates=torch.cat(biases[:2]),
        bias_candidate=biases[2],
        state_gates=torch.cat(states[:2], dim=1),
        state_candidate=states[2],
    )


# --- Diffusion cell: DCRNN -------------------------------------------------------------------------------------------


def _run_dcrnn(cell: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> list[Tensor]:
    basis = _diffusion_basis(cell.K, x, edge_index, edge_weight)
    channels = x.size(-1)
    gates = [_diffusion_weight(conv) for conv in (cell.conv_x_z, cell.conv_x_r, cell.conv_x_h)]
    of_input = [weight[:, :channels].flatten(0, 1) for weight in gates]
    of_state = [weight[:, channels:].flatten(0, 1) for weight in gates]
    weights = GRUWeights(
        input_gates=torch.cat(of_input[:2], dim=1),
        input_candidate=of_input[2],
        bias_gates=_bias(cell.conv_x_z, cell.conv_x_r),
        bias_candidate=_bias(cell.conv_x_h),
        state_gates=torch.cat(of_state[:2], dim=1),
        state_candidate=of_state[2],
    )
    return gru_states(x, basis, basis, weights)


def _diffusion_weight(conv: Any) -> Tensor:
    """``[2 K - 1, C + F, F]``: the two directions share the features themselves, then take turns."""
    outward, inward = conv.weight
    return torch.cat([(outward[:1] + inward[:1]), torch.stack([outward[1:], inward[1:]], dim=1).flatten(0, 1)], dim=0)


def _diffusion_basis(order: int, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Basis:
    if order == 1:
        return _itself
    outward, inward = _diffusion_operators(edge_index, edge_weight, x)

    def basis(features: Tensor) -> list[Tensor]:
        there, back = outward(features), inward(features)
        terms = [features, there, back]
        for _ in range(2, order):
            # PyG-Temporal subtracts the features themselves at every order, not the term before the last.
            there = 2.0 * outward(there) - features
            back = 2.0 * inward(back) - features
            terms += [there, back]
        return terms

    return basis


def _diffusion_operators(edge_index: Tensor, edge_weight: Tensor | None, x: Tensor) -> tuple[Propagation, Propagation]:
    """The random walks along and against the edges as PyG-Temporal's DConv has them.

    Its numbers are kept, oddities included: a weight counts only in the degrees, and the e-th reversed edge in the
    order of ``dense_to_sparse(adj.T)`` is divided by the in-degree of ``edge_index[0, e]``. So on a directed graph the
    result depends on the order of the edges and the numbering of the nodes; with both directions of every road
    present and edges sorted by row (a coalesced ``edge_index``) it does not.

    Where DConv fails there is nothing to keep. It cannot run with parallel or zero-weight edges: they are added up
    and dropped. It gives inf and NaN where a node with an out-edge has no in-edge: exactly those nodes get a self-loop
    of weight 1. In both cases the edges are then sorted by row.
    """
    nodes = x.size(0)
    weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight
    key, position = torch.unique(edge_index[0] * nodes + edge_index[1], return_inverse=True)
    summed = scatter(weight, position, dim_size=key.numel(), reduce="sum")
    if key.numel() < weight.numel() or bool((summed == 0).any()):
        key, weight = key[summed != 0], summed[summed != 0]
        edge_index = torch.stack([key // nodes, key % nodes])
    sources_only = (_degree(weight, edge_index[1], nodes) == 0) & (_degree(weight, edge_index[0], nodes) != 0)
    if bool(sources_only.any()):
        loops = sources_only.nonzero().flatten()
        edge_index = torch.cat([edge_index, torch.stack([loops, loops])], dim=1)
        weight = torch.cat([weight, weight.new_ones(loops.numel())])
        order = (edge_index[0] * nodes + edge_index[1]).argsort()
        edge_index, weight = edge_index[:, order], weight[order]
    row, col = edge_index
    outward = Propagation(edge_index, _degree(weight, row, nodes).reciprocal()[row], nodes)
    reverse = edge_index.flip(0)[:, (col * nodes + row).argsort()]
    inward = Propagation(reverse, _degree(weight, col, nodes).reciprocal()[row], nodes)
    return outward, inward


def _degree(weight: Tensor, index: Tensor, nodes: int) -> Tensor:
    return scatter(weight, index, dim_size=nodes, reduce="sum")


_RUNS: dict[str, Run] = {
    "GConvGRU": _run_gconv_gru,
    "GConvLSTM": _run_gconv_lstm,
    "GCLSTM": _run_gc_lstm,
    "TGCN": _run_tgcn,
    "A3TGCN": _run_a3tgcn,
    "DCRNN": _run_dcrnn,
}
