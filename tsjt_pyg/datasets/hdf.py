"""Tables that pandas wrote with ``to_hdf`` (fixed format), read with h5py.

pandas keeps names and frequencies as pickles in the attributes of such a file, and its own reader loads them, which
runs any code in them. Here no attribute but ``kind`` is read, and no pickle is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..data.ids import id_text

_ROWS = 1024
"""Rows that are read at a time."""

_Block = tuple[Any, list[int], list[int]]
"""A data set in the file, the columns to take of it, and where they belong."""


class HdfTable(NamedTuple):
    """A table: float32 ``[T, N]``, one column a node id, one row a time."""

    values: np.ndarray
    columns: list[str]
    times: pd.DatetimeIndex


class HdfRows:
    """An open table, of which rows are read when they are asked for; see :func:`open_pandas_hdf`."""

    def __init__(self, group: Any, path: Path, columns: list[str] | None) -> None:
        self.path = path
        self.columns, self.times, self._blocks = _layout(group, columns)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the given numbers, in that order: float32 ``[len(rows), N]``."""
        values = np.full((len(rows), len(self.columns)), np.nan, dtype=np.float32)
        with _clear_errors(self.path):
            for first in range(0, len(rows), _ROWS):
                part = rows[first : first + _ROWS]
                for dataset, taken, to in self._blocks:
                    values[first : first + _ROWS, to] = _rows_of(dataset, part)[:, taken]
        return values


@contextmanager
def open_pandas_hdf(path: Path, columns: list[str] | None = None) -> Iterator[HdfRows]:
    """The table in an HDF5 file that :meth:`pandas.DataFrame.to_hdf` wrote, left on the disk.

    Args:
        path: A file with one table, in the fixed format (pandas' default).
        columns: Node ids to read, where they are there; default: all. Other columns are not kept in memory.

    Raises:
        ValueError: If the file is damaged, holds no table or several, or one in another format; the message says how
            to write it anew.
        ImportError: Without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{path}: HDF5 files need h5py: pip install "tsjt-pyg[hdf]"') from error
    with ExitStack() as stack:
        with _clear_errors(path):
            table = HdfRows(_group(stack.enter_context(h5py.File(path, "r"))), path, columns)
        yield table


def read_pandas_hdf(path: Path, columns: list[str] | None = None) -> HdfTable:
    """The whole table in an HDF5 file; for arguments and errors see :func:`open_pandas_hdf`."""
    with open_pandas_hdf(path, columns) as table:
        return HdfTable(table.read(np.arange(len(table.times))), table.columns, table.times)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        hint = "; its compressor is not at hand, so write it anew without complib" if _by_plugin(error) else ""
        raise ValueError(f"{path}: cannot be read as HDF5 ({str(error).strip(chr(39))}){hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _by_plugin(error: Exception) -> bool:
    return any(word in str(error) for word in ("plugin", "filter"))


_ANEW = "write it anew with DataFrame.to_hdf(path, key='df') (format 'fixed', no complib)"


def _group(file: Any) -> Any:
    """The one table of the file."""
    import h5py

    groups = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    tables = [name for name in groups if isinstance(file[name], h5py.Group)]
    if len(tables) != 1:
        raise ValueError(f"expected one table of pandas, found {sorted(file)}")
    if "table" in file[tables[0]]:
        raise ValueError(f"{tables[0]!r} is in the format 'table', whose columns are a pickle; {_ANEW}")
    return file[tables[0]]


def _layout(group: Any, columns: list[str] | None) -> tuple[list[str], pd.DatetimeIndex, list[_Block]]:
    """Node ids, times, and where the readings lie."""
    import h5py

    blocks = sorted(name.removesuffix("_values") for name in group if name.startswith("block") and "_values" in name)
    for part in ("axis0", "axis1", *(f"{block}{end}" for block in blocks for end in ("_items", "_values"))):
        link = group.get(part, getlink=True)
        dataset = group[part] if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"{group.name.strip('/')}/{part} is absent or lies in another file; {_ANEW}")
    names = _labels(group["axis0"])
    times = _times(group["axis1"])
    if columns is not None:
        wanted = set(columns)
        names = [name for name in names if name in wanted]
    position = {name: i for i, name in enumerate(names)}
    if len(position) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"node {twice!r} has more than one column; each node needs exactly one")
    return names, times, [_block(group, block, len(times), position) for block in blocks]


def _block(group: Any, block: str, steps: int, position: dict[str, int]) -> _Block:
    dataset, items = group[f"{block}_values"], _labels(group[f"{block}_items"])
    if dataset.shape != (steps, len(items)) or dataset.dtype.kind not in "fiub":
        raise ValueError(
            f"{block}_values: expected numbers of shape {[steps, len(items)]}, found {dataset.dtype} {[*dataset.shape]}"
        )
    taken = [i for i, item in enumerate(items) if item in position]
    return dataset, taken, [position[items[i]] for i in taken]


def _rows_of(dataset: Any, rows: np.ndarray) -> np.ndarray:
    if len(rows) == rows[-1] - rows[0] + 1 and (np.diff(rows) == 1).all():
        return np.asarray(dataset[rows[0] : rows[-1] + 1])
    order = np.argsort(rows)  # h5py takes rows in their order in the file only
    values = np.empty((len(rows), dataset.shape[1]), dtype=dataset.dtype)
    values[order] = dataset[rows[order]]
    return values


def _labels(dataset: Any) -> list[str]:
    if dataset.dtype.kind not in "Siu" or dataset.ndim != 1:
        raise ValueError(
            f"its columns are labelled with {_kind(dataset) or dataset.dtype}, which pandas pickles; label them all "
            f"with text or all with whole numbers and {_ANEW}"
        )
    return [id_text(label) for label in dataset[:]]


def _times(dataset: Any) -> pd.DatetimeIndex:
    kind = _kind(dataset)
    if not kind.startswith("datetime64") or dataset.dtype.kind != "i" or dataset.ndim != 1:
        raise ValueError(f"its rows are labelled with {kind or dataset.dtype}, expected times; {_ANEW}")
    if "tz" in dataset.attrs:
        raise ValueError(f"its times have a time zone; bring them as local time (tz_localize(None)) and {_ANEW}")
    unit = kind.partition("[")[2].rstrip("]") or "ns"
    if unit not in ("s", "ms", "us", "ns"):
        raise ValueError(f"its rows are labelled with {kind}, expected times in s, ms, us or ns; {_ANEW}")
    return pd.DatetimeIndex(dataset[:].astype(f"datetime64[{unit}]"))


def _kind(dataset: Any) -> str:
    kind = dataset.attrs.get("kind", b"")
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
