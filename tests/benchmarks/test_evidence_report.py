"""The tables of the evidence say what the records say, and the pages show the tables of the records that are kept."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence as harness  # noqa: E402
import evidence_report as report  # noqa: E402


def errors(mae):
    return {
        "mae": [mae] * 4,
        "rmse": [mae] * 4,
        "mape": [mae] * 4,
        "mean_mae": mae,
        "mean_rmse": 2 * mae,
        "mean_mape": 1,
    }


def record(name, seed, mae, *, task="speed-la", days=3, poison="", validation=1.0, last=None, weights=(), start=None):
    trained = name not in ("last value", "gradient boosting")
    run = {
        "name": name,
        "seed": seed if trained else None,
        "errors": errors(mae),
        "last": errors(mae if last is None else last) if trained else None,
        "validation_loss": validation if trained else None,
        "sources": [{"name": f"source {i}", "weight": weight} for i, weight in enumerate(weights)],
    }
    about = {
        "task": task,
        "days": days,
        "start": seed if start is None else start,
        "seed": seed,
        "poison": poison,
        "unit": "mph",
    }
    return {**about, "minutes": [5.0, 10.0, 15.0, 20.0], "runs": [run]}


SETTING = ("speed-la", 3)


@pytest.fixture
def found():
    return report.Evidence(records_of())


def records_of():
    records = []
    for seed, level in enumerate((1.0, 2.0, 4.0)):
        records += [
            record("target_only", seed, level, validation=0.9),
            record("target_only_2x", seed, 0.5 * level, validation=1.0),
            record("pooled", seed, 0.9 * level, validation=0.8),
            record("pooled .3:1", seed, 0.6 * level, validation=0.9),
            record("tsjt", seed, (0.8, 0.9, 0.7)[seed] * level, weights=(0.5, 0.5)),
            record("tsjt", seed, 1.1 * level, poison="noise", weights=(0.0, 1.0)),
            record("last value", seed, 1.5 * level),
            record("gradient boosting", seed, 0.5 * level),
        ]
    return records


def test_a_change_is_paired_by_run_and_in_percent_of_each_runs_own_reference(found):
    change = found.change(SETTING, "tsjt", "target_only")
    assert change.percent == pytest.approx(-20.0)  # of -20, -10 and -30 %, though the runs' levels differ fourfold
    assert (change.wins, change.runs) == (3, 3)
    half = 4.302653 * 10 / 3**0.5  # Student's t, 2 degrees of freedom
    assert (change.low, change.high) == (pytest.approx(-20 - half, abs=1e-4), pytest.approx(-20 + half, abs=1e-4))


def test_runs_that_share_a_first_day_are_averaged_before_they_count():
    alone = [record("target_only", seed, 1.0, start=start) for seed, start in enumerate((0, 0, 7))]
    mine = [record("tsjt", seed, mae, start=start) for seed, start, mae in ((0, 0, 0.7), (1, 0, 0.9), (2, 7, 0.6))]
    change = report.Evidence([*alone, *mine]).change(SETTING, "tsjt", "target_only")
    assert change.percent == pytest.approx(-30.0)  # of -20 % (two runs) and -40 %
    assert change.high - change.percent == pytest.approx(12.706205 * 10, rel=1e-6)  # Student's t, 1 degree of freedom
    assert (change.wins, change.runs) == (3, 3)


def test_validation_chooses_the_reference_and_the_variant_never_the_test_period(found):
    assert found.reference(SETTING) == "target_only"  # the other has half its test error
    assert found.chosen(SETTING, report.RIVALS["pooled"]) == "pooled"
    assert found.chosen(SETTING, ["IMTL-G"]) is None


def test_a_run_that_one_side_lacks_is_left_out(found):
    fewer = report.Evidence(
        [record("target_only", seed, 1.0) for seed in (0, 1)] + [record("tsjt", seed, 0.5) for seed in (1, 2)]
    )
    assert fewer.change(SETTING, "tsjt", "target_only")[:1] == (-50.0,)
    single = fewer.change(SETTING, "tsjt", "target_only")
    assert single.runs == 1
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert found.change(SETTING, "reptile", "target_only") is None


def test_the_bars_name_what_does_not_hold(found):
    text = report.bars(found, [{"ratio": 2.0, "guard_share": 0.05}, {"ratio": 3.0, "guard_share": 0.07}])
    assert "same number of steps | median 2.5, largest 3; 1 of 2 above |" in text
    assert "| the guard at most 8 % of the training time | median 6, largest 7; 0 of 2 above |" in text
    assert "| the guard at most 8 % of the training time | not measured |" in report.bars(found, [])
    assert "| tsjt against the target alone, mean of the 3-day settings at most -8 % | -20.0 % |" in text
    assert "| no setting worse than +1 % | worst -20.0 % |" in text
    assert "worst +10.0 % (noise, speed-la, 3 days); 1 of 1 above" in text
    assert "| better than every naive and linear forecast in every setting | yes |" in text
    assert (
        "| better than gradient boosting in every setting | no: speed-la, 3 days (gradient boosting +60.0 %) |" in text
    )


def test_spoiled_sources_are_shown_with_how_many_were_left_out(found):
    assert "| noise | +10.0 (3/6) |" in report.poison_table(found)


def test_a_guard_that_is_missing_is_shown_beside_it(found):
    unguarded = [record("tsjt without guard", seed, 1.3 * 2**seed, poison="noise") for seed in range(3)]
    more = report.Evidence([*records_of(), *unguarded])
    assert "| noise; no guard | +30.0 |" in report.poison_table(more)
    assert "no guard" not in report.poison_table(found)


def test_a_part_that_is_left_out_is_held_against_the_default_in_the_same_runs(found):
    part = [record("tsjt without filter", seed, mae) for seed, mae in ((0, 0.88), (1, 1.8))]  # +10 and 0 %
    table = report.ablation_table(report.Evidence([*records_of(), *part]))
    assert table.splitlines()[2:] == ["| without filter (2 runs) | +5.0 | +5.0 |"]
    assert len(report.ablation_table(found).splitlines()) == 2


def test_of_each_kind_validation_chooses_and_the_best_of_them_is_found_in_hindsight(found):
    assert found.best_rival(SETTING) == ("pooled", "mae")  # though another weight has the smaller test error
    kind = [record("UPGrad", seed, 0.7 * 2**seed, validation=5.0) for seed in range(3)]
    other = [record("tsjt_paper", seed, 0.8 * 2**seed, validation=0.1) for seed in range(3)]
    more = report.Evidence([*records_of(), *kind, *other])
    assert more.best_rival(SETTING) == ("UPGrad", "mae")
    assert "| +14.3 [-21.2, +49.8] (UPGrad) | +14.3 [-21.2, +49.8] (UPGrad) |" in report.rival_table(more)
    assert "mean at most -3 %, significant in 5 of 8 | +14.3 %, significant in 0 of 1 |" in report.bars(more, [])
    assert report.Evidence([record("tsjt", 0, 1.0)]).best_rival(SETTING) is None


def test_a_rival_may_keep_its_last_parameters(found):
    rival = [record("GradVac", seed, 0.95 * 2**seed, last=0.5 * 2**seed) for seed in range(3)]
    more = report.Evidence([*records_of(), *rival])
    assert more.best_rival(SETTING) == ("pooled", "mae")
    assert more.best_rival(SETTING, ("mae", "last")) == ("GradVac", "last")
    assert "(pooled) | +60.0 [+10.3, +109.7] (GradVac, last parameters) |" in report.rival_table(more)
    text = report.bars(more, [])
    assert (
        "| against the best of five kinds of rivals, also by its last parameters, in hindsight: mean at most -3 %, "
        in text
    )
    assert "significant in 5 of 8 | +60.0 %, significant in 0 of 1 |" in text
    assert "| GradVac | -47.4 |" in report.checkpoint_table(more)


def test_others_are_told_apart_from_the_five_kinds(found):
    averaged = [record("pooled, averaged", seed, 0.4 * 2**seed) for seed in range(3)]
    more = report.Evidence([*records_of(), *averaged])
    assert more.best_rival(SETTING) == ("pooled", "mae")
    assert more.best_rival(SETTING, kinds={**report.RIVALS, **report.FURTHER}) == ("pooled, averaged", "mae")
    assert report.further_table(more).endswith("| +100.0 [+37.9, +162.1] |")
    assert report.rival_table(more).endswith("| +100.0 [+37.9, +162.1] (pooled, averaged) |")


def test_all_strategies_by_setting_and_in_the_mean(found):
    rows = [
        record("target_only", 0, 2.0, days=1),
        record("tsjt", 0, 1.0, days=1),
        record("tsjt without filter", 0, 1.0),
    ]
    table = report.strategy_table(report.Evidence([*records_of(), *rows]))
    assert table.splitlines()[0] == "| strategy | speed-la, 3 days | speed-la, 1 day | mean, 3 days | mean, 1 day |"
    assert "| tsjt | -20.0 | -50.0 | -20.0 | -50.0 |" in table
    assert "| pooled | -10.0 |  | -10.0 |  |" in table
    assert "without filter" not in table  # fewer runs, which have a table of their own


def test_errors_by_step_and_costs():
    rows = [record("target_only", 0, 1.0), record("tsjt", 0, 0.5)]
    for row in rows:
        row["runs"][0]["errors"]["mae"] = [1.0, 2.0, 3.0, 4.0]
    table = report.horizon_table(report.Evidence(rows))
    assert "| speed-la, 3 days | tsjt | 1.000 at 5 min | 2.000 at 10 min | 4.000 at 20 min |" in table
    costs = [{"task": "speed-la", "days": 3, "ratio": r, "guard_share": r / 40} for r in (2.0, 2.4, 2.2)]
    assert "| speed-la, 3 days | 2.20 | 5.5 % | 3 |" in report.cost_table(costs)


def test_sources_that_end_with_the_visible_days_are_no_poison(found):
    cut = [record("tsjt", seed, 0.9 * 2**seed, poison=harness.UNTIL_NOW, weights=(1.0,)) for seed in range(3)]
    more = report.Evidence([*records_of(), *cut])
    assert more.poisons() == ["noise"]
    assert "| speed-la, 3 days | -20.0 [-44.8, +4.8] | -10.0 [-10.0, -10.0] (0/3) |" in report.calendar_table(more)


def test_every_planned_strategy_is_a_rival_the_reference_or_a_part_of_the_default():
    from evidence_changes import ALONE, DEFAULT, FURTHER, RIVALS

    rivals = {name for names in (*RIVALS.values(), *FURTHER.values()) for name in names}
    planned = {run.strategy for run in harness.plan(quick=False)} - {"naive", DEFAULT, *ALONE}
    assert rivals <= planned
    assert all(name.startswith((f"{DEFAULT} with ", f"{DEFAULT} without ")) for name in planned - rivals)


def test_a_run_that_failed_is_named(found, capsys, tmp_path):
    failed = {"key": "speed-la|3|0|0|CAGrad|", "failed": "FloatingPointError: the loss is not finite", "runs": []}
    more = report.Evidence([*records_of(), failed])
    head = {"settings": harness.settings_of(harness.TRAINING), "date": "2000-01-01", "versions": {"torch": "0"}}
    assert "CAGrad" in report.render(more, head, []).split("### Runs that failed")[1]
    assert "### Runs that failed" not in report.render(found, head, [])


def test_a_setting_without_naive_forecasts_leaves_their_cell_empty():
    few = report.Evidence([record("target_only", 0, 1.0), record("tsjt", 0, 0.5)])
    assert report.main_table(few).endswith("| 1 of 1 |  |")


def test_report_and_pictures_are_written(found, tmp_path, capsys):
    records = [record("target_only", 0, 1.0), record("tsjt", 0, 0.5), record("last value", 0, 2.0)]
    head = {"settings": harness.settings_of(harness.TRAINING), "date": "2000-01-01", "versions": {"torch": "0"}}
    report.write_report(records, head, tmp_path, docs=False)
    changes = json.loads((tmp_path / "evidence.json").read_text())["changes"]
    assert [(row["strategy"], row["mean_mae"], row["change"]["percent"]) for row in changes] == [
        ("target_only", 1.0, 0.0),
        ("tsjt", 0.5, -50.0),
        ("last value", 2.0, 100.0),
    ]
    assert [row["change"]["high"] for row in changes] == [None] * 3
    for picture in ("evidence_changes.png", "evidence_poisons.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (
        "| speed-la, 3 days | 1.000 / 2.000 (target_only) | 0.500 / 1.000 | -50.0 | 1 of 1 |" in capsys.readouterr().out
    )


def test_without_records_there_is_nothing_to_report(tmp_path, capsys):
    report.write_report([], {}, tmp_path, docs=True)
    assert capsys.readouterr().out == "no records yet\n"
    assert not list(tmp_path.iterdir())


def test_the_pages_show_the_records_that_are_kept():
    file = harness.RESULTS / "records.jsonl"
    kept = report.Evidence(harness.read_records(file))
    shown = report.render(kept, harness.read_head(file), report.read_costs(harness.RESULTS))
    for page, text in ((report.PAGE, shown), (report.README, report.main_table(kept))):
        assert f"{report.BEGIN}\n\n{text}\n\n{report.END}" in page.read_text(encoding="utf-8")
