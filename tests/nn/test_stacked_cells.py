"""Cells on top of each other: each reads the states of the one below."""

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, GraphWaveNet
from tsjt_pyg.nn.adapters import final_state, hidden_states

temporal = import_temporal().nn
recurrent = temporal.recurrent

HISTORY, NODES = 4, 5
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])


def test_each_cell_reads_the_states_of_the_one_below():
    torch.manual_seed(0)
    cells = [recurrent.GConvLSTM(3, 4, 2), torch.nn.GRU(4, 5), recurrent.EvolveGCNO(5), recurrent.A3TGCN(5, 6, HISTORY)]
    model = Forecaster(cells, HISTORY, 2).double()
    torch.nn.init.normal_(model.head[-1].weight)
    x = torch.randn(2, HISTORY, NODES, 1, dtype=torch.float64)
    level = x[:, -1:].expand_as(x)
    unknown = x.new_zeros(2, HISTORY, NODES, 2)
    states = model.embedding(torch.cat([x - level, level, torch.ones_like(x), unknown], dim=-1))
    for cell in model.cell[:-1]:
        states = torch.stack(hidden_states(cell, states, ROAD), dim=1)
    hidden = final_state(model.cell[-1], states, ROAD)
    out = model.head(torch.cat([hidden, x[:, -1], unknown[:, -1]], dim=-1)).view(2, NODES, 2, 1).transpose(1, 2)
    torch.testing.assert_close(model(x, ROAD), x[:, -1:] + out)


def test_a_single_cell_keeps_its_names():
    cell = torch.nn.GRU(3, 4)
    assert Forecaster(cell, HISTORY, 2).cell is cell
    names = Forecaster([cell], HISTORY, 2).state_dict()
    assert "cell.0.weight_ih_l0" in names


class OneState(torch.nn.Module):
    in_channels = out_channels = 4

    def forward(self, x, edge_index, edge_weight):
        return x[:, -1]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda: [], "cell must be a module or a sequence of at least one, found an empty sequence"),
        (
            lambda: [recurrent.TGCN(3, 4), recurrent.GConvGRU(5, 6, 2)],
            r"cell 1 \(GConvGRU\) must read the 4 channels of cell 0 \(TGCN\), found 5 input channels",
        ),
        (
            lambda: [recurrent.A3TGCN(3, 4, HISTORY), torch.nn.GRU(4, 4)],
            r"cell 0 \(A3TGCN\) gives one state for the whole window.*put it last",
        ),
        (
            lambda: [torch.nn.GRU(3, 4), recurrent.A3TGCN(4, 4, 3)],
            r"history must equal the periods of A3TGCN \(3\), found 4",
        ),
        (
            lambda: temporal.attention.MSTGCN(1, 3, 2, 4, 4, 1, 5, 6),
            r"history must equal the len_input of MSTGCN \(6\), found 4",
        ),
        (lambda: [torch.nn.GRU(3, 4), recurrent.EvolveGCNO(4, cached=True)], r"1 \(EvolveGCNO\) has cached=True"),
    ],
)
def test_cells_that_do_not_fit(cells, message):
    with pytest.raises(ValueError, match=message):
        Forecaster(cells(), HISTORY, 2)


@pytest.mark.parametrize("lower", [OneState, lambda: GraphWaveNet(4, 4)])
def test_a_module_of_ones_own_shows_only_when_run_that_it_gives_one_state(lower):
    model = Forecaster([lower(), torch.nn.GRU(4, 4)], HISTORY, 2)
    with pytest.raises(ValueError, match=r"cell 0 \(.*\) gives one state for the whole window.*put it last"):
        model(torch.randn(2, HISTORY, NODES, 1), ROAD)
