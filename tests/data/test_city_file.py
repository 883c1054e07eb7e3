"""City files: what is written is read, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tsjt_pyg.data import City, city_file
from tsjt_pyg.data.atomic import atomic_path

PLACES = np.array([[52.0, 5.1], [52.1, 5.2], [52.2, 5.3], [52.3, 5.4], [52.4, 5.5]])


@pytest.fixture
def city(make_city) -> City:
    return make_city(
        missing=0.2,
        num_channels=2,
        name="Ede Süd",
        channels=["speed", "flow"],
        units=["km/h", "veh/h"],
        start="2024-03-02 07:30",
        interval="15min",
        positions=PLACES,
        node_ids=["a", "b/c", "10", "é", "x y"],
    )


def same(one: City, other: City) -> bool:
    texts = ("name", "node_ids", "channels", "units", "start", "interval")
    tensors = ("readings", "mask", "edge_index", "edge_weight")
    return (
        all(getattr(one, name) == getattr(other, name) for name in texts)
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and (one.pos is None) == (other.pos is None)
        and (one.pos is None or torch.equal(one.pos, other.pos))
    )


def test_round_trip(city, tmp_path):
    path = city.save(tmp_path / "ede.npz")
    assert path == tmp_path / "ede.npz"
    again = City.load(path)
    assert same(city, again)
    assert again.fingerprint() == city.fingerprint()
    assert again.readings.dtype == torch.float32


def test_round_trip_of_a_view_without_places_and_roads(tmp_path):
    city = City.from_edge_index(np.ones((30, 3)), torch.empty(2, 0, dtype=torch.int64)).between(7, 20)
    assert same(city, City.load(city.save(str(tmp_path / "bare"))))


@pytest.mark.parametrize("zone", ["+00:00", "+01:00"])
def test_a_file_whose_start_has_a_time_zone_keeps_the_local_time(make_city, tmp_path, zone):
    city = make_city(start="2024-03-02 07:30")
    path = city.save(tmp_path / "x.npz")
    with np.load(path) as arrays:
        changed = dict(arrays)
    about = json.loads(str(changed["about"]))
    changed["about"] = np.array(json.dumps({**about, "start": about["start"] + zone}))
    np.savez(path, **changed)
    again = City.load(path)
    assert again.start == city.start
    assert torch.equal(again.time_of_day, city.time_of_day)


def test_the_suffix_is_appended(city, tmp_path):
    assert city.save(tmp_path / "ede.v2") == tmp_path / "ede.v2.npz"


def test_an_existing_file_is_replaced_and_nothing_else_is_left(city, make_city, tmp_path):
    path = tmp_path / "ede.npz"
    make_city().save(path)
    city.save(path)
    assert same(city, City.load(path))
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_readable_as_other_files_are(city, tmp_path):
    (tmp_path / "plain").touch()
    assert city.save(tmp_path / "ede.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_leaves_what_was_there(city, make_city, tmp_path, monkeypatch, failure, before):
    path = tmp_path / "ede.npz"
    old = make_city()
    if before:
        old.save(path)

    def half_a_write(file, **arrays: np.ndarray) -> None:
        file.write(b"PK\x03\x04 half")
        raise failure

    monkeypatch.setattr(city_file.np, "savez_compressed", half_a_write)
    with pytest.raises(type(failure)):
        city.save(path)
    assert list(tmp_path.iterdir()) == ([path] if before else [])
    if before:
        assert same(old, City.load(path))


def test_no_other_process_sees_half_a_file(tmp_path):
    path = tmp_path / "x.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # the same file system, so that the replacement is atomic
    assert path.read_text() == "half"


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be opened here")
def test_a_new_file_and_then_its_name_are_brought_to_the_disk(tmp_path, monkeypatch):
    brought = []
    monkeypatch.setattr(os, "fsync", lambda handle: brought.append(os.fstat(handle).st_ino))
    with atomic_path(tmp_path / "city.csv") as temporary:
        pass
    assert brought == [(tmp_path / "city.csv").stat().st_ino, tmp_path.stat().st_ino]
    assert not temporary.exists()


def test_a_folder_that_does_not_exist(city, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; create it or choose another"):
        city.save(tmp_path / "nowhere" / "ede.npz")


# --- files that are not, or no longer, cities


def test_every_truncation_is_noticed(city, tmp_path):
    whole = city.save(tmp_path / "ede.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.npz: not a city file written by City.save, or a damaged one"):
            City.load(path)


def test_no_flipped_byte_gives_another_city(city, tmp_path):
    whole = city.save(tmp_path / "ede.npz").read_bytes()
    path = tmp_path / "flipped.npz"
    noticed = 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert same(city, City.load(path)), position  # a date or an attribute of the zip file
        except ValueError as error:
            assert "flipped.npz: not a city file" in str(error)  # noqa: PT017
            noticed += 1
    assert noticed > len(whole) / 5 * 0.7


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_ids": np.array(["a", None], dtype=object)}, "Object arrays cannot be loaded when allow_pickle=False"),
        ({"readings": np.ones((40, 4, 2), np.float32)}, r"mask: expected a bool tensor \[40, 4, 2\]"),
        ({"edge_index": np.full((2, 5), 9)}, "edge_index: expected nodes 0 to 4"),
        ({"mask": np.zeros(3, np.uint8)}, "its mask and readings differ in size"),
        ({"about": np.array("no json")}, "Expecting value"),
        ({"about": np.array('"text"')}, "a damaged one"),
        ({"readings": None}, "readings is not a file in the archive"),
        ({"pos": None}, "pos is not a file in the archive"),
    ],
)
def test_other_content_is_refused(city, tmp_path, change, message):
    path = city.save(tmp_path / "ede.npz")
    arrays = {name: array for name, array in (arrays_of(path) | change).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"ede.npz: not a city file .*{message}"):
        City.load(path)


def test_another_version_of_the_format_is_named(city, tmp_path):
    path = city.save(tmp_path / "ede.npz")
    arrays = arrays_of(path)
    about = json.loads(str(arrays["about"])) | {"format": "tsjt_pyg.City/2"}
    np.savez(path, **(arrays | {"about": np.array(json.dumps(about))}))
    with pytest.raises(ValueError, match=r"its format is 'tsjt_pyg\.City/2'"):
        City.load(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("readings,1,2,3")
    with pytest.raises(ValueError, match=r"x\.npz: not a city file"):
        City.load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="it is a single array"):
        City.load(path)
    np.savez(path, data=np.ones(3))
    with pytest.raises(ValueError, match="about is not a file in the archive"):
        City.load(path)
    with pytest.raises(ValueError, match="not a city file"):
        City.load(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz: there is no such file"):
        City.load(tmp_path / "nothing.npz")
