"""Where the disk is full, a training stops with one error, and what it had written stays good."""

import errno
import subprocess

import pytest
import torch

from tsjt_pyg.training import ModelConfig, fit
from tsjt_pyg.training.checkpoint import load_checkpoint

SETTINGS = {"steps": 6, "batch_size": 4, "evaluations": 2, "checkpoint_every": 2}


def train(visible, folder, **settings):
    torch.manual_seed(0)
    model = ModelConfig(cell="GRU", hidden_channels=32, history=6, horizon=3, profile=False).build()
    return fit(model, visible, [], "target_only", output=folder, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def visible(commuters):
    return commuters("target", seed=1).few_shot(2)[0]


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes."""
    folder = tmp_path / "disk"

    def mount(size):
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            folder.rmdir()
            pytest.skip(f"no file system can be mounted here ({error})")
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("files", [1.5, 2.5, 3.5])
def test_a_full_disk_leaves_the_last_checkpoint_and_no_other_file(visible, tmp_path, small_disk, files):
    whole = train(visible, tmp_path / "whole")
    disk = small_disk(int(files * (tmp_path / "whole" / "last.pt").stat().st_size))
    with pytest.raises(OSError, match="stopped at step") as found:
        train(visible, disk / "run", keep=3)
    message, run = str(found.value), disk / "run"
    assert found.value.errno == errno.ENOSPC
    assert f": {run}/" in message
    assert ".pt: cannot be written, the disk is full; make room there or choose another folder (what was" in message
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    step = load_checkpoint(run / "last.pt")["step"]
    assert f"resume=True (--resume) continues from step {step}, {run / 'last.pt'}" in message
    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    resumed = train(visible, run, resume=True)
    assert all(torch.equal(value, whole.last_model[name]) for name, value in resumed.last_model.items())


def test_a_command_that_may_write_no_more_ends_in_one_error_and_goes_on_later(start_tsjt, tmp_path):
    train = [
        "train", "--target", "demo/riverton", "--strategy", "target_only", "--cell", "GRU", "--hidden", "8",
        "--batch-size", "4", "--visible-days", "2", "--validation-days", "0.25", "--steps", "4", "--checkpoint-every",
        "1", "--resume", "--output", tmp_path / "run",
    ]  # fmt: skip
    refused = start_tsjt(*train, largest=50_000)
    assert refused.wait() == 2
    assert f"{tmp_path / 'run' / 'last.pt'}: cannot be written, it grew too large" in refused.printed()
    assert "there is no checkpoint yet" in refused.printed()
    assert "Traceback" not in refused.printed()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json"}
    resumed = start_tsjt(*train)
    assert resumed.wait() == 0, resumed.printed()
    size = (tmp_path / "run" / "metrics.json").stat().st_size
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    exporting = ["export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "city.pt2"]
    unwritten = start_tsjt(*exporting, largest=20_000)
    assert unwritten.wait() == 2, unwritten.printed()
    assert f"{tmp_path / 'city.pt2'}: cannot be written, it grew too large" in unwritten.printed()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    again = start_tsjt(*train, largest=size // 2)  # config.json is smaller
    assert again.wait() == 2
    assert "cannot be written, it grew too large" in again.printed()
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
