"""What tests of every room share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import distributed
from two_processes import TwoProcesses

from tsjt_pyg.data import City
from tsjt_pyg.datasets import load_city

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # processes of xdist have one, and a console made then stays as narrow
settings.register_profile("tsjt", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tsjt")


@pytest.fixture(scope="session")
def make_city() -> Callable[..., City]:
    """A small city on a directed ring whose readings are all different, so that a wrong one cannot go unseen."""

    def make(
        num_steps: int = 40,
        num_nodes: int = 5,
        num_channels: int = 1,
        missing: float = 0.0,
        seed: int = 0,
        **about: Any,
    ) -> City:
        rng = np.random.default_rng(seed)
        readings = rng.permutation(num_steps * num_nodes * num_channels).astype(np.float32) + 1
        readings = readings.reshape(num_steps, num_nodes, num_channels)
        readings[rng.random(readings.shape) < missing] = np.nan
        ring = np.roll(np.diag(np.linspace(0.5, 1.0, num_nodes)), 1, axis=1)
        return City.from_adjacency(readings, ring, **about)

    return make


@pytest.fixture(scope="session")
def cities_root() -> Path:
    """Folder of the real cities: ``TSJT_CITIES``, or ``shared/cities`` beside the repository."""
    named = os.environ.get("TSJT_CITIES")
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "cities"
    if not root.is_dir():
        pytest.skip(f"the real cities are not here: there is no folder {root} (TSJT_CITIES names another)")
    return root


@pytest.fixture(scope="session")
def real_city(cities_root: Path) -> Callable[[str], City]:
    """Loads a real city, once a session."""

    @cache
    def load(name: str) -> City:
        if not (cities_root / name).is_dir():
            pytest.skip(f"the city {name} is not in {cities_root}")
        return load_city(name, root=cities_root)

    return load


@pytest.fixture(scope="session")
def commuters() -> Callable[..., City]:
    """A small city with something to learn: a daily wave that travels along a ring, of a size and speed of its own."""

    def make(name: str = "target", days: int = 6, num_nodes: int = 6, seed: int = 0, missing: float = 0.05) -> City:
        rng = np.random.default_rng(seed)
        per_day = 24
        hour = np.arange(days * per_day)[:, None] / per_day * 2 * np.pi
        phase = np.linspace(0, 1, num_nodes)[None, :]
        level = 40 + 10 * rng.random() + 8 * np.sin(hour - phase) + 4 * np.sin(2 * hour - 2 * phase)
        readings = (level + rng.normal(0, 1, level.shape)).astype(np.float32)
        readings[rng.random(readings.shape) < missing] = np.nan
        ring = np.roll(np.eye(num_nodes), 1, axis=1) + np.roll(np.eye(num_nodes), -1, axis=1)
        return City.from_adjacency(
            readings, ring, name=name, channels="speed", units="km/h", start="2024-03-04", interval="60min"
        )

    return make


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch was built without torch.distributed or without gloo")
    processes = TwoProcesses(tmp_path_factory.mktemp("two_processes"))
    yield processes
    processes.stop()
