"""What every reader takes: a folder, as text or as a path, and a name that it knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from format_files import write_largest, write_libcity, write_metr_la, write_pems03

from tsjt_pyg.datasets import (
    read_dcrnn,
    read_jonas,
    read_largest,
    read_libcity,
    read_pems,
    read_stgfsl,
    read_tgcn,
)


@pytest.mark.parametrize("write", [write_metr_la, write_pems03, write_largest, write_libcity])
def test_a_folder_may_be_text(tmp_path, write):
    read = {
        write_metr_la: read_dcrnn,
        write_pems03: read_pems,
        write_largest: read_largest,
        write_libcity: read_libcity,
    }
    folder = write(tmp_path)
    found, expected = (read[write](path, folder.name) for path in (str(folder), folder))
    assert torch.equal(found.readings, expected.readings)


@pytest.mark.parametrize("name", ["Shenzhen", "SZ"])
def test_a_folder_of_npy_or_csv_may_be_text_and_names_are_exact(tmp_path, name):
    folder = tmp_path / "any name"
    folder.mkdir()
    np.save(folder / "dataset.npy", np.ones((4, 2, 1)))
    np.save(folder / "matrix.npy", np.ones((2, 2)))
    assert read_stgfsl(str(folder), "shenzhen").num_nodes == 2
    pd.DataFrame({"5": [1.0, 2.0], "6": [1.0, 2.0]}).to_csv(folder / "sz_speed.csv", index=False)
    (folder / "sz_adj.csv").write_text("0,1\n1,0\n")
    assert read_tgcn(str(folder), "sz_taxi").num_nodes == 2
    for read in (read_stgfsl, read_tgcn):
        with pytest.raises(ValueError, match=f"name: expected .* found '{name}'"):
            read(folder, name)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (read_dcrnn, "name: expected 'metr_la' or 'pems_bay', found 'atlantis'"),
        (read_pems, "name: expected 'pems03' or 'pems04' or 'pems07' or 'pems08', found 'atlantis'"),
        (
            read_largest,
            "name: expected 'largest_sd' or 'largest_gba' or 'largest_gla' or 'largest_ca', found 'atlantis'",
        ),
        (
            read_stgfsl,
            "name: expected 'stgfsl_metr_la' or 'stgfsl_pems_bay' or 'chengdu_m' or 'shenzhen', found 'atlantis'",
        ),
        (read_tgcn, "name: expected 'los_loop' or 'sz_taxi', found 'atlantis'"),
        (read_jonas, "name: expected 'jonas_nyc' or 'jonas_dc', found 'atlantis'"),
    ],
)
def test_a_name_that_a_reader_does_not_know(tmp_path, read, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        read(str(tmp_path), "atlantis")
