"""What the README shows is run, and what it reports is what was measured."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tsjt_pyg.cli import app
from tsjt_pyg.evaluation import Comparison

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
REPORTED = re.findall(r"<!-- measured: (\S+) -->\n\n(.*?)\n\n", README, flags=re.DOTALL)


def test_there_is_something_to_run_and_to_check():
    assert len(PYTHON_BLOCKS) == 2
    assert len(REPORTED) >= 1


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_the_readmes_python_runs_as_it_stands(number):
    names: dict = {}
    exec(compile(PYTHON_BLOCKS[number], f"README.md, block {number}", "exec"), names)
    forecast = names["forecast"]
    assert forecast.shape[1:] == (12, names["city"].num_nodes, 1)
    assert forecast.isfinite().all()


@pytest.mark.parametrize(("folder", "table"), REPORTED)
def test_the_readmes_tables_are_the_measured_ones(folder, table):
    assert table == Comparison.load(ROOT / folder).to_markdown()


def test_the_picture_is_that_of_the_measured_demo():
    measured = ROOT / "benchmarks" / "results" / "demo" / "comparison.png"
    assert (ROOT / "docs" / "demo.png").read_bytes() == measured.read_bytes()


def test_links_and_pictures_of_the_readme_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("line", re.findall(r"^tsjt (?!demo$).*", README, flags=re.MULTILINE))
def test_the_readmes_commands_exist_with_their_options(line):
    command, *rest = line.split("#")[0].split()[1:]
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert f"tsjt {command}" in text or f"{command} [OPTIONS]" in text
    for option in [word for word in rest if word.startswith("--")]:
        assert option in text
