"""The result of a comparison: its runs, and the one table made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import stats

from ..data.atomic import atomic_path
from ..notebook import lines, stacked, table
from .metrics import Errors

REFERENCE = "target_only"
"""The strategy that gains are measured against."""


@dataclass(frozen=True)
class RunRecord:
    """One run: a strategy with a seed, or a naive forecast (``seed=None``).

    Args:
        name: Strategy or naive forecast.
        seed: Seed of a trained run.
        errors: On the test period.
        seconds: Wall time of the training.
        best_step: Step of the chosen checkpoint.
        validation_loss: What chose it.
        digest: SHA-256 of the chosen parameters and the scaler.
        stats: Of the optimizer, for skewed strategies.
        last: Errors of the parameters after the last step, whichever were chosen.
        sources: What the guard found of each source: name, error, persistence, weight.
        guard_seconds: Of ``seconds``, what the guard took.
        key: SHA-256 of what the result depends on; tells a run kept in a folder, and its details, from others.
    """

    name: str
    seed: int | None
    errors: Errors
    seconds: float
    best_step: int | None = None
    validation_loss: float | None = None
    digest: str | None = None
    stats: dict[str, float] = field(default_factory=dict)
    last: Errors | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    guard_seconds: float = 0.0
    key: str | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunRecord:
        """The record that :func:`dataclasses.asdict` made ``content`` of."""
        last = content.get("last")
        errors = {"errors": Errors(**content["errors"]), "last": None if last is None else Errors(**last)}
        return cls(**{**content, **errors})


@dataclass(frozen=True)
class RunFailure:
    """A run that ended without a result.

    Args:
        name: Strategy.
        seed: Seed.
        error: What went wrong, in a line.
        traceback: Where; empty if its process was killed.
    """

    name: str
    seed: int
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}: {self.error}"


@dataclass(frozen=True)
class Gain:
    """By how many percent a mean absolute error is below that of another strategy, with a 95 % interval.

    Paired by seed: the interval is Student's t over the seeds' differences, absent for fewer than two seeds. It holds
    the randomness of initial parameters and batches, not that of the days.
    """

    percent: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.percent:+.1f}"
        return f"{self.percent:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Comparison:
    """What :func:`~tsjt_pyg.evaluation.compare` found.

    Args:
        records: All runs.
        minutes: Time ahead of each step of the horizon, in minutes.
        unit: Unit of MAE and RMSE.
        protocol: Everything needed to repeat it.
        seconds: Wall time of the whole.
        failures: Runs without a result.
    """

    records: list[RunRecord]
    minutes: list[float]
    unit: str
    protocol: dict[str, Any]
    seconds: float
    failures: list[RunFailure] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Naive forecasts and strategies with a result, in order."""
        return list(dict.fromkeys(record.name for record in self.records))

    @property
    def reported_steps(self) -> list[int]:
        """Steps of the horizon that the table shows, a quarter of it, half of it, all of it."""
        horizon = len(self.minutes)
        return sorted({max(1, horizon // 4) - 1, max(1, horizon // 2) - 1, horizon - 1})

    def runs(self, name: str) -> list[RunRecord]:
        """The runs of one strategy or naive forecast."""
        found = [record for record in self.records if record.name == name]
        if not found:
            raise ValueError(f"name: expected one of {', '.join(self.names)}, found {name!r}")
        return found

    def gain(self, name: str, over: str = REFERENCE) -> Gain | None:
        """The gain over another strategy, of the seeds that both have; ``None`` over itself or where there is none."""
        if name == over or over not in self.names:
            return None
        reference = {run.seed: run.errors.mean_mae for run in self.runs(over)}
        mine = {run.seed: run.errors.mean_mae for run in self.runs(name)}
        pairs = [(mae, mine.get(seed, mine.get(None))) for seed, mae in reference.items()]
        paired = [(mae, other) for mae, other in pairs if other is not None]
        if not paired:
            return None
        base = float(np.mean([mae for mae, _ in paired]))
        differences = [100 * (mae - other) / base for mae, other in paired]
        percent = float(np.mean(differences))
        if len(differences) < 2:
            return Gain(percent)
        error = float(stats.sem(differences))
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
        return Gain(percent, percent - half, percent + half)

    def to_frame(self) -> pd.DataFrame:
        """One row a strategy: mean and standard deviation over seeds of every error, gain, seconds a run."""
        rows = []
        for name in self.names:
            runs = self.runs(name)
            row: dict[str, Any] = {"name": name, "trained": runs[0].seed is not None, "runs": len(runs)}
            for step in self.reported_steps:
                for metric in ("mae", "rmse", "mape"):
                    values = [getattr(run.errors, metric)[step] for run in runs]
                    row.update(_mean_std(f"{metric}_{self.minutes[step]:g}min", values))
            for metric in ("mae", "rmse", "mape"):
                row.update(_mean_std(metric, [getattr(run.errors, f"mean_{metric}") for run in runs]))
            gain = self.gain(name)
            row["gain_percent"] = None if gain is None else gain.percent
            row["gain_low"] = None if gain is None else gain.low
            row["gain_high"] = None if gain is None else gain.high
            row["seconds"] = float(np.mean([run.seconds for run in runs]))
            row["failed"] = self._failed(name)
            rows.append(row)
        rows += [{"name": name, "trained": True, "runs": 0, "failed": self._failed(name)} for name in self._lost]
        return pd.DataFrame(rows)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text."""
        unit = f" ({self.unit})" if self.unit else ""
        header = [f"MAE / RMSE{unit} / MAPE (%)"]
        header += [_ahead(self.minutes[step]) for step in self.reported_steps]
        header += ["MAE, all steps", f"gain over {REFERENCE} (%)", "s/run"]
        rows = []
        for name in self.names:
            runs = self.runs(name)
            failed = self._failed(name)
            row = [f"{name} ({failed} of {failed + len(runs)} failed)" if failed else name]
            for step in self.reported_steps:
                means = (np.mean([getattr(run.errors, m)[step] for run in runs]) for m in ("mae", "rmse", "mape"))
                row.append("{:.2f} / {:.2f} / {:.1f}".format(*means))
            maes = [run.errors.mean_mae for run in runs]
            spread = f" ± {np.std(maes, ddof=1):.3f}" if len(maes) > 1 else ""
            gain = self.gain(name)
            row += [f"{np.mean(maes):.3f}{spread}", "" if gain is None else str(gain)]
            row.append(f"{np.mean([run.seconds for run in runs]):.1f}")
            rows.append(row)
        rows += [[f"{name} (failed)", *[""] * (len(header) - 1)] for name in self._lost]
        return header, rows

    def _failed(self, name: str) -> int:
        return sum(failure.name == name for failure in self.failures)

    @property
    def _lost(self) -> list[str]:
        """Strategies without a single result."""
        return [name for name in dict.fromkeys(f.name for f in self.failures) if name not in self.names]

    @property
    def title(self) -> str:
        """What was compared, in one line."""
        p = self.protocol
        return (
            f"{p['target']} ({', '.join(p['channels'])}) from {', '.join(p['sources']) or 'no source'}: "
            f"{p['visible_days']:g} visible days, {p['test_days']:.1f} test days, {len(p['seeds'])} seeds, "
            f"{p['steps']} steps"
        )

    def to_markdown(self) -> str:
        """The table in Markdown."""
        header, rows = self.cells()
        written = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in written)

    def _repr_html_(self) -> str:
        from .advice import advise

        header, rows = self.cells()
        advice = advise(self)
        said = [f"failed: {failure}" for failure in self.failures]
        said += [] if advice is None else [f"{'advice' if advice.transfer else 'warning'}: {advice.text}"]
        return stacked(table(header, rows, self.title), lines(said))

    def show(self, console: Console | None = None) -> None:
        """Prints the table, and whether it advises to transfer (:func:`~tsjt_pyg.evaluation.advise`)."""
        from .advice import advise

        header, rows = self.cells()
        shown = Table(title=self.title, box=None, pad_edge=False, title_justify="left", header_style="bold")
        for number, name in enumerate(header):
            shown.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            shown.add_row(*row)
        if console is None:
            console = Console()
            # A pipe or a narrow window would cut columns; a long line is better than a lost number.
            console = Console(width=max(console.width, 132))
        console.print(shown)
        for failure in self.failures:
            console.print("[bold red]failed:[/]", str(failure).replace("[", r"\["), highlight=False, soft_wrap=True)
        advice = advise(self)
        if advice is not None:
            label = "[bold green]advice:[/]" if advice.transfer else "[bold yellow]warning:[/]"
            console.print(label, advice.text.replace("[", r"\["), highlight=False, soft_wrap=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers and strings."""
        return {
            "protocol": self.protocol,
            "minutes": self.minutes,
            "unit": self.unit,
            "seconds": self.seconds,
            "runs": [asdict(record) for record in self.records],
            "failures": [asdict(failure) for failure in self.failures],
        }

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """The comparison in a ``comparison.json``, or in a folder that holds one.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not one that :meth:`save` wrote.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "comparison.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            records = [RunRecord.from_dict(run) for run in content["runs"]]
            failures = [RunFailure(**failure) for failure in content.get("failures", [])]
            about = {key: content[key] for key in ("minutes", "unit", "protocol", "seconds")}
            return cls(records, failures=failures, **about)
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: there is no such file; `tsjt compare --output` writes one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: not a comparison written by Comparison.save, or a damaged one ({error})"
            ) from error

    def save(self, folder: str | Path) -> None:
        """Writes ``comparison.json`` (every run, by step of the horizon) and ``comparison.csv`` (the table)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "comparison.json": json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n",
            "comparison.csv": self.to_frame().to_csv(index=False),
        }
        for name, text in texts.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _mean_std(name: str, values: list[float]) -> dict[str, float | None]:
    return {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _ahead(minutes: float) -> str:
    return f"{minutes / 60:g} h" if minutes > 60 and minutes % 60 == 0 else f"{minutes:g} min"
