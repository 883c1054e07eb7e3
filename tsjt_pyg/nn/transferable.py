"""Whether a model can go from one city to another: nothing in it may be sized by, or remember, one road network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from tsjt_pyg.nn.adapters import TEMPORAL_CELLS
from tsjt_pyg.nn.cell_stack import cells_of
from tsjt_pyg.nn.heads import RecurrentHead

_BOUND_LAYERS = {
    "MPNNLSTM": "it reshapes its input by a fixed num_nodes",
    "STConv": "its batch normalisation is sized by num_nodes",
    "ASTGCN": "its attention holds matrices of num_of_vertices x num_of_vertices",
    "ASTGCNBlock": "its attention holds matrices of num_of_vertices x num_of_vertices",
    "EvolveGCNH": "it pools to in_channels nodes by a ratio fixed by num_of_nodes",
}

# Layers which act on channels, the last dimension: that one of their sizes equals a node count is chance.
_CHANNEL_LAYERS = (
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
    torch.nn.MultiheadAttention,
    torch.nn.modules.conv._ConvNd,
)
_KNOWN_PACKAGES = ("tsjt_pyg.", "torch_geometric.", "torch_geometric_temporal.")


class HasGraph(Protocol):
    """What is asked of a city here."""

    @property
    def num_nodes(self) -> int: ...

    @property
    def edge_index(self) -> Tensor: ...


def check_transferable(model: Module, *cities: HasGraph) -> None:
    """Checks that nothing binds a model to one city.

    Without cities: no graph convolution with ``cached=True`` (it would silently use the first city's road network in
    the second), no layer of torch-geometric-temporal with the node count built in (MPNNLSTM, STConv, ASTGCN,
    EvolveGCNH), and no EvolveGCNO outside of a :class:`~tsjt_pyg.nn.Forecaster` (its weight carries over from one pass
    to the next, and so from one city to the next). With cities: also no parameter or buffer of the user's own modules
    has a dimension equal to one city's node count (while the cities differ in it), and no city has a node on which a
    DCRNN or BatchedDCRNN outside of a Forecaster gives NaN.

    A :class:`~tsjt_pyg.nn.CityEmbedding` belongs to its cities by design and is let pass.

    Args:
        model: Any module.
        *cities: Objects with ``num_nodes`` and ``edge_index``, such as :class:`tsjt_pyg.City`.

    Raises:
        ValueError: Names the layer, flag, parameter or node, and says what to do about it.
    """
    refuse_bound_layers(model)
    _check_evolving(model)
    for position, city in enumerate(cities):
        _check_dcrnn(model, city, _name(city, position))
    if len({city.num_nodes for city in cities}) > 1:
        for position, city in enumerate(cities):
            _check_sizes(model, city, _name(city, position))


def refuse_bound_layers(model: Module) -> None:
    """The part of :func:`check_transferable` that needs no city."""
    for path, module in model.named_modules():
        kind = type(module)
        where = f"{path or 'the model itself'} ({kind.__name__})"
        if getattr(module, "cached", None) is True:
            raise ValueError(
                f"{where} has cached=True: it would keep the first city's road network and use it in every other "
                f"city. Build it with cached=False"
            )
        if kind.__name__ in _BOUND_LAYERS and kind.__module__.startswith("torch_geometric_temporal."):
            raise ValueError(
                f"{where} fits one city only: {_BOUND_LAYERS[kind.__name__]}. Use a layer without a node count: "
                f"{', '.join(TEMPORAL_CELLS)}, torch.nn.GRU or a GraphWaveNet of tsjt_pyg.nn"
            )


def _check_sizes(model: Module, city: HasGraph, name: str) -> None:
    for path, module in _unknown_modules(model, ""):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for own_name, tensor in own:
            if city.num_nodes in tensor.shape:
                raise ValueError(
                    f"{path + '.' if path else ''}{own_name} ({type(module).__name__}) has shape "
                    f"{tuple(tensor.shape)}, and {name} has {city.num_nodes} nodes: it seems to be sized by the "
                    f"number of nodes. Size it by channels; if the two are equal by chance, call check_transferable "
                    f"without this city"
                )


def _unknown_modules(module: Module, path: str) -> Iterator[tuple[str, Module]]:
    """The modules whose sizes this package cannot vouch for; what lies inside one it can is left out too, but for the
    cells of a Forecaster, which may be anybody's."""
    for name, cell in _cells(module):
        yield from _unknown_modules(cell, f"{path}.{name}" if path else name)
    kind = type(module)
    whole = kind.__module__.startswith("torch_geometric_temporal.") and kind.__name__ not in TEMPORAL_CELLS
    if (kind.__module__.startswith(_KNOWN_PACKAGES) and not whole) or isinstance(module, _CHANNEL_LAYERS):
        return
    yield path, module
    for name, child in module.named_children():
        yield from _unknown_modules(child, f"{path}.{name}" if path else name)


def _cells(module: Module) -> list[tuple[str, Module]]:
    """The cells that a Forecaster runs, by their names in it; none if it is no Forecaster."""
    from tsjt_pyg.nn.forecaster import Forecaster  # it imports this module

    if not isinstance(module, Forecaster):
        return []
    stacks = {"cell": module.cell}
    if isinstance(module.head, RecurrentHead):
        stacks["head.cell"] = module.head.cell
    return [
        (f"{name}.{number}" if isinstance(stack, ModuleList) else name, cell)
        for name, stack in stacks.items()
        for number, cell in enumerate(cells_of(stack))
    ]


def _bare(model: Module, *names: str) -> Iterator[tuple[str, Module]]:
    """The layers of torch-geometric-temporal of these names that are not run by a Forecaster, with where they are."""
    run = {id(cell) for module in model.modules() for _, cell in _cells(module)}
    for path, module in model.named_modules():
        kind = type(module)
        known = kind.__name__ in names and kind.__module__.startswith("torch_geometric_temporal.")
        if known and id(module) not in run:
            yield f"{path or 'the model itself'} ({kind.__name__})", module


def _check_evolving(model: Module) -> None:
    for where, _ in _bare(model, "EvolveGCNO"):
        raise ValueError(
            f"{where} carries its weight over from one pass to the next, and so from one city to the next. Run it "
            f"inside a Forecaster, where every pass starts anew"
        )


def _check_dcrnn(model: Module, city: HasGraph, name: str) -> None:
    for where, _ in _bare(model, "DCRNN", "BatchedDCRNN"):
        sources, targets = (torch.bincount(index, minlength=city.num_nodes) for index in city.edge_index)
        failing = ((sources > 0) & (targets == 0)).nonzero().flatten()
        if failing.numel():
            raise ValueError(
                f"{where} gives NaN in {name}: node {int(failing[0])} has an out-edge but no in-edge "
                f"({failing.numel()} such nodes). Give these nodes a self-loop, or run the cell inside a Forecaster, "
                f"which does so"
            )


def _name(city: HasGraph, position: int) -> str:
    name = getattr(city, "name", None)
    return f"city {name!r}" if name else f"city number {position}"
