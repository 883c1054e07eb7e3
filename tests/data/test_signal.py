"""A city as the objects of PyG-Temporal and PyG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader

from tsjt_pyg._compat import import_temporal

import_temporal()

from torch_geometric_temporal.signal import StaticGraphTemporalSignal, temporal_signal_split  # noqa: E402


@pytest.mark.parametrize("channels", [1, 2])
def test_snapshots_are_the_windows(make_city, channels):
    city = make_city(num_channels=channels, missing=0.2)
    windows = city.windows(6, 3)
    signal = city.to_signal(6, 3)
    assert isinstance(signal, StaticGraphTemporalSignal)
    snapshots = list(signal)
    assert len(snapshots) == len(windows) == 32
    for i, snapshot in enumerate(snapshots):
        assert isinstance(snapshot, Data)
        assert snapshot.x.shape == (5, channels, 6)
        assert snapshot.y.shape == ((5, 3) if channels == 1 else (5, 2, 3))
        assert torch.equal(snapshot.x, windows.x[i].permute(1, 2, 0))
        assert torch.equal(snapshot.y.reshape(5, channels, 3), windows.y[i].permute(1, 2, 0))
        assert torch.equal(snapshot.edge_index, city.edge_index)
        assert torch.equal(snapshot.edge_attr, city.edge_weight)
        assert (snapshot.x.dtype, snapshot.y.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_snapshots_carry_the_masks(make_city, channels):
    city = make_city(num_channels=channels, missing=0.3)
    windows = city.windows(6, 3)
    for i, snapshot in enumerate(city.to_signal(6, 3)):
        assert snapshot.mask.shape == snapshot.y.shape
        assert torch.equal(snapshot.mask.bool().reshape(5, channels, 3), windows.y_mask[i].permute(1, 2, 0))
        assert torch.equal(snapshot.x_mask.bool(), windows.x_mask[i].permute(1, 2, 0))
        assert set(snapshot.mask.unique().tolist()) <= {0.0, 1.0}


def test_a_signal_can_be_looped_over_again(make_city):
    signal = make_city().to_signal(6, 3)
    first = [snapshot.x for snapshot in signal]
    second = [snapshot.x for snapshot in signal]
    assert len(first) == 32
    assert torch.equal(torch.stack(first), torch.stack(second))


def test_a_signal_is_indexed_and_sliced(make_city):
    city = make_city()
    signal = city.to_signal(6, 3)
    assert torch.equal(signal[5].x[:, 0].T, city.readings[5:11, :, 0])
    part = signal[4:7]
    assert torch.equal(torch.stack([s.x for s in part]), torch.stack([signal[i].x for i in (4, 5, 6)]))
    with pytest.raises(IndexError, match="snapshot 32 of 32"):
        signal[32]


def test_temporal_signal_split_takes_it(make_city):
    city = make_city(missing=0.2)
    signal = city.to_signal(6, 3)
    train, test = temporal_signal_split(signal, train_ratio=0.75)
    assert isinstance(train, StaticGraphTemporalSignal)
    train, test = list(train), list(test)
    assert (len(train), len(test)) == (24, 8)
    for i, snapshot in enumerate([*train, *test]):
        assert torch.equal(snapshot.x, signal[i].x)
        assert torch.equal(snapshot.mask, signal[i].mask)


def test_a_signal_holds_views(make_city):
    city = make_city()
    signal = city.to_signal(6, 3)
    assert np.shares_memory(signal.features[3], city.readings.numpy())
    assert np.shares_memory(signal.targets[3], city.readings.numpy())


@pytest.mark.parametrize("channels", [1, 2])
def test_dataset_items_are_views_of_the_windows(make_city, channels):
    city = make_city(num_channels=channels, missing=0.2)
    dataset = city.to_dataset(6, 3)
    windows = city.windows(6, 3)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 32
    item = dataset[7]
    item.validate()
    assert (item.num_nodes, item.num_edges) == (5, 5)
    assert item.x.untyped_storage().data_ptr() == city.readings.untyped_storage().data_ptr()
    assert item.y.untyped_storage().data_ptr() == city.readings.untyped_storage().data_ptr()
    assert torch.equal(item.x, windows.x[7].permute(1, 2, 0))
    assert torch.equal(item.y.reshape(5, channels, 3), windows.y[7].permute(1, 2, 0))
    assert item.mask.dtype == item.x_mask.dtype == torch.bool
    assert torch.equal(item.mask.reshape(5, channels, 3), windows.y_mask[7].permute(1, 2, 0))
    assert torch.equal(item.x_mask, windows.x_mask[7].permute(1, 2, 0))


def test_dataloader_makes_disjoint_unions(make_city):
    city = make_city(num_channels=2, missing=0.1)
    dataset = city.to_dataset(6, 3)
    batches = list(DataLoader(dataset, batch_size=5))
    assert [batch.num_graphs for batch in batches] == [5] * 6 + [2]
    batch = batches[1]
    assert batch.x.shape == (25, 2, 6)
    assert batch.mask.shape == batch.y.shape == (25, 2, 3)
    for i in range(5):
        nodes, edges = slice(5 * i, 5 * i + 5), slice(5 * i, 5 * i + 5)  # the ring has as many edges as nodes
        assert torch.equal(batch.x[nodes], dataset[5 + i].x)
        assert torch.equal(batch.edge_index[:, edges], city.edge_index + 5 * i)
        assert torch.equal(batch.edge_attr[edges], city.edge_weight)
    assert batch.batch.tolist() == [i for i in range(5) for _ in range(5)]


def test_dataset_slices_and_shuffles_as_pyg_does(make_city):
    dataset = make_city().to_dataset(6, 3)
    part = dataset[10:20]
    assert len(part) == 10
    assert torch.equal(part[0].x, dataset[10].x)
    assert sum(batch.num_graphs for batch in DataLoader(dataset.shuffle(), batch_size=8, shuffle=True)) == 32


@pytest.mark.parametrize("method", ["to_signal", "to_dataset"])
def test_windows_must_fit(make_city, method):
    with pytest.raises(ValueError, match=r"history \+ horizon: city has 40 steps here"):
        getattr(make_city(), method)(40, 1)
