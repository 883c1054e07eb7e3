"""What notebooks show of a city, a comparison, a training and statistics."""

import io
import json
import pickle
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg import City, TargetSkewedOptimizer
from tsjt_pyg.data import read_tables
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import Comparison
from tsjt_pyg.evaluation.table import RunFailure
from tsjt_pyg.notebook import MOST_STROKES, road_network
from tsjt_pyg.training import ModelConfig, fit

ROOT = Path(__file__).resolve().parents[2]
EVIL = '<script>alert("&")</script>'


class Tags(HTMLParser):
    """All tags, which have to be closed in order, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(thing: Any) -> Tags:
    """Its HTML, which is small, closed, and has no colour that a dark page would swallow."""
    html = thing._repr_html_()
    assert len(html) < 40_000
    assert re.search(r"#[0-9a-f]{3}|background|(?<!current)color\s*:", html) is None
    tags = Tags(html)
    assert "script" not in tags.found
    return tags


def test_a_city_says_what_is_in_it_and_draws_its_roads() -> None:
    city = load_city("demo/riverton")
    tags = shown(city)
    for part in (
        city.name,
        f"{city.num_nodes:,}",
        f"{city.num_edges:,}",
        "speed (km/h)",
        "5 min",
        f"{city.missing:.1%}",
    ):
        assert any(part in text for text in tags.text), part
    assert "svg" in tags.found
    assert city._repr_html_().count("L") > city.num_nodes / 2


def test_a_city_without_positions_has_no_drawing(make_city: Any) -> None:
    assert "svg" not in shown(make_city()).found


def test_names_are_escaped(make_city: Any) -> None:
    city = make_city(name=EVIL, channels=EVIL, units=EVIL, positions=np.random.default_rng(0).random((5, 2)))
    assert any(EVIL in text for text in shown(city).text)
    assert any(EVIL in text for text in shown(city.describe()).text)


def test_a_large_network_is_drawn_by_nodes_and_all_in_one_place_at_all() -> None:
    rng = np.random.default_rng(0)
    svg = road_network(rng.random((20_000, 2)), rng.integers(0, 20_000, (2, 60_000)), "large")
    assert svg.count("L") == 0
    assert MOST_STROKES / 2 < svg.count("h0") <= MOST_STROKES
    assert road_network(np.full((3, 2), 7.0), np.array([[0, 1], [1, 2]]), "one place").count("h0") == 1


def test_north_is_up_and_east_is_right() -> None:
    svg = road_network(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.5]]), np.array([[0], [1]]), "three")
    assert 'd="M0 0L0 220"' in svg
    assert "M110 220h0" in svg


def test_a_comparison_is_its_table_and_its_advice() -> None:
    found = Comparison.load(ROOT / "benchmarks/results/demo")
    failed = replace(found, failures=[RunFailure("tsjt", 9, EVIL)])
    tags = shown(failed)
    header, rows = failed.cells()
    assert [text for text in tags.text if text in header] == header
    for row in rows:
        assert [cell for cell in row if cell and cell not in tags.text] == []
    assert found.title in tags.text
    assert any(text.startswith("advice: Use tsjt") or text.startswith("warning: ") for text in tags.text)
    assert any(EVIL in text for text in tags.text)


def test_tables_that_were_read() -> None:
    times = pd.date_range("2026-01-05", periods=3, freq="5min")
    readings = pd.DataFrame({"time": times, "<a>": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]})
    sensors = pd.DataFrame({"sensor": ["<a>", "b", "<c>"], "latitude": [1.0, 1.1, 1.2], "longitude": [2.0, 2.1, 2.2]})
    tags = shown(read_tables(readings, sensors, k=1).report)
    assert any("1 sensors without readings (dropped): <c>" in text for text in tags.text)


@pytest.fixture
def optimizer() -> TargetSkewedOptimizer:
    p = torch.nn.Parameter(torch.zeros(2))
    made = TargetSkewedOptimizer([p], torch.optim.SGD, lr=0.1)
    made.backward({"<a>": p.sum(), "b": 2 * p.sum()}, -p.sum())
    made.step()
    return made


def test_statistics_are_tables(optimizer: TargetSkewedOptimizer) -> None:
    assert {"cosine", "conflict_rate", "steps", "-1"} <= set(shown(optimizer.stats()).text)
    assert {"<a>", "b", "kappa"} <= set(shown(optimizer.stats(per="source")).text)
    assert any(text.startswith("<a> ") for text in shown(optimizer.stats(per="scope")).text)


@pytest.mark.parametrize("per", [None, "source", "scope"])
def test_statistics_stay_dictionaries(optimizer: TargetSkewedOptimizer, per: Any) -> None:
    stats = optimizer.stats(per)
    plain = json.loads(json.dumps(stats))
    assert stats == plain
    assert repr(stats) == repr(dict(stats))
    assert pickle.loads(pickle.dumps(stats)) == plain
    file = io.BytesIO()
    torch.save({"stats": stats}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == {"stats": plain}


@pytest.mark.parametrize("strategy", ["tsjt", "tsjt_paper", "target_only"])
def test_a_training(commuters: Any, strategy: str) -> None:
    model = ModelConfig(hidden_channels=4, history=3, horizon=2, profile=False).build()
    result = fit(model, commuters(days=3), [commuters("<source>", days=9)], strategy, steps=2, evaluations=2)
    tags = shown(result)
    assert {strategy, "best step", "validation loss", "last losses"} <= set(tags.text)
    assert any(text.startswith("<source> ") for text in tags.text) == (strategy == "tsjt")
    assert ("conflict_rate" in tags.text) == (strategy == "tsjt_paper")
    assert len(repr(replace(result, model=torch.nn.Identity()))) < 2000  # neither parameters nor tables


def test_statistics_of_a_record_are_json() -> None:
    found = Comparison.load(ROOT / "benchmarks/results/demo").runs("tsjt")[0]
    assert json.loads(json.dumps(asdict(found)))["stats"] == found.stats


def test_a_city_is_drawn_without_matplotlib(make_city: Any) -> None:
    city: City = make_city(positions=np.random.default_rng(0).random((5, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib", None)
        assert "svg" in shown(city).found
