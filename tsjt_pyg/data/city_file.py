"""A city in one file: a compressed ``.npz`` without pickles."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .atomic import atomic_path

if TYPE_CHECKING:
    from .city import City

FORMAT = "tsjt_pyg.City/1"


DAMAGED = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What numpy and zipfile raise on a damaged ``.npz``, depending on where the damage is."""


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """An ``.npz``, open for reading without pickles."""
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array (.npy)")
    return arrays


def network_arrays(city: City, file_format: str) -> dict[str, np.ndarray]:
    """All of a city but readings and mask, as arrays; see :func:`city_of`."""
    about = {
        "format": file_format,
        "name": city.name,
        "channels": city.channels,
        "units": city.units,
        "start": city.start.isoformat(),
        "interval_seconds": city.interval.total_seconds(),
        "shape": list(city.readings.shape),
        "has_pos": city.pos is not None,
    }
    arrays = {
        "about": np.array(json.dumps(about)),
        "edge_index": city.edge_index.cpu().numpy(),
        "edge_weight": city.edge_weight.cpu().numpy(),
        "node_ids": np.array(city.node_ids, dtype=np.str_),
    }
    if city.pos is not None:
        arrays["pos"] = city.pos.cpu().numpy()
    return arrays


def city_of(about: dict[str, Any], arrays: np.lib.npyio.NpzFile, readings: torch.Tensor, mask: torch.Tensor) -> City:
    """The city of :func:`network_arrays` with its readings."""
    from .city import City

    return City(
        name=about["name"],
        readings=readings,
        mask=mask,
        edge_index=torch.from_numpy(arrays["edge_index"]),
        edge_weight=torch.from_numpy(arrays["edge_weight"]),
        node_ids=tuple(str(node) for node in arrays["node_ids"]),
        channels=tuple(about["channels"]),
        units=tuple(about["units"]),
        start=pd.Timestamp(about["start"]).tz_localize(None),  # older files may hold a time zone
        interval=pd.Timedelta(seconds=about["interval_seconds"]),
        pos=torch.from_numpy(arrays["pos"]) if about["has_pos"] else None,
    )


def save_city_file(city: City, path: Path) -> Path:
    """Writes ``city`` to ``path`` (``.npz`` is appended where absent); a half-written file is never left there."""
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    arrays = network_arrays(city, FORMAT)
    arrays["readings"] = city.readings.cpu().numpy()
    arrays["mask"] = np.packbits(city.mask.cpu().numpy())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def load_city_file(path: Path) -> City:
    """Reads what :func:`save_city_file` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or is truncated.
    """
    try:
        with open_npz(path) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            shape = tuple(about["shape"])
            size = int(np.prod(shape))
            if arrays["mask"].size != -(-size // 8):  # numpy would fill it up
                raise ValueError("its mask and readings differ in size")
            mask = np.unpackbits(arrays["mask"], count=size).astype(bool).reshape(shape)
            return city_of(about, arrays, torch.from_numpy(arrays["readings"]), torch.from_numpy(mask))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except (KeyError, TypeError, *DAMAGED) as error:
        raise ValueError(f"{path}: not a city file written by City.save, or a damaged one ({error})") from error
