"""The harness for evidence: rivals train, spoiled sources are spoiled as said, and records can be gone on with."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsjt_pyg.training import ModelConfig, fit
from tsjt_pyg.training.run import TrainingRun

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
FITTING = {"steps": 12, "batch_size": 8, "evaluations": 2, "lr": 1e-2}
RIVALS = [
    "pooled, averaged",
    "pooled .3:1",
    "pooled .1:1",
    "by size 2x",
    "finetune 2x",
    "finetune 2x, lr .3",
    "finetune 2x, lr .1",
    "finetune 2x, head",
    "reptile 2x",
    "domain-adversarial",
    "PCGrad",
    "GradVac",
    "CAGrad",
    "UPGrad",
    "IMTL-G",
]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return {name: importlib.import_module(name) for name in ("poisons", "rivals")}


@pytest.fixture
def evidence(modules):
    return importlib.import_module("evidence")


@pytest.fixture
def strategies(modules):
    return {strategy.name: strategy for strategy in modules["rivals"].RIVALS}


@pytest.fixture(scope="module")
def task(commuters):
    visible = commuters("target", seed=1).few_shot(3).visible
    return visible, [commuters("north", num_nodes=8, seed=2), commuters("south", days=4, num_nodes=5, seed=3)]


def new_model():
    torch.manual_seed(0)
    return CONFIG.build()


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def states_of(task, strategy, **change):
    """The result and the parameters before the first and after every step."""
    model = new_model()
    states = [copy_of(model)]
    result = fit(model, *task, strategy, progress=lambda *_: states.append(copy_of(model)), **{**FITTING, **change})
    return result, states


def moved(one, other):
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_trains(task, strategies, name):
    assert list(strategies) == RIVALS
    if name in RIVALS[-5:]:
        pytest.importorskip("torchjd")
    if name == "CAGrad":
        pytest.importorskip("cvxpy", reason="torchjd's CAGrad needs torchjd[cagrad]")
    result, states = states_of(task, strategies[name])
    assert len(states) == FITTING["steps"] * (2 if "2x" in name else 1) + 1
    assert moved(states[0], states[-1])
    assert all(value.isfinite().all() for value in states[-1].values())
    assert math.isfinite(result.validation_loss)
    assert bool(result.stats) == (name in RIVALS[-5:])


def test_the_head_alone_moves_after_the_pretraining(task, strategies):
    _, states = states_of(task, strategies["finetune 2x, head"])
    assert any(not name.startswith("head.") for name in moved(states[0], states[12]))
    after = moved(states[12], states[24])
    assert after
    assert all(name.startswith("head.") for name in after)


@pytest.mark.parametrize(("name", "factor"), [("finetune 2x, lr .3", 0.3), ("finetune 2x, lr .1", 0.1)])
def test_fine_tuning_has_a_smaller_learning_rate(task, strategies, name, factor):
    small, plain = (states_of(task, strategies[of])[1] for of in (name, "finetune 2x"))
    assert not moved(small[12], plain[12])
    for parameter in new_model().state_dict():
        step = (plain[13][parameter] - plain[12][parameter]).double()
        torch.testing.assert_close(
            (small[13][parameter] - small[12][parameter]).double(), factor * step, rtol=1e-2, atol=2e-6
        )


def test_reptile_moves_by_its_rate_of_the_way(task, strategies, monkeypatch):
    ends, original = [], TrainingRun.train_step

    def spy(self):
        original(self)
        ends.append(copy_of(self.model))

    monkeypatch.setattr(TrainingRun, "train_step", spy)
    _, states = states_of(task, strategies["reptile 2x"], steps=12)  # 12 on the sources, in tasks of 5, 5 and 2
    for first, last in ((0, 5), (5, 10), (10, 12)):
        for name, before in states[first].items():
            torch.testing.assert_close(states[last][name], before + 0.5 * (ends[last - 1][name] - before))
    for step in (3, 8, 11, 13, 20, 24):
        assert not moved(states[step], ends[step - 1])


def test_by_size_draws_a_city_as_often_as_its_share_of_the_windows(task, strategies, modules):
    seen = []
    original = modules["rivals"]._ProportionalRun.plan

    class Run(modules["rivals"]._ProportionalRun):
        def plan(self):
            seen.append(tuple(original(self)))
            return super().plan()

    class Strategy(modules["rivals"].Proportional):
        def run_type(self):
            return Run

    fit(new_model(), *task, Strategy("by size"), **{**FITTING, "steps": 300, "batch_size": 1, "evaluations": 1})
    assert set(seen) == {(0.0, 1.0), (1.0, 0.0)}
    sources, target = (144 - 8) + (96 - 8), 48 - 8
    share = sources / (sources + target)
    assert sum(source for source, _ in seen) / 300 == pytest.approx(share, abs=0.08)


def test_states_are_moved_to_where_the_discriminator_is_wrong(task, modules, monkeypatch):
    """After a first step that nobody can blame: the adversary alone, no forecast."""
    losses = []

    class Run(modules["rivals"]._AdversarialRun):
        def loss(self, source):
            found = super().loss(source)
            forecast = TrainingRun.loss(self, source)
            losses.append((found - forecast).item())
            return found - forecast  # what is left is the discriminator's loss, with its gradient reversed

    class Strategy(modules["rivals"].DomainAdversarial):
        def run_type(self):
            return Run

    monkeypatch.setattr(modules["rivals"], "Linear", _Frozen)
    fit(new_model(), *task, Strategy("adversary", adversary=1.0), **{**FITTING, "steps": 40})
    assert sum(losses[-10:]) > sum(losses[:10])


class _Frozen(torch.nn.Linear):
    """A discriminator that cannot follow."""

    def __init__(self, *size):
        super().__init__(*size)
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("reptile 2x", 8),
        ("domain-adversarial", 8),
        ("finetune 2x, lr .1", 8),
        ("finetune 2x, head", 17),
        ("GradVac", 8),
    ],
)
def test_a_rival_that_was_stopped_goes_on_to_the_same_bits(task, strategies, name, step, tmp_path):
    if name == "GradVac":
        pytest.importorskip("torchjd")
    whole, _ = states_of(task, strategies[name])

    def stop(done, total):
        if done == step:
            raise KeyboardInterrupt

    folder = {"output": tmp_path, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), *task, strategies[name], progress=stop, **folder, **FITTING)
    strategy = replace(strategies[name])  # another process has another one
    resumed = fit(new_model(), *task, strategy, resume=True, **folder, **FITTING)
    assert not moved(whole.last_model, resumed.last_model)
    assert whole.log == resumed.log


@pytest.mark.parametrize(
    "name", ["shuffled time", "reversed days", "noise", "wrong units", "wrong clock", "drifting level"]
)
def test_a_spoiled_city_keeps_its_form_and_is_spoiled_the_same_way_again(commuters, modules, name):
    city = commuters(num_nodes=40, missing=0.2)
    spoil = modules["poisons"].POISONS[name]
    spoiled, before = spoil(city), city.readings.clone()
    assert torch.equal(city.readings, before)
    assert not torch.equal(spoiled.readings, city.readings)
    assert spoiled.readings.shape == city.readings.shape
    for about in ("node_ids", "channels", "units", "start", "interval", "name"):
        assert getattr(spoiled, about) == getattr(city, about)
    assert int(spoiled.mask.sum()) == int(city.mask.sum())
    assert (spoiled.readings[~spoiled.mask] == 0).all()
    assert spoiled.fingerprint() == spoil(city).fingerprint()


def test_spoiled_cities_are_what_their_names_say(commuters, modules):
    city = commuters(days=4, num_nodes=40, missing=0.2)
    city = city.between(0, 3 * 24 + 5)
    poisons = modules["poisons"]
    shuffled = poisons.shuffled_time(city)
    pairs = torch.cat([shuffled.readings, shuffled.mask], dim=2).flatten(1)
    assert sorted(map(tuple, pairs.tolist())) == sorted(
        map(tuple, torch.cat([city.readings, city.mask], 2).flatten(1).tolist())
    )
    backwards = poisons.reversed_days(city)
    for day in range(3):
        rows = slice(24 * day, 24 * day + 24)
        assert torch.equal(backwards.readings[rows], city.readings[rows].flip(0))
        assert torch.equal(backwards.mask[rows], city.mask[rows].flip(0))
    assert torch.equal(backwards.readings[72:], city.readings[72:])
    noise = poisons.noise(city)
    assert torch.equal(noise.mask, city.mask)
    for statistic in (torch.mean, torch.std):
        of_noise, of_city = (
            torch.stack([statistic(c.readings[c.mask[:, n, 0], n, 0]) for n in range(40)]) for c in (noise, city)
        )
        torch.testing.assert_close(of_noise, of_city, rtol=0.5, atol=4.0)
    factors = poisons.wrong_units(city).readings.sum(dim=(0, 2)) / city.readings.sum(dim=(0, 2))
    other = (factors - 1.609344).abs() < 1e-3
    assert 0 < int(other.sum()) < 20
    torch.testing.assert_close(factors[~other], torch.ones(int((~other).sum())))
    late = poisons.wrong_clock(city)
    assert torch.equal(late.readings[6:], city.readings[:-6])
    assert torch.equal(late.mask[6:], city.mask[:-6])
    offsets = (poisons.drifting_level(city).readings - city.readings)[city.mask[..., 0]]
    days = (torch.arange(city.num_steps) // 24)[:, None].expand(-1, 40)[city.mask[..., 0]]
    levels = torch.stack([offsets[days == day].mean() for day in range(4)])
    torch.testing.assert_close(offsets[:, 0], levels[days], rtol=1e-4, atol=1e-4)
    assert 0.2 < float(levels.std() / city.readings[city.mask].std()) < 3


def test_a_quick_plan_is_a_part_of_the_whole(evidence):
    whole, quick = ({run.key: run for run in evidence.plan(quick)} for quick in (False, True))
    assert set(quick) < set(whole)
    assert len(whole) == len(evidence.plan(False))
    assert {run.strategy for run in quick.values()} == {"naive", *evidence.CORE}
    assert {run.poison for run in quick.values()} == {"", "shuffled time"}
    assert {(run.task, run.days) for run in whole.values()} == set(evidence.STARTS)
    for run in whole.values():
        assert run.start == evidence.STARTS[run.task, run.days][run.seed]
        assert run.strategy == "naive" or evidence.strategy_of(run.strategy).name == run.strategy
        assert run.poison in {"", *evidence.POISONS, "another quantity", "one of two", evidence.UNTIL_NOW}
        assert run.poison != evidence.UNTIL_NOW or run.task in ("taxi-dc", "bike-dc")


def test_every_strategy_has_the_same_network_unless_it_says_so(evidence):
    usual = evidence.network_of("tsjt", 6)
    assert all(evidence.network_of(name, 6) == usual for name in (*evidence.CORE, *RIVALS))
    assert evidence.network_of(evidence.PAPER_PROMPTS, 6) == replace(usual, num_prompts=16)
    for name in (evidence.PLAIN, evidence.PLAIN_2X):
        plain = evidence.network_of(name, 6)()
        assert (plain.center, plain.profile, plain.horizon) == (False, False, 6)
    assert evidence.strategy_of(evidence.PLAIN_2X).step_factor == 2


def test_one_of_two_sources_is_spoiled(evidence, task):
    made = type("Task", (), {"target": task[0], "sources": task[1]})
    good, bad = evidence.poisoned(made, "one of two", None)
    assert good is task[1][0]
    assert bad.name == "south (shuffled time)"
    assert evidence.poisoned(made, "", None) == task[1]
    assert [city.name for city in evidence.poisoned(made, "noise", None)] == ["north (noise)", "south (noise)"]


def test_records_are_read_without_a_last_line_that_was_cut_and_of_the_same_settings_only(evidence, tmp_path):
    file, settings = tmp_path / "records.jsonl", evidence.settings_of(evidence.TRAINING)
    assert evidence.read_records(file, settings) == []
    lines = [{"settings": settings}, {"key": "a", "runs": []}, {"key": "b", "runs": []}]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(whole)
    assert evidence.read_records(file, settings) == lines[1:]
    file.write_text(whole + '{"key": "c", "ru')
    assert evidence.read_records(file, settings) == lines[1:]
    evidence._drop_cut_line(file)
    assert file.read_text() == whole
    evidence._drop_cut_line(file)
    assert file.read_text() == whole
    with pytest.raises(ValueError, match="give another --output"):
        evidence.read_records(file, evidence.settings_of({**evidence.TRAINING, "steps": 40}))
    assert evidence.read_records(file) == lines[1:]


def test_a_run_gives_a_record_that_json_can_hold(evidence, commuters, monkeypatch):
    made = type("Task", (), {"target": commuters("target", seed=1), "sources": [commuters("north", seed=2)]})
    monkeypatch.setattr(evidence, "cities", lambda task, root: made)
    monkeypatch.setattr(evidence, "NETWORK", {"cell": "GRU", "hidden_channels": 4})
    monkeypatch.setattr(evidence, "VALIDATION_DAYS", {3: 1.0})
    training = {"steps": 3, "batch_size": 4, "lr": 1e-2}
    for strategy, names in (("tsjt", ["tsjt"]), ("naive", list(evidence.NAIVE_FITS))):
        run = evidence.Run("taxi-dc", 3, 1, 2, strategy)
        record = evidence.carry_out(run, None, training)
        assert json.loads(json.dumps(record)) == record
        assert record["key"] == run.key == f"taxi-dc|3|1|2|{strategy}|"
        assert [found["name"] for found in record["runs"]] == names
        assert record["runs"][0]["seed"] == (None if strategy == "naive" else 2)


def test_sources_may_end_with_the_visible_days(evidence, commuters, monkeypatch):
    target = commuters("target", seed=1)
    made = type("Task", (), {"target": target, "sources": [commuters("north", seed=2)]})
    shown = []

    def compare(target, sources, *args, **settings):
        shown.extend([target, *sources])
        raise RuntimeError("seen")

    monkeypatch.setattr(evidence, "cities", lambda task, root: made)
    monkeypatch.setattr(evidence, "compare", compare)
    evidence.carry_out(evidence.Run("taxi-dc", 1, 2, 0, "tsjt", evidence.UNTIL_NOW), None, {"steps": 1})
    assert shown[0].start == target.start + 48 * target.interval
    assert shown[1].start == target.start
    assert shown[1].num_steps == 3 * 24  # to the end of the one visible day
