"""The options of the filter: what is refused and why, what repr shows, what copies keep."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from optimizer_options import STATEFUL, equal, train, two_groups, weights
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tsjt_pyg.optim import TargetSkewedOptimizer


def mean_weights(gram: Tensor) -> Tensor:
    """A filter of one's own; at module level, so that it can be pickled."""
    return torch.full_like(gram[0], 1 / len(gram))


OWN = "is an option of the filters .'project', 'gate', 'cosine_gate', 'sign', 'vaccine'., but filter is <function mean_"


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"filter": "projekt"},
            ValueError,
            r"filter must be one of \['project', 'gate', 'cosine_gate', 'sign', 'vaccine'\] or a function of the "
            "gramian, such as a torchjd weighting, but is 'projekt'",
        ),
        ({"filter": None}, ValueError, "filter must be one of .* but is None"),
        (
            {"scope": "layer"},
            ValueError,
            r"scope must be one of \['global', 'tensor', 'group'\], but is 'layer'",
        ),
        (
            {"normal": "average"},
            ValueError,
            r"normal must be one of \['batch', 'ema', 'held_out'\], but is 'average'",
        ),
        ({"balance": -0.1}, ValueError, "balance must be between 0 and 1, but is -0.1"),
        ({"balance": 1.1}, ValueError, "balance must be between 0 and 1, but is 1.1"),
        ({"balance": math.nan}, ValueError, "balance must be between 0 and 1, but is nan"),
        ({"balance": True}, TypeError, "balance must be a number, but is True"),
        ({"balance": "1"}, TypeError, "balance must be a number, but is '1'"),
        ({"balance": None}, TypeError, "balance must be a number, but is None"),
        ({"ema_rate": 0}, ValueError, "ema_rate must be between 0 and 1 and above 0, but is 0"),
        ({"ema_rate": 1.5}, ValueError, "ema_rate must be between 0 and 1 and above 0, but is 1.5"),
        ({"ema_rate": math.nan}, ValueError, "ema_rate must be between 0 and 1 and above 0, but is nan"),
        ({"ema_rate": [0.1]}, TypeError, r"ema_rate must be a number, but is \[0.1\]"),
        ({"max_kappa": -1}, ValueError, "max_kappa must be not negative, but is -1"),
        ({"max_kappa": math.nan}, ValueError, "max_kappa must be not negative, but is nan"),
        ({"max_kappa": False}, TypeError, "max_kappa must be a number, but is False"),
        ({"lag": 0}, ValueError, "lag must be at least 1, but is 0"),
        ({"lag": -2}, ValueError, "lag must be at least 1, but is -2"),
        ({"lag": 2.0}, TypeError, "lag must be a whole number, but is 2.0"),
        ({"lag": True}, TypeError, "lag must be a whole number, but is True"),
        ({"gamma_source": {"a": -1}}, ValueError, r"gamma_source\['a'\] must be finite and not negative, but is -1"),
        ({"gamma_source": {"a": "1"}}, TypeError, r"gamma_source\['a'\] must be a number or None, but is '1'"),
        (
            {"gamma_source": {"a": 0.001, "b": 0.5}, "preset": "paper"},
            ValueError,
            r"gamma_source\['b'\]=0.5 contradicts preset='paper', which sets 0.001: leave one of them out",
        ),
        ({"gamma_source": math.inf}, ValueError, "gamma_source must be finite and not negative, but is inf"),
        ({"gamma_source": [1.0]}, TypeError, r"gamma_source must be a number or None, but is \[1.0\]"),
        *[
            (
                {"preset": "paper", name: value},
                ValueError,
                f"{name} contradicts preset='paper', which is the rule of the paper: leave one of them out",
            )
            for name, value in [
                ("filter", "gate"),
                ("filter", mean_weights),
                ("scope", "tensor"),
                ("normal", "ema"),
                ("balance", 0.5),
                ("max_kappa", 1.0),
            ]
        ],
        *[
            (
                {"max_kappa": 1.0, "filter": filter_},
                ValueError,
                f"max_kappa caps the filters 'project' and 'vaccine', but filter is {name}",
            )
            for filter_, name in [
                ("gate", "'gate'"),
                ("cosine_gate", "'cosine_gate'"),
                ("sign", "'sign'"),
                (mean_weights, "<function mean_weights"),
            ]
        ],
        *[
            ({"filter": mean_weights, name: value}, ValueError, f"{name} {OWN}")
            for name, value in [
                ("gamma_source", 1.0),
                ("gamma_source", {"a": 1.0}),
                ("gamma_target", 1.0),
                ("normal", "ema"),
                ("normal", "held_out"),
                ("balance", 0.5),
                ("lag", 2),
            ]
        ],
    ],
)
def test_refuses_wrong_and_contradicting_options_and_says_why(
    model: nn.Module, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = weights(model)
    with pytest.raises(error, match=message):
        TargetSkewedOptimizer(model.parameters(), **kwargs)
    assert equal(weights(model), before)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"balance": 0},
        {"balance": 1},
        {"ema_rate": 1},
        {"max_kappa": 0},
        {"max_kappa": math.inf},
        {"max_kappa": 1.0, "filter": "vaccine"},
        {"preset": "paper", "lag": 3, "ema_rate": 0.5, "on_nonfinite": "raise"},
        {"preset": "paper", "gamma_source": {"a": 0.001, "b": None}},
        {"filter": mean_weights, "scope": "tensor", "ema_rate": 0.5},
        {"filter": "gate", "scope": "group", "normal": "held_out", "balance": 0.5, "lag": 4},
        {"gamma_source": {}},
    ],
)
def test_options_at_their_limits_and_combinations_that_make_sense_are_accepted(
    model: nn.Module, kwargs: dict[str, Any]
) -> None:
    TargetSkewedOptimizer(model.parameters(), **kwargs)


def test_gammas_by_name_may_fall_back_on_the_default_or_the_preset(model: nn.Module) -> None:
    given = {"a": 0.5, "b": None}
    assert TargetSkewedOptimizer(model.parameters(), gamma_source=given).gamma_source == {"a": 0.5, "b": 1.0}
    of_preset = TargetSkewedOptimizer(model.parameters(), gamma_source={"b": None}, preset="paper")
    assert of_preset.gamma_source == {"b": 0.001}
    given["a"] = 7.0
    assert TargetSkewedOptimizer(model.parameters(), gamma_source=given).gamma_source == {"a": 7.0, "b": 1.0}


def test_the_dictionary_of_gammas_is_the_optimizers_own(model: nn.Module) -> None:
    given = {"a": 0.5}
    optimizer = TargetSkewedOptimizer(model.parameters(), gamma_source=given)
    given["a"] = 7.0
    assert optimizer.gamma_source == {"a": 0.5}


@pytest.mark.parametrize(
    ("kwargs", "shown"),
    [
        ({}, ["gamma_source: 1.0", "gamma_target: 1.0"]),
        ({"preset": "paper"}, ["gamma_source: 0.001", "gamma_target: 0.2"]),
        ({"gamma_source": {"a": 0.5}}, ["gamma_source: {'a': 0.5}", "gamma_target: 1.0"]),
        ({"filter": "gate"}, ["gamma_source: 1.0", "gamma_target: 1.0", "filter: gate"]),
        (
            {"scope": "tensor", "normal": "ema", "ema_rate": 0.5, "lag": 3, "balance": 0.25, "max_kappa": 2.0},
            [
                "gamma_source: 1.0",
                "gamma_target: 1.0",
                "scope: tensor",
                "normal: ema",
                "balance: 0.25",
                "max_kappa: 2.0",
                "ema_rate: 0.5",
                "lag: 3",
            ],
        ),
    ],
)
def test_repr_shows_the_gammas_and_the_options_that_were_changed(
    model: nn.Module, kwargs: dict[str, Any], shown: list[str]
) -> None:
    lines = repr(TargetSkewedOptimizer(model.parameters(), SGD, lr=0.5, **kwargs)).splitlines()
    assert lines[:2] == ["TargetSkewedOptimizer (", "base: SGD"]
    assert lines[2 : 2 + len(shown)] == shown
    assert lines[2 + len(shown)] == "Parameter Group 0"
    assert "    lr: 0.5" in lines
    assert lines[-1] == ")"


def test_repr_shows_a_filter_of_ones_own(model: nn.Module) -> None:
    assert "filter: <function mean_weights" in repr(TargetSkewedOptimizer(model.parameters(), filter=mean_weights))


@pytest.mark.parametrize("name", [*STATEFUL, "own"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_keep_the_options_and_go_on_alike(model: nn.Module, name: str, how: str) -> None:
    kwargs, sources = STATEFUL.get(name, ({"filter": mean_weights, "scope": "group"}, ("a", "b")))
    ours = TargetSkewedOptimizer(two_groups(model), Adam, on_nonfinite="raise", **kwargs)
    train(model, ours, range(3), sources)
    pair = (model, ours)
    other_model, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert other.skew_filter == ours.skew_filter
    assert other.on_nonfinite == "raise"
    assert repr(other) == repr(ours)
    train(model, ours, range(3, 6), sources)
    train(other_model, other, range(3, 6), sources)
    assert equal(weights(other_model), weights(model))
    assert other.stats(per="scope") == ours.stats(per="scope")


def test_options_cannot_be_changed_behind_the_optimizers_back(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters())
    with pytest.raises(AttributeError):
        optimizer.skew_filter.lag = 3
    with pytest.raises(AttributeError):
        optimizer.gamma_target = 0.5
