"""What a recurrent cell costs: accelerate(cell) beside PyG-Temporal's cell as shipped, forward and backward.

Cities of 207, 2,000 and 20,000 nodes; the cells batched where they allow it, else window by window; the arithmetic
counted, and set against the rate at which this machine multiplies matrices.

    python benchmarks/models.py [--repeats 5] [--threads 2] [--prompts]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from data import about, bar, table
from models_peers import BATCHED, Peer, peers
from torch import Tensor, nn

from tsjt_pyg.nn import accelerate

SIZE, STEPS, DEGREE = 64, 12, 7
DENSE_LIMIT = 5_000
"""Nodes beyond which DCRNN as shipped is not run: every gate of every step makes a dense N x N matrix."""


class City(NamedTuple):
    """Nodes, windows of a batch, and what of it the peers are timed on: windows if one by one, and steps."""

    nodes: int
    windows: int
    peer_windows: int
    peer_steps: int


CITIES = (City(207, 32, 4, STEPS), City(2_000, 4, 1, STEPS), City(20_000, 4, 1, 3))
QUICK = (City(20, 3, 2, STEPS), City(30, 2, 1, STEPS), City(60, 2, 1, 3))


class Found(NamedTuple):
    """Seconds a batch in every repetition; the peer's scaled to the whole batch, none if it was not run."""

    ours: list[float]
    peer: list[float]
    floor: float

    @property
    def ratio(self) -> float:
        return (
            statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True)) if self.peer else float("nan")
        )


# --- arithmetic


def multiply_adds(peer: Peer, nodes: int, edges: int, windows: int, steps: int, size: int) -> tuple[int, int]:
    """Of matrix products and of sparse products, forward and backward, input and hidden size alike.

    Every matrix product has two in the backward pass (of the weight's gradient and of the features'), every sparse
    one has its transpose.
    """
    rows = nodes * windows * steps
    dense = rows * size * size * peer.gates * (peer.input_terms + peer.state_terms)
    return 3 * dense, 2 * edges * windows * steps * size * sum(peer.propagations)


def matrix_rate(device: torch.device, rows: int = 6_624, repeats: int = 9) -> float:
    """Multiply-adds a second of a product as the gates have them, into memory at hand."""
    a, b = torch.randn(rows, 3 * SIZE, device=device), torch.randn(3 * SIZE, 3 * SIZE, device=device)
    out = torch.empty(rows, 3 * SIZE, device=device)
    times = measure([lambda: [torch.mm(a, b, out=out) for _ in range(10)]], device, repeats)[0]
    return 10 * a.numel() * b.size(1) / statistics.median(times)


# --- measurements


def road_network(nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """About so many edges a node, between nodes of near numbers, both directions."""
    generator = torch.Generator().manual_seed(0)
    source = torch.arange(nodes).repeat_interleave(DEGREE // 2 + 1)
    target = (source + torch.randint(1, 15, source.shape, generator=generator)) % nodes
    key = torch.unique(torch.cat([source * nodes + target, target * nodes + source]))
    weight = 0.1 + torch.rand(key.shape, generator=generator)
    return torch.stack([key // nodes, key % nodes]).to(device), weight.to(device)


def measure(runs: list[Callable[[], object]], device: torch.device, repeats: int) -> list[list[float]]:
    """Seconds of each in every repetition, in turn, after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(-1, repeats):
        for run, taken in zip(runs, times, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                taken.append(time.perf_counter() - begin)
    return times


def measure_cell(name: str, peer: Peer, city: City, device: torch.device, repeats: int, rate: float) -> Found:
    edges = road_network(city.nodes, device)
    torch.manual_seed(0)
    cell = peer.make(SIZE, STEPS).to(device)
    fast = accelerate(cell, compile=device.type == "cuda")
    x = torch.randn(city.windows, STEPS, city.nodes, SIZE, device=device, requires_grad=True)
    windows = city.windows if peer.way == BATCHED else city.peer_windows
    part = x.detach()[:windows, : city.peer_steps].clone().requires_grad_()
    shipped = peer.make(SIZE, city.peer_steps).to(device)
    runs: list[Callable[[], object]] = [partial(_forward_backward, fast, x, edges)]
    if name != "DCRNN" or city.nodes <= DENSE_LIMIT:
        runs.append(lambda: peer.forward_backward(shipped, part, *edges))
    ours, *rest = measure(runs, device, repeats)
    scale = city.windows / windows * STEPS / city.peer_steps
    counted = sum(multiply_adds(peer, city.nodes, edges[0].size(1), city.windows, STEPS, SIZE))
    return Found(ours, [scale * seconds for seconds in rest[0]] if rest else [], counted / rate)


def cost_growth(peer: Peer, smaller: City, larger: City, device: torch.device, repeats: int) -> float:
    """How much more a node and window costs in the larger city: median over repetitions that time both in turn."""
    runs: list[Callable[[], object]] = []
    for city in (smaller, larger):
        edges, fast = road_network(city.nodes, device), accelerate(peer.make(SIZE, STEPS).to(device))
        x = torch.randn(city.windows, STEPS, city.nodes, SIZE, device=device, requires_grad=True)
        runs.append(partial(_forward_backward, fast, x, edges))
    times = measure(runs, device, repeats)
    scale = smaller.nodes * smaller.windows / (larger.nodes * larger.windows)
    return statistics.median(large / small * scale for small, large in zip(*times, strict=True)) - 1


def _forward_backward(fast: nn.Module, x: Tensor, edges: tuple[Tensor, Tensor]) -> None:
    fast(x, *edges).sum().backward()


def check_agreement(found: dict[str, Peer]) -> None:
    """What is compared computes the same."""
    edges = road_network(20, torch.device("cpu"))
    for name, peer in found.items():
        cell, x = peer.make(SIZE, 3), torch.randn(2, 3, 20, SIZE)
        accelerate(cell)(x, *edges).sum().backward()
        grads = [_gradient(cell)]
        cell.zero_grad()
        peer.forward_backward(cell, x, *edges)
        grads.append(_gradient(cell))
        if not (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm():
            raise AssertionError(f"{name}: accelerated and shipped differ")


def _gradient(cell: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in cell.parameters() if p.grad is not None])


# --- tables


HEADER = ["cell", "nodes", "windows", "as shipped", "ms", "accelerated: ms", "µs a node and window", "times as fast"]
HEADER += ["times the floor"]


def device_section(
    device: torch.device, cities: tuple[City, ...], repeats: int
) -> tuple[list[str], dict[tuple[str, int], Found]]:
    rate = matrix_rate(device)
    found, rows = {}, []
    for name, peer in peers().items():
        for city in cities:
            one = found[name, city.nodes] = measure_cell(name, peer, city, device, repeats, rate)
            ours = statistics.median(one.ours)
            shipped = [f"{1e3 * statistics.median(one.peer):,.0f}", f"{one.ratio:.1f}"] if one.peer else ["not run"] * 2
            speeds = [f"{1e3 * ours:,.0f}", f"{1e6 * ours / city.nodes / city.windows:.1f}", shipped[1]]
            rows.append([name, f"{city.nodes:,}", str(city.windows), peer.way, shipped[0], *speeds])
            rows[-1].append(f"{ours / one.floor:.1f}")
    text = [f"Matrix rate: {2 * rate / 1e9:,.0f} GFLOP a second, measured in this run.", "", *table(HEADER, rows)]
    return text, found


def cpu_bars(found: dict[tuple[str, int], Found], cities: tuple[City, ...], repeats: int) -> list[str]:
    small, middle, large = cities
    bars = []
    for name, peer in peers().items():
        least, ratio = 4 if peer.way == BATCHED else 8, found[name, small.nodes].ratio
        text = f"{name}, {small.nodes:,} nodes: at least {least} times PyG-Temporal's, {peer.way}"
        bars.append(bar(text, ratio >= least, f"{ratio:.1f}"))
    for name, peer in peers().items():
        growth = cost_growth(peer, middle, large, torch.device("cpu"), repeats)
        text = f"{name}: cost a node flat within 30 % from {middle.nodes:,} to {large.nodes:,} nodes"
        bars.append(bar(text, growth <= 0.3, f"{100 * growth:+.0f} %"))
    return bars


def gpu_bars(found: dict[tuple[str, int], Found], cities: tuple[City, ...]) -> list[str]:
    bars = []
    for name in peers():
        one = found[name, cities[0].nodes]
        times = statistics.median(one.ours) / one.floor
        text = f"GPU, {name}, {cities[0].nodes:,} nodes: "
        bars.append(bar(text + "at least 10 times PyG-Temporal's", one.ratio >= 10, f"{one.ratio:.1f}"))
        bars.append(bar(text + "within 3 times of the floor", times <= 3, f"{times:.1f}"))
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", action="store_true", help="also what node prompts cost")
    parser.add_argument("--quick", action="store_true", help="tiny cities and 2 repetitions: does it run?")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "models.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cities = QUICK if arguments.quick else CITIES
    if arguments.quick:
        arguments.repeats = 2
    report(arguments, cities)


def report(arguments: argparse.Namespace, cities: tuple[City, ...]) -> None:
    check_agreement(peers())
    cpu, found = device_section(torch.device("cpu"), cities, arguments.repeats)
    bars, gpu = cpu_bars(found, cities, arguments.repeats), ["Not measured: no GPU here.", ""]
    if torch.cuda.is_available():
        gpu, found = device_section(torch.device("cuda"), cities, arguments.repeats)
        gpu[0] = f"{torch.cuda.get_device_name()}, compiled. {gpu[0]}"
        bars += gpu_bars(found, cities)
    prompts = ["Not measured (--prompts).", ""]
    if arguments.prompts:
        from model_prompts import prompt_section  # the one call site of benchmarks/model_prompts.py

        prompts, more = prompt_section(arguments)
        bars += more
    parts = "; ".join(
        f"{c.nodes:,} nodes: {c.peer_windows} of {c.windows} windows where it goes window by window, "
        f"{c.peer_steps} of {STEPS} steps"
        for c in cities
    )
    text = "\n".join(
        [
            "# Recurrent cells",
            "",
            *about(arguments.threads),
            f"Forward and backward over batches of {STEPS} steps, input and hidden size {SIZE}, K = 2, gradients of",
            f"the input too; medians of {arguments.repeats} after a warm-up, ratios in the same repetition, in turn.",
            "As shipped: PyG-Temporal's cell called step by step, batched (state given) where it takes batches, else",
            "window by window as its examples do. It is timed on a part of the batch and scaled to the whole:",
            f"{parts}. DCRNN as shipped is not run beyond {DENSE_LIMIT:,} nodes: it makes a dense N x N matrix a gate.",
            "Gradients of both were compared first. Bars of flat cost time both sizes in turn: the medians above are",
            "minutes apart, in which a shared machine may change.",
            "",
            "Floor: the multiply-adds of the accelerated form's matrix and sparse products, forward and backward,",
            "counted from the shapes, all at the rate of a matrix product.",
            "",
            "## CPU",
            "",
            *cpu,
            "## GPU",
            "",
            *gpu,
            "## Prompts",
            "",
            *prompts,
            "## Bars",
            "",
            *bars,
            "",
        ]
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
