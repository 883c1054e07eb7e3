"""LibCity's atomic files: points and segments (``.dyna``) and grids (``.grid``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from format_files import by_id, places, roads, speeds, write_libcity

from tsjt_pyg.datasets import load_city
from tsjt_pyg.datasets.libcity import read_libcity


@pytest.mark.parametrize("shuffle", [None, 0, 1])
def test_libcity(tmp_path, shuffle):
    write_libcity(tmp_path / "libcity", shuffle=shuffle)
    city = load_city("libcity/METR_LA", root=tmp_path)
    frame = speeds(["773869", "767541"])
    assert by_id(city)["767541"] == frame["767541"].to_list()
    assert city.mask[:, city.node_ids.index("773869"), 0].tolist() == [True, False, True, True, True, True]
    assert places(city) == {"773869": [34.1, -118.1], "767541": [34.2, -118.2]}
    assert roads(city) == pytest.approx({("773869", "767541"): np.exp(-1)})
    assert (city.channels, city.name) == (("traffic_speed",), "libcity/METR_LA")
    assert (city.start, city.interval) == (pd.Timestamp("2012-03-01"), pd.Timedelta("5min"))


def test_libcity_rows_that_are_left_out_are_missing(tmp_path):
    folder = write_libcity(tmp_path)
    path = folder / "METR_LA.dyna"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    city = read_libcity(folder)
    assert city.mask[:, 0, 0].tolist() == [True, False, False, True, True, True]
    assert city.mask[:, 1].all()


def test_libcity_weights_and_channels_as_the_config_says(tmp_path):
    folder = write_libcity(tmp_path)
    path = folder / "METR_LA.dyna"
    pd.read_csv(path).assign(flow=0.0, extra="words").to_csv(path, index=False)  # not in data_col, so it may hold text
    rel = folder / "METR_LA.rel"
    pd.read_csv(rel).assign(link_weight=[0.5, 1], road=["I 5", None]).to_csv(rel, index=False)
    info = {"data_col": ["traffic_speed", "flow"], "weight_col": "link_weight", "time_intervals": 300}
    (folder / "config.json").write_text(json.dumps({"info": info}))
    city = read_libcity(folder, units=["mph", "veh"])
    assert (city.channels, city.units) == (("traffic_speed", "flow"), ("mph", "veh"))
    assert roads(city) == {("773869", "767541"): 0.5}
    assert city.select("flow").mask.all()  # a flow of zero is a count
    assert not read_libcity(folder, zero_missing=["flow"]).select("flow").mask.any()


def test_libcity_without_roads(tmp_path, caplog):
    folder = write_libcity(tmp_path)
    (folder / "METR_LA.rel").unlink()
    with caplog.at_level("INFO"):
        city = read_libcity(folder)
    assert "each node is joined with its 8 nearest by position" in caplog.text
    assert set(roads(city)) == {("773869", "767541"), ("767541", "773869")}
    pd.DataFrame({"geo_id": [767541, 773869], "type": "Point", "coordinates": "[]"}).to_csv(
        folder / "METR_LA.geo", index=False
    )
    assert read_libcity(folder).num_edges == 0
    assert "no two of its 2 nodes are joined by a road" in caplog.text


def write_grid(folder: Path) -> Path:
    """2 x 2 zones; their geo_id is in no order, and the lines of both files are shuffled."""
    folder.mkdir()
    cells = [(row, column) for row in range(2) for column in range(2)]
    rows = [
        (f"2014-01-01T{hour:02}:00:00Z", row, column, 10 * row + column + 100 * hour, 1)
        for row, column in cells
        for hour in range(3)
    ]
    table = pd.DataFrame(rows, columns=["time", "row_id", "column_id", "pickup", "dropoff"])
    table.insert(0, "type", "state")
    table.insert(0, "dyna_id", range(len(table)))
    table.sample(frac=1, random_state=0).to_csv(folder / "NYCTAXI.grid", index=False)
    geo = pd.DataFrame(cells, columns=["row_id", "column_id"])
    geo = geo.assign(geo_id=[7, 3, 5, 1], type="Polygon", coordinates="[[[0,0],[0,1],[1,1],[1,0]]]")
    geo = geo[["geo_id", "type", "coordinates", "row_id", "column_id"]].sample(frac=1, random_state=1)
    geo.to_csv(folder / "NYCTAXI.geo", index=False)
    return folder


def test_libcity_grid(tmp_path):
    city = read_libcity(write_grid(tmp_path / "NYCTAXI"))
    assert sorted(city.node_ids) == ["0-0", "0-1", "1-0", "1-1"]
    assert by_id(city)["1-0"] == [10, 110, 210]
    assert by_id(city)["0-0"] == [0, 100, 200]  # a zero is a count
    assert city.num_edges == 12
    assert city.interval == pd.Timedelta("1h")


def test_libcity_grid_whose_roads_name_its_zones_by_geo_id(tmp_path):
    folder = write_grid(tmp_path / "NYCTAXI")
    (folder / "NYCTAXI.rel").write_text(
        "rel_id,type,origin_id,destination_id,link_weight\n0,geo,7,5,0.5\n1,geo,1,3,2\n2,geo,5,5,1\n"
    )
    assert roads(read_libcity(folder)) == {("0-0", "1-0"): 0.5, ("1-1", "0-1"): 2.0, ("1-0", "1-0"): 1.0}


def test_libcity_nodes_that_are_no_grid_may_have_rows_and_columns(tmp_path):
    folder = write_libcity(tmp_path)
    geo = pd.read_csv(folder / "METR_LA.geo").assign(row_id=0, column_id=[0, 1])
    geo.to_csv(folder / "METR_LA.geo", index=False)
    city = read_libcity(folder)
    assert city.node_ids == ("773869", "767541")
    assert (city.num_edges, places(city)["773869"]) == (1, [34.1, -118.1])


@pytest.mark.parametrize("column", ["cost", "link_weight"])
@pytest.mark.parametrize("kind", ["link", "LINK"])
def test_libcity_a_link_has_weight_1_whatever_its_column_says(tmp_path, column, kind):
    """As LibCity does: no kernel, a weight of 0 counts, a row without a weight does not."""
    folder = write_grid(tmp_path / "NYCTAXI")
    rows = "0,geo,7,5,9000\n1,geo,5,7,0\n2,geo,1,3,\n"
    (folder / "NYCTAXI.rel").write_text(f"rel_id,type,origin_id,destination_id,{column}\n{rows}")
    info = {"set_weight_link_or_dist": kind, "calculate_weight_adj": True, "weight_col": column}
    (folder / "config.json").write_text(json.dumps({"info": info}))
    assert roads(read_libcity(folder)) == {("0-0", "1-0"): 1.0, ("1-0", "0-0"): 1.0}


def test_libcity_neither_link_nor_dist(tmp_path):
    folder = write_libcity(tmp_path)
    (folder / "config.json").write_text(json.dumps({"info": {"set_weight_link_or_dist": "links"}}))
    with pytest.raises(
        ValueError, match=r"config\.json: set_weight_link_or_dist: expected 'link' or 'dist', found 'links'"
    ):
        read_libcity(folder)
