import copy
import math

import pytest
import torch

from tsjt_pyg.nn import NodePrompting, PublishedNodePrompting
from tsjt_pyg.nn.prompt_graph import road_weight

GRAPHS = ["road", "topk", "factorised", None]
# 3 has no in-edge but out-edges, 5 has none at all; 0 -> 2 is there twice, 4 -> 1 has weight 0, and is 1's only one.
EDGES = torch.tensor([[0, 0, 1, 3, 4, 2, 3], [2, 2, 0, 0, 1, 4, 4]])
WEIGHT = torch.tensor([0.5, 0.25, 1.0, 2.0, 0.0, 0.7, 0.1], dtype=torch.float64)
NODES = 6


def make(prompt_graph="road", **kwargs):
    torch.manual_seed(0)
    arguments = {"hidden_channels": 8, "heads": 2, "k": 2, "block_size": 4, **kwargs}
    return NodePrompting(3, 5, 4, prompt_graph=prompt_graph, **arguments).double()


def row_normalised(matrix):
    total = matrix.sum(dim=1, keepdim=True)
    return torch.where(total > 0, matrix / torch.where(total > 0, total, 1.0), 0.0)


def dense_prompts(module, x, adjacency):
    """The prompts of one window [T, N, F], from the formulas, with dense matrices and a loop over nodes."""
    steps, nodes, _ = x.shape
    width, heads = module.hidden_channels, module.heads
    encoded = torch.zeros(nodes, steps, width, dtype=x.dtype)
    position = torch.zeros(steps, width, dtype=x.dtype)
    for step in range(steps):
        for i in range(width // 2):
            angle = (steps - 1 - step) / 10000 ** (i / (width // 2))
            position[step, i], position[step, width // 2 + i] = math.sin(angle), math.cos(angle)
    for node in range(nodes):
        neighbours = (row_normalised(adjacency) @ x)[:, node]
        hidden = x[:, node] @ module.lin_root.weight.T + module.lin_root.bias
        hidden = torch.relu(hidden + neighbours @ module.lin_neighbour.weight.T) + position
        qkv = hidden @ module.lin_attention.weight.T + module.lin_attention.bias
        query, key, value = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        attended = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            share = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(width // heads), dim=1)
            attended.append(share @ value[:, part])
        hidden = hidden + torch.cat(attended, dim=1) @ module.lin_out.weight.T + module.lin_out.bias
        centred = hidden - hidden.mean(dim=1, keepdim=True)
        hidden = centred / (centred.pow(2).mean(dim=1, keepdim=True) + module.norm.eps).sqrt()
        encoded[node] = hidden * module.norm.weight + module.norm.bias
    prompts = torch.softmax(encoded @ module.keys.T / math.sqrt(width), dim=-1) @ module.values  # [N, T, P]
    if module.prompt_graph is None:
        return prompts.transpose(0, 1)
    mean = prompts.mean(dim=1)
    similarity = (mean @ mean.T / math.sqrt(module.prompt_channels)).exp()
    if module.prompt_graph == "road":
        graph = adjacency * similarity
    elif module.prompt_graph == "topk":
        others = similarity - torch.diag(similarity.diag())
        threshold = others.sort(dim=1, descending=True).values[:, module.k - 1 : module.k]
        graph = torch.where(others >= threshold, others, 0.0)
    else:
        feature = torch.where(mean > 0, mean + 1, mean.exp())
        graph = feature @ feature.T
    return (prompts + torch.einsum("ij,jtp->itp", row_normalised(graph), prompts)).transpose(0, 1)


def dense_adjacency(edge_index, weight, nodes):
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    for (source, target), value in zip(edge_index.T.tolist(), weight.tolist(), strict=True):
        adjacency[target, source] += value
    return adjacency


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_equals_the_formulas_written_with_dense_matrices(prompt_graph):
    module, x = make(prompt_graph), torch.randn(2, 4, NODES, 3, dtype=torch.float64)
    out = module(x, EDGES, WEIGHT)
    assert out.shape == (2, 4, NODES, 8)
    assert torch.equal(out[..., :3], x)
    adjacency = dense_adjacency(EDGES, WEIGHT, NODES)
    for window in range(2):
        torch.testing.assert_close(
            out[window, ..., 3:], dense_prompts(module, x[window], adjacency), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_gradient_equals_that_of_the_dense_formulas(prompt_graph):
    module = make(prompt_graph)
    grads = []
    for dense in (False, True):
        x = torch.linspace(-1, 1, 4 * NODES * 3, dtype=torch.float64).cos().view(4, NODES, 3).requires_grad_()
        module.zero_grad()
        if dense:
            prompts = dense_prompts(module, x, dense_adjacency(EDGES, WEIGHT, NODES))
        else:
            prompts = module(x, EDGES, WEIGHT)[..., 3:]
        prompts.pow(3).sum().backward()
        grads.append({"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_every_slot_of_the_bank_learns(prompt_graph):
    module = make(prompt_graph)
    module(torch.randn(2, 3, NODES, 3, dtype=torch.float64), EDGES, WEIGHT).pow(2).sum().backward()
    assert (module.keys.grad.abs().sum(dim=1) > 0).all()
    assert (module.values.grad.abs() > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_leading_dimensions(prompt_graph):
    module, x = make(prompt_graph), torch.randn(2, 4, NODES, 3, dtype=torch.float64)
    out = module(x, EDGES, WEIGHT)
    torch.testing.assert_close(module(x[1], EDGES, WEIGHT), out[1])
    torch.testing.assert_close(module(x[1, 0], EDGES, WEIGHT), module(x[1:, :1], EDGES, WEIGHT)[0, 0])


def test_edge_weights_default_to_one_and_only_their_proportion_counts():
    module, x = make(), torch.randn(4, NODES, 3, dtype=torch.float64)
    ones = torch.ones(EDGES.size(1))
    torch.testing.assert_close(module(x, EDGES), module(x, EDGES, ones))
    torch.testing.assert_close(module(x, EDGES, ones), module(x, EDGES, 7 * ones))


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_an_edge_of_weight_zero_is_no_edge(prompt_graph):
    module, x = make(prompt_graph), torch.randn(4, NODES, 3, dtype=torch.float64)
    there = WEIGHT > 0
    torch.testing.assert_close(module(x, EDGES, WEIGHT), module(x, EDGES[:, there], WEIGHT[there]))


def test_an_edge_of_weight_zero_does_not_drown_the_others():
    torch.manual_seed(0)
    module = NodePrompting(3, 5, 64).double()
    with torch.no_grad():
        module.keys.mul_(100)
        module.values.mul_(100)  # similarities in the thousands, where exp underflows unless shifted by the right one
    x = 10 * torch.randn(NODES, 3, dtype=torch.float64)
    complete = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES)).t()
    weight = (complete[0] != complete[1]).double()  # a node is most similar to itself
    expected = module(x, complete[:, weight > 0])
    assert len(expected[:, 3:].unique(dim=0)) > 3
    torch.testing.assert_close(module(x, complete, weight), expected)


@pytest.mark.parametrize("prompt_graph", GRAPHS)
@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (1, 1), (5, 0)])
def test_tiny_cities_stay_finite(prompt_graph, nodes, edges):
    module = make(prompt_graph)
    x = torch.randn(2, 3, nodes, 3, dtype=torch.float64, requires_grad=True)
    out = module(x, torch.zeros(2, edges, dtype=torch.long))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_prompts_that_are_far_apart_do_not_overflow(prompt_graph):
    module = make(prompt_graph).float()
    with torch.no_grad():
        module.values.mul_(1e3)
    x = torch.randn(2, 3, NODES, 3, requires_grad=True)
    out = module(x, EDGES, WEIGHT)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_order_of_time_matters():
    module, x = make(None), torch.randn(4, NODES, 3, dtype=torch.float64)
    assert not torch.allclose(module(x, EDGES), module(x.flip(0), EDGES).flip(0))


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_blocks_do_not_change_the_most_similar_nodes(block_size):
    x = torch.randn(2, 3, 11, 3, dtype=torch.float64)
    whole, blocked = make("topk", block_size=11), make("topk", block_size=block_size)
    torch.testing.assert_close(blocked(x, EDGES), whole(x, EDGES))


def test_more_neighbours_than_nodes_means_all_others():
    x = torch.randn(3, NODES, 3, dtype=torch.float64)
    torch.testing.assert_close(make("topk", k=100)(x, EDGES), make("topk", k=NODES - 1)(x, EDGES))


def test_reset_parameters_draws_the_bank_anew():
    module = make()
    before = {name: value.clone() for name, value in module.named_parameters()}
    torch.manual_seed(5)
    module.reset_parameters()
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(before) - {"norm.weight", "norm.bias"}


def test_the_output_is_the_input_beside_its_prompts():
    module, x = make(top_k=2), torch.randn(2, 4, NODES, 3, dtype=torch.float64)
    assert torch.equal(module(x, EDGES, WEIGHT), torch.cat([x, module.prompts(x, EDGES, WEIGHT)], dim=-1))


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_slot_share_is_what_the_prompts_are_mixed_by(top_k):
    module, x = make(None, top_k=top_k), torch.randn(2, 4, NODES, 3, dtype=torch.float64)
    share = module.slot_share(x, EDGES, WEIGHT)
    assert share.shape == (2, 4, NODES, 4)
    assert ((share > 0).sum(dim=-1) == (top_k or 4)).all()
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(2, 4, NODES, dtype=torch.float64))
    torch.testing.assert_close(share @ module.values, module.prompts(x, EDGES, WEIGHT))
    torch.testing.assert_close(
        module.slot_share(x[1, 0], EDGES, WEIGHT), module.slot_share(x[1:, :1], EDGES, WEIGHT)[0, 0]
    )


@pytest.mark.parametrize("top_k", [None, 2])
def test_load_balance_loss_counts_choices_and_adds_probabilities(top_k):
    module, x = make(top_k=top_k, load_balance=True), torch.randn(2, 3, NODES, 3, dtype=torch.float64)
    module(x, EDGES, WEIGHT)
    loss = module.load_balance_loss()
    every = make(None)  # the same parameters, all slots
    probability = every.slot_share(x, EDGES, WEIGHT).reshape(-1, 4)
    times = [0] * 4
    for row in probability.tolist():
        for slot in sorted(range(4), key=row.__getitem__)[-(top_k or 1) :]:
            times[slot] += 1
    expected = 4 * sum(times[s] / sum(times) * float(probability[:, s].detach().mean()) for s in range(4))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)  # counted in float32 or wider
    loss.backward()
    assert module.keys.grad.abs().sum() > 0
    assert module.values.grad is None


def test_load_balance_loss_spreads_nodes_over_slots():
    torch.manual_seed(1)
    module = NodePrompting(1, 4, 8, top_k=1, load_balance=True)
    with torch.no_grad():
        module.keys.mul_(0.1)
        module.keys[0] += 1.0
        module.norm.bias += 2.0  # all nodes choose the first slot
    x, edges = torch.randn(12, 40, 1), torch.stack([torch.arange(40), torch.arange(1, 41) % 40])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    used, losses = [], []
    for _ in range(150):
        used.append(module.slot_share(x, edges).argmax(dim=-1).unique().numel())
        module(x, edges)
        loss = module.load_balance_loss()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert used[0] == 1
    assert losses[0] > 2
    assert used[-1] >= 6
    assert losses[-1] < 1.1


def test_load_balance_loss_is_handed_out_once_and_holds_no_copy_back():
    module, x = make(load_balance=True), torch.randn(4, NODES, 3, dtype=torch.float64)
    with torch.no_grad():
        module(x, EDGES, WEIGHT)
    with pytest.raises(RuntimeError, match="last forward pass with a gradient, and there was none"):
        module.load_balance_loss()
    module(x, EDGES, WEIGHT)
    twin = copy.deepcopy(module)  # a tensor with a graph cannot be copied
    assert module.load_balance_loss() >= 1 - 1e-6
    for empty in (module, twin):
        with pytest.raises(RuntimeError, match="there was none since it was last asked for"):
            empty.load_balance_loss()
    with pytest.raises(
        RuntimeError, match=r"needs NodePrompting\(\.\.\., load_balance=True\), found load_balance=False"
    ):
        make().load_balance_loss()


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_a_large_city_is_encoded_in_pieces_with_the_same_result_and_gradient(prompt_graph, monkeypatch):
    found = []
    for rows, edges in ((5, 3), (4096, 8192)):
        monkeypatch.setattr("tsjt_pyg.nn.node_prompting._CPU_ROWS", rows)
        monkeypatch.setattr("tsjt_pyg.nn.prompt_graph._EDGES", edges)
        torch.manual_seed(2)
        x = torch.randn(2, 4, NODES, 3, dtype=torch.float64, requires_grad=True)
        module = make(prompt_graph, top_k=3, load_balance=True)
        out = module(x, EDGES, WEIGHT)
        balance = module.load_balance_loss()
        (out.pow(3).sum() + balance).backward()
        share = module.slot_share(x, EDGES, WEIGHT)
        with torch.no_grad():
            torch.testing.assert_close(module(x, EDGES, WEIGHT), out)
        found.append([out, balance, share, x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_the_road_network_is_re_weighted_with_the_gradient_of_the_formula():
    torch.manual_seed(3)
    mean = torch.randn(2, NODES, 5, dtype=torch.float64, requires_grad=True)
    weight = WEIGHT.clamp(min=0.1).requires_grad_()  # at 0 an edge begins to be one
    assert torch.autograd.gradcheck(lambda m, w: road_weight(m, EDGES, w), (mean, weight))


def test_what_is_kept_for_the_backward_pass_of_a_large_city_is_not_its_activations(monkeypatch):
    def kept(rows):
        monkeypatch.setattr("tsjt_pyg.nn.node_prompting._CPU_ROWS", rows)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x, edges)
        return total

    module, x = NodePrompting(1, 8, 16), torch.randn(12, 500, 1)
    edges = torch.randint(0, 500, (2, 2500))
    assert kept(100) < kept(4096) / 3


def test_repr():
    assert repr(NodePrompting(1, 8, 20, top_k=3)) == (
        "NodePrompting(1, 8, num_prompts=20, hidden_channels=8, heads=1, prompt_graph='road', top_k=3)"
    )
    assert repr(NodePrompting(1, 16, 20, heads=4, prompt_graph="topk")) == (
        "NodePrompting(1, 16, num_prompts=20, hidden_channels=16, heads=4, prompt_graph='topk')"
    )


def test_hidden_channels_default_fits_the_heads():
    assert NodePrompting(1, 10, 3).hidden_channels == 10
    assert NodePrompting(1, 10, 3, heads=4).hidden_channels == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, found 0"),
        ({"num_prompts": -1}, "num_prompts must be a positive integer, found -1"),
        ({"heads": 0}, "heads must be a positive integer, found 0"),
        ({"hidden_channels": 6, "heads": 4}, "hidden_channels must be even and a multiple of heads=4, found 6"),
        ({"hidden_channels": 5}, "hidden_channels must be even"),
        ({"top_k": 4}, "top_k must be from 1 to num_prompts=3, or None for all, found 4"),
        ({"top_k": 0}, "top_k must be from 1 to num_prompts=3, or None for all, found 0"),
        ({"prompt_graph": "dense"}, "prompt_graph must be one of .*'road', 'topk', 'factorised'.*found 'dense'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NodePrompting(**{"in_channels": 1, "prompt_channels": 4, "num_prompts": 3, **arguments})


@pytest.mark.parametrize("shape", [(3,), (4, 6, 2), (1, 2, 4, 6, 3)])
def test_wrong_input(shape):
    with pytest.raises(ValueError, match=r"x must be \[N, 3\], \[T, N, 3\] or \[B, T, N, 3\], found"):
        make()(torch.zeros(shape, dtype=torch.float64), EDGES)


def test_a_pair_of_node_types():
    x = torch.zeros(NODES, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"x must be the features of one node type, found a pair: .*leave out the edge"
    ):
        make()((x, x[:2]), EDGES)


@pytest.mark.parametrize("shape", [(NODES - 1,), (1, NODES)])
def test_wrong_batch(shape):
    with pytest.raises(ValueError, match=r"batch must be \[6\], the graph of each node of x, found"):
        make()(torch.zeros(NODES, 3, dtype=torch.float64), EDGES, batch=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("kind", [NodePrompting, PublishedNodePrompting])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aggr": "mean"}, "aggr must be 'add' in a prompting, found 'mean'; leave it out"),
        (
            {"flow": "target_to_source"},
            r"flow must be 'source_to_target' .*; reverse the edges instead: edge",
        ),
        ({"node_dim": 0}, "node_dim must be None in a prompting, found 0; leave it out"),
    ],
)
def test_messages_are_weighted_sums_along_the_edges(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(1, 4, 3, **arguments)


@pytest.mark.parametrize("kind", [NodePrompting, PublishedNodePrompting])
def test_edges_are_checked(kind):
    prompting, x, edges = kind(1, 4, 3), torch.randn(5, 1), torch.tensor([[0, 1], [1, 4]])
    with pytest.raises(ValueError, match=r"edge_index must name nodes 0 to 4 \(x has 5 nodes\), found 1 to 5"):
        prompting(x, edges + 1)
    with pytest.raises(ValueError, match=r"edge_weight must be \[2\], one weight an edge, found \[3\]"):
        prompting(x, edges, torch.ones(3))
