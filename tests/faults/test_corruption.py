"""Whatever happens to the bytes of a checkpoint, it is not loaded as a good one."""

import random

import pytest
import torch

from tsjt_pyg.training import ModelConfig, fit
from tsjt_pyg.training.checkpoint import load_checkpoint
from tsjt_pyg.training.sealed_file import DamagedFileError, check_seal, save_sealed


@pytest.fixture(scope="module")
def folder(commuters, tmp_path_factory):
    """A finished run's."""
    visible, _ = commuters("target", seed=1).few_shot(2)
    model = ModelConfig(cell="GRU", hidden_channels=4, history=6, horizon=3, profile=False).build()
    folder = tmp_path_factory.mktemp("run")
    fit(model, visible, [], "target_only", steps=2, batch_size=4, evaluations=1, output=folder)
    return folder


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_of_200_checkpoints_with_a_flipped_byte_none_is_loaded(folder, tmp_path, name):
    content, rng, file = (folder / name).read_bytes(), random.Random(0), tmp_path / name
    found = 0
    for _ in range(200):
        spoiled = bytearray(content)
        spoiled[rng.randrange(len(content))] ^= rng.randint(1, 255)
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match=f"{name}: not a checkpoint, or a damaged one"):
            load_checkpoint(file)
        found += 1
    assert found == 200
    file.write_bytes(content)
    assert load_checkpoint(file)["step"] <= 2


def test_no_byte_of_a_sealed_file_can_change(tmp_path):
    file = tmp_path / "small.pt"
    save_sealed(file, {"x": torch.arange(3.0)})
    content = file.read_bytes()
    check_seal(file)
    for position in range(len(content)):
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << position % 8
        file.write_bytes(spoiled)
        with pytest.raises(DamagedFileError):
            check_seal(file)


def test_a_sealed_file_is_an_ordinary_one_of_torch(tmp_path):
    file = tmp_path / "small.pt"
    save_sealed(file, {"x": torch.arange(3.0)})
    for options in ({}, {"mmap": True}):
        assert torch.equal(torch.load(file, weights_only=True, **options)["x"], torch.arange(3.0))


def test_files_that_are_cut_off_zeroed_doubled_or_shuffled_are_not_loaded(folder, tmp_path):
    content, rng, file = (folder / "last.pt").read_bytes(), random.Random(1), tmp_path / "last.pt"
    size, block = len(content), 512
    damaged = [content[: rng.randrange(size)] for _ in range(50)]
    damaged += [b"", content[:-1], content + b"\0", content + content, content[1:], bytes(size)]
    for start in range(0, size, block):
        zeroed = content[:start] + bytes(min(block, size - start)) + content[start + block :]
        if zeroed != content:
            damaged.append(zeroed)
    first, second = content[:block], content[block : 2 * block]
    damaged.append(second + first + content[2 * block :])
    assert len(damaged) > 80
    for spoiled in damaged:
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match="not a checkpoint, or a damaged one"):
            load_checkpoint(file)
