"""The published module: its formulas, its faults, and what it needs to be an ablation."""

import math

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, PublishedNodePrompting, check_transferable

EDGES = torch.tensor([[0, 0, 1, 3, 4], [2, 1, 0, 0, 1]])
WEIGHT = torch.tensor([0.5, 0.25, 1.0, 2.0, 0.7], dtype=torch.float64)
NODES = 5


@pytest.fixture
def module():
    torch.manual_seed(0)
    return PublishedNodePrompting(3, 4, 6, hidden_channels=8).double()


def random(*shape):
    return torch.randn(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(module, x):
    """The prompts of windows [B, T, N, F], from the formulas, with loops."""
    adjacency = torch.zeros(NODES, NODES, dtype=torch.float64)
    for (source, target), weight in zip(EDGES.T.tolist(), WEIGHT.tolist(), strict=True):
        adjacency[target, source] = weight
    adjacency /= adjacency.sum(dim=1, keepdim=True).clamp(min=1e-30)
    hidden = torch.relu(module.lin_root(x) + (adjacency @ x) @ module.lin_neighbour.weight.T)
    attended = torch.zeros_like(hidden)
    for step in range(x.size(1)):
        for node in range(NODES):
            query, key, value = module.lin_attention(hidden[:, step, node]).chunk(3, dim=-1)
            attended[:, step, node] = torch.softmax(query @ key.T / math.sqrt(8), dim=1) @ value
    prompts = module.norm(hidden + module.lin_out(attended)) @ sum(module.bank)
    mean = prompts.mean(dim=1)
    return prompts + torch.einsum("bip,bjp,btjq->btiq", mean, mean, prompts)


def test_equals_the_formulas(module):
    x = random(4, 2, NODES)
    out = module(x, EDGES, WEIGHT)
    assert torch.equal(out[..., :3], x)
    torch.testing.assert_close(out[..., 3:], expected(module, x))


def test_its_bank_is_one_matrix(module):
    x = random(2, 4, NODES)
    out = module(x, EDGES, WEIGHT)
    with torch.no_grad():
        module.bank[0] = module.bank.sum(dim=0)
        module.bank[1:] = 0
    torch.testing.assert_close(module(x, EDGES, WEIGHT), out)


def test_its_windows_see_each_other(module):
    x = random(2, 4, NODES)
    assert not torch.allclose(module(x, EDGES)[:1], module(x[:1], EDGES))


def test_no_gradient_reaches_its_input_through_the_prompts(module):
    x = random(2, 4, NODES).requires_grad_()
    module(x, EDGES)[..., 3:].sum().backward()
    assert x.grad is None or (x.grad == 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_what_reaches_a_node_grows_with_the_city(module):
    x = random(1, 4, 1)
    one, many = (module(x.expand(1, 4, nodes, 3), EDGES[:, :0])[0, 0, 0, 3:] for nodes in (1, 100))
    own = (many - one) / 99  # each of the 99 others adds as much as the node itself
    torch.testing.assert_close(many, one + 99 * own)
    assert many.norm() > 20 * one.norm()


def test_leading_dimensions_and_default_weights(module):
    x = random(1, 4, NODES)
    out = module(x, EDGES)
    torch.testing.assert_close(module(x[0], EDGES, torch.ones(EDGES.size(1))), out[0])
    torch.testing.assert_close(module(x[0, 0], EDGES), module(x[:, :1], EDGES)[0, 0])


def test_a_forecaster_takes_it_to_cities_of_two_sizes(module):
    cell = import_temporal().nn.recurrent.GConvGRU(4, 5, 2)
    model = Forecaster(cell, 4, 2, in_channels=3, prompting=module.float())
    check_transferable(model)
    for nodes in (NODES, 9):
        x = torch.randn(2, 4, nodes, 3)
        torch.nn.init.normal_(model.head[-1].weight)
        out = model(x, EDGES)
        out.sum().backward()
        assert out.shape == (2, 2, nodes, 1)
        assert out.isfinite().all()
    assert module.bank.grad.abs().sum() > 0


def test_reset_parameters_and_repr(module):
    before = {name: value.clone() for name, value in module.named_parameters()}
    torch.manual_seed(5)
    module.reset_parameters()
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(before) - {"norm.weight", "norm.bias"}
    assert repr(module) == "PublishedNodePrompting(3, 4, num_prompts=6, hidden_channels=8)"


def test_messages(module):
    with pytest.raises(ValueError, match="num_prompts must be a positive integer, found 0"):
        PublishedNodePrompting(1, 4, 0)
    with pytest.raises(ValueError, match=r"x must be \[N, 3\], \[T, N, 3\] or \[B, T, N, 3\], found \[4, 2\]"):
        module(torch.zeros(4, 2, dtype=torch.float64), EDGES)
