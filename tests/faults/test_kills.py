"""A training that is killed at any moment goes on from its checkpoint and ends as if nothing had happened."""

import random
import signal
import time

import pytest

from tsjt_pyg.training.checkpoint import LAST, load_checkpoint

TRAIN = [
    "train", "--target", "demo/riverton", "--sources", "demo/ringwood", "--strategy", "tsjt", "--cell", "GRU",
    "--hidden", "8", "--batch-size", "4", "--visible-days", "2", "--validation-days", "0.25", "--checkpoint-every", "1",
    "--resume", "--output",
]  # fmt: skip


def wait_for(command, what):
    """Until it is so, while the command runs."""
    while not what():
        assert command.is_running(), command.printed()
        time.sleep(0.001)


def wait_for_checkpoints(command, file, count):
    """Until so many more were written."""

    def identity():
        return (found := file.stat()).st_ino, found.st_mtime_ns

    before = identity() if file.is_file() else None
    for _ in range(count):
        wait_for(command, lambda before=before: file.is_file() and identity() != before)
        before = identity()


def train(start_tsjt, folder, steps):
    """An uninterrupted training, and the seconds to its first checkpoint and to its end."""
    started = time.monotonic()
    command = start_tsjt(*TRAIN, folder, "--steps", steps)
    wait_for(command, (folder / LAST).is_file)
    first = time.monotonic() - started
    assert command.wait() == 0, command.printed()
    return first, time.monotonic() - started


def test_a_killed_training_ends_with_the_same_bits(start_tsjt, outcome, tmp_path):
    train(start_tsjt, tmp_path / "whole", 40)
    folder = tmp_path / "run"
    last = folder / LAST
    for step in (2, 6):
        command = start_tsjt(*TRAIN, folder, "--steps", 40)
        wait_for(command, lambda step=step: last.is_file() and load_checkpoint(last)["step"] >= step)
        assert command.kill(signal.SIGKILL) == -signal.SIGKILL
    command = start_tsjt(*TRAIN, folder, "--steps", 40)
    assert command.wait() == 0, command.printed()
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_sigterm_ends_a_training_like_ctrl_c_does(start_tsjt, tmp_path):
    command = start_tsjt(*TRAIN, tmp_path, "--steps", 10_000)
    wait_for(command, (tmp_path / LAST).is_file)
    assert command.kill(signal.SIGTERM) == 128 + signal.SIGTERM
    step = load_checkpoint(tmp_path / LAST)["step"]
    assert f"stopped at step {step} of 10000; resume=True (--resume) continues from step {step}," in command.printed()


@pytest.mark.slow
def test_thirty_kills_at_random_moments_of_a_run_change_nothing(start_tsjt, outcome, tmp_path):
    steps, rng = 480, random.Random(7)  # about twice of what thirty pieces come to
    first, seconds = train(start_tsjt, tmp_path / "whole", steps)
    folder = tmp_path / "run"
    last, reached = folder / LAST, 0
    where = {"before the first checkpoint": 0, "as a file was written": 0, "else": 0}
    for _ in range(30):
        command = start_tsjt(*TRAIN, folder, "--steps", steps)
        # Counted in checkpoints, so that a machine that is faster or slower at times is killed as often on the way.
        checkpoints = rng.randrange(13)
        wait_for_checkpoints(command, last, checkpoints)
        time.sleep(rng.uniform(0, 0.05 if checkpoints else first / 3))
        assert command.kill(signal.SIGKILL) == -signal.SIGKILL, command.printed()
        if not last.is_file():
            assert not reached
            where["before the first checkpoint"] += 1
            continue
        step = load_checkpoint(last)["step"]  # the newest itself is good
        assert step >= reached + checkpoints
        reached = step
        where["as a file was written" if any(p.name.startswith(".") for p in folder.iterdir()) else "else"] += 1
    command = start_tsjt(*TRAIN, folder, "--steps", steps)
    assert command.wait() == 0, command.printed()
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    # What docs/long_runs.md says; `pytest -s` shows it.
    print(f"{where}, the last at step {reached}; uninterrupted: {seconds:.1f} s, of which {first:.1f} s to the first")  # noqa: T201
