"""Demand on a grid of zones, from any of three kinds of file."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from tsjt_pyg.data import City
from tsjt_pyg.datasets.grid import read_grid


def roads(city: City) -> dict[tuple[str, str], float]:
    ids = [(city.node_ids[i], city.node_ids[j]) for i, j in city.edge_index.T.tolist()]
    return dict(zip(ids, city.edge_weight.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["npz", "npy", "h5"])
@pytest.mark.parametrize("axes", ["THWC", "TCHW"])
def test_grid(tmp_path, kind, axes):
    values = np.arange(5 * 2 * 3 * 2, dtype=np.float32).reshape(5, 2, 3, 2)
    values[1, 0, 0, 0] = np.nan
    stored = values.transpose(["THWC".index(letter) for letter in axes])
    path = tmp_path / f"bike.{kind}"
    if kind == "npz":
        np.savez(path, data=stored)
    elif kind == "npy":
        np.save(path, stored)
    else:
        with h5py.File(path, "w") as file:
            file["data"] = stored
    land = np.array([[True, True, True], [True, False, True]])
    city = read_grid(path, axes=axes, mask=land, channels=["in", "out"], interval="30min", start="2015-01-01")
    assert city.node_ids == ("0-0", "0-1", "0-2", "1-0", "1-2")
    np.testing.assert_array_equal(city.readings[:, 4].numpy(), values[:, 1, 2])
    assert not city.mask[1, 0, 0].item()
    assert city.mask.sum() == city.mask.numel() - 1
    assert city.mask[0, 0, 0].item()  # a zero is a true zero
    assert roads(city)["0-1", "1-2"] == 1
    assert city.num_edges == 12
    assert city.steps_per_day == 48


def test_grid_with_the_mask_and_one_channel_in_the_file(tmp_path):
    path = tmp_path / "bike.npz"
    np.savez(path, demand=np.ones((4, 2, 2)), sea=np.array([[0, 1]]))
    city = read_grid(path, array="demand", mask="sea", axes="THW")
    assert city.node_ids == ("0-0", "1-0", "1-1")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"x": np.ones(3)}, {}, r"grid\.npz: .*array 'data' is absent, found \['x'\]"),
        ({"data": np.ones((4, 3))}, {}, r"grid\.npz: expected 'data' of shape \[T, H, W, C\], found float64 \[4, 3\]"),
        ({"data": np.ones((4, 3, 3))}, {"axes": "TWHX"}, "axes: expected the letters T, H, W and C .*found 'TWHX'"),
        ({"data": np.ones((4, 3, 3, 1))}, {"mask": np.zeros((3, 3), bool)}, "the mask leaves no zone"),
        (
            {"data": np.ones((4, 3, 3, 1))},
            {"mask": np.ones((2, 3), bool)},
            r"the mask has shape \[2, 3\], the grid \[3, 3\]",
        ),
        ({"data": np.ones((4, 3, 3, 1))}, {"mask": np.array([[3, 0]])}, r"names the zone \[3, 0\], the grid is 3 x 3"),
        (
            {"data": np.ones((4, 3, 3, 1))},
            {"mask": np.ones(3)},
            r"expected a mask of bool \[3, 3\] or of \(row, column\)",
        ),
        ({"data": np.full((4, 3, 3, 1), np.nan)}, {}, "found no reading in 4 steps of 9 nodes; all are missing"),
        ({"data": np.full((4, 1, 1, 1), np.inf)}, {}, "readings: found inf at step 0"),
    ],
)
def test_bad_grids(tmp_path, content, options, message):
    path = tmp_path / "grid.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=message):
        read_grid(path, **options)


def test_bad_grids_in_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"grid\.h5: there is no such file"):
        read_grid(tmp_path / "grid.h5")
    (tmp_path / "grid.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"grid\.h5: cannot be read as HDF5"):
        read_grid(tmp_path / "grid.h5")
    with h5py.File(tmp_path / "grid.h5", "w") as file:
        file["data"] = h5py.ExternalLink("elsewhere.h5", "data")
    with pytest.raises(ValueError, match=r"grid\.h5: .*array 'data' is absent or lies in another file"):
        read_grid(tmp_path / "grid.h5")
    (tmp_path / "grid.txt").write_text("1")
    with pytest.raises(ValueError, match=r"grid\.txt: expected a file that ends in \.npz, \.npy, \.h5 or \.hdf5"):
        read_grid(tmp_path / "grid.txt")


def test_one_zone(tmp_path, caplog):
    np.save(tmp_path / "grid.npy", np.ones((4, 1, 1)))
    city = read_grid(tmp_path / "grid.npy", axes="THW")
    assert (city.num_nodes, city.num_edges) == (1, 0)
    assert "no two of its 1 nodes are joined by a road" in caplog.text
