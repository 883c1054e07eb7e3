import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy import stats

from tsjt_pyg.evaluation import compare
from tsjt_pyg.evaluation.metrics import Errors
from tsjt_pyg.evaluation.naive import NAIVE_FITS
from tsjt_pyg.evaluation.table import Comparison, RunRecord
from tsjt_pyg.training import STRATEGIES, ModelConfig
from tsjt_pyg.training.guard import SourceVerdict

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=4)
SETTINGS = {"model": CONFIG, "steps": 10, "batch_size": 8, "lr": 1e-2, "seeds": 2, "verbose": False}
NAIVE = ["last value", "historical average", "last value and profile", "linear per node"]
FILES = {"comparison.json", "comparison.csv", "comparison.png"}


@pytest.fixture(scope="module")
def task(commuters):
    return commuters("target", seed=1), [commuters("north", num_nodes=8, seed=2), commuters("south", seed=3)]


@pytest.fixture(scope="module")
def comparison(task):
    return compare(*task, **SETTINGS)


def without_time(comparison):
    return [
        {k: v for k, v in run.items() if k not in ("seconds", "guard_seconds")} for run in comparison.to_dict()["runs"]
    ]


def test_the_table_holds_all_naive_forecasts_and_strategies(comparison):
    expected = [*NAIVE, "target_only", "target_only_2x", "source_only", "pooled", "finetune", "tsjt_paper", "tsjt"]
    assert comparison.names == expected
    frame = comparison.to_frame()
    assert frame["name"].tolist() == expected
    assert frame["runs"].tolist() == [1] * 4 + [2] * 7
    for minutes in (60, 120, 240):
        for metric in ("mae", "rmse", "mape"):
            assert frame[f"{metric}_{minutes}min"].gt(0).all()
    assert frame.loc[4:, "mae_std"].gt(0).all()


def test_the_guard_is_in_the_record_and_leaves_these_sources_in(comparison):
    for run in comparison.runs("tsjt"):
        assert [(found["name"], found["weight"]) for found in run.sources] == [("north", 0.5), ("south", 0.5)]
        assert 0 < run.guard_seconds < run.seconds
        assert run.best_step == SETTINGS["steps"]
        assert run.last != run.errors
    assert all(run.sources == [] for run in comparison.runs("pooled"))


def test_a_verdict_without_a_finite_error_can_be_saved(task, tmp_path, monkeypatch):
    verdicts = [SourceVerdict("north", math.inf, 1.0, 0.0), SourceVerdict("south", math.nan, 1.0, 0.0)]
    monkeypatch.setattr("tsjt_pyg.training.trainer.judge_sources", lambda *_, **__: verdicts)
    settings = {**SETTINGS, "steps": 2, "seeds": 1}
    found = compare(*task, strategies=["tsjt"], naive=["last value"], output=tmp_path, **settings)
    assert [source["error"] for source in found.runs("tsjt")[0].sources] == [None, None]
    assert Comparison.load(tmp_path) == found


def test_further_naive_forecasts_stand_in_the_order_asked_for(task):
    names = ["global linear", "last value", "gradient boosting"]
    found = compare(*task, strategies=["target_only"], naive=names, **{**SETTINGS, "steps": 1, "seeds": 1})
    assert found.names == [*names, "target_only"]
    assert list(NAIVE_FITS)[:4] == NAIVE
    assert list(NAIVE_FITS)[4:] == ["global linear", "gradient boosting"]


def test_the_same_seeds_give_the_same_table_whatever_runs_beside_it(task, comparison):
    again = compare(*task, **SETTINGS)
    assert without_time(again) == without_time(comparison)
    alone = compare(*task, strategies=["tsjt"], **{**SETTINGS, "seeds": [1]})
    assert without_time(alone)[-1] == next(
        run for run in without_time(comparison) if run["name"] == "tsjt" and run["seed"] == 1
    )


@pytest.mark.slow
def test_runs_in_processes_of_their_own_give_the_same_table(task, comparison):
    assert without_time(compare(*task, **SETTINGS, jobs=2)) == without_time(comparison)


def test_a_comparison_leaves_the_random_state_and_threads_as_they_were(task):
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    compare(*task, strategies=["target_only"], **SETTINGS)
    assert torch.equal(before, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_no_leak_the_test_period_changes_errors_only(task, comparison):
    """Noise instead of the test period: scaler, parameters and chosen checkpoint stay the same to the last bit."""
    target, sources = task
    border = 3 * target.steps_per_day
    readings, mask = target.readings.clone(), target.mask.clone()
    readings[border:] = 1e3 * torch.randn_like(readings[border:])
    mask[border:] = torch.rand(mask[border:].shape) < 0.5
    readings = readings.masked_fill(~mask, 0.0)
    noisy = compare(replace(target, readings=readings, mask=mask), sources, **SETTINGS)
    for clean, other in zip(comparison.records, noisy.records, strict=True):
        assert (clean.name, clean.seed) == (other.name, other.seed)
        assert clean.errors != other.errors
        if clean.seed is not None:
            assert clean.digest is not None
            assert (clean.digest, clean.best_step, clean.validation_loss) == (
                other.digest,
                other.best_step,
                other.validation_loss,
            )


def test_the_digest_would_notice_one_visible_reading(task, comparison):
    target, sources = task
    # Two steps change places: mean and std, so the scaler, stay as they are, and only the parameters can tell.
    readings, mask = target.readings.clone(), target.mask.clone()
    readings[[20, 30]], mask[[20, 30]] = readings[[30, 20]], mask[[30, 20]]
    other = compare(replace(target, readings=readings, mask=mask), sources, strategies=["target_only"], **SETTINGS)
    assert other.runs("target_only")[0].digest != comparison.runs("target_only")[0].digest


def test_it_writes_json_csv_and_picture_and_prints_the_table(task, tmp_path, capsys):
    settings = {**SETTINGS, "verbose": True}
    found = compare(*task, strategies=["target_only", "pooled"], output=tmp_path / "a" / "b", **settings)
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == {*FILES, "runs.jsonl", "details"}
    content = json.loads((folder / "comparison.json").read_text())
    assert content["protocol"]["target"] == "target"
    assert content["protocol"]["seeds"] == [0, 1]
    assert [run["name"] for run in content["runs"]] == [record.name for record in found.records]
    assert len(content["runs"][0]["errors"]["mae"]) == CONFIG.horizon
    assert Comparison.load(folder) == found
    pd.testing.assert_frame_equal(pd.read_csv(folder / "comparison.csv"), found.to_frame(), check_dtype=False)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for name in [*NAIVE, "target_only", "pooled"]:
        assert name in printed


def test_a_damaged_or_absent_comparison_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"comparison\.json: there is no such file"):
        Comparison.load(tmp_path)
    (tmp_path / "comparison.json").write_text('{"runs": [')
    with pytest.raises(ValueError, match=r"not a comparison written by Comparison\.save, or a damaged one"):
        Comparison.load(tmp_path)


def test_a_failed_comparison_writes_nothing(task, tmp_path):
    target, sources = task
    with pytest.raises(ValueError, match=r"City\.resample"):
        compare(target, [sources[0].resample("120min")], output=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visible_days": 9}, "days: target has 6.00 days"),
        ({"visible_days": 1}, "visible days: target has 1.00 visible days .* show more days"),
        ({"visible_days": 5.9}, r"history \+ horizon: target has .* steps here"),
        ({"seeds": 0}, "seeds: expected at least 1, found 0"),
        ({"seeds": []}, "seeds: expected at least one, each once"),
        ({"seeds": [1, 1]}, "each once"),
        ({"naive": ["last value", "oracle"]}, "naive: expected some of last value, .*, found 'oracle'"),
        ({"sources": []}, "learns from source cities, found none"),
        ({"output": __file__}, "output: .* is not a folder"),
        ({"jobs": 0}, "jobs: expected at least 1, found 0"),
        ({"jobs": "2"}, "jobs: expected a whole number, at least 1, found '2'"),
        ({"threads": 0}, "threads: expected at least 1, found 0"),
        ({"seeds": 2.5}, "seeds: expected a whole number, at least 1, found 2.5"),
        ({"strategies": ["nonsense"]}, "strategy: expected one of"),
        ({"model": replace(CONFIG, history=60)}, r"history \+ horizon"),
        ({"model": replace(CONFIG, channels=2)}, "channels"),
    ],
)
def test_what_cannot_work_is_said_before_any_training(task, change, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"target": task[0], "sources": task[1], **SETTINGS, "steps": 10**6, **change})


def test_the_target_cannot_be_its_own_source_under_another_name(task):
    target = task[0]
    order = torch.arange(target.num_nodes).flip(0).tolist()
    few = target.keep_nodes([target.node_ids[node] for node in order[:3]])
    late = target.between(target.num_steps // 2, target.num_steps)
    for source in (target, late, few):
        with pytest.raises(ValueError, match="sources: twin holds the target's test period; leave it out"):
            compare(target, [replace(source, name="twin")], **SETTINGS)


def test_a_city_of_the_same_names_and_times_may_be_a_source(task):
    target = task[0]
    other = replace(target, name="other", readings=target.readings.roll(1, dims=1), mask=target.mask.roll(1, dims=1))
    before = replace(target.between(0, 24), name="visible")
    late = replace(target, name="half a step late", start=target.start + target.interval / 2)
    found = compare(target, [other, before, late], ["pooled"], **{**SETTINGS, "seeds": 1})
    assert found.protocol["sources"] == ["other", "visible", "half a step late"]


def test_sources_of_one_name_are_told_apart_by_nobody(task):
    target, sources = task[:2]
    with pytest.raises(ValueError, match=r"sources: two of them have one name, found .*rename one with"):
        compare(target, [sources[0], replace(sources[-1], name=sources[0].name)], **SETTINGS)


def record(name, seed, mae):
    return RunRecord(name, seed, Errors([mae] * 2, [mae] * 2, [mae] * 2, mae, mae, mae), seconds=1.0)


@pytest.fixture
def made_up():
    reference = [10.0, 12.0, 11.0]
    mine = [9.0, 10.5, 10.5]
    records = [record("last value", None, 20.0)]
    records += [record("target_only", seed, mae) for seed, mae in enumerate(reference)]
    records += [record("tsjt", seed, mae) for seed, mae in enumerate(mine)]
    protocol = {"target": "t", "sources": [], "channels": ["c"], "visible_days": 3, "test_days": 1, "seeds": [0, 1, 2]}
    strategies = [asdict(STRATEGIES[name]) for name in ("target_only", "tsjt")]
    return Comparison(records, [5.0, 10.0], "mph", {**protocol, "steps": 1, "strategies": strategies}, 1.0)


def test_the_gain_is_paired_by_seed_with_students_interval(made_up):
    differences = 100 * np.array([1.0, 1.5, 0.5]) / 11.0
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    gain = made_up.gain("tsjt")
    assert (gain.percent, gain.low, gain.high) == pytest.approx((differences.mean(), low, high))
    assert made_up.gain("last value").percent == pytest.approx(-100 * 9 / 11)
    assert made_up.gain("target_only") is None


def test_one_seed_gives_a_gain_without_an_interval(made_up):
    single = replace(made_up, records=[run for run in made_up.records if run.seed in (None, 0)])
    assert str(single.gain("tsjt")) == "+10.0"


def test_without_target_only_there_is_no_gain(made_up):
    other = replace(made_up, records=[run for run in made_up.records if run.name != "target_only"])
    assert other.gain("tsjt") is None
    with pytest.raises(ValueError, match="expected one of last value, tsjt, found 'pooled'"):
        other.runs("pooled")


def test_the_printed_and_the_markdown_table_hold_the_numbers(made_up):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    made_up.show(console)
    text = console.export_text()
    for cell in ("10.000 ± 0.866", "+9.1 [", "20.00 / 20.00 / 20.0"):
        assert cell in text
        assert cell in made_up.to_markdown()
