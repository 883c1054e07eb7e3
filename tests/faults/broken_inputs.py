"""Cities, tables and configurations that are broken in random ways, and what may come of them."""

from __future__ import annotations

import math
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

import tsjt_pyg
from tsjt_pyg import City

PACKAGE = Path(tsjt_pyg.__file__).resolve().parent
SECONDS = 120.0
"""After which an example hangs; none takes more than a few."""

OF_PYTHON = re.compile(
    r"not supported between|unsupported operand|has no attribute|positional argument|unexpected keyword|object is not|"
    r"must be real number|indices must be|cannot convert|out of range|invalid literal|could not convert|unhashable|"
    r"division by zero|too many values|not enough values|cannot be interpreted|argument of type|could not be converted"
)
"""What Python says by itself: true, but it names no argument."""


_OTHERS = re.compile(r"\(.*?\)")
"""In brackets, ours may quote what others said."""


class Hang(BaseException):
    """An example took too long."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_clear(error: BaseException) -> None:
    """Fails unless it is an error that this package raised itself, in words of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error}"
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    assert isinstance(error, ValueError | TypeError | FloatingPointError | OSError), f"{text} at {where}"
    assert frames, text
    assert PACKAGE in Path(frames[-1].filename).resolve().parents, f"{text} was raised at {where}"
    assert (frames[-1].line or "").lstrip().startswith("raise "), f"{text} was not raised, but happened, at {where}"
    assert len(str(error)) > 20, f"{text} at {where}"
    assert not OF_PYTHON.search(_OTHERS.sub("", str(error))), f"{text} at {where}"


def outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    """``("result", …)`` or ``("error", …)``, which is a clear one."""
    try:
        with within(SECONDS):
            return "result", work()
    except Exception as error:
        check_clear(error)
        return "error", error


def some(draw: Any, good: list[Any], bad: tuple[Any, ...] | list[Any], rarely: int = 39) -> Any:
    """A good value; in one of ``rarely`` cases a bad one, for otherwise no example would be good in all."""
    # Neither end of the range, which Hypothesis prefers.
    chosen = bad if draw(st.integers(0, 10 * rarely)) % rarely == rarely // 2 else good
    return draw(st.sampled_from(list(chosen)))


# --- readings ------------------------------------------------------------------------------------------------------


def _block(draw: Any, readings: np.ndarray) -> tuple[slice, slice]:
    steps, nodes = readings.shape[:2]
    first = draw(st.integers(0, steps - 1))
    last = draw(st.integers(first + 1, steps))
    node = draw(st.integers(0, nodes - 1))
    return slice(first, last), draw(st.sampled_from([slice(None), slice(node, node + 1)]))


VALUES = (np.nan, np.inf, -np.inf, 0.0, -1.0, 7.0, 1e-38, 1e12, 1e20, 3.4e38, -3.4e38)


@st.composite
def readings(draw: Any) -> Any:
    """Readings of a few days, hour by hour, with up to three faults; now and then no such array at all."""
    steps = draw(st.sampled_from([1, 24, 60, 96, 96, 120, 120, 120]))
    nodes = draw(st.sampled_from([1, 2, 4, 4, 4]))
    channels = draw(st.sampled_from([1, 1, 1, 2]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    hour = np.arange(steps)[:, None, None] / 24 * 2 * np.pi
    found = (
        40 + 8 * np.sin(hour - rng.random((1, nodes, channels))) + rng.normal(size=(steps, nodes, channels))
    ).astype(np.float32)
    for fault in draw(st.lists(st.sampled_from(["block", "alternating", "scaled", "noise", "constant"]), max_size=3)):
        at = _block(draw, found)
        if fault == "block":
            found[at] = draw(st.sampled_from(VALUES))
        elif fault == "alternating":
            found[at] = np.where(np.arange(steps)[:, None, None] % 2, 100.0, -100.0)[at[0]]
        elif fault == "scaled":
            with np.errstate(over="ignore"):
                found[at] *= np.float32(draw(st.sampled_from([1.609344, 1e3, 1e10, 1e30, 0.0, -1.0, 1e-30])))
        elif fault == "noise":
            found[at] = rng.normal(size=found[at].shape) * 1e3
        else:
            found[:] = found[0]
    kind = some(draw, ["array"], ["float64", "int", "text", "complex", "flat", "deep", "empty", "list"], 15)
    match kind:
        case "float64":
            return found.astype(np.float64) * 1e5
        case "int":
            return np.nan_to_num(found, posinf=0, neginf=0).clip(-1e6, 1e6).astype(np.int64)
        case "text":
            return found.astype(str)
        case "complex":
            return torch.as_tensor(found) * 1j
        case "flat":
            return found.reshape(-1)
        case "deep":
            return found[None]
        case "empty":
            return found[:0]
        case "list":
            return found.tolist()
    return found


@st.composite
def cities(draw: Any) -> tuple[str, Callable[[], City]]:
    """Which constructor, and a call of it."""
    values = draw(readings())
    shape = np.shape(values)
    nodes = shape[1] if len(shape) > 1 else 4
    about: dict[str, Any] = {"interval": "60min", "name": draw(st.sampled_from(["a", "b", "", "ö\n"]))}
    for key, broken in (
        ("interval", ["7min", "0min", "-5min", "1D", "2D", 60, "soon"]),
        ("start", ["2024-03-31 00:00", "2024-03-04 00:17", "yesterday", "2024-03-04 00:00+01:00", 5]),
        ("channels", ["speed", ["speed", "flow"], [], [1], {"speed": 1}, 3]),
        ("units", ["km/h", ["km/h", "mph"], "furlongs", [None], 3]),
        ("node_ids", [["x"] * nodes, list(range(nodes + 1)), list(range(nodes)), [None] * nodes, 7, [[1]] * nodes]),
        ("mask", [np.ones(shape, bool), np.zeros(shape, bool), np.ones(shape), np.ones((1, 1), bool), [[True]]]),
        (
            "positions",
            [np.zeros((nodes, 2)), np.full((nodes, 2), np.nan), np.full((nodes, 2), 500.0), np.zeros(3), "x"],
        ),
        ("colour", ["red"]),
    ):
        value = some(draw, [about.get(key)], broken)
        if value is not None:
            about[key] = value
    way = draw(
        st.sampled_from(["from_adjacency"] * 4 + ["from_edge_index"] * 2 + ["from_distances", "from_positions", "City"])
    )
    ring = np.roll(np.eye(nodes), 1, axis=1)
    if way == "from_adjacency":
        good = [ring, ring, ring, np.zeros((nodes, nodes)), np.eye(nodes), ring * 1e38, ring * 1e-38]
        bad = [
            ring * np.nan,
            -ring,
            np.ones((nodes + 1, nodes)),
            ring.astype(str),
            np.ones(3),
            None,
            "ring",
            ring * 1e300,
        ]
        roads = some(draw, good, bad, 15)
        return way, lambda: City.from_adjacency(values, roads, **about)
    if way == "from_edge_index":
        whole = {"dtype": torch.int64}
        loops = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])
        bad = [
            torch.tensor([[0], [99]]),
            torch.tensor([[0], [-1]]),
            torch.zeros(2, 3),
            torch.zeros(3, 2, **whole),
            None,
        ]
        bad += [torch.zeros(2, **whole), "ring"]
        index = some(draw, [loops, torch.zeros(2, 0, **whole), torch.zeros(2, 3, **whole), [[0, 0], [0, 0]]], bad, 10)
        weight = some(draw, [None], [torch.ones(nodes), torch.full((nodes,), math.inf), torch.ones(1, 1), "x"], 6)
        return way, lambda: City.from_edge_index(values, index, weight, **about)
    if way == "from_distances":
        roads = np.where(ring > 0, 500.0, np.inf)
        metres = some(draw, [roads], [ring, roads * np.nan, -roads, np.zeros((nodes, nodes)), roads * 1e300, "far"], 6)
        options = some(draw, [{}], [{"sigma": 0.0}, {"sigma": math.nan}, {"threshold": 1.0}, {"threshold": "x"}], 10)
        return way, lambda: City.from_distances(values, metres, **options, **about)
    if way == "from_positions":
        about.pop("positions", None)
        line = np.linspace(0, 1, 2 * nodes).reshape(nodes, 2)
        places = some(draw, [line, line, np.zeros((nodes, 2))], [np.ones(2), line * np.nan, line * 1e9], 10)
        k = some(draw, [1, 8], [0, -1, 2.5, None], 10)
        return way, lambda: City.from_positions(values, places, k=k, **about)

    def plain() -> City:  # the bare constructor cleans nothing
        tensor = torch.as_tensor(np.asarray(values, dtype=draw_dtype))
        return City(
            "plain",
            tensor,
            torch.ones(tensor.shape, dtype=torch.bool),
            torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)]),
            torch.ones(nodes),
            tuple(map(str, range(nodes))),
            channels=tuple(f"reading_{i}" for i in range(shape[2] if len(shape) > 2 else 1))
            if shape[-1:] != (1,)
            else ("reading",),
            units=("",) * (shape[2] if len(shape) > 2 else 1),
            interval=City.__dataclass_fields__["interval"].default * 12,
        )

    draw_dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    if isinstance(values, torch.Tensor) or np.asarray(values).dtype.kind not in "fi":
        return "from_adjacency", lambda: City.from_adjacency(values, ring, **about)
    return way, plain


@st.composite
def tables(draw: Any) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """A table of readings whose clock jumps, one of sensors, and how they are to be read."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    time = list(pd.date_range("2024-03-30", periods=draw(st.sampled_from([2, 30, 96])), freq="60min"))
    jumps = ["twice", "skipped", "back", "gap", "shifted", "reversed", "year", "none", "half"]
    for jump in draw(st.lists(st.sampled_from(jumps), max_size=2)):
        at = draw(st.integers(0, len(time) - 1))
        match jump:
            case "twice":
                time.insert(at, time[at])
            case "skipped":
                del time[at : at + 1]
            case "back":
                time[at:] = [moment - pd.Timedelta("3h") for moment in time[at:]]
            case "gap":
                time[at:] = [moment + pd.Timedelta("9D") for moment in time[at:]]
            case "shifted":
                time[at:] = [moment + pd.Timedelta("17min") for moment in time[at:]]
            case "reversed":
                time.reverse()
            case "year":
                time[at] -= pd.Timedelta("14610D")
            case "none":
                time[at] = pd.NaT
            case "half":
                time[at] += pd.Timedelta("30min")
        if not time:
            break
    ids = ["1", "2", "3"]
    read = pd.DataFrame(40 + rng.normal(size=(len(time), 3)), index=pd.DatetimeIndex(time, name="time"), columns=ids)
    if len(read):
        row, column = draw(st.integers(0, len(read) - 1)), draw(st.integers(0, 2))
        read = read.astype(object)
        read.iloc[row, column] = some(draw, [1.0, np.nan], ["x", "", "1,5", 1e300, np.inf, 1e20, "nan", True, "-"], 4)
    if draw(st.integers(0, 9)) == 5:
        read.columns = draw(st.sampled_from([["1", "1", "3"], ["a", "b", "c"], ["1", "2", ""]]))
    sensors = pd.DataFrame({"sensor_id": ids, "latitude": [1.0, 1.001, 1.002], "longitude": 2.0})
    if draw(st.integers(0, 9)) == 5:
        broken: Any = draw(
            st.sampled_from([{"latitude": 200.0}, {"latitude": "north"}, {"sensor_id": "1"}, {"longitude": None}])
        )
        sensors = sensors.assign(**broken)
    how = {"duplicates": some(draw, ["error", "mean", "first"], ["sum", None, 3], 10)}
    if draw(st.booleans()):
        how["interval"] = some(draw, ["60min", "30min"], ["7min", 0, "-1h", "soon", None], 6)
    return read, sensors, how


# --- configurations ------------------------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (-1, 0, math.nan, math.inf, 2.5, "3", None)


@st.composite
def models(draw: Any) -> dict[str, Any]:
    return {
        "cell": some(
            draw, ["GRU", "GRU", "GConvGRU", "TGCN", "DCRNN", "GraphWaveNet", "GConvLSTM", "MSTGCN"], ["LSTM", "", None]
        ),
        "hidden_channels": some(draw, [1, 4, 8], NUMBERS),
        "K": some(draw, [1, 2, 3], NUMBERS),
        "num_prompts": some(draw, [0, 0, 1, 4], NUMBERS),
        "prompt_channels": some(draw, [1, 4], NUMBERS),
        "history": some(draw, [1, 4, 6, 12], (*NUMBERS, 500)),
        "horizon": some(draw, [1, 3, 6], (*NUMBERS, 500)),
        "channels": some(draw, [1], [2, *NUMBERS], 12),
        "profile": draw(st.booleans()),
    }


@st.composite
def fittings(draw: Any) -> dict[str, Any]:
    """Arguments of fit."""
    return {
        "strategy": some(
            draw,
            ["tsjt", "tsjt", "pooled", "target_only", "finetune", "source_only", "tsjt_paper"],
            ["magic", "", None],
        ),
        "steps": some(draw, [1, 3, 5], NUMBERS),
        "batch_size": some(draw, [1, 4, 100], NUMBERS),
        "lr": some(draw, [1e-3, 1e-2], (*NUMBERS, 1e-30, 1.0, 1e3, 1e6, 1e38), 6),
        "seed": some(draw, [0, 1, 2**31], NUMBERS),
        "max_grad_norm": some(draw, [5.0], (*NUMBERS, 1e-30, 1e30)),
        "base": some(draw, [torch.optim.Adam, torch.optim.SGD], ["Adam", None, torch.nn.Linear, torch.optim.LBFGS]),
        "validation_days": some(draw, [1.0, 0.5, 0.25], (*NUMBERS, 0.01, 5.0)),
        "evaluations": some(draw, [1, 2, 15], NUMBERS),
        "max_skipped": some(draw, [1, 3, 20], NUMBERS),
    }


VISIBLE_DAYS: tuple[Any, ...] = (*NUMBERS, 1 / 24, 0.3, 1, 100)
