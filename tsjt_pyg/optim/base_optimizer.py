"""Builds and steps the optimizer inside a TargetSkewedOptimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


def build_base(
    params: ParamsT | None, base: Callable[..., Optimizer] | Optimizer, base_kwargs: dict[str, Any]
) -> Optimizer:
    if isinstance(base, Optimizer):
        if base_kwargs:
            raise TypeError(f"base is an instance and takes no further arguments, but got {sorted(base_kwargs)}")
        if params is not None:
            given = {id(p) for p in _tensors(params)}
            held = {id(p) for group in base.param_groups for p in group["params"]}
            if given != held:
                raise ValueError(
                    f"params must be the parameters that the base instance holds, or None: of {len(given)} given and "
                    f"{len(held)} held, {len(given & held)} are the same"
                )
        built = base
    elif params is None:
        raise TypeError("params must be given unless base is an optimizer instance, but is None")
    elif callable(base):
        built = base(params, **base_kwargs)
    else:
        built = base
    if not isinstance(built, Optimizer):
        raise TypeError(
            "base must be a torch.optim.Optimizer class, a functools.partial of one, or an instance, but "
            f"{base!r} gave {type(built).__name__}"
        )
    if any(group.get("differentiable") for group in built.param_groups):
        raise ValueError("base must not be differentiable=True: the filter is no part of the graph of .grad")
    closure = inspect.signature(type(built).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"base must step along a gradient, but {type(built).__name__} evaluates the loss itself, and no loss has "
            "the filtered gradient; allowed are optimizers whose step() works without a closure"
        )
    return built


def _tensors(params: Iterable[Any]) -> list[Tensor]:
    """The tensors of what an optimizer takes as params: tensors, (name, tensor) pairs or groups of either."""
    found: list[Tensor] = []
    for entry in params:
        if isinstance(entry, dict):
            inner = entry["params"]
            found += [inner] if isinstance(inner, Tensor) else _tensors(inner)
        else:
            found.append(entry[1] if isinstance(entry, tuple) else entry)
    return found


def skips_on_device(base: Optimizer, grads: Sequence[Tensor]) -> bool:
    """Whether the base leaves a step out if a tensor on the device says so; fused ones do, for scalers."""
    return (
        getattr(base, "_step_supports_amp_scaling", False)
        and len(grads) > 0
        and all(g.device.type != "cpu" and g.layout is torch.strided for g in grads)
    )


def step_base(base: Optimizer, found_inf: Tensor | None = None) -> None:
    """Step without the base's hooks, which would fire a second time, the global ones among them.

    Args:
        base: the optimizer.
        found_inf: 1 if the base has to leave the step out; only for bases that :func:`skips_on_device` names.
    """
    step: Callable[[Optimizer], Any] = type(base).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    # A scheduler made for the base before it was wrapped looks for this mark, which its own wrapper of step() sets.
    base._opt_called = True  # type: ignore[attr-defined]
    if found_inf is None:
        step(base)
        return
    # The two attributes by which a GradScaler tells them.
    base.found_inf, base.grad_scale = found_inf, None  # type: ignore[attr-defined]
    try:
        step(base)
    finally:
        del base.found_inf, base.grad_scale  # type: ignore[attr-defined]
