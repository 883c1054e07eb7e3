"""State of a model under the names that it has without wrappers, so that each reads what the other wrote."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import City
from ..nn import Forecaster

_COMPILED = "_orig_mod."
"""What :func:`torch.compile` puts before the names of what it wraps."""


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a wrapper or a compiled model."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return unwrapped(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return model if compiled is None else unwrapped(compiled)


def window_size(model: torch.nn.Module) -> tuple[int, int]:
    """``(history, horizon)`` of a model, however wrapped."""
    inner = unwrapped(model)
    return int(inner.history), int(inner.horizon)  # type: ignore[arg-type]


def check_channels(model: torch.nn.Module, city: City) -> None:
    """Raises a ValueError if a :class:`~tsjt_pyg.nn.Forecaster` reads or forecasts another number of channels."""
    inner = unwrapped(model)
    if not isinstance(inner, Forecaster):
        return  # of a model of another kind these names may mean something else
    for name, found in (("in_channels", inner.in_channels), ("out_channels", inner.out_channels)):
        if found != city.num_channels:
            raise ValueError(
                f"model: it has {name}={found}, and {city.name} {city.num_channels} ({', '.join(city.channels)}), all "
                "of which are read and forecast; build it for as many (ModelConfig(channels=…)), or take fewer "
                "(City.select)"
            )


def model_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's ``state_dict()``, by the names of a model that is not wrapped and has no compiled parts."""
    return {name.replace(_COMPILED, ""): value for name, value in unwrapped(model).state_dict().items()}


def load_model_state(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads what :func:`model_state` gave, of the same model however wrapped."""
    inner = unwrapped(model)
    inner.load_state_dict({name: state[name.replace(_COMPILED, "")] for name in inner.state_dict()})


def differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """What differs between the names, types and shapes of two states."""
    return [
        f"parameter {name} (there {_shape(there.get(name))}, here {_shape(here.get(name))})"
        for name in sorted({*there, *here})
        if _shape(there.get(name)) != _shape(here.get(name))
    ]


def _shape(value: Tensor | None) -> str:
    return "none" if value is None else f"{str(value.dtype).removeprefix('torch.')} {[*value.shape]}"
