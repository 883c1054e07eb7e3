"""What notebooks show: small tables, lines and a road network as HTML.

Everything is escaped here, so what is given are plain texts. Nothing has a colour of its own: text and strokes are
those of the page, be it light or dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

WIDTH = 220
"""Of the drawing of a road network, in pixels."""

MOST_STROKES = 2000
"""Roads drawn at most; of a network with more, nodes are drawn, evenly picked ones if they are too many."""


class Html(str):
    """HTML; other strings are text, which is escaped on its way into it."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as text, escaped."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def lines(values: Iterable[object]) -> Html:
    """One line each."""
    return Html("<div>" + "<br>".join(text(value) for value in values) + "</div>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: object = "") -> Html:
    """A table whose first column names its rows; the others are numbers, to the right."""

    def row(cells: Sequence[object], tag: str) -> str:
        first, *others = (text(cell) for cell in cells)
        side = ' style="text-align:right;white-space:nowrap"'
        kind = "col" if tag == "th" else "row"
        left = f'<th scope="{kind}" style="text-align:left">{first}</th>'
        return f"<tr>{left}{''.join(f'<{tag}{side}>{cell}</{tag}>' for cell in others)}</tr>"

    title = f'<caption style="text-align:left;caption-side:top">{text(caption)}</caption>' if caption else ""
    body = "".join(row(cells, "td") for cells in rows)
    return Html(f"<table>{title}<thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table>")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """A table of names and what they are."""
    left = ' style="text-align:left"'
    rows = "".join(f'<tr><th scope="row"{left}>{text(a)}</th><td{left}>{text(b)}</td></tr>' for a, b in pairs)
    return Html(f"<table><tbody>{rows}</tbody></table>")


def beside(*parts: Html) -> Html:
    """Parts side by side where there is room."""
    inside = "".join(f"<div>{part}</div>" for part in parts)
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:center">{inside}</div>')


def stacked(*parts: Html) -> Html:
    """Parts one below the other."""
    return Html(f"<div>{''.join(parts)}</div>")


def road_network(pos: np.ndarray, edge_index: np.ndarray, name: str) -> Html:
    """A drawing of a road network, north up.

    Args:
        pos: ``[N, 2]``, latitude and longitude in degrees.
        edge_index: ``[2, E]``.
        name: Of the city, for who cannot see it.
    """
    north, east = pos[:, 0], pos[:, 1] * np.cos(np.deg2rad(pos[:, 0].mean()))
    extent = max(float(np.ptp(north)), float(np.ptp(east))) or 1.0
    x = np.rint((east - east.min()) / extent * WIDTH).astype(np.int64)
    y = np.rint((north.max() - north) / extent * WIDTH).astype(np.int64)
    ends = np.sort(edge_index[:, edge_index[0] != edge_index[1]], axis=0)
    strokes = np.unique(np.stack([x[ends[0]], y[ends[0]], x[ends[1]], y[ends[1]]], axis=1), axis=0)
    dots = np.unique(np.stack([x, y], axis=1), axis=0)
    dots = dots[:: -(-len(dots) // MOST_STROKES)]
    roads = "".join(f"M{a} {b}L{c} {d}" for a, b, c, d in strokes.tolist()) if len(strokes) <= MOST_STROKES else ""
    nodes = "".join(f"M{a} {b}h0" for a, b in dots.tolist())
    size = f'viewBox="-4 -4 {int(x.max()) + 8} {int(y.max()) + 8}" width="{int(x.max()) + 8}"'
    label = f'role="img" aria-label="{escape(name)}: road network"'
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" {label} {size} fill="none" stroke="currentColor" '
        f'stroke-linecap="round"><path d="{roads}" stroke-width="1" opacity="0.5"/>'
        f'<path d="{nodes}" stroke-width="3"/></svg>'
    )
