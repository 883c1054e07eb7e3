"""Files of small cities that several test files read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def los_loop(tmp_path) -> Path:
    """A root with a city of 30 steps in the form of los_loop; the third node has a self-loop only."""
    folder = tmp_path / "los_loop"
    folder.mkdir()
    speed = np.random.default_rng(0).uniform(20, 70, (30, 3))
    pd.DataFrame(speed, columns=["773869", "767541", "717447"]).to_csv(folder / "speed.csv", index=False)
    (folder / "adjacency.csv").write_text("1,0.5,0\n0.25,1,0\n0,0,1\n")
    sensors = {"sensor_id": [717447, 773869, 767541], "latitude": [34.3, 34.1, 34.2], "longitude": [-118.0] * 3}
    pd.DataFrame(sensors).to_csv(folder / "sensors.csv")
    return tmp_path
