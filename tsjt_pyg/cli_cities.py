"""``tsjt cities``: which cities there are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from .console import clear_errors, out, plain
from .datasets import CityEntry, list_cities, load_city
from .datasets.cards import DIFFERS, city_folder, missing_files, read_card, verify_files

Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the cities that are not bundled, one folder a city.", envvar="TSJT_CITIES"),
]


def cities(
    name: Annotated[str | None, typer.Argument(help="Show the card of this city.")] = None,
    root: Root = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the files' SHA-256 against the cards.")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Say what is in the city (a name or a file).")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the described city to this file.")] = None,
) -> None:
    """List the cities that are known, and which of them are present; or say more of one."""
    with clear_errors():
        if describe or picture is not None:
            _describe(name, root, picture)
            return
        entries = list_cities(root)
        if name is not None:
            entries = [entry for entry in entries if name == entry.name or name == entry.group == "libcity"]
            if not entries and name != "libcity":  # which has a card, and a folder a data set
                load_city(name, root)  # says which there are, where this is none
                raise ValueError(f"city: {name} has no card: it is a file or folder of one's own (--describe shows it)")
        if verify:
            _verify(entries)
        elif name is not None:
            out.print(read_card(name).text, markup=False, highlight=False, soft_wrap=True)
        else:
            _list(entries)


def _describe(name: str | None, root: Path | None, picture: Path | None) -> None:
    if name is None:
        raise ValueError("--describe: say which city, for example `tsjt cities demo/riverton --describe`")
    description = load_city(name, root).describe()
    out.print(plain(str(description)), highlight=False, soft_wrap=True)
    if picture is not None:
        description.plot(picture)


def _list(entries: list[CityEntry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("city", "group", "present", "size", "nodes x steps", "what it is"):
        table.add_column(column)
    for entry in entries:
        folder = city_folder(entry)
        card = read_card(entry.name, folder)
        absent = missing_files(card, folder) if entry.present and folder is not None else []
        size = sum(path.stat().st_size for file in card.files if folder for path in file.paths(folder))
        table.add_row(
            entry.name,
            entry.group,
            f"without {', '.join(absent)}" if absent else "yes" if entry.present else "no",
            decimal(size) if size else "",
            " x ".join(f"{count:,}" for count in card.shapes[0]) if card.shapes else "",
            entry.about,
        )
    out.print(table)
    if not all(entry.present for entry in entries):
        out.print("Cities that are not present: --root FOLDER (or TSJT_CITIES) says where they lie; `tsjt cities CITY`")


def _verify(entries: list[CityEntry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("city", "file", "SHA-256"):
        table.add_column(column, overflow="fold")
    states = []
    for entry in entries:
        folder = city_folder(entry)
        if entry.present and folder is not None:
            for file, state in verify_files(read_card(entry.name, folder), folder).items():
                states.append(state)
                table.add_row(entry.name, file, f"[red]{state}[/]" if state == DIFFERS else state)
    out.print(table if states else "None of these cities is present.")
    if DIFFERS in states or not states:
        raise typer.Exit(1)
