"""Many independent runs: beside each other, on a cluster, kept when finished and named when failed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from joblib.externals import loky
from joblib.externals.loky.process_executor import BrokenProcessPool

from ..training import Strategy
from .details import Arrays, details_file, save_details
from .table import RunFailure, RunRecord

logger = logging.getLogger(__name__)

KEPT = "runs.jsonl"
"""The file of a comparison's folder that holds the finished runs."""

CONNECT_SECONDS = 10
"""That a Dask scheduler has to answer."""

Task = tuple[Strategy, int]
"""A strategy and a seed."""


class FinishedRun(NamedTuple):
    """A run's record and its details (:mod:`tsjt_pyg.evaluation.details`)."""

    record: RunRecord
    details: Arrays


Run = Callable[[Any, Strategy, int], FinishedRun]
"""Called with what all runs share, a strategy and a seed."""

_one_at_a_time = threading.Lock()  # a run sets torch's seed and threads, which the threads of a process share


def run_all(run: Run, shared: Any, tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, FinishedRun | RunFailure]]:
    """The outcome of every task with its number, in the order in which they finish.

    The runs are given to ``jobs`` processes, or, within ``joblib.parallel_config("dask")``, to the workers of that
    cluster, which get ``shared`` once. A run that raises an exception, or whose process is killed, is a
    :class:`~tsjt_pyg.evaluation.table.RunFailure`. Where a process was killed, the runs that may have been in it are
    repeated one at a time, so that the culprit is known. (Dask tries on other workers first, as often as its setting
    ``distributed.scheduler.allowed-failures`` says.)

    Args:
        run: What a task does; processes must be able to import it.
        shared: What all tasks need.
        tasks: Strategies and seeds.
        jobs: Processes, where there is no cluster.
    """
    client = dask_client()
    waiting = dict(enumerate(tasks))

    def outcomes(numbers: Sequence[int], jobs: int) -> Iterator[tuple[int, FinishedRun | RunFailure | None]]:
        some = {number: waiting[number] for number in numbers}
        if client is None:
            yield from _outcomes(loky.get_reusable_executor(max_workers=jobs, timeout=300), run, shared, some)
            return
        # Anew each time: what a cluster was given is lost with the last worker that holds it.
        [there] = client.scatter([shared], hash=False, broadcast=True)
        # The futures of the client, not joblib.Parallel: that waits forever for a run whose worker was killed.
        yield from _outcomes(client.get_executor(pure=False), run, there, some)

    while waiting:
        killed, before = [], len(waiting)
        for number, outcome in outcomes(list(waiting), jobs):
            if outcome is None:
                killed.append(number)
            else:
                del waiting[number]
                yield number, outcome
        # In a pool of processes all that had not finished are lost; the first ones were running.
        suspects = sorted(killed)[: jobs if client is None else None]
        if not suspects and len(waiting) == before:
            suspects = list(waiting)[:1]
        for number in suspects:
            alone = dict(outcomes([number], 1)).get(number)
            strategy, seed = waiting.pop(number)
            yield number, alone or RunFailure(strategy.name, seed, "its process was killed (out of memory?)")


def dask_client() -> Any | None:
    """The Dask client of ``with joblib.parallel_config("dask")``; None outside of it."""
    return getattr(joblib.parallel.get_active_backend()[0], "client", None)


@contextmanager
def dask_cluster(address: str) -> Iterator[None]:
    """Within it, runs go to the Dask cluster whose scheduler has this address.

    Raises:
        ImportError: If Dask is not installed.
        OSError: If nothing answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"dask: it is not installed here ({error}); pip install 'tsjt-pyg[dask]'") from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(
            f"dask: no scheduler answers at {address!r} ({error}); expected an address such as tcp://host:8786, which "
            "`dask scheduler` prints"
        ) from error
    with client, joblib.parallel_config("dask", client=client):
        yield


def _outcomes(
    executor: Executor, run: Run, shared: Any, tasks: Mapping[int, Task]
) -> Iterator[tuple[int, FinishedRun | RunFailure | None]]:
    """The outcomes of ``tasks``; None where a process was killed that may have been the run's, and nothing for runs of
    a cluster that lost what they need."""
    with warnings.catch_warnings():
        # A worker that has grown is replaced by a new one; nothing is lost, so nobody needs to hear of it.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        futures = {executor.submit(attempt, run, shared, *task): number for number, task in tasks.items()}
        try:
            for future in as_completed(futures):
                number = futures[future]
                try:
                    yield number, future.result()
                except CancelledError:
                    continue
                except Exception as error:
                    strategy, seed = tasks[number]
                    died = _process_died(error)
                    yield number, None if died else RunFailure(strategy.name, seed, _described(error))
        except BaseException:  # Ctrl-C, or who asked for the outcomes went away
            for future in futures:
                future.cancel()
            if isinstance(executor, loky.ProcessPoolExecutor):
                executor.shutdown(kill_workers=True)
            raise


def _process_died(error: BaseException) -> bool:
    dask = sys.modules.get("distributed")
    return isinstance(error, BrokenProcessPool) or (dask is not None and isinstance(error, dask.KilledWorker))


def attempt(run: Run, shared: Any, strategy: Strategy, seed: int) -> FinishedRun | RunFailure:
    """What a run found, or what went wrong."""
    try:
        with _one_at_a_time:
            found = run(shared, strategy, seed)
        as_json(found.record)
    except Exception as error:
        return RunFailure(strategy.name, seed, _described(error), traceback.format_exc())
    return found


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def as_json(record: RunRecord) -> str:
    """One line.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(asdict(record), allow_nan=False)


class KeptRuns:
    """Finished runs in a folder, a line each of one file, and a file each of details: a killed sweep loses those only
    that were running.

    A line that was not written to its end, or is damaged, counts as not there, and so does a run without its details.

    Args:
        folder: Created with the first run; ``None``: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._records: dict[str, RunRecord] = {}
        if folder is None or not (file := folder / KEPT).is_file():
            return
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                content = json.loads(line)
                self._records[content["key"]] = RunRecord.from_dict(content["run"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: line %d is no finished run, so it counts as not there", file, number)

    def get(self, key: str) -> RunRecord | None:
        """The run of this key, if it is there."""
        record = self._records.get(key)
        if record is None or self.folder is None or not details_file(self.folder, key).is_file():
            return None
        return record

    def add(self, key: str, record: RunRecord, details: Arrays) -> None:
        """Writes a finished run through to the disk, its details first.

        Raises:
            OSError: If it cannot be written; names the folder and the way to go on.
        """
        if self.folder is None:
            return
        target = self.folder / KEPT
        line = f'{{"key": "{key}", "run": {as_json(record)}}}\n'.encode()
        try:
            save_details(self.folder, key, details)
            with target.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # the last one was not written to its end
                        line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                f"{self.folder}: a finished run cannot be written there ({error.strerror or error}); mend that, and "
                "the same comparison goes on from the runs that are finished"
            ) from error


def run_key(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a run's result depends on, this package's code included."""
    text = json.dumps({**settings, "code": _code()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
