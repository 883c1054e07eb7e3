"""Any module that reads windows is a cell."""

import pytest
import torch
from torch_geometric.nn import GCNConv

from tsjt_pyg import check_transferable
from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster
from tsjt_pyg.nn.adapters import adapt, final_state, hidden_states, reset_cell

recurrent = import_temporal().nn.recurrent

HISTORY, NODES = 4, 5
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
WEIGHT = torch.linspace(0.5, 1.5, 8)


class Own(torch.nn.Module):
    def __init__(self, give, in_channels=3, out_channels=3):
        super().__init__()
        self.give, self.in_channels, self.out_channels = give, in_channels, out_channels

    def forward(self, x, edge_index, edge_weight):
        self.seen = (x, edge_index, edge_weight)
        return self.give(x)


SHAPES = {
    "a state for each step": lambda x: x.cumsum(dim=1),
    "one step": lambda x: x.sum(dim=1, keepdim=True),
    "no steps": lambda x: x.sum(dim=1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_state_is_what_the_head_reads(shape):
    x = torch.randn(2, HISTORY, NODES, 3)
    cell = Own(SHAPES[shape])
    torch.testing.assert_close(final_state(cell, x, ROAD, WEIGHT), x.sum(dim=1))
    assert torch.equal(cell.seen[0], x)
    assert cell.seen[0].is_contiguous()
    assert cell.seen[1] is ROAD
    assert cell.seen[2] is WEIGHT
    states = hidden_states(cell, x, ROAD)
    assert len(states) == (HISTORY if shape == "a state for each step" else 1)
    assert cell.seen[2] is None


def test_a_convolution_of_pyg_is_one():
    conv = GCNConv(3, 6)
    x = torch.randn(2, HISTORY, NODES, 3)
    torch.testing.assert_close(final_state(conv, x, ROAD, WEIGHT), conv(x[:, -1], ROAD, WEIGHT))
    out = Forecaster(GCNConv(8, 6), HISTORY, 2)(torch.randn(2, HISTORY, NODES, 1), ROAD, WEIGHT)
    assert out.shape == (2, 2, NODES, 1)


@pytest.mark.parametrize(
    ("give", "found"),
    [
        (lambda x: x[..., :2], r"\[2, 4, 5, 2\]"),
        (lambda x: x[:, :2], r"\[2, 2, 5, 3\]"),
        (lambda x: x.transpose(1, 2), r"\[2, 5, 4, 3\]"),
        (lambda x: x[:, -1, -1], r"\[2, 3\]"),
        (lambda x: (x, None), "tuple"),
    ],
)
def test_an_output_of_another_shape_is_named(give, found):
    model = Forecaster(Own(give), HISTORY, 2)
    with pytest.raises(
        ValueError,
        match=rf"cell \(Own\) must return a tensor \[B, T, N, F\] = \[2, 4, 5, 3\], \[B, 1, N, F\] or "
        rf"\[B, N, F\] = \[2, 5, 3\] with F = cell.out_channels, found {found}",
    ):
        model(torch.randn(2, HISTORY, NODES, 1), ROAD)


class TwoArguments(torch.nn.Module):
    in_channels = out_channels = 3

    def forward(self, x, edge_index):
        return x


class OwnTemporal(recurrent.TGCN):
    def forward(self, x, edge_index, edge_weight):
        return x


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        (torch.nn.Linear(2, 3), TypeError, r"or a module with in_channels, out_channels and forward\(x \[B, T, N, C\]"),
        (OwnTemporal(3, 3), TypeError, "a subclass with methods of its own is a cell of its own"),
        (
            TwoArguments(),
            TypeError,
            r"cell.forward must take \(x \[B, T, N, C\], edge_index, edge_weight\), found .*TwoArguments with "
            r"forward\(x, edge_index\)",
        ),
        (Own(None, in_channels=-1), ValueError, r"cell.in_channels must be a positive integer, found -1 \(Own\)"),
        (Own(None, out_channels=(3, 4)), ValueError, r"cell.out_channels must be a positive integer, found \(3, 4\)"),
    ],
)
def test_modules_that_are_no_cell(cell, error, message):
    with pytest.raises(error, match=message):
        adapt(cell)


def test_parameters_that_nobody_can_draw_anew_are_named():
    cell = Own(None)
    cell.inner = torch.nn.Module()
    cell.inner.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"cell.inner \(Module\) has parameters and no reset_parameters"):
        reset_cell(cell)
    cell.reset_parameters = lambda: cell.inner.scale.data.fill_(2.0)
    reset_cell(cell)
    assert cell.inner.scale.tolist() == [2.0] * 3


def test_what_binds_it_to_a_city_is_found_inside_a_forecaster_too():
    class City:
        def __init__(self, nodes):
            self.num_nodes, self.edge_index = nodes, ROAD

    cell = Own(None)
    cell.register_buffer("adjacency", torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"cell.adjacency \(Own\) has shape \(5, 5\), and city number 0 has 5 nodes"):
        check_transferable(Forecaster(cell, HISTORY, 2), City(5), City(6))
    with pytest.raises(ValueError, match=r"cell.1.adjacency \(Own\)"):
        check_transferable(Forecaster([torch.nn.GRU(3, 3), cell], HISTORY, 2), City(5), City(6))
