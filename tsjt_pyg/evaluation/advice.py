"""Does transfer help me? What a comparison says to somebody who has to decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .table import Comparison, Gain

_DEFAULT = "tsjt"

LEAST = 0.5
"""Percent of MAE that a gain has to be for a training that takes twice as long."""


@dataclass(frozen=True)
class Advice:
    """What to do, in a sentence.

    Args:
        text: The sentence.
        transfer: Whether it is to learn from the sources.
        contributions: Of each source that the guard judged, its weight, mean over the runs.
    """

    text: str
    transfer: bool
    contributions: dict[str, float]

    def __str__(self) -> str:
        return self.text


def advise(comparison: Comparison) -> Advice | None:
    """Whether the sources help this target, by the paired test errors of strategy ``"tsjt"``.

    Where it was not run, or where it is worse beyond chance: of the other strategy with sources that the validation
    days like best. It is held against training on the target alone, with one or two times the steps, whichever has the
    smaller test error. To transfer is advised only if the 95 % interval of the gain is above 0, the gain is at least
    :data:`LEAST` percent, and no naive forecast is better. The interval is that of seeds; other visible days may differ
    by more.

    Returns:
        ``None`` where a strategy with sources or one without was not run, or has no result.
    """
    found = comparison.names
    strategies = {s["name"]: s for s in comparison.protocol["strategies"] if s["name"] in found}
    with_sources = [name for name, s in strategies.items() if s["source_weight"] > 0 or s["pretrain_share"] > 0]
    alone = [name for name in strategies if name not in with_sources]
    if not alone or not with_sources:
        return None
    reference = min(alone, key=lambda name: _mae(comparison, name))
    name, *others = sorted(with_sources, key=lambda n: (n != _DEFAULT, _validation(comparison, n)))
    if name == _DEFAULT and others and all(_is_better(comparison, others[0], than) for than in (name, reference)):
        name = others[0]
    gain = comparison.gain(name, over=reference)
    if gain is None:  # no seed has a result of both
        return None
    target = comparison.protocol["target"]
    weights, told = _contributions(comparison, name)
    measured = f"{_as_change(gain)} MAE against training on {target} alone ({reference})"
    naive = [n for n in comparison.names if comparison.runs(n)[0].seed is None]
    better = min(naive, key=lambda n: _mae(comparison, n), default=None)
    if better is not None and _mae(comparison, better) <= min(_mae(comparison, name), _mae(comparison, reference)):
        text = (
            f"Use no network: the forecast {better!r} has the smallest error ({_mae(comparison, better):.3f}; {name} "
            f"{_mae(comparison, name):.3f}, {reference} {_mae(comparison, reference):.3f}). More steps or more visible "
            "days may change that."
        )
        return Advice(text, False, weights)
    if weights and not any(weights.values()):
        text = (
            f"Train on {target} alone ({reference}): the guard left out every source ({', '.join(weights)}), so {name} "
            "learned from none."
        )
        return Advice(text, False, weights)
    if gain.low is None or gain.high is None:
        text = f"Too few seeds to tell: {name} {measured}. Run it with --seeds 3 or more."
        return Advice(text, False, weights)
    if gain.low > 0 and gain.percent < LEAST:
        text = f"Train on {target} alone ({reference}): {name} is hardly better, {measured}, and takes longer."
        return Advice(text, False, weights)
    if gain.low > 0:
        return Advice(f"Use {name}: {measured}{told}.", True, weights)
    if gain.high < 0:
        return Advice(f"Train on {target} alone ({reference}): {name} does harm, {measured}.", False, weights)
    text = (
        f"Train on {target} alone ({reference}): no gain of {name} can be told from chance, {measured}. More seeds "
        "narrow the interval."
    )
    return Advice(text, False, weights)


def _validation(comparison: Comparison, name: str) -> float:
    losses = [run.validation_loss for run in comparison.runs(name)]
    return float(np.mean([np.inf if loss is None else loss for loss in losses]))


def _mae(comparison: Comparison, name: str) -> float:
    return float(np.mean([run.errors.mean_mae for run in comparison.runs(name)]))


def _is_better(comparison: Comparison, name: str, other: str) -> bool:
    """Beyond chance."""
    gain = comparison.gain(name, over=other)
    return gain is not None and gain.low is not None and gain.low > 0


def _contributions(comparison: Comparison, name: str) -> tuple[dict[str, float], str]:
    """Mean weight of each source that was judged, and in words what it did."""
    found: dict[str, list[float]] = {}
    for run in comparison.runs(name):
        for source in run.sources:
            found.setdefault(source["name"], []).append(source["weight"])
    told = ""
    for city, weights in found.items():
        taken = [weight for weight in weights if weight > 0]
        if not taken:
            told += f"; {city} was left out"
        elif len(taken) == len(weights):
            told += f"; {city} contributes, weight {np.mean(taken):.2g}"
        else:
            told += f"; {city} contributes in {len(taken)} of {len(weights)} runs"
    return {city: float(np.mean(weights)) for city, weights in found.items()}, told


def _as_change(gain: Gain) -> str:
    """A gain as the change of the error: negative is better."""
    if gain.low is None or gain.high is None:
        return f"{-gain.percent:+.1f} %"
    return f"{-gain.percent:+.1f} % [{-gain.high:+.1f}, {-gain.low:+.1f}]"
