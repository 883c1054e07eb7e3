"""Files of readings are forecast once each time they are new or changed, and broken ones harm no other."""

from __future__ import annotations

import contextlib
import errno
import os

import pandas as pd
import pytest

from tsjt_pyg.training import forecast_files
from tsjt_pyg.training.forecast_files import changed_files, forecast_file, read_readings

CSV = "time,a,b\n2024-03-04 08:00,1,2\n2024-03-04 08:05,3,\n"


class AsleepError(Exception):
    """The loop waits: the test goes on."""


@pytest.fixture
def looks(monkeypatch):
    """What each look at the files gives, without waiting in between."""

    def look(readings, *between):
        pauses, found = iter(between), [[]]

        def sleep(seconds):
            assert 0 <= seconds <= 5
            change = next(pauses, None)
            if change is None:
                raise AsleepError
            change()
            found.append([])

        monkeypatch.setattr(forecast_files.time, "sleep", sleep)
        with contextlib.suppress(AsleepError):
            for file in changed_files(readings, every=5):
                found[-1].append(file.name)
        return found

    return look


def test_new_and_changed_files_come_once_each(looks, tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "B.CSV"
    first.write_text(CSV)

    def replaced():
        (tmp_path / "new").write_text(CSV)
        os.utime(tmp_path / "new", ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
        (tmp_path / "new").replace(first)  # same time and size, another file

    found = looks(
        tmp_path,
        lambda: second.write_text(CSV),
        lambda: None,
        lambda: second.write_text(CSV + "2024-03-04 08:10,3,4\n"),
        replaced,
        first.unlink,
        lambda: first.write_text(CSV),
    )
    assert found == [["a.csv"], ["B.CSV"], [], ["B.CSV"], ["a.csv"], [], ["a.csv"]]


def test_other_files_and_temporary_ones_are_left_alone(looks, tmp_path):
    for name in (".a.csv.x1.csv", "notes.txt", "a.csv.part"):
        (tmp_path / name).write_text(CSV)
    assert looks(tmp_path) == [[]]


@pytest.mark.parametrize("half", ["", "time,a", CSV[:-3]])
def test_a_half_written_file_waits_until_it_is_whole(looks, tmp_path, caplog, half):
    file = tmp_path / "a.csv"
    file.write_text(half)
    assert looks(tmp_path, lambda: None, lambda: file.write_text(CSV)) == [[], [], ["a.csv"]]
    assert caplog.messages == [f"{file}: it does not end with a line break, so it is taken for half-written"]


def test_a_single_file_may_come_later(looks, tmp_path):
    file = tmp_path / "latest.csv"
    assert looks(file, lambda: file.write_text(CSV), lambda: None) == [[], ["latest.csv"], []]


def test_one_look_ends(tmp_path):
    (tmp_path / "a.csv").write_text(CSV.rstrip("\n"))  # who asks once gets what there is
    assert [file.name for file in changed_files(tmp_path)] == ["a.csv"]
    assert [file.name for file in changed_files(tmp_path / "a.csv")] == ["a.csv"]


def test_what_cannot_be_looked_at_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="readings: there is no file"):
        next(changed_files(tmp_path / "a.csv"))
    with pytest.raises(FileNotFoundError, match="readings: there is no file"):
        next(changed_files(tmp_path / "nowhere" / "a.csv", every=1))
    for every in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="every: expected a positive number of seconds"):
            next(changed_files(tmp_path, every=every))


def test_a_share_that_is_away_for_a_while_ends_nothing(looks, tmp_path, monkeypatch, caplog):
    tables = forecast_files._tables

    def away():
        def fail(folder):
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(forecast_files, "_tables", fail)

    def back():
        monkeypatch.setattr(forecast_files, "_tables", tables)
        (tmp_path / "b.csv").write_text(CSV)

    (tmp_path / "a.csv").write_text(CSV)
    assert looks(tmp_path, away, back, lambda: None) == [["a.csv"], [], ["b.csv"], []]
    assert "cannot be looked at" in caplog.text
    away()
    with pytest.raises(OSError, match="Stale"):
        next(changed_files(tmp_path))


class Echo:
    """A model that gives back what it is given."""

    def __init__(self, during=lambda: None):
        self.during = during

    def forecast(self, table):
        self.during()
        if len(table) < 2:
            raise ValueError("readings: the model reads 2 steps, found 1 rows")
        return table


def test_a_forecast_is_written_whole_or_not_at_all(tmp_path):
    readings, output = tmp_path / "a.csv", tmp_path / "f.csv"
    readings.write_text(CSV)
    forecast_file(Echo(), readings, output)
    written = output.read_text()
    assert pd.read_csv(output).to_numpy().tolist()[0] == ["2024-03-04 08:00:00", 1, 2]
    readings.write_text(CSV.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(ValueError, match=r"a\.csv: readings: the model reads 2 steps, found 1 rows"):
        forecast_file(Echo(), readings, output)
    readings.write_text(CSV)
    changing = Echo(lambda: readings.write_text(CSV + CSV))
    with pytest.raises(ValueError, match=r"a\.csv: it was written to while it was read; write it elsewhere and rename"):
        forecast_file(changing, readings, output)
    with pytest.raises(FileNotFoundError, match="readings: there is no file"):
        forecast_file(Echo(), tmp_path / "gone.csv", output)
    assert output.read_text() == written
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "f.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("time,a\n2024-03-04 08:00,1,2,3\n2024-03-04,1\n1,2,3,4,5\n", "cannot be read as CSV|must hold times"),
        ("time,a\n8 o'clock,1\n", "the first column must hold times such as 2024-03-04 08:05"),
        (
            "time,a\n09.03.2026 23:00,1\n",
            r"such as 2024-03-04 08:05 \(.*09\.03\.2026 23:00.*[^.:]\); of a table in another form, City.from_tables",
        ),
        ("time;a;b\n2024-03-04 08:00;1;2\n", r"must hold times .*08:00;1;2.*; of a table in another form"),
        ("time;a;b\n2024-03-04 08:00;1,5;2,5\n", r"with commas between columns \(.*\); of a table in another form"),
        ("time,a,b\n2024-03-04 08:00,1,fog\n", "column 'b', 2024-03-04 08:00:00: found 'fog', expected a number"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_readings(tmp_path / "a.csv")
    assert str(tmp_path / "a.csv") in str(error.value)


def test_an_empty_column_is_a_dead_sensor(tmp_path):
    (tmp_path / "a.csv").write_text("time,a,b\n2024-03-04 08:00,1,\n2024-03-04 08:05,2,\n")
    assert read_readings(tmp_path / "a.csv")["b"].isna().all()
