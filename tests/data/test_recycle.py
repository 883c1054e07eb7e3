"""Memory is used again once nobody holds it, and never before."""

from __future__ import annotations

import gc

import pytest
import torch

from tsjt_pyg.data import City
from tsjt_pyg.data.recycle import Recycled


def test_memory_that_nobody_holds_is_used_again():
    memory = Recycled()
    addresses = {memory.empty((3, 5), torch.float32).data_ptr() for _ in range(4)}
    assert len(addresses) == 1


@pytest.mark.parametrize("hold", [lambda x: x, lambda x: x[1:, :2], lambda x: x.untyped_storage(), lambda x: x.numpy()])
def test_memory_that_somebody_holds_is_left_alone(hold):
    memory = Recycled()
    first = memory.empty((3, 5), torch.float32)
    address, held = first.data_ptr(), hold(first)
    del first
    gc.collect()
    assert memory.empty((3, 5), torch.float32).data_ptr() != address
    del held
    assert address in [tensor.data_ptr() for tensor in (memory.empty((3, 5), torch.float32) for _ in range(2))]


def test_what_a_backward_pass_needs_is_left_alone():
    memory = Recycled()
    weight = torch.ones(4, requires_grad=True)
    loss = (memory.empty((4,), torch.float32).fill_(3) * weight).sum()
    memory.empty((4,), torch.float32).fill_(0)
    loss.backward()
    assert weight.grad.tolist() == [3.0] * 4


def test_other_sizes_and_types():
    memory = Recycled()
    for shape, dtype in (((2, 3), torch.float32), ((6,), torch.bool), ((0, 4), torch.float64), ((2, 3), torch.float32)):
        tensor = memory.empty(shape, dtype)
        assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (torch.Size(shape), dtype, True)


def test_batches_from_a_file_take_the_memory_of_those_that_are_gone(make_city, tmp_path):
    city = make_city(num_steps=200)
    city.save_mapped(tmp_path / "city")
    windows = City.load(tmp_path / "city").windows(6, 3)
    addresses, kept = set(), []
    for batch in windows.batches(10, shuffle=True, drop_last=True, prefetch=0):
        addresses.add(batch.x.data_ptr())
        kept.append(batch.x.clone())
    assert len(addresses) <= 2  # one is being made while the one before is still in the loop
    held = list(windows.batches(10, shuffle=True, drop_last=True, prefetch=0))
    assert len({batch.x.data_ptr() for batch in held}) == len(held)
    for batch in held:
        assert torch.equal(batch.x, city.windows(6, 3).batch(batch.index).x)
