"""``make lowest``: the lowest versions that pyproject.toml allows, with a part of the tests that touches each package.

torch's lowest version is on PyPI with CUDA alone, which takes 6 GB; ``--torch 2.13.0`` takes the one of constraints.txt
instead and leaves the others as low as they are.
"""

import argparse
import os
import subprocess
import tomllib
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
TEMPORAL = "torch-geometric-temporal==0.56.2"
EXTRAS = ("dask", "fabric", "hdf", "osm", "parquet", "viz")
TESTS = (
    "data/test_city.py",
    "data/test_city_roads.py",
    "data/test_describe.py",
    "data/test_repair.py",
    "data/test_road_files.py",
    "data/test_road_network.py",
    "data/test_snap.py",
    "data/test_table_file.py",
    "data/test_tables.py",
    "data/test_windows.py",
    "datasets/test_demo_cities.py",
    "datasets/test_hdf.py",
    "datasets/test_pyg.py",
    "end_to_end/test_command_line.py",
    "end_to_end/test_html_reprs.py",
    "end_to_end/test_readme.py",
    "evaluation/test_comparison.py",
    "evaluation/test_naive.py",
    "evaluation/test_plots.py",
    "evaluation/test_sweep.py",
    "nn/test_every_cell.py",
    "nn/test_forecaster.py",
    "optim/test_hooks_and_schedulers.py",
    "optim/test_is_an_optimizer.py",
    "optim/test_rules.py",
    "training/test_checkpoints.py",
    "training/test_processes.py",
    "training/test_progress_bar.py",
    "training/test_trainer.py",
)


LEFT_OUT = "fsdp"
"""With torch 2.7.0 FSDP2 on two CPU processes trains a GRU's ``bias_hh_l0`` otherwise than one process does, also with
Fabric 2.6.6; with torch 2.13.0 it does not. Why, and from which version on, is not known."""


def lowest(torch: str | None) -> list[str]:
    """``name==version`` for each ``name>=version`` that users get."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]]
    pinned = [requirement.replace(">=", "==") for requirement in (*project["dependencies"], *extras)]
    return [f"torch=={torch}" if torch and pin.startswith("torch==") else pin for pin in pinned]


def main() -> None:
    """All of it, in a folder that is gone after it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", help="this version of torch, in place of the lowest")
    pins = lowest(parser.parse_args().torch)
    print(*pins, flush=True)
    with TemporaryDirectory(prefix="tsjt-lowest-") as name:
        venv.create(name, with_pip=True)
        python = Path(name) / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "--only-binary", ":all:", *pins, "pytest", "hypothesis"], check=True)
        subprocess.run([*pip, "--no-deps", TEMPORAL, "--editable", ROOT], check=True)
        tests = [ROOT / "tests" / file for file in TESTS]
        pytest = (python, "-m", "pytest", "-q", "-m", "not slow", "-k", f"not {LEFT_OUT}", "-p", "no:cacheprovider")
        subprocess.run([*pytest, "-c", ROOT / "setup.cfg", *tests], cwd=name, check=True)


if __name__ == "__main__":
    main()
