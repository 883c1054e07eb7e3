"""What the records of ``evidence.py`` say: errors of runs, and their changes, paired by run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

DEFAULT = "tsjt"
ALONE = ("target_only", "target_only_2x")
PLAIN = "target_only, plain network"
TORCHJD = ("PCGrad", "GradVac", "CAGrad", "UPGrad", "IMTL-G")
RIVALS = {
    PLAIN: (PLAIN,),
    "pooled": ("pooled", "pooled .3:1", "pooled .1:1"),
    "fine-tuning": ("finetune", "finetune, lr .3", "finetune, lr .1", "finetune, head"),
    "torchjd": TORCHJD,
    "the paper's rule": ("tsjt_paper", "tsjt_paper with prompts"),
}
"""What the default is held against; of each, the variant that the validation days like best."""


class Change(NamedTuple):
    """By how many percent an error differs from another, paired by run, with Student's 95 % interval."""

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
        half = 0.0
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
