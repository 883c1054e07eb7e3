"""The page that a run becomes: what is in it, what it says where something is missing, and that text stays text."""

import ast
import base64
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tsjt_pyg.cli import app
from tsjt_pyg.evaluation import Comparison, compare, write_report
from tsjt_pyg.evaluation.details import CITY, details_file, load_details
from tsjt_pyg.evaluation.report.content import content
from tsjt_pyg.evaluation.report.run_folder import read_run
from tsjt_pyg.training import ModelConfig, Strategy

pytest.importorskip("plotly", reason="the report needs plotly: pip install 'tsjt-pyg[viz]'")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=4)
SETTINGS = {"model": CONFIG, "steps": 3, "batch_size": 8, "seeds": 2, "naive": ["last value"], "verbose": False}
EVIL = "</script><script>alert(1)</script><b>&\"'"


class Page(HTMLParser):
    """Elements with their attributes, and the text of the visible ones."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], None
        self.feed(file.read_text(encoding="utf-8"))
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def task(commuters):
    def placed(name, **about):
        city = commuters(name, **about)
        pos = torch.stack([48 + torch.arange(city.num_nodes) / 100, 11 + torch.arange(city.num_nodes) / 70], dim=1)
        return replace(city, pos=pos.double())

    target = placed("target", days=9, seed=1)
    ids = (EVIL, *target.node_ids[1:])
    return replace(target, name=f"town {EVIL}", node_ids=ids), [placed(f"north {EVIL}", num_nodes=8, seed=2)]


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = {**SETTINGS, "model": replace(CONFIG, num_prompts=4)}
    compare(*task, ["target_only", "pooled", "tsjt_paper", "tsjt"], output=folder, **settings)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    file = write_report(folder)
    assert file == folder / "report.html"
    return Page(file)


def test_everything_is_there_in_order_and_every_picture_says_what_it_shows(page):
    sections = [attributes["id"] for attributes in page.all("section")]
    pictures = ["horizon", "hour", "weekday", "map", "forecasts", "conflict", "prompts"]
    assert sections == ["table", *pictures, "guard", "protocol"]
    drawn = {attributes["id"]: attributes for attributes in page.all("div") if attributes.get("class") == "plot"}
    assert list(drawn) == [f"plot-{name}" for name in pictures]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 40 for attributes in drawn.values())
    assert "MAE against training on" in page.text or "No advice" in page.text or "the guard left out" in page.text


def test_the_page_can_be_read_by_everybody(page):
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert headings.count(1) == 1
    tables = page.all("table")
    assert len(page.all("caption")) == len(tables) > 8
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("label"):
        assert attributes.get("for", ids[0]) in ids


def test_the_table_holds_the_comparisons_numbers(page, folder):
    found = Comparison.load(folder)
    for name in found.names:
        for text in (str(found.gain(name) or ""), f"{np.mean([r.errors.mean_mae for r in found.runs(name)]):.3f}"):
            assert text in page.text
    for name in ("visible", "test"):
        assert found.protocol["fingerprints"][name] in page.text
    assert found.protocol["versions"]["torch"] in page.text


def test_it_needs_no_network_and_is_below_8_mb(page, folder):
    assert (folder / "report.html").stat().st_size < 8e6
    for tag, attributes in page.elements:
        assert not {"src", "action", "data", "poster", "srcset"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith(("#", "data:"))
    style = re.search(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_names_of_cities_and_nodes_are_text_and_nothing_else(page, folder):
    assert len(page.all("script")) == 3
    assert not page.all("b")
    text = (folder / "report.html").read_text()
    assert "<script>alert" not in text
    assert page.data["map"]["ids"][0] == EVIL
    assert EVIL in page.data["forecasts"]["ids"]
    assert f"Forecasts for town {EVIL}" in page.text


def test_the_pictures_numbers_are_the_details(page, folder):
    found = Comparison.load(folder)
    details = [load_details(folder, run.key) for run in found.runs("pooled")]
    hour = page.data["lines"]["hour"]["lines"]["pooled"]
    maes = np.array([part["hour"][0] / part["hour"][1] for part in details])
    np.testing.assert_allclose(hour["mean"], maes.mean(0), rtol=1e-3)
    np.testing.assert_allclose(hour["low"], maes.min(0), rtol=1e-3)
    np.testing.assert_allclose(hour["high"], maes.max(0), rtol=1e-3)
    horizon = page.data["lines"]["horizon"]
    assert horizon["x"] == ["60", "120", "180", "240"]
    expected = np.mean([run.errors.mae for run in found.runs("pooled")], axis=0)
    np.testing.assert_allclose(horizon["lines"]["pooled"]["mean"], expected, rtol=1e-3)
    nodes = np.sum([part["node"] for part in details], axis=0)
    base = np.sum([load_details(folder, run.key)["node"] for run in found.runs("target_only")], axis=0)
    mae, reference = nodes[0] / nodes[1], base[0] / base[1]
    np.testing.assert_allclose(page.data["map"]["mae"]["pooled"], mae, rtol=1e-2)
    np.testing.assert_allclose(page.data["map"]["gain"]["pooled"], 100 * (1 - mae / reference), rtol=1e-2, atol=1e-3)
    assert "target_only" not in page.data["map"]["gain"]
    low, high = page.data["map"]["gain_range"]
    assert 0 <= low < high


def test_forecasts_and_readings_come_back_from_their_16_bits(page, folder):
    part = page.data["forecasts"]
    run = Comparison.load(folder).runs("tsjt")[0]
    city, forecasts = load_details(folder, CITY), load_details(folder, run.key)["forecasts"]
    order = [city["node_ids"][city["nodes"]].tolist().index(name) for name in part["ids"]]
    for name, table in (("", city["readings"]), ("tsjt", forecasts)):
        stored = np.frombuffer(base64.b64decode(part["tables"][name]), "<i2").reshape(len(order), -1)
        shown = np.where(stored == -32768, np.nan, part["low"] + (stored + 32500.0) * part["scale"])
        np.testing.assert_allclose(shown, table[:, order].T, atol=part["scale"])
    assert (stored == -32768).sum() == 0
    assert np.isnan(city["readings"]).any()


def test_a_comparison_from_before_details_were_kept_makes_a_page_that_says_what_is_missing(tmp_path):
    old = tmp_path / "old"
    shutil.copytree(ROOT / "benchmarks" / "results" / "demo", old)
    page = Page(write_report(old))
    assert [attributes["id"] for attributes in page.all("section")] == ["table", "horizon", "guard", "protocol"]
    assert "the folder holds no details of this comparison" in page.text
    assert "The same comparison with the same output folder makes what is missing" in page.text
    [command] = {line for line in page.text.splitlines() if line.startswith("tsjt compare")} or {None}
    assert command is None or "--target demo/riverton" in command
    assert "2.349" in page.text


def test_runs_whose_details_are_gone_are_named_and_the_others_shown(folder, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    for run in Comparison.load(part).runs("pooled"):
        details_file(part, run.key).unlink()
    page = Page(write_report(part))
    assert "Details of pooled, seed 0, pooled, seed 1 are not there" in " ".join(page.text.split())
    assert "pooled" not in page.data["map"]["mae"]
    assert "tsjt" in page.data["map"]["mae"]
    assert "pooled" in page.data["lines"]["horizon"]["lines"]


def test_the_details_of_another_comparison_in_the_same_folder_are_not_mixed_in(folder, task, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    before = (both / "comparison.json").read_bytes()
    longer = {**SETTINGS, "visible_days": 4, "seeds": 1}
    compare(task[0], [], ["target_only"], output=both, **longer)
    (both / "comparison.json").write_bytes(before)  # as if that one had been stopped just before it wrote its table
    shown = read_run(both)
    assert shown.city is None
    assert shown.lost == []
    assert "map" not in content(shown)


def test_a_damaged_file_is_named_and_no_page_is_written(folder, tmp_path):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    (spoiled / "report.html").unlink(missing_ok=True)
    details_file(spoiled, CITY).write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"details/city\.npz: it is damaged"):
        write_report(spoiled)
    (spoiled / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match=r"comparison\.json: not a comparison"):
        write_report(spoiled)
    assert not (spoiled / "report.html").exists()
    with pytest.raises(FileNotFoundError, match=r"neither comparison\.json nor metrics\.json"):
        write_report(tmp_path)


def test_without_plotly_the_error_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"plotly is not installed here .*pip install 'tsjt-pyg\[viz\]'"):
        write_report(folder, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_city_without_positions_and_a_single_strategy_have_a_page(commuters, tmp_path):
    compare(commuters("plain", days=6), [], ["target_only"], output=tmp_path, **{**SETTINGS, "seeds": 1})
    page = Page(write_report(tmp_path))
    assert "The city has no positions" in page.text
    assert "latitude" not in page.data["map"]
    assert "No advice" in page.text
    assert {"guard", "conflict", "prompts"}.isdisjoint(attributes["id"] for attributes in page.all("section"))


def test_a_city_of_many_nodes_is_thinned_out(folder, monkeypatch):
    monkeypatch.setattr("tsjt_pyg.evaluation.report.content.MOST_DOTS", 3)
    monkeypatch.setattr("tsjt_pyg.evaluation.report.content.MOST_ROADS", 2)
    monkeypatch.setattr("tsjt_pyg.evaluation.report.content.MOST_FORECASTS", 2 * 72 * 6)
    found = content(read_run(folder))
    assert (len(found["map"]["ids"]), found["map"]["of"]) == (3, 6)
    assert len(found["map"]["roads_latitude"]) == 2 * 3
    assert len(found["forecasts"]["ids"]) == 2


@pytest.fixture
def files(commuters, tmp_path):
    """Two cities whose names are those of their files, so that a command finds them by name."""
    found = [str(tmp_path / name) for name in ("target.npz", "other city.npz")]
    for number, path in enumerate(found):
        commuters(path, seed=number).save(path)
    return found


def test_what_a_page_says_repeats_the_run(files, tmp_path):
    """The command and the call in Python give the same parameters."""
    first = tmp_path / "first"
    words = shlex.split(
        "compare --strategies target_only,tsjt_paper --cell GRU --hidden 4 --batch-size 4 "
        "--history 6 --horizon 6 --steps 2 --seeds 1 --no-profile --jobs 1 --visible-days 2"
    )
    words += ["--target", files[0], "--sources", files[1], "--output", str(first)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"tsjt report {first}" in re.sub(r"\s+", " ", result.output)
    digests = [run.digest for run in Comparison.load(first).records]
    shown = read_run(first)
    again = tmp_path / "again"
    result = CliRunner().invoke(app, [*shlex.split(shown.command)[1:], "--jobs", "1", "--output", str(again)])
    assert result.exit_code == 0, result.output
    assert [run.digest for run in Comparison.load(again).records] == digests
    tree = ast.parse(shown.call)
    call = tree.body[-1].value
    call.keywords.append(ast.keyword("verbose", ast.Constant(False)))
    names: dict = {}
    exec(compile(ast.fix_missing_locations(ast.Module(tree.body[:-1], [])), "report", "exec"), names)
    found = eval(compile(ast.fix_missing_locations(ast.Expression(call)), "report", "eval"), names)
    assert [run.digest for run in found.records] == digests
    result = CliRunner().invoke(app, ["report", str(first), "--output", str(tmp_path / "page.html")])
    assert "page.html" in result.output
    assert (tmp_path / "page.html").is_file()


def test_what_no_command_can_say_is_said_in_python_alone(task, tmp_path):
    own = Strategy("mine", target_weight=0.5)
    compare(*task, ["target_only", own], output=tmp_path, **{**SETTINGS, "seeds": [3]})
    shown = read_run(tmp_path)
    assert shown.command is None
    assert "Strategy(name='mine', source_weight=1.0, target_weight=0.5" in shown.call
    assert "seeds=[3]" in shown.call
    assert "naive=['last value']" in shown.call


def test_a_training_has_a_page_beside_the_last_value(files, tmp_path):
    run = tmp_path / "run"
    words = shlex.split(
        "train --cell GRU --hidden 8 --batch-size 8 --history 6 --horizon 6 --visible-days 3 --steps 4 --seed 3 "
        "--strategy tsjt_paper --prompts 4"
    )
    words += ["--target", files[0], "--sources", files[1], "--output", str(run)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    page = Page(write_report(run))
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"{metrics['test']['mean_mae']:.3f}" in page.text
    assert [one["name"] for one in page.data["series"]] == ["last value", "tsjt_paper"]
    assert set(page.data["map"]["gain"]) == {"tsjt_paper"}
    assert f"tsjt train --target {files[0]} --sources '{files[1]}' --channel speed" in page.text
    assert "No advice: this is one training" in page.text
    assert page.data["prompts"]["cities"] == files
    details_file(run, "run").unlink()
    with pytest.raises(ValueError, match=r"details of this training are not there; the command .* with --resume"):
        write_report(run)
    result = CliRunner().invoke(app, [*words, "--resume"])
    assert result.exit_code == 0, result.output
    assert Page(write_report(run)).data == page.data
