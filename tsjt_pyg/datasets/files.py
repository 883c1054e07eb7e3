"""Files of a data set, opened with errors that say which file, and what was expected in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..data.city_file import DAMAGED, open_npz
from ..data.table_file import Table, line_of, read_text

if TYPE_CHECKING:
    from .cards import Card


def existing(folder: Path, card: Card, name: str) -> Path:
    """The file ``folder/name``, or the first of those that are as good by the card.

    Args:
        folder: Where the files lie.
        card: What belongs there.
        name: Any of the names of the file on the card.

    Raises:
        FileNotFoundError: If none is there; the message says where it belongs and which command says where to get it.
    """
    found = present(folder, card, name)
    if found is None:
        first, *others = card.file(name).names
        also = f" (or, instead of it, {' or '.join(others)})" if others else ""
        raise FileNotFoundError(
            f"{folder / first}: this file is missing{also}. Put it there (`tsjt cities {card.page}` says where to get "
            "it), or choose another folder of cities with root= (--root) or the environment variable TSJT_CITIES"
        )
    return found


def present(folder: Path, card: Card, name: str) -> Path | None:
    """As :func:`existing`, but ``None`` if none is there."""
    return next(iter(card.file(name).paths(folder)), None)


def check_name(name: str, known: Iterable[str]) -> None:
    """Refuses a name of a city that a reader does not know.

    Raises:
        ValueError: The message lists those it knows.
    """
    names = list(known)
    if name not in names:
        raise ValueError(f"name: expected {' or '.join(map(repr, names))}, found {name!r}")


def read_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of an ``.npz``; pickled objects, and names that lead out of the archive, are refused.

    Raises:
        ValueError: If the file is damaged, or an array is absent or pickled.
    """
    try:
        with open_npz(path) as arrays:
            for name in arrays.files:
                if ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")):
                    raise ValueError(f"array {name!r} has a path out of the archive for a name; get the file anew")
            absent = [key for key in keys if key not in arrays]
            if absent:
                raise ValueError(f"array {absent[0]!r} is absent, found {sorted(arrays)}")
            return {key: arrays[key] for key in keys}
    except DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error})") from error


def read_npy(path: Path, mapped: bool = False) -> np.ndarray:
    """The array of an ``.npy``; pickled objects are refused.

    Args:
        path: The file.
        mapped: Leave it on disk until it is indexed.

    Raises:
        ValueError: If the file is damaged, pickled, or no ``.npy``.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as .npy ({error})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: cannot be read as .npy (it is an archive of arrays, .npz)")
    return array


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: If it is damaged or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_csv(
    path: Path,
    *columns: str,
    header: bool = True,
    text: Sequence[str] = (),
    names: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A CSV file of numbers.

    Args:
        path: The file.
        *columns: Columns it must have.
        header: Whether the first line names the columns.
        text: Columns whose fields stay text, ids for example; none of these fields may be empty.
        names: Names of the columns of a file without a header.
        only: Columns to read, where they are there; the others may hold anything. Default: all.

    Raises:
        ValueError: If it is ragged, empty, holds text or lacks a column; the message names the column and line.
    """
    table = read_text(path, {name.lower() for name in text}, header, names, only)
    absent = [column for column in columns if column not in table.columns]
    if absent:
        found = [*table.columns] if only is None else csv_header(path)
        raise ValueError(f"{path}: column {absent[0]!r} is absent, found {found}")
    if table.empty:
        raise ValueError(f"{path}: found a header and no rows")
    checked = Table(table, str(path), lambda row: f"line {line_of(path, row, header)}")
    for column in table.columns:
        if column in text:
            checked.refuse(column, table[column].isna().to_numpy(), "expected an id")
        elif table[column].dtype.kind not in "fiu":
            table[column] = checked.numbers(column)
    return table


def csv_header(path: Path) -> list[str]:
    """The names in the first line of a CSV file."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return next(csv.reader([next(lines, "").rstrip("\r\n")]), [])
