"""LRGCN, DyGrEncoder, AGCRN, EvolveGCNO and MSTGCN over a batch equal PyG-Temporal's own layers, window by window and
step by step."""

import math

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn.adapters import adapt, final_state, hidden_states, reset_cell
from tsjt_pyg.nn.cell_stack import run_stack
from tsjt_pyg.nn.cells.lrgcn import edge_relations
from tsjt_pyg.nn.road_graph import RoadGraph

temporal = import_temporal().nn
recurrent = temporal.recurrent

WINDOWS, STEPS, NODES, CHANNELS, HIDDEN, DIMENSIONS = 2, 4, 7, 3, 5, 2

RING = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 5]])
GRAPHS = {
    "undirected": torch.cat([RING, RING.flip(0)], dim=1),
    "directed": RING,
    "isolated nodes": torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]]),
    "self-loops and parallel edges": torch.cat([RING, torch.tensor([[2, 5, 0], [2, 5, 1]])], dim=1),
}
CELLS = {
    **{f"LRGCN R={r}": lambda r=r: recurrent.LRGCN(CHANNELS, HIDDEN, r, 2) for r in (1, 2, 3)},
    "LRGCN no bases": lambda: recurrent.LRGCN(CHANNELS, HIDDEN, 2, None),
    **{
        f"DyGrEncoder {a}": lambda a=a: recurrent.DyGrEncoder(CHANNELS, 2, a, HIDDEN, 1) for a in ("add", "mean", "max")
    },
    **{f"AGCRN K={k}": lambda k=k: recurrent.AGCRN(NODES, CHANNELS, HIDDEN, k, DIMENSIONS) for k in (1, 2, 3)},
    "EvolveGCNO": lambda: recurrent.EvolveGCNO(CHANNELS),
    "EvolveGCNO improved": lambda: recurrent.EvolveGCNO(CHANNELS, improved=True),
    "EvolveGCNO no loops": lambda: recurrent.EvolveGCNO(CHANNELS, add_self_loops=False),
    "EvolveGCNO not normalised": lambda: recurrent.EvolveGCNO(CHANNELS, normalize=False),
    **{
        f"MSTGCN K={k}": lambda k=k: temporal.attention.MSTGCN(2, CHANNELS, k, 4, 4, 1, HIDDEN, STEPS)
        for k in (1, 2, 3)
    },
    "MSTGCN strides": lambda: temporal.attention.MSTGCN(3, CHANNELS, 2, 4, 6, 2, HIDDEN, STEPS),
}


def naive_relations(edge_weight, num_relations):
    if edge_weight is None:
        return None
    ranks = [sum(other < weight for other in edge_weight.tolist()) for weight in edge_weight.tolist()]
    return torch.tensor([rank * num_relations // len(ranks) for rank in ranks])


def window_by_window(cell, x, edge_index, edge_weight, embedding):
    """The way PyG-Temporal's examples call it."""
    name, finals = type(cell).__name__, []
    for window in x:
        if name == "MSTGCN":
            # A road network for each step: given a single one, its reshape mixes nodes with channels.
            out = cell(window.permute(1, 2, 0)[None], [edge_index] * len(window))[0]
        elif name == "EvolveGCNO":
            cell.reinitialize_weight()
            out = torch.stack([cell(step, edge_index, edge_weight) for step in window]).mean(dim=0)
        else:
            out = memory = None
            for step in window:
                if name == "LRGCN":
                    relation = naive_relations(edge_weight, cell.num_relations)
                    relation = torch.zeros(edge_index.size(1), dtype=torch.long) if relation is None else relation
                    out, memory = cell(step, edge_index, relation, out, memory)
                elif name == "DyGrEncoder":
                    _, out, memory = cell(step, edge_index, edge_weight, out, memory)
                else:
                    out = cell(step[None], embedding, None if out is None else out)
            out = out[0] if name == "AGCRN" else out
        finals.append(out)
    return torch.stack(finals)


def ours(cell, x, edge_index, edge_weight, embedding):
    embedding = embedding if "AGCRN" in type(cell).__name__ else None
    return final_state(cell, x, edge_index, edge_weight, embedding)


def make(name):
    torch.manual_seed(1)
    cell = CELLS[name]()
    with torch.no_grad():
        for parameter in cell.parameters():
            if not parameter.any():  # biases start at zero, where a wrong one would not show
                parameter.normal_()
    return cell


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(function, cell, x, edge_index, edge_weight):
    x = x.clone().requires_grad_()
    embedding = torch.linspace(-1, 1, NODES * DIMENSIONS).view(NODES, DIMENSIONS).requires_grad_()
    cell.zero_grad()
    out = function(cell, x, edge_index, edge_weight, embedding)
    (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()).sum().backward()
    return out.detach(), {"x": x.grad, "E": embedding.grad, **{name: p.grad for name, p in cell.named_parameters()}}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_layer_itself_in_value_and_gradient(name, graph, weighted):
    cell, edge_index = make(name), GRAPHS[graph]
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    edge_weight = torch.randint(1, 5, (edge_index.size(1),)) / 4.0 if weighted else None
    expected, expected_grads = run(window_by_window, cell, x, edge_index, edge_weight)
    out, grads = run(ours, cell, x, edge_index, edge_weight)
    assert out.shape == (WINDOWS, NODES, CHANNELS if "EvolveGCNO" in name else HIDDEN)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for key, expected_grad in expected_grads.items():
        if expected_grad is None:
            assert grads[key] is None, key
        else:
            torch.testing.assert_close(grads[key], expected_grad, rtol=0, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["LRGCN R=2", "DyGrEncoder mean", "AGCRN K=2"])
def test_a_window_in_two_halves_is_the_whole_window(name):
    cell, x = make(name), torch.randn(NODES, STEPS, WINDOWS, CHANNELS)
    embedding = torch.randn(NODES, DIMENSIONS)
    graph = RoadGraph(RING, None, NODES)
    whole, ends = run_stack([cell], x, graph, node_embedding=embedding)
    _, middle = run_stack([cell], x[:, :1], graph, node_embedding=embedding)
    half, other_ends = run_stack([cell], x[:, 1:], graph, middle, embedding)
    torch.testing.assert_close(half, whole, rtol=0, atol=1e-10)
    assert [tuple(end.shape) for end in ends[0]] == [(NODES, WINDOWS, size) for size in adapt(cell).state]
    torch.testing.assert_close(other_ends, ends, rtol=0, atol=1e-10)


def test_dygr_encoder_with_more_layers_than_pyg_temporal_can_go_on_with():
    cell = recurrent.DyGrEncoder(CHANNELS, 2, "add", HIDDEN, 2)
    x = torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    out = final_state(cell, x, RING)
    for window in range(WINDOWS):
        sequence = torch.stack([cell.conv_layer(step, RING) for step in x[window]])
        expected, _ = cell.recurrent_layer(sequence)
        torch.testing.assert_close(out[window], expected[-1], rtol=0, atol=1e-10)
    graph = RoadGraph(RING, None, NODES)
    swapped = x.permute(2, 1, 0, 3)
    whole, _ = run_stack([cell], swapped, graph)
    half, _ = run_stack([cell], swapped[:, 2:], graph, run_stack([cell], swapped[:, :2], graph)[1])
    torch.testing.assert_close(half, whole, rtol=0, atol=1e-10)


def test_evolve_gcno_starts_anew_in_every_pass_and_leaves_the_layer_alone():
    cell, x = make("EvolveGCNO"), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    one = final_state(cell, x, RING)
    assert cell.weight is None
    cell(x[0, 0], RING)  # as used outside: its weight has moved on
    moved = cell.weight
    assert torch.equal(final_state(cell, x, RING), one)
    assert cell.weight is moved
    states = hidden_states(cell, x, RING)
    torch.testing.assert_close(torch.stack(states).mean(dim=0), one)
    assert len(states) == STEPS


def test_mstgcn_given_one_road_network_mixes_nodes_with_channels():
    """Why it is compared with the layer given a list of them; with one channel and one block they are the same."""
    for channels, blocks, same in ((1, 1, True), (3, 1, False), (1, 2, False)):
        cell = temporal.attention.MSTGCN(blocks, channels, 2, 4, 4, 1, HIDDEN, STEPS)
        x = torch.randn(1, STEPS, NODES, channels)
        shipped = cell(x.permute(0, 2, 3, 1), RING)
        assert torch.allclose(shipped, final_state(cell, x, RING), rtol=0, atol=1e-10) == same


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("edges", [[], [(0, 1)], [(0, 0)]])
def test_tiny_cities_stay_finite(name, edges):
    cell = make(name)
    for nodes in (1, 2, 3):
        kept = [edge for edge in edges if max(edge) < nodes]
        edge_index = torch.tensor(kept, dtype=torch.long).view(-1, 2).t()
        x = torch.randn(1, STEPS, nodes, CHANNELS, requires_grad=True)
        out = ours(cell, x, edge_index, torch.ones(len(kept)), torch.randn(nodes, DIMENSIONS))
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("roads", [[(0, 1)], [(0, 1), (1, 0)], [(1, 0), (1, 0), (0, 1)]])
def test_mstgcn_in_a_city_of_two_nodes(roads):
    """PyG's own transform cannot find the largest eigenvalue of so small a Laplacian; a dense solver can."""
    edge_index = torch.tensor(roads).t()
    laplacian = torch.zeros(2, 2)
    for source, target in roads:
        laplacian[source, source] += 1
        laplacian[source, target] -= 1
    largest = torch.linalg.eigvals(laplacian).real.max()
    scaled = 2 * laplacian / largest - torch.eye(2)
    cell = temporal.attention.MSTGCN(1, CHANNELS, 2, 4, 4, 1, HIDDEN, STEPS)
    block, x = cell._blocklist[0], torch.randn(STEPS, 2, CHANNELS)
    mixed = block._cheb_conv.lins[0](x) + block._cheb_conv.lins[1](scaled.t() @ x) + block._cheb_conv.bias
    along = torch.relu(mixed).permute(2, 1, 0)[None]
    out = torch.relu(block._residual_conv(x.permute(2, 1, 0)[None]) + block._time_conv(along))
    normed = block._layer_norm(out.permute(0, 3, 2, 1))
    expected = cell._final_conv(normed)[0, :, :, 0].t()
    torch.testing.assert_close(final_state(cell, x[None], edge_index)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_reset_draws_every_parameter_as_the_constructor_does(name):
    torch.manual_seed(0)
    cell = CELLS[name]()
    spread = {key: (value.min(), value.max()) for key, value in cell.named_parameters()}
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.fill_(77.0)
    reset_cell(cell)
    for key, parameter in cell.named_parameters():
        assert parameter.abs().max() < 5.0, key
        low, high = spread[key]
        if low == high:  # a constant, not drawn
            assert (parameter == low).all(), key
        elif parameter.numel() >= 12:  # of MSTGCN, some are drawn from [0, 1]; a few numbers tell nothing
            assert (parameter.min() < 0) == (low < 0), key


def test_relations_are_classes_of_equally_many_edges_by_weight():
    index = torch.zeros(2, 6, dtype=torch.long)
    weight = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.6])
    assert edge_relations(weight, index, 3).tolist() == [2, 0, 1, 0, 2, 1]
    assert edge_relations(weight, index, 1).tolist() == [0] * 6
    assert edge_relations(weight, index, 6).tolist() == [5, 0, 2, 1, 4, 3]
    assert edge_relations(None, index, 3).tolist() == [0] * 6
    assert edge_relations(torch.ones(6), index, 3).tolist() == [0] * 6
    # two of the middle weigh as much as the last of the light: all three are in its class
    assert edge_relations(torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0, 4.0]), index, 3).tolist() == [0, 0, 0, 0, 2, 2]


def test_sizes_are_read_from_the_layer():
    assert adapt(recurrent.LRGCN(3, 5, 2, 2)).state == (5, 5)
    assert adapt(recurrent.DyGrEncoder(3, 2, "add", 5, 2))[:2] == (3, 5)
    assert adapt(recurrent.DyGrEncoder(3, 2, "add", 5, 2)).state == (5,) * 4
    assert adapt(recurrent.AGCRN(7, 3, 5, 2, 4)).embedding_channels == 4
    assert adapt(recurrent.EvolveGCNO(3))[:3] == (3, 3, None)
    assert adapt(temporal.attention.MSTGCN(2, 3, 2, 4, 4, 2, 5, 12))[:3] == (3, 5, 12)


@pytest.mark.parametrize(
    ("embedding", "found"), [(None, "None"), (torch.zeros(7, 3), r"\[7, 3\]"), (torch.zeros(6, 2), r"\[6, 2\]")]
)
def test_agcrn_needs_an_embedding_of_its_size(embedding, found):
    with pytest.raises(ValueError, match=rf"node_embedding must be \[7, 2\].*embedding_dimensions.*found {found}"):
        final_state(make("AGCRN K=2"), torch.randn(1, STEPS, NODES, CHANNELS), RING, None, embedding)


@pytest.mark.parametrize("name", ["LRGCN R=2", "DyGrEncoder mean", "AGCRN K=2", "EvolveGCNO", "MSTGCN K=2"])
def test_runs_in_half_precision(name):
    cell, x = make(name).float(), torch.randn(WINDOWS, STEPS, NODES, CHANNELS, dtype=torch.float32)
    embedding = torch.randn(NODES, DIMENSIONS, dtype=torch.float32)
    exact = ours(cell, x, RING, None, embedding).detach()
    tolerance = 0.05 * max(1.0, float(exact.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(cell, x, RING, None, embedding).float()
    torch.testing.assert_close(out, exact, rtol=0, atol=tolerance)
    out = ours(cell.bfloat16(), x.bfloat16(), RING, None, embedding.bfloat16()).float()
    torch.testing.assert_close(out, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["DyGrEncoder add", "DyGrEncoder mean", "DyGrEncoder max", "EvolveGCNO"])
def test_learned_edge_weights_get_the_layers_gradient(name):
    cell, x = make(name), torch.randn(WINDOWS, STEPS, NODES, CHANNELS)
    weights = [(torch.arange(RING.size(1)) / 9.0 + 0.3).requires_grad_() for _ in range(2)]
    window_by_window(cell, x, RING, weights[0], None).sum().backward()
    ours(cell, x, RING, weights[1], None).sum().backward()
    assert weights[0].grad.any()
    torch.testing.assert_close(weights[1].grad, weights[0].grad, rtol=0, atol=1e-10)


def test_agcrn_on_a_bare_road_network_is_refused():
    with pytest.raises(ValueError, match=r"AGCRN needs embeddings of the nodes.*Forecaster with a city_embedding"):
        adapt(make("AGCRN K=2")).run(
            make("AGCRN K=2"), torch.randn(NODES, STEPS, 1, CHANNELS), RoadGraph(RING, None, NODES), None
        )


@pytest.mark.parametrize("nodes", [8, 400])
@pytest.mark.parametrize("both_ways", [False, True])
def test_the_largest_eigenvalue_is_found_in_a_city_of_any_size_and_on_one_way_roads(nodes, both_ways):
    from tsjt_pyg.nn.cells.mstgcn import _largest_eigenvalue

    road = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    edges = torch.cat([road, road.flip(0)], dim=1) if both_ways else road
    found = _largest_eigenvalue(RoadGraph(edges, None, nodes))
    exact = 2 - 2 * math.cos(math.pi * (nodes - 1) / nodes)  # of a path
    if both_ways:
        assert found == pytest.approx(exact, rel=1e-3)
    else:  # all are 0 or 1, and no bound is above twice the largest degree
        assert 1 - 1e-6 <= found <= 2 + 1e-6
