import subprocess
import sys
import warnings

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, NodePrompting, cell_stack
from tsjt_pyg.nn.features import clock_features

recurrent = import_temporal().nn.recurrent

HISTORY, HORIZON, NODES = 4, 3, 6
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4, 0, 5]])
CELLS = {
    "GConvGRU": lambda: recurrent.GConvGRU(6, 8, 2),
    "GConvLSTM": lambda: recurrent.GConvLSTM(6, 8, 2),
    "GCLSTM": lambda: recurrent.GCLSTM(6, 8, 2),
    "TGCN": lambda: recurrent.TGCN(6, 8),
    "A3TGCN": lambda: recurrent.A3TGCN(6, 8, HISTORY),
    "DCRNN": lambda: recurrent.DCRNN(6, 8, 2),
    "GRU": lambda: torch.nn.GRU(6, 8),
    "GRU batch first": lambda: torch.nn.GRU(6, 8, 2, batch_first=True),
}


def make(cell="GConvGRU", *, trained=True, prompting=True, in_channels=2, **kwargs):
    torch.manual_seed(0)
    prompt = NodePrompting(in_channels, 4, 5) if prompting else None
    model = Forecaster(CELLS[cell](), HISTORY, HORIZON, in_channels, prompting=prompt, **kwargs)
    if trained:  # as if: the last layer starts at zero
        torch.nn.init.normal_(model.head[-1].weight)
    return model


def sample(windows=3, nodes=NODES, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(windows, HISTORY, nodes, channels, generator=generator)
    mask = torch.rand(x.shape, generator=generator) > 0.4
    return x, mask, torch.rand(windows, HISTORY, generator=generator)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("out_channels", [1, 2])
def test_untrained_forecasts_the_last_value(cell, out_channels):
    x, _, clock = sample()
    out = make(cell, trained=False, out_channels=out_channels)(x, ROAD, time_of_day=clock)
    assert out.shape == (3, HORIZON, NODES, out_channels)
    assert torch.equal(out, x[:, -1:, :, :out_channels].expand_as(out))


def test_the_last_value_is_the_last_observed_one():
    x, mask, _ = sample()
    mask[0, :, 2, 0] = False  # never observed: 0
    mask[1, :, 3, 0] = torch.tensor([True, True, False, False])
    out = make(trained=False)(x.masked_fill(~mask, torch.nan), ROAD, x_mask=mask)
    for window in range(3):
        for node in range(NODES):
            seen = x[window, mask[window, :, node, 0], node, 0]
            expected = seen[-1] if len(seen) else torch.tensor(0.0)
            assert torch.equal(out[window, :, node, 0], expected.expand(HORIZON))
    assert (out[0, :, 2] == 0).all()
    assert (out[1, :, 3, 0] == x[1, 1, 3, 0]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_learns_in_two_cities_of_different_size(cell):
    model = make(cell)
    ring = torch.arange(11)
    for nodes, roads in ((NODES, ROAD), (11, torch.stack([ring, (ring + 1) % 11]))):
        x, mask, clock = sample(nodes=nodes)
        model.zero_grad()
        out = model(x, roads, torch.rand(roads.size(1)) + 0.1, x_mask=mask, time_of_day=clock)
        assert out.shape == (3, HORIZON, nodes, 1)
        out.pow(2).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # A3TGCN runs from a zero state, which its reset gate cannot change
            assert parameter.grad.any() or ("A3TGCN" in cell and "_r." in name), name


@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_one_equals_the_window_alone(cell):
    model, (x, mask, clock) = make(cell), sample()
    batch = model(x, ROAD, x_mask=mask, time_of_day=clock)
    for window in range(3):
        one = slice(window, window + 1)
        alone = model(x[one], ROAD, x_mask=mask[one], time_of_day=clock[one])
        torch.testing.assert_close(alone[0], batch[window], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
def test_equals_the_formula_written_for_one_node_of_one_window(center):
    model = make("GRU", center=center, out_channels=2).double()
    x, mask, clock = sample()
    x, clock = x.double(), clock.double()
    out = model(x, ROAD, x_mask=mask, time_of_day=clock)
    for window in range(3):
        filled, levels = x[window].clone(), torch.zeros(NODES, 2, dtype=torch.float64)
        for node in range(NODES):
            for channel in range(2):
                seen = x[window, mask[window, :, node, channel], node, channel]
                levels[node, channel] = seen[-1] if len(seen) else 0.0
        for step in range(HISTORY):
            filled[step] = torch.where(mask[window, step], x[window, step], levels)
        prompts = model.prompting(filled, ROAD)[..., 2:]
        for node in range(NODES):
            rows = []
            for step in range(HISTORY):
                angle = 2 * torch.pi * clock[window, step]
                time = torch.stack([angle.sin(), angle.cos()])
                reading = filled[step, node] - levels[node] if center else filled[step, node]
                seen = mask[window, step, node].double()
                rows.append(torch.cat([reading, levels[node], seen, time, prompts[step, node]]))
            hidden = model.cell(model.embedding(torch.stack(rows)))[1][-1]
            expected = model.head(torch.cat([hidden, levels[node], time])).view(HORIZON, 2)
            expected = expected + levels[node] if center else expected
            torch.testing.assert_close(out[window, :, node], expected, rtol=1e-9, atol=1e-9)


def test_no_mask_means_all_observed():
    model, (x, _, clock) = make(), sample()
    assert torch.equal(model(x, ROAD, time_of_day=clock), model(x, ROAD, x_mask=x > -99, time_of_day=clock))


def test_the_model_sees_what_is_missing():
    model, (x, mask, _) = make(prompting=False), sample()
    x[:, :, 0, 0], mask[:, :, 0, 0] = 1.0, True
    hidden = mask.clone()
    hidden[:, 1, 0, 0] = False  # filled with the last value, 1: only the mask tells them apart
    assert not torch.allclose(model(x, ROAD, x_mask=mask)[:, :, 0], model(x, ROAD, x_mask=hidden)[:, :, 0])


def test_time_of_day_is_periodic_matters_and_may_be_unknown():
    model, (x, _, clock) = make(), sample()
    known = model(x, ROAD, time_of_day=clock)
    torch.testing.assert_close(model(x, ROAD, time_of_day=clock + 1.0), known, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(x, ROAD, time_of_day=(clock + 0.3) % 1), known)
    assert model(x, ROAD).isfinite().all()
    without = make(time_of_day=False)
    assert torch.equal(without(x, ROAD, time_of_day=clock), without(x, ROAD))


def test_day_of_week_is_periodic_matters_and_may_be_unknown():
    model, (x, _, clock) = make(day_of_week=True), sample()
    days = torch.tensor([[0], [4], [6]]).expand(3, HISTORY)
    known = model(x, ROAD, time_of_day=clock, day_of_week=days)
    other = model(x, ROAD, time_of_day=clock, day_of_week=(days + 1) % 7)
    assert (known - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    angle = 2 * torch.pi * days / 7
    expected = torch.stack([angle.sin(), angle.cos()], dim=-1)
    seen = clock_features(x, HISTORY, clock, days, (True, True))
    torch.testing.assert_close(seen[..., 2:], expected)
    torch.testing.assert_close(seen[..., :2], clock_features(x, HISTORY, clock, None, (True, False)))
    unknown = model(x, ROAD, time_of_day=clock)
    assert unknown.isfinite().all()
    assert not torch.allclose(unknown, known)
    without = make()
    assert torch.equal(without(x, ROAD, time_of_day=clock, day_of_week=days), without(x, ROAD, time_of_day=clock))
    alone = make(time_of_day=False, day_of_week=True)
    assert torch.equal(alone(x, ROAD, time_of_day=clock, day_of_week=days), alone(x, ROAD, day_of_week=days))


def test_without_centring_the_forecast_is_the_head_alone():
    x, mask, _ = sample()
    assert not make(trained=False, center=False, out_channels=3)(x, ROAD, x_mask=mask).any()


def test_the_level_is_seen():
    model, (x, _, _) = make(prompting=False), sample()
    change = model(x + 5.0, ROAD) - (model(x, ROAD) + 5.0)
    assert change.abs().max() > 1e-3


def test_prompts_change_the_forecast_and_their_bank_learns():
    model, (x, _, _) = make(), sample()
    before = model(x, ROAD)
    before.sum().backward()
    assert (model.prompting.keys.grad.abs().sum(dim=1) > 0).all()
    assert (model.prompting.values.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        model.prompting.values.neg_()
    assert not torch.allclose(model(x, ROAD), before)


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_round_trip(cell):
    x, mask, clock = sample()
    model, other = make(cell), make(cell)
    other.reset_parameters()
    assert not torch.equal(other.embedding.weight, model.embedding.weight)
    other.load_state_dict(model.state_dict())
    arguments = {"x_mask": mask, "time_of_day": clock}
    assert torch.equal(model(x, ROAD, **arguments), other(x, ROAD, **arguments))


def test_reset_parameters_draws_all_anew_and_starts_at_the_last_value():
    model, (x, _, _) = make(), sample()
    before = {name: value.clone() for name, value in model.named_parameters()}
    torch.manual_seed(9)
    model.reset_parameters()
    for name, value in model.named_parameters():
        constant = value.numel() == value.eq(value.flatten()[0]).sum()  # biases and norms
        assert constant or not torch.equal(value, before[name]), name
    out = model(x, ROAD)
    assert torch.equal(out, x[:, -1:, :, :1].expand_as(out))


def test_construction_keeps_the_parameters_of_the_cell_it_is_given():
    cell = recurrent.TGCN(6, 8)
    before = {name: value.clone() for name, value in cell.named_parameters()}
    model = Forecaster(cell, HISTORY, HORIZON)
    assert model.cell is cell
    assert all(torch.equal(value, before[name]) for name, value in cell.named_parameters())


def test_repr():
    assert repr(Forecaster(torch.nn.GRU(6, 8), 12, 3, prompting=NodePrompting(1, 4, 5))) == (
        "Forecaster(\n"
        "  history=12, horizon=3, in_channels=1, out_channels=1, center=True, time_of_day=True, day_of_week=False\n"
        "  (prompting): NodePrompting(1, 4, num_prompts=5, hidden_channels=4, heads=1, prompt_graph='road')\n"
        "  (embedding): Linear(in_features=9, out_features=6, bias=True)\n"
        "  (cell): GRU(6, 8)\n"
        "  (head): Sequential(\n"
        "    (0): Linear(in_features=11, out_features=8, bias=True)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(in_features=8, out_features=3, bias=True)\n"
        "  )\n"
        ")"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"history": 0}, ValueError, "history must be a positive integer, found 0"),
        ({"horizon": -2}, ValueError, "horizon must be a positive integer, found -2"),
        (
            {"cell": torch.nn.Linear(2, 3)},
            TypeError,
            r"cell must be torch.nn.GRU or one of GConvGRU.*torch\.nn.*Linear",
        ),
        ({"cell": recurrent.TGCN(6, 8, cached=True)}, ValueError, r"\(TGCN\) has cached=True.*cached=False"),
        ({"cell": recurrent.MPNNLSTM(1, 8, 6, 4, 0.1)}, ValueError, r"\(MPNNLSTM\) fits one city only"),
        ({"cell": recurrent.A3TGCN(6, 8, 5)}, ValueError, r"history must equal the periods of A3TGCN \(5\), found 4"),
        ({"out_channels": 2}, ValueError, "out_channels must not exceed in_channels=1 with center=True.*found 2"),
        ({"prompting": NodePrompting(3, 4, 5)}, ValueError, r"prompting.in_channels must equal in_channels=1.*found 3"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Forecaster(**{"cell": torch.nn.GRU(6, 8), "history": HISTORY, "horizon": HORIZON, **arguments})


GOOD = sample()
WRONG_CALLS = [
    ({"x": GOOD[0][0]}, r"x must be floating point \[B, 4, N, 2\].*found torch.float32 \[4, 6, 2\]"),
    ({"x": GOOD[0][:, 1:]}, r"x must be .*history=4.*found torch.float32 \[3, 3, 6, 2\]"),
    ({"x": GOOD[0][..., :1]}, r"x must be .*in_channels=2.*found torch.float32 \[3, 4, 6, 1\]"),
    ({"x": GOOD[0].long()}, r"x must be floating point.*found torch.int64"),
    ({"x": GOOD[0] * torch.nan}, r"x must be finite.*found 144 observed entries.*x_mask"),
    ({"x": GOOD[0] / 0, "x_mask": GOOD[1]}, r"x must be finite wherever it is observed"),
    ({"x_mask": GOOD[1][:1]}, r"x_mask must be bool \[3, 4, 6, 2\].*found torch.bool \[1, 4, 6, 2\]"),
    ({"x_mask": GOOD[1].float()}, r"x_mask must be bool.*found torch.float32"),
    ({"time_of_day": GOOD[2][:, 0]}, r"time_of_day must be floating point \[3, 4\].*found torch.float32 \[3\]"),
    ({"time_of_day": GOOD[2].long()}, r"time_of_day must be floating point.*found torch.int64"),
    (
        {"day_of_week": torch.zeros(3, 5).long()},
        r"day_of_week must be int64 \[3, 4\].*0 = Monday.*torch.int64 \[3, 5\]",
    ),
    ({"day_of_week": torch.zeros(3, 4)}, r"day_of_week must be int64.*found torch.float32"),
    ({"day_of_week": torch.arange(12).view(3, 4)}, r"day_of_week must be 0 \(Monday\) to 6 \(Sunday\), found 0 to 11"),
    ({"edge_index": ROAD.t()}, r"edge_index must be int64 \[2, E\], found torch.int64 \[12, 2\]"),
    ({"edge_index": ROAD.float()}, r"edge_index must be int64 \[2, E\], found torch.float32"),
    ({"edge_index": ROAD + 1}, r"edge_index must name nodes 0 to 5 \(x has 6 nodes\), found 1 to 6"),
    ({"edge_index": ROAD - 1}, r"edge_index must name nodes 0 to 5 \(x has 6 nodes\), found -1 to 4"),
    (
        {"edge_weight": torch.full((12,), torch.nan)},
        r"edge_weight must be finite, found 12 weights .* leave",
    ),
    ({"edge_weight": torch.ones(3)}, r"edge_weight must be \[12\], one weight an edge, found \[3\]"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS)
def test_wrong_calls(arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(**{"x": GOOD[0], "edge_index": ROAD, **arguments})


def test_works_without_torch_geometric_temporal():
    program = """
import sys
sys.modules["torch_geometric_temporal"] = None  # an import of it fails
import torch
from tsjt_pyg.nn import Forecaster, NodePrompting, check_transferable
model = Forecaster(torch.nn.GRU(4, 8), history=3, horizon=2, prompting=NodePrompting(1, 4, 5))
check_transferable(model)
print(model(torch.randn(2, 3, 5, 1), torch.tensor([[0], [1]])).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([2, 2, 5, 1])", done.stderr


# --- the compiler


@pytest.fixture
def compiled_names(monkeypatch):
    """Names of the functions that were compiled."""
    compile_function, names = torch.compile, []

    def compile_quickly(function):
        names.append(function.__name__)
        return compile_function(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    for clear in (torch.compiler.reset, cell_stack._compiled.cache_clear):
        clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        yield names
    for clear in (torch.compiler.reset, cell_stack._compiled.cache_clear):
        clear()


@pytest.mark.parametrize("decoder", [False, True])
def test_a_compiled_recurrence_gives_the_same_forecast_and_gradients(decoder, compiled_names):
    found = []
    x, mask, clock = sample()
    for compile in (False, True):
        torch.manual_seed(0)
        cells = [recurrent.TGCN(6, 8) for _ in range(1 + decoder)]
        model = Forecaster(cells[0], HISTORY, HORIZON, 2, decoder=cells[1] if decoder else None, compile=compile)
        torch.nn.init.normal_((model.head.readout if decoder else model.head[-1]).weight)
        out = model(x, ROAD, x_mask=mask, time_of_day=clock)
        found.append([out, *torch.autograd.grad(out.pow(2).sum(), [*model.parameters()])])
    assert compiled_names == ["run_tgcn"]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cell", "compile"), [("GConvGRU", False), ("GRU", True)])
def test_nothing_is_compiled_unasked_nor_for_cells_that_have_no_need(cell, compile, compiled_names):
    model, (x, _, clock) = make(cell, compile=compile), sample()
    model(x, ROAD, time_of_day=clock)
    assert compiled_names == []
