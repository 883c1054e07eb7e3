"""Files of a data set, opened with errors that say which file, and what was expected in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd


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
        with np.load(path, allow_pickle=False) as arrays:
            absent = [key for key in keys if key not in arrays]
            if absent:
                raise ValueError(f"array {absent[0]!r} is absent, found {sorted(arrays)}")
            return {key: arrays[key] for key in keys}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error})") from error


def read_csv(path: Path, header: bool = True) -> pd.DataFrame:
    """A CSV file of numbers.

    Raises:
        ValueError: If it is ragged, empty or holds text; the message names the column and row.
    """
    try:
        table = pd.read_csv(path, header=0 if header else None)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from error
    for column in table.columns:
        if table[column].dtype.kind not in "fiu":
            row = int(pd.to_numeric(table[column], errors="coerce").isna().to_numpy().argmax())
            line = row + 1 + header
            raise ValueError(
                f"{path}: column {column!r}, line {line}: found {table[column].iloc[row]!r}, expected a number"
            )
    return table
