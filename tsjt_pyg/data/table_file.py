"""Tables of CSV and Parquet files, or of pandas, with errors that say which file, which column and which line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from .ids import id_text

TableLike = pd.DataFrame | str | Path
"""A table, or the path of a ``.csv``, ``.tsv``, ``.txt`` or ``.parquet`` file."""

Decimal = Literal[".", ","]

_TEXT = (".csv", ".tsv", ".txt")
_PARQUET = (".parquet", ".pq")
_SEPARATORS = ",;\t"
_COMMA = re.compile(r"[-+]?\d*,\d+")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Table:
    """A table and what errors call it.

    Args:
        frame: Its rows; column names are text without spaces around it, the index is without meaning.
        label: ``"sensors"``, or the file.
        place: ``"line 7"`` or ``"row 5"``, of the number of a row.
        decimal: ``"."`` or ``","``, of numbers that are text.
    """

    frame: pd.DataFrame
    label: str
    place: Callable[[int], str]
    decimal: Decimal = "."

    def numbers(self, column: str, also_point: bool = False) -> np.ndarray:
        """A column as float64 that fits into float32, NaN where it is empty.

        Args:
            column: Its name.
            also_point: Whether a point is read beside decimal commas, too. Default: refused, for in ``"1.234"`` it may
                separate thousands.

        Raises:
            ValueError: On text or infinite numbers, with the line.
        """
        values = self.frame[column]
        if values.dtype.kind not in "fiub":
            texts = values.astype(object)  # times as objects: not their nanoseconds
            if self.decimal == ",":
                texts = texts.map(lambda value: _with_point(value, also_point))
            numbers = pd.to_numeric(texts, errors="coerce")
            bad = (numbers.isna() & values.notna()).to_numpy()
            expected = "expected a number" + (" with a decimal comma (decimal=',')" if self.decimal == "," else "")
            if bad.any() and self.decimal == "." and _COMMA.fullmatch(str(values.iloc[int(bad.argmax())]).strip()):
                expected += "; with decimal commas: decimal=','"
            self.refuse(column, bad, expected)
            values = numbers
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
        self.refuse(column, np.abs(found) > _LARGEST, "expected a finite number, or an empty field where there is none")
        return found

    def ids(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column as codes of ids: ``[rows]`` int64, and the unique ids as text in order of appearance.

        Raises:
            ValueError: On an empty field.
        """
        codes, found = pd.factorize(self.frame[column])
        self.refuse(column, codes < 0, "expected an id")
        again, ids = pd.factorize(np.array([id_text(value) for value in found], dtype=object))
        return again[codes], list(ids)

    def refuse(self, column: str, bad: np.ndarray, expected: str) -> None:
        """Raises a :class:`ValueError` that names the first bad field of a column, if there is one."""
        if bad.any():
            row = int(bad.argmax())
            value = self.frame[column].iloc[row]
            found = "nothing" if pd.isna(value) else repr(value.item() if isinstance(value, np.generic) else value)
            raise ValueError(f"{self.label}: column {column!r}, {self.place(row)}: found {found}, {expected}")


def _with_point(value: object, also_point: bool) -> object:
    """A text number with a decimal comma as one with a point; nothing that is a number where it has a point already."""
    if not isinstance(value, str) or (also_point and "," not in value):
        return value
    return "" if "." in value else value.replace(",", ".")


def open_table(source: TableLike, argument: str, text: Collection[str] = (), decimal: Decimal = ".") -> Table:
    """A table with rows, from wherever it is.

    Args:
        source: The table or its file. An index with a name (or of times, or of text) becomes the first column, named
            ``time`` or ``index`` if it has no name.
        argument: Name of the argument, for errors.
        text: Columns of a CSV file that are kept as text even where they look like numbers (in lower case).
        decimal: Of numbers that are text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, ragged, empty or of another format, or a column is there twice.
        TypeError: If it is neither a table nor a path.
        ImportError: If Parquet cannot be read here.
    """
    if isinstance(source, pd.DataFrame):
        label, frame = argument, source
        place: Callable[[int], str] = _row
    elif isinstance(source, str | Path):
        path = Path(source)
        label = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"{argument}: there is no file {path}")
        if path.suffix.lower() in _TEXT:
            frame, place = _read_csv(path, text, decimal), lambda row: f"line {line_of(path, row)}"
        elif path.suffix.lower() in _PARQUET:
            frame, place = _read_parquet(path), _row
        else:
            raise ValueError(f"{path}: expected a file {', '.join(_TEXT + _PARQUET)}, or a pandas DataFrame")
    else:
        raise TypeError(f"{argument}: expected a pandas DataFrame or the path of a file, found {type(source).__name__}")
    if frame.columns.nlevels > 1:
        raise ValueError(
            f"{label}: its columns have {frame.columns.nlevels} levels ({list(frame.columns.names)}), expected one; "
            "stack the others into rows, with time, sensor and a column a channel"
        )
    plain = frame.index.nlevels == 1 and frame.index.name is None and pd.api.types.is_integer_dtype(frame.index.dtype)
    if isinstance(frame.index, pd.DatetimeIndex) and frame.index.name is None:
        frame = frame.rename_axis(index="time")
    frame = frame.reset_index(drop=plain, allow_duplicates=True)
    frame = frame.set_axis([id_text(column) for column in frame.columns], axis="columns")
    _check_once(list(frame.columns), label)
    if frame.empty:
        raise ValueError(f"{label}: found a header and no rows")
    return Table(frame, label, place, decimal)


def _row(row: int) -> str:
    return f"row {row}"


def _check_once(columns: list[str], label: str) -> None:
    name, count = Counter(columns).most_common(1)[0] if columns else ("", 0)
    if count > 1:
        raise ValueError(f"{label}: column {name!r} is there {count} times; a column (a sensor id) may be there once")


def _read_csv(path: Path, text: Collection[str], decimal: Decimal) -> pd.DataFrame:
    try:
        return read_text(path, text, decimal=decimal)
    except ValueError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise ValueError(f"{error}, or give the table itself: pandas.read_csv(…, encoding=…)") from error
        raise


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{path}: reading Parquet needs pyarrow: pip install "tsjt-pyg[parquet]"') from error
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def read_text(
    path: Path,
    text: Collection[str] = (),
    header: bool = True,
    names: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    decimal: Decimal = ".",
) -> pd.DataFrame:
    """A rectangular CSV file; fields are separated by what separates the first line: comma, semicolon or tab.

    Args:
        path: The file, in UTF-8.
        text: Columns kept as text (in lower case).
        header: Whether the first line names the columns.
        names: Names of the columns of a file without a header.
        only: The columns to read, of which others may be absent. Default: all.
        decimal: What separates the decimals.

    Raises:
        ValueError: If it is empty, ragged, no UTF-8, names a column twice, or has not as many columns as ``names``.
    """
    try:
        separator, first = _check_rectangular(path)
        if names is not None and len(names) != len(first):
            raise ValueError(
                f"it has no header, so expected {len(names)} columns ({', '.join(names)}), found {len(first)}"
            )
        columns = [name.strip() for name in first] if header else list(names or ())
        _check_once([name for name in columns if name], str(path))
        table = pd.read_csv(
            path,
            sep=separator,
            decimal=decimal,
            header=0 if header else None,
            names=None if names is None else list(names),
            encoding="utf-8-sig",
            skipinitialspace=True,
            usecols=None if only is None else lambda column: str(column).strip() in only,
            dtype={i: str for i, name in enumerate(columns) if name.lower() in text},
            low_memory=False,
        )
    except ValueError as error:
        if str(path) in str(error):
            raise
        reason = "it is not UTF-8 text; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{path}: cannot be read as CSV ({reason})") from error
    return table


def _check_rectangular(path: Path) -> tuple[str, list[str]]:
    """Separator and first line. Refuses short lines, which pandas fills up with NaN, and long ones, whose first field
    it takes for an index."""
    with path.open(encoding="utf-8-sig") as file:
        lines = _filled(file)
        _, first = next(lines, (1, ""))
        if not first:
            raise ValueError("the file is empty")
        separator = max(_SEPARATORS, key=first.count)
        names = next(csv.reader([first], delimiter=separator, skipinitialspace=True))
        for number, line in lines:
            fields = line.count(separator) + 1
            if '"' in line:
                fields = len(next(csv.reader([line], delimiter=separator, skipinitialspace=True)))
            if fields != len(names):
                raise ValueError(f"line {number} has {fields} fields, the first line {len(names)}")
        return separator, names


def _filled(file: Iterator[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; pandas skips blank ones too."""
    return ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1) if line.strip(" \r\n"))


def line_of(path: Path, row: int, header: bool = True) -> int:
    """The line of a CSV file that holds a row."""
    with path.open(encoding="utf-8-sig") as file:
        return next(number for i, (number, _) in enumerate(_filled(file)) if i == row + header)
