import pytest

from tsjt_pyg.training import STRATEGIES, Strategy
from tsjt_pyg.training.strategies import get_strategies, get_strategy


def test_each_strategy_uses_the_losses_its_name_says():
    plans = {name: [tuple(s.plan(step, 10)) for step in (0, 4, 5, 9)] for name, s in STRATEGIES.items()}
    assert plans["target_only"] == [(0, 1)] * 4
    assert plans["source_only"] == [(1, 0)] * 4
    assert plans["pooled"] == [(1, 1)] * 4
    assert plans["finetune"] == [(1, 0), (1, 0), (0, 1), (0, 1)]
    assert plans["tsjt_paper"] == [(0.001, 0.2)] * 4
    assert {name for name, s in STRATEGIES.items() if s.skewed} == {"tsjt", "tsjt_paper"}
    alone = {"target_only", "target_only_2x"}
    assert {name for name, s in STRATEGIES.items() if not s.uses_sources} == alone
    assert {name for name, s in STRATEGIES.items() if s.guard} == {"tsjt"}
    assert {name for name, s in STRATEGIES.items() if s.average} == {"tsjt"}
    assert {name: s.step_factor for name, s in STRATEGIES.items() if s.step_factor != 1} == {"target_only_2x": 2}
    assert plans["target_only_2x"] == plans["target_only"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source_weight": -1.0}, "weights >= 0"),
        ({"source_weight": 0.0, "target_weight": 0.0}, "not both 0"),
        ({"pretrain_share": 1.0}, r"pretrain_share in \[0, 1\)"),
        ({"step_factor": 0}, "step_factor >= 1, found 0"),
        ({"source_weight": 0.0, "skewed": True}, "both weights must be > 0"),
    ],
)
def test_settings_that_make_no_strategy_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Strategy("mine", **settings)


def test_unknown_and_repeated_names_are_refused():
    with pytest.raises(ValueError, match=r"expected one of target_only, .* found 'tjst'"):
        get_strategy("tjst")
    with pytest.raises(ValueError, match="names must be distinct"):
        get_strategies(["pooled", Strategy("pooled", source_weight=0.5)])
    with pytest.raises(ValueError, match="at least one"):
        get_strategies([])
