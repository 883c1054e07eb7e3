from types import SimpleNamespace

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, GraphWaveNet, NodePrompting, check_transferable
from tsjt_pyg.nn.adapters import TEMPORAL_CELLS

temporal = import_temporal().nn
ROAD = torch.tensor([[0, 1, 2], [1, 2, 0]])


def city(nodes, edge_index=ROAD, **kwargs):
    return SimpleNamespace(num_nodes=nodes, edge_index=edge_index, **kwargs)


class Own(torch.nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


FINE = {
    "GConvGRU": lambda: temporal.recurrent.GConvGRU(8, 16, 2),
    "TGCN": lambda: temporal.recurrent.TGCN(8, 16),
    "A3TGCN": lambda: temporal.recurrent.A3TGCN(8, 16, 12),
    "DCRNN": lambda: temporal.recurrent.DCRNN(8, 16, 2),
    "LRGCN": lambda: temporal.recurrent.LRGCN(8, 16, 2, 2),
    "DyGrEncoder": lambda: temporal.recurrent.DyGrEncoder(8, 2, "add", 16, 1),
    "MSTGCN": lambda: temporal.attention.MSTGCN(2, 8, 2, 16, 16, 1, 16, 12),
    "GraphWaveNet": lambda: GraphWaveNet(8, 16),
    "GRU": lambda: torch.nn.GRU(8, 16),
}


@pytest.mark.parametrize("name", FINE)
def test_forecasters_transfer_even_where_a_node_count_equals_a_number_of_channels(name):
    model = Forecaster(FINE[name](), 12, 12, prompting=NodePrompting(1, 16, 8))
    assert check_transferable(model) is None
    assert check_transferable(model, city(16), city(8), city(12), city(48), city(32)) is None


@pytest.mark.parametrize("name", FINE)
def test_bare_cells_transfer(name):
    assert check_transferable(FINE[name](), city(16), city(8)) is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: temporal.recurrent.MPNNLSTM(1, 8, 6, 4, 0.1), r"\(MPNNLSTM\) fits one city only.*num_nodes.*GConvGRU"),
        (lambda: temporal.attention.STConv(6, 1, 4, 4, 3, 2), r"\(STConv\) fits one city only: its batch norm"),
        (
            lambda: temporal.attention.ASTGCN(1, 1, 3, 4, 4, 1, 3, 12, 6),
            r"\(ASTGCN\) fits one city only: its attention",
        ),
        (lambda: temporal.recurrent.EvolveGCNH(6, 4), r"\(EvolveGCNH\) fits one city only: it pools"),
        (
            lambda: temporal.recurrent.TGCN(1, 4, cached=True),
            r"the model itself \(TGCN\) has cached=True.*cached=False",
        ),
        (lambda: temporal.recurrent.EvolveGCNO(4, cached=True), r"cached=True"),
        (lambda: Own(inner=torch.nn.Sequential(temporal.recurrent.TGCN(1, 4, cached=True))), r"inner\.0 \(TGCN\)"),
    ],
)
def test_layers_bound_to_a_city_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        check_transferable(model())


def test_a_plain_gcn_with_a_cache_is_found():
    from torch_geometric.nn import GCNConv

    with pytest.raises(ValueError, match=r"gcn \(GCNConv\) has cached=True"):
        check_transferable(Own(gcn=GCNConv(2, 3, cached=True)))
    check_transferable(Own(gcn=GCNConv(2, 3)))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: Own(node_embedding=torch.nn.Parameter(torch.zeros(7, 4))), "node_embedding"),
        (lambda: Own(adjacency=torch.zeros(7, 7)), "adjacency"),
        (lambda: Own(inner=Own(norm=torch.nn.BatchNorm1d(7))), r"inner\.norm\.weight \(BatchNorm1d\)"),
        (lambda: Own(embed=torch.nn.Embedding(7, 3)), r"embed\.weight"),
    ],
)
def test_parameters_sized_by_a_citys_nodes_are_named(model, name):
    with pytest.raises(ValueError, match=rf"{name}.* and city 'riverton' has 7 nodes.*Size it by channels"):
        check_transferable(model(), city(5), city(7, name="riverton"))
    # one city, or cities of one size: nothing to compare, nothing said
    check_transferable(model())
    check_transferable(model(), city(7), city(7))
    check_transferable(model(), city(5), city(6))


def test_channel_layers_of_that_size_are_no_alarm():
    model = Own(a=torch.nn.Linear(7, 7), b=torch.nn.GRU(7, 5), c=torch.nn.Conv2d(7, 7, 1))
    assert check_transferable(model, city(7), city(5)) is None


def test_dcrnn_on_its_own_names_the_node_that_gives_nan():
    path = city(3, torch.tensor([[1, 0], [0, 2]]), name="deadend")
    cell = temporal.recurrent.DCRNN(2, 4, 2)
    with pytest.raises(
        ValueError, match=r"\(DCRNN\) gives NaN in city 'deadend': node 1 has an out-edge but no in-edge"
    ):
        check_transferable(Own(cell=cell), city(3), path)
    check_transferable(Forecaster(cell, 12, 12), city(3), path)


def test_an_unnamed_city_is_named_by_its_position():
    with pytest.raises(ValueError, match="city number 1 has 7 nodes"):
        check_transferable(Own(adjacency=torch.zeros(7, 7)), city(5), city(7))


@pytest.mark.parametrize("layer", ["MPNNLSTM", "STConv", "ASTGCN", "EvolveGCNH"])
def test_all_cells_that_transfer_are_named_as_the_way_out(layer):
    bound = {
        "MPNNLSTM": lambda: temporal.recurrent.MPNNLSTM(1, 8, 6, 4, 0.1),
        "STConv": lambda: temporal.attention.STConv(6, 1, 4, 4, 3, 2),
        "ASTGCN": lambda: temporal.attention.ASTGCN(1, 1, 3, 4, 4, 1, 3, 12, 6),
        "EvolveGCNH": lambda: temporal.recurrent.EvolveGCNH(6, 4),
    }
    with pytest.raises(ValueError, match=rf"\({layer}\) fits one city only") as raised:
        check_transferable(bound[layer]())
    for name in (*TEMPORAL_CELLS, "torch.nn.GRU", "GraphWaveNet"):
        assert name in str(raised.value)


def test_batched_dcrnn_on_its_own_names_the_node_that_gives_nan():
    path = city(3, torch.tensor([[1, 0], [0, 2]]), name="deadend")
    cell = temporal.recurrent.BatchedDCRNN(2, 4, 2)
    assert not cell(torch.randn(1, 2, 3, 2), path.edge_index, torch.ones(2)).isfinite().all()
    with pytest.raises(ValueError, match=r"cell \(BatchedDCRNN\) gives NaN in city 'deadend'.*self-loop"):
        check_transferable(Own(cell=cell), path)


def test_dcrnn_is_mended_wherever_a_forecaster_runs_it_and_nowhere_else():
    path = city(3, torch.tensor([[1, 0], [0, 2]]), name="deadend")
    dcrnn = temporal.recurrent.DCRNN
    check_transferable(Forecaster([torch.nn.GRU(4, 4), dcrnn(4, 4, 2)], 12, 12), path)
    check_transferable(Forecaster(dcrnn(4, 4, 2), 12, 12, decoder=dcrnn(4, 4, 2)), path)
    own = Own(inner=dcrnn(4, 4, 2))  # it calls the layer itself
    own.in_channels, own.out_channels, own.forward = 4, 4, lambda x, edge_index, edge_weight: x
    with pytest.raises(ValueError, match=r"cell.inner \(DCRNN\) gives NaN in city 'deadend'"):
        check_transferable(Forecaster(own, 12, 12), path)


def test_evolve_gcno_on_its_own_carries_its_weight_from_city_to_city():
    cell = temporal.recurrent.EvolveGCNO(4)
    x = torch.randn(3, 4)
    first = cell(x, ROAD)
    assert not torch.allclose(cell(x, ROAD), first)
    with pytest.raises(ValueError, match=r"cell \(EvolveGCNO\) carries its weight over.*inside a Forecaster"):
        check_transferable(Own(cell=cell), city(3))
    check_transferable(Forecaster(cell, 12, 12), city(3))


def test_layers_of_the_package_that_are_not_known_are_looked_into():
    from torch_geometric_temporal.nn.attention import DNNTSP

    class City:
        def __init__(self, num_nodes):
            self.num_nodes, self.edge_index = num_nodes, torch.tensor([[0], [1]])

    with pytest.raises(ValueError, match=r"DNNTSP|it seems to be sized by the number of nodes"):
        check_transferable(DNNTSP(17, 4, 1), City(17), City(23))
