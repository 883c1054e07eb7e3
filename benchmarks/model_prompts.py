"""What node prompts cost: a forward and backward pass, seconds and memory, in cities of 1,000 to 100,000 nodes.

One window of 12 steps and one channel, 8 and 16 prompt channels, 16 slots, five random edges a node (no locality, the
worst case for a cache). "topk" compares all nodes with all: it is left out at 100,000 nodes.

    python benchmarks/model_prompts.py [--repeats 9] [--threads 1] [--quick]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch_geometric

from tsjt_pyg import NodePrompting

STEPS, EDGES_A_NODE, SLOTS = 12, 5, 16
CHANNELS = (8, 16)
FORMS = ("road", "factorised", "topk")
SIZES = (1_000, 10_000, 100_000)
QUICK = (20, 40, 80)
TIMES, GIB = 13, 2**30


def status(key: str) -> int:
    """Bytes of this process, from the kernel: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def measure(form: str, channels: int, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass in every repetition, the cities in turn (a list a city), and the most
    resident memory of the whole process."""
    runs = [one_pass(form, channels, nodes) for nodes in sizes]
    taken: list[list[float]] = [[] for _ in runs]
    gc.collect()
    for repeat in range(-1, repeats):  # the first one warms up
        for run, seconds in zip(runs, taken, strict=True):
            begin = time.perf_counter()
            run()
            if repeat >= 0:
                seconds.append(time.perf_counter() - begin)
    return {"seconds": taken, "peak": float(status("VmHWM"))}


def one_pass(form: str, channels: int, nodes: int) -> Callable[[], None]:
    torch.manual_seed(0)
    module = NodePrompting(1, channels, SLOTS, prompt_graph=form)
    edges = torch.randint(0, nodes, (2, EDGES_A_NODE * nodes))
    weight, x = torch.rand(edges.size(1)), torch.randn(1, STEPS, nodes, 1)
    gradient = torch.randn(1, STEPS, nodes, 1 + channels)
    return lambda: module(x, edges, weight).backward(gradient)


def in_a_process(form: str, channels: int, sizes: list[int], repeats: int, threads: int) -> dict[str, Any]:
    child = json.dumps([form, channels, sizes, repeats])
    command = [sys.executable, __file__, "--threads", str(threads), "--child", child]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def bar(text: str, holds: bool, value: str) -> str:
    return f"- {text}: **{'holds' if holds else 'does not hold'}** ({value})"


def prompt_section(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Table and bars, each number from a process of its own.

    Args:
        arguments: With ``repeats``, ``threads`` and ``quick``.
    """
    sizes = QUICK if arguments.quick else SIZES
    _, middle, large = sizes
    text = [
        f"One window of {STEPS} steps, one channel, {SLOTS} slots, {EDGES_A_NODE} random edges a node; forward and "
        f"backward, medians of {arguments.repeats} after a warm-up, each form in a process of its own that times "
        f"{middle:,} and {large:,} nodes in turn: on a shared machine both see the same, and bars are held against the "
        f"median of the ratios in each repetition. Resident memory of the whole process of a city; that of {large:,} "
        f"nodes holds the input of {middle:,} too.",
        "",
        "| prompt graph | channels | nodes | seconds | s a node, times that of "
        f"{middle:,} nodes | peak resident memory (MiB) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    bars = []
    for form in FORMS:
        for channels in CHANNELS:
            nodes = sizes[:2] if form == "topk" else sizes
            seconds, peak = {}, {}
            for n in nodes:
                timed = [middle, large] if n == large else [n]
                found = in_a_process(form, channels, timed, arguments.repeats, arguments.threads)
                seconds.update(zip(timed, found["seconds"], strict=True))
                peak[n] = found["peak"]
            for n in nodes:
                median = statistics.median(seconds[n])
                relative = median / n / (statistics.median(seconds[middle]) / middle)
                text.append(f"| {form} | {channels} | {n:,} | {median:.4f} | {relative:.2f} | {peak[n] / 2**20:.0f} |")
            if large in seconds:
                what = f"{form}, {channels} channels, {large:,} nodes and {EDGES_A_NODE * large:,} edges"
                times = statistics.median(b / a for a, b in zip(seconds[middle], seconds[large], strict=True))
                bars.append(
                    bar(f"{what}: under {TIMES} times its cost at {middle:,} nodes", times < TIMES, f"{times:.2f}")
                )
                bars.append(bar(f"{what}: under 3 GiB", peak[large] < 3 * GIB, f"{peak[large] / GIB:.2f} GiB"))
    text += ["", f'"topk" compares all nodes with all, in time that grows with N²: {large:,} nodes are left out.', ""]
    return text, bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny cities and 2 repetitions: does it run?")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "model_prompts.md")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    if arguments.quick:
        arguments.repeats = 2
    section, bars = prompt_section(arguments)
    lines = [
        "# Node prompts",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread{'s' * (arguments.threads > 1)}; "
        f"{date.today()}; python {platform.python_version()}, torch {torch.__version__}, torch-geometric "
        f"{torch_geometric.__version__}",
        "",
        f"    python {shlex.join(sys.argv)}",
        "",
        *section,
        "## Bars",
        "",
        *bars,
        "",
    ]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
