"""What a run's folder holds, which of it is kept, and what a run that continues takes and refuses."""

import copy
import errno
import logging
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tsjt_pyg.training import ModelConfig, fit
from tsjt_pyg.training import checkpoint as checkpoints
from tsjt_pyg.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from tsjt_pyg.training.trainer import TrainingStopped

CONFIG = ModelConfig(cell="GRU", hidden_channels=4, history=6, horizon=3, profile=False)
SETTINGS = {"steps": 8, "batch_size": 4, "evaluations": 2, "checkpoint_every": 2}


def new_model(config=CONFIG):
    torch.manual_seed(0)
    return config.build()


@pytest.fixture(scope="module")
def visible(commuters):
    return commuters("target", seed=1).few_shot(2)[0]


@pytest.fixture
def stopped(visible, tmp_path):
    """The folder of a run that was stopped after step 5."""
    asked = iter(range(1, 9))
    with pytest.raises(
        TrainingStopped, match=r"stopped at step 5 of 8; resume=True \(--resume\) continues from step 5"
    ):
        train(visible, tmp_path / "run", keep=3, stop=lambda: next(asked) == 5)
    return tmp_path / "run"


def train(visible, folder, model=None, **settings):
    model = new_model() if model is None else model
    return fit(model, visible, [], "target_only", output=folder, **{**SETTINGS, **settings})


def steps_in(folder):
    return {path.name: torch.load(path, weights_only=True)["step"] for path in sorted(folder.glob("last*.pt"))}


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # an older one may be the same file by another name
    path.write_bytes(content)


def test_the_last_ones_are_kept_and_the_newest_is_last_pt(visible, tmp_path, stopped):
    assert steps_in(stopped) == {"last.pt": 5, "last-1.pt": 4, "last-2.pt": 2}
    train(visible, stopped, resume=True)
    assert steps_in(stopped) == {"last.pt": 8, "last-1.pt": 6}
    train(visible, tmp_path / "one", keep=1)
    assert steps_in(tmp_path / "one") == {"last.pt": 8}


def test_continuing_a_finished_run_pushes_no_checkpoint_out(visible, tmp_path):
    whole = train(visible, tmp_path)
    before = steps_in(tmp_path)
    (tmp_path / "best.pt").unlink()
    again = train(visible, tmp_path, resume=True)
    assert steps_in(tmp_path) == before == {"last.pt": 8, "last-1.pt": 6}
    assert load_checkpoint(tmp_path / "best.pt")["step"] == again.best_step == whole.best_step


def test_without_links_the_older_ones_are_kept_all_the_same(visible, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    train(visible, tmp_path)
    assert steps_in(tmp_path) == {"last.pt": 8, "last-1.pt": 6}


def test_a_damaged_newest_gives_way_to_the_one_before_with_a_warning_and_the_same_bits(
    visible, stopped, tmp_path, caplog
):
    whole = train(visible, tmp_path / "whole")
    spoil(stopped / "last.pt")
    resumed = train(visible, stopped, resume=True, keep=3)
    assert (
        f"{stopped / 'last.pt'}: not a checkpoint, or a damaged one (its content is not what its SHA-256" in caplog.text
    )
    assert f"the one before it is taken: {stopped / 'last-1.pt'}, step 4" in caplog.text
    assert all(torch.equal(whole.last_model[name], value) for name, value in resumed.last_model.items())
    assert whole.log == resumed.log
    assert steps_in(stopped) == {"last.pt": 8, "last-1.pt": 6, "last-2.pt": 4}  # the damaged one was written over


def test_where_none_is_good_the_error_names_all_and_the_way_out(visible, stopped):
    for path in stopped.glob("last*.pt"):
        spoil(path)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(ValueError, match=r"last\.pt: .*last-1\.pt: .*last-2\.pt: .* No checkpoint in .* is good: tr"):
        train(visible, stopped, resume=True)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_best_pt_is_taken_from_the_last_one_where_it_is_damaged_or_not_there(stopped, caplog):
    expected = load_checkpoint(stopped)
    spoil(stopped / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt: not a checkpoint, or a damaged one .* look for it"):
        load_checkpoint(stopped / "best.pt")
    for there in (True, False):
        if not there:
            (stopped / "best.pt").unlink()
        rebuilt = load_checkpoint(stopped)
        assert rebuilt.keys() | {"format"} == expected.keys()
        assert rebuilt["step"] == expected["step"]
        assert all(torch.equal(rebuilt["model"][name], value) for name, value in expected["model"].items())
    assert f"what it held was taken from {stopped / 'last.pt'}" in caplog.text
    assert f"there is no {stopped / 'best.pt'}" in caplog.text


def refused(visible, folder, message, model=None):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        train(visible, folder, model, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_city_is_refused_with_what_differs(visible, stopped):
    other = replace(visible, readings=visible.readings + 1.0)
    refused(other, stopped, r"another run: target\.fingerprint \(there '.*', here '.*'\)\. Use the same settings")
    refused(replace(visible, name="elsewhere"), stopped, r"target\.name \(there 'target', here 'elsewhere'\)")


def test_another_architecture_is_refused_with_what_differs(visible, stopped):
    wider = new_model(replace(CONFIG, hidden_channels=5))
    refused(visible, stopped, r"another run: model\.hidden_channels \(there 4, here 5\)\. Use", wider)
    wider.config = CONFIG  # of a model that was changed after ModelConfig built it, the parameters tell
    refused(
        visible, stopped, r"parameter \S+ \(there float32 \[.*\], here float32 \[.*\]\); .*; and \d+ more\. Use", wider
    )
    more = new_model()
    more.register_buffer("extra", torch.zeros(2))
    refused(visible, stopped, r"parameter extra \(there none, here float32 \[2\]\)\.", more)
    double = new_model().double()
    refused(visible, stopped, r"\(there float32 \[.*\], here float64", double)


def test_another_format_is_refused_with_what_differs(visible, stopped, monkeypatch):
    content = torch.load(stopped / "last.pt", weights_only=True)
    torch.save({**content, "format": "tsjt_pyg.checkpoint/1"}, stopped / "last.pt")  # as it was: without a seal
    refused(
        visible, stopped, r"expected a checkpoint of format tsjt_pyg.checkpoint/2, found tsjt_pyg.checkpoint/1; use"
    )
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", "tsjt_pyg.checkpoint/3")
        save_checkpoint(stopped / "last.pt", {name: content[name] for name in content if name != "format"})
    refused(visible, stopped, r"format tsjt_pyg.checkpoint/2, found tsjt_pyg.checkpoint/3; use the version of tsjt_pyg")
    torch.save([1, 2], stopped / "last.pt")
    refused(visible, stopped, r"expected a checkpoint of format .*, found none")


def test_a_model_alone_cannot_be_continued(visible, stopped):
    (stopped / "last.pt").write_bytes((stopped / "best.pt").read_bytes())
    refused(visible, stopped, r"last\.pt holds a model alone, as best\.pt does")


@pytest.mark.parametrize("package", ["torch", "tsjt-pyg"])
def test_another_version_is_refused_with_what_differs(visible, stopped, package):
    content = load_checkpoint(stopped / "last.pt")
    save_checkpoint(stopped / "last.pt", {**content, "versions": {**content["versions"], package: "0.0"}})
    refused(
        visible, stopped, rf"resume: .*last\.pt is of .*{package} 0\.0.*, here is .* not end with the same bits; inst"
    )


def test_numbers_of_numpy_are_kept_as_those_of_python(visible, tmp_path):
    lr, days = np.logspace(-3, -2, 3)[1], np.float32(0.5)
    half = {"lr": lr, "validation_days": days, "steps": np.int64(4), "config": {"note": np.float64(1.5)}}
    with pytest.raises(TrainingStopped):
        train(visible, tmp_path / "run", stop=lambda: True, **half)
    resumed = train(visible, tmp_path / "run", resume=True, **half)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["config"]["lr"] == lr
    whole = train(visible, tmp_path / "whole", **half)
    assert all(torch.equal(value, whole.last_model[name]) for name, value in resumed.last_model.items())


def test_other_processes_are_told_of_damage_in_the_same_words():
    error = DamagedCheckpointError("last.pt: half-written", "Train anew")
    told = pickle.loads(pickle.dumps(error))
    assert (type(told), str(told), told.reason) == (type(error), str(error), error.reason)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked here")
def test_two_trainings_cannot_write_to_one_folder(visible, stopped, tmp_path):
    def another(done, total):
        if done == 3:
            with pytest.raises(
                ValueError, match=r"output: another training is writing to .*; wait for its end, or give"
            ):
                train(visible, folder, resume=True)

    for folder in (stopped, tmp_path / "new"):
        train(visible, folder, resume=True, progress=another)
        train(visible, folder, resume=True)  # its end is the end of that


class CrashError(BaseException):
    pass


def crashing(monkeypatch, number, what):
    """The numbered operation on files raises."""
    done = 0

    def counted(operation):
        def run(*arguments, **options):
            nonlocal done
            done += 1
            if done == number:
                raise what
            return operation(*arguments, **options)

        return run

    for name in ("replace", "hardlink_to", "chmod"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    return lambda: done


@pytest.mark.parametrize("what", [CrashError(), OSError(errno.ENOSPC, "No space left on device")], ids=["stop", "full"])
def test_whatever_operation_on_files_is_the_last_one_the_newest_checkpoint_is_good(
    visible, stopped, tmp_path, monkeypatch, what
):
    content = {path.name: path.read_bytes() for path in stopped.iterdir()}
    number = 0
    while True:
        number += 1
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
        with monkeypatch.context() as patch:
            done = crashing(patch, number, copy.copy(what))
            try:
                train(visible, folder, resume=True, keep=3, checkpoint_every=99)
            except (CrashError, OSError) as error:  # not always: a link that cannot be made is done without
                message = str(error)
            else:
                message = None
        if message and isinstance(what, OSError):
            assert f": {folder}/" in message
            assert "the disk is full; make room there" in message
            assert f"resume=True (--resume) continues from step {steps_in(folder)['last.pt']}, " in message
        if done() < number:
            break
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert load_checkpoint(folder / "last.pt")["step"] in (5, 8)
        for path in (*folder.glob("last*.pt"), folder / "best.pt"):
            load_checkpoint(path)
        assert (folder / "last-1.pt").is_file() or (folder / "last-2.pt").is_file()
    assert number > 12


def test_what_a_killed_process_left_is_removed_and_nothing_else(visible, stopped):
    left, other = stopped / ".last.pt.k3x_09ab.pt", stopped / ".notes.txt"
    left.write_bytes(b"PK")
    other.write_text("mine")
    train(visible, stopped, resume=True)
    assert not left.exists()
    assert other.exists()


def test_a_run_without_output_that_is_stopped_says_that_nothing_was_written(visible):
    with pytest.raises(TrainingStopped, match="stopped at step 1 of 8; nothing was written"):
        fit(new_model(), visible, [], "target_only", steps=8, stop=lambda: True)


def test_an_interrupt_in_a_step_keeps_the_last_checkpoint_and_says_so(visible, tmp_path, caplog):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        train(visible, tmp_path, progress=interrupt)
    assert (
        f"stopped at step 3 of 8; resume=True (--resume) continues from step 2, {tmp_path / 'last.pt'}" in caplog.text
    )
    assert steps_in(tmp_path) == {"last.pt": 2}
