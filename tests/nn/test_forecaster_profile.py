"""A forecaster that sees a support profile: what it does with one, and what it does without."""

from __future__ import annotations

import pytest
import torch

from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import Forecaster, NodePrompting

recurrent = import_temporal().nn.recurrent

HISTORY, HORIZON, NODES, CHANNELS = 4, 3, 6, 2
STEPS = HISTORY + HORIZON
ROAD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4, 0, 5]])
KINDS = {
    "GRU": lambda: {"cell": torch.nn.GRU(6, 8)},
    "TGCN": lambda: {"cell": recurrent.TGCN(6, 8)},
    "stack": lambda: {"cell": [recurrent.TGCN(6, 5), torch.nn.GRU(5, 8)]},
    "decoder": lambda: {"cell": torch.nn.GRU(6, 8), "decoder": torch.nn.GRU(6, 8)},
    "decoder of a stack": lambda: {
        "cell": [recurrent.GConvGRU(6, 5, 2), torch.nn.GRU(5, 8)],
        "decoder": [recurrent.GConvGRU(6, 5, 2), torch.nn.GRU(5, 8)],
    },
    "not centred": lambda: {"cell": recurrent.TGCN(6, 8), "center": False},
    "prompts": lambda: {"cell": torch.nn.GRU(6, 8), "prompting": NodePrompting(CHANNELS, 4, 5)},
    "no clock": lambda: {"cell": torch.nn.GRU(6, 8), "time_of_day": False},
}


def make(kind="TGCN", *, trained=True, profile=True, **more):
    torch.manual_seed(0)
    model = Forecaster(
        **{"history": HISTORY, "horizon": HORIZON, "in_channels": CHANNELS, "profile": profile, **KINDS[kind](), **more}
    )
    if trained:  # as if: the last layer starts at zero
        last = model.head.readout if "decoder" in kind else model.head[-1]
        torch.nn.init.normal_(last.weight)
    return model.double()


def sample(windows=3, nodes=NODES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(windows, HISTORY, nodes, CHANNELS, dtype=torch.float64, generator=generator)
    profile = torch.randn(windows, STEPS, nodes, CHANNELS, dtype=torch.float64, generator=generator)
    return {
        "x": x,
        "edge_index": ROAD,
        "x_mask": torch.rand(x.shape, generator=generator) > 0.4,
        "time_of_day": torch.rand(windows, HISTORY, dtype=torch.float64, generator=generator),
        "profile": profile,
        "profile_mask": torch.rand(profile.shape, generator=generator) > 0.3,
        "profile_same_type": torch.rand(windows, STEPS, generator=generator) > 0.5,
    }


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_channels", [1, 2])
def test_untrained_it_forecasts_the_last_value(kind, out_channels):
    given = sample()
    out = make(kind, trained=False, out_channels=out_channels)(**{**given, "x_mask": None})
    last = given["x"][:, -1:, :, :out_channels].expand_as(out)
    assert torch.equal(out, torch.zeros_like(last) if kind == "not centred" else last)


@pytest.mark.parametrize("kind", KINDS)
def test_no_profile_is_a_profile_of_which_nothing_is_known(kind):
    model, given = make(kind), sample()
    nothing = {
        "profile_mask": torch.zeros_like(given["profile_mask"]),
        "profile_same_type": torch.zeros_like(given["profile_same_type"]),
    }
    without = {name: value for name, value in given.items() if "profile" not in name}
    assert torch.equal(model(**without), model(**{**given, **nothing}))
    assert not torch.allclose(model(**without), model(**given))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_known_of_a_profile_has_no_influence(kind):
    model, given = make(kind), sample()
    expected = model(**given)
    for garbage in (torch.nan, torch.inf, -7.0):
        spoiled = given["profile"].masked_fill(~given["profile_mask"], garbage).requires_grad_()
        found = model(**{**given, "profile": spoiled})
        assert torch.equal(found, expected)
        found.sum().backward()
        assert (spoiled.grad[~given["profile_mask"]] == 0).all()
        assert spoiled.grad.isfinite().all()
        if garbage == -7.0:
            assert spoiled.grad[given["profile_mask"]].any()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_of_a_profile_is_seen_at_history_and_horizon(kind):
    model, given = make(kind), sample()
    expected = model(**given)
    for steps in (slice(0, HISTORY), slice(HISTORY, None)):
        values = given["profile"].clone()
        values[:, steps] += 1.0
        same_type, mask = given["profile_same_type"].clone(), given["profile_mask"].clone()
        same_type[:, steps] ^= True
        mask[:, steps] ^= True
        for change in ({"profile": values}, {"profile_same_type": same_type}, {"profile_mask": mask}):
            change_of = (model(**{**given, **change}) - expected).abs()
            assert change_of.amax(dim=(1, 2, 3)).min() > 1e-6


def test_without_a_mask_all_is_known_and_without_types_all_days_are_of_the_steps_type():
    model, given = make(), sample()
    full = {
        "profile_mask": torch.ones(3, STEPS, NODES, CHANNELS).bool(),
        "profile_same_type": torch.ones(3, STEPS).bool(),
    }
    plain = {**given, "profile_mask": None, "profile_same_type": None}
    assert torch.equal(model(**plain), model(**{**given, **full}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbering_of_the_nodes_does_not_matter(kind):
    model, given = make(kind), sample()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    renumbered = {name: given[name][:, :, order] for name in ("x", "x_mask", "profile", "profile_mask")}
    close(model(**{**given, **renumbered, "edge_index": order.argsort()[ROAD]}), model(**given)[:, :, order])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_equals_the_window_alone(kind):
    model, given = make(kind), sample()
    batch = model(**given)
    for window in range(3):
        one = {name: value if name == "edge_index" else value[window : window + 1] for name, value in given.items()}
        close(model(**one)[0], batch[window])


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("out_channels", [1, 2])
def test_equals_the_formula_written_for_one_node_of_one_window(center, out_channels):
    model, given = make("GRU", center=center, out_channels=out_channels), sample()
    out = model(**given)
    x, mask, p, known = (given[name] for name in ("x", "x_mask", "profile", "profile_mask"))
    for window in range(3):
        angle = 2 * torch.pi * given["time_of_day"][window]
        clock = torch.stack([angle.sin(), angle.cos()], dim=-1)
        for node in range(NODES):
            seen = [x[window, mask[window, :, node, c], node, c] for c in range(CHANNELS)]
            level = torch.stack([s[-1] if len(s) else torch.zeros(()).double() for s in seen])
            base = level if center else torch.zeros_like(level)
            typical = []
            for step in range(STEPS):
                m = known[window, step, node].double()
                same = given["profile_same_type"][window, step].double().view(1)
                typical.append(torch.cat([m * (p[window, step, node] - base), m, same]))
            rows = []
            for step in range(HISTORY):
                reading = torch.where(mask[window, step, node], x[window, step, node], level) - base
                rows.append(torch.cat([reading, level, mask[window, step, node].double(), clock[step], typical[step]]))
            hidden = model.cell(model.embedding(torch.stack(rows)))[1][-1]
            told = model.head(torch.cat([hidden, level, clock[-1], *typical[HISTORY:]])).view(HORIZON, 2 * out_channels)
            for step in range(HORIZON):
                delta, gate = told[step, :out_channels], told[step, out_channels:]
                expected = base[:out_channels] + delta + gate * typical[HISTORY + step][:out_channels]
                close(out[window, step, node], expected)


def test_an_open_gate_forecasts_the_profile_where_it_is_known():
    model, given = make(trained=False, out_channels=CHANNELS), sample()
    with torch.no_grad():
        model.head[-1].bias.view(HORIZON, 2 * CHANNELS)[:, CHANNELS:] = 1.0
    out, last = model(**{**given, "x_mask": None}), given["x"][:, -1:].expand(-1, HORIZON, -1, -1)
    close(
        out,
        torch.where(given["profile_mask"], given["profile"], 0.0)[:, HISTORY:]
        + last * ~given["profile_mask"][:, HISTORY:],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_and_the_gate_from_the_start(kind):
    given = sample()
    untrained = make(kind, trained=False)
    (untrained(**given) - 1).square().sum().backward()
    if "decoder" not in kind:
        gate = untrained.head[-1].bias.grad.view(HORIZON, 2)[:, 1]
        assert (gate != 0).all()
    model = make(kind)
    model(**given).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_only_a_model_built_for_one_looks_at_a_profile():
    model, given = make(profile=False), sample()
    without = {name: value for name, value in given.items() if "profile" not in name}
    assert torch.equal(model(**given), model(**without))
    assert "profile" not in repr(model)
    assert "profile=True" in repr(make())


def test_state_dict_round_trip_and_reset():
    model, other, given = make(), make(), sample()
    other.reset_parameters()
    assert torch.equal(other(**{**given, "x_mask": None}), given["x"][:, -1:, :, :1].expand(-1, HORIZON, -1, -1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(**given), other(**given))


def test_a_forecast_without_a_channel_of_the_profile_is_refused():
    for center in (True, False):
        with pytest.raises(ValueError, match=r"out_channels must not exceed in_channels=2 with .*found 3"):
            make(center=center, out_channels=3)
    given = {**sample(), "x_mask": None}
    assert make("decoder", center=False, out_channels=3)(**given).shape == (3, HORIZON, NODES, 3)


GOOD = sample()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"profile": GOOD["profile"][:, :HISTORY]},
            r"profile must be floating point \[3, 7, 6, 2\], at the 4 history steps of x and the 3 steps of the "
            r"horizon, found torch.float64 \[3, 4, 6, 2\]",
        ),
        ({"profile": GOOD["profile"][:1]}, r"profile must be .*found torch.float64 \[1, 7, 6, 2\]"),
        ({"profile": GOOD["profile"][..., :1]}, r"profile must be .*found torch.float64 \[3, 7, 6, 1\]"),
        ({"profile": GOOD["profile"].long()}, "profile must be floating point .*found torch.int64"),
        ({"profile": GOOD["profile"] * torch.nan}, "profile must be finite wherever .*False in profile_mask"),
        (
            {"profile_mask": GOOD["profile_mask"][:, 1:]},
            r"profile_mask must be bool \[3, 7, 6, 2\] like .*\[3, 6, 6, 2\]",
        ),
        ({"profile_mask": GOOD["profile_mask"].float()}, "profile_mask must be bool .*found torch.float32"),
        ({"profile_same_type": GOOD["profile_same_type"][:, :4]}, r"profile_same_type must be bool \[3, 7\].*\[3, 4\]"),
        ({"profile_same_type": GOOD["profile_same_type"].long()}, "profile_same_type must be bool .*found torch.int64"),
        ({"profile": None}, "profile must be given with profile_mask"),
        ({"profile": None, "profile_mask": None}, "profile must be given with profile_same_type"),
    ],
)
def test_wrong_profiles(change, message):
    with pytest.raises(ValueError, match=message):
        make()(**{**GOOD, **change})
