"""The benchmark of large cities on small ones."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch_geometric.utils import is_undirected

import tsjt_pyg

SCRIPT = Path(tsjt_pyg.__file__).parents[1] / "benchmarks" / "large_city.py"


@pytest.fixture
def benchmark():
    names = runpy.run_path(str(SCRIPT))
    return names["main"].__globals__


def test_a_grid_has_as_many_nodes_as_asked_and_about_four_roads_each(benchmark):
    city = benchmark["road_grid"](150, days=1)
    assert (city.num_nodes, city.num_steps, city.missing) == (150, 288, 0.0)
    assert is_undirected(city.edge_index, city.edge_weight)
    assert 3 < city.num_edges / city.num_nodes < 4
    assert torch.equal(city.readings, benchmark["road_grid"](150, days=1).readings)


def test_the_report_has_a_row_a_size_and_a_halo(benchmark, monkeypatch, tmp_path, capsys):
    found = {"memory": 2**30, "before": 2**29, "cutting": 0.5, "wall": 4.0, "cpu": 2.0}
    monkeypatch.setitem(benchmark, "NODES_PER_BATCH", 40)
    monkeypatch.setitem(benchmark, "in_process", lambda size, whole, epochs: None if whole and size > 30 else found)
    monkeypatch.setitem(benchmark, "CITY", "demo/riverton")
    monkeypatch.setitem(benchmark, "HALOS", (1,))
    arguments = ["--sizes", "30,90", "--turns", "1", "--halo-steps", "1", "--output", str(tmp_path / "table.md")]
    monkeypatch.setattr("sys.argv", ["large_city.py", *arguments])
    benchmark["main"]()
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| 30 | 1,024 | 2.00 | 4.00 | 1,024 | 2.00 |" in text
    assert "| 90 | 1,024 | 2.00 | 4.00 | more than 8 GiB | not measured |" in text
    assert "| 30 | none | 1 | 1.00 x |" in text
    assert text.count(" | +0% | +0% |") == 2  # the smallest size, with each halo
    assert "| 90 | 1 | 3 | 1." in text
    assert "| 90 | 2 | 3 | 1." in text
    assert "| whole city | 1.00 x | 0.0000 | 0.00 |" in text
    assert "\n| 1 | 1." in text


def test_a_child_measures_its_epochs(benchmark, monkeypatch):
    monkeypatch.setitem(benchmark, "NODES_PER_BATCH", 16)
    found = benchmark["measure"](30, whole=False, epochs=1)
    assert found["cpu"] > 0
    assert found["memory"] >= found["before"] > 0
