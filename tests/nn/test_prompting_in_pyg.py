"""NodePrompting among the parts of PyTorch Geometric and PyTorch: batches, hetero, explainers, the compiler."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import HeteroConv, MessagePassing, Sequential, to_hetero

from tsjt_pyg.nn import NodePrompting

GRAPHS = ["road", "topk", "factorised", None]


def make(prompt_graph: str | None = "road", **kwargs: object) -> NodePrompting:
    torch.manual_seed(0)
    return NodePrompting(3, 4, 5, prompt_graph=prompt_graph, **{"k": 2, "top_k": 3, **kwargs})


def city(nodes: int, edges: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 4, nodes, 3, generator=generator),
        torch.randint(0, nodes, (2, edges), generator=generator),
        torch.rand(edges, generator=generator),
    )


# --- batches


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_graphs_of_a_pyg_batch_give_what_each_gives_alone(prompt_graph):
    module = make(prompt_graph).double()
    graphs = [
        Data(x=torch.randn(n, 3, dtype=torch.float64), edge_index=torch.randint(0, n, (2, 2 * n)), w=torch.rand(2 * n))
        for n in (6, 1, 2, 9)
    ]
    batch = Batch.from_data_list(graphs)
    out = module(batch.x, batch.edge_index, batch.w, batch.batch)
    alone = torch.cat([module(graph.x, graph.edge_index, graph.w) for graph in graphs])
    torch.testing.assert_close(out, alone)
    if prompt_graph in ("topk", "factorised"):  # without it, they are one city
        assert not torch.allclose(module(batch.x, batch.edge_index, batch.w), alone)


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_the_gradient_of_a_batch_stays_in_its_graph_and_is_finite(prompt_graph):
    module = make(prompt_graph)
    x = torch.randn(2, 4, 6, 3, requires_grad=True)
    batch = torch.tensor([1, 0, 1, 2, 0, 1])  # in any order
    module(x, torch.zeros(2, 0, dtype=torch.long), batch=batch)[:, :, batch == 1, 3:].pow(2).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[:, :, batch != 1] == 0).all()
    assert (x.grad[:, :, batch == 1].abs().sum(dim=(0, 1, 3)) > 0).all()


# --- hetero


EDGE_TYPES = [("road", "near", "road"), ("road", "far", "road")]


def test_hetero_conv_gives_every_edge_type_prompts_of_its_own():
    (x, near, weight), (_, far, _) = city(6, 9), city(6, 4, seed=1)
    convs = {EDGE_TYPES[0]: make(), EDGE_TYPES[1]: make("factorised")}
    out = HeteroConv(convs, aggr="cat")(
        {"road": x}, dict(zip(EDGE_TYPES, (near, far), strict=True)), edge_weight_dict={EDGE_TYPES[0]: weight}
    )["road"]
    one, other = convs.values()
    assert torch.equal(out, torch.cat([one(x, near, weight), other(x, far)], dim=-1))


def test_to_hetero_gives_every_edge_type_prompts_of_its_own():
    model = Sequential("x, edge_index", [(make(), "x, edge_index -> x"), nn.Linear(7, 2)])
    (x, near, _), (_, far, _) = city(6, 9), city(6, 4, seed=1)
    hetero = to_hetero(model, (["road"], EDGE_TYPES), aggr="mean")
    out = hetero({"road": x}, dict(zip(EDGE_TYPES, (near, far), strict=True)))["road"]
    prompting, linear = hetero.module_0, hetero.module_1["road"]
    one, other = (prompting["__".join(kind)] for kind in EDGE_TYPES)
    torch.testing.assert_close(out, linear((one(x, near) + other(x, far)) / 2))


def test_hetero_conv_between_two_node_types_says_what_to_do():
    conv = HeteroConv({("sensor", "on", "road"): make(), ("road", "has", "sensor"): make()})
    with pytest.raises(ValueError, match="leave out the edge types between two"):
        conv(
            {"sensor": torch.zeros(2, 3), "road": torch.zeros(4, 3)},
            {("sensor", "on", "road"): torch.zeros(2, 1).long()},
        )


# --- Sequential, explainers, hooks


def test_inside_a_pyg_sequential():
    prompting, linear = make(), nn.Linear(7, 2)
    model = Sequential("x, edge_index, edge_weight", [(prompting, "x, edge_index, edge_weight -> x"), linear])
    x, edges, weight = city(6, 9)
    assert torch.equal(model(x, edges, weight), linear(prompting(x, edges, weight)))


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_gnn_explainer_finds_the_edges_that_matter(prompt_graph):
    """The nodes' outputs are those of a model with prompts; edges 0 and 1 lead to node 0, the others do not."""
    edges = torch.tensor([[1, 2, 3, 4, 5, 4], [0, 0, 4, 3, 4, 5]])
    model = Sequential(
        "x, edge_index", [(make(prompt_graph), "x, edge_index -> x"), nn.Linear(7, 2), nn.LogSoftmax(dim=-1)]
    )
    explainer = Explainer(
        model,
        algorithm=GNNExplainer(epochs=20),
        explanation_type="model",
        node_mask_type="attributes",
        edge_mask_type="object",
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "log_probs"},
    )
    explanation = explainer(torch.randn(6, 3), edges, index=0)
    assert explanation.edge_mask.shape == (6,)
    assert (explanation.edge_mask[:2] > 0).all()
    if prompt_graph in ("road", None):  # the other forms let node 0 see all nodes
        assert (explanation.edge_mask[2:] == 0).all()
    assert not model.module_0.explain


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_an_explainers_mask_of_ones_changes_nothing_and_one_of_zeros_removes_the_edges(prompt_graph):
    module, (x, edges, weight) = make(prompt_graph), city(6, 9)
    assert isinstance(module, MessagePassing)
    found = []
    for value in (1.0, 0.0):
        module.explain, module._apply_sigmoid = True, False
        module._edge_mask, module._loop_mask = torch.full((9,), value), torch.ones(9, dtype=torch.bool)
        found.append(module(x, edges, weight))
        module.explain = False
    torch.testing.assert_close(found, [module(x, edges, weight), module(x, edges[:, :0])])


def test_hooks_of_the_layer_and_of_its_messages():
    module, (x, edges, weight) = make(), city(6, 9)
    seen = []
    module.register_propagate_forward_pre_hook(lambda module, inputs: seen.append("propagate"))
    module.register_message_forward_hook(lambda module, inputs, output: output * 0)
    module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    silenced = module(x, edges, weight)
    assert seen == ["propagate", (2, 4, 6, 7)]
    assert not torch.allclose(silenced, make()(x, edges, weight))
    module.prompt_graph = None
    torch.testing.assert_close(module(x, edges, weight), make(None)(x, edges[:, :0]))


# --- precision and the compiler


@pytest.mark.parametrize("prompt_graph", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_and_near(prompt_graph, dtype):
    module, (x, edges, weight) = make(prompt_graph, top_k=None, load_balance=True), city(50, 200)
    plain = module(x, edges, weight)
    with torch.autocast("cpu", dtype=dtype):
        out = module(x, edges, weight)
    (out.float().pow(2).sum() + module.load_balance_loss()).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    if prompt_graph != "topk":  # which nodes are the most similar is not continuous
        torch.testing.assert_close(out.float(), plain, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_half_precision_does_not_overflow_in_a_city_of_many_nodes(prompt_graph):
    module = make(prompt_graph).half()
    nodes = 66_000 if prompt_graph != "topk" else 500  # float16 ends at 65504
    x = torch.randn(1, nodes, 3).half()
    with torch.no_grad():
        out = module(x, torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)]))
    assert out.dtype is torch.float16
    assert out.isfinite().all()
    assert out[..., 3:].std() > 0


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, about functools.cache
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("prompt_graph", GRAPHS)
def test_compiles_to_one_graph_and_gives_the_same_in_cities_of_two_sizes(prompt_graph):
    check_compiled(prompt_graph, "aot_eager", [6, 9])


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler, there is none"
)
def test_compiled_code_gives_the_same():
    check_compiled("road", "inductor", [6])


def check_compiled(prompt_graph: str | None, backend: str, sizes: list[int]) -> None:
    module = make(prompt_graph, load_balance=True)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for nodes in sizes:
        found = []
        for run in (module, compiled):
            module.zero_grad()
            x, edges, weight = city(nodes, 3 * nodes)
            out = run(x.requires_grad_(), edges, weight)
            balance = module.load_balance_loss()
            (out.pow(2).sum() + balance).backward()
            found.append([out, balance, x.grad, *(p.grad.clone() for p in module.parameters())])
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("prompt_graph", ["topk", "factorised"])
def test_a_batch_compiles_to_one_graph_where_its_size_is_given(prompt_graph):
    module, (x, edges, weight) = make(prompt_graph), city(6, 9)
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, edges, weight, batch, 2), module(x, edges, weight, batch))
