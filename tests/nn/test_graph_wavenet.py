"""Graph WaveNet against its formula with dense matrices, and what it can see."""

import pytest
import torch

from tsjt_pyg import check_transferable
from tsjt_pyg.nn import Forecaster, GraphWaveNet

NODES = 5
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 0], [1, 0, 2, 3, 0, 2, 1]])  # 0 -> 1 twice, 4 alone
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5, 3.0, 1.0], dtype=torch.float64)


def make(**kwargs):
    torch.manual_seed(0)
    return GraphWaveNet(3, 4, 6, **{"num_blocks": 2, "K": 2, "dropout": 0.0, **kwargs}).double()


def dense(model, window, weight):
    """One window ``[T, N, C]``, one convolution tap at a time."""
    adjacency = torch.zeros(NODES, NODES, dtype=torch.float64)
    for (source, target), value in zip(ROAD.t().tolist(), weight.tolist(), strict=True):
        adjacency[source, target] += value
    walks = []
    for matrix in (adjacency, adjacency.t()):
        total = matrix.sum(dim=1, keepdim=True)
        walks.append((matrix / total.where(total > 0, 1.0)).t())  # what a node gets, not what it gives
    zeros = window.new_zeros(max(0, model.receptive_field - len(window)), NODES, 3)
    x = model.start(torch.cat([zeros, window])[-model.receptive_field :])
    skip = 0.0
    for number, conv in enumerate(model.temporal):
        dilation, size = conv.dilation[0], conv.kernel_size[0]
        steps = []
        for end in range((size - 1) * dilation, len(x)):
            taps = [x[end - (size - 1 - tap) * dilation] @ conv.weight[:, :, tap].t() for tap in range(size)]
            level, gate = (sum(taps) + conv.bias).split(model.hidden_channels, dim=-1)
            steps.append(level.tanh() * gate.sigmoid())
        gated = torch.stack(steps)
        skip = skip + model.skips[number](gated[-1])
        if number < len(model.spatial):
            terms = [gated]
            for walk in walks:
                for power in range(1, model.K + 1):
                    terms.append(torch.linalg.matrix_power(walk, power) @ gated)
            x = model.norms[number](model.spatial[number](torch.cat(terms, dim=-1)) + x[-len(gated) :])
    return model.out(model.end(skip.relu()).relu())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("history", [1, 4, 7, 10])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_equals_its_formula(kernel_size, history, weighted):
    model = make(kernel_size=kernel_size)
    x = torch.randn(2, history, NODES, 3, dtype=torch.float64)
    out = model(x, ROAD, WEIGHT if weighted else None)
    assert out.shape == (2, NODES, 4)
    for window in range(2):
        expected = dense(model, x[window], WEIGHT if weighted else torch.ones(7).double())
        torch.testing.assert_close(out[window], expected, rtol=0, atol=1e-12)


def test_it_sees_as_far_back_as_it_says():
    model = make()
    assert model.receptive_field == 1 + 2 * (1 + 2)
    x = torch.randn(1, 9, NODES, 3, dtype=torch.float64, requires_grad=True)
    model(x, ROAD, WEIGHT).sum().backward()
    assert x.grad.abs().sum(dim=(0, 2, 3)).gt(0).tolist() == [False] * 2 + [True] * 7
    assert GraphWaveNet(3, 4).receptive_field == 13  # the paper's, for 12 steps


def test_every_parameter_learns():
    model = make()
    model(torch.randn(2, 4, NODES, 3).double(), ROAD, WEIGHT).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name


def test_weights_of_zero_and_no_roads():
    model, x = make(), torch.randn(1, 4, NODES, 3).double()
    none = model(x, torch.zeros(2, 0, dtype=torch.long))
    torch.testing.assert_close(model(x, ROAD, torch.zeros(7).double()), none)
    assert none.isfinite().all()


def test_dropout_is_for_training():
    model, x = make(dropout=0.5), torch.randn(1, 4, NODES, 3).double()
    assert not torch.equal(model(x, ROAD), model(x, ROAD))
    model.eval()
    assert torch.equal(model(x, ROAD), model(x, ROAD))


def test_reset_draws_all_anew():
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(77.0)
    model.reset_parameters()
    assert all(parameter.abs().max() < 5.0 for parameter in model.parameters())


def test_no_parameter_depends_on_the_city():
    class City:
        def __init__(self, nodes):
            self.num_nodes, self.edge_index = nodes, ROAD

    model = Forecaster(GraphWaveNet(8, 6), 4, 2)
    check_transferable(model, *(City(nodes) for nodes in (6, 8, 16, 32, 128)))
    assert model(torch.randn(2, 4, 9, 1), ROAD).shape == (2, 2, 9, 1)


def test_repr():
    assert repr(GraphWaveNet(3, 4)).startswith("GraphWaveNet(\n  3, 4, receptive_field=13, K=2\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be a positive integer, found 0"),
        ({"kernel_size": -1}, "kernel_size must be a positive integer, found -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), found 1.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"x must be \[B, T, N, 3\], found \[1, 4, 5, 2\]"):
        make()(torch.zeros(1, 4, NODES, 2), ROAD)
