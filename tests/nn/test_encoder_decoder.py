"""The encoder-decoder, against PyG-Temporal's own cells called step by step, and the clock of its horizon."""

import datetime

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import CityEmbedding, Forecaster, GraphWaveNet
from tsjt_pyg.nn.features import horizon_clock

temporal = import_temporal().nn
recurrent = temporal.recurrent

HISTORY, HORIZON, NODES, SIZE = 3, 4, 5, 4
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 0], [1, 0, 2, 1, 3, 2, 4, 3, 0, 4]])
WEIGHT = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
CELLS = {
    "GConvGRU": lambda: recurrent.GConvGRU(SIZE, SIZE, 2),
    "TGCN": lambda: recurrent.TGCN(SIZE, SIZE),
    "DCRNN": lambda: recurrent.DCRNN(SIZE, SIZE, 2),
    "GConvLSTM": lambda: recurrent.GConvLSTM(SIZE, SIZE, 2),
    "GCLSTM": lambda: recurrent.GCLSTM(SIZE, SIZE, 2),
    "DyGrEncoder": lambda: recurrent.DyGrEncoder(SIZE, 2, "mean", SIZE, 1),
    "GRU": lambda: torch.nn.GRU(SIZE, SIZE, 2),
}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_step(cell, x, state):
    """``x [N, C]``; what each cell gives and goes on from, the way PyG-Temporal's examples call it."""
    kind = type(cell).__name__
    if kind == "GRU":
        out, state = cell(x[None], state)
        return out[0], state
    if kind == "DyGrEncoder":
        out, *state = cell(x, ROAD, WEIGHT, *(state or (None, None)))
        return out, state
    if "LSTM" in kind:
        state = cell(x, ROAD, WEIGHT, *(state or (None, None)))
        return state[0], state
    state = cell(x, ROAD, WEIGHT, state)
    return state, state


def time_features(time_of_day, day):
    angle, day_angle = torch.tensor(2 * torch.pi * time_of_day), torch.tensor(2 * torch.pi * day / 7)
    return torch.stack([angle.sin(), angle.cos(), day_angle.sin(), day_angle.cos()]).expand(NODES, 4)


def step_by_step(model, x, start, interval):
    """One window ``[T, N, 1]``, with nothing of the package but the model's own layers."""
    level, embedding = x[-1], model.city_embedding("here")
    times = [start + step * interval for step in range(HISTORY + HORIZON)]
    clock = [time_features((t.hour * 60 + t.minute) / 1440, t.weekday()) for t in times]
    state = None
    for step in range(HISTORY):
        parts = [x[step] - level if model.center else x[step], level, torch.ones(NODES, 1), clock[step], embedding]
        _, state = one_step(model.cell, model.embedding(torch.cat(parts, dim=-1)), state)
    output, outputs = torch.zeros(NODES, 1), []
    for step in range(HISTORY, HISTORY + HORIZON):
        fed = model.head.embedding(torch.cat([output, clock[step], embedding], dim=-1))
        hidden, state = one_step(model.head.cell, fed, state)
        output = model.head.readout(hidden)
        outputs.append(output)
    return torch.stack(outputs) + (level if model.center else 0.0)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("minutes", [5, 60, 24 * 60])
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_cells_called_step_by_step(name, minutes, center, float64):
    torch.manual_seed(0)
    city = CityEmbedding({"here": NODES}, 2)
    model = Forecaster(
        CELLS[name](), HISTORY, HORIZON, decoder=CELLS[name](), city_embedding=city, day_of_week=True, center=center
    )
    torch.nn.init.normal_(model.head.readout.weight)
    torch.nn.init.normal_(model.head.readout.bias)
    interval = datetime.timedelta(minutes=minutes)
    # the last of the horizon are after midnight of a Sunday; and one well before
    starts = [datetime.datetime(2024, 3, 3, 23, 40) - 2 * interval, datetime.datetime(2024, 3, 6, 7, 15)]
    x = torch.randn(2, HISTORY, NODES, 1)
    times = [[start + step * interval for step in range(HISTORY)] for start in starts]
    out = model(
        x,
        ROAD,
        WEIGHT,
        time_of_day=torch.tensor([[(t.hour * 60 + t.minute) / 1440 for t in window] for window in times]),
        day_of_week=torch.tensor([[t.weekday() for t in window] for window in times]),
        city="here",
    )
    for window in range(2):
        expected = step_by_step(model, x[window], starts[window], interval)
        torch.testing.assert_close(out[window], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps_per_day", [24, 96, 288, 1440])
def test_the_clock_of_the_horizon_goes_on_over_midnight_and_sunday(steps_per_day):
    steps, horizon = torch.arange(8 * steps_per_day), 12
    time_of_day = (steps % steps_per_day).float() / steps_per_day
    day_of_week = steps // steps_per_day % 7
    windows = torch.arange(0, len(steps) - 2 - horizon)
    history, later = windows[:, None] + torch.arange(2), windows[:, None] + 2 + torch.arange(horizon)
    for day in (day_of_week[history], None):
        found_time, found_day = horizon_clock(time_of_day[history], day, horizon)
        off = (found_time - time_of_day[later] + 0.5) % 1 - 0.5
        assert off.abs().max() < 2e-6
        assert found_time.dtype == torch.float32
        assert found_day is None if day is None else torch.equal(found_day, day_of_week[later])


def test_the_clock_of_steps_of_a_day():
    time_of_day, day = torch.tensor([[0.25, 0.25]]), torch.tensor([[5, 6]])
    found_time, found_day = horizon_clock(time_of_day, day, 3)
    assert found_time.tolist() == [[0.25] * 3]
    assert found_day.tolist() == [[0, 1, 2]]
    assert horizon_clock(time_of_day, None, 3)[0].tolist() == [[0.25] * 3]


def test_an_unknown_clock():
    assert horizon_clock(None, None, 3) == (None, None)
    time_of_day, day = horizon_clock(None, torch.tensor([[5, 6]]), 3)
    assert time_of_day is None
    assert day.tolist() == [[6, 6, 6]]
    model = Forecaster(torch.nn.GRU(3, 4), 2, 3, decoder=torch.nn.GRU(3, 4), day_of_week=True)
    torch.nn.init.normal_(model.head.readout.weight)
    x = torch.randn(2, 2, NODES, 1)
    assert model(x, ROAD).isfinite().all()
    assert not torch.equal(model(x, ROAD), model(x, ROAD, time_of_day=torch.tensor([[0.1, 0.2]] * 2)))


def test_the_decoder_is_fed_its_own_output():
    model = Forecaster(torch.nn.GRU(3, 4), 2, 3, decoder=torch.nn.GRU(3, 4), time_of_day=False)
    torch.nn.init.normal_(model.head.readout.weight)
    x = torch.randn(2, 2, NODES, 1)
    before = model(x, ROAD)
    with torch.no_grad():
        model.head.embedding.weight.zero_()  # all that it reads without a clock
    after = model(x, ROAD)
    assert torch.equal(after[:, 0], before[:, 0])  # it starts with 0 anyway
    assert not torch.equal(after[:, 1], before[:, 1])


def test_a_decoder_of_another_kind_with_the_same_state():
    model = Forecaster(
        [recurrent.DCRNN(3, SIZE, 2), recurrent.GConvLSTM(SIZE, 6, 2)],
        HISTORY,
        HORIZON,
        decoder=[recurrent.TGCN(2, SIZE), recurrent.GCLSTM(SIZE, 6, 2)],
    )
    assert model(torch.randn(2, HISTORY, NODES, 1), ROAD).shape == (2, HORIZON, NODES, 1)


GOING_ON = r"torch\.nn\.GRU, DyGrEncoder, GConvGRU, GConvLSTM, GCLSTM, TGCN.*DCRNN.*LRGCN.*AGCRN"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"cell": lambda: recurrent.A3TGCN(3, SIZE, HISTORY)},
            rf"cell 0 \(A3TGCN\) has no state to hand over.*Use one of {GOING_ON}, or decoder=None",
        ),
        ({"cell": lambda: recurrent.EvolveGCNO(SIZE)}, rf"cell 0 \(EvolveGCNO\) has no state to hand over.*{GOING_ON}"),
        ({"cell": lambda: GraphWaveNet(3, SIZE)}, r"cell 0 \(GraphWaveNet\) has no state to hand over"),
        (
            {"decoder": lambda: temporal.attention.MSTGCN(1, 3, 2, 4, 4, 1, SIZE, HISTORY)},
            r"decoder 0 \(MSTGCN\) has no state to hand over",
        ),
        (
            {"decoder": lambda: recurrent.GConvLSTM(3, SIZE, 2)},
            r"decoder 0 \(GConvLSTM\) must start from a state like that of cell 0 \(GConvGRU\), of \[4\] channels, "
            r"found \[4, 4\]; use the same kind of cell",
        ),
        ({"decoder": lambda: recurrent.GConvGRU(3, 5, 2)}, r"of \[4\] channels, found \[5\]"),
        (
            {"decoder": lambda: [recurrent.GConvGRU(3, SIZE, 2), recurrent.GConvGRU(SIZE, SIZE, 2)]},
            r"decoder must have as many cells as cell \(1\).*found 2",
        ),
        ({"decoder": lambda: []}, r"decoder must have as many cells as cell \(1\).*found 0"),
        ({"decoder": lambda: recurrent.TGCN(3, SIZE, cached=True)}, r"\(TGCN\) has cached=True"),
        ({"history": lambda: 1}, "history must be at least 2 with a decoder.*time_of_day=False"),
    ],
)
def test_decoders_that_do_not_fit(arguments, message):
    fine = {
        "cell": lambda: recurrent.GConvGRU(3, SIZE, 2),
        "decoder": lambda: recurrent.GConvGRU(3, SIZE, 2),
        "history": lambda: HISTORY,
    }
    with pytest.raises(ValueError, match=message):
        Forecaster(horizon=HORIZON, **{name: made() for name, made in {**fine, **arguments}.items()})


def test_one_step_of_history_is_enough_without_a_clock():
    model = Forecaster(torch.nn.GRU(3, 4), 1, 2, decoder=torch.nn.GRU(3, 4), time_of_day=False)
    assert model(torch.randn(2, 1, NODES, 1), ROAD).shape == (2, 2, NODES, 1)


def test_repr():
    text = repr(Forecaster(torch.nn.GRU(3, 4), 2, 3, decoder=torch.nn.GRU(3, 4)))
    assert "(head): RecurrentHead(" in text
    assert "(readout): Linear(in_features=4, out_features=1, bias=True)" in text
