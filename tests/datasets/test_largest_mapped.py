"""LargeST, written to a mapped city block by block: the same city as read at once, and never more than a block."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from format_files import to_hdf, write_largest

from tsjt_pyg.data import City
from tsjt_pyg.datasets import load_city, load_task, map_largest, read_largest
from tsjt_pyg.datasets.hdf import HdfRows

SENSORS = ["1114091", "401001", "1118333", "715918", "801230"]


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Blocks of 6 steps; the number of rows of each that is read."""
    monkeypatch.setattr("tsjt_pyg.datasets.largest._ROWS", 6)
    rows: list[int] = []
    read = HdfRows.read

    def spy(table: HdfRows, numbers: np.ndarray) -> np.ndarray:
        rows.append(len(numbers))
        return read(table, numbers)

    monkeypatch.setattr(HdfRows, "read", spy)
    return rows


def flows(steps: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.permutation(steps * len(SENSORS)).reshape(steps, -1).astype(np.float64)
    values[rng.random(values.shape) < 0.2] = np.nan
    return pd.DataFrame(values, pd.date_range("2019-01-01", periods=steps, freq="5min"), SENSORS)


def same(one: City, two: City) -> None:
    for name in ("name", "node_ids", "channels", "units", "start", "interval"):
        assert getattr(one, name) == getattr(two, name), name
    for name in ("readings", "mask", "edge_index", "edge_weight", "pos"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(frame.index[[1, *range(9, 23), 38]])


@pytest.mark.parametrize("region", ["sd", "ca"])
@pytest.mark.parametrize("interval", [None, "15min", "20min"])
@pytest.mark.parametrize("change", [lambda f: f, gaps, lambda f: gaps(f).sample(frac=1, random_state=0)])
def test_it_is_the_city_that_is_read_at_once(tmp_path, counted, region, interval, change):
    folder = write_largest(tmp_path, f"largest_{region}")
    to_hdf(change(flows()), folder / "ca_his_raw_2019.h5")
    expected = read_largest(folder, f"largest_{region}", interval=interval)
    counted.clear()
    city = map_largest(folder, f"largest_{region}", tmp_path / "mapped", interval=interval)
    same(city, expected)
    same(City.load(tmp_path / "mapped"), expected)
    same(load_city(tmp_path / "mapped"), expected)
    assert max(counted) <= 6
    assert len(counted) >= 4
    assert sum(counted) == len(change(flows()))


def test_zeros_of_a_processed_file_are_missing_and_text_is_a_path(tmp_path, counted):
    folder = write_largest(tmp_path)
    (folder / "ca_his_raw_2019.h5").unlink()
    to_hdf(flows().fillna(0), folder / "sd_his_2018.h5")
    expected = read_largest(folder, "largest_sd", year=2018)
    same(map_largest(str(folder), "largest_sd", str(tmp_path / "mapped"), year=2018), expected)
    assert 0.1 < expected.missing < 0.4
    with pytest.raises(FileNotFoundError, match=r"ca_his_raw_2017\.h5: this file is missing.*sd_his_2017\.h5"):
        map_largest(folder, "largest_sd", tmp_path / "other", year=2017)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """6000 steps of 200 sensors are 4.8 MB; 64 of them, as they lie in the file and as they are read, 154 kB."""
    monkeypatch.setattr("tsjt_pyg.datasets.largest._ROWS", 64)
    folder = tmp_path / "largest_sd"
    folder.mkdir()
    ids = [str(i) for i in range(200)]
    index = pd.date_range("2019-01-01", periods=6000, freq="5min")
    values = np.random.default_rng(0).integers(0, 500, (6000, 200)).astype(np.float64)
    to_hdf(pd.DataFrame(values, index, ids), folder / "ca_his_raw_2019.h5")
    meta = pd.DataFrame({"ID": ids, "Lat": 32.0, "Lng": -117.0, "District": 11, "ID2": range(200)})
    meta.to_csv(folder / "ca_meta.csv", index=False)
    np.save(folder / "ca_rn_adj.npy", np.eye(200, k=1, dtype=np.float32))

    def peak(read) -> int:
        tracemalloc.start()
        read()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(lambda: map_largest(folder, "largest_sd", tmp_path / "mapped"))  # what is imported on the way
    assert peak(lambda: map_largest(folder, "largest_sd", tmp_path / "mapped")) < 1_500_000
    assert peak(lambda: read_largest(folder, "largest_sd")) > 4_800_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sd"}, "name: expected 'largest_sd' or .*, found 'sd'"),
        ({"interval": "7min"}, "interval: expected a multiple of 0 days 00:05:00, found 0 days 00:07:00"),
        ({"interval": "1D"}, "interval: the file has 12 steps, 1 days 00:00:00 takes 288"),
    ],
)
def test_what_makes_no_sense_leaves_nothing(tmp_path, options, message):
    folder = write_largest(tmp_path)
    with pytest.raises(ValueError, match=message):
        map_largest(folder, **{"name": "largest_sd", "into": tmp_path / "mapped", **options})
    assert not (tmp_path / "mapped").exists()


def test_a_file_that_is_cut_leaves_nothing(tmp_path, counted, monkeypatch):
    folder = write_largest(tmp_path)
    to_hdf(flows(), folder / "ca_his_raw_2019.h5")

    def broken(table: HdfRows, numbers: np.ndarray) -> np.ndarray:
        if numbers[0]:
            raise ValueError(f"{table.path}: cannot be read as HDF5")
        return np.ones((len(numbers), len(table.columns)), dtype=np.float32)

    monkeypatch.setattr(HdfRows, "read", broken)
    with pytest.raises(ValueError, match=r"ca_his_raw_2019\.h5: cannot be read as HDF5"):
        map_largest(folder, "largest_sd", tmp_path / "mapped")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["largest_sd"]


def test_a_mapped_folder_is_a_target_and_a_source(tmp_path, make_city):
    folder = make_city(name="mine", channels="speed").save_mapped(Path(tmp_path, "mine"))
    task = load_task(str(folder), ["demo/ringwood"])
    assert (task.target.name, task.target.num_nodes, task.sources[0].channels) == ("mine", 5, ("speed",))
    assert load_task("demo/ringwood", [str(folder)]).sources[0].num_nodes == 5
