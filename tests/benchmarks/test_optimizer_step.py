"""The optimizer's benchmark runs, its peers agree, and what it counts is so. How long anything takes is not tested."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tsjt_pyg.optim import gramian

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
SHAPES = [(5, 3), (7,)]


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("optimizer_peers")


@pytest.fixture
def benchmark(peers):
    return importlib.import_module("optimizer_step")


def test_a_quick_run_writes_all_tables(benchmark, monkeypatch, tmp_path, capsys):
    output = tmp_path / "made" / "optimizer_step.md"
    monkeypatch.setattr(sys, "argv", ["optimizer_step.py", "--quick", "--threads", "1", "--output", str(output)])
    benchmark.main()
    text = output.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    for heading in ("## CPU", "## A whole training step", "## CUDA", "## Bars (CPU)"):
        assert heading in text
    for header in ("(a) Adam | ours", "ours / (a)", "extra peak"):
        rows = re.search(rf"\| tensors [^\n]*{re.escape(header)}[^\n]*\n\|[-:|]+\n((?:\|.*\n)+)", text)
        assert rows is not None
        assert rows[1].count("\n") == len(benchmark.QUICK_SHAPES)
    assert torch.__version__ in text
    assert "not measured" in text  # the bars are about other shapes
    assert re.search(r"gradients plus 1 %[^:]*: \*\*(holds|does not hold)\*\*", text)


def test_the_peers_compute_what_their_rules_say(peers):
    gradients = peers.example_gradients(SHAPES, CPU)
    for peer in peers.common_peers(SHAPES, CPU):
        peers.check_agreement(peer, *gradients)


def test_a_peer_that_computes_something_else_is_found(peers):
    class Wrong(peers.PerParameter):
        def filter(self):
            self.assign([s + t for s, t in zip(self.sources, self.targets, strict=True)])

    with pytest.raises(AssertionError, match=r"wrong: \.grad is off"):
        peers.check_agreement(Wrong("wrong", SHAPES, CPU), *peers.example_gradients(SHAPES, CPU))


def test_ours_and_the_loop_step_to_the_same_parameters(peers):
    gradients = peers.example_gradients(SHAPES, CPU)
    ours, loop = peers.Ours("ours", SHAPES, CPU), peers.PerParameter("loop", SHAPES, CPU)
    for peer in (ours, loop):
        for _ in range(3):
            peer.prepare(*gradients)
            peer.filter()
            peer.step()
            peer.release()
    for p, q in zip(ours.params, loop.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "floats"),
    [
        (lambda a, b: a + b, 300),
        (lambda a, b: a * a, 200),
        (lambda a, b: a.add_(b), 300),
        (lambda a, b: a.copy_(b), 200),
        (lambda a, b: torch.add(a, b, out=torch.empty_like(a)), 300),
        (lambda a, b: a.zero_(), 100),
        (lambda a, b: a.view(-1).sum(), 100),
        (lambda a, b: a @ a.T, 200),
        (lambda a, b: torch._foreach_mul_([a, b], 2.0), 400),
        (lambda a, b: torch._foreach_add([a, b], [b, a]), 400),
        (lambda a, b: a[0].expand(10, 10) * 1.0, 110),
    ],
)
def test_bytes_moved(peers, operation, floats):
    a, b = torch.ones(10, 10), torch.ones(10, 10)
    with peers.BytesMoved() as count:
        operation(a, b)
    assert count.total == 4 * floats


def test_inner_products_of_arrays_count_too(peers):
    s, t = torch.ones(40, 40), torch.ones(40, 40)
    with peers.BytesMoved() as count:
        gramian([s], [t])
    assert count.total == 4 * (1 + 2 + 1) * 1600


def test_the_loop_moves_fourteen_lists_of_gradients(peers):
    loop = peers.PerParameter("loop", SHAPES, CPU)
    filtered, stepped = peers.bytes_moved(loop, *peers.example_gradients(SHAPES, CPU))
    assert filtered == 14 * 4 * (15 + 7)
    assert stepped > filtered


def test_peak_bytes_counts_what_is_alive_at_one_time(peers):
    def call():
        a = torch.ones(1000)
        b = a.clone()
        del a
        c = b.clone()
        del b
        return c

    kept = []
    for _ in range(2):  # what an earlier call left behind does not count
        assert peers.peak_bytes(lambda: kept.append(call()), CPU) == 8000


def test_shapes_are_read_and_refused(benchmark):
    assert benchmark.parse_shape("3x2x5") == [(2, 5)] * 3
    for wrong in ("0x4", "7"):
        with pytest.raises(ValueError, match="tensors and their sizes"):
            benchmark.parse_shape(wrong)
