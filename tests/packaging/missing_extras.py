"""What a user reads who lacks an extra: run where only ``tsjt-pyg[viz]`` is installed, in a folder for its files."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from tsjt_pyg.data import read_roads, read_tables
from tsjt_pyg.datasets import load_city, read_grid
from tsjt_pyg.training import Processes


def cluster() -> None:
    """Two processes, as torchrun starts them."""
    os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")
    Processes()


def tsjt(*arguments: str) -> Callable[[], None]:
    """A command that is to fail, as the error that it prints."""

    def run() -> None:
        ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert ran.returncode != 0, arguments
        assert "Traceback" not in ran.stderr, ran.stderr
        raise ImportError(ran.stderr)

    return run


Path("streets.osm").write_text("<osm/>", encoding="utf-8")
for name in ("speed.h5", "speed.parquet"):
    Path(name).write_bytes(b"")
city = load_city("demo/riverton")
no_plotly = "import sys; sys.modules['plotly'] = None; from tsjt_pyg.cli import app; app()"
TRIED: list[tuple[str, Callable[[], object]]] = [
    ("osm", lambda: read_roads("streets.osm")),
    ("hdf", lambda: read_grid("speed.h5")),
    ("parquet", lambda: read_tables("speed.parquet", "sensors.csv")),
    ("dask", tsjt("-m", "tsjt_pyg", "compare", "--target", "demo/riverton", "--dask", "tcp://127.0.0.1:1")),
    ("simulate", tsjt(str(resources.files("tsjt_pyg.datasets.bundled") / "simulate_demo_cities.py"))),
    ("viz", tsjt("-c", no_plotly, "report", "runs/demo")),
    ("fabric", cluster),
]
for extra, use in TRIED:
    said = "nothing"
    try:
        use()
    except ImportError as error:
        said = str(error)
    assert f"tsjt-pyg[{extra}]" in said, f"{extra}: {said}"
print(f"{len(TRIED)} errors name the extra that is missing")
