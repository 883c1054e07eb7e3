"""What is kept of a run for its report, against sums that are made one by one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsjt_pyg.data import NodeBlocks, StandardScaler
from tsjt_pyg.evaluation import compare
from tsjt_pyg.evaluation.details import CITY, ErrorDetails, Excerpt, city_arrays, details_file, load_details
from tsjt_pyg.evaluation.measuring import measure, measure_naive
from tsjt_pyg.evaluation.naive import fit_last_value
from tsjt_pyg.training import ModelConfig, forecast_windows

HISTORY, HORIZON = 6, 4
CONFIG = ModelConfig(cell="GConvGRU", hidden_channels=8, history=HISTORY, horizon=HORIZON, profile=False)
SETTINGS = {"model": CONFIG, "steps": 3, "batch_size": 8, "seeds": 1, "naive": ["last value"], "verbose": False}


@pytest.fixture(scope="module")
def parts(commuters):
    visible, test = commuters("target", days=9, num_nodes=9, missing=0.3).few_shot(3)
    torch.manual_seed(0)
    model, scaler = CONFIG.build(), StandardScaler().fit(visible.readings, visible.mask)
    torch.nn.init.normal_(model.head.weight if hasattr(model.head, "weight") else next(model.head.parameters()))
    return visible, test, model, scaler, Excerpt.choose(visible, test, HISTORY, HORIZON)


def recomputed(test, forecasts):
    """One by one, in Python's floats: ``forecasts[window][step][node]``."""
    sums = {"hour": np.zeros((2, 24)), "weekday": np.zeros((2, 7)), "node": np.zeros((2, test.num_nodes))}
    for window, steps in enumerate(forecasts):
        for ahead, nodes in enumerate(steps):
            step = window + HISTORY + ahead
            time = test.start + step * test.interval
            for node, forecast in enumerate(nodes):
                if test.mask[step, node, 0]:
                    error = abs(float(forecast) - float(test.readings[step, node, 0]))
                    for name, place in (("hour", time.hour), ("weekday", time.weekday()), ("node", node)):
                        sums[name][:, place] += (error, 1)
    return sums


def check(found, test, forecasts, excerpt):
    for name, expected in recomputed(test, forecasts).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
        assert found[name].dtype == np.float64
    laid = np.concatenate([forecasts[excerpt.first + k * HORIZON] for k in range(excerpt.count)])
    np.testing.assert_array_equal(found["forecasts"], laid[:, excerpt.nodes])


def test_sums_and_forecasts_are_those_of_all_windows_and_add_up_to_the_mae(parts):
    _, test, model, scaler, excerpt = parts
    details = ErrorDetails(test, excerpt)
    errors = measure(model, test, scaler, HISTORY, HORIZON, details=details)
    windows = test.windows(HISTORY, HORIZON)
    forecasts = torch.cat([f[..., 0] for _, f in forecast_windows(model, windows, scaler)]).numpy()
    found = details.arrays()
    check(found, test, forecasts, excerpt)
    for name in ("hour", "weekday", "node"):
        total, count = found[name].sum(axis=1)
        assert total / count == pytest.approx(errors.mean_mae, rel=1e-12)
    assert errors == measure(model, test, scaler, HISTORY, HORIZON)


def test_in_blocks_every_node_counts_once_and_has_the_forecast_of_its_own_block(parts):
    _, test, model, scaler, excerpt = parts
    blocks = NodeBlocks(test, 2, num_hops=1)
    details = ErrorDetails(test, excerpt)
    measure(model, test, scaler, HISTORY, HORIZON, None, blocks, details)
    windows = test.windows(HISTORY, HORIZON)
    forecasts = np.full((len(windows), HORIZON, test.num_nodes), np.nan, np.float32)
    for batch, forecast in forecast_windows(model, windows, scaler, blocks=blocks):
        own = forecast[:, :, batch.block.core_mask, 0].numpy()
        forecasts[np.ix_(batch.index.numpy(), range(HORIZON), batch.block.core.numpy())] = own
    assert np.isfinite(forecasts).all()
    check(details.arrays(), test, forecasts, excerpt)


def test_naive_forecasts_have_details_too(parts):
    visible, test, _, _, excerpt = parts
    details = ErrorDetails(test, excerpt)
    last = fit_last_value(visible)
    measure_naive(last, test, HISTORY, HORIZON, details)
    batch = test.windows(HISTORY, HORIZON).batch(torch.arange(len(test.windows(HISTORY, HORIZON))))
    check(details.arrays(), test, last(batch, test)[..., 0].numpy(), excerpt)


def test_the_excerpt_has_a_weekend_and_nodes_of_low_to_high_readings(commuters):
    city = commuters("target", days=12, num_nodes=200)  # from a Monday; the test period begins on a Thursday
    visible, test = city.few_shot(3)
    excerpt = Excerpt.choose(visible, test, HISTORY, HORIZON)
    times = test.time[excerpt.steps]
    assert len(times) == 3 * 24
    assert (times.day_of_week >= 5).any()
    assert (times.day_of_week < 5).any()
    assert (len(excerpt.nodes), excerpt.count * HORIZON) == (60, 72)
    level = (visible.readings * visible.mask).sum(0)[:, 0] / visible.mask.sum(0)[:, 0]
    assert {int(level.argmin()), int(level.argmax())} <= set(excerpt.nodes.tolist())
    again = Excerpt.choose(visible, test, HISTORY, HORIZON)
    assert (again.first, again.nodes.tolist()) == (excerpt.first, excerpt.nodes.tolist())


def test_a_test_period_of_one_window_is_its_own_excerpt_and_dead_sensors_are_not_in_it(commuters):
    city = commuters("target", days=9)
    mask = city.mask.clone()
    mask[3 * 24 :, 2] = False
    visible, test = replace(city, mask=mask, readings=city.readings * mask).few_shot(3)
    short = test.between(0, HISTORY + HORIZON)
    excerpt = Excerpt.choose(visible, short, HISTORY, HORIZON)
    assert (excerpt.first, excerpt.count) == (0, 1)
    assert excerpt.nodes.tolist() == [0, 1, 3, 4, 5]
    shown = city_arrays(short, excerpt, "")
    np.testing.assert_array_equal(np.isnan(shown["readings"]), ~short.mask[HISTORY:, excerpt.nodes, 0].numpy())
    assert shown["edges"].shape == (2, 6)  # a ring of six roads, each once


def test_no_reading_of_the_test_period_is_kept_but_the_excerpts(parts):
    _, test, _, _, excerpt = parts
    shown = city_arrays(test, excerpt, "")
    assert shown["readings"].shape == (excerpt.count * HORIZON, len(excerpt.nodes))
    assert sum(array.size for array in shown.values() if array.dtype.kind == "f") == shown["readings"].size + 2


@pytest.fixture(scope="module")
def compared(commuters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    task = commuters("target", seed=1), [commuters("north", num_nodes=8, seed=2), commuters("south", seed=3)]
    settings = {**SETTINGS, "model": replace(CONFIG, num_prompts=4)}

    def again():
        return compare(*task, ["target_only", "tsjt_paper"], output=folder, **settings)

    return again, again(), folder


def test_kept_runs_keep_their_details_and_one_whose_details_are_gone_is_run_again(compared):
    again, found, folder = compared
    files = {run.name: details_file(folder, run.key) for run in found.records}
    assert all(file.is_file() for file in files.values())
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    once_more = again()
    assert once_more.records[1:] == found.records[1:]  # with their seconds: they were not run
    assert files["tsjt_paper"].stat().st_mtime_ns == before["tsjt_paper"]
    kept = load_details(folder, found.runs("tsjt_paper")[0].key)
    files["tsjt_paper"].unlink()
    repeated = again()
    assert repeated.runs("tsjt_paper")[0].key == found.runs("tsjt_paper")[0].key
    assert repeated.runs("target_only")[0].seconds == found.runs("target_only")[0].seconds
    assert repeated.runs("tsjt_paper")[0].seconds != found.runs("tsjt_paper")[0].seconds
    renewed = load_details(folder, found.runs("tsjt_paper")[0].key)
    assert kept.keys() == renewed.keys()
    assert all(np.array_equal(kept[name], renewed[name]) for name in kept)


def test_conflict_and_prompts_are_there_where_they_are(compared):
    _, found, folder = compared
    alone, tsjt = (load_details(folder, found.runs(name)[0].key) for name in ("target_only", "tsjt_paper"))
    assert "conflict" not in alone
    assert alone["prompt_city"].tolist() == ["target"]
    assert tsjt["conflict_step"].tolist() == [1, 2, 3]
    assert tsjt["conflict"].shape == (3, 3)
    assert (np.abs(tsjt["conflict"][:, 0]) <= 1).all()
    assert tsjt["conflict"][:, 1].mean() == pytest.approx(found.runs("tsjt_paper")[0].stats["conflict_rate"])
    assert tsjt["prompt_city"].tolist() == ["target", "north", "south"]
    np.testing.assert_allclose(tsjt["prompt_share"].sum(axis=1), 1, rtol=1e-6)


def test_without_an_output_nothing_is_written_and_the_table_is_the_same(compared, commuters, monkeypatch, tmp_path):
    _, found, _ = compared
    monkeypatch.chdir(tmp_path)
    task = commuters("target", seed=1), [commuters("north", num_nodes=8, seed=2), commuters("south", seed=3)]
    other = compare(*task, ["target_only", "tsjt_paper"], **{**SETTINGS, "model": replace(CONFIG, num_prompts=4)})
    assert [run.errors for run in other.records] == [run.errors for run in found.records]
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named_with_the_way_out(compared):
    _, found, folder = compared
    file = details_file(folder, CITY)
    whole = file.read_bytes()
    for spoiled in (whole[: len(whole) // 2], b"", b"nonsense", whole[:200] + b"\xff" * 40 + whole[240:]):
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"city\.npz: it is damaged .*; delete it, and the command that made it"):
            load_details(folder, CITY)
    file.write_bytes(whole)
    assert load_details(folder, "absent") is None
    assert json.loads((folder / "comparison.json").read_text())["protocol"]["fingerprints"]["test"]
    assert math.isfinite(found.seconds)
