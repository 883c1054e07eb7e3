"""What the records of ``evidence.py`` say: errors of runs, and their changes, paired by run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

DEFAULT, UNGUARDED = "tsjt", "tsjt without guard"
UNTIL_NOW = "sources that end with the visible days"
"""Not spoiled, but as they are in use: nobody has the sources' readings of days that the target has yet to see."""
ALONE = ("target_only", "target_only_2x")
PLAIN = "plain network"
TORCHJD = ("PCGrad", "GradVac", "CAGrad", "UPGrad", "IMTL-G")
RIVALS = {
    PLAIN: ("target_only, plain network", "target_only_2x, plain network"),
    "pooled": ("pooled", "pooled .3:1", "pooled .1:1"),
    "fine-tuning": ("finetune", "finetune 2x", "finetune 2x, lr .3", "finetune 2x, lr .1", "finetune 2x, head"),
    "torchjd": TORCHJD,
    "the paper's rule": ("tsjt_paper", "tsjt_paper with prompts"),
}
"""What the default is held against; of each, the variant that the validation days like best."""

FURTHER = {
    "alone, no profile": ("target_only_2x, without profile",),
    "sources alone": ("source_only",),
    "by size": ("by size 2x",),
    "Reptile": ("reptile 2x",),
    "domain-adversarial": ("domain-adversarial",),
    "pooled, averaged": ("pooled, averaged",),
}
"""Others, among them plain joint training with the running average of the default."""


class Change(NamedTuple):
    """By how many percent an error differs from another, paired by run, with Student's 95 % interval.

    Which days are visible matters more than the seed, so the interval is one over the first days: runs that share one
    are averaged first. Of a single first day it is not known (NaN).
    """

    percent: float
    low: float
    high: float
    wins: int
    runs: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.percent:+.1f}"
        return f"{self.percent:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


class Evidence:
    """The records as a table with one row a training or naive forecast.

    Args:
        records: As :func:`evidence.read_records` gives them.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        rows = []
        for record in records:
            for run in record["runs"]:
                rows.append(
                    {
                        **{key: record[key] for key in ("task", "days", "start", "seed", "poison", "unit")},
                        "name": run["name"],
                        "trained": run["seed"] is not None,
                        "mae": run["errors"]["mean_mae"],
                        "rmse": run["errors"]["mean_rmse"],
                        "by_step": run["errors"]["mae"],
                        "last": (run["last"] or run["errors"])["mean_mae"],
                        "validation": run["validation_loss"],
                        "sources": run["sources"],
                        "minutes": record["minutes"],
                    }
                )
        self.rows = pd.DataFrame(rows)
        self.failed = {record["key"]: record["failed"] for record in records if "failed" in record}
        self.settings = list(dict.fromkeys(zip(self.rows.task, self.rows.days, strict=True)))
        self.settings.sort(key=lambda setting: (-setting[1], setting[0]))

    def runs(self, setting: tuple[str, int], name: str, poison: str = "") -> pd.DataFrame:
        """The runs of a strategy in a setting, by seed."""
        rows = self.rows
        task, days = setting
        kept = (rows.task == task) & (rows.days == days) & (rows.name == name) & (rows.poison == poison)
        return rows[kept].set_index("seed").sort_index()

    def change(
        self,
        setting: tuple[str, int],
        name: str,
        reference: str,
        poison: str = "",
        column: str = "mae",
        against: str = "mae",
    ) -> Change | None:
        """Of a strategy against another, in the runs that both have.

        Args:
            setting: Task and visible days.
            name: The strategy.
            reference: The other.
            poison: Of the strategy's sources.
            column: Its error: ``"mae"`` of the chosen checkpoint, ``"last"`` of the last one.
            against: The other's.
        """
        runs, others = self.runs(setting, name, poison), self.runs(setting, reference)
        both = runs.index.intersection(others.index)
        if both.empty:
            return None
        percent = 100 * (runs[column][both] / others[against][both] - 1)
        by_day = percent.groupby(runs["start"][both]).mean()
        half = float("nan")
        if len(by_day) > 1:
            half = float(stats.t.ppf(0.975, len(by_day) - 1) * stats.sem(by_day))
        mean = float(by_day.mean())
        return Change(mean, mean - half, mean + half, int((percent < 0).sum()), len(both))

    def chosen(self, setting: tuple[str, int], names: Iterable[str]) -> str | None:
        """Of several strategies the one that the validation days like best, on the mean over the runs all have."""
        tables = {name: self.runs(setting, name)["validation"].astype(float) for name in names}
        tables = {name: values for name, values in tables.items() if len(values)}
        if not tables:
            return None
        common = sorted(set.intersection(*(set(values.index) for values in tables.values())))
        if not common:
            return None
        return min(tables, key=lambda name: float(tables[name][common].mean()))

    def reference(self, setting: tuple[str, int]) -> str:
        """Training on the target alone: with equal steps or equal compute, as validation prefers."""
        return self.chosen(setting, ALONE) or ALONE[0]

    def best_rival(
        self,
        setting: tuple[str, int],
        columns: Sequence[str] = ("mae",),
        kinds: Mapping[str, Sequence[str]] = RIVALS,
    ) -> tuple[str, str] | None:
        """Of each kind the variant that validation prefers, and of these the one with the smallest test error.

        The last choice is made in hindsight, which nobody has who has to choose.

        Args:
            setting: Task and visible days.
            columns: Which errors a rival may be judged by: with ``"last"``, also those of its last parameters.
            kinds: Who is a rival.

        Returns:
            Its name, and the column.
        """
        chosen = [rival for names in kinds.values() if (rival := self.chosen(setting, names)) is not None]
        errors = {(rival, column): self.runs(setting, rival)[column] for rival in chosen for column in columns}
        common = sorted(set.intersection(*(set(values.index) for values in errors.values()))) if errors else []
        return min(errors, key=lambda rival: float(errors[rival][common].mean())) if common else None

    def naive(self, setting: tuple[str, int]) -> list[str]:
        """Names of the forecasts without a network."""
        rows = self.rows
        kept = (rows.task == setting[0]) & (rows.days == setting[1]) & ~rows.trained
        return list(dict.fromkeys(rows[kept].name))

    def names(self) -> list[str]:
        """Trained strategies, unpoisoned."""
        return list(dict.fromkeys(self.rows[self.rows.trained & (self.rows.poison == "")].name))

    def poisons(self) -> list[str]:
        return [poison for poison in dict.fromkeys(self.rows.poison) if poison not in ("", UNTIL_NOW)]


def label(setting: tuple[str, int]) -> str:
    return f"{setting[0]}, {setting[1]} day{'s' if setting[1] > 1 else ''}"
