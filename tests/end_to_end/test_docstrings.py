"""Every example in a docstring runs as it stands, in an empty folder, with what its module imports."""

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tsjt_pyg
from tsjt_pyg.cli import app
from tsjt_pyg.datasets import load_city

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(tsjt_pyg.__path__, "tsjt_pyg.")
    if not module.name.startswith(("tsjt_pyg.__main__", "tsjt_pyg.datasets.bundled"))
]
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
}


def trained_run() -> None:
    """``runs/a`` and ``latest.csv``, which only a training makes."""
    command = "train --target demo/riverton --strategy target_only --steps 1 --hidden 4 --output runs/a"
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    city = load_city("demo/riverton").select("speed").between(864, 876)
    lines = [",".join(["time", *city.node_ids])]
    for time, values in zip(city.time, city.readings[..., 0].tolist(), strict=True):
        lines.append(",".join([str(time), *map(str, values)]))
    Path("latest.csv").write_text("\n".join(lines), encoding="utf-8")


def largest_files() -> None:
    """A small ``cities/largest_ca``: the real one has to be fetched by hand."""
    Path("cities").mkdir()
    importlib.import_module("format_files").write_largest(Path("cities"), "largest_ca")


PREPARED: dict[str, Callable[[], None]] = {
    "tsjt_pyg.training.saved_model.SavedModel": trained_run,
    "tsjt_pyg.datasets.largest.map_largest": largest_files,
}


def test_there_are_examples_and_those_that_are_prepared_exist() -> None:
    assert len(EXAMPLES) >= 17
    assert EXAMPLES.keys() >= PREPARED.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "datasets"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    PREPARED.get(name, lambda: None)()
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(EXAMPLES[name], out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0
