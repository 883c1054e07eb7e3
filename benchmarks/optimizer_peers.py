"""What ``optimizer_step.py`` compares, and the three things it takes of each: time, bytes moved, peak memory."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsjt_pyg import TargetSkewedOptimizer
from tsjt_pyg.optim import skew
from tsjt_pyg.optim.filters import inner_products

GAMMA_SOURCE = GAMMA_TARGET = 1.0
Shape = tuple[int, ...]
#: Columns of a measurement: until ``.grad`` is filtered, and until the parameters are stepped.
FILTER, STEP = 0, 1


class Peer:
    """Starts from two lists of gradients and ends with stepped parameters; this one is Adam on their sum.

    Args:
        name: what the tables call it.
        shapes: shape of every parameter.
        device: where they lie.
        **options: arguments of Adam.
    """

    #: By how much an element of the filtered gradient may differ from float64's, where the gradients are about 1.
    tolerance = 1e-5

    def __init__(self, name: str, shapes: Sequence[Shape], device: torch.device, **options: Any) -> None:
        self.name = name
        self.params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
        self.optimizer = self.make_optimizer(options)
        self.sources: list[Tensor] = []
        self.targets: list[Tensor] = []

    def make_optimizer(self, options: dict[str, Any]) -> Optimizer:
        return Adam(self.params, **options)

    def inputs(self, sources: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Fresh copies, because a peer may write into what it is given."""
        return [s + t for s, t in zip(sources, targets, strict=True)], []

    def prepare(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        """Whatever happens before the clock starts."""
        self.sources, self.targets = self.inputs(sources, targets)
        if not self.targets:  # already summed
            self.assign(self.sources)

    def filter(self) -> None:
        """From the two lists to ``.grad``."""

    def step(self) -> None:
        self.optimizer.step()

    def release(self) -> None:
        """Forget the gradients, after the clock has stopped."""
        self.sources, self.targets = [], []
        for p in self.params:
            p.grad = None

    def assign(self, grads: Sequence[Tensor | None]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def weights(self, ss: float, st: float, tt: float) -> tuple[float, float]:
        """Weights of the two gradients by this peer's rule, from their three inner products."""
        return 1.0, 1.0


class PerParameter(Peer):
    """The target-skewed rule as one would first write it: a loop over the parameters."""

    def inputs(self, sources: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [s.clone() for s in sources], [t.clone() for t in targets]

    def filter(self) -> None:
        dot = norm = torch.zeros((), device=self.params[0].device)
        for s, t in zip(self.sources, self.targets, strict=True):
            dot = dot + (s * t).sum()
            norm = norm + (t * t).sum()
        kappa = (-dot).clamp(min=0) / (norm + torch.finfo(norm.dtype).tiny)
        for p, s, t in zip(self.params, self.sources, self.targets, strict=True):
            p.grad = GAMMA_SOURCE * s + (GAMMA_TARGET + GAMMA_SOURCE * kappa) * t

    def weights(self, ss: float, st: float, tt: float) -> tuple[float, float]:
        return GAMMA_SOURCE, GAMMA_TARGET + GAMMA_SOURCE * max(0.0, -st / tt)


class Ours(PerParameter):
    """TargetSkewedOptimizer; both blocks and all assignments are timed."""

    def make_optimizer(self, options: dict[str, Any]) -> Optimizer:
        return TargetSkewedOptimizer(
            self.params, base=Adam, gamma_source=GAMMA_SOURCE, gamma_target=GAMMA_TARGET, **options
        )

    def prepare(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        self.optimizer.zero_grad()  # as for all others
        super().prepare(sources, targets)

    def filter(self) -> None:
        assert isinstance(self.optimizer, TargetSkewedOptimizer)
        with self.optimizer.source():
            self.assign(self.sources)
        with self.optimizer.target():
            self.assign(self.targets)


class TorchJD(PerParameter):
    """torchjd's path: its Jacobians, stacked from the two lists, and PCGrad, the rule nearest to ours."""

    gramian_first = False
    tolerance = 2e-2  # its float32 products over ten million elements lose three digits

    def filter(self) -> None:
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import jac_to_grad

        for p, s, t in zip(self.params, self.sources, self.targets, strict=True):
            p.jac = torch.stack((s, t))  # type: ignore[attr-defined]
        jac_to_grad(self.params, PCGrad(), optimize_gramian_computation=self.gramian_first)

    def weights(self, ss: float, st: float, tt: float) -> tuple[float, float]:
        return 1 + max(0.0, -st / ss), 1 + max(0.0, -st / tt)


class TorchJDGramian(TorchJD):
    gramian_first = True


class CompiledFilter(PerParameter):
    """The filter function alone under torch.compile."""

    def __init__(self, name: str, shapes: Sequence[Shape], device: torch.device, **options: Any) -> None:
        super().__init__(name, shapes, device, **options)
        torch.compiler.reset()  # else the shapes before this one would turn it to dynamic shapes
        self.compiled = torch.compile(skew, dynamic=False)

    def filter(self) -> None:
        self.assign(self.compiled(self.sources, self.targets, GAMMA_SOURCE, GAMMA_TARGET)[0])


class Graphed(Peer):
    """Another peer's filter and step, captured in one CUDA graph; the replay is timed."""

    def __init__(self, inner: Peer) -> None:
        self.inner, self.name, self.params, self.tolerance = inner, inner.name, inner.params, inner.tolerance
        self.weights = inner.weights  # type: ignore[method-assign]
        zeros = [torch.zeros_like(p) for p in inner.params]
        inner.prepare(zeros, zeros)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                inner.filter()
                inner.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            inner.filter()
            inner.step()

    def prepare(self, sources: list[Tensor], targets: list[Tensor]) -> None:
        inner = self.inner
        for static, fresh in zip((inner.sources, inner.targets), inner.inputs(sources, targets), strict=True):
            for s, g in zip(static, fresh, strict=True):
                s.copy_(g)

    def step(self) -> None:
        self.graph.replay()

    def release(self) -> None:
        """The graph keeps its gradients."""


def common_peers(shapes: Sequence[Shape], device: torch.device) -> list[Peer]:
    """The peers of every device; torchjd's two modes only where it is installed."""
    peers = [
        Peer("Adam", shapes, device),
        Ours("ours", shapes, device),
        PerParameter("per parameter", shapes, device),
        Peer("Adam fused", shapes, device, fused=True),
        Ours("ours fused", shapes, device, fused=True),
    ]
    if importlib.util.find_spec("torchjd") is not None:
        peers += [TorchJD("torchjd", shapes, device), TorchJDGramian("torchjd, gramian first", shapes, device)]
    return peers


def example_gradients(shapes: Sequence[Shape], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Source and target gradients that conflict."""
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return [torch.randn(t.shape, generator=generator).to(device) - 0.5 * t for t in targets], targets


@torch.no_grad()
def check_agreement(peer: Peer, sources: list[Tensor], targets: list[Tensor]) -> None:
    """Hold ``.grad`` to the peer's rule computed in float64, with and without a conflict."""
    for sign in (1, -1):
        signed = [sign * s for s in sources]
        pairs = [(s.double(), t.double()) for s, t in zip(signed, targets, strict=True)]
        ss = sum(float((s * s).sum()) for s, _ in pairs)
        st = sum(float((s * t).sum()) for s, t in pairs)
        tt = sum(float((t * t).sum()) for _, t in pairs)
        weight_source, weight_target = peer.weights(ss, st, tt)
        peer.prepare(signed, targets)
        peer.filter()
        peer.step()
        for p, (s, t) in zip(peer.params, pairs, strict=True):
            assert p.grad is not None, peer.name
            expected = weight_source * s + weight_target * t
            error = float((p.grad - expected).abs().max())
            if not error <= peer.tolerance:
                raise AssertionError(f"{peer.name}: .grad is off by {error:.2g}, but {peer.tolerance:.2g} is allowed")
        peer.release()


class Timing:
    """Seconds of every repetition: name of the peer -> array [repeats, 2] (filter, filter + step).

    In each repetition every peer is measured once, and the order rotates, so that whatever else the machine does falls
    on all of them alike.
    """

    def __init__(self, peers: Sequence[Peer], gradients: tuple[list[Tensor], list[Tensor]], repeats: int) -> None:
        self.seconds = {peer.name: np.empty((repeats, 2)) for peer in peers}
        for i in range(-3, repeats):
            for peer in [*peers[i % len(peers) :], *peers[: i % len(peers)]]:
                seconds = _seconds(peer, *gradients)
                if i >= 0:
                    self.seconds[peer.name][i] = seconds

    def milliseconds(self, name: str, column: int = STEP) -> float:
        return 1000 * float(np.median(self.seconds[name][:, column]))

    def ratio(self, name: str, other: str, column: int = STEP, quantile: float = 0.5) -> float:
        """Median (or another quantile) over the repetitions of one peer's time by another's."""
        return float(np.quantile(self.seconds[name][:, column] / self.seconds[other][:, column], quantile))

    def fastest(self, names: Sequence[str], column: int = STEP) -> str | None:
        """The one of these that is fastest, of those that were measured."""
        return min((n for n in names if n in self.seconds), key=lambda n: self.milliseconds(n, column), default=None)


def _seconds(peer: Peer, sources: list[Tensor], targets: list[Tensor]) -> tuple[float, float]:
    peer.prepare(sources, targets)
    on_gpu = peer.params[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    gc.disable()
    try:
        start = _now(on_gpu)
        peer.filter()
        filtered = _now(on_gpu)
        peer.step()
        stepped = _now(on_gpu)
    finally:
        gc.enable()
    if on_gpu:
        torch.cuda.synchronize()
    peer.release()
    if on_gpu:
        return start.elapsed_time(filtered) / 1000, start.elapsed_time(stepped) / 1000
    return filtered - start, stepped - start


def _now(on_gpu: bool) -> Any:
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class BytesMoved(TorchDispatchMode):
    """Counts the bytes that ATen's operations and the filter's products of arrays read and write.

    An operation reads each distinct piece of memory among its inputs once and writes its outputs; one that works in
    place does both. Views, tensors without dimensions and memory that is only reserved count nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __enter__(self) -> BytesMoved:
        inner_products.array_dot = self._counted_dot
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        inner_products.array_dot = np.ndarray.dot

    def _counted_dot(self, a: Any, b: Any) -> Any:
        self.total += a.nbytes if a.ctypes.data == b.ctypes.data else a.nbytes + b.nbytes
        return a.dot(b)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name.startswith(("empty", "new_empty")):
            return result
        read: dict[Any, int] = {}
        written = dict(_views(result))
        overwrites = name in ("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_")
        for i, argument in enumerate(func._schema.arguments):
            views = _views(args[i] if i < len(args) else kwargs.get(argument.name))
            changed = argument.alias_info is not None and argument.alias_info.is_write
            if changed:
                written.update(views)
            if not changed or not (overwrites or argument.is_out):
                read.update(views)
        self.total += sum(read.values()) + sum(written.values())
        return result


def _views(value: Any) -> dict[Any, int]:
    """The memory behind every tensor in a nest (the same for a matrix and its transpose) -> its bytes."""
    found = {}
    for t in tree_leaves(value):
        if isinstance(t, Tensor) and t.dim() > 0:
            extents = sorted((stride, n) for n, stride in zip(t.shape, t.stride(), strict=True) if stride and n != 1)
            found[(t.data_ptr(), *extents)] = t.element_size() * math.prod(n for _, n in extents)
    return found


def bytes_moved(peer: Peer, sources: list[Tensor], targets: list[Tensor]) -> tuple[int, int]:
    """Bytes until ``.grad`` is filtered, and until the parameters are stepped."""
    peer.prepare(sources, targets)
    with BytesMoved() as count:
        peer.filter()
        filtered = count.total
        peer.step()
    peer.release()
    return filtered, count.total


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that were allocated at one time during the call, beyond those before it."""
    gc.collect()
    gc.disable()  # what only the collector would free counts, at whatever moment it might run
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
    finally:
        gc.enable()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    changes.sort(key=lambda e: (e["ts"], e["args"]["Ev Idx"]))
    return max(accumulate((e["args"]["Bytes"] for e in changes), initial=0))


def peak_extra_copies(shapes: Sequence[Shape], device: torch.device) -> float:
    """What ours allocates at its peak beyond Adam on summed gradients, in copies of the gradients.

    Both are built and make two whole steps, each with two backward passes that allocate the gradients, so that whatever
    is kept from one step to the next counts as well.
    """
    source_data, target_data = example_gradients(shapes, device)
    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]

    def backward(data: list[Tensor]) -> None:
        torch.stack([(p * c).sum() for p, c in zip(params, data, strict=True)]).sum().backward()

    def summed() -> None:
        adam = Adam(params)
        for _ in range(2):
            adam.zero_grad()
            backward(source_data)
            backward(target_data)
            adam.step()

    def ours() -> None:
        optimizer = TargetSkewedOptimizer(params, base=Adam, gamma_source=GAMMA_SOURCE, gamma_target=GAMMA_TARGET)
        for _ in range(2):
            optimizer.zero_grad()
            with optimizer.source():
                backward(source_data)
            with optimizer.target():
                backward(target_data)
            optimizer.step()

    peaks = []
    for life in (summed, ours):
        peaks.append(peak_bytes(life, device))
        for p in params:
            p.grad = None
    return (peaks[1] - peaks[0]) / sum(4 * p.numel() for p in params)
