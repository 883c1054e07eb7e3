"""Demand on a grid of zones: ``[T, H, W, C]`` in ``.npz``, ``.npy`` or HDF5, and a mask of the zones that count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from ..data import City
from ..data.graph import Edges
from .files import read_npy, read_npz
from .join import noted


class AboutGrid(TypedDict, total=False):
    """What a grid's file does not say; as in :class:`~tsjt_pyg.data.parts.AboutReadings`, all optional."""

    name: str
    channels: Sequence[str] | str
    units: Sequence[str] | str
    start: str | pd.Timestamp
    interval: str | pd.Timedelta


def read_grid(
    path: str | Path,
    *,
    array: str = "data",
    mask: str | np.ndarray | None = None,
    axes: str = "THWC",
    **about: Unpack[AboutGrid],
) -> City:
    """A city of zones from an array on a grid; a zero is a true zero, NaN is missing.

    Nodes are the zones that the mask leaves, with the id ``row-column``; edges join the 8 neighbours with weight 1.

    Args:
        path: ``.npz``, ``.npy`` or HDF5 (``.h5``, ``.hdf5``) file.
        array: Name of the array in it; of no account for ``.npy``.
        mask: Bool ``[H, W]``, ``True`` = the zone counts; or whole numbers ``[M, 2]``, (row, column) of the zones that
            do not; or the name of such an array in the file. Default: all zones count.
        axes: Order of its axes: time, height (rows), width (columns), channels; ``"TCHW"`` for TaxiBJ, ``"THW"`` for
            one channel.
        **about: ``name``, ``channels``, ``units``, ``start``, ``interval``: see
            :class:`AboutGrid`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, an array is absent or of a wrong shape, or the mask leaves no zone.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if sorted(axes) not in (sorted("THWC"), sorted("THW")):
        raise ValueError(f"axes: expected the letters T, H, W and C (or T, H and W) in their order, found {axes!r}")
    names = [array, mask] if isinstance(mask, str) else [array]
    arrays = {array: read_npy(path)} if path.suffix == ".npy" else _arrays(path, names)
    values = arrays[array]
    if values.ndim != len(axes) or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise ValueError(
            f"{path}: expected {array!r} of shape [{', '.join(axes)}], found {values.dtype} {[*values.shape]}"
        )
    values = values.transpose([axes.index(letter) for letter in "THWC" if letter in axes])
    return grid_city(
        values if "C" in axes else values[..., None], arrays[mask] if isinstance(mask, str) else mask, path, **about
    )


def grid_city(values: np.ndarray, mask: np.ndarray | None, path: Path, **about: Unpack[AboutGrid]) -> City:
    """The city of ``values`` ``[T, H, W, C]``; see :func:`read_grid`."""
    height, width = values.shape[1:3]
    zones = _zones(mask, height, width, path)
    rows, columns = np.array(zones).T
    edges = king_edges(zones)
    city = City.from_edge_index(
        values[:, rows, columns].astype(np.float32),
        edges.edge_index,
        edges.edge_weight,
        node_ids=[f"{row}-{column}" for row, column in zones],
        **about,
    )
    return noted(city, path)


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return read_npz(path, *names)
    if path.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: expected a file that ends in .npz, .npy, .h5 or .hdf5")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{path}: HDF5 files need h5py: pip install "tsjt-pyg[hdf]"') from error
    try:
        with h5py.File(path, "r") as file:
            for name in names:
                link = file.get(name, getlink=True)
                found = file[name] if isinstance(link, h5py.HardLink) else None
                if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
                    raise KeyError(f"array {name!r} is absent or lies in another file, found {sorted(file)}")
            return {name: file[name][...] for name in names}
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error.args[0] if error.args else error})") from error


def _zones(mask: np.ndarray | None, height: int, width: int, path: Path) -> list[tuple[int, int]]:
    """Zones that count, by row and column."""
    counts = np.ones((height, width), dtype=bool)
    if mask is not None and mask.dtype == bool:
        if mask.shape != counts.shape:
            raise ValueError(f"{path}: the mask has shape {[*mask.shape]}, the grid {[height, width]}")
        counts = mask
    elif mask is not None and mask.size:
        if mask.shape[-1:] != (2,) or mask.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: expected a mask of bool {[height, width]} or of (row, column), found {mask.dtype} "
                f"{[*mask.shape]}"
            )
        cells = mask.reshape(-1, 2).astype(np.int64)
        outside = ((cells < 0) | (cells >= [height, width])).any(axis=1)
        if outside.any():
            raise ValueError(
                f"{path}: the mask names the zone {cells[outside][0].tolist()}, the grid is {height} x {width}"
            )
        counts[cells[:, 0], cells[:, 1]] = False
    zones = [(int(row), int(column)) for row, column in np.argwhere(counts)]
    if not zones:
        raise ValueError(f"{path}: the mask leaves no zone")
    return zones


def king_edges(zones: Sequence[tuple[int, ...]]) -> Edges:
    """Zones (row, column) joined with their 8 neighbours, as a king moves, with weight 1."""
    place = {tuple(zone): i for i, zone in enumerate(zones)}
    pairs = sorted(
        (i, place[row + down, column + right])
        for (row, column), i in place.items()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if (down or right) and (row + down, column + right) in place
    )
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Edges(index, torch.ones(index.shape[1]))
