"""The guard takes sources that have something to teach and leaves out others, by the visible days alone."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsjt_pyg.training import STRATEGIES, ModelConfig, fit, guard
from tsjt_pyg.training.guard import SourceVerdict, guard_steps, judge_sources

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
JUDGING = {"steps": 60, "batch_size": 16, "lr": 1e-2, "seed": 0, "base": torch.optim.Adam, "max_grad_norm": 5.0}
FITTING = {"steps": 12, "batch_size": 8, "evaluations": 3, "lr": 1e-2}


def new_model(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return config.build()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def judge(visible, sources, config=CONFIG, **change):
    return judge_sources(new_model(config), visible, sources, **{**JUDGING, "most": 3, **change})


@pytest.fixture
def poisons(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("poisons")


@pytest.fixture(scope="module")
def target(commuters):
    return commuters("target", days=8, seed=1)


@pytest.fixture(scope="module")
def good(commuters):
    return commuters("north", days=8, num_nodes=8, seed=2)


@pytest.mark.parametrize("days", [1, 3])
@pytest.mark.parametrize("profile", [True, False])
def test_a_good_source_is_taken_and_spoiled_ones_are_not(target, good, poisons, days, profile):
    bad = [replace(poisons.POISONS[name](good), name=name) for name in ("shuffled time", "noise")]
    visible = target.few_shot(days).visible
    verdicts = judge(visible, [good, *bad], replace(CONFIG, profile=profile), most=days)
    assert [verdict.name for verdict in verdicts] == ["north", "shuffled time", "noise"]
    assert [verdict.weight for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[0].error < 1
    assert verdicts[0].persistence > 0.9
    assert all(verdict.persistence < 0.5 for verdict in verdicts[1:])


def test_sources_that_are_taken_share_the_turns_equally(target, good, poisons, commuters):
    visible = target.few_shot(3).visible
    sources = [good, poisons.noise(good), commuters("south", seed=3)]
    assert [verdict.weight for verdict in judge(visible, sources)] == [0.5, 0.0, 0.5]


def test_a_source_that_teaches_the_wrong_thing_fails_by_its_error(target, good):
    falling = replace(good, readings=(100 * torch.rand(1, 8, 1) + 3.0 * torch.arange(good.num_steps)[:, None, None]))
    falling = replace(
        falling, mask=torch.ones_like(good.mask), readings=falling.readings.expand_as(good.readings).clone()
    )
    (verdict,) = judge(target.few_shot(3).visible, [falling])
    assert verdict.persistence > 0.9
    assert verdict.error > 1
    assert verdict.weight == 0


def test_a_source_that_changes_faster_than_the_target_fails_at_a_later_step_of_the_horizon(target):
    def wave(period):
        phase = torch.rand(target.num_nodes, 1, generator=torch.Generator().manual_seed(0))
        time = torch.arange(target.num_steps)[:, None, None]
        return replace(target, name=f"{period}", readings=50 + 20 * torch.sin(2 * torch.pi * (time / period + phase)))

    verdicts = judge(wave(40).few_shot(1).visible, [wave(30), wave(12)])
    slower, faster = (verdict.persistence for verdict in verdicts)
    assert slower == pytest.approx(math.cos(6 * math.pi / 30) / math.cos(6 * math.pi / 40), abs=0.05)
    assert faster == pytest.approx(0.0, abs=0.05)  # a quarter of a period later
    assert math.cos(2 * math.pi / 12) > 0.8  # and yet much alike from one step to the next
    assert verdicts[1].weight == 0


@pytest.mark.parametrize(("days", "weight"), [(1, 1.0), (3, 0.0)])
def test_a_single_visible_day_leaves_more_margin(target, good, monkeypatch, days, weight):
    visible, naive = target.few_shot(days).visible, guard._naive_error
    (verdict,) = judge(visible, [good])
    monkeypatch.setattr(guard, "_naive_error", lambda *args: naive(*args) * verdict.error / 1.02)
    (verdict,) = judge(visible, [good])
    assert verdict.error == pytest.approx(1.02)
    assert verdict.weight == weight


def test_judging_changes_neither_the_model_nor_the_random_state(target, good):
    model = new_model().eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    judge_sources(model, target.few_shot(3).visible, [good], most=3, **JUDGING)
    assert same(before, model.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_arguments_give_the_same_verdicts_whatever_other_sources_there_are(target, good, commuters):
    visible, other = target.few_shot(3).visible, commuters("south", seed=3)
    both = judge(visible, [good, other])
    assert both == judge(visible, [good, other])
    assert [(v.error, v.persistence) for v in both] == [
        (v.error, v.persistence) for v in judge(visible, [other, good])[::-1]
    ]


def test_the_test_period_cannot_change_a_verdict(target, good, poisons):
    sources = [good, poisons.shuffled_time(good)]
    readings = target.readings.clone()
    readings[3 * 24 :] = 1e3 * torch.randn_like(readings[3 * 24 :])
    noisy = replace(target, readings=readings.masked_fill(~target.mask, 0.0))
    assert judge(target.few_shot(3).visible, sources) == judge(noisy.few_shot(3).visible, sources)


def test_a_city_that_never_changes_can_be_taught_nothing(target, good):
    visible = target.few_shot(3).visible
    still = replace(visible, readings=torch.full_like(visible.readings, 5.0), mask=torch.ones_like(visible.mask))
    (verdict,) = judge(still, [good])
    assert verdict.weight == 0
    assert verdict.error == float("inf")


def test_without_a_source_left_it_is_the_training_of_the_target_alone_with_twice_the_steps(target, good, poisons):
    visible = target.few_shot(3).visible
    bad = [poisons.shuffled_time(good), replace(poisons.noise(good), name="noise")]
    guarded = fit(new_model(), visible, bad, "tsjt", **FITTING)
    alone = fit(new_model(), visible, [], "target_only_2x", **FITTING)
    assert [verdict.weight for verdict in guarded.verdicts] == [0.0, 0.0]
    assert same(guarded.last_model, alone.last_model)
    assert same(guarded.model.state_dict(), alone.model.state_dict())
    assert guarded.log == alone.log
    assert guarded.log[-1]["step"] == 2 * FITTING["steps"]
    assert (guarded.stats, guarded.conflict) == ({}, None)
    assert 0 < guarded.guard_seconds < guarded.seconds
    assert alone.guard_seconds == 0


def test_the_mean_of_the_later_half_of_the_parameters_is_judged(target, good, monkeypatch):
    seen, judged = [], []
    clip, forecast = torch.nn.utils.clip_grad_norm_, guard.forecast_windows

    def remember(parameters, most):  # called before every step
        parameters = list(parameters)
        seen.append([parameter.detach().double() for parameter in parameters])
        return clip(parameters, most)

    def look(model, *arguments, **options):
        judged.extend(parameter.detach().double() for parameter in model.parameters())
        return forecast(model, *arguments, **options)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", remember)
    monkeypatch.setattr(guard, "forecast_windows", look)
    judge(target.few_shot(3).visible, [good], steps=8)
    steps_5_to_7 = [torch.stack(values).sum(dim=0) for values in zip(*seen[5:], strict=True)]
    one_of_four = [(4 * mean - sums) for mean, sums in zip(judged, steps_5_to_7, strict=True)]
    assert len(seen) == 8
    assert len(one_of_four) == len(seen[0]) > 0
    # What is left of four times the mean is the parameters after the last step: close to those before it.
    for last, before, earlier in zip(one_of_four, seen[-1], seen[-2], strict=True):
        step = (before - earlier).abs().max()
        assert (last - before).abs().max() < 3 * step + 1e-4


def test_who_learned_from_a_single_day_alone_is_shown_no_profile(target, good):
    one, three = (target.few_shot(days).visible for days in (1, 3))
    settings = {**FITTING, "validation_days": 0.25}
    assert fit(new_model(), one, [], "target_only", **settings).support is None
    assert fit(new_model(), one, [good], "pooled", **settings).support is not None
    assert fit(new_model(), three, [], "target_only", **settings).support is not None


def test_who_never_saw_a_time_of_day_twice_is_shown_no_profile(target, good):
    """A day from noon to noon is of two dates, and no time of day comes twice."""
    settings = {**FITTING, "validation_days": 0.25}
    noon = target.between(12, 36)
    assert fit(new_model(), noon, [], "target_only", **settings).support is None
    day, two = good.between(12, 36), good.between(12, 60)
    assert fit(new_model(), noon, [day], "pooled", **settings).support is None
    assert fit(new_model(), noon, [two], "pooled", **settings).support is not None
    assert fit(new_model(), target.between(12, 48), [], "target_only", **settings).support is not None


def test_a_source_without_readings_is_named(target, good):
    empty = replace(good, name="south", mask=torch.zeros_like(good.mask), readings=torch.zeros_like(good.readings))
    with pytest.raises(ValueError, match="south: readings: channel 0 has no observed entry"):
        fit(new_model(), target.few_shot(3).visible, [good, empty], "pooled", **FITTING)


def test_every_channel_of_a_source_is_judged(target, good, poisons):
    def two(city, second):
        both = {name: torch.cat([getattr(city, name), getattr(second, name)], 2) for name in ("readings", "mask")}
        both["readings"][..., 1] *= 1e-3  # small numbers, which count as much
        return replace(city, **both, channels=("speed", "density"), units=("km/h", "1/m"))

    visible, config = two(target, target).few_shot(3).visible, replace(CONFIG, channels=2)
    sources = [two(good, good), replace(two(good, poisons.noise(good)), name="half noise")]
    verdicts = judge(visible, sources, config)
    assert [verdict.weight for verdict in verdicts] == [1.0, 0.0]
    assert verdicts[1].persistence < 0.5
    assert verdicts[1].error > 1.1 * verdicts[0].error
    (alone,) = judge(target.few_shot(3).visible, [good])
    thousandfold = replace(target, readings=1000 * target.readings).few_shot(3).visible
    (scaled,) = judge(thousandfold, [replace(good, readings=1000 * good.readings)])
    assert scaled.error == pytest.approx(alone.error, rel=1e-3)


def test_a_poisoned_source_beside_a_good_one_changes_nothing(target, good, poisons):
    visible = target.few_shot(3).visible
    both = fit(new_model(), visible, [good, poisons.noise(good)], "tsjt", **FITTING)
    alone = fit(new_model(), visible, [good], "tsjt", **FITTING)
    assert [verdict.weight for verdict in both.verdicts] == [1.0, 0.0]
    assert same(both.model.state_dict(), alone.model.state_dict())


def test_a_run_without_a_source_left_resumes_to_the_same_bits(target, good, poisons, tmp_path):
    visible, bad = target.few_shot(3).visible, [poisons.noise(good)]
    whole = fit(new_model(), visible, bad, "tsjt", **FITTING)

    def stop(done, total):
        assert total == 2 * FITTING["steps"]
        if done == 17:
            raise KeyboardInterrupt

    folder = {"output": tmp_path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), visible, bad, "tsjt", progress=stop, **folder, **FITTING)
    resumed = fit(new_model(seed=9), visible, bad, "tsjt", resume=True, **folder, **FITTING)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert (whole.log, whole.verdicts) == (resumed.log, resumed.verdicts)
    assert resumed.guard_seconds == 0


def test_a_strategy_without_a_guard_judges_nothing(target, good, poisons):
    strategy = replace(STRATEGIES["tsjt"], name="mine", guard=False)
    result = fit(new_model(), target.few_shot(3).visible, [poisons.noise(good)], strategy, **FITTING)
    assert result.verdicts == []
    assert len(result.conflict) == FITTING["steps"]


@pytest.mark.parametrize(
    ("steps", "sources", "expected"),
    [(1, 1, 20), (83, 1, 20), (200, 1, 44), (400, 2, 44), (400, 1, 88), (10_000, 3, 100)],
)
def test_judging_takes_a_share_of_the_training_within_bounds(steps, sources, expected):
    assert guard_steps(steps, sources) == expected


@pytest.mark.parametrize("profile", [True, False])
def test_the_average_is_the_running_average_of_the_parameters_after_every_step(target, good, profile):
    strategy = replace(STRATEGIES["pooled"], name="averaged", average=True)
    model = new_model(replace(CONFIG, profile=profile))
    average, seen = {k: v.double().clone() for k, v in model.state_dict().items()}, []

    def progress(done, total):
        rate = max(0.02, 9 / (done + 9))
        for name, value in model.state_dict().items():
            average[name] += rate * (value.double() - average[name])
        seen.append({k: v.clone() for k, v in model.state_dict().items()})

    result = fit(
        model, target.few_shot(3).visible, [good], strategy, progress=progress, **{**FITTING, "steps": 500 // 25}
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-4, atol=1e-5)
    assert result.best_step == result.log[-1]["step"] == 20
    assert result.validation_loss == result.log[-1]["validation_loss"]
    assert same(result.last_model, seen[-1])
    assert not same(result.last_model, model.state_dict())
    plain = fit(
        new_model(replace(CONFIG, profile=profile)),
        target.few_shot(3).visible,
        [good],
        "pooled",
        **{**FITTING, "steps": 20},
    )
    assert same(plain.last_model, result.last_model)  # averaging looks on


def test_target_only_2x_takes_twice_the_steps(target):
    seen = []
    visible = target.few_shot(3).visible
    fit(new_model(), visible, [], "target_only_2x", progress=lambda *done: seen.append(done), **FITTING)
    assert seen == [(step, 24) for step in range(1, 25)]
    twice = fit(new_model(), visible, [], "target_only", **{**FITTING, "steps": 24})
    once = fit(new_model(), visible, [], "target_only_2x", **FITTING)
    assert same(twice.last_model, once.last_model)
    single = fit(new_model(), visible, [], "target_only", **FITTING)
    assert once.log[: len(single.log)] == single.log  # whatever the shorter one can choose, the longer one can


def test_the_visible_days_are_kept_for_models_that_take_a_profile(target, good):
    visible = target.few_shot(3).visible
    with_profile, without = (
        fit(new_model(replace(CONFIG, profile=profile)), visible, [good], "pooled", **FITTING)
        for profile in (True, False)
    )
    assert with_profile.support.support is visible
    assert without.support is None


def test_a_source_as_short_as_the_target_is_left_out(target, good):
    visible = target.few_shot(3).visible
    short, long = (replace(good.between(0, 24 * days + 8), name=f"{days} days") for days in (4, 5))
    verdicts = judge(visible, [short, long])
    assert [(verdict.name, verdict.windows, verdict.weight) for verdict in verdicts] == [
        ("4 days", 96, 0.0),
        ("5 days", 120, 1.0),
    ]
    assert verdicts[0].error < 1
    assert str(verdicts[0]).endswith(", 96 windows of at least 100)")
    assert "windows" not in str(verdicts[1])


def test_a_verdict_can_be_written_down():
    verdict = SourceVerdict("north", 0.5, 1.0, 1.0)
    assert SourceVerdict(**verdict.as_dict()) == verdict
    assert SourceVerdict("north", float("inf"), 1.0, 0.0).as_dict()["error"] is None
