"""What a batch costs: batches a second and peak memory, beside the loaders of PyG-Temporal and tsl.

At METR-LA's shape (synthetic readings): our windows, in memory and in a mapped folder; PyG-Temporal's index batching
(IndexDataset + DataLoader) and its StaticGraphTemporalSignal; tsl's loader where it is installed. All give the same
batches, which is checked first. With --large also a year of LargeST-CA's shape, written to a folder of 4.5 GB.

    python benchmarks/data.py [--repeats 15] [--threads 1] [--large] [--folder /where/there/is/room]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from data_peers import (
    BATCH_SIZE,
    COPIED,
    HISTORY,
    HORIZON,
    INDEX,
    MAPPED,
    METR_LA_LOADER,
    VIEWS,
    Peer,
    makers,
    num_windows,
)
from torch import Tensor

import tsjt_pyg
from tsjt_pyg._compat import temporal_version
from tsjt_pyg.data import City, StandardScaler
from tsjt_pyg.data.mapped import write_mapped_city

METR_LA = (34_272, 207)
LARGEST_CA = (105_120, 8_600)
MIB = 2**20


# --- data


def shuffled_order(steps: int) -> Tensor:
    return torch.randperm(num_windows(steps), generator=torch.Generator().manual_seed(0))


def write_example(folder: Path, steps: int, nodes: int, block: int = 2_000) -> None:
    """A mapped city of 8 % missing readings, six edges a node."""
    rng = np.random.default_rng(0)

    def blocks() -> Iterator[np.ndarray]:
        readings = 70 * rng.random((block, nodes), dtype=np.float32)
        readings[rng.random(readings.shape, dtype=np.float32) < 0.08] = np.nan
        for first in range(0, steps, block):
            yield np.roll(readings, first // block, axis=1)[: steps - first]

    edges = torch.from_numpy(rng.integers(0, nodes, (2, 6 * nodes)))
    write_mapped_city(folder, blocks(), edges, channels="speed")


def load(name: str, folder: Path) -> City:
    return City.load(folder, mmap=name == MAPPED)


# --- measurements


def check_agreement(peers: list[Peer], city: City) -> None:
    """Every peer's batches are the slices of the readings."""
    for order in (None, shuffled_order(city.num_steps)):
        numbers = (torch.arange(num_windows(city.num_steps)) if order is None else order).split(BATCH_SIZE)
        for peer in peers:
            for batch, index in islice(zip(peer.loader(order), numbers, strict=False), 3):
                x, y = peer.pair(batch)
                for first, one, other in zip(index.tolist(), x, y, strict=True):
                    middle, last = first + HISTORY, first + HISTORY + HORIZON
                    if not torch.equal(one, city.readings[first:middle]) or not torch.equal(
                        other, city.readings[middle:last]
                    ):
                        raise AssertionError(f"{peer.name}: window {first} is not a slice of the readings")


def seconds(peer: Peer, order: Tensor | None, batches: int) -> float:
    """Time of one batch, from so many in a row."""
    begin, taken = time.perf_counter(), 0
    for _ in islice(peer.loader(order), batches):
        taken += 1
    return (time.perf_counter() - begin) / taken


def copying(city: City, batches: int) -> float:
    """Time of a bare copy of as many bytes of readings as a batch has, from one place to another."""
    numbers = BATCH_SIZE * (HISTORY + HORIZON) * city.num_nodes * city.num_channels
    flat = city.readings.numpy().reshape(-1)
    out, places = np.empty(min(numbers, flat.size), flat.dtype), max(1, flat.size // numbers)
    begin = time.perf_counter()
    for i in range(batches):
        first = i * 7 % places * numbers
        np.copyto(out[: flat.size - first], flat[first : first + out.size])
    return (time.perf_counter() - begin) / batches


def speed(peers: list[Peer], city: City, repeats: int, batches: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a batch, by order and peer; in each repetition every peer has one turn, in rotating order."""
    found: dict[str, dict[str, list[float]]] = {}
    for label, order in (("in order", None), ("shuffled", shuffled_order(city.num_steps))):
        times: dict[str, list[float]] = {peer.name: [] for peer in peers} | {"copy": []}
        for repeat in range(-1, repeats):  # the first one warms up
            turn = peers[repeat % len(peers) :] + peers[: repeat % len(peers)]
            taken = {peer.name: seconds(peer, order, batches) for peer in turn} | {"copy": copying(city, batches)}
            if repeat >= 0:
                for name, value in taken.items():
                    times[name].append(value)
        found[label] = times
    return found


def status(key: str) -> int:
    """Bytes of this process, from the kernel: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def measure_memory(name: str, path: str, batches: int) -> dict[str, float]:
    """Run in a process of its own: bytes at most while batches are made, beyond those before there was a city.

    "Before" is after the same with a tiny city: what is loaded at first use is not the batches' memory.
    """
    tiny = City.from_adjacency(np.ones((200, 2)), np.eye(2))
    for order in (None, shuffled_order(200)):
        seconds(makers()[name](tiny), order, 2)
    del tiny
    gc.collect()
    before = status("VmRSS")
    city = load(name, Path(path))
    peer, steps = makers()[name](city), city.num_steps
    del city
    gc.collect()
    found = {}
    for label, order in (("in order", None), ("shuffled", shuffled_order(steps))):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        seconds(peer, order, batches)
        found[label] = float(status("VmHWM") - before)
    return found


def measure_large(path: str, batch_size: int, batches: int) -> dict[str, float]:
    """Run in a process of its own: a pass of shuffled batches of a city that is larger than the memory it may have."""
    imported = status("VmRSS")
    city = City.load(path)
    begin, total = time.perf_counter(), 0.0
    for batch in islice(city.windows(HISTORY, HORIZON).batches(batch_size, shuffle=True), batches):
        total += float(batch.x[0, 0, 0, 0])
    taken = (time.perf_counter() - begin) / batches
    peak = status("VmHWM")
    begin = time.perf_counter()
    visible = city.few_shot(days=min(30, city.num_steps / city.steps_per_day / 2)).visible
    StandardScaler().fit(visible.readings, visible.mask)
    return {
        "imported": imported,
        "peak": peak,
        "seconds": taken,
        "scaler": time.perf_counter() - begin,
        "with scaler": status("VmHWM"),
    }


MEASURES: dict[str, Callable[..., dict[str, float]]] = {"memory": measure_memory, "large": measure_large}


def in_a_process(measure: str, *arguments: str | int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps([measure, *arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- tables


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def ratio(times: dict[str, list[float]], name: str, peer: str = INDEX) -> float:
    """How many times the batches a second of a peer: median of the ratios in every repetition."""
    return statistics.median(i / t for i, t in zip(times[peer], times[name], strict=True))


def speed_rows(found: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    rows = []
    for name in found["in order"]:
        cells = ["(a bare copy of the readings' bytes)" if name == "copy" else name]
        for times in found.values():
            cells += [f"{1 / statistics.median(times[name]):,.0f}", f"{ratio(times, name):.2f}"]
        rows.append(cells)
    return rows


def about(threads: int) -> list[str]:
    """Device, versions and date."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {"tsjt_pyg": tsjt_pyg.__version__, "torch-geometric-temporal": temporal_version() or "not installed"}
    try:
        versions["torch-spatiotemporal (tsl)"] = importlib.metadata.version("torch-spatiotemporal")
    except importlib.metadata.PackageNotFoundError:
        versions["torch-spatiotemporal (tsl)"] = "not installed"
    info = Path("/proc/cpuinfo")
    models = [s for s in info.read_text().splitlines() if s.startswith("model name")] if info.exists() else []
    model = models[0].split(":", 1)[1].strip() if models else platform.processor() or platform.machine()
    return [
        f"{model}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}; {date.today()}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        f"    python {shlex.join(sys.argv)}",
        "",
    ]


def bar(text: str, holds: bool, value: str) -> str:
    return f"- {text}: **{'holds' if holds else 'does not hold'}** ({value})"


def large_section(arguments: argparse.Namespace, shape: tuple[int, int]) -> tuple[list[str], list[str]]:
    """Table and bars of the large city, which is written, measured and deleted."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary) / "large"
        write_example(folder, *shape)
        raw = sum(file.stat().st_size for file in folder.iterdir())
        rows, peaks = [], {}
        for batch_size in (8, 32, 64):
            found = in_a_process("large", str(folder), batch_size, arguments.batches)
            peaks[batch_size] = found["peak"]
            sizes = [f"{found[key] / MIB:.0f}" for key in ("imported", "peak", "with scaler")]
            speeds = [f"{1 / found['seconds']:.0f}", f"{batch_size / found['seconds']:.0f}", f"{found['scaler']:.1f}"]
            rows.append([str(batch_size), *sizes, *speeds])
    header = ["batch size", "MiB after imports", "at most while batching", "and after the scaler"]
    header += ["batches a second", "windows a second", "seconds of the scaler, 30 days"]
    text = [
        f"{shape[0]} steps of {shape[1]} nodes, {raw / 1e9:.2f} GB on disk (readings and mask), shuffled, "
        f"{HISTORY} steps in and {HORIZON} out, {arguments.batches} batches. "
        "Resident memory of the whole process, pages of files included.",
        "",
        *table(header, rows),
    ]
    bars = [
        bar(
            f"{arguments.batches} batches of {n} windows of {shape[1]} nodes in at most 600 MB",
            peak <= 600e6,
            f"{peak / 1e6:.0f} MB",
        )
        for n, peak in peaks.items()
    ]
    return text, bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, default=200, help="batches a measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="also a year of LargeST-CA's shape, 4.5 GB on disk")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the temporary folder")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and 3 repetitions: does it run?")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "data.md")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        measure, *values = arguments.child
        print(json.dumps(MEASURES[measure](*values)))
        return
    shape, large = ((400, 5), (700, 6)) if arguments.quick else (METR_LA, LARGEST_CA)
    if arguments.quick:
        arguments.repeats, arguments.batches = 3, 4
    report(arguments, shape, large)


def report(arguments: argparse.Namespace, shape: tuple[int, int], large: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary) / "city"
        write_example(folder, *shape)
        peers = [make(load(name, folder)) for name, make in makers().items()]
        city = load(COPIED, folder)
        check_agreement(peers, city)
        found = speed(peers, city, arguments.repeats, arguments.batches)
        raw, mask = city.readings.nbytes, city.mask.nbytes
        memory: list[list[str]] = []
        kept: dict[tuple[str, str], float] = {}
        for name in makers():
            cells = [name]
            sizes = [in_a_process("memory", name, str(folder), arguments.batches) for _ in range(3)]
            for order in found:
                extra = kept[name, order] = statistics.median(size[order] for size in sizes)
                cells += [f"{extra / MIB:.1f}", f"{extra / raw:.2f}", f"{extra / (raw + mask):.2f}"]
            memory.append(cells)
    orders = list(found)
    bars = []
    for name in (COPIED, VIEWS, MAPPED):
        for order in orders:
            times, loader, bare = (ratio(found[order], *pair) for pair in ((name,), (name, METR_LA_LOADER), ("copy",)))
            text = f"{name}, {order}: at least 10 times the batches a second of index batching"
            value = f"{times:.2f}; {loader:.2f} times its METR-LA loader's; a bare copy {bare:.2f}"
            bars.append(bar(text, times >= 10, value))
    for name in (COPIED, VIEWS, MAPPED):
        worst = max(kept[name, order] for order in orders)
        text = f"{name}: at most 1.2 times the memory of the raw readings"
        bars.append(
            bar(
                text,
                worst <= 1.2 * raw,
                f"{worst / raw:.2f}; of readings and mask {worst / (raw + mask):.2f}; of the readings as float64, as "
                f"pandas reads METR-LA's file, {worst / (2 * raw):.2f}",
            )
        )
    section: list[str] = ["Not measured (--large).", ""]
    if arguments.large:
        section, more = large_section(arguments, large)
        bars += more
    speed_header = ["", *(cell for order in orders for cell in (f"{order}: batches a second", "times index batching"))]
    memory_header = ["", *(c for order in orders for c in (f"{order}: MiB", "of the readings", "of readings and mask"))]
    text = "\n".join(
        [
            "# Batches",
            "",
            *about(arguments.threads),
            f"{shape[0]} steps of {shape[1]} nodes, 8 % missing, {HISTORY} steps in, {HORIZON} out, batches of "
            f"{BATCH_SIZE}; {arguments.batches} batches a measurement, medians of {arguments.repeats}",
            "after a warm-up; ratios are medians of the ratios in every repetition. All peers gave the slices of the",
            "readings. Ours carry the masks and the time of day too; the others carry x and y alone, but for",
            "PyG-Temporal's METR-LA loader, which repeats the time of day at every node, as a second channel.",
            "",
            *table(speed_header, speed_rows(found)),
            "Shuffled windows do not overlap, so each has to be copied, and nothing that copies can be faster than the",
            "bare copy. `copy=False` yields windows in order as views: nothing is copied.",
            "",
            "## Memory",
            "",
            f"Resident memory at most while batches are made, beyond what the process had before it had this city; raw "
            f"readings {raw / MIB:.1f} MiB, mask {mask / MIB:.1f} MiB. The peers have no mask.",
            "",
            *table(memory_header, memory),
            "## A state, from disk",
            "",
            *section,
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
