"""The field's formats, written by the field's own libraries, come back by node id whatever the order of the files."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from format_files import (
    IDS,
    MATRIX,
    by_id,
    places,
    roads,
    speeds,
    to_hdf,
    write_largest,
    write_metr_la,
    write_pems03,
)

from tsjt_pyg.datasets import load_city
from tsjt_pyg.datasets.dcrnn import read_dcrnn
from tsjt_pyg.datasets.largest import read_largest
from tsjt_pyg.datasets.stgfsl import read_stgfsl

# --- METR-LA, PEMS-BAY


def test_metr_la(tmp_path):
    write_metr_la(tmp_path)
    city = load_city("metr_la", root=tmp_path)
    assert city.node_ids == tuple(IDS)
    assert by_id(city) == speeds(IDS).to_dict("list")
    assert roads(city) == {(a, b): MATRIX[i, j] for i, a in enumerate(IDS) for j, b in enumerate(IDS) if MATRIX[i, j]}
    assert places(city)["773869"] == [34.1, -118.1]
    assert (city.channels, city.units, city.name) == (("speed",), ("mph",), "metr_la")
    assert (city.start, city.interval) == (pd.Timestamp("2012-03-01"), pd.Timedelta("5min"))


def test_metr_la_with_every_file_in_an_order_of_its_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = read_dcrnn(write_metr_la(tmp_path / "a"), "metr_la")
    two = read_dcrnn(write_metr_la(tmp_path / "b", IDS[::-1], [IDS[i] for i in (2, 0, 3, 1)]), "metr_la")
    assert two.node_ids == tuple(IDS[::-1])
    assert (by_id(one), roads(one), places(one)) == (by_id(two), roads(two), places(two))


def test_metr_la_a_zero_is_missing_and_rows_are_in_any_order(tmp_path):
    folder = write_metr_la(tmp_path)
    frame = speeds(IDS)
    frame.iloc[2, 1] = 0
    to_hdf(frame.iloc[[3, 0, 1, 5, 4, 2]], folder / "metr-la.h5")
    city = read_dcrnn(folder, "metr_la")
    assert not city.mask[2, 1].item()
    assert city.mask.sum() == city.mask.numel() - 1
    np.testing.assert_array_equal(by_id(city)["773869"], frame["773869"])


def test_pems_bay_ids_are_numbers_and_its_missing_hour_is_missing(tmp_path, caplog):
    """PEMS-BAY lacks the hour that the clocks skip; its csv files have no header."""
    folder = tmp_path / "pems_bay"
    folder.mkdir()
    frame = speeds([400001, 400017], steps=60, start="2017-03-12")
    gone = frame.index.hour == 2
    to_hdf(frame[~gone], folder / "pems-bay.h5", key="speed")
    rows = "400001,400001,0.0\n400017,400017,0.0\n400001,400017,500.0\n400017,400001,50.0\n400017,999999,1.0\n"
    (folder / "distances_bay_2017.csv").write_text(rows)
    (folder / "graph_sensor_locations_bay.csv").write_text("400017,37.2,-121.9\n400001,37.3,-121.8\n")
    with caplog.at_level("INFO"):
        city = load_city("pems_bay", root=tmp_path)
    assert "12 of 60 steps are left out; they are missing readings here" in caplog.text
    assert "roads of 1 nodes without readings are left out: ['999999']" in caplog.text
    assert city.node_ids == ("400001", "400017")
    assert not city.mask[gone].any()
    assert city.mask[~gone].all()
    assert city.time[36] == pd.Timestamp("2017-03-12 03:00")
    assert city.readings[36, 0, 0] == 37
    sigma = np.std([0, 0, 500, 50])  # DCRNN's: all distances among the sensors, with the zeros
    assert np.exp(-((500 / sigma) ** 2)) < 0.1
    assert roads(city) == pytest.approx({("400017", "400001"): np.exp(-((50 / sigma) ** 2))})
    assert places(city)["400001"] == [37.3, -121.8]


def test_matrix_and_distances_of_dcrnn_give_the_same_roads(tmp_path):
    """The pickle as DCRNN's own formula makes it of the distances, and the distances themselves."""
    rng = np.random.default_rng(0)
    folder = write_metr_la(tmp_path)
    rows = [(a, b, 0.0 if a == b else rng.uniform(100, 8000)) for a in IDS for b in IDS]
    table = pd.DataFrame(rows, columns=["from", "to", "cost"])
    table.sample(frac=1, random_state=1).to_csv(folder / "distances_la_2012.csv", index=False)
    distance = table["cost"].to_numpy().reshape(4, 4)
    matrix = np.exp(-np.square(distance / distance.std())).astype(np.float32)
    matrix[matrix < 0.1] = 0
    (folder / "adj_mx.pkl").write_bytes(pickle.dumps([IDS, {n: i for i, n in enumerate(IDS)}, matrix], 2))
    of_matrix = {pair: weight for pair, weight in roads(read_dcrnn(folder, "metr_la")).items() if pair[0] != pair[1]}
    (folder / "adj_mx.pkl").unlink()
    assert len(of_matrix) > 2
    assert roads(read_dcrnn(folder, "metr_la")) == pytest.approx(of_matrix, rel=1e-5)


def test_sensor_ids_limit_the_sensors(tmp_path, caplog):
    folder = write_metr_la(tmp_path)
    (folder / "graph_sensor_ids.txt").write_text("717447,773869,1\n")
    city = read_dcrnn(folder, "metr_la")
    assert city.node_ids == ("773869", "717447")
    assert "1 of the 3 sensors in" in caplog.text
    assert "have no column here: ['1']" in caplog.text


def test_the_width_of_the_kernel_may_be_given(tmp_path):
    """Distances of neighbours only, which are much alike: DCRNN's width would leave no road."""
    folder = write_metr_la(tmp_path)
    (folder / "adj_mx.pkl").unlink()
    (folder / "distances.csv").write_text("from,to,cost\n773869,767541,500\n767541,717447,510\n")
    with pytest.raises(ValueError, match=r"distances\.csv: sigma: all 2 weights are below the threshold 0.1"):
        read_dcrnn(folder, "metr_la")
    city = read_dcrnn(folder, "metr_la", sigma=500)
    assert roads(city)["773869", "767541"] == pytest.approx(np.exp(-1))


# --- missing on either side


def test_the_readings_say_which_nodes_there_are(tmp_path, caplog):
    folder = write_metr_la(tmp_path, matrix_ids=["717447", "773869", "717446"])
    to_hdf(speeds(IDS)[["767541", "717447", "773869"]], folder / "metr-la.h5")
    with caplog.at_level("INFO"):
        city = read_dcrnn(folder, "metr_la")
    assert city.node_ids == ("767541", "717447", "773869")
    assert roads(city) == {("717447", "717447"): 1.0, ("773869", "773869"): 1.0}
    assert "1 of 3 nodes with readings have no roads here: ['767541']" in caplog.text
    assert "roads of 1 nodes without readings are left out: ['717446']" in caplog.text
    assert "no two of its 3 nodes are joined by a road" in caplog.text
    assert places(city)["773869"] == [34.1, -118.1]


def test_positions_count_only_if_every_node_has_one(tmp_path, caplog):
    folder = write_metr_la(tmp_path)
    path = folder / "graph_sensor_locations.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert read_dcrnn(folder, "metr_la").pos is None
    assert "positions are left out, for 1 of 4 nodes have none: ['773869']" in caplog.text


def test_a_node_without_a_reading_stays_and_is_named(tmp_path, caplog):
    folder = write_metr_la(tmp_path)
    frame = speeds(IDS)
    frame["717447"] = 0
    to_hdf(frame, folder / "metr-la.h5")
    city = read_dcrnn(folder, "metr_la")
    assert city.num_nodes == 4
    assert "1 of 4 nodes have no reading at all: ['717447']" in caplog.text


def test_one_node(tmp_path, caplog):
    folder = write_metr_la(tmp_path, IDS[:1], IDS[:1])
    city = read_dcrnn(folder, "metr_la")
    assert (city.num_nodes, city.num_edges) == (1, 1)
    assert "no two of its 1 nodes are joined by a road" in caplog.text


# --- PEMS03, PEMS07


def test_pems03_has_flow_only_and_sensor_ids(tmp_path, caplog):
    write_pems03(tmp_path)
    with caplog.at_level("INFO"):
        city = load_city("pems03", root=tmp_path)
    assert city.node_ids == ("313344", "313349", "313788")
    assert (city.channels, city.units) == (("flow",), ("veh/5min",))
    assert by_id(city)["313788"] == [3, 6, 9, 12]
    assert city.mask[:, 1, 0].tolist() == [True, False, True, True]
    mean = (2**2 + 1**2) / 2
    near, far = np.exp(-1 / mean), np.exp(-4 / mean)
    expected = {("313344", "313349"): near, ("313349", "313788"): far}
    assert roads(city) == pytest.approx({**expected, **{(b, a): w for (a, b), w in expected.items()}})
    assert "roads of 1 nodes without readings are left out: ['318566']" in caplog.text
    assert city.start == pd.Timestamp("2018-09-01")


def test_pems07_has_positions_in_the_readings_for_ids(tmp_path):
    folder = tmp_path / "pems07"
    folder.mkdir()
    np.savez(folder / "PEMS07.npz", data=np.ones((3, 2, 1), dtype=np.int64))
    pd.DataFrame({"from": [0], "to": [1], "cost": [0.3]}).to_csv(folder / "PEMS07.csv", index=False)
    city = load_city("pems07", root=tmp_path)
    assert (city.node_ids, city.channels, set(roads(city))) == (("0", "1"), ("flow",), {("0", "1"), ("1", "0")})


# --- ST-GFSL


@pytest.mark.parametrize(
    ("name", "interval", "unit"),
    [
        ("chengdu_m", "10min", "km/h"),
        ("shenzhen", "10min", "km/h"),
        ("stgfsl_metr_la", "5min", "mph"),
        ("stgfsl_pems_bay", "5min", "mph"),
    ],
)
def test_stgfsl(tmp_path, name, interval, unit, caplog):
    folder = tmp_path / name
    folder.mkdir()
    steps = int(pd.Timedelta("1D") / pd.Timedelta(interval))
    data = np.stack([speeds(["a", "b"], steps).to_numpy(), np.zeros((steps, 2))], axis=-1)
    data[5, 1, 0] = 0
    np.save(folder / "dataset.npy", data)
    np.save(folder / "matrix.npy", np.array([[0, 0.5], [0, 0]]))
    city = load_city(name, root=tmp_path)
    assert (city.interval, city.units, city.steps_per_day) == (pd.Timedelta(interval), (unit,), steps)
    assert city.channels == ("speed",)
    assert city.missing == pytest.approx(1 / city.mask.numel())
    assert roads(city) == {("0", "1"): 0.5}
    assert "later clock times are off" not in caplog.text
    np.save(folder / "dataset.npy", data[:-1])
    read_stgfsl(folder, name)
    assert f"{steps - 1} steps of {interval}" in caplog.text
    assert "later clock times are off" in caplog.text


# --- T-GCN


@pytest.mark.parametrize(("name", "prefix", "interval"), [("sz_taxi", "sz", "15min"), ("los_loop", "los", "5min")])
def test_tgcn_by_the_names_of_its_release(tmp_path, name, prefix, interval):
    folder = tmp_path / name
    folder.mkdir()
    frame = speeds([90217, 90225])
    frame.iloc[0, 0] = 0
    frame.to_csv(folder / f"{prefix}_speed.csv", index=False)
    pd.DataFrame([[0, 1], [1, 0]]).to_csv(folder / f"{prefix}_adj.csv", index=False, header=False)
    city = load_city(name, root=tmp_path)
    assert city.node_ids == ("90217", "90225")
    assert by_id(city)["90225"] == frame[90225].to_list()
    assert not city.mask[0, 0].item()
    assert city.interval == pd.Timedelta(interval)
    assert roads(city) == {("90217", "90225"): 1.0, ("90225", "90217"): 1.0}
    assert city.pos is None


# --- LargeST


@pytest.mark.parametrize(
    ("region", "ids"),
    [
        ("sd", ["1114091", "1118333"]),
        ("gba", ["401001"]),
        ("gla", ["715918", "801230"]),
        ("ca", ["1114091", "1118333", "401001", "715918", "801230"]),
    ],
)
def test_largest(tmp_path, region, ids):
    write_largest(tmp_path, f"largest_{region}")
    city = load_city(f"largest_{region}", root=tmp_path)
    assert sorted(city.node_ids) == ids
    order = ["1114091", "401001", "1118333", "715918", "801230"]
    for i, node in enumerate(order):
        for j, other in enumerate(order):
            if node in ids and other in ids and i + j:
                assert roads(city)[node, other] == pytest.approx((5 * i + j) / 25)
    assert places(city)[ids[-1]] == pytest.approx(
        {"sd": [32.1, -117.1], "gba": [37.0, -122.0]}.get(region, [33.9, -117.5])
    )
    assert (city.channels, city.units, city.start) == (("flow",), ("veh/5min",), pd.Timestamp("2019-01-01"))


def test_largest_missing_is_nan_in_the_raw_file_and_zero_in_the_processed_one(tmp_path):
    folder = write_largest(tmp_path)
    city = read_largest(folder, "largest_sd")
    assert city.mask[:4, city.node_ids.index("1114091"), 0].tolist() == [True, False, True, True]
    frame = pd.read_hdf(folder / "ca_his_raw_2019.h5").fillna(0)
    (folder / "ca_his_raw_2019.h5").unlink()
    to_hdf(frame[["1118333", "1114091"]], folder / "sd_his_2019.h5", key="t")
    city = read_largest(folder, "largest_sd")
    assert city.mask[:4, city.node_ids.index("1114091"), 0].tolist() == [True, False, False, True]


def test_largest_at_15_minutes(tmp_path):
    city = read_largest(write_largest(tmp_path), "largest_sd", interval="15min")
    assert city.interval == pd.Timedelta("15min")
    node = city.node_ids.index("1118333")
    assert city.readings[:, node, 0].tolist() == [202.0, 205.0, 208.0, 211.0]
    assert not city.mask[0, city.node_ids.index("1114091"), 0].item()


def test_largest_with_files_of_the_region_alone(tmp_path):
    """The region's table keeps ID2 of the state; its matrix is in the order of the table."""
    folder = write_largest(tmp_path)
    meta = pd.read_csv(folder / "ca_meta.csv")
    meta[meta["District"] == 11].to_csv(folder / "sd_meta.csv", index=False)
    np.save(folder / "sd_rn_adj.npy", np.array([[1, 0.5], [0, 1]], dtype=np.float32))
    for file in ("ca_meta.csv", "ca_rn_adj.npy"):
        (folder / file).unlink()
    assert roads(read_largest(folder, "largest_sd"))["1118333", "1114091"] == 0.5
