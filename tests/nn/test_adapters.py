"""Each cell over a batch of windows equals PyG-Temporal's own cell called window by window and step by step."""

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn.adapters import adapt, final_state, hidden_states, reset_cell

recurrent = import_temporal().nn.recurrent

WINDOWS, STEPS, NODES, CHANNELS, HIDDEN = 2, 4, 7, 3, 5

RING = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 5]])
ROAD = torch.cat([RING, RING.flip(0)], dim=1)
GRAPHS = {
    "undirected": ROAD[:, (ROAD[0] * NODES + ROAD[1]).argsort()],
    "directed": RING,
    "directed, edges shuffled": RING[:, [4, 0, 8, 2, 1, 7, 6, 3, 5]],
    "isolated nodes": torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]]),
    "a dead end": torch.tensor([[0, 1, 2, 0], [1, 2, 0, 3]]),
    "self-loops": torch.cat([RING, torch.tensor([[2, 5], [2, 5]])], dim=1),
}

CELLS = {
    **{f"GConvGRU K={k}": lambda k=k: recurrent.GConvGRU(CHANNELS, HIDDEN, k) for k in (1, 2, 3, 4)},
    **{f"GConvLSTM K={k}": lambda k=k: recurrent.GConvLSTM(CHANNELS, HIDDEN, k) for k in (1, 2, 3)},
    **{f"GCLSTM K={k}": lambda k=k: recurrent.GCLSTM(CHANNELS, HIDDEN, k) for k in (1, 2, 3)},
    **{f"DCRNN K={k}": lambda k=k: recurrent.DCRNN(CHANNELS, HIDDEN, k) for k in (1, 2, 3, 4)},
    "GConvGRU rw": lambda: recurrent.GConvGRU(CHANNELS, HIDDEN, 3, normalization="rw"),
    "GConvGRU unnormalised": lambda: recurrent.GConvGRU(CHANNELS, HIDDEN, 2, normalization=None),
    "GConvGRU no bias": lambda: recurrent.GConvGRU(CHANNELS, HIDDEN, 2, bias=False),
    "GConvLSTM no bias": lambda: recurrent.GConvLSTM(CHANNELS, HIDDEN, 2, bias=False),
    "TGCN": lambda: recurrent.TGCN(CHANNELS, HIDDEN),
    "TGCN improved": lambda: recurrent.TGCN(CHANNELS, HIDDEN, improved=True),
    "TGCN no loops": lambda: recurrent.TGCN(CHANNELS, HIDDEN, add_self_loops=False),
    "A3TGCN": lambda: recurrent.A3TGCN(CHANNELS, HIDDEN, STEPS),
}


def window_by_window(cell, x, edge_index, edge_weight=None):
    """The way PyG-Temporal's examples call it."""
    finals = []
    for window in x:
        if type(cell).__name__ == "A3TGCN":
            finals.append(cell(window.permute(1, 2, 0), edge_index, edge_weight))
            continue
        state = memory = None
        for step in window:
            if "LSTM" in type(cell).__name__:
                state, memory = cell(step, edge_index, edge_weight, state, memory)
            else:
                state = cell(step, edge_index, edge_weight, state)
        finals.append(state)
    return torch.stack(finals)


def make(name, dtype=torch.float64):
    torch.manual_seed(1)
    # The cells make their zero states in the default dtype, whatever their input's.
    cell = CELLS[name]().to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            if not parameter.any():  # biases start at zero, where a wrong one would not show
                parameter.normal_()
    return cell


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(function, cell, x, edge_index, edge_weight):
    x = x.clone().requires_grad_()
    cell.zero_grad()
    out = function(cell, x, edge_index, edge_weight)
    (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()).sum().backward()
    return out.detach(), {"x": x.grad, **{name: p.grad for name, p in cell.named_parameters()}}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_cell_itself_in_value_and_gradient(name, graph, weighted, float64):
    cell, edge_index = make(name), GRAPHS[graph]
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    edge_weight = torch.rand(edge_index.size(1)) + 0.1 if weighted else None
    expected, expected_grads = run(window_by_window, cell, x, edge_index, edge_weight)
    out, grads = run(final_state, cell, x, edge_index, edge_weight)
    assert out.shape == (WINDOWS, NODES, HIDDEN)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for key, expected_grad in expected_grads.items():
        if expected_grad is None:  # DCRNN K=1 and the like: PyG-Temporal itself leaves it out
            assert grads[key] is None or not grads[key].any(), key
        else:
            torch.testing.assert_close(grads[key], expected_grad, rtol=0, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_cell_itself_in_float32(name):
    cell = make(name, torch.float32)
    edge_weight = torch.rand(RING.size(1)) + 0.1
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    expected, expected_grads = run(window_by_window, cell, x, RING, edge_weight)
    out, grads = run(final_state, cell, x, RING, edge_weight)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    scale = max(1.0, float(expected_grads["x"].abs().max()))  # DCRNN's polynomials of order 4 have gradients near 100
    torch.testing.assert_close(grads["x"], expected_grads["x"], rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize("name", ["GConvGRU K=3", "GConvLSTM K=2", "GCLSTM K=2", "TGCN", "A3TGCN", "DCRNN K=3"])
def test_learned_edge_weights_get_the_cells_gradient(name, float64):
    cell, x = make(name), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    weights = [(torch.arange(RING.size(1)) / 9 + 0.3).requires_grad_() for _ in range(2)]
    window_by_window(cell, x, RING, weights[0]).sum().backward()
    final_state(cell, x, RING, weights[1]).sum().backward()
    torch.testing.assert_close(weights[1].grad, weights[0].grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["GConvGRU K=2", "GConvLSTM K=2", "TGCN", "DCRNN K=2"])
def test_hidden_states_are_the_final_states_of_shorter_windows(name):
    cell, x = make(name, torch.float32), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    states = hidden_states(cell, x, RING)
    assert len(states) == STEPS
    for step, state in enumerate(states):
        torch.testing.assert_close(state, window_by_window(cell, x[:, : step + 1], RING), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_the_cell_is_left_as_it_was(name):
    cell = make(name, torch.float32)
    before = {key: value.clone() for key, value in cell.state_dict().items()}
    final_state(cell, torch.randn(WINDOWS, STEPS, NODES, CHANNELS), RING)
    after = cell.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gru_runs_every_node_on_its_own(batch_first, num_layers, float64):
    gru = torch.nn.GRU(CHANNELS, HIDDEN, num_layers, batch_first=batch_first)
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    out = final_state(gru, x, RING)
    for window in range(WINDOWS):
        for node in range(NODES):
            _, last = gru(x[window, :, node])
            torch.testing.assert_close(out[window, node], last[-1], rtol=0, atol=1e-10)
    states = hidden_states(gru, x, RING)
    torch.testing.assert_close(states[1], final_state(gru, x[:, :2], RING), rtol=0, atol=1e-10)


def test_dcrnn_gives_a_node_without_in_edges_a_self_loop(float64):
    cell, x = make("DCRNN K=3"), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])  # 0 has no in-edge; 3 only one; 4, 5, 6 have none at all
    weight = torch.tensor([0.5, 0.7, 0.2])
    assert not window_by_window(cell, x, path, weight).isfinite().all()
    out = final_state(cell, x, path, weight)
    mended = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    expected = window_by_window(cell, x, mended, torch.tensor([1.0, 0.5, 0.7, 0.2]))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_dcrnn_adds_parallel_edges_and_drops_those_of_weight_zero(float64):
    cell, x = make("DCRNN K=2"), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    edges = torch.tensor([[1, 0, 0, 2, 1], [0, 1, 1, 0, 2]])
    weight = torch.tensor([0.5, 0.7, 0.2, 0.0, 0.4])
    plain = torch.tensor([[0, 1, 1], [1, 0, 2]])
    expected = window_by_window(cell, x, plain, torch.tensor([0.9, 0.5, 0.4]))
    torch.testing.assert_close(final_state(cell, x, edges, weight), expected, rtol=0, atol=1e-10)


# Without normalisation PyG-Temporal divides by the largest entry of the Laplacian, which is 0 without roads.
@pytest.mark.parametrize("name", sorted(CELLS.keys() - {"GConvGRU unnormalised"}))
def test_a_city_without_roads_and_one_node(name):
    out = final_state(
        make(name, torch.float32), torch.randn(1, STEPS, 1, CHANNELS), torch.zeros(2, 0, dtype=torch.long)
    )
    assert out.shape == (1, 1, HIDDEN)
    assert out.isfinite().all()


def test_a_stale_cache_is_not_used():
    cell = recurrent.TGCN(CHANNELS, HIDDEN, cached=True)
    x = torch.randn(1, STEPS, NODES, CHANNELS)
    cell(x[0, 0], RING)
    fresh = recurrent.TGCN(CHANNELS, HIDDEN)
    fresh.load_state_dict(cell.state_dict())
    torch.testing.assert_close(
        final_state(cell, x, GRAPHS["isolated nodes"]), final_state(fresh, x, GRAPHS["isolated nodes"])
    )


def test_channels_and_periods_are_read_from_the_cell():
    assert adapt(recurrent.A3TGCN(3, 5, 12))[:3] == (3, 5, 12)
    assert adapt(recurrent.DCRNN(3, 5, 2))[:3] == (3, 5, None)
    assert adapt(torch.nn.GRU(3, 5))[:3] == (3, 5, None)


class OwnForward(recurrent.TGCN):
    def forward(self, *args):
        return 2 * super().forward(*args)


@pytest.mark.parametrize("cell", [torch.nn.Linear(2, 3), torch.nn.LSTM(2, 3), OwnForward(2, 3)])
def test_an_unknown_cell_is_refused_with_the_names_of_those_known(cell):
    with pytest.raises(TypeError, match=rf"torch\.nn\.GRU or one of GConvGRU, .*DCRNN.*found .*{type(cell).__name__}"):
        adapt(cell)


def test_a_parametrized_cell_is_still_known():
    cell = recurrent.GConvLSTM(CHANNELS, HIDDEN, 2)
    torch.nn.utils.parametrize.register_parametrization(cell, "w_c_i", torch.nn.Tanh())
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    out = final_state(cell, x, RING)
    state = memory = None
    for step in x[0]:
        state, memory = cell(step, RING, None, state, memory)
    torch.testing.assert_close(out[0], state, rtol=0, atol=1e-5)


def test_a_bidirectional_gru_is_refused():
    with pytest.raises(ValueError, match="bidirectional=False"):
        adapt(torch.nn.GRU(2, 3, bidirectional=True))


def test_a3tgcn_refuses_another_history():
    with pytest.raises(ValueError, match=r"exactly 4 steps \(periods\), x has 5"):
        final_state(make("A3TGCN", torch.float32), torch.randn(1, 5, NODES, CHANNELS), RING)


@pytest.mark.parametrize("name", CELLS)
def test_reset_draws_every_parameter_as_the_constructor_does(name):
    torch.manual_seed(0)
    cell = CELLS[name]()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.fill_(77.0)
    reset_cell(cell)
    for key, parameter in cell.named_parameters():
        assert not (parameter == 77.0).any(), key
        assert parameter.abs().max() < 5.0, key


@pytest.mark.parametrize("name", ["GConvGRU K=2", "TGCN", "DCRNN K=2", "GConvLSTM K=2", "A3TGCN"])
def test_runs_in_half_precision(name):
    cell, x = make(name, torch.float32), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    exact = final_state(cell, x, RING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(final_state(cell, x, RING).float(), exact, rtol=0, atol=0.1)
    torch.testing.assert_close(final_state(cell.bfloat16(), x.bfloat16(), RING).float(), exact, rtol=0, atol=0.1)
