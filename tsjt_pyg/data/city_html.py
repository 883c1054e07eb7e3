"""A city as notebooks show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..notebook import Html, beside, facts, road_network

if TYPE_CHECKING:
    from .city import City


def city_html(city: City) -> Html:
    """What is in a city, beside a drawing of its road network where it has positions."""
    channels = (f"{c} ({u})" if u else c for c, u in zip(city.channels, city.units, strict=True))
    last = city.start + (city.num_steps - 1) * city.interval
    table = facts(
        [
            ("city", city.name),
            ("nodes", f"{city.num_nodes:,}"),
            ("edges", f"{city.num_edges:,}"),
            ("channels", ", ".join(channels)),
            ("time", f"{city.start:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"),
            ("interval", f"{city.interval.total_seconds() / 60:g} min"),
            ("steps", f"{city.num_steps:,} ({city.num_steps / city.steps_per_day:.3g} days)"),
            ("missing", f"{city.missing:.1%}"),
        ]
    )
    if city.pos is None:
        return table
    return beside(table, road_network(city.pos.cpu().numpy(), city.edge_index.cpu().numpy(), city.name))
