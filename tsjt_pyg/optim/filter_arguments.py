"""Checks the arguments that choose a filter, and builds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from tsjt_pyg.optim.filters.matrix import weighting_of
from tsjt_pyg.optim.skew_filter import FILTERS, NORMALS, SCOPES, SkewFilter

DEFAULT_GAMMA_SOURCE = 1.0
DEFAULT_GAMMA_TARGET = 1.0
#: Preset name -> (gamma_source, gamma_target).
PRESETS = {"paper": (0.001, 0.2)}


def filter_from_arguments(
    preset: str | None,
    gamma_source: float | Mapping[str, float] | None,
    gamma_target: float | None,
    filter_: str | Callable[[Tensor], Tensor],
    **options: Any,
) -> SkewFilter:
    """The filter of a :class:`~tsjt_pyg.optim.TargetSkewedOptimizer`, whose docstring has the arguments.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if one has no such value, or two contradict each other.
    """
    gammas = _gammas(preset, gamma_source, gamma_target)
    if not callable(filter_):
        _check_choice("filter", filter_, FILTERS, " or a function of the gramian, such as a torchjd weighting")
    _check_choice("scope", options["scope"], SCOPES)
    _check_choice("normal", options["normal"], NORMALS)
    _check_number("balance", options["balance"], 0, 1)
    _check_number("ema_rate", options["ema_rate"], 0, 1, above=True)
    if options["max_kappa"] is not None:
        _check_number("max_kappa", options["max_kappa"], 0, math.inf)
    if isinstance(options["lag"], bool) or not isinstance(options["lag"], Integral):
        raise TypeError(f"lag must be a whole number, but is {options['lag']!r}")
    if options["lag"] < 1:
        raise ValueError(f"lag must be at least 1, but is {options['lag']!r}")
    plain = SkewFilter()
    changed = [name for name, value in options.items() if value != getattr(plain, name)]
    if preset is not None and (filter_ != "project" or [name for name in changed if name not in ("lag", "ema_rate")]):
        other = "filter" if filter_ != "project" else next(n for n in changed if n not in ("lag", "ema_rate"))
        raise ValueError(
            f"{other} contradicts preset={preset!r}, which is the rule of the paper: leave one of them out"
        )
    if options["max_kappa"] is not None and filter_ not in ("project", "vaccine"):
        raise ValueError(f"max_kappa caps the filters 'project' and 'vaccine', but filter is {filter_!r}")
    if callable(filter_):
        given = [n for n, v in (("gamma_source", gamma_source), ("gamma_target", gamma_target)) if v is not None]
        given += [name for name in changed if name not in ("scope", "ema_rate")]
        if given:
            raise ValueError(
                f"{given[0]} is an option of the filters {list(FILTERS)}, but filter is {filter_!r}, which makes all "
                "weights itself: leave it out"
            )
        if options["scope"] == "tensor" and weighting_of(filter_) is None:
            raise ValueError("scope='tensor' would call the aggregator for every tensor: use its weighting, or 'group'")
    return SkewFilter(*gammas, rule=filter_, **options)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...], more: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}{more}, but is {value!r}")


def _check_number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    if not low <= float(value) <= high or (above and value == low):
        between = "not negative" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {between}{f' and above {low}' if above else ''}, but is {value!r}")


def _gammas(
    preset: str | None, gamma_source: float | Mapping[str, float] | None, gamma_target: float | None
) -> tuple[float | dict[str, float], float]:
    defaults = (DEFAULT_GAMMA_SOURCE, DEFAULT_GAMMA_TARGET)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)} or None, but is {preset!r}")
        defaults = PRESETS[preset]
    if isinstance(gamma_source, Mapping):
        source: float | dict[str, float] = {
            name: _gamma(f"gamma_source[{name!r}]", value, defaults[0], preset) for name, value in gamma_source.items()
        }
    else:
        source = _gamma("gamma_source", gamma_source, defaults[0], preset)
    return source, _gamma("gamma_target", gamma_target, defaults[1], preset)


def _gamma(name: str, given: Any, default: float, preset: str | None) -> float:
    if given is not None and (isinstance(given, bool) or not isinstance(given, Real)):
        raise TypeError(f"{name} must be a number or None, but is {given!r}")
    value = default if given is None else float(given)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, but is {given!r}")
    if preset is not None and value != default:
        raise ValueError(
            f"{name}={given!r} contradicts preset={preset!r}, which sets {default!r}: leave one of them out"
        )
    return value
