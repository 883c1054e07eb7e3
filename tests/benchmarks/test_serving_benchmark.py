"""The benchmark of serving runs and compares the same forecasts. Nothing is timed."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("serving")
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_tiny_run_writes_the_table(benchmark, monkeypatch, tmp_path, capsys):
    output = tmp_path / "made" / "serving.md"
    arguments = ["--nodes", "20", "--threads", "1", "--repeats", "20", "--processes", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["serving.py", *arguments])
    benchmark.main()
    text = output.read_text(encoding="utf-8")
    for way in benchmark.WAYS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {way} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:3] == ["20", "1"]
        assert float(cells[3].replace(",", "")) > 0
        assert (cells[4] == "too few") == (way == benchmark.PROCESS)
    assert text in capsys.readouterr().out


def test_rows_are_quantiles_of_each_way_and_number_of_threads(benchmark):
    milliseconds = [(number / 1e3, 0.002) for number in range(1, 102)]
    times = dict.fromkeys(benchmark.WAYS, milliseconds)
    rows = benchmark.rows_of(2_000, {1: times, 2: {**times, benchmark.PROCESS: [(0.5, 0.25)]}})
    assert rows[0] == [benchmark.FORWARD, "2,000", "1", "51.0", "96.0", "100.0", "2.0", "101", "not measured"]
    assert rows[-1] == [benchmark.PROCESS, "2,000", "2", "500.0", "too few", "too few", "250.0", "1", "not measured"]


def test_a_way_that_forecasts_something_else_is_found(benchmark):
    runs = {way: lambda: np.ones((3, 2)) for way in benchmark.WAYS[:4]}
    benchmark.check_agreement(runs, 1.0)
    runs[benchmark.OF_CITY] = lambda: np.ones((3, 2)) * 1.1
    with pytest.raises(AssertionError, match=r"SavedModel\.export: differs from SavedModel\.forecast by 0\.1"):
        benchmark.check_agreement(runs, 1.0)


def test_the_city_is_what_the_page_says(benchmark):
    city = benchmark.example_city(20)
    assert (city.num_steps, city.num_nodes, city.steps_per_day) == (384, 20, 96)
    assert 0.03 < city.missing < 0.07
    assert len(benchmark.last_readings(city, 12)) == 12
