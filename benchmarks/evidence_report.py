"""Tables and pictures of what ``evidence.py`` recorded, and the page ``docs/results.md`` that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidence_changes import DEFAULT, FURTHER, RIVALS, UNGUARDED, UNTIL_NOW, Change, Evidence, label
from evidence_plots import plot_changes, plot_poisons

from tsjt_pyg.data.atomic import atomic_path

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


HINDSIGHT: dict[str, tuple[Sequence[str], Mapping[str, Sequence[str]]]] = {
    "the best of these": (("mae",), RIVALS),
    "the best of these, also by its last parameters": (("mae", "last"), RIVALS),
    "the best of all, also by its last parameters": (("mae", "last"), {**RIVALS, **FURTHER}),
}
"""Who is the best in hindsight: by the checkpoint that validation chose for it, or by that or its last parameters; of
those kinds that were to be beaten, or of all."""


def _mean(changes: Iterable[Change | None]) -> float:
    return float(np.mean([change.percent for change in changes if change is not None]))


def main_table(evidence: Evidence) -> str:
    """The default against the target alone and against forecasts without a network."""
    rows = []
    for setting in evidence.settings:
        reference = evidence.reference(setting)
        mine, change = evidence.runs(setting, DEFAULT), evidence.change(setting, DEFAULT, reference)
        if change is None:
            continue
        other = evidence.runs(setting, reference)
        both = mine.index.intersection(other.index)
        mine, other = mine.loc[both], other.loc[both]
        means = {n: float(evidence.runs(setting, n)["mae"].reindex(both).mean()) for n in evidence.naive(setting)}
        naive = min(means, key=lambda name: means[name], default=None)
        rows.append(
            [
                label(setting),
                f"{other.mae.mean():.3f} / {other.rmse.mean():.3f} ({reference})",
                f"{mine.mae.mean():.3f} / {mine.rmse.mean():.3f}",
                f"{change}",
                f"{change.wins} of {change.runs}",
                "" if naive is None else f"{naive} {means[naive]:.3f}",
            ]
        )
    head = [
        "setting",
        "target alone, MAE / RMSE",
        "tsjt, MAE / RMSE",
        "change of MAE (%)",
        "wins",
        "best without a network",
    ]
    return _table(head, rows)


def horizon_table(evidence: Evidence) -> str:
    """MAE by step of the horizon: a quarter of it, half of it, all of it."""
    rows = []
    for setting in evidence.settings:
        for name in (evidence.reference(setting), DEFAULT):
            runs = evidence.runs(setting, name)
            if runs.empty:
                continue
            errors = np.array(runs.by_step.tolist()).mean(axis=0)
            minutes = runs.minutes.iloc[0]
            steps = [len(errors) // 4 - 1, len(errors) // 2 - 1, len(errors) - 1]
            steps = [max(step, 0) for step in steps]
            cells = [f"{errors[step]:.3f} at {minutes[step]:g} min" for step in steps]
            rows.append([label(setting), name, *cells])
    return _table(["setting", "strategy", "first quarter", "half", "end"], rows)


def strategy_table(evidence: Evidence) -> str:
    """Every strategy against the target alone, in percent of MAE."""
    rows = []
    for name in [*evidence.names(), *(n for n in evidence.naive(evidence.settings[0]))]:
        if name.startswith((f"{DEFAULT} with ", f"{DEFAULT} without ")):
            continue  # fewer runs, which are compared with the same ones of the default in a table of their own
        changes = {s: evidence.change(s, name, evidence.reference(s)) for s in evidence.settings}
        cells = ["" if change is None else f"{change.percent:+.1f}" for change in changes.values()]
        means = []
        for days in (3, 1):
            found = [change for (_, d), change in changes.items() if d == days]
            complete = found and all(change is not None for change in found)
            means.append(f"{_mean(found):+.1f}" if complete else "")
        rows.append([name, *cells, *means])
    return _table(["strategy", *map(label, evidence.settings), "mean, 3 days", "mean, 1 day"], rows)


def rival_table(evidence: Evidence) -> str:
    """The default against the best rival of each kind, and against the best of them."""
    rows = []
    for setting in evidence.settings:
        cells = []
        for names in RIVALS.values():
            rival = evidence.chosen(setting, names)
            change = None if rival is None else evidence.change(setting, DEFAULT, rival)
            cells.append("" if change is None else f"{change} ({rival})")
        for columns, kinds in HINDSIGHT.values():
            best = evidence.best_rival(setting, columns, kinds)
            change = None if best is None else evidence.change(setting, DEFAULT, best[0], against=best[1])
            last = ", last parameters" if best and best[1] == "last" else ""
            cells.append("" if change is None or best is None else f"{change} ({best[0]}{last})")
        rows.append([label(setting), *cells])
    return _table(["setting", *RIVALS, *HINDSIGHT], rows)


def further_table(evidence: Evidence) -> str:
    """The default against others."""
    rows = []
    for setting in evidence.settings:
        changes = [evidence.change(setting, DEFAULT, name) for names in FURTHER.values() for name in names]
        rows.append([label(setting), *("" if change is None else str(change) for change in changes)])
    return _table(["setting", *FURTHER], rows)


def calendar_table(evidence: Evidence) -> str:
    """Strategies whose sources end with the target's visible days, beside the same runs with whole sources."""
    rows = []
    for setting in evidence.settings:
        reference = evidence.reference(setting)
        cut = evidence.change(setting, DEFAULT, reference, UNTIL_NOW)
        if cut is not None:
            verdicts = _left_out(evidence, setting, DEFAULT, UNTIL_NOW)
            rows.append([label(setting), f"{evidence.change(setting, DEFAULT, reference)}", f"{cut}{verdicts}"])
    return _table(["setting", "whole sources", UNTIL_NOW], rows)


def poison_table(evidence: Evidence) -> str:
    """The default, with and without its guard, with spoiled sources against the target alone."""
    rows = []
    for poison in evidence.poisons():
        for name, what in ((DEFAULT, poison), (UNGUARDED, f"{poison}; no guard")):
            changes = {s: evidence.change(s, name, evidence.reference(s), poison) for s in evidence.settings}
            if not any(changes.values()):
                continue
            cells = [
                "" if change is None else f"{change.percent:+.1f}{_left_out(evidence, setting, name, poison)}"
                for setting, change in changes.items()
            ]
            rows.append([what, *cells])
    return _table(["all sources with", *map(label, evidence.settings)], rows)


def _left_out(evidence: Evidence, setting: tuple[str, int], name: str, poison: str) -> str:
    verdicts = [verdict for sources in evidence.runs(setting, name, poison).sources for verdict in sources]
    return f" ({sum(verdict['weight'] == 0 for verdict in verdicts)}/{len(verdicts)})" if verdicts else ""


def ablation_table(evidence: Evidence) -> str:
    """The default with a part left out, or one more, against the default."""
    rows = []
    for name in evidence.names():
        if not name.startswith((f"{DEFAULT} without ", f"{DEFAULT} with ")):
            continue
        changes = {setting: evidence.change(setting, name, DEFAULT) for setting in evidence.settings}
        cells = ["" if change is None else f"{change.percent:+.1f}" for change in changes.values()]
        runs = max((change.runs for change in changes.values() if change), default=0)
        part = f"{name.removeprefix(f'{DEFAULT} ')} ({runs} run{'s' if runs > 1 else ''})"
        rows.append([part, *cells, f"{_mean(changes.values()):+.1f}"])
    return _table([DEFAULT, *map(label, evidence.settings), "mean"], rows)


def checkpoint_table(evidence: Evidence) -> str:
    """The chosen checkpoint against the last one."""
    rows = []
    for name in evidence.names():
        changes = [evidence.change(s, name, name, column="last") for s in evidence.settings]
        if all(change is None for change in changes):
            continue
        rows.append([name, *("" if change is None else f"{change.percent:+.1f}" for change in changes)])
    return _table(["last instead of chosen", *map(label, evidence.settings)], rows)


def cost_table(costs: list[dict[str, Any]]) -> str:
    """Seconds of a training with sources relative to one without, same number of steps, medians."""
    rows = []
    for (task, days), group in pd.DataFrame(costs).groupby(["task", "days"], sort=False):
        rows.append(
            [
                label((task, days)),
                f"{group.ratio.median():.2f}",
                f"{100 * group.guard_share.median():.1f} %",
                str(len(group)),
            ]
        )
    return _table(["setting", "tsjt / target_only", "the guard's share of tsjt", "repetitions"], rows)


def bars(evidence: Evidence, costs: list[dict[str, Any]]) -> str:
    """What is promised, and what was found."""
    rows = []
    main = {s: evidence.change(s, DEFAULT, evidence.reference(s)) for s in evidence.settings}
    for days, bar in ((3, -8), (1, -20)):
        found = [change for (_, d), change in main.items() if d == days]
        if any(found):
            promised = f"tsjt against the target alone, mean of the {days}-day settings at most {bar} %"
            rows.append([promised, f"{_mean(found):+.1f} %"])
    worst = max((change for change in main.values() if change), key=lambda change: change.percent, default=None)
    if worst is not None:
        rows.append(["no setting worse than +1 %", f"worst {worst.percent:+.1f} %"])
    poisoned = {
        (setting, poison): change
        for setting in evidence.settings
        for poison in evidence.poisons()
        if (change := evidence.change(setting, DEFAULT, evidence.reference(setting), poison)) is not None
    }
    if poisoned:
        (setting, poison), change = max(poisoned.items(), key=lambda item: item[1].percent)
        above = sum(change.percent > 1.5 for change in poisoned.values())
        told = f"worst {change.percent:+.1f} % ({poison}, {label(setting)}); {above} of {len(poisoned)} above"
        rows.append(["under every poison at most +1.5 %", told])
    for who, (columns, kinds) in HINDSIGHT.items():
        rivals = [
            change
            for setting in evidence.settings
            if (best := evidence.best_rival(setting, columns, kinds))
            and (change := evidence.change(setting, DEFAULT, best[0], against=best[1]))
        ]
        if rivals:
            better = sum(change.high < 0 for change in rivals)
            told = f"{_mean(rivals):+.1f} %, significant in {better} of {len(rivals)}"
            rivals_are = who.replace("these", "five kinds of rivals").replace("all", "all kinds")
            rows.append([f"against {rivals_are}, in hindsight: mean at most -3 %, significant in 5 of 8", told])
    boosting = "gradient boosting"
    for kind, wanted in (("every naive and linear forecast", False), (boosting, True)):
        lost = [
            f"{label(setting)} ({name} {change.percent:+.1f} %)"
            for setting in evidence.settings
            for name in evidence.naive(setting)
            if (name == boosting) == wanted
            and (change := evidence.change(setting, DEFAULT, name)) is not None
            and change.percent >= 0
        ]
        rows.append([f"better than {kind} in every setting", "no: " + ", ".join(lost) if lost else "yes"])
    for name, unit, bar, promised in (
        ("ratio", 1, 2.5, "at most 2.5 times the processor time of target_only with the same number of steps"),
        ("guard_share", 100, 8, "the guard at most 8 % of the training time"),
    ):
        found = [unit * cost[name] for cost in costs]
        told = "not measured"
        if found:
            above = sum(value > bar for value in found)
            told = f"median {np.median(found):.2g}, largest {max(found):.2g}; {above} of {len(found)} above"
        rows.append([promised, told])
    return _table(["promised", "found"], rows)


def render(evidence: Evidence, head: dict[str, Any], costs: list[dict[str, Any]]) -> str:
    """All tables as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    training, network = head["settings"]["training"], head["settings"]["network"]
    about = (
        f"{int(evidence.rows.trained.sum())} trainings of {network['cell']}, {network['hidden_channels']} channels, "
        f"{training['steps']} steps (twice as many where a name says 2x), batches of {training['batch_size']} windows, "
        f"lr {training['lr']:g}; begun {head['date']}, CPU, one thread a run; {versions}."
    )
    spoiled = "Change of MAE (%), and how many of the sources were left out in all runs together."
    return "\n\n".join(
        [
            about,
            "### What is promised and what was found",
            bars(evidence, costs),
            "### Does transfer help?",
            main_table(evidence),
            "![MAE of tsjt against the target alone, by setting](evidence_changes.png)",
            "### Against each kind of rival",
            "Change of MAE (%) from the variant in brackets, which validation prefers of its kind; the best in "
            "hindsight is the one with the smallest test error.",
            rival_table(evidence),
            "And from others:",
            further_table(evidence),
            "### Spoiled sources",
            spoiled,
            poison_table(evidence),
            "![MAE of tsjt with spoiled sources](evidence_poisons.png)",
            "### Sources that know the future",
            "The trips of New York are of the same months as those of Washington, and whole as a source. Here they end "
            "where the visible days of the target end; change of MAE (%), and how many of the sources were left out.",
            calendar_table(evidence),
            "### All strategies",
            "MAE against the target alone, in percent; negative is better.",
            strategy_table(evidence),
            "### Part by part",
            "Change of MAE (%) where a part is left out or added, against the default in the same runs.",
            ablation_table(evidence),
            "### By horizon",
            "MAE in the unit of the readings.",
            horizon_table(evidence),
            "### The last checkpoint",
            "Change of MAE (%) where the parameters after the last step are taken instead of the chosen ones.",
            checkpoint_table(evidence),
            "### Cost",
            "Processor seconds of a training, the two strategies in turn in one thread, same number of steps.",
            cost_table(costs) if costs else "Not measured.",
            *(["### Runs that failed", _table(["run", "error"], evidence.failed.items())] if evidence.failed else []),
        ]
    )


def summary(evidence: Evidence) -> list[dict[str, Any]]:
    """Every strategy, poison and forecast in every setting: errors, and the change against the target alone."""
    found = []
    for (task, days, name, poison), runs in evidence.rows.groupby(["task", "days", "name", "poison"], sort=False):
        reference = evidence.reference((task, days))
        change = evidence.change((task, days), name, reference, poison)
        row = {"task": task, "days": int(days), "strategy": name, "poison": poison, "runs": len(runs)}
        row |= {f"mean_{column}": float(runs[column].mean()) for column in ("mae", "rmse", "last")}
        row |= {"mae_by_step": np.array(runs.by_step.tolist()).mean(axis=0).round(5).tolist()}
        found.append({**row, "against": reference, "change": None if change is None else _plain(change)})
    return found


def _plain(change: Change) -> dict[str, Any]:
    """As JSON can hold it: None for what is not known."""
    return {name: None if np.isnan(value) else value for name, value in change._asdict().items()}


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """What ``evidence.py --costs`` measured, if it did."""
    file = folder / "costs.json"
    costs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return [{**cost, "ratio": cost["tsjt"] / cost["target_only"]} for cost in costs]


def write_report(records: list[dict[str, Any]], head: dict[str, Any], output: Path, docs: bool) -> None:
    """``evidence.json`` with the numbers, and the tables: printed, and in the pages if ``docs``."""
    if not records:
        print("no records yet")
        return
    evidence, costs = Evidence(records), read_costs(output)
    text = render(evidence, head, costs)
    with atomic_path(output / "evidence.json") as temporary:
        content = {**head, "costs": costs, "changes": summary(evidence)}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    pictures = PAGE.parent if docs else output
    plot_changes(evidence, pictures / "evidence_changes.png")
    plot_poisons(evidence, pictures / "evidence_poisons.png")
    if docs:
        _insert(text, PAGE)
        _insert(main_table(evidence), README)
    print(text)


def _insert(text: str, page: Path) -> None:
    """Puts the text between the two comments of a page that are there for it."""
    content = page.read_text(encoding="utf-8")
    first, last = content.index(BEGIN) + len(BEGIN), content.index(END)
    with atomic_path(page) as temporary:
        temporary.write_text(f"{content[:first]}\n\n{text}\n\n{content[last:]}", encoding="utf-8")
