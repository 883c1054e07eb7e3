"""Files of a data set, opened with errors that say which file, and what was expected in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.city_file import DAMAGED, open_npz
from ..data.table_file import Table, line_of, read_text


def existing(folder: Path, name: str, card: str) -> Path:
    """The file ``folder/name``.

    Raises:
        FileNotFoundError: If it is not there; the message says where it belongs and names the card that says where to
            get it.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this file is missing. Put it there (the card datasets/{card}.md says where to get it), or choose "
            "another folder of cities with root= (--root) or the environment variable TSJT_CITIES"
        )
    return path


def read_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of an ``.npz``; pickled objects are refused.

    Raises:
        ValueError: If the file is damaged, or an array is absent or pickled.
    """
    try:
        with open_npz(path) as arrays:
            absent = [key for key in keys if key not in arrays]
            if absent:
                raise ValueError(f"array {absent[0]!r} is absent, found {sorted(arrays)}")
            return {key: arrays[key] for key in keys}
    except DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error})") from error


def read_csv(
    path: Path, *columns: str, header: bool = True, text: Sequence[str] = (), names: Sequence[str] | None = None
) -> pd.DataFrame:
    """A CSV file of numbers.

    Args:
        path: The file.
        *columns: Columns it must have.
        header: Whether the first line names the columns.
        text: Columns whose fields stay text, ids for example; none of these fields may be empty.
        names: Names of the columns of a file without a header.

    Raises:
        ValueError: If it is ragged, empty, holds text or lacks a column; the message names the column and line.
    """
    table = read_text(path, {name.lower() for name in text}, header, names)
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise ValueError(f"{path}: column {absent[0]!r} is absent, found {[*table.columns]}")
    if table.empty:
        raise ValueError(f"{path}: found a header and no rows")
    checked = Table(table, str(path), lambda row: f"line {line_of(path, row, header)}")
    for column in table.columns:
        if column in text:
            checked.refuse(column, table[column].isna().to_numpy(), "expected an id")
        elif table[column].dtype.kind not in "fiu":
            table[column] = checked.numbers(column)
    return table
