"""Tables that pandas wrote with ``to_hdf`` (fixed format), read with h5py.

pandas keeps names and frequencies as pickles in the attributes of such a file, and its own reader loads them, which
runs any code in them. Here no attribute but ``kind`` is read, and no pickle is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..data.ids import id_text

_ROWS = 1024
"""Rows that are read at a time."""


class HdfTable(NamedTuple):
    """A table: float32 ``[T, N]``, one column a node id, one row a time."""

    values: np.ndarray
    columns: list[str]
    times: pd.DatetimeIndex


def read_pandas_hdf(path: Path, columns: list[str] | None = None) -> HdfTable:
    """The table in an HDF5 file that :meth:`pandas.DataFrame.to_hdf` wrote.

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
    try:
        with h5py.File(path, "r") as file:
            return _read(file, columns)
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        hint = "; its compressor is not at hand, so write it anew without complib" if _by_plugin(error) else ""
        raise ValueError(f"{path}: cannot be read as HDF5 ({str(error).strip(chr(39))}){hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _by_plugin(error: Exception) -> bool:
    return any(word in str(error) for word in ("plugin", "filter"))


_ANEW = "write it anew with DataFrame.to_hdf(path, key='df') (format 'fixed', no complib)"


def _read(file: Any, columns: list[str] | None) -> HdfTable:
    import h5py

    groups = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    tables = [name for name in groups if isinstance(file[name], h5py.Group)]
    if len(tables) != 1:
        raise ValueError(f"expected one table of pandas, found {sorted(file)}")
    group = file[tables[0]]
    if "table" in group:
        raise ValueError(f"{tables[0]!r} is in the format 'table', whose columns are a pickle; {_ANEW}")
    blocks = sorted(name.removesuffix("_values") for name in group if name.startswith("block") and "_values" in name)
    for part in ("axis0", "axis1", *(f"{block}{end}" for block in blocks for end in ("_items", "_values"))):
        link = group.get(part, getlink=True)
        dataset = group[part] if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"{tables[0]}/{part} is absent or lies in another file; {_ANEW}")
    names = _labels(group["axis0"])
    index = _times(group["axis1"])
    if columns is not None:
        wanted = set(columns)
        names = [name for name in names if name in wanted]
    position = {name: i for i, name in enumerate(names)}
    if len(position) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"node {twice!r} has more than one column; each node needs exactly one")
    values = np.full((len(index), len(names)), np.nan, dtype=np.float32)
    for block in blocks:
        _fill(values, group[f"{block}_values"], _labels(group[f"{block}_items"]), position, block)
    return HdfTable(values, names, index)


def _fill(values: np.ndarray, dataset: Any, items: list[str], position: dict[str, int], block: str) -> None:
    if dataset.shape != (len(values), len(items)) or dataset.dtype.kind not in "fiub":
        raise ValueError(
            f"{block}_values: expected numbers of shape {[len(values), len(items)]}, found {dataset.dtype} "
            f"{[*dataset.shape]}"
        )
    taken = [i for i, item in enumerate(items) if item in position]
    to = [position[items[i]] for i in taken]
    for first in range(0, len(values), _ROWS):
        rows = dataset[first : first + _ROWS]
        values[first : first + _ROWS, to] = rows[:, taken]


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
