"""What the site is made by: pages of files outside docs/, links between them, the reference, the link checker."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from tsjt_pyg.cli import app

pytest.importorskip("sphinx")
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALL = (DOCS / "install.md").read_text(encoding="utf-8")


@pytest.fixture
def part(monkeypatch):
    """A module of the site's own."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    monkeypatch.syspath_prepend(str(DOCS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(DOCS)):
            del sys.modules[name]


# --- the API reference and the command line


def test_every_public_object_is_on_a_page_of_the_api_once(part):
    listed = [
        name
        for page in (DOCS / "api").glob("*.rst")
        if page.stem != "more"  # what is described there is not public
        for name in re.findall(r"^   ~(\S+)$|^\.\. data:: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    listed = [first or second for first, second in listed]
    objects = {name: id(found) for name, found in part("public_names").public_names()}
    assert set(listed) <= set(objects)
    found = [objects[name] for name in listed]
    assert len(found) == len(set(found))
    assert sorted(name for name, number in objects.items() if number not in found) == []


def test_each_command_and_option_is_in_the_reference(part):
    text = part("command_line").reference()
    for name, command in get_command(app).commands.items():
        section = text.split(f"## tsjt {name}\n")[1].split("\n## ")[0]
        assert " ".join(command.help.split("\n\n")[0].split()).replace("``", "`") in section
        for option in command.params:
            assert f"`{option.opts[0].upper() if option.param_type_name == 'argument' else option.opts[0]}`" in section


def test_a_module_leads_to_what_it_defines_and_a_private_one_is_named(part):
    defined_in = part("public_names").defined_in
    assert defined_in("tsjt_pyg/nn/city_embedding.py") == "tsjt_pyg.nn.CityEmbedding"
    with pytest.raises(ValueError, match=r"tsjt_pyg/cli\.py defines nothing public"):
        defined_in("tsjt_pyg/cli.py")


# --- pages of files outside docs/, and links to them


@pytest.mark.parametrize(
    ("page", "link", "led"),
    [
        ("optimizer", "[x](transfer.md#advice)", "[x](/transfer.md#advice)"),
        ("optimizer", "[x](#options)", "[x](#options)"),
        ("optimizer", "[x](https://torchjd.org/a.md)", "[x](https://torchjd.org/a.md)"),
        ("optimizer", "![x](demo.png)", "![x](demo.png)"),
        ("optimizer", "[x](../benchmarks/results/models.md)", "[x](/_generated/results/models.md)"),
        ("optimizer", "[x](../benchmarks/results/los_loop)", "[x](/_generated/results/los_loop.md)"),
        ("optimizer", "[x](../benchmarks/results)", "[x](/_generated/results/index.md)"),
        ("optimizer", "[x](../datasets/pems04.md)", "[x](/_generated/cards/pems04.md)"),
        ("optimizer", "[x](../CHANGELOG.md)", "[x](/_generated/changelog.md)"),
        ("optimizer", "[x](../README.md#ten-lines-of-python)", "[x](/index.md#ten-lines-of-python)"),
        ("optimizer", "[`x`](../tsjt_pyg/nn/city_embedding.py)", "{py:obj}`x <tsjt_pyg.nn.CityEmbedding>`"),
        ("optimizer", "[x](tutorials/1_name.py)", "[x](/_generated/tutorials/1_name.rst)"),
        ("index", "[x](tutorials)", "[x](/_generated/tutorials/index.rst)"),
        ("_generated/cards/stgfsl_metr_la", "[x](metr_la.md)", "[x](/_generated/cards/metr_la.md)"),
        ("_generated/results/models", "[x](../../docs/models.md)", "[x](/models.md)"),
    ],
)
def test_a_link_to_a_file_leads_to_its_page(page, link, led, part):
    assert part("elsewhere").lead(page, f"See {link}.\n") == f"See {led}.\n"


def test_a_link_to_a_file_that_has_no_page_stops_the_build(part):
    with pytest.raises(Exception, match=r"optimizer: the site has no page of setup\.cfg, where a link leads"):
        part("elsewhere").lead("optimizer", "[x](../setup.cfg)")


def test_comments_are_gone_and_code_is_as_it_was(part):
    text = "A\n\n```python\nx = a[b](../setup.cfg)  # <!-- kept -->\n```\n\n<!-- check\nassert x\n-->\n\nB\n"
    found = part("elsewhere").lead("optimizer", text)
    assert "check" not in found
    assert "assert" not in found
    assert text.split("<!-- check")[0] in found
    assert found.count("\n") == text.count("\n")


def test_every_result_and_card_has_a_page_as_it_is_in_its_file(part):
    made = dict(part("elsewhere").made_pages())
    results, cards = ROOT / "benchmarks/results", ROOT / "datasets"
    for folder, files in (("results", results.glob("*.md")), ("cards", cards.glob("*.md"))):
        for file in files:
            assert made[f"{folder}/{file.stem}"] == file.read_text(encoding="utf-8")
            assert f"\n{file.stem}\n" in made[f"{folder}/index"]
    assert made["changelog"] == (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for record in results.glob("*/comparison.json"):
        assert f"\n{record.parent.name}\n" in made["results/index"]
        assert "| tsjt | " in made[f"results/{record.parent.name}"]


@pytest.mark.parametrize("formula", [r"\Big( a \Big)", r"\big(a\big)", "a &= b\n\nc &= d", r"\max(0, \cos)"])
def test_a_formula_is_drawn_without_a_script(formula, part):
    assert part("mathml").mathml(formula, as_block=True).startswith("<math")


# --- the link checker


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a> <a href="#here">a</a></p>')
    (tmp_path / "b.html").write_text('<h1 id="there"><a href="https://x.org/y#z">x</a> <img src="p%20q.png"></h1>')
    (tmp_path / "p q.png").touch()
    return tmp_path


def test_a_site_whose_links_lead_somewhere_passes(site, part, capsys):
    part("check_links").main(site)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dead", ["gone.html", "b.html#gone", "#gone", "gone.png"])
def test_a_dead_link_is_named_with_a_page_that_has_it(dead, site, part, capsys):
    for name in ("a.html", "c.html"):
        with (site / name).open("a") as page:
            page.write(f'<a href="{dead}">x</a>')
    places = 2 if dead == "#gone" else 1
    with pytest.raises(SystemExit, match=rf"^{places} dead links"):
        part("check_links").main(site)
    assert f"{'a.html' if dead == '#gone' else ''}{dead}: is not there, but a.html" in capsys.readouterr().out


def test_a_folder_without_a_page_is_no_site(tmp_path, part):
    with pytest.raises(SystemExit, match="no page is there"):
        part("check_links").main(tmp_path)


# --- what the page on installing says is what pyproject.toml says


def rows(heading):
    table = INSTALL.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\|.*$", table, flags=re.MULTILINE)[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_every_extra_is_on_the_page():
    assert sorted(row[0] for row in rows("Extras")) == sorted(PROJECT["optional-dependencies"])


def test_the_lowest_versions_are_those_of_the_project():
    assert [f"{name}>={number}" for name, number in rows("Versions")] == PROJECT["dependencies"]
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or newer" in INSTALL
