"""A city in blocks: every node in one core, everything around a core in its halo, and no reading but theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsjt_pyg.data import City, NodeBlocks, SupportProfile
from tsjt_pyg.data.node_blocks import node_blocks


@st.composite
def cities(draw) -> City:
    """Cities with one-way roads, roads given twice, loops, parts without a way between them and lonely nodes."""
    num_nodes = draw(st.integers(1, 30))
    num_edges = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    edges = torch.from_numpy(rng.integers(0, num_nodes, (2, num_edges)))
    readings = rng.permutation(12 * num_nodes).reshape(12, num_nodes).astype(np.float32) + 1
    readings[rng.random(readings.shape) < 0.2] = np.nan
    weight = torch.from_numpy(rng.random(num_edges).astype(np.float32))
    return City.from_edge_index(readings, edges, weight, interval="6h", start="2024-03-02 06:00")


def within(city: City, nodes: set[int], hops: int) -> set[int]:
    """What can be reached from ``nodes`` over at most so many edges, in either direction: by the definition."""
    pairs = city.edge_index.T.tolist()
    for _ in range(hops):
        nodes = nodes | {b for a, b in pairs if a in nodes} | {a for a, b in pairs if b in nodes}
    return nodes


@settings(max_examples=25)
@given(cities(), st.integers(1, 31), st.integers(0, 3))
def test_cores_are_a_partition_and_halos_are_what_lies_around_them(city, block_size, num_hops):
    blocks = NodeBlocks(city, block_size, num_hops)
    cores = [block.core.tolist() for block in blocks]
    assert sorted(node for core in cores for node in core) == list(range(city.num_nodes))
    sizes = [len(core) for core in cores]
    assert len(blocks) == -(-city.num_nodes // block_size)
    assert max(sizes) <= block_size
    assert max(sizes) - min(sizes) <= 1
    for block, core in zip(blocks, cores, strict=True):
        nodes = block.nodes.tolist()
        assert nodes == sorted(set(nodes))
        assert block.core_mask.tolist() == [node in core for node in nodes]
        assert set(nodes) == within(city, set(core), num_hops)


@settings(max_examples=25)
@given(cities(), st.integers(1, 31), st.integers(0, 2))
def test_a_block_has_all_edges_between_its_nodes_and_so_all_that_touch_its_core(city, block_size, num_hops):
    edges = [
        (*ends, weight) for ends, weight in zip(city.edge_index.T.tolist(), city.edge_weight.tolist(), strict=True)
    ]
    for block in NodeBlocks(city, block_size, num_hops):
        ends = block.nodes[block.edge_index].T.tolist()
        here = [(*pair, weight) for pair, weight in zip(ends, block.edge_weight.tolist(), strict=True)]
        nodes, core = set(block.nodes.tolist()), set(block.core.tolist())
        assert here == [edge for edge in edges if edge[0] in nodes and edge[1] in nodes]  # in the city's order
        if num_hops:
            assert [edge for edge in edges if {*edge[:2]} & core] == [edge for edge in here if {*edge[:2]} & core]


@settings(max_examples=25)
@given(cities(), st.integers(1, 31), st.integers(0, 2))
def test_the_same_city_has_the_same_blocks(city, block_size, num_hops):
    one, other = (NodeBlocks(city, block_size, num_hops) for _ in range(2))
    for here, there in zip(one, other, strict=True):
        assert torch.equal(here.nodes, there.nodes)
        assert torch.equal(here.edge_index, there.edge_index)
        assert torch.equal(here.edge_weight, there.edge_weight)


@settings(max_examples=25)
@given(cities(), st.integers(1, 31), st.integers(0, 2), st.booleans())
def test_batches_and_profiles_of_a_block_are_the_columns_of_the_citys(city, block_size, num_hops, shuffle):
    windows, index = city.windows(3, 2, stride=2), torch.tensor([3, 0, 3])
    whole, support = windows.batch(index), SupportProfile(city)
    profile = support.at(windows, index)
    for block in NodeBlocks(city, block_size, num_hops):
        batch, nodes = windows.batch(index, block=block), block.nodes
        for name in ("x", "y", "x_mask"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[:, :, nodes]), name
        assert torch.equal(batch.y_mask[:, :, block.core_mask], whole.y_mask[:, :, block.core])
        assert not batch.y_mask[:, :, ~block.core_mask].any()
        for name in ("time_of_day", "day_of_week", "index"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)), name
        assert batch.edge_index is block.edge_index
        assert batch.edge_weight is block.edge_weight
        part = support.at(windows, index, nodes=nodes)
        assert torch.equal(part.values, profile.values[:, :, nodes])
        assert torch.equal(part.mask, profile.mask[:, :, nodes])
        generators = [torch.Generator().manual_seed(4) for _ in range(2)]
        drawn, all_drawn = (support.at(windows, index, 2, g, n) for g, n in zip(generators, (nodes, None), strict=True))
        assert torch.equal(drawn.values, all_drawn.values[:, :, nodes])
        passed = list(windows.batches(2, shuffle=shuffle, generator=torch.Generator().manual_seed(1), block=block))
        assert sorted(torch.cat([b.index for b in passed]).tolist()) == list(range(len(windows)))
        for b in passed:
            assert torch.equal(b.x, windows.batch(b.index).x[:, :, nodes])


def test_a_batch_of_a_block_does_not_share_memory_with_the_city(make_city):
    city = make_city(missing=0.2)
    before = city.readings.clone(), city.mask.clone()
    for block in NodeBlocks(city, 2, 1):
        batch = city.windows(3, 2).batch(torch.tensor([1]), block=block)
        for part in (batch.x, batch.y, batch.x_mask, batch.y_mask):
            part.zero_()
    assert torch.equal(city.readings, before[0])
    assert torch.equal(city.mask, before[1])


def test_a_mapped_city_gives_the_same_batches(make_city, tmp_path):
    city = make_city(missing=0.2, num_channels=2)
    mapped = City.load(city.save_mapped(tmp_path / "city"))
    for block in NodeBlocks(city, 2, 1):
        here, there = (c.windows(3, 2).batch(torch.tensor([4, 1]), block=block) for c in (city, mapped))
        for name in ("x", "y", "x_mask", "y_mask"):
            assert torch.equal(getattr(here, name), getattr(there, name))


def test_blocks_are_compact(make_city):
    """A square grid in random order: with halos of two hops, blocks see a quarter more nodes than there are."""
    side, rng = 60, np.random.default_rng(0)
    number = rng.permutation(side * side).reshape(side, side)
    right = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    down = np.stack([number[:-1].ravel(), number[1:].ravel()])
    edges = torch.from_numpy(np.concatenate([right, down], axis=1))
    city = City.from_edge_index(np.ones((2, side * side)), edges)
    blocks = NodeBlocks(city, 600, num_hops=2)
    assert sum(len(block.nodes) for block in blocks) < 1.3 * city.num_nodes
    assert "6 of at most 600 of 3600 nodes, num_hops=2: with their halos 1." in repr(blocks)
    assert repr(blocks[0]).startswith("NodeBlock(core of 600 nodes, halo of ")


def test_a_city_that_fits_into_a_batch_has_no_blocks(make_city):
    city = make_city(num_nodes=5)
    assert node_blocks(city, None, 2) is None
    assert node_blocks(city, 5, 2) is None
    blocks = node_blocks(city, 4, 2)
    assert blocks is not None
    assert len(blocks) == 2


def test_what_makes_no_blocks_is_refused(make_city):
    city = make_city()
    with pytest.raises(ValueError, match="block_size: expected at least 1 node, found 0"):
        NodeBlocks(city, 0)
    with pytest.raises(ValueError, match="block_size: expected at least 1 node, found -1"):
        node_blocks(city, -1, 2)
    with pytest.raises(ValueError, match=r"num_hops: expected 0 \(no halo\) or more, found -1"):
        NodeBlocks(city, 2, -1)


def test_blocks_of_a_city_do_not_depend_on_its_readings_or_its_steps(make_city):
    city = make_city(num_steps=40)
    part = replace(city, readings=city.readings[:9] * 2, mask=city.mask[:9])
    for here, there in zip(NodeBlocks(city, 2), NodeBlocks(part, 2), strict=True):
        assert torch.equal(here.nodes, there.nodes)
