"""All named cities in one place: what they are, whether they are present, and how each is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data import City
from .demo import demo_names, read_demo
from .jonas import read_jonas
from .los_loop import read_los_loop
from .pems import read_pems
from .tables import read_folder

ROOT_VARIABLE = "TSJT_CITIES"


@dataclass(frozen=True)
class CityEntry:
    """A named city.

    Args:
        name: As :func:`load_city` takes it.
        group: Cities of one group measure comparable things; the default sources of one are the others of its group.
        about: One line.
        folder: Folder of its files (``None``: bundled).
        present: Whether the folder is there.
    """

    name: str
    group: str
    about: str
    folder: Path | None
    present: bool


_READERS: dict[str, tuple[str, str, Callable[[Path], City]]] = {
    "los_loop": ("speed", "Los Angeles loop detectors, 1-7 March 2012: speed (mph), 5 min", read_los_loop),
    "pems04": ("speed", "Caltrans district 4: flow, occupancy, speed, 5 min", partial(read_pems, name="pems04")),
    "pems08": ("speed", "Caltrans district 8: flow, occupancy, speed, 5 min", partial(read_pems, name="pems08")),
    "jonas_nyc": (
        "trips",
        "New York, 16 x 8 zones: taxi and bike trips, 30 min",
        partial(read_jonas, name="jonas_nyc"),
    ),
    "jonas_dc": (
        "trips",
        "Washington DC, 9 x 12 zones: taxi and bike trips, 60 min",
        partial(read_jonas, name="jonas_dc"),
    ),
}


def _root(root: str | Path | None) -> Path | None:
    found = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    return None if found is None else Path(found)


def list_cities(root: str | Path | None = None) -> list[CityEntry]:
    """All cities that :func:`load_city` knows.

    Args:
        root: Folder with one folder a data set; default: the environment variable ``TSJT_CITIES``.
    """
    entries = [
        CityEntry(f"demo/{name}", "demo", "simulated road network, 14 days: speed (km/h), flow, 5 min", None, True)
        for name in demo_names()
    ]
    base = _root(root)
    for name, (group, about, _) in _READERS.items():
        folder = None if base is None else base / name
        entries.append(CityEntry(name, group, about, folder, folder is not None and folder.is_dir()))
    return entries


def load_city(name: str | Path, root: str | Path | None = None) -> City:
    """A named city.

    Args:
        name: For example ``"demo/riverton"`` (bundled) or ``"los_loop"``; :func:`list_cities` lists them all. A path
            that ends in ``.npz`` is a city written by :meth:`City.save`, a folder holds one's own tables
            (:func:`~tsjt_pyg.datasets.tables.read_folder`).
        root: Folder with one folder a data set; default: the environment variable ``TSJT_CITIES``.

    Raises:
        ValueError: If no city has this name, or one of its files is damaged.
        FileNotFoundError: If its folder or one of its files is missing.
    """
    name = str(name)
    if name.endswith(".npz"):
        return City.load(name)
    if name.startswith("demo/") and name.removeprefix("demo/") in demo_names():
        return read_demo(name.removeprefix("demo/"))
    if name not in _READERS and Path(name).is_dir():
        return read_folder(Path(name)).city
    if name not in _READERS:
        known = [f"demo/{demo}" for demo in demo_names()] + list(_READERS)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"city: there is no city {name!r}{hint} Known are {', '.join(known)}, files of City.save (.npz), and "
            "folders with readings.csv and sensors.csv"
        )
    base = _root(root)
    if base is None:
        raise FileNotFoundError(
            f"city {name!r} is not bundled: say where its folder lies with root= (--root) or the environment variable "
            f"{ROOT_VARIABLE}; the card datasets/{name}.md says which files it needs"
        )
    if not (base / name).is_dir():
        raise FileNotFoundError(
            f"city {name!r}: there is no folder {base / name}; the card datasets/{name}.md says what belongs there"
        )
    try:
        return _READERS[name][2](base / name)
    except ValueError as error:
        if str(base / name) in str(error):
            raise
        raise ValueError(f"{base / name}: its files do not fit each other: {error}") from error


def default_sources(target: str, root: str | Path | None = None) -> list[str]:
    """The other present cities of the target's group.

    Raises:
        ValueError: If there are none.
    """
    entries = list_cities(root)
    group = next((entry.group for entry in entries if entry.name == target), None)
    sources = [entry.name for entry in entries if entry.group == group and entry.name != target and entry.present]
    if group is None or not sources:
        raise ValueError(f"sources: there is no other city in the group of {target!r}; name the sources (--sources)")
    return sources
