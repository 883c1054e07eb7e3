"""Runs the `tsjt …` commands that a test sends, each in a process of its own, with the library imported once for all.

It never computes anything itself, so that its forks are as good as new processes. A line in holds the arguments, the
file for what is printed, and the largest file that may be written; lines out are the process's id and, when it has
ended, its exit status.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from tsjt_pyg.cli import app


def run(arguments: list[str], log: str, largest: int | None) -> None:
    with open(log, "a") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    status = 1
    try:
        app(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for line in sys.stdin:
    process = os.fork()
    if process == 0:
        run(**json.loads(line))
    sys.stdout.write(f"{process}\n")
    sys.stdout.flush()
    _, status = os.waitpid(process, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()
