"""The optimizer that lets source gradients help only where they do not hurt the target."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from tsjt_pyg.optim.base_optimizer import build_base, step_base
from tsjt_pyg.optim.filters import projection_coefficient, skew
from tsjt_pyg.optim.gradient_slots import GradientSlots, share_graph
from tsjt_pyg.optim.nonfinite import all_finite, describe_nonfinite

_logger = logging.getLogger(__name__)

DEFAULT_GAMMA_SOURCE = 1.0
DEFAULT_GAMMA_TARGET = 1.0
#: Preset name -> (gamma_source, gamma_target).
PRESETS = {"paper": (0.001, 0.2)}

# Own state lies in the first parameter group, where every checkpoint library of torch carries it and a plain optimizer
# ignores it. (A key of `state` that is no parameter breaks torch.distributed.checkpoint; one inside a parameter's state
# breaks bases that initialise that state when it is empty.) One tensor, changed in place: four counters, then the last
# step's gramian.
_RECORD = "skew_record"
_STEPS, _SKIPPED, _FILTERED, _CONFLICTS, _GRAM = range(5)
_RECORD_SIZE = _GRAM + 4


class TargetSkewedOptimizer(Optimizer):
    r"""Target-skewed backward around any ``torch.optim`` optimizer.

    The gradients of the source loss, :math:`g_s`, and of the target loss, :math:`g_t`, are gathered in two blocks. If
    they conflict, the component of :math:`g_s` along :math:`g_t` is removed; the base optimizer then steps along

    .. math::
        g = \gamma_s g_s + (\gamma_t + \gamma_s\kappa) g_t, \qquad
        \kappa = \max\Big(0, \frac{-\langle g_s, g_t\rangle}{\|g_t\|^2 + \mathrm{tiny}}\Big)

    with one :math:`\kappa` over all parameters that have both gradients. A parameter with a gradient from one loss only
    keeps exactly that gradient.

    Source: Zhang et al., "Drawing Informative Gradients from Sources: A One-stage Transfer Learning Framework for
    Cross-city Spatiotemporal Forecasting", AAAI 2025, doi 10.1609/aaai.v39i1.32102.

    **Rounds.** A round lasts from one ``zero_grad()`` or ``step()`` to the next. It may hold any number of ``source()``
    and ``target()`` blocks in any order; gradients of one kind add up. Whenever a block is left, ``.grad`` holds one
    ordinary gradient: that of the blocks so far, filtered once both kinds are there. So ``clip_grad_norm_`` and
    ``GradScaler.unscale_`` work as ever, between the last block and ``step()``. With target blocks only, or none at
    all, ``step()`` is the base's.

    **Backward outside the blocks.** A ``.grad`` that is not as the last block left it when the next one is entered (a
    backward pass outside, no ``zero_grad()`` after a step, clipping in between) becomes, as it stands, an ordinary
    gradient: a new round begins, and its filtered gradient is added to the unfiltered ordinary one.

    **Exceptions.** An exception inside a block ends the round: ``.grad`` is None everywhere and both gradients are
    forgotten, as after ``zero_grad()``; parameters and optimizer state are as before.

    **Memory.** One copy of the gradients beyond ``.grad`` during the second backward pass, and a second one from there
    to ``step()`` (both gradients stay, so that further blocks can be added exactly).

    Args:
        params: what the base takes: tensors, parameter groups or named parameters. None is allowed if ``base`` is an
            instance.
        base: optimizer class, ``functools.partial`` of one, or instance that already holds ``params``. Hooks of an
            instance keep firing. Optimizers that evaluate the loss several times a step (LBFGS) are refused: no loss
            has the filtered gradient.
        preset: ``"paper"`` for the paper's constants, 0.001 and 0.2.
        gamma_source: weight of the source gradient, not negative. None: the preset's, or 1.0.
        gamma_target: weight of the target gradient, not negative. None: the preset's, or 1.0.
        on_nonfinite: what ``step()`` does about a nan or inf in ``.grad``: ``"skip"`` leaves parameters and base
            untouched, counts and logs the step; ``"raise"`` raises RuntimeError. None: skip where all gradients are on
            the CPU, and no check elsewhere, because the check waits for the device. A GradScaler skips such steps
            itself, before this check.
        **base_kwargs: passed to ``base``.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = TargetSkewedOptimizer(model.parameters(), base=torch.optim.Adam, lr=1e-3)
        >>> x_source, x_target = torch.ones(4, 2), torch.zeros(4, 2)
        >>> optimizer.zero_grad()
        >>> with optimizer.source():
        ...     model(x_source).square().mean().backward()
        >>> with optimizer.target():
        ...     model(x_target).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.stats()["steps"]
        1
    """

    def __init__(
        self,
        params: ParamsT | None,
        base: Callable[..., Optimizer] | Optimizer = Adam,
        *,
        preset: str | None = None,
        gamma_source: float | None = None,
        gamma_target: float | None = None,
        on_nonfinite: Literal["skip", "raise"] | None = None,
        **base_kwargs: Any,
    ) -> None:
        if on_nonfinite not in (None, "skip", "raise"):
            raise ValueError(f"on_nonfinite must be 'skip', 'raise' or None, but is {on_nonfinite!r}")
        self.gamma_source, self.gamma_target = _resolve_gammas(preset, gamma_source, gamma_target)
        self.on_nonfinite = on_nonfinite
        self.base = build_base(params, base, base_kwargs)
        if isinstance(self.base, TargetSkewedOptimizer):
            raise TypeError("base must be a plain optimizer, but is a TargetSkewedOptimizer, which would filter twice")
        self._connect()

    def _connect(self) -> None:
        """What is neither copied nor pickled: the hook tables and the gradients in flight."""
        # step() runs the base's step without its hooks, so these tables have to be the same for each hook to fire once.
        self._optimizer_step_pre_hooks = self.base._optimizer_step_pre_hooks
        self._optimizer_step_post_hooks = self.base._optimizer_step_post_hooks
        # Creates the other hook tables. Optimizer.__init__ would also replace the base's groups, state and defaults.
        super().__setstate__({})
        self._slots = GradientSlots(self._filter)
        self._record()

    # The base's own objects, also after the base replaced them (load_state_dict does).
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def source(self) -> AbstractContextManager[None]:
        """Block whose backward passes make the source gradient. Blocks cannot be nested."""
        return self._slots.block("source", self._parameters)

    def target(self) -> AbstractContextManager[None]:
        """Block whose backward passes make the target gradient. Blocks cannot be nested."""
        return self._slots.block("target", self._parameters)

    def backward(self, source_loss: Tensor, target_loss: Tensor) -> None:
        """Both backward passes, each in its block.

        The losses may share a graph (one forward for both cities, or a common subexpression): the graph of the source
        loss is then kept until the target's pass is through. Separate graphs are freed one after the other.
        """
        shared = share_graph(source_loss, target_loss)
        with self.source():
            source_loss.backward(retain_graph=shared)
        with self.target():
            target_loss.backward()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base along ``.grad``; ends the round.

        Args:
            closure: called first, once; may contain ``zero_grad()`` and the blocks. Its result is returned.
        """
        if self._slots.open_block is not None:
            raise RuntimeError(f"step() was called inside {self._slots.open_block}(): leave the block first")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        record = self._record()
        if self._must_skip():
            record[_SKIPPED] += 1
            _logger.warning("step skipped: %s", describe_nonfinite(self.param_groups))
        else:
            step_base(self.base)
            record[_STEPS] += 1
            gram = self._slots.gram
            if gram is not None:
                record[_FILTERED] += 1
                record[_CONFLICTS] += (gram[0, 1] < 0).to(record.device)
                record[_GRAM:].copy_(gram.view(-1))
        self._slots.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad`` and both gradients of the round."""
        self._slots.clear()
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base."""
        self.base.add_param_group(param_group)

    def stats(self) -> dict[str, float | int]:
        """What the filter did; the only call that waits for the device.

        Returns:
            ``steps`` and ``skipped_steps`` (counts); ``conflict_rate``, the share of the filtered steps in which the
            gradients conflicted; of the last filtered step ``cosine`` of the two gradients, ``source_norm``,
            ``target_norm`` (under a GradScaler, of the scaled gradients) and ``kappa``. All 0 as long as no step was
            filtered.
        """
        record = self._record().cpu()
        steps, skipped, filtered, conflicts, ss, st, _, tt = record.tolist()
        norms = math.sqrt(ss) * math.sqrt(tt)
        return {
            "cosine": st / norms if norms > 0 else 0.0,
            "conflict_rate": conflicts / filtered if filtered else 0.0,
            "source_norm": math.sqrt(ss),
            "target_norm": math.sqrt(tt),
            "kappa": float(projection_coefficient(record[_GRAM:].view(2, 2))),
            "steps": int(steps),
            "skipped_steps": int(skipped),
        }

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict; the first parameter group also carries our counters, under one key."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        self._record()
        state_dict = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of ours, or one of a plain base (the counters then start at 0)."""
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        self.base.load_state_dict(state_dict)
        group = self.param_groups[0]
        if _RECORD in group and group["params"]:  # torch moves the state to the parameters' device, but not the groups
            group[_RECORD] = group[_RECORD].to(group["params"][0].device)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "gamma_source": self.gamma_source,
            "gamma_target": self.gamma_target,
            "on_nonfinite": self.on_nonfinite,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:
            self.__dict__.update(state)
            self._connect()
        else:  # what Optimizer.__getstate__ returns
            self.base.__setstate__(state)

    def __repr__(self) -> str:
        lines = [
            f"{type(self).__name__} (",
            f"base: {type(self.base).__name__}",
            f"gamma_source: {self.gamma_source}",
            f"gamma_target: {self.gamma_target}",
        ]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in ("params", _RECORD)]
        return "\n".join([*lines, ")"])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _filter(
        self, sources: Sequence[Tensor | None], targets: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], Tensor | None]:
        return skew(sources, targets, self.gamma_source, self.gamma_target)

    def _record(self) -> Tensor:
        group = self.param_groups[0]
        if _RECORD not in group:
            device = group["params"][0].device if group["params"] else "cpu"
            group[_RECORD] = torch.zeros(_RECORD_SIZE, dtype=torch.float64, device=device)
        record: Tensor = group[_RECORD]
        return record

    def _must_skip(self) -> bool:
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        if self.on_nonfinite is None and any(g.device.type != "cpu" for g in grads):
            return False
        if all_finite(grads):
            return False
        if self.on_nonfinite == "raise":
            raise RuntimeError(
                f"step() refused: {describe_nonfinite(self.param_groups)}; only finite gradients are allowed. "
                "Nothing was changed; on_nonfinite='skip' would skip such steps"
            )
        return True


def _resolve_gammas(preset: str | None, gamma_source: Any, gamma_target: Any) -> tuple[float, float]:
    defaults = (DEFAULT_GAMMA_SOURCE, DEFAULT_GAMMA_TARGET)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)} or None, but is {preset!r}")
        defaults = PRESETS[preset]
    resolved = []
    for name, given, default in zip(
        ("gamma_source", "gamma_target"), (gamma_source, gamma_target), defaults, strict=True
    ):
        if given is not None and (isinstance(given, bool) or not isinstance(given, Real)):
            raise TypeError(f"{name} must be a number or None, but is {given!r}")
        value = default if given is None else float(given)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, but is {given!r}")
        if preset is not None and value != default:
            raise ValueError(
                f"{name}={given!r} contradicts preset={preset!r}, which sets {default!r}: leave one of them out"
            )
        resolved.append(value)
    return resolved[0], resolved[1]
