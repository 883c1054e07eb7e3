"""The benchmark of batches runs, its peers give the same batches, and one that does not is found. Nothing is timed."""

import importlib
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("data")


@pytest.fixture
def folder(benchmark, tmp_path):
    benchmark.write_example(tmp_path / "city", 300, 4, block=70)
    return tmp_path / "city"


def test_a_quick_run_writes_all_tables(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "in_a_process", lambda measure, *values: benchmark.MEASURES[measure](*values))
    output = tmp_path / "made" / "data.md"
    arguments = ["data.py", "--quick", "--large", "--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    text = output.read_text(encoding="utf-8")
    for name in benchmark.makers():
        assert text.count(f"| {name} |") == 2  # speed and memory
    for heading in ("# Batches", "## Memory", "## A state, from disk", "## Bars"):
        assert heading in text
    assert len(re.findall(r"\*\*(holds|does not hold)\*\*", text)) == 12
    assert re.search(r"tsl\) (not installed|\d)", text)
    assert "700 steps of 6 nodes" in text
    assert text in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # the cities are deleted


def test_memory_is_measured_in_a_process_of_its_own(benchmark, folder):
    found = benchmark.in_a_process("memory", benchmark.COPIED, str(folder), 2)
    assert set(found) == {"in order", "shuffled"}


def test_a_measurement_that_fails_says_why(benchmark):
    with pytest.raises(RuntimeError, match=r"nowhere: there is no such file"):
        benchmark.in_a_process("large", "nowhere", 8, 2)


def test_a_peer_with_other_batches_is_found(benchmark, folder):
    city = benchmark.load(benchmark.COPIED, folder)
    peers = [make(benchmark.load(name, folder)) for name, make in benchmark.makers().items()]
    benchmark.check_agreement(peers, city)
    wrong = replace(peers[0], name="wrong", pair=lambda batch: (batch.x, batch.x))
    with pytest.raises(AssertionError, match=r"wrong: window 0 is not a slice of the readings"):
        benchmark.check_agreement([*peers, wrong], city)
    ordered = replace(peers[0], name="ordered", loader=lambda order: peers[0].loader(None))
    with pytest.raises(AssertionError, match=r"ordered: window \d+ is not a slice"):
        benchmark.check_agreement([ordered], city)


def test_the_example_is_written_in_blocks_and_has_gaps(benchmark, folder):
    city = benchmark.load(benchmark.MAPPED, folder)
    assert (city.num_steps, city.num_nodes) == (300, 4)
    assert 0.04 < city.missing < 0.12
    assert not torch.equal(city.readings[:70], city.readings[70:140])


@pytest.mark.parametrize(("package", "classes"), [("dask", "index_dataset_class"), ("torch_sparse", "tsl_classes")])
def test_what_a_peer_imports_and_does_not_use_is_stood_in_for_and_undone(benchmark, package, classes):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed: nothing is stood in for")
    if classes == "tsl_classes":
        pytest.importorskip("tsl")
    compile_script = torch.jit.script
    assert getattr(importlib.import_module("data_peers"), classes)()
    assert not [name for name in sys.modules if name.split(".")[0] in (package, "torch_scatter")]
    assert torch.jit.script is compile_script


def test_tsl_is_measured_where_it_is_installed(benchmark):
    assert ("tsl, StaticGraphLoader" in benchmark.makers()) == (importlib.util.find_spec("tsl") is not None)
