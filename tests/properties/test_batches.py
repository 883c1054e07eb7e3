"""Batches of any windows, in any way, are what a loop over slices gives; so are they from a mapped city."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsjt_pyg.data import City, CityPairLoader, StandardScaler, WindowBatch, rows
from tsjt_pyg.data.mapped import write_mapped_city
from tsjt_pyg.data.pairs import shuffled_index
from tsjt_pyg.data.prefetch import prefetched

PARTS = ("x", "y", "x_mask", "y_mask", "time_of_day", "day_of_week")


@st.composite
def cities(draw) -> City:
    shape = draw(st.tuples(st.integers(2, 60), st.integers(1, 4), st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    readings = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32) + 1
    readings[rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    city = City.from_adjacency(readings, np.eye(shape[1]), interval="2h", start="2024-03-02 06:00")
    if draw(st.booleans()):  # rows that are not contiguous
        city = replace(city, readings=city.readings.mT.contiguous().mT, mask=city.mask.mT.contiguous().mT)
    return city


@st.composite
def cuts(draw, num_steps: int) -> tuple[int, int, int]:
    history = draw(st.integers(1, num_steps - 1))
    return history, draw(st.integers(1, num_steps - history)), draw(st.integers(1, num_steps + 2))


def naive(city: City, cut: tuple[int, int, int], numbers: list[int]) -> dict[str, torch.Tensor]:
    """A batch by slicing and stacking, one window at a time."""
    history, horizon, stride = cut
    windows = []
    for number in numbers:
        first = number * stride
        middle, last = first + history, first + history + horizon
        tensors = (city.readings[first:middle], city.readings[middle:last])
        tensors += (city.mask[first:middle], city.mask[middle:last])
        tensors += (city.time_of_day[first:middle], city.day_of_week[first:middle])
        windows.append(tensors)
    return {name: torch.stack(parts) for name, parts in zip(PARTS, zip(*windows, strict=True), strict=True)}


def check(batch: WindowBatch, city: City, cut: tuple[int, int, int], numbers: list[int]) -> None:
    assert batch.index.tolist() == numbers
    assert batch.edge_index is city.edge_index
    for name, expected in naive(city, cut, numbers).items():
        assert torch.equal(getattr(batch, name), expected), name


@given(data=st.data(), city=cities(), batch_size=st.integers(1, 9), shuffle=st.booleans(), copy=st.booleans())
def test_batches_are_a_loop_over_slices(data, city, batch_size, shuffle, copy):
    cut = data.draw(cuts(city.num_steps))
    drop_last, ahead = data.draw(st.booleans()), data.draw(st.sampled_from([0, 0, 0, 2]))
    windows = city.windows(*cut)
    numbers = torch.arange(len(windows))
    if shuffle:
        numbers = torch.randperm(len(windows), generator=torch.Generator().manual_seed(5))
    expected = numbers.split(batch_size)
    if drop_last and len(expected[-1]) < batch_size:
        expected = expected[:-1]
    found = windows.batches(batch_size, shuffle, drop_last, torch.Generator().manual_seed(5), copy=copy, prefetch=ahead)
    for batch, wanted in zip(found, expected, strict=True):
        check(batch, city, cut, wanted.tolist())
        if copy:
            assert all(getattr(batch, name).is_contiguous() for name in PARTS)
            storages = {getattr(batch, name).untyped_storage().data_ptr() for name in PARTS}
            assert len(storages) == len(PARTS)
            assert not storages & {t.untyped_storage().data_ptr() for t in (city.readings, city.mask)}
    if len(windows):
        some = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=6))
        check(windows.batch(torch.tensor(some)), city, cut, some)


@given(data=st.data(), city=cities())
def test_a_city_in_a_folder_is_the_city(tmp_path_factory, data, city):
    cut = data.draw(cuts(city.num_steps))
    borders = sorted(data.draw(st.lists(st.integers(1, city.num_steps), max_size=4)))
    pieces = [*zip([0, *borders], [*borders, city.num_steps], strict=True)]
    blocks = [(city.readings[a:b], city.mask[a:b]) for a, b in pieces if b > a]
    again = write_mapped_city(
        tmp_path_factory.mktemp("city") / "x",
        blocks,
        city.edge_index,
        city.edge_weight,
        channels=city.channels,
        start=city.start,
        interval=city.interval,
    )
    assert again.fingerprint() == city.fingerprint()
    assert again.missing == city.missing
    first = data.draw(st.integers(0, city.num_steps - sum(cut[:2])))
    seen, expected = again.between(first, city.num_steps), city.between(first, city.num_steps)
    windows = seen.windows(*cut)
    some = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=6))
    batch = windows.batch(torch.tensor(some))
    for name, wanted in naive(expected, cut, some).items():
        assert torch.equal(getattr(batch, name), wanted), name
    for batch in windows.batches(5, prefetch=0, copy=data.draw(st.booleans())):
        for name, wanted in naive(expected, cut, batch.index.tolist()).items():
            assert torch.equal(getattr(batch, name), wanted), name


@given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=12),
    block=st.integers(1, 300),
)
def test_blocks_are_the_rows_and_their_moments_those_of_all(data, shape, block):
    values = torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))))
    mask = torch.from_numpy(data.draw(hnp.arrays(bool, shape)))
    mask[0] = True
    blocks = list(rows.row_blocks(values, mask, block=block))
    assert torch.equal(torch.cat([one for one, _ in blocks]), values)
    assert torch.equal(torch.cat([other for _, other in blocks]), mask)
    assert all(len(one) == 1 or one.numel() <= block for one, _ in blocks)
    with pytest.MonkeyPatch.context() as patch:
        whole = StandardScaler().fit(values, mask)
        patch.setattr(rows.row_blocks, "__kwdefaults__", {"block": block})
        in_blocks = StandardScaler().fit(values, mask)
    assert torch.allclose(in_blocks.mean, whole.mean, rtol=1e-6, atol=1e-6)
    assert torch.allclose(in_blocks.std, whole.std, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    stop=st.integers(0, 12),
    ahead=st.sampled_from([0, 1, 3]),
)
def test_a_loader_goes_on_with_the_very_next_batch(sizes, batch_size, seed, stop, ahead):
    def loader(prefetch: int) -> CityPairLoader:
        windows = [
            City.from_adjacency(np.arange(n, dtype=np.float32)[:, None] + [[0, n]], np.eye(2)).windows(2, 1)
            for n in sizes
        ]
        weights = range(1, len(windows) + 1)
        return CityPairLoader(windows, windows[0], batch_size, seed, weights=weights, prefetch=prefetch)

    def taken(pairs: Iterator, number: int) -> list:
        return [next(pairs) for _ in range(number)]

    reference = [loader(0)[step] for step in range(stop + 3)]
    first = loader(ahead)
    before = iter(first)
    found = taken(before, stop)
    state = first.state_dict()
    before.close()
    second = loader(ahead)
    second.load_state_dict(state)
    after = iter(second)
    found += taken(after, 3)
    after.close()
    for one, other in zip(found, reference, strict=True):
        assert one.source_index == other.source_index
        for here, there in zip(
            one.source.tensors() + one.target.tensors(), other.source.tensors() + other.target.tensors(), strict=True
        ):
            assert torch.equal(here, there)


@given(
    windows=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 2**62), step=st.integers(0, 2**40)
)
def test_a_shuffled_index_is_that_of_whole_permutations(windows, batch_size, seed, step):
    """The order of the batches of a seed is what runs were made with: it stays."""
    wanted = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        number, at = divmod(position, windows)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        wanted.append(int(torch.randperm(windows, generator=generator)[at]))
    index = shuffled_index(windows, batch_size, step, seed)
    assert index.tolist() == wanted
    index.fill_(-1)  # a batch's numbers are its own
    assert shuffled_index(windows, batch_size, step, seed).tolist() == wanted


@given(items=st.lists(st.integers()), ahead=st.integers(1, 5))
def test_prefetching_changes_nothing(items, ahead):
    assert list(prefetched(iter(items), ahead)) == items
