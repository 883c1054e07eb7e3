"""The cards of the data sets (top-level ``datasets/*.md``), read: the one place that says where files come from.

A card has the sections ``Source``, ``Terms``, ``Shape``, ``Files`` and ``Load``. ``Files`` holds a table with a row a
file::

    | file | what it holds | SHA-256 |
    |---|---|---|
    | `speed.csv` | a column a sensor id, a row a step | `7b73…` |
    | `LICENSE` | optional: the terms | not known |

One of ``a`` and ``b`` is enough where the first cell says ``a (or b)``, where the row of ``b`` begins with ``or``, or
where its second cell begins with ``instead of``; a name that ends in ``/`` is a folder in which each of the cell's
files may lie, too. The readers look for these names and no others; the first that is there goes before. A row whose
second cell begins with ``optional`` or ``may be absent`` is not needed to read the city. A fourth cell may hold the URL
that the file may be downloaded from; only a file whose checksum is known has one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .atomic_files import atomic_names

if TYPE_CHECKING:
    from .catalogue import CityEntry

State = Literal["as on the card", "missing", "differs from the card", "present, checksum not on the card"]
DIFFERS: State = "differs from the card"

_ROW = re.compile(r"^\|(?P<names>[^|]*`[^|]+`[^|]*)\|(?P<cells>.*)\|\s*$", flags=re.MULTILINE)
_LIBCITY = "libcity/"
_SHA256 = re.compile(r"`([0-9a-f]{64})`")
_URL = re.compile(r"https://[^\s|>`)]+")


@dataclass(frozen=True)
class CardFile:
    """A file of a data set.

    Args:
        name: Its name in the data set's folder.
        about: What it holds.
        sha256: 64 hexadecimal digits, of the file by this name, or ``None`` where they are not known.
        url: Where it may be downloaded from, or ``None`` where no lawful, stable place with a known checksum is known.
        optional: Whether the city can be read without it.
        others: Names of files of which one is enough instead of it, in the order in which they are looked for.
    """

    name: str
    about: str
    sha256: str | None = None
    url: str | None = None
    optional: bool = False
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and the others."""
        return (self.name, *self.others)

    def renamed(self, names: Iterable[str]) -> CardFile:
        """The file under other names, the first of them before the others."""
        first, *others = dict.fromkeys(names)
        return replace(self, name=first, others=tuple(others))

    def paths(self, folder: Path) -> list[Path]:
        """Which of the file and the others are in ``folder``."""
        return [folder / name for name in self.names if (folder / name).is_file()]


@dataclass(frozen=True)
class Card:
    """What is known of a data set.

    Args:
        name: As :func:`~tsjt_pyg.datasets.load_city` takes it.
        text: The whole card (Markdown).
        files: The files that belong in its folder.
    """

    name: str
    text: str
    files: tuple[CardFile, ...]

    @property
    def page(self) -> str:
        """What ``tsjt cities`` shows the card by."""
        return _page(self.name)

    def file(self, name: str) -> CardFile:
        """The file that has this name, or may have it."""
        return next(file for file in self.files if name in file.names)

    def section(self, heading: str) -> str:
        """The text under ``## heading``; empty where there is no such section."""
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", self.text, flags=re.DOTALL | re.MULTILINE)
        return found[1].strip() if found else ""

    def row(self, heading: str, key: str) -> str:
        """The second cell of the row ``key`` of the table under ``heading``; empty where there is none."""
        found = re.search(rf"^\|\s*{re.escape(key)}\s*\|(.*)\|\s*$", self.section(heading), flags=re.MULTILINE)
        return found[1].strip() if found else ""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """``(nodes, steps)``, as the card says; several where a part of the data set is common too."""
        found = re.findall(r"(\d[\d,]*)(?: \([^)]*\))? x (\d[\d,]*)", self.row("Shape", "nodes x steps"))
        return [(int(nodes.replace(",", "")), int(steps.replace(",", ""))) for nodes, steps in found]

    @property
    def source(self) -> str:
        """Where the files come from, in one line: the first paragraph of ``Source``."""
        return " ".join(self.section("Source").split("\n\n")[0].split())


def _page(name: str) -> str:
    return "libcity" if name.startswith(_LIBCITY) else name


def read_card(name: str, folder: Path | None = None) -> Card:
    """The card of a data set.

    Args:
        name: As :func:`~tsjt_pyg.datasets.load_city` takes it, for example ``"los_loop"`` or ``"demo/riverton"``.
        folder: Where its files lie; of account for LibCity's, for a ``config.json`` there may name them.

    Raises:
        FileNotFoundError: If there is no card of this name.
    """
    page = _page(name)
    path = files("tsjt_pyg.datasets.bundled").joinpath(*f"{page}.md".split("/"))
    if not re.fullmatch(r"(demo/)?\w+", page) or not path.is_file():
        raise FileNotFoundError(f"card: there is no card datasets/{page}.md")
    card = Card(name, path.read_text(encoding="utf-8"), ())
    found: list[CardFile] = []
    for row in _ROW.finditer(card.section("Files")):
        file, instead = _card_file(row)
        if instead and found:
            found[-1] = replace(found[-1], others=(*found[-1].others, *file.names))
        else:
            found.append(file)
    if page == "libcity":
        stem, said = name.removeprefix(_LIBCITY), {} if folder is None else atomic_names(folder)
        found = [file.renamed(n.replace("<NAME>", stem) for n in file.names) for file in found]
        found = [file.renamed([said.get(Path(n).suffix, n) for n in file.names] + [*file.names]) for file in found]
    return replace(card, files=tuple(found))


def _card_file(row: re.Match[str]) -> tuple[CardFile, bool]:
    """The file of a row, and whether it is instead of the one above."""
    cell = re.findall(r"`([^`]+)`", row["names"])
    names = [part for part in cell if not part.endswith("/")]
    name, *others = names + [f"{inner}{part}" for inner in cell if inner.endswith("/") for part in names]
    about = row["cells"].split("|")[0].strip()
    sha256, url = _SHA256.search(row["cells"]), _URL.search(row["cells"])
    file = CardFile(
        name=name,
        about=about,
        sha256=sha256[1] if sha256 else None,
        url=url[0] if url else None,
        optional=about.startswith(("optional", "may be absent")),
        others=tuple(others),
    )
    return file, row["names"].strip().startswith("or ") or about.startswith("instead of")


def city_folder(entry: CityEntry) -> Path | None:
    """Where the files of a city lie: its folder, or that of the bundled cities; ``None`` where no root is known."""
    if entry.name.startswith("demo/"):
        bundled = files("tsjt_pyg.datasets.bundled") / "demo"
        return bundled if isinstance(bundled, Path) else None
    return entry.folder


def missing_files(card: Card, folder: Path) -> list[str]:
    """Names of the files that are needed and not in ``folder``."""
    return [file.name for file in card.files if not file.optional and not file.paths(folder)]


def where_to_get(card: Card, folder: Path) -> str:
    """One message: which files without a URL are missing, where they come from, and where they belong."""
    absent = [file for file in card.files if file.url is None and file.name in missing_files(card, folder)]
    names = ", ".join(" or ".join(file.names) for file in absent)
    return (
        f"{card.name}: {names} missing in {folder}, and there is no lawful mirror with a known checksum to download "
        f"from. Get the files by hand and put them there. Source: {card.source} The card says more: "
        f"`tsjt cities {card.page}`"
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(card: Card, folder: Path) -> dict[str, State]:
    """What each file of the card is in ``folder``, by name; reads every file that is there.

    Optional files that are absent are left out. A checksum is that of the file by its first name: another
    release of the same by another name may differ from it without being damaged.
    """
    found: dict[str, State] = {}
    for file in card.files:
        paths = file.paths(folder)
        if not paths and not file.optional:
            found[file.name] = "missing"
        for path in paths:
            name = path.relative_to(folder).as_posix()
            unknown: State = DIFFERS if name == file.name and file.sha256 else "present, checksum not on the card"
            found[name] = "as on the card" if file.sha256 and sha256_of(path) == file.sha256 else unknown
    return found
