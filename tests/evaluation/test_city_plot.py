"""Cities on a map: what is drawn where, in which colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread

from tsjt_pyg import City
from tsjt_pyg.data import Roads, read_roads
from tsjt_pyg.evaluation import plot_city


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))

    def draw(city: City, **options: Any) -> Figure:
        path = tmp_path / "city.png"
        assert plot_city(city, path, **options) == path
        assert imread(path).std() > 0
        return figures[-1]

    return draw


@pytest.fixture
def roads() -> Roads:
    graph = nx.MultiDiGraph()
    for node, x, y in [("a", 4.0, 60.0), ("b", 4.02, 60.0), ("c", 4.02, 60.01)]:
        graph.add_node(node, x=x, y=y)
    graph.add_edge("a", "b", geometry="LINESTRING (4 60, 4.01 60.002, 4.02 60)")
    graph.add_edge("b", "a")
    graph.add_edge("b", "c")
    return read_roads(graph)


@pytest.fixture
def city(roads: Roads) -> City:
    readings = pd.DataFrame(
        {"b-c-0": [10.0, 20.0, np.nan], "a-b-0": [40.0, 60.0, 50.0], "b-a-0": [np.nan] * 3},
        index=pd.date_range("2024-03-04 08:00", periods=3, freq="5min"),
    )
    return City.from_osmnx(
        readings, roads, nodes="segments", name="Bergen", channels="speed", units="km/h", u_turns=True
    )


def lines(figure: Figure) -> list[LineCollection]:
    return [found for found in figure.axes[0].collections if isinstance(found, LineCollection)]


def test_segments_are_drawn_along_their_shapes_in_the_colour_of_their_reading(city, roads, drawn):
    figure = drawn(city, roads=roads, step=1)
    grey, coloured = lines(figure)
    assert len(grey.get_segments()) == 1
    assert coloured.get_array().tolist() == [20.0, 60.0]
    assert [len(segment) for segment in coloured.get_segments()] == [2, 3]
    assert coloured.get_segments()[1] == pytest.approx(np.array([[4, 60], [4.01, 60.002], [4.02, 60]]), abs=2e-4)
    assert coloured.get_clim() == (20.0, 60.0)
    axes, bar = figure.axes
    assert axes.get_aspect() == pytest.approx(2, rel=1e-3)  # at 60 degrees north a degree of longitude is half as long
    assert bar.get_ylabel() == "speed (km/h)"
    assert axes.get_title(loc="left") == "Bergen, 2024-03-04 08:05"
    assert axes.get_title(loc="right") == "2 of 3 nodes observed"


def test_directions_lie_side_by_side_each_on_its_right(roads, drawn, city):
    straight = City.from_osmnx(
        pd.DataFrame({name: [1.0] for name in roads.segment_ids}), roads, nodes="segments", u_turns=True
    )
    coloured = lines(drawn(straight, roads=roads))[1]
    shape = {name: coloured.get_segments()[i] for i, name in enumerate(straight.node_ids)}
    assert (shape["b-a-0"][:, 1] > 60).all()  # westward: right is north
    assert (shape["b-c-0"][:, 0] > 4.02).all()  # northward: right is east
    assert shape["a-b-0"][1, 1] < 60.002


def test_without_a_step_the_mean_of_what_was_observed(city, roads, drawn):
    figure = drawn(city, roads=roads, title="Speeds")
    assert lines(figure)[1].get_array().tolist() == [15.0, 50.0]
    assert figure.axes[0].get_title(loc="left") == "Speeds"


@pytest.mark.parametrize("step", ["2024-03-04 08:05", pd.Timestamp("2024-03-04 08:09"), 1, -2])
def test_steps_by_number_and_by_time(city, roads, drawn, step):
    assert lines(drawn(city, roads=roads, step=step))[1].get_array().tolist() == [20.0, 60.0]


def test_other_nodes_are_dots_joined_by_edges(city, drawn):
    figure = drawn(city, step=2)
    (joined,) = lines(figure)
    assert len(joined.get_segments()) == city.num_edges
    blank, dots = (found for found in figure.axes[0].collections if not isinstance(found, LineCollection))
    assert dots.get_array().tolist() == [50.0]
    assert len(blank.get_offsets()) == 2
    assert dots.get_offsets()[0].tolist() == pytest.approx(city.pos[1].tolist()[::-1])


def test_junctions_are_dots_over_the_roads(roads, drawn):
    junctions = City.from_osmnx(pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}), roads, channels="flow")
    figure = drawn(junctions, roads=roads)
    assert len(lines(figure)[0].get_segments()) == 3
    assert figure.axes[0].collections[-1].get_array().tolist() == [1.0, 2.0, 3.0]
    assert figure.axes[1].get_ylabel() == "flow"


def test_the_second_channel_and_nothing_observed(drawn, roads):
    readings = np.stack([np.ones((2, 3)), np.full((2, 3), np.nan)], axis=-1)
    two = City.from_osmnx(readings, roads, channels=["speed", "flow"], units=["km/h", "veh/h"])
    figure = drawn(two, channel="flow", roads=roads)
    assert figure.axes[1].get_ylabel() == "flow (veh/h)"
    assert figure.axes[0].get_title(loc="right") == "0 of 3 nodes observed"


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_vector_formats_by_suffix(city, roads, tmp_path, suffix):
    assert plot_city(city, tmp_path / f"city{suffix}", roads=roads).stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "flow"}, r"channel: Bergen has \['speed'\], found 'flow'"),
        ({"step": 3}, "step: Bergen has 3 steps from 2024-03-04 08:00:00 to 2024-03-04 08:10:00, found 3"),
        ({"step": "2024-03-05"}, "step: Bergen has 3 steps from .*, found '2024-03-05'"),
        ({"step": "2024-03-04 07:59"}, "step: Bergen has 3 steps from"),
        ({"step": "noon-ish"}, "step: expected a number or a time .*found 'noon-ish'"),
    ],
)
def test_messages(city, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plot_city(city, tmp_path / "city.png", **options)
    assert not list(tmp_path.iterdir())


def test_a_city_without_positions_cannot_be_drawn(make_city, tmp_path):
    with pytest.raises(ValueError, match="city: city has no positions to draw it by; give its constructor positions="):
        plot_city(make_city(), tmp_path / "city.png")
