"""What the target-skewed filter costs: time, bytes moved and memory, beside the other ways to get the same step.

Compares, from two ready lists of gradients on, (a) Adam alone on gradients already summed, ours, (b) the rule as a loop
over the parameters and (c) torchjd, where it is installed; then a whole training step of a forecaster with and without
the filter; on a GPU also under CUDA graphs and torch.compile. Says which of the library's bars hold.

    python benchmarks/optimizer_step.py [--repeats 60] [--threads 1] [--shapes 60x64x64 10x1000x1000]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path

import torch
from optimizer_peers import (
    FILTER,
    GAMMA_SOURCE,
    GAMMA_TARGET,
    STEP,
    CompiledFilter,
    Graphed,
    Ours,
    Peer,
    Shape,
    Timing,
    bytes_moved,
    check_agreement,
    common_peers,
    example_gradients,
    peak_extra_copies,
)
from torch import Tensor
from torch.optim import Adam

import tsjt_pyg
from tsjt_pyg import CityPairLoader, Forecaster, TargetSkewedOptimizer
from tsjt_pyg.data import StandardScaler, WindowBatch
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import masked_mae

SHAPES = ("20x40x40", "60x64x64", "500x8x8", "500x32x32", "10x1000x1000", "30x1000x1000")
QUICK_SHAPES = ("6x8x8", "3x16x16")
SMALL = 1_000_000  # below so many parameters a repetition is cheap and noisy: five times as many are made
TORCHJD = ("torchjd", "torchjd, gramian first")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass(frozen=True)
class Row:
    """What was measured at one shape."""

    label: str
    parameters: int
    timing: Timing
    copies: float
    moved: dict[str, tuple[int, int]]

    def time(self, name: str) -> str:
        """Milliseconds until Adam has stepped."""
        return _ms(self.timing.milliseconds(name))

    def times(self, name: str) -> str:
        """Milliseconds until ``.grad`` is filtered / until Adam has stepped."""
        if name not in self.timing.seconds:
            return "-"
        return f"{_ms(self.timing.milliseconds(name, FILTER))} / {self.time(name)}"

    def slower(self, names: Sequence[str], column: int) -> float | None:
        """Time of the fastest of these by ours; None where they were not measured."""
        name = self.timing.fastest(names, column)
        return None if name is None else self.timing.ratio(name, "ours", column)

    def lists_moved(self, name: str) -> float | None:
        """What the filter moves, in lists of gradients."""
        return self.moved[name][FILTER] / (4 * self.parameters) if name in self.moved else None

    def lists_added(self) -> float:
        """What ours moves beyond Adam alone until the parameters are stepped, in lists of gradients."""
        return (self.moved["ours"][STEP] - self.moved["Adam"][STEP]) / (4 * self.parameters)


def measure(label: str, device: torch.device, repeats: int) -> Row:
    """Everything about one shape on one device, after a check that every peer computes what it should."""
    shapes = parse_shape(label)
    parameters = count(shapes)
    gradients = example_gradients(shapes, device)
    peers = common_peers(shapes, device)
    for peer in peers:
        check_agreement(peer, *gradients)
    moved = {peer.name: bytes_moved(peer, *gradients) for peer in peers}
    timing = Timing(peers, gradients, repeats * (5 if parameters < SMALL else 1))
    return Row(label, parameters, timing, peak_extra_copies(shapes, device), moved)


def parse_shape(label: str) -> list[Shape]:
    """``"60x64x64"`` -> 60 shapes of 64 x 64."""
    count, *shape = (int(number) for number in label.split("x"))
    if count < 1 or not shape:
        raise ValueError(f"a shape is a number of tensors and their sizes, as 60x64x64, not {label}")
    return [tuple(shape)] * count


def count(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def head(label: str) -> list[str]:
    """First cells of a row: the shape and its number of parameters."""
    parameters = count(parse_shape(label))
    return [label, f"{parameters / 1e6:.3g} M" if parameters >= SMALL else f"{parameters / 1e3:.3g} k"]


class TrainingStep(Peer):
    """A whole step of a GConvGRU forecaster on two cities; "filter" is both forward and backward passes."""

    def __init__(self, name: str, skewed: bool, batch_size: int) -> None:
        # Here, because ruff would sort it above tsjt_pyg, which makes it work without torch-sparse.
        from torch_geometric_temporal.nn.recurrent import GConvGRU

        torch.manual_seed(0)
        city, rich = (load_city(f"demo/{name}").select("speed") for name in ("riverton", "ringwood"))
        visible, _ = city.few_shot(days=3)
        self.scalers = [StandardScaler().fit(c.readings, c.mask) for c in (rich, visible)]
        self.model = Forecaster(cell=GConvGRU(32, 32, K=2), history=12, horizon=12)
        self.name, self.params = name, list(self.model.parameters())
        self.optimizer = Adam(self.params)
        if skewed:
            self.optimizer = TargetSkewedOptimizer(
                self.params, base=Adam, gamma_source=GAMMA_SOURCE, gamma_target=GAMMA_TARGET
            )
        self.pairs = list(islice(CityPairLoader([rich.windows(12, 12)], visible.windows(12, 12), batch_size), 8))
        self.step_count = 0

    def prepare(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        self.pair = self.pairs[self.step_count % len(self.pairs)]
        self.step_count += 1

    def filter(self) -> None:
        self.optimizer.zero_grad()
        if isinstance(self.optimizer, TargetSkewedOptimizer):
            with self.optimizer.source():
                self.loss(self.pair.source, self.scalers[0]).backward()
            with self.optimizer.target():
                self.loss(self.pair.target, self.scalers[1]).backward()
        else:
            self.loss(self.pair.source, self.scalers[0]).backward()
            self.loss(self.pair.target, self.scalers[1]).backward()

    def release(self) -> None:
        """The next zero_grad() does it, as in any training."""

    def loss(self, batch: WindowBatch, scaler: StandardScaler) -> Tensor:
        x, y = scaler.transform(batch.x, batch.x_mask), scaler.transform(batch.y)
        forecast = self.model(
            x, batch.edge_index, batch.edge_weight, x_mask=batch.x_mask, time_of_day=batch.time_of_day
        )
        return masked_mae(forecast, y, batch.y_mask)


def training_step(repeats: int, batch_size: int) -> Timing:
    """Whole steps on one thread, as ``tsjt`` trains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peers = [TrainingStep("summed", False, batch_size), TrainingStep("ours", True, batch_size)]
        return Timing(peers, ([], []), repeats)
    finally:
        torch.set_num_threads(threads)


def measure_graphs(label: str, repeats: int, bandwidth: float) -> list[str]:
    """One row of the CUDA table: fused Adam and the filter eager, in one CUDA graph, and compiled."""
    shapes = parse_shape(label)
    gradients = example_gradients(shapes, CUDA)
    graph_options = {"fused": True, "capturable": True}
    peers = [
        Peer("Adam", shapes, CUDA, fused=True),
        Ours("ours", shapes, CUDA, fused=True),
        Graphed(Peer("Adam in a graph", shapes, CUDA, **graph_options)),
        Graphed(Ours("ours in a graph", shapes, CUDA, **graph_options)),
        CompiledFilter("compiled", shapes, CUDA, fused=True),
    ]
    for peer in peers:
        check_agreement(peer, *gradients)
    timing = Timing(peers, gradients, repeats)
    in_graph = timing.milliseconds("ours in a graph") - timing.milliseconds("Adam in a graph")
    cells = [timing.milliseconds(peer.name) for peer in peers]
    cells += [in_graph, timing.milliseconds("compiled", FILTER), 1000 * 5 * 4 * count(shapes) / bandwidth]
    return [*head(label), *(f"{cell:.3f}" for cell in cells)]


def copy_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes on the GPU."""
    one = torch.zeros(2**28, dtype=torch.uint8, device=CUDA)
    other = torch.empty_like(one)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(25):
        if i == 5:
            start.record()
        other.copy_(one)
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * one.numel() / (start.elapsed_time(end) / 1000)


def table(header: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> list[str]:
    """Lines of a Markdown table; numbers get two decimals, what is missing a dash."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        cells = ["-" if c is None else c if isinstance(c, str) else f"{c:.2f}" for c in row]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def tables(rows: Sequence[Row]) -> list[str]:
    """Times, ratios, and what is moved and kept, on one device."""
    torchjd = [f"(c) {name}" for name in TORCHJD]
    kinds = [
        (who, names, what, column)
        for who, names in (("(b)", ("per parameter",)), ("(c)", TORCHJD))
        for what, column in (("filter", FILTER), ("filter + Adam", STEP))
    ]
    filtered = ("ours", "per parameter", *TORCHJD)
    times = [
        [*head(row.label), row.time("Adam"), *map(row.times, filtered), row.time("Adam fused"), row.time("ours fused")]
        for row in rows
    ]
    ratios = [
        [
            *head(row.label),
            row.timing.ratio("ours", "Adam"),
            row.timing.ratio("ours fused", "Adam fused"),
            *(row.slower(names, column) for _, names, _, column in kinds),
        ]
        for row in rows
    ]
    moved = [
        [*head(row.label), f"{row.copies:.3f}", row.lists_added(), *map(row.lists_moved, filtered)] for row in rows
    ]
    first = ["tensors", "parameters"]
    return [
        "Milliseconds, medians; where there are two: until `.grad` is filtered / until Adam has stepped.",
        "",
        *table([*first, "(a) Adam", "ours", "(b) per parameter", *torchjd, "(a) fused", "ours fused"], times),
        "Ratios, medians of the ratios in every repetition, until Adam has stepped where nothing else is said; of (c)",
        "the faster mode.",
        "",
        *table([*first, "ours / (a)", "both fused", *(f"{who} / ours, {what}" for who, _, what, _ in kinds)], ratios),
        "Peak memory beyond (a) in copies of the gradients. Bytes moved in units of 4N (floor: 5): first all that ours",
        "adds to (a) until Adam has stepped, then until `.grad` is filtered.",
        "",
        *table([*first, "extra peak", "ours, added to (a)", "ours", "(b) per parameter", *torchjd], moved),
    ]


def bars(rows: Sequence[Row], whole_step: float) -> list[str]:
    """Which of the bars hold on the CPU, from the numbers in the tables."""
    at = {row.label: row for row in rows}
    lines = []

    def bar(text: str, values: Mapping[str, float | None], limit: float, at_most: bool) -> None:
        """One bar; where it does not hold, at which shapes."""
        found = {label: value for label, value in values.items() if value is not None}
        if not found or len(found) < len(values):
            lines.append(f"- {text}: not measured")
            return
        missed = {label: v for label, v in found.items() if (v > limit if at_most else v < limit)}
        worst = max(found.values()) if at_most else min(found.values())
        where = ", ".join(f"{v:.3g} at {label}" if label else f"{v:.3g}" for label, v in missed.items())
        lines.append(f"- {text}: **{'does not hold' if missed else 'holds'}** ({where or format(worst, '.3g')})")

    for label in ("60x64x64", "10x1000x1000"):
        measured = {label: at[label].timing.ratio("ours", "Adam")} if label in at else {}
        bar(f"filter + Adam at most 1.7 times Adam alone at {label}", measured, 1.7, True)
    many = [at[label] for label in ("500x8x8", "500x32x32") if label in at]
    for what, column in (("the filter", FILTER), ("filter + Adam", STEP)):
        of_many = {row.label: row.slower(("per parameter",), column) for row in many}
        bar(f"{what} at least 3 times faster than (b) at 500 small tensors", of_many, 3, False)
    for what, column in (("the filter", FILTER), ("filter + Adam", STEP)):
        of_all = {row.label: row.slower(TORCHJD, column) for row in rows}
        bar(f"{what} at least 1.5 times faster than (c) at every shape above", of_all, 1.5, False)
    bar("a whole training step at most 1.03 times the same with summed gradients", {"": whole_step}, 1.03, True)
    copies = {row.label: row.copies for row in rows}
    bar("peak extra memory at most one copy of the gradients plus 1 %, at every shape above", copies, 1.01, True)
    return lines


def cuda_section(labels: Sequence[str], repeats: int) -> list[str]:
    if not torch.cuda.is_available():
        return ["Not measured: there is no CUDA device here.", ""]
    bandwidth = copy_bandwidth()
    rows = [measure(label, CUDA, repeats) for label in labels]
    graphed = []
    for label in labels:
        try:
            graphed.append(measure_graphs(label, repeats, bandwidth))
        except RuntimeError as error:  # capture or compilation may fail where the rest of the results is sound
            graphed.append([*head(label), f"failed: {str(error).splitlines()[0]}", *["-"] * 7])
    header = ["tensors", "parameters", "Adam fused", "ours fused", "Adam fused, graph", "ours fused, graph"]
    header += ["compiled filter + Adam fused", "filter in the graph", "compiled filter", "floor of the filter"]
    return [
        f"{torch.cuda.get_device_name()}, {bandwidth / 1e9:.0f} GB/s in a copy.",
        "",
        *tables(rows),
        "Milliseconds, medians. The filter in the graph is the difference of the two graphs; the floor is the time of",
        "moving 5N numbers at the bandwidth of the copy.",
        "",
        *table(header, graphed),
    ]


def about(threads: int) -> list[str]:
    """Device, versions and date."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "tsjt_pyg": tsjt_pyg.__version__}
    for name in ("torchjd", "torch-geometric", "torch-geometric-temporal"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
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


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="repetitions at large shapes; small ones get more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="tensors x sizes, as 60x64x64")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and 3 repetitions: does it run?")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "optimizer_step.md")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.repeats = QUICK_SHAPES, 3
    torch.set_num_threads(arguments.threads)

    rows = []
    for label in arguments.shapes:
        rows.append(measure(label, CPU, arguments.repeats))
        print("measured", label, flush=True)
    step = training_step(3 * arguments.repeats, batch_size=2 if arguments.quick else 16)
    whole_step = step.ratio("ours", "summed")
    text = "\n".join(
        [
            "# The optimizer's step",
            "",
            *about(arguments.threads),
            f"{arguments.repeats} repetitions, five times as many below {SMALL / 1e6:g} M parameters, three times as",
            "many of the training step. In each repetition every peer has one turn, in rotating order.",
            "",
            "## CPU",
            "",
            *tables(rows),
            "## A whole training step",
            "",
            "GConvGRU forecaster on two bundled cities, Adam, one thread: "
            f"{step.milliseconds('ours'):.1f} ms with the filter, {step.milliseconds('summed'):.1f} ms with summed "
            f"gradients; ratio in the median {whole_step:.3f}, in the middle half of the repetitions "
            f"{step.ratio('ours', 'summed', quantile=0.25):.3f} to {step.ratio('ours', 'summed', quantile=0.75):.3f}.",
            "",
            "## CUDA",
            "",
            *cuda_section(arguments.shapes, arguments.repeats),
            "## Bars (CPU)",
            "",
            *bars(rows, whole_step),
            "",
        ]
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
