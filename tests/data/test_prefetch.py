"""What a background thread makes ahead: the same items in the same order, and no thread that outlives its loop."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count, islice

import pytest
import torch

from tsjt_pyg.data.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tsjt_pyg-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_the_same_items_in_the_same_order(ahead):
    assert list(prefetched(iter(range(20)), ahead)) == list(range(20))
    assert list(prefetched(iter([]), ahead)) == []
    assert list(prefetched(iter([None, None]), ahead)) == [None, None]


def test_another_thread_makes_them():
    makers = list(prefetched((threading.current_thread() for _ in range(3)), 1))
    assert len(set(makers)) == 1
    assert makers[0] is not threading.current_thread()


def test_no_more_are_made_than_asked_for():
    made = threading.Semaphore(0)
    numbers = []

    def items() -> Iterator[int]:
        for number in count():
            numbers.append(number)
            made.release()
            yield number

    ready = prefetched(items(), 3)
    next(ready)
    for _ in range(4):
        assert made.acquire(timeout=10)  # one was taken, three are made without being asked for
    assert not made.acquire(timeout=0.1)
    next(ready)
    assert made.acquire(timeout=10)
    ready.close()
    assert numbers == [0, 1, 2, 3, 4]


def test_an_exception_comes_where_the_item_would_have():
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    ready = prefetched(items(), 4)
    assert [next(ready), next(ready)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ready)
    assert list(ready) == []


def test_a_break_ends_the_thread():
    for number in prefetched(count(), 2):
        if number == 3:
            break
    assert threads() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_of_the_consumer_ends_the_thread(error):
    def consume() -> None:
        for number in prefetched(count(), 2):
            assert threads()
            if number == 3:
                raise error

    with pytest.raises(error):
        consume()
    assert threads() == []


def test_items_are_closed_with_the_thread():
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.set()

    list(islice(prefetched(items(), 2), 3))
    assert closed.wait(timeout=10)


def test_at_least_one_ahead():
    with pytest.raises(ValueError, match="prefetch: expected at least 1 batch ahead, found 0"):
        prefetched(iter([]), 0)


INTERRUPTED = """
import itertools, os, signal, threading, torch
from tsjt_pyg.data.prefetch import prefetched
def items():
    yield torch.ones(2)
    os.kill(os.getpid(), signal.SIGINT)
    if {forever}:
        threading.Event().wait({wait})
    yield from (torch.ones(2) for _ in itertools.count())
kept = prefetched(items(), 2)  # in a frame that lives until the interpreter ends
for item in kept:
    pass
"""


@pytest.mark.parametrize("waiting", [False, True])
def test_ctrl_c_ends_the_process(waiting):
    """Also while the consumer waits for an item, and where something still holds the loop."""
    code = INTERRUPTED.format(forever=waiting, wait=0.5)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
    assert "Fatal" not in done.stderr
    assert "terminate" not in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("shuffle", "copy"), [(False, True), (False, False), (True, True)])
def test_batches_on_a_gpu_are_those_of_the_cpu(make_city, shuffle, copy):
    windows = make_city(num_steps=300, missing=0.2).windows(12, 6)

    def batches(**arguments):
        generator = torch.Generator().manual_seed(1)
        return windows.batches(16, shuffle=shuffle, generator=generator, copy=copy, **arguments)

    for prefetch in (None, 0, 3):
        number = 0
        for here, there in zip(batches(), batches(device="cuda", prefetch=prefetch), strict=True):
            torch.cuda._sleep(100_000)  # kernels that read a batch run behind the copies of the next
            for one, other in zip(here.tensors(), there.tensors(), strict=True):
                assert other.device.type == "cuda"
                assert torch.equal(one, other.clone().cpu())
            number += 1
        assert number == 18


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_city_on_the_gpu_is_gathered_there(make_city):
    city = make_city(num_steps=100, missing=0.2)
    index = torch.tensor([3, 0, 3, 50])
    here, there = city.windows(12, 6).batch(index), city.to("cuda").windows(12, 6).batch(index)
    for one, other in zip(here.tensors(), there.tensors(), strict=True):
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())
