"""The benchmark of node prompts runs and says which bars hold. Nothing is timed."""

import importlib
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("model_prompts")


def test_a_quick_run_writes_every_form_and_its_bars(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "in_a_process", lambda *values: benchmark.measure(*values[:-1]))
    output = tmp_path / "made" / "prompts.md"
    monkeypatch.setattr(sys, "argv", ["model_prompts.py", "--quick", "--output", str(output)])
    benchmark.main()
    text = output.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert [len(re.findall(rf"^\| {form} \|", text, flags=re.MULTILINE)) for form in benchmark.FORMS] == [6, 6, 4]
    assert len(re.findall(r"\*\*(holds|does not hold)\*\*", text)) == 8
    assert "80 nodes and 400 edges: under 13 times its cost at 40 nodes" in text


@pytest.mark.parametrize(("times", "gib"), [(12.9, 2.9), (13.1, 3.1)])
def test_bars_are_judged_by_what_was_measured_in_the_same_repetition(benchmark, monkeypatch, times, gib):
    slowness = [1.0, 3.0, 2.0]  # of the machine, in each repetition

    def found(form, channels, sizes, repeats, threads):
        city = [[slow * (times if n == 100_000 else 1.0) for slow in slowness] for n in sizes]
        return {"seconds": city, "peak": gib * 2**30}

    monkeypatch.setattr(benchmark, "in_a_process", found)
    arguments = type("Arguments", (), {"quick": False, "repeats": 3, "threads": 1})
    _, bars = benchmark.prompt_section(arguments)
    assert len(bars) == 8
    assert all(("**holds**" in line) == (times < 13) for line in bars)


def test_measured_in_a_process_of_its_own(benchmark):
    found = benchmark.in_a_process("road", 8, [20, 40], 1, 1)
    assert [len(seconds) for seconds in found["seconds"]] == [1, 1]
    assert min(min(found["seconds"])) > 0
    assert found["peak"] > 2**20
    with pytest.raises(RuntimeError, match="prompt_graph must be one of"):
        benchmark.in_a_process("none", 8, [20], 1, 1)
