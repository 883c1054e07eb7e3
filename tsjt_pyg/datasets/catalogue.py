"""All named cities in one place: what they are, whether they are present, and how each is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data import City
from ..data.mapped import HEADER
from .dcrnn import read_dcrnn
from .demo import demo_names, read_demo
from .jonas import read_jonas
from .largest import read_largest
from .libcity import read_libcity
from .pems import read_pems
from .stgfsl import read_stgfsl
from .tables import read_folder
from .tgcn import read_tgcn

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
    name: (group, about, partial(read, name=name))
    for read, group, cities in (
        (
            read_tgcn,
            "speed",
            {"los_loop": "Los Angeles loop detectors, 1-7 March 2012: speed (mph), 5 min"},
        ),
        (
            read_dcrnn,
            "speed",
            {
                "metr_la": "Los Angeles loop detectors, March to June 2012: speed (mph), 5 min",
                "pems_bay": "San Francisco Bay detectors, January to June 2017: speed (mph), 5 min",
            },
        ),
        (
            read_pems,
            "speed",
            {
                "pems04": "Caltrans district 4: flow, occupancy, speed, 5 min",
                "pems08": "Caltrans district 8: flow, occupancy, speed, 5 min",
            },
        ),
        (
            read_stgfsl,
            "speed",
            {
                "stgfsl_metr_la": "METR-LA in the ST-GFSL bundle: speed (mph), 5 min",
                "stgfsl_pems_bay": "PEMS-BAY in the ST-GFSL bundle: speed (mph), 5 min",
            },
        ),
        (
            read_pems,
            "flow",
            {
                "pems03": "Caltrans district 3, autumn 2018: flow, 5 min",
                "pems07": "Caltrans district 7, summer 2017: flow, 5 min",
            },
        ),
        (
            read_largest,
            "flow",
            {
                "largest_sd": "LargeST, San Diego, 2019: flow, 5 min",
                "largest_gba": "LargeST, Greater Bay Area, 2019: flow, 5 min",
                "largest_gla": "LargeST, Greater Los Angeles, 2019: flow, 5 min",
                "largest_ca": "LargeST, California, 2019: flow, 5 min",
            },
        ),
        (
            read_stgfsl,
            "road speed",
            {
                "chengdu_m": "Chengdu, DiDi, in the ST-GFSL bundle: speed (km/h), 10 min",
                "shenzhen": "Shenzhen, DiDi, in the ST-GFSL bundle: speed (km/h), 10 min",
            },
        ),
        (read_tgcn, "taxi speed", {"sz_taxi": "Shenzhen taxis, January 2015: speed (km/h), 15 min"}),
        (
            read_jonas,
            "trips",
            {
                "jonas_nyc": "New York, 16 x 8 zones: taxi and bike trips, 30 min",
                "jonas_dc": "Washington DC, 9 x 12 zones: taxi and bike trips, 60 min",
            },
        ),
    )
    for name, about in cities.items()
}

_SAME_SENSORS = (
    {"los_loop", "metr_la", "stgfsl_metr_la"},
    {"pems_bay", "stgfsl_pems_bay"},
    {"largest_ca", "largest_sd"},
    {"largest_ca", "largest_gba"},
    {"largest_ca", "largest_gla"},
)
"""Cities with sensors in common: one is no default source of another, for that would show it the target's readings."""

_LIBCITY = "libcity/"


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
    sets = [] if base is None else sorted(path for path in (base / _LIBCITY).glob("*") if path.is_dir())
    entries += [CityEntry(f"{_LIBCITY}{path.name}", "libcity", "LibCity's atomic files", path, True) for path in sets]
    return entries


def load_city(name: str | Path, root: str | Path | None = None) -> City:
    """A named city.

    Args:
        name: For example ``"demo/riverton"`` (bundled) or ``"los_loop"``; :func:`list_cities` lists them all.
            ``"libcity/METR_LA"`` is the folder ``libcity/METR_LA`` of LibCity's atomic files, whatever its name. A path
            that ends in ``.npz`` is a city written by :meth:`City.save`; any other folder is one written by
            :meth:`City.save_mapped`, whose readings stay on the disk, or holds one's own tables
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
    libcity = name.removeprefix(_LIBCITY) if name.startswith(_LIBCITY) else ""
    of_libcity = libcity not in ("", ".", "..") and Path(libcity).name == libcity
    if name not in _READERS and not of_libcity:
        if Path(name).is_dir():
            return City.load(name) if (Path(name) / HEADER).is_file() else read_folder(Path(name)).city
        known = [f"demo/{demo}" for demo in demo_names()] + list(_READERS)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"city: there is no city {name!r}{hint} Known are {', '.join(known)}, {_LIBCITY}<folder>, files of "
            "City.save (.npz), and folders of City.save_mapped or with readings.csv and sensors.csv"
        )
    card = "libcity" if of_libcity else name
    base = _root(root)
    if base is None:
        raise FileNotFoundError(
            f"city {name!r} is not bundled: say where its folder lies with root= (--root) or the environment variable "
            f"{ROOT_VARIABLE}; `tsjt cities {card}` says which files it needs"
        )
    if not (base / name).is_dir():
        raise FileNotFoundError(
            f"city {name!r}: there is no folder {base / name}; `tsjt cities {card}` says what belongs there"
        )
    try:
        return read_libcity(base / name, libcity) if of_libcity else _READERS[name][2](base / name)
    except ValueError as error:
        if str(base / name) in str(error):
            raise
        raise ValueError(f"{base / name}: its files do not fit each other: {error}") from error


def default_sources(target: str, root: str | Path | None = None) -> list[str]:
    """The other present cities of the target's group, without those that have sensors in common with it.

    Args:
        target: Name of the target city.
        root: As :func:`list_cities` takes it.

    Raises:
        ValueError: If there are none.
    """
    entries = list_cities(root)
    group = next((entry.group for entry in entries if entry.name == target), None)
    same = {target}.union(*(cities for cities in _SAME_SENSORS if target in cities))
    sources = [entry.name for entry in entries if entry.group == group and entry.name not in same and entry.present]
    if group is None or not sources:
        raise ValueError(
            f"sources: there is no other city in the group of {target!r}; name the sources (--sources), such as "
            "demo/gridport,demo/ringwood"
        )
    return sources
