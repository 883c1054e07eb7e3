"""A city in a folder, whose readings stay on the disk until a batch needs them.

The folder holds ``readings.npy`` (float32 ``[T, N, C]``, 0 where nothing was observed), ``mask.npy`` (bool, ``True`` =
observed) and ``city.npz`` (road network, ids, channels, time; no pickles). ``City.load(folder)`` maps the two arrays:
every view of the city works, batches are read from the files row by row, and statistics are taken block by block.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from .atomic import atomic_folder
from .city_file import DAMAGED, city_of, network_arrays, open_npz
from .clean import CleanReadings, ReadingsLike, clean_readings
from .parts import About, city_parts
from .rows import map_file, row_blocks

if TYPE_CHECKING:
    from .city import City

FORMAT = "tsjt_pyg.City/mapped/1"
HEADER = "city.npz"

_TENSORS = {"readings": torch.float32, "mask": torch.bool}
_FILES = [HEADER, *(f"{name}.npy" for name in _TENSORS)]
_HEADER_BYTES = 128

Block = ReadingsLike | tuple[ReadingsLike, np.ndarray | Tensor]


def save_mapped_city(city: City, folder: Path) -> Path:
    """Writes ``city`` to ``folder``, block by block; a folder that holds a mapped city is replaced as a whole.

    Raises:
        FileExistsError: If the folder holds anything else.
    """
    _check_free(folder)
    with atomic_folder(folder) as temporary:
        with _Writer(temporary) as writer:
            for readings, mask in row_blocks(city.readings, city.mask):
                writer.write(readings, mask)
        _write_header(temporary, city)
    return folder


def write_mapped_city(
    folder: str | Path,
    blocks: Iterable[Block],
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    **about: Unpack[About],
) -> City:
    """Writes a city that need not fit into memory, from consecutive blocks of its steps, and maps it.

    Args:
        folder: Where to; one that holds a mapped city is replaced as a whole.
        blocks: Readings of some steps each, in order of time: see :func:`~tsjt_pyg.data.clean.clean_readings`; or
            ``(readings, mask)``. Tables are joined by node id, and their times must go on where the last ended.
        edge_index: int64 ``[2, E]``, from and to; positions among the nodes of the first block.
        edge_weight: ``[E]``, not negative; default: all 1.
        **about: As in :meth:`City.from_adjacency <tsjt_pyg.data.City.from_adjacency>`, but for ``mask``.

    Raises:
        ValueError: If blocks do not fit each other, or the rest the blocks; nothing is left in ``folder`` then.
        FileExistsError: If the folder holds anything but a mapped city.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> city = load_city("demo/riverton")
        >>> weeks = [city.between(0, 2016), city.between(2016, 4032)]  # as one would read them, one after the other
        >>> blocks = ((week.readings, week.mask) for week in weeks)
        >>> write_mapped_city("riverton", blocks, city.edge_index, city.edge_weight, name="riverton").num_steps
        4032
    """
    from .city import City

    if "mask" in about:
        raise TypeError("mask: give it with each block, as (readings, mask)")
    folder = Path(folder)
    _check_free(folder)
    index = torch.as_tensor(edge_index)
    weight = torch.ones(index.shape[-1]) if edge_weight is None else torch.as_tensor(edge_weight).detach()
    city: City | None = None
    with atomic_folder(folder) as temporary:
        with _Writer(temporary) as writer:
            for number, block in enumerate(blocks):
                values, mask = block if isinstance(block, tuple) else (block, None)
                if city is None:
                    parts = city_parts(values, about if mask is None else {**about, "mask": mask})
                    city = City(edge_index=index, edge_weight=weight.to(torch.float32), **parts)
                    writer.write(city.readings, city.mask)
                else:
                    writer.write(*_next(clean_readings(values, mask), city, writer.steps, f"blocks[{number}]"))
        if city is None:
            raise ValueError("blocks: expected at least one block of readings, found none")
        readings, mask = (torch.empty(writer.shape, dtype=dtype, device="meta") for dtype in _TENSORS.values())
        _write_header(temporary, replace(city, readings=readings, mask=mask))
    return load_mapped_city(folder)


def load_mapped_city(folder: Path, mmap: bool = True) -> City:
    """A city written by :func:`save_mapped_city` or :func:`write_mapped_city`; ``mmap=False`` reads it into memory.

    Raises:
        ValueError: If the folder is none of theirs, or a file of it is missing, truncated or of another shape.
    """
    try:
        with open_npz(folder / HEADER) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            shape = tuple(about["shape"])
            readings, mask = (_map(folder / f"{name}.npy", dtype, shape) for name, dtype in _TENSORS.items())
            if not mmap:
                readings, mask = readings.clone(), mask.clone()
            return city_of(about, arrays, readings, mask)
    except (KeyError, TypeError, *DAMAGED) as error:
        raise ValueError(
            f"{folder}: not a city file written by City.save, nor a folder written by City.save_mapped, or a damaged "
            f"one ({error})"
        ) from error


def _map(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path.name}: its .npy version is {version}")
        try:
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
        except (SyntaxError, TokenError) as error:  # numpy's own guesses at a header that is none
            raise ValueError(f"{path.name}: its header is damaged ({error})") from error
        offset = file.tell()
    wanted = _numpy(dtype)
    if (found, fortran, kind) != (shape, False, wanted):
        raise ValueError(f"{path.name}: holds {kind} {list(found)}, expected {wanted} {list(shape)}")
    expected, size = offset + int(np.prod(shape)) * wanted.itemsize, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path.name}: has {size} bytes, expected {expected}")
    return map_file(path, dtype, shape, offset)


def _write_header(folder: Path, city: City) -> None:
    with (folder / HEADER).open("wb") as file:
        np.savez_compressed(file, **network_arrays(city, FORMAT))  # type: ignore[arg-type]


def _check_free(folder: Path) -> None:
    found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    other = [name for name in found if name not in _FILES]
    if other or (found and HEADER not in found):
        raise FileExistsError(
            f"{folder}: holds {(other or found)[0]!r}, which is not of a mapped city; choose another folder"
        )


def _next(clean: CleanReadings, city: City, steps: int, label: str) -> tuple[Tensor, Tensor]:
    """Readings and mask of a later block, which must go on where ``city`` was after ``steps``, its nodes in order."""
    expected = city.start + steps * city.interval
    interval = clean.interval or city.interval  # a block of one step has none
    if clean.start is not None and (clean.start, interval) != (expected, city.interval):
        raise ValueError(
            f"{label}: starts at {clean.start} with a step every {interval}, expected {expected} and every "
            f"{city.interval}, where the block before it ends"
        )
    if clean.node_ids is None or clean.node_ids == city.node_ids:
        return clean.readings, clean.mask
    unknown = sorted(set(clean.node_ids) ^ set(city.node_ids))
    if unknown:
        where = "the first block" if unknown[0] in clean.node_ids else "it"
        raise ValueError(f"{label}: node {unknown[0]!r} is not in {where}; all blocks need the same nodes")
    position = {node: i for i, node in enumerate(clean.node_ids)}
    order = [position[node] for node in city.node_ids]
    return clean.readings[:, order], clean.mask[:, order]


class _Writer:
    """Appends steps to the two large files; the number of steps enters their headers at the end."""

    def __init__(self, folder: Path) -> None:
        self.steps, self.shape = 0, (0, 0, 0)
        self._files = [(folder / f"{name}.npy").open("wb") for name in _TENSORS]

    def __enter__(self) -> _Writer:
        return self

    def write(self, readings: Tensor, mask: Tensor) -> None:
        """Appends readings and mask ``[t, N, C]``."""
        if self.steps == 0:
            self.shape = (0, readings.shape[1], readings.shape[2])
            self._headers()
        if tuple(readings.shape[1:]) != self.shape[1:]:
            raise ValueError(
                f"blocks: after {self.steps} steps found readings of {readings.shape[1]} nodes and "
                f"{readings.shape[2]} channels, before {self.shape[1]} and {self.shape[2]}"
            )
        for file, tensor in zip(self._files, (readings, mask), strict=True):
            file.write(tensor.detach().cpu().contiguous().numpy().data)
        self.steps += len(readings)

    def _headers(self) -> None:
        """Writes a header at the start of each file; numpy leaves room in it for the number of steps to grow."""
        for file, dtype in zip(self._files, _TENSORS.values(), strict=True):
            kind = np.lib.format.dtype_to_descr(_numpy(dtype))
            header = io.BytesIO()
            about = {"descr": kind, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(header, about)
            assert len(header.getvalue()) == _HEADER_BYTES
            file.seek(0)
            file.write(header.getvalue())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.steps:
                self.shape = (self.steps, *self.shape[1:])
                self._headers()
        finally:
            for file in self._files:
                file.close()


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
