"""What is stored of a city as a data set of PyG, and when it is made anew."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric import transforms
from torch_geometric.data import Data

from tsjt_pyg.datasets import LosLoop, load_city
from tsjt_pyg.datasets import pyg as module
from tsjt_pyg.datasets.named import NamedCityDataset
from tsjt_pyg.datasets.stored import described

NAMED = NamedCityDataset.__subclasses__()
RIVERTON = load_city("demo/riverton")


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which cities are read from their files from now on."""
    names: list[str] = []
    monkeypatch.setattr(module, "load_city", lambda name, root: (names.append(name), load_city(name, root))[1])
    return names


def test_what_is_stored_is_used_again(los_loop, monkeypatch):
    read = calls(monkeypatch)
    LosLoop(los_loop)
    LosLoop(los_loop, 6, 3, transform=transforms.ToUndirected())  # other windows of the same city
    assert read == ["los_loop"]
    LosLoop(los_loop, force_reload=True)
    assert read == ["los_loop"] * 2


def test_it_is_loaded_without_pickles(los_loop):
    dataset = LosLoop(los_loop, pre_transform=transforms.AddRandomWalkPE(2), pre_filter=lambda data: True)
    files = list(Path(dataset.processed_dir).iterdir())
    assert [file.name for file in files] == ["city.pt"]
    state = torch.load(files[0], weights_only=True)
    assert state["made_of"]["format"] == module.FORMAT
    assert torch.equal(state["readings"], dataset.city.readings)


def test_other_arguments_make_it_anew(los_loop, monkeypatch):
    read = calls(monkeypatch)
    LosLoop(los_loop)
    assert LosLoop(los_loop, pre_transform=transforms.AddRandomWalkPE(2))[0].random_walk_pe.shape == (3, 2)
    assert LosLoop(los_loop, pre_transform=transforms.AddRandomWalkPE(4))[0].random_walk_pe.shape == (3, 4)
    assert len(LosLoop(los_loop, pre_filter=lambda data: bool(data.x[0, 0, 0] > 0))) == 7
    assert "random_walk_pe" not in LosLoop(los_loop)[0]
    assert len(read) == 5


def in_a_closure(value):
    return lambda data: value


class Slim:
    """A transform with an attribute that counts its calls, and one that refers to itself."""

    def __init__(self, value: float) -> None:
        self.value, self.calls, self.me = value, 0, self

    def __call__(self, data: Data) -> Data:
        self.calls += 1
        return data

    def method(self, data: Data) -> Data:
        return data


def kwargs(data, *, scale=1):
    return data


def kwargs_of_two(data, *, scale=2):
    return data


kwargs_of_two.__qualname__ = "kwargs"

ALIKE = [
    (transforms.AddRandomWalkPE(2), transforms.AddRandomWalkPE(3)),
    (transforms.Compose([transforms.AddRandomWalkPE(2)]), transforms.Compose([transforms.AddRandomWalkPE(3)])),
    (lambda data: data.x > 1, lambda data: data.x > 2),
    (lambda data: data.x, lambda data: data.y),
    (lambda data: [v > 1 for v in data], lambda data: [v > 2 for v in data]),
    (in_a_closure(1), in_a_closure(2)),
    (in_a_closure(torch.zeros(2000)), in_a_closure(torch.zeros(2000).index_fill(0, torch.tensor([999]), 1.0))),
    (in_a_closure(np.zeros(2000)), in_a_closure(np.eye(1, 2000, 999)[0])),
    (in_a_closure({"a"}), in_a_closure({"b"})),
    (Slim(1.0), Slim(2.0)),
    (Slim(1.0).method, Slim(2.0).method),
    (partial(in_a_closure, 1), partial(in_a_closure, 2)),
    (kwargs, kwargs_of_two),
    (None, lambda data: data),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_transforms_are_told_apart(one, other):
    assert described(one) != described(other)
    assert described(one) == described(copy.deepcopy(one))


def test_a_description_is_the_same_in_another_process():
    code = (
        "from torch_geometric import transforms\n"
        "from tsjt_pyg.datasets.stored import described\n"
        "print(described([transforms.AddRandomWalkPE(2), lambda data: data.x in {'a', 'b', 'c'}]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1


def test_a_transform_that_changes_itself(los_loop):
    LosLoop(los_loop, pre_transform=Slim(1.0), pre_filter=lambda data, seen=[]: not seen.append(1))


def test_other_raw_files_make_it_anew(los_loop, monkeypatch):
    read = calls(monkeypatch)
    before = LosLoop(los_loop)
    path = los_loop / "los_loop" / "speed.csv"
    path.write_text(path.read_text() + "1.0,2.0,3.0\n")
    after = LosLoop(los_loop)
    assert (len(before), len(after)) == (7, 8)
    assert torch.equal(before[0].x, after[0].x)  # the first one still holds what it had
    os.utime(path, ns=(0, 0))
    LosLoop(los_loop)
    assert len(read) == 3


@pytest.mark.parametrize("key", ["version", "format"])
def test_another_version_makes_it_anew(los_loop, monkeypatch, key):
    LosLoop(los_loop)
    read = calls(monkeypatch)
    monkeypatch.setattr(
        *{"version": ("tsjt_pyg.__version__", "99.0"), "format": ("tsjt_pyg.datasets.pyg.FORMAT", "x/2")}[key]
    )
    LosLoop(los_loop)
    LosLoop(los_loop)
    assert read == ["los_loop"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "runs code", "other keys"])
def test_what_is_damaged_is_made_anew(los_loop, monkeypatch, caplog, damage):
    path = Path(LosLoop(los_loop).processed_paths[0])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "runs code":
        torch.save({"made_of": Bomb(los_loop / "exploded")}, path)
    elif damage == "other keys":
        torch.save({"readings": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"hello")
    read = calls(monkeypatch)
    assert len(LosLoop(los_loop)) == 7
    assert read == ["los_loop"]
    assert "city.pt: cannot be read" in caplog.text
    assert not (los_loop / "exploded").exists()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_failure_leaves_the_stored_city_alone(los_loop):
    path = Path(LosLoop(los_loop).processed_paths[0])
    before = path.read_bytes()
    (los_loop / "los_loop" / "adjacency.csv").write_text("1,0\n0,1\n")
    with pytest.raises(ValueError, match=r"los_loop.*adjacency"):
        LosLoop(los_loop)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["city.pt"]
