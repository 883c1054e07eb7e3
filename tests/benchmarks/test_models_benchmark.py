"""The benchmark of recurrent cells runs, and its arithmetic is counted right. Nothing is timed."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("models")


def test_a_quick_run_writes_all_tables(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "DENSE_LIMIT", 50)
    output = tmp_path / "made" / "models.md"
    monkeypatch.setattr(sys, "argv", ["models.py", "--quick", "--threads", "1", "--output", str(output)])
    benchmark.main()
    text = output.read_text(encoding="utf-8")
    for name in benchmark.peers():
        assert text.count(f"| {name} |") == 3
    assert text.count("not run") == 3  # DCRNN's time and ratio in the largest city, and the explanation
    assert len(re.findall(r"\*\*(holds|does not hold)\*\*", text)) == 12
    assert "Not measured: no GPU here." in text
    assert text in capsys.readouterr().out


def test_a_peer_that_computes_something_else_is_found(benchmark, monkeypatch):
    peer = benchmark.peers()["TGCN"]
    as_shipped = type(peer).forward_backward
    monkeypatch.setattr(type(peer), "forward_backward", lambda self, cell, x, *e: as_shipped(self, cell, 2 * x, *e))
    with pytest.raises(AssertionError, match="TGCN: accelerated and shipped differ"):
        benchmark.check_agreement({"TGCN": peer})


@pytest.mark.parametrize("name", ["GConvGRU", "GConvLSTM", "GCLSTM", "DCRNN"])
def test_the_matrix_products_counted_are_those_that_run(benchmark, name, monkeypatch):
    peer = benchmark.peers()[name]
    edges = benchmark.road_network(20, torch.device("cpu"))
    # The plain form: a sparse product that is written as a sum is not counted, nor what runs inside a Function.
    monkeypatch.setattr("tsjt_pyg.nn.recurrences._runs_in_place", lambda *_: False)
    x = torch.randn(3, 5, 20, benchmark.SIZE, requires_grad=True)
    weight = edges[1].clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        benchmark.accelerate(peer.make(benchmark.SIZE, 5))(x, edges[0], weight).sum().backward()
    dense, _ = benchmark.multiply_adds(peer, 20, edges[0].size(1), 3, 5, benchmark.SIZE)
    of_first_state = 20 * 3 * benchmark.SIZE**2 * peer.gates * peer.state_terms  # it is zero and needs no gradient
    assert dense - 2 * of_first_state <= counter.get_total_flops() / 2 <= dense


def test_the_sparse_products_counted(benchmark):
    peer = benchmark.peers()["DCRNN"]
    dense, sparse = benchmark.multiply_adds(peer, nodes=10, edges=30, windows=2, steps=5, size=4)
    assert sparse == 2 * 30 * 2 * 5 * 4 * 6  # two walks of the input, of the state and of the reset state
    assert dense == 3 * (10 * 2 * 5) * 4 * 4 * 3 * 6
