"""What a :class:`~tsjt_pyg.datasets.CityDataset` stores: a city as plain tensors, and what it was made with."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch_geometric.data import Data

from ..data import City

_OWN = {"x", "y", "mask", "x_mask", "edge_index", "edge_attr", "node", "num_nodes", "pos"}
"""What a city or window has anyway; what else a ``pre_transform`` leaves is put on every window."""


def described(value: Any) -> str:
    """A checksum that differs where transforms differ; what those of PyG print does not show their arguments.

    Of a function it covers code, defaults and closure, of an object class and attributes, but nothing that a function
    looks up outside of itself.
    """
    return hashlib.sha256(_described(value, ()).encode()).hexdigest()


def _described(value: Any, inside: tuple[int, ...]) -> str:
    if id(value) in inside:
        return "itself"
    within = (*inside, id(value))

    def parts(*values: Any) -> str:
        return f"{type(value).__qualname__}({', '.join(_described(part, within) for part in values)})"

    if isinstance(value, Tensor):
        return parts(value.dtype, [*value.shape], value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray):
        return parts(value.dtype, [*value.shape], value.tobytes())
    if isinstance(value, set | frozenset):
        return parts(*sorted(_described(part, within) for part in value))
    if isinstance(value, CodeType):
        return parts(value.co_code, value.co_names, *value.co_consts)
    if isinstance(value, MethodType):
        return parts(value.__self__, value.__func__)
    if isinstance(value, functools.partial):
        return parts(value.func, value.args, value.keywords)
    if isinstance(value, FunctionType):
        names = (value.__module__, value.__qualname__)
        return parts(*names, value.__code__, value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ()))
    if isinstance(value, CellType):
        try:
            return parts(value.cell_contents)
        except ValueError:  # not filled yet
            return parts()
    if isinstance(value, list | tuple):
        return parts(*value)
    if isinstance(value, dict):
        return parts(*value.keys(), *value.values())
    if not isinstance(value, type) and hasattr(value, "__dict__"):
        return parts(type(value).__module__, vars(value))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def city_state(city: City) -> dict[str, Any]:
    """A city as tensors and plain values, which ``torch.load(weights_only=True)`` reads."""
    return {
        "name": city.name,
        "readings": alone(city.readings),
        "mask": alone(city.mask),
        "edge_index": alone(city.edge_index),
        "edge_weight": alone(city.edge_weight),
        "pos": None if city.pos is None else alone(city.pos),
        "node_ids": list(city.node_ids),
        "channels": list(city.channels),
        "units": list(city.units),
        "start": city.start.isoformat(),
        "interval_seconds": city.interval.total_seconds(),
    }


def alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of its storage, which would be saved with it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def city_from_state(state: dict[str, Any]) -> City:
    """The city of :func:`city_state`."""
    return City(
        name=state["name"],
        readings=state["readings"],
        mask=state["mask"],
        edge_index=state["edge_index"],
        edge_weight=state["edge_weight"],
        pos=state["pos"],
        node_ids=tuple(state["node_ids"]),
        channels=tuple(state["channels"]),
        units=tuple(state["units"]),
        start=pd.Timestamp(state["start"]),
        interval=pd.Timedelta(seconds=state["interval_seconds"]),
    )


def transformed_city(city: City, transform: Callable[[Data], Data]) -> tuple[City, dict[str, Tensor]]:
    """The city after a transform of PyG, and the tensors that the transform has added.

    Args:
        city: The city.
        transform: Given the whole city as ``Data``; see ``pre_transform`` of :class:`CityDataset`.

    Raises:
        ValueError: If readings, mask, nodes or edges do not fit each other afterwards, or an edge has lost its weight.
    """
    data = Data(
        x=city.readings.movedim(0, -1),
        mask=city.mask.movedim(0, -1),
        edge_index=city.edge_index,
        edge_attr=city.edge_weight,
        node=torch.arange(city.num_nodes),
    )
    if city.pos is not None:
        data.pos = city.pos
    found = transform(data)
    if not isinstance(found, Data):
        raise ValueError(f"pre_transform: expected it to return a Data, found {type(found).__name__}")
    channels, steps = city.num_channels, city.num_steps
    x, node = found.get("x"), found.get("node")
    size = 0 if node is None else len(node)
    expected = (size, channels, steps)
    if x is None or not size or tuple(x.shape) != expected or tuple(found.mask.shape) != expected:
        raise ValueError(
            f"pre_transform: expected it to leave x and mask [N, {channels}, {steps}] and node [N], found "
            f"x {'absent' if x is None else [*x.shape]} and {size} nodes; what concerns single windows belongs in "
            "transform"
        )
    if found.mask.dtype == torch.bool and not torch.isfinite(x.masked_fill(~found.mask, 0.0)).all():
        raise ValueError("pre_transform: expected finite readings where mask is True, found nan or inf")
    if found.edge_attr is None or found.edge_attr.numel() != found.num_edges:
        raise ValueError("pre_transform: expected one weight an edge in edge_attr, [E]")
    try:
        new = replace(
            city,
            # As in every city, so that nobody reads by mistake what was hidden.
            readings=(x if found.mask.dtype != torch.bool else x.masked_fill(~found.mask, 0.0))
            .movedim(-1, 0)
            .to(torch.float32),
            mask=found.mask.movedim(-1, 0),
            edge_index=found.edge_index,
            edge_weight=found.edge_attr.reshape(-1).to(torch.float32),
            node_ids=tuple(city.node_ids[i] for i in node.tolist()),
            pos=found.get("pos"),
        )
    except ValueError as error:
        raise ValueError(f"pre_transform: what it returns is no city: {error}") from error
    added = {key: value for key, value in found.to_dict().items() if key not in _OWN}
    if odd := [key for key, value in added.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"pre_transform: expected it to add tensors only, found {odd[0]!r}, which is none")
    return new, {key: alone(value) for key, value in added.items()}
