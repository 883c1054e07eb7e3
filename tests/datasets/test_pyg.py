"""The named cities as data sets of PyG: its loader, transforms and slices."""

from __future__ import annotations

import hashlib
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import serving
from torch_geometric import transforms
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader

from tsjt_pyg import datasets
from tsjt_pyg.data import City
from tsjt_pyg.datasets import CityDataset, LosLoop, list_cities, load_city
from tsjt_pyg.datasets import pyg as module
from tsjt_pyg.datasets.cards import CardFile, read_card
from tsjt_pyg.datasets.named import NamedCityDataset

NAMED = NamedCityDataset.__subclasses__()
RIVERTON = load_city("demo/riverton")


# --- windows


@pytest.mark.parametrize("channels", [None, "speed", ["flow", "speed"]])
def test_items_are_the_windows_of_the_city(tmp_path, channels):
    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, channels=channels)
    city = RIVERTON if channels is None else RIVERTON.select(channels)
    windows = city.windows(6, 3)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == len(windows)
    for i in (0, 77, len(windows) - 1, -1):
        item = dataset[i]
        item.validate()
        assert torch.equal(item.x, windows.x[i].permute(1, 2, 0))
        assert torch.equal(item.x_mask, windows.x_mask[i].permute(1, 2, 0))
        assert torch.equal(item.y.reshape(68, city.num_channels, 3), windows.y[i].permute(1, 2, 0))
        assert torch.equal(item.mask.reshape(68, city.num_channels, 3), windows.y_mask[i].permute(1, 2, 0))
        assert torch.equal(item.edge_index, city.edge_index)
        assert torch.equal(item.edge_attr, city.edge_weight)
    assert (dataset.num_features, dataset.num_edge_features, dataset.num_classes) == (city.num_channels, 1, 3)


def test_the_city_comes_back_as_it_was(tmp_path):
    city = CityDataset(tmp_path, "demo/riverton").city
    assert city.fingerprint() == RIVERTON.fingerprint()
    assert (city.name, city.start, city.interval) == (RIVERTON.name, RIVERTON.start, RIVERTON.interval)
    assert torch.equal(city.pos, RIVERTON.pos)


def test_windows_are_views_and_the_file_holds_the_city_once(tmp_path):
    dataset = CityDataset(tmp_path, "demo/riverton", 12, 12)
    start = dataset.city.readings.untyped_storage().data_ptr()
    assert all(t.untyped_storage().data_ptr() == start for i in (0, 99) for t in (dataset[i].x, dataset[i].y))
    size = Path(dataset.processed_paths[0]).stat().st_size
    entries = RIVERTON.readings.numel()
    assert 5 * entries < size < 5.2 * entries  # float32 and bool an entry
    for piece in (dataset[10:20], dataset.shuffle()):
        assert piece[0].x.untyped_storage().data_ptr() == start


def test_it_is_indexed_as_pyg_does(tmp_path):
    dataset = CityDataset(tmp_path, "demo/riverton")
    keep = torch.zeros(len(dataset), dtype=torch.bool)
    keep[[3, 5]] = True
    for index in ([3, 5], (3, 5), slice(3, 7, 2), torch.tensor([3, 5]), np.array([3, 5]), keep):
        part = dataset[index]
        assert isinstance(part, CityDataset)
        assert len(part) == 2
        assert torch.equal(part[1].x, dataset[5].x)
        assert torch.equal(part[1:][0].x, dataset[5].x)
    assert torch.equal(dataset[torch.tensor(5)].x, dataset[5].x)
    assert len(dataset[:0.5]) == round(0.5 * len(dataset))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_names_say_what_it_is(los_loop):
    assert repr(CityDataset(los_loop, "demo/riverton")) == "CityDataset('demo/riverton', 4009, history=12, horizon=12)"
    assert repr(LosLoop(los_loop, 6, 3)) == "LosLoop(22, history=6, horizon=3)"
    assert repr(LosLoop(los_loop, 6, 3)[:4]) == "LosLoop(4, history=6, horizon=3)"


@pytest.mark.parametrize("workers", [0, 2])
def test_pygs_loader(tmp_path, workers):
    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, channels="speed", transform=transforms.ToUndirected())[:20]
    batches = list(DataLoader(dataset, batch_size=8, num_workers=workers))
    assert [batch.num_graphs for batch in batches] == [8, 8, 4]
    for b, batch in enumerate(batches):
        expected = [dataset[i] for i in range(8 * b, min(8 * b + 8, 20))]
        assert torch.equal(batch.x, torch.cat([item.x for item in expected]))
        assert torch.equal(batch.mask, torch.cat([item.mask for item in expected]))
        assert torch.equal(batch.edge_index, torch.cat([e.edge_index + 68 * i for i, e in enumerate(expected)], dim=1))


def test_a_pickle_holds_the_city_once(tmp_path):
    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, channels="speed")
    data = pickle.dumps(dataset[:30])
    readings = dataset.city.readings
    assert len(data) < 1.2 * (readings.numel() * 4 + readings.numel())
    again = pickle.loads(data)
    assert repr(again) == repr(dataset[:30])
    assert torch.equal(again[29].y, dataset[29].y)
    assert again[0].x.untyped_storage().data_ptr() == again.city.readings.untyped_storage().data_ptr()


def test_a_signal_of_pyg_temporal(los_loop):
    from torch_geometric_temporal.signal import StaticGraphTemporalSignal

    dataset = LosLoop(los_loop)
    signal = dataset.get_dataset(num_timesteps_in=5, num_timesteps_out=2)
    assert isinstance(signal, StaticGraphTemporalSignal)
    snapshots = list(signal)
    assert len(snapshots) == 30 - 5 - 2 + 1
    windows = load_city("los_loop", los_loop).windows(5, 2)
    for i in (0, 11, 23):
        assert torch.equal(snapshots[i].x, windows.x[i].permute(1, 2, 0))
        assert torch.equal(snapshots[i].y, windows.y[i, :, :, 0].T)
    assert len(list(dataset.get_dataset())) == 30 - 12 - 12 + 1


def test_a_signal_has_no_selection_and_no_transform(los_loop):
    for dataset in (
        LosLoop(los_loop)[:3],
        LosLoop(los_loop, transform=transforms.ToUndirected()),
        LosLoop(los_loop, pre_filter=lambda data: True),
    ):
        with pytest.raises(ValueError, match="get_dataset: a signal holds all windows as they are"):
            dataset.get_dataset()


# --- transforms


def flatten(data: Data) -> Data:
    data.x = data.x.flatten(1)
    return data


def test_a_transform_is_applied_whenever_a_window_is_asked_for(tmp_path):
    plain = CityDataset(tmp_path, "demo/riverton", 6, 3)
    dataset = CityDataset(
        tmp_path, "demo/riverton", 6, 3, transform=transforms.Compose([transforms.AddSelfLoops("edge_attr"), flatten])
    )
    item = dataset[4]
    assert item.num_edges == RIVERTON.num_edges + 68
    assert torch.equal(item.x, plain[4].x.flatten(1))
    assert dataset.num_features == 2 * 6  # as PyG counts what is no longer [N, C, T_in]
    assert plain[4].num_edges == RIVERTON.num_edges


SEEN: list[tuple[tuple[int, ...], ...]] = []


def prepare(data: Data) -> Data:
    SEEN.append((tuple(data.x.shape), tuple(data.mask.shape), tuple(data.pos.shape)))
    return transforms.Compose([transforms.AddRandomWalkPE(3), transforms.AddSelfLoops("edge_attr")])(data)


def test_a_pre_transform_changes_the_city_once(tmp_path):
    SEEN.clear()
    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, pre_transform=prepare)
    assert SEEN == [((68, 2, 4032), (68, 2, 4032), (68, 2))]
    assert dataset[0].random_walk_pe.shape == (68, 3)
    assert torch.equal(dataset[0].random_walk_pe, dataset[99].random_walk_pe)
    assert dataset.city.num_edges == RIVERTON.num_edges + 68
    assert torch.equal(dataset.city.readings, RIVERTON.readings)
    assert next(iter(DataLoader(dataset, batch_size=4))).random_walk_pe.shape == (4 * 68, 3)
    assert CityDataset(tmp_path, "demo/riverton", 6, 3, pre_transform=prepare)[0].num_edges == dataset[0].num_edges
    assert len(SEEN) == 1


def test_a_pre_transform_may_drop_nodes(los_loop):
    dataset = LosLoop(los_loop, 6, 3, pre_transform=transforms.LargestConnectedComponents())
    city = load_city("los_loop", los_loop)
    assert dataset.city.node_ids == ("773869", "767541")  # the third has a self-loop only
    assert torch.equal(dataset.city.readings, city.readings[:, :2])
    assert torch.equal(dataset.city.pos, city.pos[:2])
    assert dataset[0].num_nodes == 2


def last_day(data: Data) -> Data:
    data.x = data.x[..., -288:]
    return data


def without_weights(data: Data) -> Data:
    data.edge_attr = None
    return data


def without_x(data: Data) -> Data:
    del data.x
    return data


def note(data: Data) -> Data:
    data.note = "a text"
    return data


def negative(data: Data) -> Data:
    data.edge_attr = -data.edge_attr
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            last_day,
            r"pre_transform: expected it to leave x and mask \[N, 2, 4032\] and node \[N\], found x \[68, 2, 288\]",
        ),
        (without_x, "found x absent and 68 nodes; what concerns single windows belongs in transform"),
        (without_weights, r"pre_transform: expected one weight an edge in edge_attr, \[E\]"),
        (note, "pre_transform: expected it to add tensors only, found 'note'"),
        (negative, "pre_transform: what it returns is no city: edge_weight: weights must be finite and not negative"),
        (lambda data: (data, data), "pre_transform: expected it to return a Data, found tuple"),
    ],
)
def test_a_pre_transform_that_leaves_no_city(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        CityDataset(tmp_path, "demo/riverton", pre_transform=change)
    assert not list((tmp_path / "demo/riverton/processed").iterdir())


def complete(data: Data) -> bool:
    return bool(data.mask.all())


def test_a_pre_filter_keeps_windows(tmp_path):
    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, pre_filter=complete, channels="speed")
    windows = RIVERTON.select("speed").windows(6, 3)
    kept = windows.y_mask.flatten(1).all(dim=1).nonzero().flatten()
    assert 0 < len(kept) < len(windows)
    assert len(dataset) == len(kept)
    assert all(complete(item) for item in dataset[::20])
    assert torch.equal(dataset[7].x, windows.x[kept[7]].permute(1, 2, 0))
    other = CityDataset(tmp_path, "demo/riverton", 6, 1, pre_filter=complete, channels="speed")
    assert len(other) > len(dataset)  # a shorter horizon is more often complete
    with pytest.raises(ValueError, match=r"pre_filter: none of the 4024 windows of demo/riverton is kept"):
        CityDataset(tmp_path, "demo/riverton", 6, 3, pre_filter=lambda data: False)


# --- where the files come from


@pytest.mark.parametrize("dataset", NAMED)
def test_without_files_it_says_where_to_get_them(dataset, tmp_path):
    card = read_card(dataset.city_name)
    with pytest.raises(FileNotFoundError) as caught:
        dataset(tmp_path)
    text = str(caught.value)
    assert all(file.name in text for file in card.files if not file.optional)
    assert f"missing in {tmp_path / dataset.city_name}" in text
    assert card.source in text
    assert f"tsjt cities {dataset.city_name}" in text
    assert not list(tmp_path.iterdir())


def test_only_what_is_missing_is_named(los_loop):
    (los_loop / "los_loop" / "adjacency.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"los_loop: adjacency\.csv or los_adj\.csv missing in"):
        LosLoop(los_loop)


def test_files_with_a_url_are_downloaded_and_checked(los_loop, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = los_loop / "los_loop" / "speed.csv"
    content = path.read_bytes()
    path.unlink()
    right, card = hashlib.sha256(content).hexdigest(), read_card("los_loop")

    def offer(url: str, sha256: str) -> None:
        offered = replace(card, files=(CardFile("speed.csv", "speeds", sha256, url), *card.files[1:]))
        monkeypatch.setattr(module, "read_card", lambda *_: offered)

    with serving() as server:
        server.content = content
        offer(server.url, right[::-1])
        with pytest.raises(ValueError, match="wrong checksum"):
            LosLoop(los_loop)
        assert not path.exists()
        offer(server.url, right)
        assert len(LosLoop(los_loop)) == 7
        assert len(server.requests) == 2
    assert path.read_bytes() == content


def test_optional_files_are_not_needed(tmp_path):
    path = tmp_path / "jonas_dc" / "JONAS-DC-9x12-20151024-20160131.npz"
    path.parent.mkdir()
    np.savez(path, taxi=np.ones((5, 3, 2, 2)), bike=np.ones((5, 3, 2, 2)), mask=np.zeros((0, 2), int))
    dataset = datasets.JonasDC(tmp_path, 2, 1)
    assert dataset.raw_file_names == [path.name]
    assert "LICENSE" in [file.name for file in dataset.files]


# --- names


def test_each_city_of_the_catalogue_has_a_class():
    names = [entry.name for entry in list_cities() if entry.group != "demo"]
    assert sorted(dataset.city_name for dataset in NAMED) == sorted(names)
    assert all(dataset.__name__ in datasets.__all__ for dataset in NAMED)


@pytest.mark.parametrize("dataset", NAMED)
def test_stats_are_those_of_the_city(dataset, real_city):
    text = dataset.__doc__ or ""
    assert "**STATS:**" in text
    names, values = (
        [cell.strip().replace(",", "") for cell in re.findall(r"- (.+)", row)] for row in text.split("* ")[-2:]
    )
    assert names == ["#nodes", "#edges", "#steps", "#channels", "interval"]
    card = read_card(dataset.city_name)
    assert (int(values[0]), int(values[2])) in card.shapes
    city: City = real_city(dataset.city_name)
    minutes = int(city.interval.total_seconds() // 60)
    assert [values[0], values[1], *values[3:]] == [
        str(city.num_nodes),
        str(city.num_edges) if values[1] != "-" else "-",
        str(city.num_channels),
        f"{minutes} min",
    ]


def test_another_class_takes_three_lines(tmp_path):
    class Mine(NamedCityDataset):
        """Mine."""

        city_name = "demo/riverton"

    assert repr(Mine(tmp_path, 6, 3)) == "Mine(4024, history=6, horizon=3)"


def test_the_environment_names_the_root(los_loop, monkeypatch):
    monkeypatch.setenv("TSJT_CITIES", str(los_loop))
    assert len(LosLoop()) == 7
    monkeypatch.delenv("TSJT_CITIES")
    with pytest.raises(
        FileNotFoundError, match=r"root: say in which folder 'los_loop' is stored, or set .*TSJT_CITIES"
    ):
        LosLoop()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("los-loop", "there is no city 'los-loop'; did you mean 'los_loop'"),
        ("../elsewhere", "there is no city '../elsewhere'"),
    ],
)
def test_an_unknown_city(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        CityDataset(tmp_path / "root", name)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_name(tmp_path, make_city):
    path = make_city().save(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match=r"name: expected a city of the catalogue, found the file .*to_dataset"):
        CityDataset(tmp_path, str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": 29, "horizon": 2}, r"history \+ horizon: los_loop has 30 steps here"),
        ({"history": 0}, "history: expected at least 1 step, found 0"),
        ({"channels": "flow"}, r"channels: los_loop has \['speed'\], found \['flow'\]"),
        ({"channels": []}, r"channels: los_loop has \['speed'\], found \[\]"),
    ],
)
def test_malformed_arguments(los_loop, arguments, message):
    with pytest.raises(ValueError, match=message):
        LosLoop(los_loop, **arguments)


def test_what_a_pre_transform_hides_cannot_be_read(tmp_path):
    def hide(data):
        data.mask[:5] = False
        data.x = data.x - 50
        return data

    dataset = CityDataset(tmp_path, "demo/riverton", 6, 3, pre_transform=hide)
    assert not dataset[0].x_mask[:5].any()
    assert (dataset.city.readings[~dataset.city.mask] == 0).all()
    assert (dataset.city.readings[dataset.city.mask] < 0).any()


def test_a_pre_transform_that_makes_nan_is_refused(tmp_path):
    def spoil(data):
        data.x = data.x / 0
        return data

    with pytest.raises(ValueError, match="pre_transform: expected finite readings where mask is True"):
        CityDataset(tmp_path, "demo/riverton", pre_transform=spoil)
