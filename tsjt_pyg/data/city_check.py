"""Whether the parts of a city fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from .clean import LARGEST, within_bounds
from .parts import check_local, interval_text
from .rows import row_blocks

if TYPE_CHECKING:
    from .city import City


def check_readings(city: City, argument: str) -> None:
    """Refuses observed readings that no arithmetic survives: nan, inf, or beyond :data:`~tsjt_pyg.data.clean.LARGEST`.

    Reads the whole city, which the constructor, for one that lies in a file, does not.

    Raises:
        ValueError: The message names ``argument``, the city, the step and the node.
    """
    first = 0
    for readings, mask in row_blocks(city.readings, city.mask):
        if not within_bounds(readings):  # perhaps under a false mask, where anything may stand
            bad = (mask & ~(readings.abs() <= LARGEST)).nonzero()
            if len(bad):
                step, node, channel = bad[0].tolist()
                raise ValueError(
                    f"{argument}: {city.name} reads {readings[step, node, channel].item():g} at "
                    f"{city.start + (first + step) * city.interval}, node {city.node_ids[node]!r}, channel "
                    f"{city.channels[channel]!r}; expected finite readings "
                    f"of at most {LARGEST:g} in size; mark what is not observed in the mask, or as NaN in a "
                    "constructor's readings"
                )
        first += len(readings)


def check_city(city: City) -> None:
    """Refuses a city whose parts do not fit each other.

    Raises:
        ValueError: The message names the argument.
    """
    if city.readings.dim() != 3 or city.readings.dtype != torch.float32:
        raise ValueError(
            f"readings: expected a float32 tensor [T, N, C], found {city.readings.dtype} {[*city.readings.shape]}"
        )
    if city.mask.shape != city.readings.shape or city.mask.dtype != torch.bool:
        raise ValueError(
            f"mask: expected a bool tensor {[*city.readings.shape]}, found {city.mask.dtype} {[*city.mask.shape]}"
        )
    if city.edge_index.dim() != 2 or city.edge_index.shape[0] != 2 or city.edge_index.dtype != torch.int64:
        raise ValueError(
            f"edge_index: expected an int64 tensor [2, E], found {city.edge_index.dtype} {[*city.edge_index.shape]}"
        )
    num_edges = city.edge_index.shape[1]
    if num_edges and not 0 <= int(city.edge_index.min()) <= int(city.edge_index.max()) < city.num_nodes:
        raise ValueError(
            f"edge_index: expected nodes 0 to {city.num_nodes - 1} (the readings have {city.num_nodes} nodes), "
            f"found {int(city.edge_index.min())} to {int(city.edge_index.max())}"
        )
    if tuple(city.edge_weight.shape) != (num_edges,):
        raise ValueError(f"edge_weight: expected shape [{num_edges}], found {[*city.edge_weight.shape]}")
    if num_edges and not (torch.isfinite(city.edge_weight).all() and (city.edge_weight >= 0).all()):
        raise ValueError("edge_weight: weights must be finite and not negative")
    for argument in ("channels", "units"):
        if len(getattr(city, argument)) != city.num_channels:
            raise ValueError(
                f"{argument}: the readings have {city.num_channels} channels, found {getattr(city, argument)}"
            )
    check_local(city.start)
    if city.interval <= pd.Timedelta(0) or pd.Timedelta(days=1) % city.interval != pd.Timedelta(0):
        raise ValueError(
            f"interval: expected a positive part of a day (such as '5min'), found {interval_text(city.interval)}"
        )
    if city.pos is not None and tuple(city.pos.shape) != (city.num_nodes, 2):
        raise ValueError(f"pos: expected shape [{city.num_nodes}, 2], found {[*city.pos.shape]}")
