"""Windows: views, batches, and where they end."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(("history", "horizon", "stride"), [(12, 6, 1), (1, 1, 1), (5, 2, 3), (20, 20, 7), (4, 3, 50)])
def test_windows_against_slices(make_city, history, horizon, stride):
    city = make_city(num_steps=40, num_channels=2, missing=0.2)
    windows = city.windows(history, horizon, stride)
    starts = range(0, 40 - history - horizon + 1, stride)
    assert len(windows) == len(starts)
    assert windows.x.shape == (len(starts), history, 5, 2)
    assert windows.y.shape == (len(starts), horizon, 5, 2)
    for i, first in enumerate(starts):
        middle = first + history
        assert torch.equal(windows.x[i], city.readings[first:middle])
        assert torch.equal(windows.y[i], city.readings[middle : middle + horizon])
        assert torch.equal(windows.x_mask[i], city.mask[first:middle])
        assert torch.equal(windows.y_mask[i], city.mask[middle : middle + horizon])


def test_nothing_is_copied(make_city):
    city = make_city()
    windows = city.windows(6, 3)
    assert windows.x.data_ptr() == city.readings.data_ptr()
    assert windows.y.data_ptr() == city.readings[6].data_ptr()
    assert windows.x_mask.data_ptr() == city.mask.data_ptr()
    assert windows.y_mask.data_ptr() == city.mask[6].data_ptr()


def test_a_batch_gathers_windows_with_their_time_and_roads(make_city):
    city = make_city(num_steps=60, start="2024-03-02 22:00", interval="1h", missing=0.1)
    windows = city.windows(5, 2, stride=2)
    index = torch.tensor([7, 0, 7])
    batch = windows.batch(index)
    assert len(batch) == 3
    for name in ("x", "y", "x_mask", "y_mask"):
        assert torch.equal(getattr(batch, name), getattr(windows, name)[index])
    assert (batch.time_of_day[1] * 24).tolist() == pytest.approx([22, 23, 0, 1, 2], abs=1e-5)
    assert (batch.time_of_day[0] * 24).tolist() == pytest.approx([12, 13, 14, 15, 16], abs=1e-5)
    assert batch.day_of_week.dtype == torch.int64
    assert batch.day_of_week[1].tolist() == [5, 5, 6, 6, 6]  # the 2nd of March 2024 is a Saturday
    assert batch.day_of_week[0].tolist() == [6] * 5
    assert batch.city == city.name
    assert batch.edge_index is city.edge_index
    assert batch.edge_weight is city.edge_weight
    assert torch.equal(batch.index, index)


def test_batches_pass_over_each_window_once(make_city):
    windows = make_city().windows(6, 3)
    assert len(windows) == 32
    in_order = [batch.index for batch in windows.batches(10)]
    assert [len(index) for index in in_order] == [10, 10, 10, 2]
    assert torch.cat(in_order).tolist() == list(range(32))
    assert [len(batch) for batch in windows.batches(10, drop_last=True)] == [10, 10, 10]
    assert [len(batch) for batch in windows.batches(16, drop_last=True)] == [16, 16]


def test_shuffling_follows_the_generator(make_city):
    windows = make_city().windows(6, 3)

    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([b.index for b in windows.batches(10, shuffle=True, generator=generator)]).tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(32))


def test_no_window_crosses_the_border(make_city):
    city = make_city(num_steps=96, interval="1h")
    visible, test = city.few_shot(2)
    assert visible.windows(12, 6).y.max() <= city.readings[:48].max()
    later = set(city.readings[48:].flatten().tolist())
    assert not later & set(visible.windows(12, 6).y.flatten().tolist())
    earlier = set(city.readings[:48].flatten().tolist())
    assert not earlier & set(test.windows(12, 6).x.flatten().tolist())


def test_a_batch_moves_to_a_device(make_city):
    batch = make_city(name="Ede").windows(6, 3).batch(torch.tensor([1])).to("meta")
    assert {value.device.type for name, value in vars(batch).items() if name not in ("city", "block")} == {"meta"}
    assert batch.city == "Ede"
    assert batch.x.shape == (1, 6, 5, 1)


def test_a_batch_does_not_follow_changes_of_the_readings(make_city):
    city = make_city()
    batch = city.windows(6, 3).batch(torch.tensor([0]))
    before = batch.x.clone()
    city.readings.zero_()
    assert torch.equal(batch.x, before)


@pytest.mark.parametrize("arguments", [{}, {"shuffle": True}, {"copy": False}, {"prefetch": 2}])
def test_batches_arrive_on_their_device(make_city, arguments):
    windows = make_city().windows(6, 3)
    batches = list(windows.batches(10, device="meta", **arguments))
    assert [batch.x.shape for batch in batches] == [(10, 6, 5, 1)] * 3 + [(2, 6, 5, 1)]
    assert {tensor.device.type for batch in batches for tensor in batch.tensors()} == {"meta"}
    assert batches[0].edge_index is batches[3].edge_index  # the road network is moved once
    assert windows.batch(torch.tensor([1]), device="meta").y.device.type == "meta"
    assert windows.batch(torch.tensor([1]), device="cpu").y.device.type == "cpu"


def test_batches_in_order_may_be_views(make_city):
    city = make_city()
    windows = city.windows(6, 3)
    first, second, *_ = windows.batches(10, copy=False)
    assert first.x.data_ptr() == city.readings.data_ptr()
    assert second.y_mask.data_ptr() == city.mask[16].data_ptr()
    for batch in windows.batches(10):  # and are not unless asked for
        assert batch.x.untyped_storage().data_ptr() != city.readings.untyped_storage().data_ptr()


def test_the_order_is_drawn_when_the_loop_begins_and_in_its_thread(make_city):
    """The global generator of torch is not touched from the background."""
    windows = make_city().windows(6, 3)
    orders = []
    for prefetch in (0, 3):
        torch.manual_seed(4)
        batches = windows.batches(10, shuffle=True, prefetch=prefetch)
        next(batches)
        orders.append(torch.rand(3).tolist())
        batches.close()
    assert orders[0] == orders[1]


def test_windows_are_pickled_without_their_copies(make_city):
    windows = make_city(num_steps=2000).windows(100, 100)
    pickled = pickle.dumps(windows)
    assert len(pickled) < 2000 * 5 * 5 * 3
    again = pickle.loads(pickled)
    index = torch.tensor([7, 1700])
    assert torch.equal(again.batch(index).x, windows.batch(index).x)


def test_repr(make_city):
    assert repr(make_city(name="Ede").windows(6, 3)) == "Windows(32 of 'Ede', history=6, horizon=3)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "history: expected at least 1 step, found 0"),
        ((1, 0), "horizon: expected at least 1 step, found 0"),
        ((1, 1, 0), "stride: expected at least 1 step, found 0"),
        ((30, 11), r"history \+ horizon: Ede has 40 steps here, fewer than the 30 \+ 11 of one window; shorten"),
    ],
)
def test_windows_must_fit(make_city, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_city(name="Ede").windows(*arguments)
    assert len(make_city().windows(30, 10)) == 1


def test_a_batch_has_windows(make_city):
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        next(make_city().windows(6, 3).batches(0))


def test_no_batches_before_the_first(make_city):
    with pytest.raises(ValueError, match="prefetch: expected 0 or more batches ahead, found -1"):
        next(make_city().windows(6, 3).batches(4, prefetch=-1))


@pytest.mark.parametrize("index", [[-1], [0, 32]])
def test_a_window_that_is_not_there(make_city, index):
    with pytest.raises(IndexError, match=r"index: expected windows 0 to 31, found"):
        make_city().windows(6, 3).batch(torch.tensor(index))


def test_an_empty_batch(make_city):
    assert make_city().windows(6, 3).batch(torch.tensor([], dtype=torch.int64)).x.shape == (0, 6, 5, 1)


def test_views_cost_no_memory(make_city):
    windows = make_city(num_steps=300).windows(100, 100)
    stored = windows.x.untyped_storage().nbytes()
    assert stored == 300 * 5 * 4 < np.prod(windows.x.shape) * 4
