"""accelerate(cell) shares the cell's parameters and computes what the cell does, called window by window."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, accelerate
from tsjt_pyg.nn import in_place as in_place_module
from tsjt_pyg.nn.adapters import adapt
from tsjt_pyg.nn.road_graph import road_graph

recurrent = import_temporal().nn.recurrent

WINDOWS, STEPS, NODES, CHANNELS, HIDDEN = 2, 4, 7, 3, 5

RING = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 5]])
ROAD = torch.cat([RING, RING.flip(0)], dim=1)
GRAPHS = {
    "undirected": ROAD[:, (ROAD[0] * NODES + ROAD[1]).argsort()],
    "directed": RING,
    "isolated nodes": torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]]),
    "parallel edges": torch.cat([RING, RING[:, :3]], dim=1),
}
CELLS = {
    **{
        f"{kind} K={k}": lambda kind=kind, k=k: getattr(recurrent, kind)(CHANNELS, HIDDEN, k)
        for kind in ("GConvGRU", "GConvLSTM", "GCLSTM", "DCRNN", "BatchedDCRNN")
        for k in (1, 2, 3)
    },
    **{
        f"{kind} {normalization} no bias": lambda kind=kind, n=normalization: getattr(recurrent, kind)(
            CHANNELS, HIDDEN, 3, normalization=n, bias=False
        )
        for kind in ("GConvGRU", "GConvLSTM", "GCLSTM")
        for normalization in ("rw", None)
    },
    "TGCN": lambda: recurrent.TGCN(CHANNELS, HIDDEN),
    "TGCN2": lambda: recurrent.TGCN2(CHANNELS, HIDDEN, 99),
    "TGCN2 improved, no loops": lambda: recurrent.TGCN2(CHANNELS, HIDDEN, 1, improved=True, add_self_loops=False),
    "A3TGCN": lambda: recurrent.A3TGCN(CHANNELS, HIDDEN, STEPS),
    "A3TGCN2": lambda: recurrent.A3TGCN2(CHANNELS, HIDDEN, STEPS, 99),
}
ONE_A_KIND = ["GConvGRU K=3", "GConvLSTM K=2", "GCLSTM K=2", "TGCN", "TGCN2", "A3TGCN", "A3TGCN2", "DCRNN K=3"]
ONE_A_KIND += ["BatchedDCRNN K=2"]


def make(name, dtype=torch.float64):
    torch.manual_seed(1)
    cell = CELLS[name]().to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            if not parameter.any():  # biases start at zero, where a wrong one would not show
                parameter.normal_()
    return cell


def as_shipped(cell, x, edge_index, edge_weight=None):
    """All states of PyG-Temporal's own cell, ``[B, T, N, F]``, called the way its batch size allows."""
    kind = type(cell).__name__
    if kind == "BatchedDCRNN":
        return cell(x, edge_index, x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight)
    if kind == "A3TGCN2":
        return cell(x.permute(0, 2, 3, 1), edge_index, edge_weight)[:, None]
    windows = []
    for window in x[:, None] if kind == "TGCN2" else x:
        window = window.transpose(0, 1) if kind == "TGCN2" else window
        if kind == "A3TGCN":
            windows.append(cell(window.permute(1, 2, 0), edge_index, edge_weight)[None])
            continue
        state, states = (), []
        for step in window:
            out = cell(step, edge_index, edge_weight, *state)
            state = out if isinstance(out, tuple) else (out,)
            states.append(state[0])
        windows.append(torch.stack(states))
    out = torch.stack(windows)
    return out.squeeze(2) if kind == "TGCN2" else out


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)  # the cells make their zero states in it, whatever their input's
    yield
    torch.set_default_dtype(torch.float32)


def run(function, parameters, x, edge_index, edge_weight):
    x = x.clone().requires_grad_()
    out = function(x, edge_index, edge_weight)
    loss = (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()).sum()
    return out.detach(), torch.autograd.grad(loss, [x, *parameters], allow_unused=True)


def both(name, dtype, graph="directed", weighted=True):
    cell, edge_index = make(name, dtype), GRAPHS[graph]
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS, dtype=dtype)
    weight = torch.rand(edge_index.size(1), dtype=dtype) + 0.1 if weighted else None
    parameters = list(cell.parameters())
    found = run(accelerate(cell), parameters, x, edge_index, weight)
    return found, run(lambda *args: as_shipped(cell, *args), parameters, x, edge_index, weight)


def runs_as_shipped(name, graph):
    """DConv builds a dense matrix of its edges, where parallel ones are one; without bias it cannot be built at all."""
    return not (name.startswith("DCRNN") and graph == "parallel edges")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_cell_in_every_state_and_gradient(name, graph, weighted, float64):
    if not runs_as_shipped(name, graph):
        pytest.skip("PyG-Temporal's DCRNN fails where edges are parallel")
    (out, grads), (expected, expected_grads) = both(name, torch.float64, graph, weighted)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        if expected_grad is None:  # K=1 and the like: PyG-Temporal itself leaves it out
            assert grad is None or not grad.any()
        else:
            torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_cell_in_float32(name):
    (out, grads), (expected, expected_grads) = both(name, torch.float32)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        if expected_grad is not None:
            assert (grad - expected_grad).norm() <= 1e-4 * expected_grad.norm()


@pytest.mark.parametrize("name", ONE_A_KIND)
def test_neither_groups_of_windows_nor_blocks_of_rows_change_anything(name, float64, monkeypatch):
    (out, grads), _ = both(name, torch.float64)
    monkeypatch.setattr(in_place_module, "ROWS", 3)  # 7 rows a window: a group each, the last block is short
    (in_blocks, grads_in_blocks), _ = both(name, torch.float64)
    torch.testing.assert_close(in_blocks, out)
    torch.testing.assert_close(grads_in_blocks, grads)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 2**31),
    st.sampled_from(ONE_A_KIND),
    st.sampled_from([1, 2, 3, 100]),
)
def test_a_window_does_not_know_of_the_others(nodes, steps, windows, seed, name, group):
    generator = torch.Generator().manual_seed(seed)
    steps = STEPS if name.startswith("A3") else steps
    x = torch.randn(windows, steps, nodes, CHANNELS, generator=generator, dtype=torch.float64)
    edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)
    fast = accelerate(make(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place_module, "ROWS", group * nodes)
        torch.testing.assert_close(torch.cat([fast(window[None], edges) for window in x]), fast(x, edges))


@pytest.mark.parametrize("name", ["GConvGRU K=3", "GConvLSTM K=2", "GCLSTM K=1", "TGCN", "DCRNN K=2"])
def test_has_second_derivatives(name):
    cell = make(name)
    fast = accelerate(cell)
    x = torch.randn(1, 2, 3, CHANNELS, dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    assert torch.autograd.gradcheck(lambda x: fast(x, edges), (x,))
    assert torch.autograd.gradgradcheck(lambda x, *_: fast(x, edges), (x, next(iter(cell.parameters()))))


@pytest.mark.parametrize("name", ["GConvGRU K=2", "GConvLSTM K=2"])
def test_second_derivatives_where_the_state_was_made_of_the_input(name):
    """What adapters hand on: the state may be a function of the very x that follows."""
    cell, graph = make(name), road_graph(RING, None, NODES)
    first = torch.randn(NODES, 2, 1, HIDDEN, dtype=torch.float64, requires_grad=True)

    def loss(first):
        x = first[..., :CHANNELS]
        state = tuple(first[:, step] + x[:, step].sum(-1, keepdim=True) for step in range(2))
        steps = adapt(cell).run(cell, x, graph, state[: 1 + ("LSTM" in name)])
        return (steps.states[-1] * steps.last + steps.end[-1].square()).sum()

    assert torch.autograd.gradgradcheck(loss, (first,))


@pytest.mark.parametrize("name", ONE_A_KIND)
def test_shares_the_parameters(name):
    cell = make(name, torch.float32)
    fast = accelerate(cell)
    mine, its = fast.state_dict(), cell.state_dict()
    assert list(mine) == list(its)
    assert all(mine[key].data_ptr() == its[key].data_ptr() for key in its)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in cell.parameters()]

    fast.load_state_dict({key: torch.full_like(value, 0.1) for key, value in mine.items()})
    assert all((p == 0.1).all() for p in cell.parameters())
    cell.load_state_dict({key: torch.full_like(value, 0.2) for key, value in its.items()})
    assert all((p == 0.2).all() for p in fast.parameters())

    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    fast(x, RING).sum().backward()
    optimizer.step()
    assert any((p != 0.2).any() for p in cell.parameters())

    fast.double()
    assert {p.dtype for p in cell.parameters()} == {torch.float64}
    assert fast(x.double(), RING).dtype == torch.float64
    cell.float()
    assert {p.dtype for p in fast.parameters()} == {torch.float32}
    fast.to("meta")
    assert {p.device.type for p in cell.parameters()} == {"meta"}


def test_a_replaced_parameter_is_replaced_in_both():
    cell = recurrent.GConvLSTM(CHANNELS, HIDDEN, 2)
    fast = accelerate(cell)
    cell.b_i = torch.nn.Parameter(torch.ones(1, HIDDEN))
    assert fast.b_i is cell.b_i
    fast.b_f = torch.nn.Parameter(torch.ones(1, HIDDEN))
    assert cell.b_f is fast.b_f


def test_copies_and_files_have_their_own_parameters_and_still_share_them():
    fast = accelerate(recurrent.TGCN(CHANNELS, HIDDEN))
    stream = io.BytesIO()
    torch.save(fast, stream)
    stream.seek(0)
    x = torch.randn(1, STEPS, NODES, CHANNELS)
    for other in (copy.deepcopy(fast), torch.load(stream, weights_only=False)):
        torch.testing.assert_close(other(x, RING), fast(x, RING))
        other.load_state_dict({key: 0 * value for key, value in other.state_dict().items()})
        assert not any(p.any() for p in other._cell.parameters())
        assert any(p.any() for p in fast.parameters())


def test_evaluation_mode_is_the_cells_too():
    gru = torch.nn.GRU(CHANNELS, HIDDEN, num_layers=2, dropout=0.9)
    fast = accelerate(gru).eval()
    assert not gru.training
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    torch.testing.assert_close(fast(x, RING)[1, :, 2], gru(x[1, :, 2])[0])
    assert fast.train().training
    assert gru.training


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    fast, x = accelerate(make("GConvLSTM K=2")), torch.randn(1, STEPS, NODES, CHANNELS, dtype=torch.float64)
    with torch.inference_mode():
        states = fast(x, RING)
    torch.testing.assert_close(states, fast(x, RING).detach())
    torch.testing.assert_close(fast(x, RING).detach(), fast(x, RING, torch.ones(9, dtype=torch.float64)).detach())


def test_a_backward_pass_may_be_repeated():
    fast, x = accelerate(make("GConvGRU K=2")), torch.randn(1, STEPS, NODES, CHANNELS, dtype=torch.float64)
    loss = fast(x, RING).square().sum()
    first = torch.autograd.grad(loss, list(fast.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(fast.parameters())), first)


def test_batched_dcrnn_mends_what_the_cell_makes_nan_of(float64):
    cell, x = make("BatchedDCRNN K=2"), torch.randn(1, STEPS, 4, CHANNELS)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 1, 0]])  # 3 has no in-edge
    weight = torch.tensor([1.0, 2.0, 3.0, 0.0])  # and what leaves it weighs nothing: 0 has none either
    assert not as_shipped(cell, x, edges, weight).isfinite().all()
    mended = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 1]])
    expected = as_shipped(make("BatchedDCRNN K=2"), x, mended, torch.tensor([1.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(accelerate(cell)(x, edges, weight), expected)


@pytest.mark.parametrize("cell", [torch.nn.Linear(2, 3), recurrent.MPNNLSTM(2, 3, 7, 1, 0.1)])
def test_an_unsupported_cell_is_refused_with_the_names_of_those_supported(cell):
    with pytest.raises(TypeError) as found:
        accelerate(cell)
    kinds = "GConvGRU, GConvLSTM, GCLSTM, TGCN, TGCN2, A3TGCN, A3TGCN2, DCRNN, BatchedDCRNN"
    assert all(part in str(found.value) for part in (kinds, "torch.nn.GRU", type(cell).__name__))


@pytest.mark.parametrize(
    ("x", "edge_index", "edge_weight", "message"),
    [
        ((4, 7, 3), RING, None, r"x must be \[B, T, N, 3\] for this TGCN, found \[4, 7, 3\]; one window .* x\[None\]"),
        ((1, 4, 7, 2), RING, None, r"x must be \[B, T, N, 3\] for this TGCN, found \[1, 4, 7, 2\]"),
        ((1, 0, 7, 3), RING, None, r"found \[1, 0, 7, 3\]"),
        ((1, 4, 7, 3), RING.t(), None, r"edge_index must be int64 \[2, E\], found torch.int64 \[9, 2\]"),
        ((1, 4, 7, 3), RING + 1, None, r"edge_index must name nodes 0 to 6 \(x has 7 nodes\), found 1 to"),
        ((1, 4, 7, 3), RING, torch.ones(3), r"edge_weight must be \[9\], one weight an edge, found \[3\]"),
    ],
)
def test_wrong_shapes_are_refused(x, edge_index, edge_weight, message):
    with pytest.raises(ValueError, match=message):
        accelerate(recurrent.TGCN(CHANNELS, HIDDEN))(torch.randn(x), edge_index, edge_weight)


def test_another_number_of_periods_is_refused():
    with pytest.raises(ValueError, match=r"x must be \[B, 4, N, 3\] for this A3TGCN2, found \[1, 5, 7, 3\]"):
        accelerate(make("A3TGCN2", torch.float32))(torch.randn(1, 5, NODES, CHANNELS), RING)


def test_repr_names_the_cell():
    assert "cell=TGCN2, compile=False" in repr(accelerate(recurrent.TGCN2(2, 3, 1)))


def check_compiled(name, device="cpu", tolerance=1e-5, steps=STEPS):
    torch.compiler.reset()
    cell = make(name, torch.float32).to(device)
    plain, compiled = accelerate(cell), accelerate(cell, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        for graph in ("directed", "undirected"):
            edges = GRAPHS[graph].to(device)
            x = torch.randn(WINDOWS, steps, NODES, CHANNELS, device=device)
            expected = run(plain, list(cell.parameters()), x, edges, None)
            found = run(compiled, list(cell.parameters()), x, edges, None)
            torch.testing.assert_close(found, expected, rtol=10 * tolerance, atol=10 * tolerance)
    torch.compiler.reset()


has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler, reason="torch.compile needs a C++ compiler, there is none")
def test_compiled_equals_eager():
    check_compiled("TGCN", steps=2)


@pytest.mark.parametrize("name", ["GConvGRU K=2", "TGCN", "A3TGCN2"])
def test_the_compiler_makes_the_same_graph(name, monkeypatch):
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_function(function, backend="aot_eager"))
    check_compiled(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ONE_A_KIND)
def test_on_a_gpu(name, compile):
    if compile:
        return check_compiled(name, "cuda", 1e-4)
    cell, x = make(name, torch.float32), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    on_cpu = accelerate(cell)(x, RING)
    torch.testing.assert_close(accelerate(cell.cuda())(x.cuda(), RING.cuda()).cpu(), on_cpu, rtol=0, atol=1e-4)


@pytest.mark.parametrize("compile", [False, True])
def test_it_can_be_pickled_also_where_it_compiles(compile):
    fast = accelerate(recurrent.GConvGRU(CHANNELS, HIDDEN, 2), compile)
    again = pickle.loads(pickle.dumps(fast))
    assert again.compile_recurrence is compile
    assert [*again.state_dict()] == [*fast.state_dict()]
    if not compile:  # what the compiler does is tested above
        x = torch.randn(2, 3, NODES, CHANNELS)
        assert torch.equal(again(x, RING), fast(x, RING))


@pytest.mark.parametrize(
    "cell",
    [
        lambda: recurrent.LRGCN(CHANNELS, HIDDEN, 2, 2),
        lambda: recurrent.AGCRN(NODES, CHANNELS, HIDDEN, 2, 3),
        lambda: recurrent.EvolveGCNO(CHANNELS),
        lambda: accelerate(recurrent.TGCN(CHANNELS, HIDDEN)),
    ],
)
def test_other_layers_are_a_forecasters(cell):
    with pytest.raises(TypeError, match=r"cell must be GConvGRU, .* found .*; a Forecaster runs other layers, too"):
        accelerate(cell())


def test_a_subclass_with_a_method_of_its_own_is_not_run_as_the_cell():
    class Forgetful(recurrent.GConvGRU):
        def _calculate_hidden_state(self, Z, H, H_tilde):
            return H_tilde

    with pytest.raises(TypeError, match="Forgetful"):
        accelerate(Forgetful(CHANNELS, HIDDEN, 2))
    with pytest.raises(TypeError, match=r"a subclass with methods of its own is a cell of its own"):
        Forecaster(Forgetful(CHANNELS, HIDDEN, 2), 3, 2)
