"""The commands as a user types them, in this process, on the bundled cities."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from tsjt_pyg import __version__
from tsjt_pyg.cli import app
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import sweep
from tsjt_pyg.training import CELLS, SavedModel, trainer
from tsjt_pyg.training.checkpoint import save_checkpoint
from tsjt_pyg.training.guard import SourceVerdict
from tsjt_pyg.training.run import TrainingRun

TARGET = ["--target", "demo/riverton"]
TINY = ["--cell", "GRU", "--hidden", "8", "--batch-size", "8", "--visible-days", "2", "--validation-days", "0.25"]

TRAIN = ["train", *TARGET, *TINY, "--steps", "4", "--checkpoint-every", "2", "--seed", "3", "--output"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = CliRunner().invoke(app, [*TRAIN, str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def test_help_and_version(tsjt):
    text = tsjt("--help")
    for command in ("cities", "train", "compare", "forecast", "doctor", "demo"):
        assert command in text
    assert tsjt("--version").strip() == __version__


def test_train_and_compare_in_blocks_of_nodes(tsjt, tmp_path):
    folder = tmp_path / "run"
    text = tsjt(*TRAIN, folder, "--strategy", "target_only", "--nodes-per-batch", 30)
    assert "target_only: test MAE" in text
    assert json.loads((folder / "config.json").read_text())["nodes_per_batch"] == 30
    assert SavedModel.load(folder).city_name == "demo/riverton"
    assert "nodes-per-batch" in tsjt("compare", *TARGET, "--nodes-per-batch", 0, code=2)


def test_doctor_names_a_command_that_says_where_a_city_comes_from(tsjt, tmp_path):
    text = tsjt("doctor", "--root", tmp_path)
    assert "tsjt cities metr_la" in text
    assert ".md" not in text


def test_doctor_says_that_all_is_well(tsjt):
    text = tsjt("doctor")
    assert importlib.metadata.version("torch") in text
    assert "torch-geometric-temporal 0.56" in text


def test_doctor_without_pyg_temporal_shows_the_command_that_installs_it(tsjt, monkeypatch):
    from tsjt_pyg import environment

    def absent():
        raise ImportError("not here")

    monkeypatch.setattr(environment, "import_temporal", absent)
    assert "pip install --no-deps torch-geometric-temporal==0.56.2" in tsjt("doctor", code=1)


def test_train_writes_a_run_that_others_can_read(trained):
    checkpoints, reports = (
        {"last.pt", "last-1.pt", "best.pt"},
        {"config.json", "metrics.json", "conflict.csv", "conflict.png", "details"},
    )
    assert {path.name for path in trained.iterdir()} == checkpoints | reports
    conflict = pd.read_csv(trained / "conflict.csv")
    assert conflict["step"].tolist() == [1, 2, 3, 4]
    assert conflict["cosine"].between(-1, 1).all()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["test"]["mean_mae"] > 0
    assert metrics["optimizer"]["steps"] == 4
    assert json.loads((trained / "config.json").read_text())["strategy"]["name"] == "tsjt"
    assert "model" in torch.load(trained / "last.pt", weights_only=True)


def test_train_says_how_many_steps_it_took_and_why_where_no_source_is_left(tsjt, tmp_path, monkeypatch):
    def judge(model, visible, sources, **_):
        return [SourceVerdict(city.name, float("inf"), 0.9, 0.0) for city in sources]

    monkeypatch.setattr(trainer, "judge_sources", judge)
    text = tsjt(*TRAIN, tmp_path / "r")
    assert re.search(r"best step \d of 8;", text)
    assert "was left out (zero-shot error inf, persistence 0.90)" in text
    sources = json.loads((tmp_path / "r" / "metrics.json").read_text())["sources"]
    assert {(source["error"], source["weight"]) for source in sources} == {(None, 0.0)}


def test_ctrl_c_keeps_the_last_checkpoint_and_resuming_gives_the_same_bits(tsjt, trained, tmp_path, monkeypatch):
    train_step, steps = TrainingRun.train_step, []

    def interrupted(run):
        steps.append(run.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        train_step(run)

    monkeypatch.setattr(TrainingRun, "train_step", interrupted)
    assert "stopped" in tsjt(*TRAIN, tmp_path / "r", code=130)
    assert torch.load(tmp_path / "r" / "last.pt", weights_only=True)["step"] == 2
    monkeypatch.undo()
    assert "holds a run already" in tsjt(*TRAIN, tmp_path / "r", code=2)
    assert "error: resume:" in tsjt(*TRAIN, tmp_path / "r", "--resume", "--lr", "0.5", code=2)
    tsjt(*TRAIN, tmp_path / "r", "--resume")
    assert metrics(tmp_path / "r") == metrics(trained)
    whole, resumed = (torch.load(path / "last.pt", weights_only=True)["model"] for path in (trained, tmp_path / "r"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_is_resumed_and_a_second_one_stops_at_once(
    tsjt, trained, tmp_path, monkeypatch, number, status
):
    train_step, signals = TrainingRun.train_step, [number]

    def signalled(run):
        if run.step == 2:
            for each in signals:
                os.kill(os.getpid(), each)
        train_step(run)

    monkeypatch.setattr(TrainingRun, "train_step", signalled)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    text = tsjt(*TRAIN, tmp_path / "r", "--checkpoint-every", 99, code=status)
    assert f"stopped at step 3 of 4; resume=True (--resume) continues from step 3, {tmp_path / 'r' / 'last.pt'}" in text
    signals.append(number)
    assert "stopped" in tsjt(*TRAIN, tmp_path / "s", "--checkpoint-every", 99, code=status)
    assert not (tmp_path / "s").exists()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    tsjt(*TRAIN, tmp_path / "r", "--resume")
    assert metrics(tmp_path / "r") == metrics(trained)


def test_a_signal_after_the_last_step_is_not_forgotten(tsjt, trained, tmp_path, monkeypatch):
    train_step = TrainingRun.train_step

    def signalled(run):
        train_step(run)
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", signalled)
        text = tsjt(*TRAIN, tmp_path / "r", code=143)
    assert "the training is finished, its metrics are not; --resume writes them" in text
    assert not (tmp_path / "r" / "metrics.json").exists()
    tsjt(*TRAIN, tmp_path / "r", "--resume")
    assert metrics(tmp_path / "r") == metrics(trained)


def test_a_damaged_best_checkpoint_is_taken_from_the_last_one(tsjt, trained, tmp_path, caplog):
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "best.pt").write_bytes((trained / "best.pt").read_bytes()[:-1])
    whole, rebuilt = SavedModel.load(trained), SavedModel.load(tmp_path)
    assert f"what it held was taken from {tmp_path / 'last.pt'}" in caplog.text
    states = whole.model.state_dict(), rebuilt.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert rebuilt.verdicts == whole.verdicts


def test_train_offers_every_cell_and_writes_a_model_that_can_be_loaded(tsjt, tmp_path):
    text = tsjt("train", "--help")
    assert all(cell in text for cell in CELLS)
    tiny = ["EvolveGCNO" if word == "GRU" else word for word in TINY]
    tsjt("train", *TARGET, *tiny, "--steps", "1", "--strategy", "target_only", "--output", tmp_path)
    assert type(SavedModel.load(tmp_path).model.cell).__name__ == "EvolveGCNO"


def test_target_only_needs_no_source(tsjt, tmp_path):
    path = load_city("demo/riverton").select("speed").between(0, 900).save(tmp_path / "mine.npz")
    tsjt("train", "--target", path, *TINY, "--strategy", "target_only", "--steps", 1, "--output", tmp_path / "r")
    assert "name the sources" in tsjt("train", "--target", path, *TINY, "--output", tmp_path / "s", code=2)


def test_forecast_writes_the_next_steps_in_original_units_by_node_id(tsjt, trained, tmp_path):
    city = load_city("demo/riverton").select("speed")
    values = city.readings[600:612, :, 0].masked_fill(~city.mask[600:612, :, 0], torch.nan).numpy()
    table = pd.DataFrame(values, index=city.time[600:612], columns=city.node_ids)
    table.to_csv(tmp_path / "a.csv")
    table.iloc[:, ::-1].to_csv(tmp_path / "b.csv")
    paths = {name: tmp_path / f"{name}.csv" for name in ("a", "b", "fa", "fb")}
    printed = tsjt("forecast", "--checkpoint", trained, "--readings", paths["a"], "--output", paths["fa"])
    assert f"12 steps of {city.num_nodes} nodes (km/h)" in printed
    tsjt("forecast", "--checkpoint", trained / "best.pt", "--readings", paths["b"], "--output", paths["fb"])
    found = pd.read_csv(paths["fa"], index_col="time", parse_dates=True)
    shuffled = pd.read_csv(paths["fb"], index_col="time", parse_dates=True)
    assert list(found.columns) == list(city.node_ids)
    assert (found.index == city.time[612:624]).all()
    assert list(shuffled.columns) == list(table.columns[::-1])
    np.testing.assert_allclose(shuffled[found.columns], found, rtol=1e-4)
    # After four steps the model is still close to the last value, so a wrong unit or order would show.
    last = table.ffill().iloc[-1]
    assert (found.iloc[0] - last).abs().median() < 5


def fog(table):
    table = table.astype(object)
    table.iloc[4, 1] = "fog"
    return table


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.iloc[3:], "the model reads 12 steps, found 9 rows"),
        (lambda t: t.drop(columns=t.columns[0]), "there is no column for node"),
        (lambda t: t.assign(stranger=1.0), "column 'stranger' is no node"),
        (lambda t: t.drop(index=t.index[5]).set_index(t.index[:-1].delete(5).append(t.index[-1:])), "interval is"),
        (fog, "found 'fog', expected a number"),
        (lambda t: t.reset_index(drop=True).rename(index="row {}".format), "first column must hold times"),
        (
            lambda t: t.reset_index(drop=True),
            "first column must hold times such as 2024-03-04 08:05 (found the number 0)",
        ),
        (lambda t: t.tz_localize("UTC"), "the model knows local time"),
        (lambda t: t * np.nan, "nothing was observed in the last 12 rows"),
    ],
)
def test_readings_that_do_not_fit_end_in_one_error_and_no_file(tsjt, trained, tmp_path, spoil, message):
    city = load_city("demo/riverton").select("speed")
    table = pd.DataFrame(city.readings[600:613, :, 0].numpy(), index=city.time[600:613], columns=city.node_ids)
    if "found 9" in message:
        table = table.iloc[1:]
    spoil(table).to_csv(tmp_path / "a.csv")
    text = tsjt(
        "forecast", "--checkpoint", trained, "--readings", tmp_path / "a.csv", "--output", tmp_path / "f.csv", code=2
    )
    assert message in text
    assert "Traceback" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv"}


def test_a_number_that_marks_what_is_missing_is_no_reading(tsjt, trained, tmp_path):
    city = load_city("demo/riverton").select("speed")
    table = pd.DataFrame(city.readings[600:612, :, 0].numpy(), index=city.time[600:612], columns=city.node_ids)
    table.iloc[5, 2] = 1e20
    table.to_csv(tmp_path / "a.csv")
    rest = ["--readings", tmp_path / "a.csv", "--output", tmp_path / "f.csv"]
    text = tsjt("forecast", "--checkpoint", trained, *rest, code=2)
    assert f"node {city.node_ids[2]!r}; readings must be finite, at most 1e+15 in size, and empty where" in text


def test_readings_are_not_written_over(tsjt, trained, tmp_path):
    city = load_city("demo/riverton").select("speed")
    table = pd.DataFrame(city.readings[600:612, :, 0].numpy(), index=city.time[600:612], columns=city.node_ids)
    table.to_csv(tmp_path / "a.csv")
    before = (tmp_path / "a.csv").read_bytes()
    here = tmp_path / ".." / tmp_path.name / "a.csv"
    text = tsjt("forecast", "--checkpoint", trained, "--readings", here, "--output", tmp_path / "a.csv", code=2)
    assert "is the file of the readings; choose another" in text
    assert (tmp_path / "a.csv").read_bytes() == before


def test_a_source_that_holds_the_test_period_is_refused_before_the_training(tsjt, tmp_path):
    replace(load_city("demo/riverton"), name="twin").save(tmp_path / "twin.npz")
    text = tsjt(
        "train", "--target", "demo/riverton", "--sources", tmp_path / "twin.npz", "--output", tmp_path / "r", code=2
    )
    assert "sources: twin holds the target's test period; leave it out" in text
    assert not (tmp_path / "r").exists()


def test_a_test_period_without_a_reading_is_found_out_before_the_training(tsjt, tmp_path):
    city = load_city("demo/riverton").select("speed").between(0, 4 * 288)
    city.mask[3 * 288 :] = False
    city.save(tmp_path / "dark.npz")
    text = tsjt(
        "train", "--target", tmp_path / "dark.npz", "--strategy", "target_only", "--output", tmp_path / "r", code=2
    )
    assert "test period: no reading was observed" in text
    assert not (tmp_path / "r").exists()


def test_compare_is_started_once(tsjt, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    text = tsjt("compare", *TARGET, "--output", tmp_path / "c", code=2)
    assert "compare: several processes would each do all runs; start one, with --jobs or --dask" in text


def test_a_folder_is_no_place_for_a_forecast(tsjt, trained, tmp_path):
    city = load_city("demo/riverton").select("speed")
    table = pd.DataFrame(city.readings[600:612, :, 0].numpy(), index=city.time[600:612], columns=city.node_ids)
    table.to_csv(tmp_path / "a.csv")
    text = tsjt("forecast", "--checkpoint", trained, "--readings", tmp_path / "a.csv", "--output", tmp_path, code=2)
    assert f"{tmp_path}: this is a folder" in text


def test_a_damaged_checkpoint_or_a_missing_file_ends_in_one_error(tsjt, trained, tmp_path):
    (tmp_path / "best.pt").write_bytes((trained / "best.pt").read_bytes()[:1000])
    rest = ["--readings", tmp_path / "none.csv", "--output", tmp_path / "f.csv"]
    assert "not a checkpoint, or a damaged one" in tsjt("forecast", "--checkpoint", tmp_path, *rest, code=2)
    assert "there is no file" in tsjt("forecast", "--checkpoint", tmp_path / "nowhere", *rest, code=2)
    assert "readings: there is no file" in tsjt("forecast", "--checkpoint", trained, *rest, code=2)
    save_checkpoint(tmp_path / "bare.pt", {"model": {}})
    assert "does not hold the model's settings" in tsjt("forecast", "--checkpoint", tmp_path / "bare.pt", *rest, code=2)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    assert "expected a checkpoint of format" in tsjt("forecast", "--checkpoint", tmp_path / "other.pt", *rest, code=2)


def test_compare_prints_and_writes_the_table(tsjt, tmp_path):
    text = tsjt(
        "compare", *TARGET, "--sources", "demo/ringwood", *TINY, "--strategies", "target_only,tsjt", "--seeds", 1,
        "--steps", 2, "--jobs", 1, "--output", tmp_path / "c",
    )  # fmt: skip
    for name in (
        "last value",
        "historical average",
        "last value and profile",
        "linear per node",
        "target_only",
        "tsjt",
    ):
        assert name in text
    written = list((tmp_path / "c").iterdir())
    assert {path.suffix for path in written if path.is_file()} == {".json", ".csv", ".png", ".jsonl"}
    assert [path.name for path in written if path.is_dir()] == ["details"]


def test_compare_ends_with_status_1_where_a_run_failed_and_tries_it_again(tsjt, tmp_path, monkeypatch):
    train_step = TrainingRun.train_step

    def breaks(run):
        if run.strategy.name == "pooled":
            raise FloatingPointError("the loss is not finite after step 0")
        train_step(run)

    monkeypatch.setattr(TrainingRun, "train_step", breaks)
    paths = [
        load_city(f"demo/{name}").select("speed").between(0, 900).save(tmp_path / f"{name}.npz")
        for name in ("riverton", "ringwood")
    ]
    compare = [
        "compare", "--target", paths[0], "--sources", paths[1], *TINY, "--strategies", "target_only,pooled",
        "--seeds", 1, "--steps", 1, "--jobs", 1, "--output", tmp_path / "c",
    ]  # fmt: skip
    text = tsjt(*compare, code=1)
    assert "failed: pooled, seed 0: FloatingPointError: the loss is not finite after step 0" in text
    assert "1 of 2 runs failed; the same command runs these again, and only these" in text
    monkeypatch.undo()
    assert "failed" not in tsjt(*compare)


def test_compare_without_the_cluster_it_should_use_ends_in_one_error(tsjt, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(sweep, "CONNECT_SECONDS", 1)
    text = tsjt("compare", *TARGET, *TINY, "--dask", "tcp://127.0.0.1:1", "--output", tmp_path / "c", code=2)
    assert "error: dask: no scheduler answers at 'tcp://127.0.0.1:1'" in text
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "demo/rivertown"], "there is no city 'demo/rivertown'; did you mean 'demo/riverton'?"),
        (["--target", "los_loop", "--root", "nowhere"], "there is no folder nowhere/los_loop"),
        ([*TARGET, "--sources", "demo/riverton"], "cannot be one of its own sources"),
        ([*TARGET, "--sources", "demo/ringwood,demo/ringwood"], "each city may be named once"),
        ([*TARGET, "--channel", "altitude"], "channels: demo/riverton has"),
        ([*TARGET, "--visible-days", "99"], "days: demo/riverton has 14.00 days"),
        ([*TARGET, "--visible-days", "1"], "show more days"),
        ([*TARGET, "--history", "5000"], "shorten history or horizon"),
        ([*TARGET, "--cell", "LSTM"], "cell: expected one of GConvGRU"),
        ([*TARGET, "--strategies", "magic"], "strategy: expected one of target_only"),
        ([*TARGET, "--validation-days", "inf"], "validation_days: expected a number of days, found inf"),
        ([*TARGET, "--device", "meta"], "device: 'meta' cannot be used here (expected cpu, cuda or mps)"),
        ([*TARGET, "--device", "toaster"], "device: 'toaster' cannot be used here"),
    ],
)
def test_bad_arguments_end_in_one_error_and_no_folder(tsjt, tmp_path, arguments, message):
    text = tsjt("compare", *arguments, "--output", tmp_path / "c", "--jobs", 1, code=2)
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "c").exists()


def test_doctor_names_a_package_that_is_missing(tsjt, monkeypatch):
    from tsjt_pyg import environment

    monkeypatch.setattr(environment, "_PACKAGES", ("torch", "no-such-package"))
    assert "no-such-package not installed pip install no-such-package" in tsjt("doctor", code=1)


@pytest.mark.parametrize(
    "content", ["from torch_geometric.typing import SparseTensor", "raise OSError('another torch')"]
)
def test_any_torch_sparse_that_lies_about_is_no_obstacle(tmp_path, content):
    (tmp_path / "torch_sparse.py").write_text(content)
    program = "import tsjt_pyg; from torch_geometric_temporal.nn.recurrent import GConvGRU, EvolveGCNO"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr


def test_without_pyg_temporal_the_package_imports_and_says_how_to_install_it(tmp_path):
    """In a fresh interpreter that cannot find torch_geometric_temporal."""
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torch_geometric_temporal" else find(name, *a)
import tsjt_pyg
from tsjt_pyg.training import ModelConfig
ModelConfig(cell="GRU").build()
for use in (ModelConfig(cell="TGCN").build, lambda: tsjt_pyg.City.from_adjacency(__import__("numpy").ones((30, 2)),
            __import__("numpy").ones((2, 2))).to_signal()):
    try:
        use()
    except ImportError as error:
        assert "pip install --no-deps torch-geometric-temporal==0.56.2" in str(error), error
    else:
        sys.exit("no error")
assert "torch_geometric_temporal" not in sys.modules and "torch_sparse" not in sys.modules
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr
