"""The HTML of a report: headings, sentences, tables and controls around the pictures that ``page.js`` draws."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from ..table import REFERENCE
from .content import WEEKDAYS, advice_of, content, mean_mae
from .run_folder import Shown

Cell = str | float | int | None


def page(shown: Shown) -> str:
    """The whole page.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(f"report: plotly is not installed here ({error}); pip install 'tsjt-pyg[viz]'") from error
    drawn = content(shown)
    sections = [
        _table(shown),
        *(_lines(shown, drawn, *about) for about in _LINES),
        _map(shown, drawn),
        _forecasts(drawn),
        _conflict(drawn),
        _prompts(drawn),
        _guard(shown),
        _protocol(shown),
    ]
    there = [section for section in sections if section is not None]
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in there)
    body = "".join(
        f'<section id="{name}"{_kind(inner)} aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(title)}</h2>\n{inner}\n</section>\n'
        for name, title, inner in there
    )
    here = files(__package__)
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    advice, transfer = advice_of(shown)
    kind = {True: " yes", False: " no", None: ""}[transfer]
    title = f"Forecasts for {shown.comparison.protocol['target']}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(_lead(shown))}</p>
<div class="advice{kind}" role="note" aria-label="Advice"><p>{escape(advice)}</p></div>
{_missing(shown)}
<nav aria-label="On this page"><ul>{links}</ul></nav>
<noscript><p>The pictures need JavaScript; the tables do not.</p></noscript>
</header>
<main id="main" tabindex="-1">
{body}
</main>
<footer><p>Written by tsjt_pyg. This page needs no network and no other file.</p></footer>
<script type="application/json" id="data">{_json(drawn)}</script>
<script>{get_plotlyjs()}</script>
<script>
{script}</script>
</body>
</html>
"""


Section = tuple[str, str, str]
"""Its id, heading, and HTML."""


def _kind(inner: str) -> str:
    return ' class="picture"' if "<figure" in inner else ""


def _json(content: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _lead(shown: Shown) -> str:
    p = shown.comparison.protocol
    sources = f"with the help of {', '.join(p['sources'])}" if p["sources"] else "without a source city"
    what = ", ".join(p["channels"]) + (f" in {shown.comparison.unit}" if shown.comparison.unit else "")
    days = "1 visible day" if p["visible_days"] == 1 else f"{p['visible_days']:g} visible days"
    seeds = "1 seed" if len(p["seeds"]) == 1 else f"{len(p['seeds'])} seeds"
    ahead = shown.comparison.minutes[-1]
    return (
        f"{what[:1].upper()}{what[1:]}, up to {ahead:g} minutes ahead, {sources}. Learned from {days} of the target, "
        f"measured on the {p['test_days']:.1f} days after them; {seeds}, {p['steps']} steps."
    )


def _missing(shown: Shown) -> str:
    """What the page lacks, and how to get it."""
    lost = shown.lost
    if not lost and shown.city is not None:
        return ""
    if len(lost) == len(shown.comparison.records) or shown.city is None:
        what = "Errors by hour, weekday and node, forecasts, gradient conflict and prompts"
        why = "are not in this page: the folder holds no details of this comparison."
    else:
        what, why = f"Details of {', '.join(lost)}", "are not there, so the pictures leave them out."
    command = f" <code>{escape(shown.command)}</code>" if shown.command else ""
    return (
        f'<p class="note" role="note"><strong>{escape(what)}</strong> {escape(why)} {escape(shown.remedy)}{command}</p>'
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def _grid(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, best: str | None = None, words: bool = False
) -> str:
    """A table that scrolls in its own box; the first cell of a row is its header."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for first, *others in rows:
        mark = ' class="best"' if best is not None and first == best else ""
        cells = "".join(f"<td>{escape(_text(value))}</td>" for value in others)
        body += f'<tr{mark}><th scope="row">{escape(_text(first))}</th>{cells}</tr>'
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{kind}><caption>'
        f"{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(value: Cell) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "\N{EN DASH}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_table(table: str) -> str:
    return f"<details><summary>Data as a table</summary>{table}</details>"


def _table(shown: Shown) -> Section:
    comparison = shown.comparison
    frame = comparison.to_frame().set_index("name")
    unit = f" ({comparison.unit})" if comparison.unit else ""
    steps = [f"{comparison.minutes[step]:g} min" for step in comparison.reported_steps]
    against = f"gain over {REFERENCE} (%)"
    head = ["forecast", *steps, f"MAE{unit}", f"RMSE{unit}", "MAPE (%)", against, "runs", "s/run"]
    if not shown.compared:
        head.remove(against)
    rows: list[list[Cell]] = []
    for name in frame.index:
        row = frame.loc[name]
        failed = f", {int(row['failed'])} failed" if row["failed"] else ""
        if not row["runs"]:
            rows.append([name, *[None] * (len(head) - 3), f"0{failed}", None])
            continue
        cells: list[Cell] = [name]
        for step in comparison.reported_steps:
            ahead = f"{comparison.minutes[step]:g}min"
            cells.append(f"{row[f'mae_{ahead}']:.2f} / {row[f'rmse_{ahead}']:.2f} / {row[f'mape_{ahead}']:.1f}")
        for metric, digits in (("mae", 3), ("rmse", 3), ("mape", 1)):
            std = row[f"{metric}_std"]
            spread = f" ± {std:.{digits}f}" if std is not None and np.isfinite(std) else ""
            cells.append(f"{row[metric]:.{digits}f}{spread}")
        if shown.compared:
            gain = comparison.gain(name)
            cells.append("" if gain is None else str(gain))
        rows.append([*cells, f"{int(row['runs'])}{failed}", f"{row['seconds']:.1f}"])
    best = min(shown.names, key=lambda name: mean_mae(shown, name))
    text = (
        f"Errors on the test period: MAE / RMSE / MAPE at {', '.join(steps)} ahead, then over all steps of the horizon "
        f"(± standard deviation over seeds). Smaller is better; {best}, in bold, has the smallest MAE."
    )
    if shown.compared:
        text += " The gain is paired by seed, with Student's 95 % interval; where that holds 0, it may be chance."
    failures = "".join(f"<li>{escape(str(failure))}</li>" for failure in comparison.failures)
    failed = f"<h3>Runs that failed</h3><ul>{failures}</ul>" if failures else ""
    table = _grid(f"Errors on the test period of {comparison.protocol['target']}", head, rows, best=best)
    return "table", "Comparison" if shown.compared else "Errors", f"<p>{escape(text)}</p>{table}{failed}"


# --- pictures -------------------------------------------------------------------------------------------------------


def _figure(name: str, label: str, *, legend: bool = False) -> str:
    box = f'<fieldset class="legend" id="legend-{name}"></fieldset>' if legend else ""
    return f'<figure><div class="plot" id="plot-{name}" role="img" aria-label="{escape(label)}"></div>{box}</figure>'


_LINES = (
    (
        "horizon",
        "Error by horizon",
        "How the error grows with the time ahead: lower is better, and a flatter line keeps its quality for longer.",
        "time ahead (min)",
    ),
    (
        "hour",
        "Error by hour of the day",
        "The error of all forecasts for an hour of the day, of all steps of the horizon: where it peaks, traffic is "
        "hardest to foresee.",
        "hour",
    ),
    (
        "weekday",
        "Error by day of the week",
        "The error of all forecasts for a day of the week; days that the test period does not hold are empty.",
        "day",
    ),
)


def _lines(shown: Shown, drawn: dict[str, Any], name: str, title: str, text: str, column: str) -> Section | None:
    picture = drawn["lines"].get(name)
    if picture is None:
        return None
    lines = picture["lines"]
    several = any("low" in line for line in lines.values())
    text += " Lines are means over the seeds, bands their range." if several else ""
    if picture["hidden"]:
        text += f" Not shown at first, since far above the rest: {', '.join(picture['hidden'])}."
    x = list(WEEKDAYS) if name == "weekday" else picture["x"]
    rows = [[label, *(line["mean"][place] for line in lines.values())] for place, label in enumerate(x)]
    last = {key: line["mean"][-1] for key, line in lines.items() if line["mean"][-1] is not None}
    label = f"Line chart, {title.lower()}: MAE of {', '.join(lines)}."
    if name == "horizon" and last:
        best = min(last, key=lambda key: last[key])
        label += f" At the last step {best} has the smallest, {last[best]:.4g} {shown.comparison.unit}."
    unit = f" ({shown.comparison.unit})" if shown.comparison.unit else ""
    table = _grid(f"MAE{unit}, {title.lower()}", [column, *lines], rows)
    return name, title, f"<p>{escape(text)}</p>{_figure(name, label, legend=True)}{_as_table(table)}"


def _map(shown: Shown, drawn: dict[str, Any]) -> Section | None:
    picture = drawn.get("map")
    if picture is None:
        return None
    nodes = f"{len(picture['ids'])} of {picture['of']}" if len(picture["ids"]) < picture["of"] else str(picture["of"])
    placed = "latitude" in picture
    text = (
        "Each dot is a node on the road network, coloured by its error over the whole test period, or by how much "
        f"smaller that is than with {shown.reference}: blue is better than it, orange worse. "
        if placed
        else "The city has no positions (City.from_positions, positions=), so there is no map: each dot is a node, in "
        f"order of its error, or of how much smaller that is than with {shown.reference}: blue is better, orange "
        "worse. "
    )
    text += f"Shown: {nodes} nodes; colours end where few nodes lie beyond."
    switch = '<label><input type="radio" name="map-what" value="mae" checked> error (MAE)</label>'
    if "gain" in picture:
        switch += (
            f'<label><input type="radio" name="map-what" value="gain"> gain over {escape(str(shown.reference))}</label>'
        )
    controls = (
        f'<div class="controls"><fieldset><legend>Colour by</legend>{switch}</fieldset>'
        '<label for="map-name">of <select id="map-name"></select></label></div>'
        '<p class="printed" id="map-printed"></p>'
    )
    label = f"{'Map of the road network' if placed else 'Chart'} of {picture['of']} nodes, coloured by error or gain."
    best = {name: [v for v in values if v is not None] for name, values in picture["mae"].items()}
    rows = [
        [name, *(float(np.percentile(values, q)) for q in (0, 25, 50, 75, 100))]
        for name, values in best.items()
        if values
    ]
    unit = f" ({shown.comparison.unit})" if shown.comparison.unit else ""
    table = _grid(f"MAE of nodes{unit}", ["forecast", "smallest", "quarter", "half", "three quarters", "largest"], rows)
    title = "Map of the road network" if placed else "Error by node"
    return "map", title, f"<p>{escape(text)}</p>{controls}{_figure('map', label)}{_as_table(table)}"


def _forecasts(drawn: dict[str, Any]) -> Section | None:
    picture = drawn.get("forecasts")
    if picture is None:
        return None
    text = (
        "A few days of the test period: each window's forecast is drawn from its first to its last step, then the next "
        "window begins, so a line may jump where the model sees new readings. The closer to the thin line, the better. "
        f"Forecasts are those of the first seed; {len(picture['ids'])} of {picture['of']} nodes are here, from low to "
        "high readings."
    )
    controls = (
        '<div class="controls"><label for="sensor">node <select id="sensor"></select></label>'
        '<button type="button" id="sensor-before">← previous</button>'
        '<button type="button" id="sensor-after">next →</button>'
        '<label for="sensor-id">or type its id <input type="text" id="sensor-id" list="sensor-list" autocomplete="off">'
        '</label><datalist id="sensor-list"></datalist></div><p class="said" id="sensor-said" aria-live="polite"></p>'
    )
    label = "Line chart of the chosen node's readings and of the forecasts that are ticked, over a few days."
    inner = f"<p>{escape(text)}</p>{controls}{_figure('forecasts', label, legend=True)}"
    return "forecasts", "Forecasts against readings", inner


def _conflict(drawn: dict[str, Any]) -> Section | None:
    picture = drawn.get("conflict")
    if picture is None:
        return None
    names = list(picture)
    last = "tsjt" if "tsjt" in names else names[-1]
    widest = max(found["width"] for found in picture.values())
    text = (
        "How the gradients of source and target got on over training. Cosine: 1 where both ask for the same, below 0 "
        "where they conflict. In conflict: the share of steps in which the filter changed the source gradient. Kappa: "
        "the weight that it added to the target's. "
        + (f"Each point is the mean of up to {widest} steps and of the seeds." if widest > 1 else "Means of the seeds.")
    )
    if len(names) > 1:
        options = "".join(f"<option{' selected' if name == last else ''}>{escape(name)}</option>" for name in names)
        picker = f'<label for="conflict-name">strategy <select id="conflict-name">{options}</select></label>'
        controls = f'<div class="controls">{picker}</div>'
    else:
        controls = f'<input type="hidden" id="conflict-name" value="{escape(last)}">'
    rows = [
        [f"{name}, {source}", *line["mean"], line["steps"]]
        for name, found in picture.items()
        for source, line in found["sources"].items()
    ]
    label = "Three line charts over optimizer steps, by source: cosine, share of steps in conflict, and kappa."
    table = _grid(
        "Means over all filtered steps and seeds",
        ["strategy, source", "cosine", "in conflict (%)", "kappa", "filtered steps"],
        rows,
    )
    return (
        "conflict",
        "Gradient conflict",
        f"<p>{escape(text)}</p>{controls}{_figure('conflict', label)}{_as_table(table)}",
    )


def _prompts(drawn: dict[str, Any]) -> Section | None:
    picture = drawn.get("prompts")
    if picture is None:
        return None
    text = (
        f"Which slots of the prompt bank the cities' nodes draw on, after {picture['strategy']}, seed "
        f"{picture['seed']}. Slots with tall bars of several cities are what these share. The target by its visible "
        "days, sources by their whole series."
    )
    label = f"Bar chart: share of each prompt slot in the prompts of {', '.join(picture['cities'])}."
    rows = [[slot, *(share[slot] for share in picture["share"])] for slot in range(len(picture["share"][0]))]
    table = _grid("Share of the prompts (%)", ["slot", *picture["cities"]], rows)
    return "prompts", "Prompt sharing", f"<p>{escape(text)}</p>{_figure('prompts', label)}{_as_table(table)}"


# --- guard and protocol ---------------------------------------------------------------------------------------------


def _guard(shown: Shown) -> Section | None:
    rows: list[list[Cell]] = []
    for name in shown.names:
        runs = [run for run in shown.comparison.runs(name) if run.sources]
        found: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            for verdict in run.sources:
                found.setdefault(verdict["name"], []).append(verdict)
        for source, verdicts in found.items():
            means = [_average(verdicts, what) for what in ("weight", "error", "persistence", "odd", "windows")]
            taken = sum(verdict["weight"] > 0 for verdict in verdicts)
            rows.append([f"{source} ({name})", f"in {taken} of {len(verdicts)} runs", *means])
    if not rows:
        return None
    text = (
        "Before training, the guard judges each source on the visible days of the target alone, and leaves out what "
        "does not help. Error: of a model that saw a few steps of this source alone, relative to the best naive "
        "forecast, has to be about 1 or less. Persistence: how its readings follow from step to step, relative to the "
        "target's. Odd: the share of its days that are unlike the others. Means over the runs."
    )
    head = ["source (strategy)", "takes part", "weight", "error", "persistence", "odd", "windows"]
    return (
        "guard",
        "What the guard found of each source",
        f"<p>{escape(text)}</p>" + _grid("The guard's verdicts", head, rows),
    )


def _average(verdicts: list[dict[str, Any]], what: str) -> float | None:
    values = [verdict[what] for verdict in verdicts if verdict.get(what) is not None]
    return float(np.mean(values)) if values else None


def _protocol(shown: Shown) -> Section:
    protocol = shown.comparison.protocol
    rows: list[list[Cell]] = []
    for name, value in protocol.items():
        if name in ("strategies", "versions", "fingerprints"):
            continue
        rows.append([name.replace("_", " "), _words(value)])
    rows.append(["wall time", f"{shown.comparison.seconds:.0f} s"])
    settings = _grid("Settings", ["setting", "value"], rows, words=True)
    strategies = protocol["strategies"]
    columns = list(dict.fromkeys(key for strategy in strategies for key in strategy))
    of_strategies = _grid(
        "Strategies",
        [column.replace("_", " ") for column in columns],
        [[_words(strategy.get(column)) for column in columns] for strategy in strategies],
    )
    versions = _grid("Versions", ["package", "version"], list(protocol.get("versions", {}).items()), words=True)
    marks = protocol.get("fingerprints", {})
    named = [("visible days", marks.get("visible")), ("test period", marks.get("test"))]
    named += list(zip(protocol["sources"], marks.get("sources", []), strict=False))
    prints = _grid(
        "Fingerprints: City.fingerprint(), equal for equal cities only", ["city", "SHA-256"], named, words=True
    )
    repeat = f"<p>In Python:</p><pre><code>{escape(shown.call)}</code></pre>"
    if shown.command:
        repeat = (
            "<p>On the command line, with <code>--root</code> or <code>TSJT_CITIES</code> where the data sets lie:</p>"
            f"<pre><code>{escape(shown.command)}</code></pre>{repeat}"
        )
    inner = (
        "<p>Everything that the numbers depend on. The test period was read once, after training.</p>"
        f"<h3>To repeat it</h3>{repeat}<h3>Settings, strategies and versions</h3>{settings}{of_strategies}"
        f"{versions if protocol.get('versions') else ''}{prints if marks else ''}"
    )
    return "protocol", "Protocol", inner


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
