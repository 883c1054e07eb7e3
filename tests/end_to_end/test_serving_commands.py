"""`tsjt forecast` over files that come and go, and `tsjt export`, as a user types them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from tsjt_pyg.training import ModelConfig, fit, forecast_files


@pytest.fixture(scope="module")
def test_days(commuters):
    return commuters(missing=0.1).few_shot(3).test


@pytest.fixture(scope="module")
def trained(commuters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = ModelConfig(cell="GRU", hidden_channels=4, history=6, horizon=3)
    visible = commuters(missing=0.1).few_shot(3).visible
    settings = {"steps": 2, "batch_size": 4, "strategy": "target_only", "output": folder}
    fit(config.build(), visible, **settings)
    return folder


@pytest.fixture
def feed(tmp_path, test_days):
    """A folder for readings, and who writes them: by the number of the first step."""
    folder = tmp_path / "feed"
    folder.mkdir()

    def write(name, first=0, spoil=lambda table: table):
        values = test_days.readings[..., 0].masked_fill(~test_days.mask[..., 0], torch.nan).numpy()
        table = pd.DataFrame(values, index=test_days.time, columns=test_days.node_ids).iloc[first : first + 6]
        spoil(table).to_csv(folder / "half")
        (folder / "half").rename(folder / name)  # as a feed should: whole or not at all
        return table

    write.folder = folder
    return write


def test_a_folder_is_forecast_file_by_file_and_a_broken_one_is_named(tsjt, trained, feed, tmp_path):
    tables = {name: feed(f"{name}.csv", first) for name, first in (("a", 0), ("c", 7))}
    feed("b.csv", 2, lambda table: table.drop(index=table.index[2]))
    output = tmp_path / "out" / "forecasts"
    text = tsjt("forecast", "--checkpoint", trained, "--readings", feed.folder, "--output", output, code=2)
    assert f"error: {feed.folder / 'b.csv'}: readings: the model reads 6 steps, found 5 rows" in text
    assert sorted(path.name for path in output.iterdir()) == ["a.csv", "c.csv"]
    for name, table in tables.items():
        found = pd.read_csv(output / f"{name}.csv", index_col="time", parse_dates=True)
        assert list(found.columns) == list(table.columns)
        assert list(found.index) == list(pd.date_range(table.index[-1], periods=4, freq="60min")[1:])
        assert f"{output / name}.csv: 3 steps of 6 nodes (km/h)" in text


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_loop_goes_on_after_bad_files_and_ends_at_a_signal(
    tsjt, trained, feed, tmp_path, monkeypatch, single, sent, status
):
    readings = feed.folder / "latest.csv" if single else feed.folder
    output = tmp_path / ("forecast.csv" if single else "forecasts")
    written = output if single else output / "latest.csv"
    found = []
    scenes = iter(
        [
            lambda: feed("latest.csv", 0),
            lambda: feed("latest.csv", 3, lambda table: table.rename(columns={"0": "zero"})),
            lambda: (feed.folder / "latest.csv").write_text("time,0,1\n2024-03-0"),
            lambda: feed("latest.csv", 5),
            lambda: signal.raise_signal(sent),
        ]
    )

    def sleep(_):
        found.append(pd.read_csv(written, index_col=0).index[0] if written.exists() else None)
        next(scenes)()

    monkeypatch.setattr(forecast_files.time, "sleep", sleep)
    text = tsjt(
        "forecast", "--checkpoint", trained, "--readings", readings, "--output", output, "--every", "7", code=status
    )
    first, last = (f"2024-03-07 {hour:02}:00:00" for hour in (6, 11))
    assert found == [None, first, first, first, last]
    assert text.count("error:") == 1
    assert "column 'zero' is no node of target" in text
    assert text.count("half-written") <= 1  # a log of its own, which other tests may have set up elsewhere
    assert text.endswith("stopped ")
    assert "Traceback" not in text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_cannot_be_served_ends_in_one_error(tsjt, trained, feed, tmp_path):
    feed("a.csv")
    command = ["forecast", "--checkpoint", trained, "--readings"]
    assert "is the folder of the readings" in tsjt(*command, feed.folder, "--output", feed.folder, code=2)
    nowhere = tmp_path / "nowhere" / "a.csv"
    assert "readings: there is no file" in tsjt(*command, nowhere, "--output", tmp_path, "--every", 1, code=2)
    assert "every: expected a positive number of seconds, found 0" in tsjt(
        *command, feed.folder, "--output", tmp_path / "f", "--every", 0, code=2
    )


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_serves_until_it_is_told_to_stop(trained, feed, tmp_path, sent, status):
    output = tmp_path / "forecasts"
    command = [sys.executable, "-m", "tsjt_pyg", "forecast", "--checkpoint", trained, "--every", "0.1"]
    process = subprocess.Popen(
        [*command, "--readings", feed.folder, "--output", output], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for name in ("a.csv", "b.csv"):
            feed(name)
            begin = time.monotonic()
            while not (output / name).exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() - begin < 120
                time.sleep(0.05)
        process.send_signal(sent)
        text = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert process.returncode == status, text
    assert "stopped" in text
    assert sorted(path.name for path in output.iterdir()) == ["a.csv", "b.csv"]


def test_export_writes_a_program_for_raw_readings(tsjt, trained, feed, tmp_path):
    table = feed("a.csv", 4)
    text = tsjt("export", "--checkpoint", trained, "--output", tmp_path / "model.pt2")
    assert "model.pt2: 6 steps of 6 nodes in, 3 out (km/h), every 60 min" in text
    program = torch.export.load(tmp_path / "model.pt2").module()
    seconds = int((table.index[-1] - pd.Timestamp(0)).total_seconds())
    found = program(readings=torch.tensor(table.to_numpy())[None], time=torch.tensor([seconds]))[0]
    command = ["forecast", "--checkpoint", trained, "--readings", feed.folder / "a.csv"]
    tsjt(*command, "--output", tmp_path / "forecast.csv")
    expected = torch.from_numpy(pd.read_csv(tmp_path / "forecast.csv", index_col=0).to_numpy())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    assert "end in .pt2" in tsjt("export", "--checkpoint", trained, "--output", tmp_path / "model.pt", code=2)
