"""Whether a model can go from one city to another: nothing in it may be sized by, or remember, one road network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Module

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
    the second) and no layer of torch-geometric-temporal with the node count built in (MPNNLSTM, STConv, ASTGCN,
    EvolveGCNH). With cities: also no parameter or buffer of the user's own modules has a dimension equal to one
    city's node count (while the cities differ in it), and no city has a node on which a DCRNN outside of a
    :class:`~tsjt_pyg.nn.Forecaster` gives NaN.

    Args:
        model: Any module.
        *cities: Objects with ``num_nodes`` and ``edge_index``, such as :class:`tsjt_pyg.City`.

    Raises:
        ValueError: Names the layer, flag, parameter or node, and says what to do about it.
    """
    refuse_bound_layers(model)
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
                f"{where} fits one city only: {_BOUND_LAYERS[kind.__name__]}. Use a layer without a node count, such "
                f"as GConvGRU, GConvLSTM, GCLSTM, TGCN, A3TGCN or DCRNN"
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
    """The modules whose sizes this package cannot vouch for; what lies inside one it can is left out too."""
    if type(module).__module__.startswith(_KNOWN_PACKAGES) or isinstance(module, _CHANNEL_LAYERS):
        return
    yield path, module
    for name, child in module.named_children():
        yield from _unknown_modules(child, f"{path}.{name}" if path else name)


def _check_dcrnn(model: Module, city: HasGraph, name: str) -> None:
    from tsjt_pyg.nn.forecaster import Forecaster  # it imports this module

    mended = {id(module.cell) for module in model.modules() if isinstance(module, Forecaster)}
    for path, module in model.named_modules():
        kind = type(module)
        if (
            kind.__name__ not in ("DCRNN", "BatchedDCRNN")
            or not kind.__module__.startswith("torch_geometric_temporal.")
            or id(module) in mended
        ):
            continue
        sources, targets = (torch.bincount(index, minlength=city.num_nodes) for index in city.edge_index)
        failing = ((sources > 0) & (targets == 0)).nonzero().flatten()
        if failing.numel():
            raise ValueError(
                f"{path or 'the model itself'} ({kind.__name__}) gives NaN in {name}: node {int(failing[0])} has an "
                f"out-edge but no in-edge ({failing.numel()} such nodes). Give these nodes a self-loop, or run the "
                f"cell inside a Forecaster, which does so"
            )


def _name(city: HasGraph, position: int) -> str:
    name = getattr(city, "name", None)
    return f"city {name!r}" if name else f"city number {position}"
