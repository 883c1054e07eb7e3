"""A forecaster as a program that needs torch and nothing else."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import Module

from tsjt_pyg.data.atomic import atomic_path
from tsjt_pyg.nn.cell_stack import cells_of
from tsjt_pyg.nn.cells.mstgcn import EXACT

if TYPE_CHECKING:
    from tsjt_pyg.nn.forecaster import Forecaster

ABOUT = "about.json"
"""Name of the description within an exported file: ``torch.export.load(path, extra_files={"about.json": ""})``."""

_TRACED, _OTHER = (3, 11, 29), (1, 7, 12)
"""Windows, nodes and edges of the city that a program is made with, and of one that it is tried on."""
_CLOSE = 1e-5

Inputs = dict[str, Tensor]
Shapes = dict[str, dict[int, Any]]


def export_forecaster(model: Forecaster, path: str | Path) -> None:
    """What :meth:`Forecaster.export` does."""
    if model.city_embedding is not None:
        raise ValueError(
            f"city_embedding: it holds parameters of each node of {', '.join(model.city_embedding.cities)}, and an "
            "exported program takes any city; forecast with the model itself, or build it with city_embedding=None "
            "(and another cell than AGCRN)"
        )
    most = {"max": EXACT} if any(type(cell).__name__ == "MSTGCN" for cell in cells_of(model.cell)) else {}
    windows, nodes, edges = Dim("windows", min=1), Dim("nodes", min=1, **most), Dim("edges", min=0)
    axes = {"windows": windows, "nodes": nodes, "edges": edges}
    described = _inputs(model)
    shapes = {
        name: {axis: axes[size] for axis, size in enumerate(about["shape"]) if size in axes}
        for name, about in described.items()
    }
    about = {
        "format": "tsjt_pyg.forecaster/1",
        "torch": str(torch.__version__),
        "history": model.history,
        "horizon": model.horizon,
        "inputs": described,
        "output": {
            "shape": ["windows", model.horizon, "nodes", model.out_channels],
            "dtype": "float32",
            "meaning": "forecast, scaled as x",
        },
    }
    export_program(model, path, _example(model, _TRACED), [_example(model, _OTHER)], shapes, about)


def export_program(
    model: Module,
    path: str | Path,
    example: Inputs,
    others: list[Inputs],
    shapes: Shapes,
    about: Mapping[str, Any],
) -> None:
    """Writes a module as a ``.pt2`` file, once its program has been tried.

    Args:
        model: Of any device; the program is one of the CPU. It is not changed.
        path: The file.
        example: Inputs by name, those that ``forward`` takes by position first.
        others: Inputs of other sizes that the program has to compute as the module does.
        shapes: Which axes of which input are of any size.
        about: What the file says of itself, as JSON under :data:`ABOUT`.

    Raises:
        ValueError: If torch.export cannot follow the module, or the program computes something else. Names the module.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"path: torch.export writes files that end in .pt2, found {path.name!r}")
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    with torch.no_grad(), warnings.catch_warnings(), atomic_path(path) as temporary:
        # Of tensors that are parts of others, which are written all the same, and of torch.nn.GRU's own bookkeeping.
        warnings.filterwarnings("ignore", category=UserWarning, module="torch|contextlib")
        expected = [model(**inputs) for inputs in others]
        try:
            program = torch.export.export(
                model,
                (),
                example,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,  # what torch cannot prove, the program checks
            )
        except Exception as error:  # torch raises what it met: its own errors, those of the module, asserts
            raise ValueError(
                f"{_culprit(model, error.__traceback__)}: torch.export cannot follow it ("
                f"{_short(error)}); use another module there, or forecast with the model itself"
            ) from error
        # By way of memory: torch's own writer ends the process where the disk is full.
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={ABOUT: json.dumps(about, indent=1, allow_nan=False)})
        temporary.write_bytes(buffer.getbuffer())
        # What was written is tried: a module may go another way at another size and tell torch nothing of it.
        loaded = torch.export.load(temporary).module()
        for inputs, forecast in zip(others, expected, strict=True):
            try:
                found = loaded(**inputs)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(_bound(model, inputs, f"fails ({_short(error)})")) from error
            if not torch.allclose(found, forecast, rtol=_CLOSE, atol=_CLOSE):
                difference = float((found - forecast).abs().max())
                raise ValueError(_bound(model, inputs, f"differs from the model by {difference:.2g}"))


def _short(error: BaseException) -> str:
    """The first two lines of what torch says, which goes on for pages."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__


def _bound(model: Module, inputs: Inputs, what: str) -> str:
    sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    return (
        f"{type(model).__name__}: the exported program {what} for {sizes}: a module in it goes by sizes or values that "
        "torch.export takes for constants. Nothing was written; forecast with the model itself"
    )


def _culprit(model: Module, trace: TracebackType | None) -> str:
    """The innermost module of the model where an error came from."""
    names = {id(module): name for name, module in model.named_modules()}
    found = type(model).__name__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, Module) and names.get(id(value)):
                found = f"{names[id(value)]} ({type(value).__name__})"
        trace = trace.tb_next
    return found


def _inputs(model: Forecaster) -> dict[str, dict[str, Any]]:
    """Name, shape, type and meaning of what the program takes."""
    steps, later, channels = model.history, model.history + model.horizon, model.in_channels
    found = {
        "x": (["windows", steps, "nodes", channels], "float32", "readings, scaled as in training"),
        "edge_index": ([2, "edges"], "int64", "the nodes that each road leads from and to"),
        "edge_weight": (["edges"], "float32", "weights of the roads, not negative"),
        "x_mask": (["windows", steps, "nodes", channels], "bool", "true where x was observed"),
    }
    if model.time_of_day:
        found["time_of_day"] = (["windows", steps], "float32", "fraction of the day, from 0 to 1")
    if model.day_of_week:
        found["day_of_week"] = (["windows", steps], "int64", "0 = Monday")
    if model.profile:
        shape = ["windows", later, "nodes", channels]
        found["profile"] = (shape, "float32", "support profile of history and horizon, scaled as x")
        found["profile_mask"] = (shape, "bool", "true where the profile is known; false everywhere: there is none")
        meaning = "whether the profile's days are working days or weekends as the step's is"
        found["profile_same_type"] = (["windows", later], "bool", meaning)
    return {
        name: {"shape": shape, "dtype": dtype, "meaning": meaning} for name, (shape, dtype, meaning) in found.items()
    }


def _example(model: Forecaster, sizes: tuple[int, int, int]) -> Inputs:
    """Any readings of any city."""
    generator = torch.Generator().manual_seed(sizes[0])
    axes = dict(zip(("windows", "nodes", "edges"), sizes, strict=True))
    found = {}
    for name, about in _inputs(model).items():
        shape = [axes.get(size, size) for size in about["shape"]]
        if name in ("edge_index", "day_of_week"):
            found[name] = torch.randint(7, shape, generator=generator)
        else:
            drawn = torch.rand(shape, generator=generator)
            found[name] = drawn > 0.2 if about["dtype"] == "bool" else drawn
    return found
