"""A training that is killed at any moment goes on from its checkpoint and ends as if nothing had happened."""

import random
import signal
import time

import pytest

from tsjt_pyg.training.checkpoint import LAST, kept_checkpoints, load_checkpoint

TRAIN = [
    "train", "--target", "demo/riverton", "--sources", "demo/ringwood", "--strategy", "tsjt", "--cell", "GRU",
    "--hidden", "8", "--batch-size", "4", "--visible-days", "2", "--validation-days", "0.25", "--checkpoint-every", "1",
    "--resume", "--output",
]  # fmt: skip


def wait_for(file, command):
    while not file.is_file():
        assert command.process
        time.sleep(0.002)


def train(start_tsjt, folder, steps):
    """An uninterrupted training, and the seconds to its first checkpoint and to its end."""
    started = time.monotonic()
    command = start_tsjt(*TRAIN, folder, "--steps", steps)
    wait_for(folder / LAST, command)
    first = time.monotonic() - started
    assert command.wait() == 0, command.log.read_text()
    return first, time.monotonic() - started


def kill_and_resume(start_tsjt, outcome, tmp_path, steps, kills, delay, seed):
    """Kills until there were as many, each after the delay that is drawn; compares every run that got to its end.

    Returns:
        Where the kills came: before the first checkpoint, within the writing of a file, elsewhere.
    """
    train(start_tsjt, tmp_path / "whole", steps) if not (tmp_path / "whole").exists() else None
    expected = outcome(tmp_path / "whole")
    rng, where = random.Random(seed), {"start": 0, "write": 0, "step": 0}
    folder, runs = tmp_path / "run0", 0
    while True:
        before = len(kept_checkpoints(folder))
        reached = load_checkpoint(folder, prefer=LAST)["step"] if before else 0
        command = start_tsjt(*TRAIN, folder, "--steps", steps)
        if sum(where.values()) < kills:
            time.sleep(rng.uniform(0, delay))
            status = command.kill(signal.SIGKILL)
        else:
            status = command.wait()
        if status == 0:
            assert outcome(folder) == expected
            assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
            if sum(where.values()) == kills:
                return where
            runs += 1
            folder = tmp_path / f"run{runs}"
            continue
        assert status == -signal.SIGKILL, command.log.read_text()
        if not kept_checkpoints(folder):
            where["start"] += 1
            continue
        assert (folder / LAST).is_file()
        content = load_checkpoint(folder / LAST)  # itself, not the one before
        assert content["step"] >= reached
        where["write" if any(path.name.startswith(".") for path in folder.iterdir()) else "step"] += 1


def test_a_killed_training_ends_with_the_same_bits(start_tsjt, outcome, tmp_path):
    first, whole = train(start_tsjt, tmp_path / "whole", 12)
    expected, folder = outcome(tmp_path / "whole"), tmp_path / "run"
    for step in (2, 6):
        command = start_tsjt(*TRAIN, folder, "--steps", 12)
        while not (folder / LAST).is_file() or load_checkpoint(folder / LAST)["step"] < step:
            time.sleep(0.005)
        assert command.kill(signal.SIGKILL) == -signal.SIGKILL
    command = start_tsjt(*TRAIN, folder, "--steps", 12)
    assert command.wait() == 0, command.log.read_text()
    assert outcome(folder) == expected


def test_sigterm_ends_a_training_like_ctrl_c_does(start_tsjt, tmp_path):
    command = start_tsjt(*TRAIN, tmp_path, "--steps", 10_000)
    wait_for(tmp_path / LAST, command)
    assert command.kill(signal.SIGTERM) == 128 + signal.SIGTERM
    step = load_checkpoint(tmp_path / LAST)["step"]
    assert (
        f"stopped at step {step} of 10000; resume=True (--resume) continues from step {step}" in command.log.read_text()
    )


@pytest.mark.slow
def test_thirty_kills_at_random_moments_change_nothing(start_tsjt, outcome, tmp_path, record_property):
    steps = 200
    first, whole = train(start_tsjt, tmp_path / "whole", steps)
    delay = first + (whole - first) / 10
    where = kill_and_resume(start_tsjt, outcome, tmp_path, steps, 30, delay, seed=7)
    record_property("kills", where)
    print(f"30 kills: {where}; uninterrupted {whole:.1f} s, to the first checkpoint {first:.1f} s")  # noqa: T201
    assert where["write"] + where["step"] >= 5
