"""The version is in one place, and what says it again agrees; extras and bounds are what they are said to be."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import tsjt_pyg

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_version_comes_from_pyproject() -> None:
    assert tsjt_pyg.__version__ == importlib.metadata.version("tsjt-pyg") == PROJECT["version"]
    written = [path for path in (ROOT / "tsjt_pyg").rglob("*.py") if PROJECT["version"] in path.read_text("utf-8")]
    assert written == []


def test_the_citation_says_the_version() -> None:
    assert re.findall(r"^version: (.*)$", CITATION, flags=re.MULTILINE) == [PROJECT["version"]]
    assert re.findall(r"^license: (.*)$", CITATION, flags=re.MULTILINE) == [PROJECT["license"]]


def test_pages_that_say_a_version_of_this_package_say_this_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    said = {
        (page.name, version)
        for page in pages
        for version in re.findall(r"tsjt[-_]pyg(?:\[[\w,]+\])? ?(?:==|v)(\d[\w.]*)", page.read_text(encoding="utf-8"))
    }
    assert {(page, version) for page, version in said if version != PROJECT["version"]} == set()


def test_the_changelog_knows_the_version_or_says_what_comes() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["version"])


def test_the_layers_of_pyg_temporal_are_of_one_version_everywhere() -> None:
    from tsjt_pyg._compat import TEMPORAL_INSTALL_COMMAND

    (version,) = re.findall(r"^TEMPORAL := (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert TEMPORAL_INSTALL_COMMAND.endswith(version)
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"torch-geometric-temporal==[\d.]+", said)) == {version}


def test_every_extra_is_named_where_it_is_missing() -> None:
    """tests/packaging/missing_extras.py reads the errors; here none is forgotten."""
    tried = re.findall(
        r'^    \("(\w+)",', (Path(__file__).parent / "missing_extras.py").read_text(), flags=re.MULTILINE
    )
    for_work_on_this = {"bench", "dev", "docs", "integrations"}
    assert set(tried) == set(PROJECT["optional-dependencies"]) - for_work_on_this


def test_all_bounds_are_lower_ones() -> None:
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for name, requirements in groups.items():
        for requirement in requirements:
            assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+|tsjt-pyg\[[\w,]+\]", requirement), (name, requirement)
