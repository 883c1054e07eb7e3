"""What holds for every city, whatever its readings."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsjt_pyg.data import City, StandardScaler
from tsjt_pyg.data.clean import clean_readings
from tsjt_pyg.data.graph import edges_from_positions, gaussian_kernel
from tsjt_pyg.data.pairs import shuffled_index

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
garbage = st.sampled_from([0.0, 1e30, -7.0, np.inf, -np.inf, np.nan])
moderate = st.floats(-1e4, 1e4, width=32)


def numbered(num_steps: int, num_nodes: int = 2) -> City:
    """Every reading is the number of its step."""
    readings = np.repeat(np.arange(num_steps, dtype=np.float32), num_nodes).reshape(num_steps, num_nodes)
    return City.from_adjacency(readings, np.eye(num_nodes), interval="2h")


@given(data=st.data(), shape=shapes)
def test_what_is_not_observed_is_zero_and_the_rest_as_given(data, shape):
    readings = data.draw(hnp.arrays(np.float32, shape, elements=st.one_of(moderate, st.just(np.nan))))
    clean = clean_readings(readings)
    assert np.array_equal(clean.mask.numpy(), ~np.isnan(readings))
    assert np.array_equal(clean.readings.numpy(), np.nan_to_num(readings))


@given(data=st.data(), shape=shapes)
def test_garbage_under_the_mask_changes_nothing(data, shape):
    mask = data.draw(hnp.arrays(bool, shape))
    readings = data.draw(hnp.arrays(np.float32, shape, elements=moderate))
    spoiled = np.where(mask, readings, data.draw(hnp.arrays(np.float32, shape, elements=garbage)))
    one, other = clean_readings(readings, mask), clean_readings(spoiled.astype(np.float32), mask)
    assert torch.equal(one.readings, other.readings)
    assert torch.equal(one.mask, other.mask)

    spoiled, readings, mask = (torch.tensor(a) for a in (spoiled, readings, mask))
    mask[0, 0] = True  # a channel needs one observed entry
    spoiled[0, 0] = readings[0, 0]
    clean, dirty = StandardScaler().fit(readings, mask), StandardScaler().fit(spoiled, mask)
    assert torch.equal(clean.mean, dirty.mean)
    assert torch.equal(clean.std, dirty.std)
    assert torch.equal(clean.transform(readings, mask), clean.transform(spoiled, mask))


@given(values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=moderate))
def test_scaling_there_and_back(values):
    readings = torch.tensor(values)
    scaler = StandardScaler().fit(readings)
    back = scaler.inverse_transform(scaler.transform(readings))
    assert torch.allclose(back, readings, rtol=1e-4, atol=1e-4 * float(readings.abs().max()) + 1e-6)


@given(
    num_steps=st.integers(4, 80),
    days=st.floats(0.05, 6),
    history=st.integers(1, 12),
    horizon=st.integers(1, 12),
    stride=st.integers(1, 5),
)
def test_no_window_crosses_the_border(num_steps, days, history, horizon, stride):
    city = numbered(num_steps)
    border = round(days * 12)
    if not 0 < border < num_steps:
        return
    visible, test = city.few_shot(days)
    assert visible.num_steps == border
    if visible.num_steps >= history + horizon:
        assert visible.windows(history, horizon, stride).y.max() <= border - 1
    if test.num_steps >= history + horizon:
        assert test.windows(history, horizon, stride).x.min() == border


@given(extra=st.integers(0, 30), history=st.integers(1, 8), horizon=st.integers(1, 8), nodes=st.integers(1, 3))
def test_windows_together_are_the_readings(extra, history, horizon, nodes):
    city = numbered(history + horizon + extra, nodes)
    windows = city.windows(history, horizon)
    assert len(windows) == extra + 1
    first, last = windows.x[:, 0], torch.cat([windows.x[-1, 1:], windows.y[-1]])
    assert torch.equal(torch.cat([first, last]), city.readings)
    both = torch.cat([windows.x, windows.y], dim=1)[..., 0, 0]
    assert torch.equal(both, torch.arange(extra + 1).unsqueeze(1) + torch.arange(history + horizon))


@given(extra=st.integers(0, 30), stride=st.integers(1, 6), batch_size=st.integers(1, 9))
def test_batches_are_the_views(extra, stride, batch_size):
    windows = numbered(7 + extra).windows(4, 3, stride)
    batches = list(windows.batches(batch_size))
    assert torch.equal(torch.cat([batch.x for batch in batches]), windows.x)
    assert torch.equal(torch.cat([batch.y for batch in batches]), windows.y)


@given(
    windows=st.integers(1, 20), batch_size=st.integers(1, 25), seed=st.integers(0, 2**40), first=st.integers(0, 1000)
)
def test_a_pass_has_each_window_once(windows, batch_size, seed, first):
    steps = range(first * windows, first * windows + windows)  # their windows fill batch_size whole passes
    index = torch.cat([shuffled_index(windows, batch_size, step, seed) for step in steps])
    passes = index.reshape(batch_size, windows).sort(dim=1).values
    assert torch.equal(passes, torch.arange(windows).expand_as(passes))


@given(metres=hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.5, 1e5)))
def test_nearer_weighs_more_and_some_road_always_counts(metres):
    weight = gaussian_kernel(metres)
    assert ((weight >= 0) & (weight <= 1)).all()
    assert (np.diff(weight[np.argsort(metres)]) <= 0).all()
    assert weight.max() >= np.exp(-1) * (1 - 1e-9)
    assert np.allclose(weight, gaussian_kernel(metres * 3.7))  # the unit does not matter


@given(
    place=hnp.arrays(
        np.float64,
        st.tuples(st.integers(2, 15), st.just(2)),
        elements=st.floats(-80, 80),
        unique=True,
        fill=st.nothing(),
    ),
    k=st.integers(1, 20),
)
def test_neighbours_are_mutual_and_enough(place, k):
    edges = edges_from_positions(torch.tensor(place), k, sigma=1e9)
    pairs = set(map(tuple, edges.edge_index.T.tolist()))
    assert len(pairs) == edges.edge_index.shape[1]
    assert all((j, i) in pairs and i != j for i, j in pairs)
    assert torch.bincount(edges.edge_index[0], minlength=len(place)).min() >= min(k, len(place) - 1)


@given(data=st.data(), num_nodes=st.integers(1, 6))
def test_edges_are_the_adjacency(data, num_nodes):
    weights = st.one_of(st.just(0.0), st.floats(0.125, 8, width=32))
    adjacency = data.draw(hnp.arrays(np.float32, (num_nodes, num_nodes), elements=weights))
    order = data.draw(st.permutations(range(num_nodes)))
    city = City.from_adjacency(np.ones((2, num_nodes)), adjacency, node_ids=order)
    matrix = torch.zeros(num_nodes, num_nodes)
    matrix[tuple(city.edge_index)] = city.edge_weight
    assert np.array_equal(matrix.numpy(), adjacency)
    undirected = city.to_undirected()
    matrix = torch.zeros(num_nodes, num_nodes)
    matrix[tuple(undirected.edge_index)] = undirected.edge_weight
    assert np.array_equal(matrix.numpy(), np.maximum(adjacency, adjacency.T))


@settings(max_examples=15)
@given(data=st.data(), shape=shapes)
def test_files_give_back_the_city(tmp_path_factory, data, shape):
    readings = data.draw(hnp.arrays(np.float32, shape, elements=st.one_of(moderate, st.just(np.nan))))
    name = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
    city = City.from_adjacency(readings, np.eye(shape[1]), name=name, node_ids=[f"{name}{i}" for i in range(shape[1])])
    again = City.load(city.save(tmp_path_factory.mktemp("city") / "x.npz"))
    assert again.name == name
    assert again.fingerprint() == city.fingerprint()
