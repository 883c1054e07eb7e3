"""A folder of one's own tables: readings, sensors, edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.tables import TableArguments, TablesRead, read_tables
from .files import read_json

_ENDINGS = (".csv", ".parquet")


def read_folder(folder: Path) -> TablesRead:
    """A city of the tables in a folder, and what became of them.

    Files: ``readings.csv``, ``sensors.csv`` and, optionally, ``edges.csv`` (or ``.parquet``), as
    :func:`~tsjt_pyg.data.tables.read_tables` takes them; without edges nodes are joined with the nearest. An optional
    ``city.json`` holds other arguments of it, for example ``{"channels": "speed", "units": "mph"}``. The city has the
    folder's name.

    Raises:
        FileNotFoundError: If the readings or sensors are missing.
        ValueError: If a file is damaged, or there twice with different endings.
    """
    readings, sensors = _find(folder, "readings"), _find(folder, "sensors")
    for name, path in (("readings", readings), ("sensors", sensors)):
        if path is None:
            raise FileNotFoundError(
                f"{folder}: there is no {' or '.join(name + ending for ending in _ENDINGS)}; a folder with a city of "
                "one's own holds readings, sensors and, optionally, edges and city.json"
            )
    assert readings is not None
    assert sensors is not None
    arguments = _arguments(folder / "city.json")
    arguments.setdefault("name", folder.resolve().name)
    try:
        return read_tables(readings, sensors, _find(folder, "edges"), **arguments)
    except (TypeError, ValueError) as error:  # TypeError: a value in city.json of the wrong kind
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error


def _find(folder: Path, name: str) -> Path | None:
    found = [path for ending in _ENDINGS if (path := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: found {found[0].name} and {found[1].name}; leave one")
    return found[0] if found else None


def _arguments(path: Path) -> Any:
    if not path.is_file():
        return {}
    found = read_json(path)
    known = sorted(TableArguments.__annotations__)
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"{path}: expected an object with keys of {', '.join(known)}, found {unknown[0]!r}")
    return found
