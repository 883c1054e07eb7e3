from dataclasses import replace

import pytest
from rich.console import Console

from tsjt_pyg.evaluation import Comparison, Errors, advise
from tsjt_pyg.evaluation.table import RunRecord


def errors(mae):
    return Errors([mae], [mae], [mae], mae, mae, mae)


def trained(name, maes, validation=1.0, sources=()):
    return [
        RunRecord(name, seed, errors(mae), 1.0, validation_loss=validation, sources=list(sources))
        for seed, mae in enumerate(maes)
    ]


def comparison(*groups, naive=9.0):
    records = [RunRecord("last value", None, errors(naive), 0.0), *(record for group in groups for record in group)]
    about = {
        "target_only": (0.0, 0.0),
        "target_only_2x": (0.0, 0.0),
        "pooled": (1.0, 0.0),
        "finetune": (0.0, 0.5),
        "tsjt": (1.0, 0.0),
    }
    names = dict.fromkeys(record.name for record in records if record.seed is not None)
    strategies = [{"name": n, "source_weight": about[n][0], "pretrain_share": about[n][1]} for n in names]
    protocol = {
        "target": "here",
        "sources": ["there"],
        "channels": ["speed"],
        "visible_days": 3,
        "test_days": 4.0,
        "seeds": [0, 1, 2],
        "steps": 10,
        "strategies": strategies,
    }
    return Comparison(records, [5.0], "mph", protocol, 1.0)


ALONE = trained("target_only", [5.0, 5.1, 4.9])


def source(name, weight):
    return {"name": name, "error": 0.9, "persistence": 1.0, "weight": weight}


def test_a_clear_gain_advises_to_transfer_and_says_who_contributes():
    verdicts = [source("there", 1.0), source("elsewhere", 0.0)]
    found = advise(comparison(ALONE, trained("tsjt", [4.0, 4.1, 3.9], sources=verdicts)))
    assert found.transfer
    assert found.contributions == {"there": 1.0, "elsewhere": 0.0}
    assert found.text == (
        "Use tsjt: -20.0 % [-20.0, -20.0] MAE against training on here alone (target_only); there contributes, "
        "weight 1; elsewhere was left out."
    )


def test_a_gain_within_chance_does_not():
    found = advise(comparison(ALONE, trained("tsjt", [4.0, 6.0, 4.8])))
    assert not found.transfer
    assert found.text.startswith("Train on here alone (target_only): no gain of tsjt can be told from chance, -1.3 % [")


def test_harm_is_named():
    found = advise(comparison(ALONE, trained("tsjt", [6.0, 6.1, 5.9])))
    assert not found.transfer
    assert "tsjt does harm, +20.0 % [+20.0, +20.0]" in found.text


def test_sources_that_were_all_left_out_are_named():
    verdicts = [source("there", 0.0), source("elsewhere", 0.0)]
    found = advise(comparison(ALONE, trained("tsjt", [4.0, 4.1, 3.9], sources=verdicts)))
    assert not found.transfer
    assert "the guard left out every source (there, elsewhere)" in found.text


def test_one_seed_is_too_few_to_tell():
    found = advise(comparison(trained("target_only", [5.0]), trained("tsjt", [4.0])))
    assert not found.transfer
    assert found.text == (
        "Too few seeds to tell: tsjt -20.0 % MAE against training on here alone (target_only). Run it with --seeds 3 "
        "or more."
    )


def test_a_naive_forecast_that_is_better_than_both_is_advised():
    found = advise(comparison(ALONE, trained("tsjt", [4.0, 4.1, 3.9]), naive=3.5))
    assert not found.transfer
    assert "the forecast 'last value' has the smallest error (3.500; tsjt 4.000, target_only 5.000)" in found.text


def test_validation_and_not_the_test_period_chooses_the_candidate():
    pooled, tuned = trained("pooled", [4.0, 4.1, 3.9], 0.9), trained("finetune", [3.0, 3.1, 2.9], 0.95)
    assert advise(comparison(ALONE, pooled, tuned)).text.startswith("Use pooled: ")


def test_it_is_held_against_the_better_training_on_the_target_alone():
    longer = trained("target_only_2x", [4.0, 4.1, 3.9], validation=1.5)
    for order in ((ALONE, longer), (longer, ALONE)):
        found = advise(comparison(*order, trained("tsjt", [4.5, 4.6, 4.4])))
        assert "Train on here alone (target_only_2x): tsjt does harm, +12.5 %" in found.text


def test_another_strategy_is_advised_where_it_is_better_than_the_default_beyond_chance():
    tsjt, kept = trained("tsjt", [4.5, 4.6, 4.4]), [source("there", 0.0)]
    pooled, noisy = trained("pooled", [3.0, 3.1, 2.9]), trained("pooled", [3.0, 5.0, 4.5])
    assert advise(comparison(ALONE, tsjt, pooled)).text.startswith("Use pooled: -40.0 % [-40.0, -40.0] MAE against")
    assert advise(comparison(ALONE, tsjt, noisy)).text.startswith("Use tsjt: -10.0 %")
    left_out = trained("tsjt", [5.0, 5.1, 4.9], sources=kept)
    assert advise(comparison(ALONE, left_out, pooled)).text.startswith("Use pooled: ")


def test_a_gain_too_small_for_twice_the_time_is_none():
    found = advise(comparison(ALONE, trained("tsjt", [4.999, 5.099, 4.899])))
    assert not found.transfer
    assert "Train on here alone (target_only): tsjt is hardly better, -0.0 % [" in found.text


def test_a_source_that_was_taken_in_some_runs_is_told_so():
    runs = [
        *trained("tsjt", [4.0], sources=[source("there", 1.0)]),
        *(replace(run, seed=run.seed + 1) for run in trained("tsjt", [4.1, 3.9], sources=[source("there", 0.0)])),
    ]
    found = advise(comparison(ALONE, runs))
    assert found.text.endswith("; there contributes in 1 of 3 runs.")
    assert found.contributions["there"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("group", [ALONE, trained("tsjt", [4.0, 4.1, 3.9])])
def test_without_either_side_there_is_no_advice(group):
    assert advise(comparison(group)) is None


def test_the_printed_table_ends_with_the_advice():
    console = Console(record=True, width=200)
    comparison(ALONE, trained("tsjt", [6.0, 6.1, 5.9])).show(console)
    last = console.export_text().strip().splitlines()[-1]
    assert last.startswith("warning: Train on here alone (target_only): tsjt does harm, +20.0 % [+20.0, +20.0] MAE")


def test_the_gain_over_another_strategy_is_paired_with_it():
    found = comparison(ALONE, trained("pooled", [4.0, 4.1, 3.9]), trained("tsjt", [2.0, 2.1, 1.9]))
    assert found.gain("tsjt", over="pooled").percent == pytest.approx(50.0)
    assert found.gain("pooled", over="pooled") is None
    assert replace(found, records=found.records[:4]).gain("last value", over="tsjt") is None
