"""The optimizer that lets source gradients help only where they do not hurt the target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from tsjt_pyg.optim.base_optimizer import build_base, skips_on_device, step_base
from tsjt_pyg.optim.filter_arguments import filter_from_arguments
from tsjt_pyg.optim.gradient_slots import HELD_OUT, TARGET, GradientSlots, Kind
from tsjt_pyg.optim.loss_graph import graph_of
from tsjt_pyg.optim.nonfinite import all_finite, describe_nonfinite, found_inf_of
from tsjt_pyg.optim.skew_filter import Filtered, Gradient, Round, SkewFilter
from tsjt_pyg.optim.skew_state import OWN, SkewState
from tsjt_pyg.optim.stats import stats_of

_logger = logging.getLogger(__name__)


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

    **Exceptions.** An exception inside a block ends the round: ``.grad`` is None everywhere and all gradients are
    forgotten, as after ``zero_grad()``; parameters and optimizer state are as before.

    **Memory.** One copy of the gradients beyond ``.grad``, from the second block to ``step()``: the filtered gradient
    is written over one of the two, on the CPU mostly the source's, which a further block restores (to rounding errors
    of the larger of the two; halves are copied instead). Gradients that you hold on to are overwritten too. Where it
    cannot be had back
    (``gamma_target=0``, the filter ``"sign"``, a filter of one's own, a ``.grad`` from outside, several processes) it
    takes a second copy, with ``normal="ema"`` a third, which is state.

    **Options.** ``filter`` says what happens to a source gradient, given its inner products with the normal :math:`n`:

    ================= ================================================================= ================================
    ``"project"``     the rule above, one-sided: the component along :math:`n` goes     the paper; A-GEM, 1812.00420
    ``"gate"``        :math:`g_s` is dropped under conflict                             Du et al., 1812.02224
    ``"cosine_gate"`` :math:`g_s` is scaled by :math:`\max(0, \cos)`                    Du et al., 1812.02224
    ``"sign"``        elements of :math:`g_s` whose sign differs from the normal's go   Mansilla et al., 2108.01621
    ``"vaccine"``     the cosine is lifted to its running average                       GradVac, 2010.05874
    a function        weights of (sources in order of their blocks, target) from        torchjd's weightings and
                      their gramian; or a torchjd aggregator                            aggregators
    ================= ================================================================= ================================

    The formulas are in :mod:`tsjt_pyg.optim.filters`. The other options combine with these: ``scope`` (MGCM,
    2409.15911; GradVac), ``normal`` (Bloop, 2402.02998; held-out data as in Ren et al., 1803.09050), ``balance``
    (MetaBalance, 2203.06801), ``lag`` and several sources (each filtered by itself, then summed).

    Args:
        params: what the base takes: tensors, parameter groups or named parameters. None is allowed if ``base`` is an
            instance.
        base: optimizer class, ``functools.partial`` of one, or instance that already holds ``params``. Hooks of an
            instance keep firing. Optimizers that evaluate the loss several times a step (LBFGS) are refused: no loss
            has the filtered gradient.
        preset: ``"paper"`` for the paper's constants, 0.001 and 0.2.
        gamma_source: weight of the source gradient, not negative; one for all sources, or a dictionary by their names.
            None: the preset's, or 1.0.
        gamma_target: weight of the target gradient, not negative. None: the preset's, or 1.0.
        filter: ``"project"``, ``"gate"``, ``"cosine_gate"``, ``"sign"``, ``"vaccine"``, or a function that maps the
            gramian ``[m, m]`` of the ``m - 1`` sources and the target to ``m`` weights (a torchjd weighting is one), or
            a torchjd aggregator. Functions make all weights, so they exclude the other options but ``scope``; what they
            remember is not in ``state_dict()``.
        scope: ``"global"`` for one decision over all parameters, ``"tensor"`` for one a parameter tensor, ``"group"``
            for one a parameter group.
        normal: what a source gradient must not oppose. ``"batch"``: this round's target gradient. ``"ema"``: its
            running average :math:`m \leftarrow m + \rho (g_t - m)`, this round's included, kept in the parameters'
            state; it moves when a filtered step is taken. ``"held_out"``: the gradient made in ``held_out()`` blocks,
            which every round then needs; it does not join the step but for the correction.
        balance: relaxation :math:`r` in :math:`g_s \leftarrow g_s (r \|g_t\|/\|g_s\| + 1 - r)`, with running
            averages of the norms, before the filter; from 0 (off) to 1.
        max_kappa: largest :math:`\kappa`; a conflict beyond it is removed in part only. None: no cap, since
            :math:`\kappa\|n\| \le \|g_s\|` (with ``"vaccine"`` 23 times that, its goal being 0.999 at most); but with
            ``lag``, whose weights meet other gradients than those that they were made for, give one.
        ema_rate: :math:`\rho`, the weight of the newest value in all running averages (published: Bloop 0.01 to 0.1,
            GradVac 0.01, MetaBalance 0.1).
        lag: the weights are refreshed in every ``lag``-th filtered step only. In between the last ones are applied, and
            ``backward()`` makes one backward pass of the weighted losses where that is the same (``scope="global"``,
            ``normal="batch"``, not ``"sign"``, the same parameters in all losses).
        on_nonfinite: what ``step()`` does about a nan or inf in ``.grad``: ``"skip"`` leaves parameters and base
            untouched, counts and logs the step; ``"raise"`` raises RuntimeError. None: skip where all gradients are on
            the CPU; elsewhere only fused bases skip (not with ``normal="ema"``), because they can without waiting for
            the device. A GradScaler skips such steps itself, before this check.
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
        gamma_source: float | Mapping[str, float] | None = None,
        gamma_target: float | None = None,
        filter: str | Callable[[Tensor], Tensor] = "project",
        scope: Literal["global", "tensor", "group"] = "global",
        normal: Literal["batch", "ema", "held_out"] = "batch",
        balance: float = 0.0,
        max_kappa: float | None = None,
        ema_rate: float = 0.1,
        lag: int = 1,
        on_nonfinite: Literal["skip", "raise"] | None = None,
        **base_kwargs: Any,
    ) -> None:
        if on_nonfinite not in (None, "skip", "raise"):
            raise ValueError(f"on_nonfinite must be 'skip', 'raise' or None, but is {on_nonfinite!r}")
        self.skew_filter = filter_from_arguments(
            preset,
            gamma_source,
            gamma_target,
            filter,
            scope=scope,
            normal=normal,
            balance=balance,
            max_kappa=max_kappa,
            ema_rate=ema_rate,
            lag=lag,
        )
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
        self.skew_state = SkewState(self.base, self.skew_filter)

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

    @property
    def gamma_source(self) -> float | Mapping[str, float]:
        return self.skew_filter.gamma_source

    @property
    def gamma_target(self) -> float:
        return self.skew_filter.gamma_target

    def __getattr__(self, name: str) -> Any:
        # Public methods that only some bases have: train() and eval() of schedule-free ones, for example.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def source(self, name: str | None = None) -> AbstractContextManager[None]:
        """Block whose backward passes make a source gradient. Blocks cannot be nested.

        Args:
            name: which source city's, where there are several: each is filtered by itself. One line, not empty; None is
                ``"source"``.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, but is {name!r}")
        if name is not None and (not name or "\n" in name):
            raise ValueError(f"name must be one line and not empty, but is {name!r}")
        gammas = self.gamma_source
        if isinstance(gammas, Mapping) and (name or "source") not in gammas:
            raise ValueError(f"source({name!r}) has no weight: gamma_source names {sorted(gammas)}")
        return self._slots.block(Kind("source", None if name == "source" else name), self._parameters)

    def target(self) -> AbstractContextManager[None]:
        """Block whose backward passes make the target gradient. Blocks cannot be nested."""
        return self._slots.block(TARGET, self._parameters)

    def held_out(self) -> AbstractContextManager[None]:
        """Block whose backward passes make the normal of ``normal="held_out"``. Blocks cannot be nested."""
        if self.skew_filter.normal != "held_out":
            raise RuntimeError(f"held_out() needs normal='held_out', but normal is {self.skew_filter.normal!r}")
        return self._slots.block(HELD_OUT, self._parameters)

    def backward(self, source_loss: Tensor | Mapping[str, Tensor], target_loss: Tensor) -> None:
        """All backward passes, each in its block; with ``lag``, one of the weighted losses while the weights last.

        The losses may share a graph (one forward for several cities, or a common subexpression): it is then kept until
        the last pass through it. Separate graphs are freed one after the other.

        Args:
            source_loss: loss of the source, or of each source by its name.
            target_loss: loss of the target.
        """
        if not isinstance(source_loss, Tensor | Mapping):
            raise TypeError(
                f"source_loss must be a tensor, or one a source by name, but is a {type(source_loss).__name__}"
            )
        losses: dict[str | None, Tensor] = (
            {None: source_loss} if isinstance(source_loss, Tensor) else dict(source_loss.items())
        )
        graphs = [graph_of(loss) for loss in (*losses.values(), target_loss)]
        names = [name or "source" for name in losses]
        if names and not self.skew_state.is_due(names) and self._one_pass_will_do([leaves for _, leaves in graphs]):
            self._backward_of_weighted(names, [*losses.values(), target_loss])
            return
        for i, (name, loss) in enumerate(losses.items()):
            nodes = graphs[i][0]
            with self.source(name):
                self._prepare(loss)
                loss.backward(retain_graph=not all(nodes.isdisjoint(later) for later, _ in graphs[i + 1 :]))
        with self.target():
            self._prepare(target_loss)
            target_loss.backward()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base along ``.grad``; ends the round.

        Args:
            closure: called first, once; may contain ``zero_grad()`` and the blocks. Its result is returned.
        """
        if self._slots.open_block is not None:
            raise RuntimeError(f"step() was called inside {self._slots.open_block}: leave the block first")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        roles = {kind.role for kind in self._slots.gathered}
        if self.skew_filter.normal == "held_out" and roles == {"source", "target"}:
            raise RuntimeError("normal='held_out' has no normal yet: step() needs a held_out() block in every round")
        if self._must_skip():
            self.skew_state.count_step(skipped=True)
            _logger.warning("step skipped: %s", describe_nonfinite(self.param_groups))
        else:
            found_inf = self._found_inf()
            step_base(self.base, found_inf)
            self.skew_state.count_step(skipped=False if found_inf is None else found_inf)
            self._commit(found_inf)
        self._slots.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad`` and all gradients of the round."""
        self._slots.clear()
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base."""
        self.base.add_param_group(param_group)

    def stats(self, per: Literal["source", "scope"] | None = None) -> dict[str, Any]:
        """What the filter did; the only call that waits for the device.

        Args:
            per: ``"source"`` for one dictionary a source city, ``"scope"`` for one a source city and scope (by the
                names of the parameters or the ``"name"`` of the groups, where they have any).

        Returns:
            ``conflict_rate``, the share of the filtered steps in which a source gradient conflicted with the normal
            (the target gradient, unless ``normal`` says otherwise); of the last filtered step ``cosine`` of the two,
            ``source_norm`` (after balancing), ``target_norm`` (under a GradScaler, of the scaled gradients) and
            ``kappa``. Over several scopes, the inner products add up. Without ``per`` also ``steps`` and
            ``skipped_steps`` (counts), and the others are means over the sources. All 0 as long as no step was
            filtered.
        """
        own = self.skew_state
        own.make_room()
        return stats_of(own.counts, own.records, own.sources, own.scope_names(), per)

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict; the first parameter group also carries our counters, parameters the EMA normal."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        self.skew_state.make_room()
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
        self.skew_state.make_room()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "skew_filter": self.skew_filter, "on_nonfinite": self.on_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:
            self.__dict__.update(state)
            self._connect()
        else:  # what Optimizer.__getstate__ returns
            self.base.__setstate__(state)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (", f"base: {type(self.base).__name__}"]
        plain = SkewFilter()
        for option in fields(SkewFilter):
            value = getattr(self.skew_filter, option.name)
            if option.name.startswith("gamma") or value != getattr(plain, option.name):
                lines.append(f"{'filter' if option.name == 'rule' else option.name}: {value}")
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [
                f"    {key}: {group[key]}" for key in sorted(group) if key != "params" and not key.startswith(OWN)
            ]
        return "\n".join([*lines, ")"])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _prepare(self, loss: Tensor) -> None:
        if self._slots.parallel is not None:
            self._slots.parallel.prepare(loss)

    def _filter(self, gathered: Mapping[Kind, Gradient], may_overwrite: bool) -> Filtered | None:
        sources = {kind.name or "source": g for kind, g in gathered.items() if kind.role == "source"}
        target = gathered.get(TARGET)
        if not sources or target is None:
            return None
        normal: Gradient | None = None
        if self.skew_filter.normal == "held_out":
            if HELD_OUT not in gathered:
                return None
            normal = gathered[HELD_OUT]
        elif self.skew_filter.normal == "ema":
            normal = self.skew_state.normals()
        self.skew_state.make_room(list(sources))
        return self.skew_filter(
            Round(
                sources=sources,
                target=target,
                normal=normal,
                scopes=self.skew_state.scopes(),
                records=self.skew_state.records_of(list(sources)),
                refresh=self.skew_state.is_due(list(sources)),
                in_place=may_overwrite and self.skew_filter.may_overwrite,
            )
        )

    def _commit(self, skipped: Tensor | None) -> None:
        """Make what the filter found in this round part of the state."""
        slots, filtered = self._slots, self._slots.filtered
        self.skew_state.grow_older(slots.weighed)
        if filtered is None or filtered.records is None:
            return
        sources = [kind.name or "source" for kind in slots.gathered if kind.role == "source"]
        self.skew_state.grow_older(sources)
        self.skew_state.keep(sources, filtered.records, skipped)
        if self.skew_filter.normal == "ema":
            self.skew_state.move_normals(slots.gathered[TARGET])

    def _one_pass_will_do(self, leaves: Sequence[set[Tensor]]) -> bool:
        """Whether the weights of the last filtered step, put on the losses, give this step's gradient."""
        if self._slots.gathered or not self.skew_filter.weighs_losses:
            return False
        mine = set(self._parameters())
        reached = [of_loss & mine for of_loss in leaves]
        # A parameter of one city keeps its gradient unweighted.
        return bool(reached[0]) and all(r == reached[0] for r in reached)

    def _backward_of_weighted(self, names: Sequence[str], losses: Sequence[Tensor]) -> None:
        """One pass of the sources' losses and the target's."""
        weights = self.skew_filter.last_weights(names, self.skew_state.records_of(names))
        loss = torch.stack([w * of_one.sum() for w, of_one in zip(weights, losses, strict=True)]).sum().to(losses[-1])
        self._prepare(loss)
        loss.backward()
        self._slots.weighed = list(names)

    def _must_skip(self) -> bool:
        """Whether there is a nan or inf that the host has to look for, and found."""
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        if self.on_nonfinite is None and not all(g.is_cpu for g in grads):
            return False
        if self._bounded(grads) or all_finite(grads):
            return False
        if self.on_nonfinite == "raise":
            raise RuntimeError(
                f"step() refused: {describe_nonfinite(self.param_groups)}; only finite gradients are allowed. "
                "Nothing was changed; on_nonfinite='skip' would skip such steps"
            )
        return True

    def _bounded(self, grads: Sequence[Tensor]) -> bool:
        """Whether the inner products tell already that all gradients are finite, so that none has to be read again."""
        slots, filtered = self._slots, self._slots.filtered
        if filtered is None or not filtered.tells_finite or filtered.records is None or slots.holds_outer:
            return False
        if slots.changed_by_others(self._parameters()):
            return False
        unfiltered = [g for i in filtered.unfiltered if (g := filtered.gradient[i]) is not None]
        names = [kind.name or "source" for kind in slots.gathered if kind.role == "source"]
        largest = min(torch.finfo(dtype).max for dtype in {g.dtype for g in grads})
        return self.skew_filter.bound(names, filtered.records.tolist()) < largest and all_finite(unfiltered)

    def _found_inf(self) -> Tensor | None:
        """1 where the base has to leave the step out, on the device; None where the host has looked, or nobody does."""
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        if self.on_nonfinite is not None or self.skew_filter.normal == "ema" or not skips_on_device(self.base, grads):
            return None
        return found_inf_of(grads)
