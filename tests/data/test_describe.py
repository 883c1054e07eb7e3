"""The description: its numbers against pandas, its text and HTML, and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.image import imread

from tsjt_pyg.data import City
from tsjt_pyg.data.repair import find_faults


@pytest.fixture(scope="module")
def city() -> City:
    """Two channels with gaps, one dead node, one that was never observed, and a few readings beyond all limits."""
    rng = np.random.default_rng(4)
    speed = rng.normal(50, 5, size=(4 * 96, 6))
    flow = rng.poisson(3, size=speed.shape).astype(float)
    speed[rng.random(speed.shape) < 0.1] = np.nan
    speed[[5, 9], 2] = -4, 700
    speed[50:90, 1] = 44
    flow[:, 4] = 0
    speed[:, 5] = flow[:, 5] = np.nan
    positions = np.stack([52 + np.arange(6) / 100, 4 + np.arange(6) ** 2 / 300], axis=1)
    return City.from_adjacency(
        np.stack([speed, flow], axis=2),
        np.roll(np.diag([1, 1, 1, 1, 0, 0]), 1, axis=1),
        name="Delft <1>",
        channels=["speed", "flow"],
        units=["km/h", "veh/5min"],
        start="2024-03-04 06:00",
        interval="15min",
        positions=positions,
    )


def test_the_table_is_that_of_pandas(city):
    table = city.describe().table
    assert table.index.tolist() == ["speed", "flow"]
    assert table["unit"].tolist() == ["km/h", "veh/5min"]
    for channel in range(2):
        mask = city.mask[..., channel].numpy()
        values = pd.Series(city.readings[..., channel].numpy()[mask]).astype(float)
        expected = values.describe()
        row = table.iloc[channel]
        for column in ("count", "mean", "min", "25%", "50%", "75%", "max"):
            assert row[column] == pytest.approx(expected[column])
        assert row["std"] == pytest.approx(values.std(ddof=0))
        assert row["missing"] == pytest.approx(1 - mask.mean())
        assert row["zeros"] == pytest.approx((values == 0).mean())
    assert table["dead_nodes"].tolist() == [1, 2]
    assert table[["negative", "limits", "stuck"]].to_numpy().tolist() == [[1, 1, 40], [0, 0, 0]]


def test_the_nodes_are_counted_one_by_one(city):
    nodes = city.describe().nodes
    assert nodes.index.tolist() == list("012345")
    assert nodes["out_edges"].tolist() == [1, 1, 1, 1, 0, 0]
    assert nodes["in_edges"].tolist() == [0, 1, 1, 1, 1, 0]
    assert nodes["missing"].tolist() == pytest.approx((~city.mask).double().mean(dim=(0, 2)).tolist())
    assert nodes["dead"].tolist() == [False] * 5 + [True]
    assert nodes["stuck"].tolist() == [0, 40, 0, 0, 0, 0]
    assert nodes["longest_gap"].iloc[5] == pd.Timedelta("4D")
    means = [city.readings[:, n, 0][city.mask[:, n, 0]].double().mean().item() for n in range(6)]
    assert nodes["mean speed"].tolist() == pytest.approx(means, nan_ok=True)


def test_what_it_counts_is_what_a_repair_masks(city):
    description = city.describe()
    report = city.repair(outliers=10).report
    for rule in ("negative", "limits", "stuck", "outliers"):
        assert description.table[rule].tolist() == report.channels[rule].tolist()
        assert description.nodes[rule].tolist() == report.nodes[rule].tolist()
        assert description.nodes[rule].sum() == (find_faults(city, outliers=10).counts((0, 1, 2))[rule])


def test_it_says_what_is_there(city):
    text = str(city.describe())
    for line in (
        "Delft <1>: 384 steps x 6 nodes x 2 channels",
        "time: 2024-03-04 06:00 to 2024-03-08 05:45, every 15 min, 4 days",
        "roads: 4 edges, 2 parts, 1 node isolated; positions",
        "longest gap 4 days (node 5); 1 node never observed",
        "doubtful readings: dead nodes in 2 channels, 1 negative (1 node), 1 limits (1 node), 40 stuck (1 node)",
    ):
        assert line in text
    assert "dead_nodes" in text
    page = city.describe()._repr_html_()
    assert "Delft &lt;1&gt;" in page
    assert "<table" in page
    assert "Delft <1>" not in page
    assert repr(city.describe()) == f"Description of {city!r}"


def test_a_sound_connected_city(make_city):
    text = str(make_city(num_steps=30, num_nodes=3).describe())
    assert "missing: nothing" in text
    assert "doubtful readings: none" in text
    assert "3 edges, connected; no positions" in text


def test_channels_without_known_limits_are_named(make_city):
    description = make_city(
        num_channels=2, channels=["speed", "other"], units=["knots", ""], interval="15min"
    ).describe()
    assert "limits are not known of: speed (unit 'knots'), other (no unit)" in str(description)
    assert "limits are not known" not in str(make_city(units="KPH", interval="15min").describe())


def test_the_picture_shows_missing_readings_map_spread_and_day(city, tmp_path):
    path = tmp_path / "city.png"
    figure = city.describe().plot(path)
    assert imread(path).std() > 0.05
    missing, places, *panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    expected = 100 * (~city.mask).double().mean(dim=2).T.numpy()
    shown = missing.images[0].get_array()
    assert shown.shape == (6, 384)
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert places.get_title("left") == "Map: 6 nodes, 4 edges; crosses: 1 never observed"
    lines = next(c for c in places.collections if isinstance(c, LineCollection))
    assert len(lines.get_segments()) == city.num_edges
    dots = [c.get_offsets() for c in places.collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(np.concatenate(dots), city.pos.numpy()[:, ::-1])
    assert [axes.get_xlabel() for axes in panels] == ["speed (km/h)", "flow (veh/5min)"] + ["hour of the day"] * 2
    hours, medians = panels[2].lines[0].get_data()
    for hour, median in zip(hours[::17], medians[::17], strict=True):
        at = (city.time.hour + city.time.minute / 60) == hour
        assert median == pytest.approx(city.readings[at][..., 0][city.mask[at][..., 0]].quantile(0.5).item())


def test_many_nodes_and_steps_are_averaged_without_loss(make_city):
    city = make_city(num_steps=1000, num_nodes=500, missing=0.2)
    figure = city.describe().plot()
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (240, 480)
    steps, nodes = (np.unique(np.linspace(0, n, m + 1).astype(int)) for n, m in ((1000, 480), (500, 240)))
    block = (~city.mask)[steps[7] : steps[8], nodes[100] : nodes[101]].double().mean() * 100
    assert shown[100, 7] == pytest.approx(float(block), abs=1e-3)


def test_of_many_channels_the_first_four_are_drawn(make_city):
    figure = make_city(num_channels=6).describe().plot()
    assert len([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]) == 2 + 2 * 4
    assert "channels after the first 4 not drawn: 2" in figure.get_suptitle()


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_vector_formats_by_suffix(make_city, tmp_path, suffix):
    path = tmp_path / f"city{suffix}"
    make_city(missing=0.1).describe().plot(path)
    assert path.stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_named(make_city, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist"):
        make_city().describe().plot(tmp_path / "absent" / "city.png")


@pytest.mark.parametrize(("nodes", "observed"), [(1, 0), (1, 2), (3, 1)])
@pytest.mark.filterwarnings("error")
def test_almost_nothing_can_be_described_and_drawn(nodes, observed, tmp_path):
    readings = np.full((5, nodes, 1), np.nan)
    readings[:observed, 0] = 3
    city = City.from_adjacency(readings, np.zeros((nodes, nodes)), positions=np.zeros((nodes, 2)))
    for each in (city, replace(city, pos=None)):
        description = each.describe()
        assert description.table["count"].tolist() == [observed]
        assert description.isolated == description.components == nodes
        assert "reading" in str(description)
        description.plot(Path(tmp_path / "city.png"))


@pytest.mark.parametrize("name", ["los_loop", "pems04", "jonas_dc"])
def test_real_cities_are_described(real_city, name, tmp_path):
    city = real_city(name)
    description = city.describe()
    assert description.table["count"].sum() == int(city.mask.sum())
    assert description.missing.share == pytest.approx(city.missing)
    description.plot(tmp_path / "city.png")
    assert torch.equal(city.mask, real_city(name).mask)
