"""Forecasts of files of readings, once or for as long as new ones come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ..data.arguments import check_number
from ..data.atomic import atomic_path
from .saved_model import SavedModel

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


def forecast_file(saved: SavedModel, readings: Path, output: Path) -> pd.DataFrame:
    """Writes the forecast that follows a CSV of readings, whole or not at all.

    Args:
        saved: The model.
        readings: A CSV as :func:`read_readings` takes it.
        output: The CSV to write.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no CSV of readings of this city, or was written to meanwhile; names file, column and row.
    """
    before = _stamp(readings)
    if before is None:
        raise FileNotFoundError(f"readings: there is no file {readings}")
    table = read_readings(readings)
    try:
        found = saved.forecast(table)
    except ValueError as error:
        raise ValueError(f"{readings}: {error}") from error
    if _stamp(readings) != before:
        raise ValueError(f"{readings}: it was written to while it was read; write it elsewhere and rename it")
    with atomic_path(output) as temporary:
        found.to_csv(temporary)
    return found


_WAY_OUT = "of a table in another form, City.from_tables(…).to_frame().to_csv(…) makes one in this"


def read_readings(path: Path) -> pd.DataFrame:
    """A CSV of readings: the time of each row in the first column, then one column a node id.

    Raises:
        ValueError: If it cannot be read; names file, column and row.
    """
    try:
        table = pd.read_csv(path, index_col=0)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: cannot be read as CSV, with commas between columns ({reason}); {_WAY_OUT}"
        ) from error
    try:
        if table.index.dtype.kind in "iuf":  # pandas would count nanoseconds since 1970
            raise ValueError(f"found the number {table.index[0]}")
        table.index = pd.to_datetime(table.index, format="ISO8601")
    except (ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0].partition(" You might")[0].rstrip(".")
        raise ValueError(
            f"{path}: the first column must hold times such as 2024-03-04 08:05 ({reason}); {_WAY_OUT}"
        ) from error
    texts = [number for number, dtype in enumerate(table.dtypes) if dtype.kind not in "fiu"]
    for column, values in table.iloc[:, texts].items():
        bad = pd.to_numeric(values, errors="coerce").isna() & values.notna()
        if bad.any():
            found = values[bad].iloc[0]
            raise ValueError(f"{path}: column {column!r}, {table.index[bad][0]}: found {found!r}, expected a number")
    return table


def changed_files(readings: Path, every: float | None = None) -> Iterator[Path]:
    """The CSVs there are, then those that are new or were changed since.

    A file is known by its time, size and place on the disk. While it is being written (it does not end with a line
    break) it is passed over with a warning; it comes when it is whole.

    Args:
        readings: A CSV, which need not be there yet, or a folder of them (names that begin with a point are left out).
        every: Look again every so many seconds, without end. ``None``: look once.

    Raises:
        FileNotFoundError: If there is neither such a file nor its folder; if one looks once, no such file.
        ValueError: If ``every`` is not positive.
    """
    if every is not None:
        check_number("every", every, "a positive number of seconds", above=0)
    if not (readings.exists() or (every is not None and readings.parent.is_dir())):
        raise FileNotFoundError(f"readings: there is no file {readings}")
    seen: dict[Path, Stamp] = {}
    while True:
        begin = time.monotonic()
        try:
            files = sorted(_tables(readings)) if readings.is_dir() else [readings]
            stamps = {file: stamp for file in files if (stamp := _stamp(file)) is not None}
        except OSError as error:  # of a share that is away for a while
            if every is None:
                raise
            logger.warning("%s: cannot be looked at (%s)", readings, error)
            stamps = seen
        for file, stamp in stamps.items():
            if seen.get(file) == stamp:
                continue
            if every is not None and not _is_whole(file):
                logger.warning("%s: it does not end with a line break, so it is taken for half-written", file)
            else:
                yield file
        seen = stamps  # without those that are gone
        if every is None:
            return
        time.sleep(max(0.0, every - (time.monotonic() - begin)))


def _tables(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() == ".csv" and not file.name.startswith(".")]


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is_whole(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.seek(-1, 2)
            return opened.read(1) in b"\r\n"
    except OSError:  # empty, or gone
        return False
