"""Batches made ahead of their use by a background thread."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_DONE = object()
_running: weakref.WeakSet[_Worker] = weakref.WeakSet()


class _Worker(Generic[T]):
    """A thread that keeps up to ``ahead`` items ready."""

    def __init__(self, items: Iterator[T], ahead: int) -> None:
        self.ready: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        self.free = threading.Semaphore(ahead)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(items,), name="tsjt_pyg-prefetch", daemon=True)
        _running.add(self)
        self.thread.start()

    def _run(self, items: Iterator[T]) -> None:
        try:
            while True:
                self.free.acquire()
                if self.stopped.is_set():
                    return
                self.ready.put((next(items, _DONE), None))
        except BaseException as error:  # whatever it is, it belongs to the one who waits for the item
            self.ready.put((_DONE, error))

    def stop(self) -> None:
        """Ends the thread, after the item it may be making, and waits until it has ended."""
        self.stopped.set()
        self.free.release()
        self.thread.join()


@atexit.register
def _stop_all() -> None:
    for worker in list(_running):  # a thread that copies while the interpreter goes down brings it down
        worker.stop()


def prefetched(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """The same items in the same order, up to ``ahead`` of them made in advance by a background thread.

    The thread ends with the items, and when the consumer stops early: ``break``, an exception, Ctrl-C, ``close()``. An
    exception of the items is raised where the item would have come.

    Args:
        items: Used by the thread alone.
        ahead: At least 1; so many items are in memory besides the consumer's.

    Raises:
        ValueError: If ``ahead`` is less than 1.
    """
    if ahead < 1:
        raise ValueError(f"prefetch: expected at least 1 batch ahead, found {ahead}")
    return _consume(items, ahead)


def _consume(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    worker = _Worker(items, ahead)
    try:
        while True:
            item, error = worker.ready.get()
            if error is not None:
                raise error
            if item is _DONE:
                return
            worker.free.release()
            yield item  # type: ignore[misc]
            del item  # not kept while the next is waited for
    finally:
        worker.stop()


def on_stream(
    make: Callable[[], Iterator[T]], device: torch.device, tensors: Callable[[T], list[Tensor]], ahead: int
) -> Iterator[T]:
    """Items that a background thread makes on a CUDA device, on a stream of its own, so that copies run beside kernels.

    Args:
        make: Makes the items' iterator; called and used with the stream as the current one.
        device: A CUDA device.
        tensors: The tensors of an item, which the consumer's stream then uses.
        ahead: As in :func:`prefetched`.
    """
    stream = torch.cuda.Stream(device)

    def made() -> Iterator[tuple[T, torch.cuda.Event]]:
        items = make()
        while True:
            with torch.cuda.stream(stream):
                try:
                    item = next(items)
                except StopIteration:
                    return
                event = stream.record_event()
            yield item, event

    with closing(prefetched(made(), ahead)) as ready:
        for item, event in ready:
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in tensors(item):
                tensor.record_stream(current)
            yield item
