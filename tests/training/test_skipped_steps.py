"""Steps that are not finite change nothing, are counted, and after too many of them the city and window are named."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import pytest
import torch

from tsjt_pyg.optim import TargetSkewedOptimizer
from tsjt_pyg.training import STRATEGIES, ModelConfig, fit
from tsjt_pyg.training.batches import TrainingBatches
from tsjt_pyg.training.losses import masked_mae
from tsjt_pyg.training.run import TrainingRun
from tsjt_pyg.training.skipped_steps import blame, nan_gradient_unless_finite, step_if_finite

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
SETTINGS = {"steps": 12, "batch_size": 8, "evaluations": 4, "lr": 1e-2}


class BreaksAt(torch.nn.Module):
    """A forecaster whose forecasts are not finite in some training passes, or where a city reads ``mark``."""

    history, horizon = CONFIG.history, CONFIG.horizon

    def __init__(self, passes=(), factor=math.nan, mark=None):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.passes, self.factor, self.mark, self.count = CONFIG.build(), passes, factor, mark, 0

    def forward(self, x, edge_index, edge_weight, **known):
        forecast = self.inner(x, edge_index, edge_weight, **known)
        if self.mark is not None:
            return forecast * self.factor if (x > self.mark).any() else forecast
        if self.training:
            self.count += 1
            return forecast * self.factor if self.count in self.passes else forecast
        return forecast


@pytest.fixture(scope="module")
def task(commuters):
    visible = commuters("target", seed=1).few_shot(3).visible
    return visible, [commuters("north", num_nodes=8, seed=2), commuters("south", num_nodes=5, seed=3)]


def run_of(model, visible, sources, strategy, averaged=False, **more):
    batches = TrainingBatches(model, visible, sources, 3, 8, 0)
    return TrainingRun(
        model,
        strategy,
        20,
        lr=1e-2,
        base=torch.optim.Adam,
        max_grad_norm=5.0,
        batches=batches,
        validation=visible.windows(6, 3),
        averaged=averaged,
        **more,
    )


def what_is_learned(run):
    state, moments = run.state(), run.optimizer.state_dict()["state"]
    return copy.deepcopy({"moments": moments, **{key: state[key] for key in ("model", "average", "losses")}})


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("strategy", ["target_only", "pooled", "tsjt"])
@pytest.mark.parametrize("kind", ["source", "target"])
@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
def test_a_step_that_is_not_finite_changes_no_parameter_moment_or_average(task, strategy, kind, factor):
    visible, sources = task
    strategy = STRATEGIES[strategy]
    if kind == "source" and not strategy.uses_sources:
        pytest.skip("it has no source loss")
    model = BreaksAt()
    run = run_of(model, visible, sources if strategy.uses_sources else [], strategy, averaged=True)
    for _ in range(3):
        run.train_step()
    before = what_is_learned(run)
    second = strategy.uses_sources and kind == "target"  # of a step's two passes the source's comes first
    model.passes, model.factor = (model.count + 1 + second,), factor
    run.train_step()
    assert same(before, what_is_learned(run))
    assert (run.step, run.skipped_steps, run.skipped_in_a_row) == (4, 1, 1)
    run.train_step()
    assert not same(before, what_is_learned(run))
    assert (run.skipped_steps, run.skipped_in_a_row) == (1, 0)
    if isinstance(run.optimizer, TargetSkewedOptimizer):
        assert run.optimizer.stats()["skipped_steps"] == 1
        assert run.conflict.to_frame()["skipped"].tolist() == [False] * 3 + [True, False]


@pytest.mark.parametrize("strategy", ["target_only", "pooled", "finetune", "tsjt_paper"])
def test_skipped_steps_are_counted_and_the_model_is_finite(task, strategy, caplog):
    visible, sources = task
    model = BreaksAt(passes=(5, 6, 7))
    result = fit(model, visible, sources, strategy, **SETTINGS)
    joint = strategy in ("pooled", "tsjt_paper")
    assert result.skipped_steps == (2 if joint else 3)
    assert sum(entry["skipped_steps"] for entry in result.log) == result.skipped_steps
    assert math.isfinite(result.validation_loss)
    assert all(value.isfinite().all() for value in result.last_model.values())
    assert all(loss is None or math.isfinite(loss) for entry in result.log for loss in list(entry.values()))
    assert "were left out: they are not finite" in caplog.text
    clean = fit(BreaksAt(), visible, sources, strategy, **SETTINGS)
    assert clean.skipped_steps == 0


def test_a_step_more_or_less_does_not_change_the_others(task):
    """The steps after a skipped one are those of a run that never met it: nothing of it is left."""
    visible, _ = task
    whole, broken = (run_of(BreaksAt(passes), visible, [], STRATEGIES["target_only"]) for passes in ((), (3,)))
    for step in range(5):
        broken.train_step()
        if step == 2:
            whole.step += 1
        else:
            whole.train_step()
    assert same(what_is_learned(whole), what_is_learned(broken))


def test_too_many_in_a_row_end_in_an_error_that_names_the_source_and_the_window(task):
    visible, (north, _) = task
    late = north.readings.clone()
    late[130:] = 1e9  # the last hours: scaled, the only ones far above 1
    bad = replace(north, readings=late.masked_fill(~north.mask, 0.0))
    model = BreaksAt(mark=2.5)
    with pytest.raises(FloatingPointError) as caught:
        fit(model, visible, [replace(bad, name="broken feed")], "pooled", max_skipped=4, **{**SETTINGS, "steps": 200})
    found = re.fullmatch(
        r"training: 4 steps in a row were left out, because losses or gradients are not finite; the last, step (\d+): "
        r"of source city broken feed, window (\d+) from (\S+ \S+) to (\S+ \S+) \((\d+) of the 8 windows of its batch\)"
        r"( and target city target, .*)?; look at the readings there .* leave a bad source out \(sources, --sources\).*"
        r"lower lr \(--lr\)",
        str(caught.value),
    )
    assert found, str(caught.value)
    step, number = int(found[1]) - 1, int(found[2])
    batches = TrainingBatches(model, visible.between(0, 48), [bad], 3, 8, 0)
    city, index, _ = batches.drawn(step, source=True)
    assert number in index
    begin = bad.start + number * bad.interval
    assert found[3] == str(begin)
    assert found[4] == str(begin + 8 * bad.interval)
    x = city.scaler.transform(city.windows.x[number], city.windows.x_mask[number])
    assert (x > 2.5).any()


def test_a_target_window_is_named_too(task):
    visible, sources = task
    readings = visible.readings.clone()
    readings[20:26] = 1e9
    bad = replace(visible, readings=readings, mask=torch.ones_like(visible.mask))
    with pytest.raises(FloatingPointError, match=r"target city target, window \d+ from 2024-03-0. .* 8 windows"):
        fit(BreaksAt(mark=2.0), bad, sources, "pooled", max_skipped=1, **SETTINGS)


def test_parameters_that_diverged_are_blamed_before_any_city(task):
    visible, _ = task
    model = BreaksAt()
    torch.nn.init.constant_(next(model.inner.parameters()), math.inf)
    batches = TrainingBatches(model, visible, [], 3, 8, 0)
    assert "parameters of the model are not finite themselves" in blame(model, batches, 0, [False])


def test_where_each_window_is_finite_their_sum_is_blamed(task):
    visible, _ = task
    batches = TrainingBatches(BreaksAt(), visible, [], 3, 8, 0)
    assert "so their sum overflows: lower the strategy's weights, or lr (--lr)" in blame(
        BreaksAt(), batches, 0, [False]
    )


def test_a_validation_loss_that_is_not_finite_names_the_city(task):
    visible, _ = task
    model = BreaksAt()

    def nan_forecast(*args):
        return args[2] * math.nan if not model.training else args[2]

    model.register_forward_hook(nan_forecast)
    with pytest.raises(FloatingPointError, match=r"the validation loss of target is nan after step 0 .* lower lr"):
        fit(model, visible, [], "target_only", **SETTINGS)


def test_skipped_steps_outlive_a_break(task, tmp_path):
    visible, _ = task
    run = run_of(BreaksAt(passes=(2, 3)), visible, [], STRATEGIES["target_only"])
    for _ in range(3):
        run.train_step()
    resumed = run_of(BreaksAt(), visible, [], STRATEGIES["target_only"])
    resumed.load(copy.deepcopy(run.state()))
    assert (resumed.skipped_steps, resumed.skipped_in_a_row) == (2, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0])
def test_the_gradient_of_a_loss_says_whether_the_loss_is_finite(value):
    x = torch.tensor(3.0, requires_grad=True)
    nan_gradient_unless_finite(value + 2 * x).backward()
    assert x.grad.item() == 2.0 if math.isfinite(value) else x.grad.isnan()


def test_a_gradient_too_long_to_be_measured_is_not_stepped_along():
    x = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([x], lr=1.0)
    x.grad = torch.full((2,), 1e30)
    assert not step_if_finite(optimizer, [x], 5.0)
    assert x.tolist() == [0.0, 0.0]
    x.grad = torch.tensor([3.0, 4.0])
    assert step_if_finite(optimizer, [x], 1.0)
    assert x.tolist() == pytest.approx([-0.6, -0.8])


def test_a_batch_with_no_target_reading_has_loss_and_gradient_zero(task):
    """It teaches nothing and breaks nothing: moments fade as at any step with a zero gradient."""
    visible, _ = task
    forecast = torch.randn(4, 3, requires_grad=True)
    loss = masked_mae(forecast, torch.full((4, 3), math.nan), torch.zeros(4, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert not forecast.grad.any()

    run = run_of(BreaksAt(), visible, [], STRATEGIES["target_only"])
    for _ in range(3):
        run.train_step()
    first, second = ([s[key].clone() for s in run.optimizer.state.values()] for key in ("exp_avg", "exp_avg_sq"))
    dark = replace(visible, mask=torch.zeros_like(visible.mask), readings=torch.zeros_like(visible.readings))
    run.batches.target.windows = dark.windows(6, 3)
    run.train_step()
    assert run.skipped_steps == 0
    for now, before_1, before_2 in zip(run.optimizer.state.values(), first, second, strict=True):
        torch.testing.assert_close(now["exp_avg"], 0.9 * before_1)
        torch.testing.assert_close(now["exp_avg_sq"], 0.999 * before_2)


@pytest.mark.parametrize("strategy", ["tsjt", "pooled"])
def test_without_target_readings_in_a_batch_the_source_is_learned_from_alone(task, strategy):
    visible, sources = task
    run = run_of(BreaksAt(), visible, sources, STRATEGIES[strategy])
    dark = replace(visible, mask=torch.zeros_like(visible.mask), readings=torch.zeros_like(visible.readings))
    run.batches.target.windows = dark.windows(6, 3)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train_step()
    assert run.skipped_steps == 0
    after = run.model.state_dict()
    assert not same(before, after)
    assert all(value.isfinite().all() for value in after.values())
