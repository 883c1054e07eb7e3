"""Tables of pandas in HDF5, read without pandas' reader, which unpickles attributes."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tsjt_pyg.datasets.hdf import read_pandas_hdf

pytest.importorskip("tables")


def table(columns: list, steps: int = 5, dtype: str = "float64") -> pd.DataFrame:
    index = pd.date_range("2012-03-01", periods=steps, freq="5min")
    values = np.arange(1, steps * len(columns) + 1).reshape(steps, len(columns))
    return pd.DataFrame(values.astype(dtype), index=index, columns=columns)


def written(folder: Path, frame: pd.DataFrame, **options: object) -> Path:
    path = folder / "metr-la.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_hdf(path, key="df", mode="w", **options)
    return path


@pytest.mark.parametrize("columns", [["773869", "767541", "5"], [400001, 400017, 3]])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("complevel", [None, 5])
def test_what_pandas_wrote(tmp_path, columns, dtype, complevel):
    frame = table(columns, dtype=dtype)
    found = read_pandas_hdf(written(tmp_path, frame, complevel=complevel))
    assert found.columns == [str(column) for column in columns]
    np.testing.assert_array_equal(found.values, frame.to_numpy())
    assert found.values.dtype == np.float32
    assert list(found.times) == list(frame.index)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit(tmp_path, unit):
    frame = table(["a"])
    frame.index = frame.index.as_unit(unit)
    assert list(read_pandas_hdf(written(tmp_path, frame)).times) == list(frame.index)


def test_columns_of_several_types_are_joined_by_name(tmp_path):
    frame = table(["a", "b", "c", "d"])
    frame["b"] = frame["b"].astype("int64")
    frame["d"] = frame["d"].astype("float32")
    found = read_pandas_hdf(written(tmp_path, frame))
    np.testing.assert_array_equal(found.values, frame.to_numpy())
    part = read_pandas_hdf(written(tmp_path, frame), ["d", "b", "x"])
    assert part.columns == ["b", "d"]
    np.testing.assert_array_equal(part.values, frame[["b", "d"]].to_numpy())


def test_missing_readings_stay_missing(tmp_path):
    frame = table(["a", "b"])
    frame.iloc[1, 0] = np.nan
    assert np.isnan(read_pandas_hdf(written(tmp_path, frame)).values).sum() == 1


def test_more_rows_than_are_read_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tsjt_pyg.datasets.hdf._ROWS", 3)
    frame = table(["a", "b"], steps=10)
    np.testing.assert_array_equal(read_pandas_hdf(written(tmp_path, frame)).values, frame.to_numpy())


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.mkdir, (self.mark,)


def test_no_pickle_in_an_attribute_is_loaded(tmp_path):
    """PyTables unpickles attributes that look like pickles; here none is, and the table comes back."""
    frame = table(["a", "b"])
    path = written(tmp_path, frame)
    mark = tmp_path / "it-ran"
    with h5py.File(path, "r+") as file:
        for name in ("axis0", "axis1", "block0_items"):
            for attribute in ("name", "freq", "FLAVOR"):
                file["df"][name].attrs[attribute] = np.bytes_(pickle.dumps(Runs(mark), 0))
        file["df"].attrs["info"] = np.bytes_(pickle.dumps(Runs(mark), 0))
    np.testing.assert_array_equal(read_pandas_hdf(path).values, frame.to_numpy())
    assert not mark.exists()


def links_elsewhere(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["secret"] = np.ones((5, 2))
    with h5py.File(path, "r+") as file:
        del file["df"]["block0_values"]
        file["df"]["block0_values"] = h5py.ExternalLink("other.h5", "secret")


def change(**datasets: object):
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name, content in datasets.items():
                kind = file["df"][name].attrs.get("kind") if name in file["df"] else None
                del file["df"][name]
                if content is not None:
                    file["df"][name] = content
                    if kind is not None:
                        file["df"][name].attrs["kind"] = kind

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read as HDF5 .*truncated"),
        (lambda path: path.write_bytes(b"speed"), "cannot be read as HDF5"),
        (lambda path: h5py.File(path, "w").close(), r"expected one table of pandas, found \[\]"),
        (change(axis1=None), "df/axis1 is absent or lies in another file; write it anew"),
        (links_elsewhere, "df/block0_values is absent or lies in another file"),
        (
            change(block0_values=np.ones((4, 2))),
            r"block0_values: expected numbers of shape \[5, 2\], found float64 \[4, 2\]",
        ),
        (change(axis0=np.array([b"a", b"a"])), "node 'a' has more than one column"),
        (
            lambda path: written(path.parent, table(["a"]).reset_index(drop=True)),
            "labelled with integer, expected times",
        ),
        (
            lambda path: written(path.parent, table(["a"]), format="table"),
            "in the format 'table', whose columns are a pickle",
        ),
        (
            lambda path: written(path.parent, table(["a", 3])),
            "its columns are labelled with object, which pandas pickles",
        ),
        (
            lambda path: written(path.parent, table(["a"]).tz_localize("UTC")),
            "its times have a time zone; bring them as local time",
        ),
    ],
)
def test_damaged_files(tmp_path, apply, message):
    path = written(tmp_path, table(["a", "b"]))
    apply(path)
    with pytest.raises(ValueError, match=rf"metr-la\.h5: .*{message}") as caught:
        read_pandas_hdf(path)
    assert str(caught.value).count(str(path)) == 1


def test_two_tables(tmp_path):
    path = written(tmp_path, table(["a"]))
    table(["a"]).to_hdf(path, key="other", mode="a")
    with pytest.raises(ValueError, match=r"expected one table of pandas, found \['df', 'other'\]"):
        read_pandas_hdf(path)


def test_a_compressor_that_h5py_lacks(tmp_path):
    path = written(tmp_path, table(["a", "b"]), complevel=5, complib="blosc")
    with pytest.raises(ValueError, match=r"metr-la\.h5: cannot be read as HDF5 .*without complib"):
        read_pandas_hdf(path)


def test_without_h5py(tmp_path, monkeypatch):
    path = written(tmp_path, table(["a"]))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r'metr-la\.h5: HDF5 files need h5py: pip install "tsjt-pyg\[hdf\]"'):
        read_pandas_hdf(path)
