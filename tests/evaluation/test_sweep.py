"""Runs that are killed, fail, are kept, or happen on a cluster."""

import errno
import json
import logging
import os
import signal
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import joblib
import pytest
from joblib.externals import loky
from joblib.externals.loky.process_executor import BrokenProcessPool

from tsjt_pyg.evaluation import advise, compare, comparison, sweep
from tsjt_pyg.evaluation.metrics import Errors
from tsjt_pyg.evaluation.sweep import FinishedRun, dask_cluster, run_all
from tsjt_pyg.evaluation.table import Comparison, RunFailure, RunRecord
from tsjt_pyg.training import STRATEGIES, ModelConfig, Strategy, trainer

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=4)
SETTINGS = {
    "model": CONFIG, "steps": 2, "batch_size": 8, "seeds": 2, "naive": ["last value"], "verbose": False,
    "strategies": ["target_only", "pooled"],
}  # fmt: skip


@pytest.fixture(scope="module")
def task(commuters):
    return commuters("target", seed=1), [commuters("north", num_nodes=8, seed=2)]


@pytest.fixture(scope="module")
def serial(task):
    return compare(*task, **SETTINGS)


def without_time(found):
    times = ("seconds", "guard_seconds")
    return [{key: value for key, value in run.items() if key not in times} for run in found.to_dict()["runs"]]


@pytest.fixture
def trainings(monkeypatch):
    """``(strategy, seed)`` of every training that begins; some are made to fail."""
    begun, failing = [], {}

    def fit(model, visible, sources, strategy, seed, **settings):
        begun.append((strategy.name, seed))
        if (strategy.name, seed) in failing:
            raise failing[strategy.name, seed]
        return trainer.fit(model, visible, sources, strategy, seed=seed, **settings)

    monkeypatch.setattr(comparison, "fit", fit)
    return begun, failing


ALL = [("target_only", 0), ("target_only", 1), ("pooled", 0), ("pooled", 1)]


def test_a_failed_run_is_named_and_the_others_go_on(task, serial, trainings, tmp_path, capsys, caplog):
    begun, failing = trainings
    failing["pooled", 0] = FloatingPointError("the loss is not finite [here]")
    found = compare(*task, output=tmp_path, **{**SETTINGS, "verbose": True})
    assert begun == ALL
    assert [str(failure) for failure in found.failures] == [
        "pooled, seed 0: FloatingPointError: the loss is not finite [here]"
    ]
    assert "in fit" in found.failures[0].traceback
    assert "failed: pooled, seed 0" in caplog.text
    assert without_time(found) == [run for run in without_time(serial) if (run["name"], run["seed"]) != ("pooled", 0)]
    printed = capsys.readouterr().out
    assert "pooled (1 of 2 failed)" in printed
    assert "failed: pooled, seed 0: FloatingPointError: the loss is not finite [here]" in printed
    assert Comparison.load(tmp_path) == found
    assert json.loads((tmp_path / "comparison.json").read_text())["failures"][0]["name"] == "pooled"
    assert found.to_frame().set_index("name")["failed"].to_dict() == {"last value": 0, "target_only": 0, "pooled": 1}
    gain, [one] = found.gain("pooled"), found.runs("pooled")  # of the seed that both have
    alone = found.runs("target_only")[1].errors.mean_mae
    assert gain.percent == pytest.approx(100 * (alone - one.errors.mean_mae) / alone)
    assert gain.low is None

    failing.clear()
    begun.clear()
    again = compare(*task, output=tmp_path, **SETTINGS)
    assert begun == [("pooled", 0)]
    assert again.failures == []
    assert without_time(again) == without_time(serial)


def test_a_strategy_without_a_result_is_in_the_table_and_no_reason_to_advise(task, trainings):
    _, failing = trainings
    failing.update({("pooled", seed): RuntimeError("no") for seed in (0, 1)})
    found = compare(*task, **SETTINGS)
    assert found.names == ["last value", "target_only"]
    assert [row[0] for row in found.cells()[1]] == ["last value", "target_only", "pooled (failed)"]
    assert "| pooled (failed) |" in found.to_markdown()
    row = found.to_frame().set_index("name").loc["pooled"]
    assert (row["runs"], row["failed"]) == (0, 2)
    assert advise(found) is None
    failing.clear()
    failing.update({("pooled", 0): RuntimeError("no"), ("target_only", 1): RuntimeError("no")})
    found = compare(*task, **SETTINGS)
    assert found.gain("pooled") is None  # no seed has both
    assert advise(found) is None


def test_if_every_run_fails_the_first_reason_is_the_error_and_nothing_is_written(task, trainings, tmp_path):
    trainings[1].update(dict.fromkeys(ALL, RuntimeError("the disk is on fire")))
    with pytest.raises(ValueError, match="every run failed; target_only, seed 0: RuntimeError: the disk is on fire"):
        compare(*task, output=tmp_path / "c", **SETTINGS)
    assert not (tmp_path / "c").exists()


def test_an_interrupted_comparison_goes_on_where_it_stopped(task, serial, trainings, tmp_path):
    begun, failing = trainings
    failing["pooled", 0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(*task, output=tmp_path, **SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"runs.jsonl", "details"}
    assert begun == ALL[:3]
    begun.clear()
    failing.clear()
    seen = []
    found = compare(*task, output=tmp_path, progress=lambda done, total: seen.append((done, total)), **SETTINGS)
    assert begun == ALL[2:]
    assert (seen[0], seen[-1]) == ((5, 8), (8, 8))
    assert without_time(found) == without_time(serial)
    assert [run.seconds for run in found.records[3:]] != [run.seconds for run in serial.records[3:]]


def test_kept_runs_serve_more_seeds_and_strategies_but_no_other_settings(task, trainings, tmp_path):
    begun, _ = trainings
    target, sources = task
    compare(*task, output=tmp_path, **{**SETTINGS, "strategies": ["target_only"], "seeds": 1})

    def trained(target=target, sources=sources, **change):
        begun.clear()
        compare(target, sources, output=tmp_path, **{**SETTINGS, **change})
        return begun

    assert trained() == ALL[1:]
    assert trained() == []
    alone = {"strategies": ["target_only"], "seeds": 1}
    assert trained(lr=1e-2, **alone) == ALL[:1]
    assert trained(model=replace(CONFIG, hidden_channels=4), **alone) == ALL[:1]
    assert trained(strategies=[Strategy("pooled", target_weight=0.5)], seeds=1) == [("pooled", 0)]
    other = replace(sources[0], readings=sources[0].readings.roll(1, 0), mask=sources[0].mask.roll(1, 0))
    assert trained(sources=[other]) == ALL[2:]  # target_only reads no source
    later = target.between(1, target.num_steps)
    assert trained(target=later, **alone) == ALL[:1]
    assert trained() == []
    assert trained(model=CONFIG.build, **alone) == ALL[:1]  # known by its parameters, not by its settings
    assert trained(model=CONFIG.build, **alone) == []


def test_another_version_of_this_package_trains_anew(task, trainings, tmp_path, monkeypatch):
    begun, _ = trainings
    settings = {**SETTINGS, "strategies": ["target_only"], "seeds": 1}
    compare(*task, output=tmp_path, **settings)
    monkeypatch.setattr("tsjt_pyg.evaluation.sweep._code", lambda: "another")
    compare(*task, output=tmp_path, **settings)
    assert begun == [("target_only", 0)] * 2


def test_a_line_that_was_not_written_to_its_end_counts_as_not_there(task, serial, trainings, tmp_path, caplog):
    begun, _ = trainings
    compare(*task, output=tmp_path, **SETTINGS)
    file = tmp_path / "runs.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b'{"key": 3}\n' + first + b"".join(rest)[:-40])
    begun.clear()
    with caplog.at_level(logging.WARNING):
        found = compare(*task, output=tmp_path, **SETTINGS)
    assert begun == ALL[3:]
    assert "runs.jsonl: line 1 is no finished run, so it counts as not there" in caplog.text
    assert "line 5 is no finished run" in caplog.text
    assert without_time(found) == without_time(serial)
    begun.clear()
    compare(*task, output=tmp_path, **SETTINGS)
    assert begun == []


def test_a_result_that_is_not_finite_is_a_failed_run(task, monkeypatch):
    nothing = Errors([1.0] * 4, [1.0] * 4, [float("nan")] * 4, 1.0, 1.0, float("nan"))
    monkeypatch.setattr(comparison, "measure", lambda *_, **__: nothing)
    with pytest.raises(ValueError, match="every run failed; target_only, seed 0: ValueError: Out of range float"):
        compare(*task, **SETTINGS)


# --- processes ------------------------------------------------------------------------------------------------------


def measured(shared, strategy, seed):
    """Stands for a training; seed 1 is killed, as by a system without memory, and seed 2 breaks."""
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 2:
        raise RuntimeError("broke")
    return FinishedRun(
        RunRecord(strategy.name, seed, Errors([], [], [], float(shared), 0.0, 0.0), float(os.getpid())), {}
    )


def check_outcomes(found):
    assert sorted(found) == [0, 1, 2, 3]
    for number in (0, 3):
        assert found[number].record.errors.mean_mae == 7
        assert found[number].record.seconds != os.getpid()
    assert str(found[2]) == "pooled, seed 2: RuntimeError: broke"
    assert isinstance(found[1], RunFailure)
    return found[1].error


TASKS = [(STRATEGIES["pooled"], seed) for seed in range(4)]


def test_the_runs_of_a_broken_pool_are_repeated_one_at_a_time_and_the_others_together(monkeypatch):
    pools = []

    def submit(attempt, run, shared, strategy, seed):
        pools[-1][1].append(seed)
        future = Future()
        if 1 in pools[-1][1]:
            future.set_exception(BrokenProcessPool("a worker was killed"))
        else:
            future.set_result(attempt(run, shared, strategy, seed))
        return future

    def pool(max_workers, timeout):
        pools.append((max_workers, []))
        return SimpleNamespace(submit=submit)

    monkeypatch.setattr(loky, "get_reusable_executor", pool)
    found = dict(run_all(measured, 7, TASKS, jobs=2))
    assert str(found[1]) == "pooled, seed 1: its process was killed (out of memory?)"
    assert found[0].record.errors.mean_mae == found[3].record.errors.mean_mae == 7
    assert pools == [(2, [0, 1, 2, 3]), (1, [1]), (1, [2]), (2, [3])]


@pytest.mark.slow
def test_a_killed_process_loses_its_own_run_alone():
    assert check_outcomes(dict(run_all(measured, 7, TASKS, jobs=2))) == "its process was killed (out of memory?)"


@pytest.mark.slow
def test_whoever_stops_listening_stops_the_processes():
    outcomes = run_all(measured, 7, [(STRATEGIES["pooled"], seed) for seed in (0, 3)], jobs=1)
    next(outcomes)
    executor = loky.get_reusable_executor(max_workers=1, timeout=300)
    outcomes.close()
    assert executor._flags.shutdown


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    import dask

    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.worker.daemon": True}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as local,
    ):
        yield local.scheduler_address


def test_a_dask_cluster_gives_the_same_table(task, serial, cluster, tmp_path):
    """Two threads of a worker share torch's random state, so they take turns."""
    with dask_cluster(cluster):
        found = compare(*task, output=tmp_path, **SETTINGS)
        assert without_time(found) == without_time(serial)
        assert Comparison.load(tmp_path) == found


@pytest.mark.slow
def test_dask_names_who_was_killed(cluster):
    with dask_cluster(cluster):
        assert "was killed" in check_outcomes(dict(run_all(measured, 7, TASKS, jobs=1)))


@pytest.mark.slow
def test_two_dask_workers_give_the_same_table(task, serial):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        distributed.Client(local) as client,
        joblib.parallel_config("dask", client=client),
    ):
        assert without_time(compare(*task, **SETTINGS, jobs=-1)) == without_time(serial)


def test_a_scheduler_that_does_not_answer_and_a_missing_dask_are_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(sweep, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(OSError, match=r"dask: no scheduler answers at 'nowhere:1' .* expected an address such as tcp"),
        dask_cluster("nowhere:1"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'tsjt-pyg\[dask\]'"), dask_cluster("tcp://127.0.0.1:1"):
        pass


def test_runs_that_cannot_be_kept_say_where_and_how_to_go_on(task, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    again = partial(compare, *task, output=tmp_path / "c", **SETTINGS)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"/c: a finished run cannot be written there \(.*the disk is full.*\); mend that, and the"
    ):
        again()
    monkeypatch.setattr(os, "fsync", fsync)
    assert len(again().records) == 5
