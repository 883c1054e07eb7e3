"""Mapped cities: a folder is the city, batches are read from it, and damage is noticed."""

from __future__ import annotations

import errno
import gc
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City, CityPairLoader, StandardScaler, rows, windows
from tsjt_pyg.data.mapped import write_mapped_city

TENSORS = ("readings", "mask", "edge_index", "edge_weight", "pos", "step_of_day", "time_of_day", "day_of_week")
TEXTS = ("name", "node_ids", "channels", "units", "start", "interval", "num_steps", "num_nodes", "num_edges", "missing")
FILES = ["city.npz", "mask.npy", "readings.npy"]


def ring(num_nodes: int) -> torch.Tensor:
    return torch.stack([torch.arange(num_nodes), (torch.arange(num_nodes) + 1) % num_nodes])


@pytest.fixture
def city(make_city) -> City:
    return make_city(
        num_steps=400,
        missing=0.2,
        num_channels=2,
        name="Ede Süd",
        channels=["speed", "flow"],
        units=["km/h", "veh/h"],
        start="2024-03-02 07:30",
        interval="15min",
        positions=np.linspace((52.0, 5.1), (52.4, 5.5), 5),
        node_ids=["a", "b/c", "10", "é", "x y"],
    )


@pytest.fixture
def folder(city, tmp_path) -> Path:
    return city.save_mapped(tmp_path / "ede")


def test_every_view_is_the_citys(city, folder):
    again = City.load(folder)
    views = {
        "itself": lambda c: c,
        "between": lambda c: c.between(7, 90),
        "visible": lambda c: c.few_shot(2).visible,
        "test": lambda c: c.few_shot(2).test,
        "select": lambda c: c.select("flow"),
        "select all": lambda c: c.select(["speed", "flow"]),
        "resample": lambda c: c.resample("1h"),
        "to_undirected": lambda c: c.to_undirected(),
        "to": lambda c: c.to("cpu"),
    }
    for name, view in views.items():
        one, other = view(city), view(again)
        assert all(getattr(one, text) == getattr(other, text) for text in TEXTS), name
        assert all(torch.equal(getattr(one, tensor), getattr(other, tensor)) for tensor in TENSORS), name
        assert repr(one) == repr(other)
        assert one.fingerprint() == other.fingerprint()
        scalers = [StandardScaler().fit(c.readings, c.mask) for c in (one, other)]
        assert torch.equal(scalers[0].mean, scalers[1].mean)
        assert torch.equal(scalers[0].std, scalers[1].std)
        for stride in (1, 3, 19):
            here, there = one.windows(12, 6, stride), other.windows(12, 6, stride)
            assert torch.equal(here.x, there.x)
            assert torch.equal(here.y_mask, there.y_mask)
            for arguments in ({}, {"shuffle": True}, {"copy": False}, {"shuffle": True, "copy": False}):
                for batch, same in zip(
                    here.batches(7, generator=torch.Generator().manual_seed(3), **arguments),
                    there.batches(7, generator=torch.Generator().manual_seed(3), **arguments),
                    strict=True,
                ):
                    for tensor, equal in zip(batch.tensors(), same.tensors(), strict=True):
                        assert torch.equal(tensor, equal), (name, stride, arguments)


def test_signals_and_data_sets(city, folder):
    one, other = (c.to_dataset(4, 2)[9] for c in (city, City.load(folder)))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.mask, other.mask)
    one, other = (c.to_signal(4, 2)[9] for c in (city, City.load(folder)))
    assert torch.equal(one.y, other.y)


def test_batches_are_read_from_the_files(city, folder, monkeypatch):
    """The pages of a mapping that were looked at count as memory: batches and statistics must not look at them."""
    again = City.load(folder)
    assert rows.mapped_file(again.readings) is not None
    spoiled = {"readings": 1e9, "mask": False}
    for name, value in spoiled.items():
        getattr(again, name).fill_(value)  # in the pages of this process, not in the file
    batch = again.windows(12, 6).batch(torch.tensor([5, 80]))
    assert torch.equal(batch.x, city.windows(12, 6).x[[5, 80]])
    for visible in (again, again.between(10, 300)):
        for batch in visible.windows(12, 6).batches(32, copy=False):
            assert batch.x.max() < 1e9
            assert batch.x_mask.any()
        StandardScaler().fit(visible.readings, visible.mask)
        assert visible.missing < 1
    assert again.fingerprint() == city.fingerprint()


def test_writing_to_a_mapped_city_leaves_the_file(city, folder):
    before = (folder / "readings.npy").read_bytes()
    City.load(folder).readings.zero_()
    next(City.load(folder).windows(12, 6).batches(8, copy=False)).x.zero_()
    assert (folder / "readings.npy").read_bytes() == before


def test_into_memory(city, folder):
    again = City.load(folder, mmap=False)
    assert rows.mapped_file(again.readings) is None
    assert again.fingerprint() == city.fingerprint()


def test_the_files_are_numpys(city, folder):
    assert np.array_equal(np.load(folder / "readings.npy"), city.readings.numpy())
    assert np.array_equal(np.load(folder / "mask.npy"), city.mask.numpy())
    (folder.parent / "plain").mkdir()
    assert folder.stat().st_mode == (folder.parent / "plain").stat().st_mode


def test_views_that_are_not_whole_rows_and_pickles(city, folder):
    again = City.load(folder)
    flow = replace(again, readings=again.readings[..., 1:], mask=again.mask[..., 1:], channels=("flow",), units=("",))
    assert rows.mapped_file(flow.readings) is None
    assert torch.equal(flow.windows(12, 6).batch(torch.tensor([9])).y, city.windows(12, 6).y[9:10, ..., 1:])
    assert StandardScaler().fit(flow.readings, flow.mask).mean == StandardScaler().fit(city.readings, city.mask).mean[1]
    assert torch.equal(pickle.loads(pickle.dumps(again)).readings, city.readings)


def test_files_are_closed_with_the_last_view(folder):
    opened = len(rows._mapped)
    again = City.load(folder)
    assert len(rows._mapped) == opened + 2
    view, file = again.windows(12, 6).x[3], rows.mapped_file(again.readings).file
    del again
    gc.collect()
    assert not file.closed
    del view
    gc.collect()
    assert file.closed
    assert len(rows._mapped) == opened


def test_it_is_replaced_as_a_whole(city, make_city, folder):
    old = City.load(folder)
    other = make_city(num_steps=50)
    other.save_mapped(folder)
    assert City.load(folder).fingerprint() == other.fingerprint()
    assert old.fingerprint() == city.fingerprint()  # who has it open keeps it
    old.save_mapped(folder)
    City.load(folder).save_mapped(folder)  # onto itself
    assert City.load(folder).fingerprint() == city.fingerprint()
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_leaves_what_was_there(city, make_city, tmp_path, failure, before):
    folder = tmp_path / "ede"
    if before:
        city.save_mapped(folder)

    def blocks():
        yield np.ones((10, 3))
        raise failure

    with pytest.raises(type(failure)):
        write_mapped_city(folder, blocks(), ring(3))
    assert list(tmp_path.iterdir()) == ([folder] if before else [])
    if before:
        assert City.load(folder).fingerprint() == city.fingerprint()


def test_a_failure_at_the_last_moment_puts_the_old_one_back(city, make_city, folder, monkeypatch):
    replace = Path.replace

    def once(self, target):
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(OSError, match="no"):
        make_city().save_mapped(folder)
    assert City.load(folder).fingerprint() == city.fingerprint()
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["notes.txt", "readings.npy"])
def test_other_folders_are_not_replaced(make_city, tmp_path, name):
    (tmp_path / name).write_text("mine")
    for write in (make_city().save_mapped, lambda path: write_mapped_city(path, [np.ones((5, 3))], ring(3))):
        with pytest.raises(FileExistsError, match=f"holds '{name}', which is not of a mapped city; choose another"):
            write(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_is_filled_a_file_is_not(make_city, tmp_path):
    assert City.load(make_city().save_mapped(tmp_path)).num_nodes == 5
    with pytest.raises(NotADirectoryError, match="this is a file"):
        make_city().save_mapped(tmp_path / "city.npz")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; create it"):
        make_city().save_mapped(tmp_path / "nowhere" / "x")


# --- in blocks


def test_blocks_are_the_city(city, tmp_path):
    holed = city.readings.masked_fill(~city.mask, torch.nan)
    about = {name: getattr(city, name) for name in ("name", "node_ids", "channels", "units", "start", "interval")}
    blocks = [holed[:7], holed[7:8].numpy(), (city.readings[8:200], city.mask[8:200]), holed[200:]]
    again = write_mapped_city(
        tmp_path / "x", iter(blocks), city.edge_index, city.edge_weight, positions=city.pos.numpy(), **about
    )
    assert again.fingerprint() == city.fingerprint()
    assert again.name == city.name
    assert torch.equal(again.pos, city.pos)
    assert City.load(tmp_path / "x").fingerprint() == city.fingerprint()


def test_the_mask_of_the_first_block_counts(tmp_path):
    mask = np.ones((4, 3), bool)
    mask[2, 1] = False
    again = write_mapped_city(tmp_path / "x", [(np.ones((4, 3)), mask), np.ones((2, 3))], ring(3))
    assert again.mask[..., 0].tolist() == [*mask.tolist(), [True] * 3, [True] * 3]
    assert again.readings[2, 1, 0] == 0


def test_tables_are_joined_by_node_and_time(tmp_path):
    time = pd.date_range("2024-03-02", periods=6, freq="1h")
    table = pd.DataFrame(np.arange(18.0).reshape(6, 3), index=time, columns=["a", "b", "c"])
    again = write_mapped_city(tmp_path / "x", [table[:2], table[2:5][["c", "a", "b"]], table[5:]], ring(3))
    assert np.array_equal(again.readings[..., 0], table)
    assert again.node_ids == ("a", "b", "c")
    assert again.time.equals(time)


hourly = pd.DataFrame(np.ones((4, 2)), index=pd.date_range("2024-03-02", periods=4, freq="1h"), columns=["a", "b"])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "blocks: expected at least one block of readings, found none"),
        ([np.ones((3, 2)), np.ones((3, 4))], "after 3 steps found readings of 4 nodes and 1 channels, before 2 and 1"),
        ([np.ones((3, 2)), np.full((3, 2), np.inf)], "readings: found inf at step 0"),
        ([hourly, hourly], r"blocks\[1\]: starts at 2024-03-02 00:00:00 .*expected 2024-03-02 04:00:00"),
        ([hourly[:2], hourly[2:].asfreq("30min")], r"a step every 0 days 00:30:00, expected .*every 0 days 01:00:00"),
        ([hourly[:2], hourly[2:].rename(columns={"b": "z"})], r"blocks\[1\]: node 'b' is not in it; all blocks need"),
        ([hourly[:2], hourly[2:].assign(z=1.0)], r"blocks\[1\]: node 'z' is not in the first block"),
        ([np.ones((3, 1))], "edge_index: expected nodes 0 to 0"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message):
        write_mapped_city(tmp_path / "x", blocks, ring(2))
    assert list(tmp_path.iterdir()) == []


def test_a_mask_comes_with_its_block(tmp_path):
    with pytest.raises(TypeError, match=r"mask: give it with each block, as \(readings, mask\)"):
        write_mapped_city(tmp_path / "x", [np.ones((3, 2))], ring(2), mask=np.ones((3, 2), bool))


# --- damage


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"ede: not a city file .*folder written by City.save_mapped, .*{name}"):
        City.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 5, 60, 130, -1])
def test_a_truncated_file(folder, name, keep):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"ede: not a city file written by City\.save, nor a folder"):
        City.load(folder)


def test_a_file_that_grew(folder):
    with (folder / "mask.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"mask\.npy: has 4129 bytes, expected 4128"):
        City.load(folder)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("readings", np.ones((400, 5, 2)), "readings.npy: holds float64"),
        ("readings", np.ones((400, 5, 1), np.float32), r"readings.npy: holds float32 \[400, 5, 1\], expected"),
        ("readings", np.asfortranarray(np.ones((400, 5, 2), np.float32)), "readings.npy: holds float32"),
        ("mask", np.ones((400, 5, 2), np.uint8), "mask.npy: holds uint8"),
        ("mask", np.array([None] * 3), "mask.npy: holds object"),
    ],
)
def test_arrays_of_another_kind(folder, name, array, message):
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(ValueError, match=message):
        City.load(folder)


def test_another_format_and_an_ordinary_city(folder, city):
    city.save(folder / "city.npz")
    with pytest.raises(ValueError, match=r"its format is 'tsjt_pyg\.City/1'"):
        City.load(folder)


@pytest.mark.parametrize("name", ["readings.npy", "mask.npy"])
def test_no_flipped_byte_of_a_header_gives_another_city(folder, city, name):
    whole = (folder / name).read_bytes()
    for position in range(128):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="not a city file"):
            City.load(folder)


def test_a_file_that_is_cut_while_it_is_open(folder):
    windows = City.load(folder).windows(12, 6)
    with (folder / "readings.npy").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"readings\.npy: the file ends at byte 2000.*it is truncated"):
        list(windows.batches(16))


def test_blocks_of_one_step_go_on_where_the_last_ended(tmp_path):
    index = pd.date_range("2024-03-04", periods=6, freq="5min")
    table = pd.DataFrame(np.arange(18.0).reshape(6, 3) + 1, index=index, columns=list("123"))
    edges = torch.tensor([[0], [1]])
    for parts in ([table[:3], table[5:]], [table[:5], table[:1]]):
        with pytest.raises(ValueError, match=r"starts at .* with a step every .*, where the block before it ends"):
            write_mapped_city(tmp_path / "wrong", parts, edges)
    assert not (tmp_path / "wrong").exists()
    whole = write_mapped_city(tmp_path / "right", [table[:1], table[1:5], table[5:]], edges)
    assert whole.time.equals(index.set_names(None))
    assert whole.readings[..., 0].tolist() == table.to_numpy().tolist()


@pytest.mark.parametrize(("limit", "ahead"), [(2**25, True), (100, False)])
def test_small_batches_are_read_ahead_large_ones_only_when_asked(city, folder, monkeypatch, limit, ahead):
    """So that a pass takes the memory of two batches at most: the loop's and the one that is being read."""
    monkeypatch.setattr(windows, "LARGE_BATCH", limit)
    again = City.load(folder)

    def in_background(batches) -> bool:
        next(batches)
        found = any(thread.name == "tsjt_pyg-prefetch" for thread in threading.enumerate())
        batches.close()
        return found

    cut = again.windows(12, 6)
    assert in_background(cut.batches(8)) is ahead
    assert in_background(cut.batches(8, prefetch=1))
    assert not in_background(cut.batches(8, prefetch=0))
    assert in_background(iter(CityPairLoader([cut], city.windows(12, 6), 8))) is ahead
    assert not in_background(city.windows(12, 6).batches(8))
