"""What the records of ``evidence.py`` say: errors of runs, and their changes, paired by run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

DEFAULT, UNGUARDED = "tsjt", "tsjt without guard"
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


class Change(NamedTuple):
    """By how many percent an error differs from another, paired by run, with Student's 95 % interval.

    Of a single run the interval is not known (NaN). Runs of different seeds count as independent, though some settings
    have fewer first days than runs.
    """

    percent: float
    low: float
    high: float
    wins: int
    runs: int

    def __str__(self) -> str:
        return f"{self.percent:+.1f} [{self.low:+.1f}, {self.high:+.1f}]" if self.runs > 1 else f"{self.percent:+.1f}"


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
        self, setting: tuple[str, int], name: str, reference: str, poison: str = "", column: str = "mae"
    ) -> Change | None:
        """Of a strategy against another, in the runs that both have."""
        mine, other = self.runs(setting, name, poison)[column], self.runs(setting, reference)["mae"]
        both = mine.index.intersection(other.index)
        if both.empty:
            return None
        percent = 100 * (mine[both] / other[both] - 1)
        half = float("nan")
        if len(both) > 1:
            half = float(stats.t.ppf(0.975, len(both) - 1) * stats.sem(percent))
        mean = float(percent.mean())
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

    def best_rival(self, setting: tuple[str, int]) -> str | None:
        """Of each kind the variant that validation prefers, and of these the one with the smallest test error.

        The last choice is made in hindsight: nobody who has to choose could do better.
        """
        chosen = [rival for names in RIVALS.values() if (rival := self.chosen(setting, names)) is not None]
        errors = {rival: self.runs(setting, rival)["mae"] for rival in chosen}
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
        return [poison for poison in dict.fromkeys(self.rows.poison) if poison]


def label(setting: tuple[str, int]) -> str:
    return f"{setting[0]}, {setting[1]} day{'s' if setting[1] > 1 else ''}"
