"""Two processes of one gloo group, which carry out work that a test hands them."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed, multiprocessing

WORLD_SIZE = 2
# A collective that one rank never joins fails on the other after the first; whatever else hangs is ended by the second.
COLLECTIVE_SECONDS = 60
RUN_SECONDS = 180
# The processes did not find each other, which says nothing of what they were to do: they are started anew, once.
NEVER_MET = ("connectFullMesh failed", "in init_process_group")
TOLERANCE = {"rtol": 0.0, "atol": 1e-6}

Work = Callable[[int], Any]


class TwoProcesses:
    """Starts the processes when they are first needed, and again after a run that hung or killed one of them.

    Args:
        folder: where the processes find each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks: list[tuple[Any, Connection]] = []
        self._runs = 0

    def run(self, work: Work) -> list[Any]:
        """What ``work(rank)`` returns in each process; an exception in one of them is an AssertionError here."""
        results, complaints = self._attempt(work)
        if any(sign in complaint for complaint in complaints for sign in NEVER_MET):
            results, complaints = self._attempt(work)
        if complaints:
            raise AssertionError("\n".join(complaints))
        return results

    def _attempt(self, work: Work) -> tuple[list[Any], list[str]]:
        if not self._ranks:
            self._start()
        self._runs += 1
        for _, connection in self._ranks:
            connection.send_bytes(pickle.dumps((work, str(self._folder / f"run{self._runs}"))))
        deadline = time.monotonic() + RUN_SECONDS
        results, complaints = [], []
        for rank, (process, connection) in enumerate(self._ranks):
            try:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer after {RUN_SECONDS} s")
                succeeded, result = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError) as error:  # TimeoutError is an OSError
                process.join(1)
                complaints.append(f"rank {rank}: {error!r}, exit code {process.exitcode}")
            else:
                results.append(result)
                if not succeeded:
                    complaints.append(f"rank {rank}: {result}")
        if complaints:
            self.stop()  # whatever state they are in
        return results, complaints

    def stop(self) -> None:
        for process, connection in self._ranks:
            connection.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(WORLD_SIZE):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, there), daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))


def _serve(rank: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        # Plain bytes both ways: torch would hand over tensors as shared memory, which dies with the process.
        work, meeting_point = pickle.loads(request)
        try:
            distributed.init_process_group(
                "gloo",
                init_method=f"file://{meeting_point}",
                rank=rank,
                world_size=WORLD_SIZE,
                timeout=timedelta(seconds=COLLECTIVE_SECONDS),
            )
            answer = (True, work(rank))
        except BaseException:  # torch.distributed.checkpoint raises such
            answer = (False, traceback.format_exc())
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
        connection.send_bytes(pickle.dumps(answer))


@contextmanager
def launched(rank: int | None) -> Iterator[None]:
    """As if torchrun had started this process; the process group is there already."""
    if rank is None:
        yield
        return
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "tests",
        "ACCELERATE_USE_CPU": "true",
    }
    with mock.patch.dict(os.environ, variables):
        yield


def assert_equals_one_process(two_processes: TwoProcesses, work: Callable[[int | None], Any]) -> list[Any]:
    """What both ranks returned, which must be the same, and what one process did: outcomes of distributed_runs."""
    outcomes, alone = two_processes.run(work), work(None)
    assert_ranks_agree(outcomes)
    assert_same(outcomes[0], alone)
    return [*outcomes, alone]


def assert_ranks_agree(outcomes: list[Any]) -> None:
    for name, weights in outcomes[0].weights.items():
        assert torch.equal(weights, outcomes[1].weights[name]), name
    assert outcomes[0].stats == outcomes[1].stats


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual.weights, expected.weights, **TOLERANCE)
    assert actual.stats == pytest.approx(expected.stats, rel=1e-6, abs=1e-6)
