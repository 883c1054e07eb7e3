"""Each data set has a card, and the card says what the loader gives."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pandas as pd
import pytest

from tsjt_pyg.data import City
from tsjt_pyg.datasets import list_cities, load_city
from tsjt_pyg.datasets.cards import Card, missing_files, read_card, sha256_of, verify_files, where_to_get

NAMES = [entry.name for entry in list_cities()]
each_city = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def city(name, request) -> City:
    return load_city(name) if name.startswith("demo/") else request.getfixturevalue("real_city")(name)


def channels_and_units(card: Card) -> tuple[list[str], list[str]]:
    """Of the row ``channels (units)``: a unit in brackets is that of all channels before it that have none yet."""
    channels: list[str] = []
    units: list[str] = []
    for channel, unit in re.findall(r"`([^`]+)`|\(([^():;]+)[^()]*\)", card.row("Shape", "channels (units)")):
        channels += [channel] if channel else []
        units += [unit] * (len(channels) - len(units)) if unit else []
    return channels, units


# --- what a card says


@each_city
def test_it_has_all_sections(name):
    card = read_card(name)
    assert card.text.startswith("# ")
    for heading in ("Source", "Terms", "Shape", "Files", "Load"):
        assert card.section(heading), heading
    for key in ("nodes x steps", "interval", "channels (units)", "missing", "graph", "node ids, positions"):
        assert card.row("Shape", key), key
    assert f'load_city("{name}"' in card.section("Load")
    if not name.startswith("demo/"):
        assert f"`<root>/{name}/`" in card.section("Files")


@each_city
def test_every_file_has_a_checksum_or_says_that_it_is_not_known(name):
    card = read_card(name)
    assert any(not file.optional for file in card.files)
    unknown = "No checksum stands here" in card.section("Files")
    for file in card.files:
        row = next(line for line in card.section("Files").splitlines() if line.startswith(f"| `{file.name}`"))
        assert file.sha256 or unknown or "not known" in row, file.name
        assert file.sha256 or not file.url, f"{file.name}: a URL without a checksum"
        assert file.about, file.name


@each_city
def test_nodes_steps_interval_and_start_are_the_loaders(name, city):
    card = read_card(name)
    assert (city.num_nodes, city.num_steps) in card.shapes
    found = re.match(r"(\d+) min, from ([\d-]+ [\d:]+)", card.row("Shape", "interval"))
    assert found is not None
    assert pd.Timedelta(minutes=int(found[1])) == city.interval
    assert pd.Timestamp(found[2]) == city.start


@each_city
def test_channels_and_units_are_the_loaders(name, city):
    assert channels_and_units(read_card(name)) == ([*city.channels], [*city.units])


@each_city
def test_edges_ids_and_positions_are_the_loaders(name, city):
    card = read_card(name)
    assert re.match(r"[\d,]+", card.row("Shape", "graph"))[0].replace(",", "") == str(city.num_edges)  # type: ignore
    assert ("no positions" in card.row("Shape", "node ids, positions")) == (city.pos is None)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("demo/")])
def test_the_files_are_those_of_the_card(name, cities_root):
    folder = cities_root / name
    if not folder.is_dir():
        pytest.skip(f"the city {name} is not there")
    card = read_card(name)
    assert missing_files(card, folder) == []
    assert set(verify_files(card, folder).values()) <= {"as on the card", "present, checksum not on the card"}


# --- how it is read

CARD = Card(
    "atlantis",
    "# atlantis\n\n## Source\n\nThe library of\nAlexandria.\n\n- Plato, *Timaeus*.\n\n## Shape\n\n| | |\n|---|---|\n"
    "| nodes x steps | 10 x 1,694 (2 days); whole 3,007 x 17856 (59 days) |\n| missing | a zero |\n\n## Files\n\n"
    "| file | what it holds | SHA-256 | URL |\n|---|---|---|---|\n",
    (),
)


def parsed(rows: str, monkeypatch, tmp_path) -> Card:
    """The card above with these rows under ``Files``."""
    (tmp_path / "atlantis.md").write_text(CARD.text + rows, encoding="utf-8")
    monkeypatch.setattr("tsjt_pyg.datasets.cards.files", lambda _: tmp_path)
    return read_card("atlantis")


def test_sections_rows_and_files(monkeypatch, tmp_path):
    sha = hashlib.sha256(b"tide").hexdigest()
    card = parsed(
        f"| `speed.csv` | a column a sensor | `{sha}` | <https://example.org/speed.csv> |\n"
        "| `edges.csv` | from, to | not known |\n| `LICENSE` | optional: the terms | not known |\n\n## Load\n\nNo.\n",
        monkeypatch,
        tmp_path,
    )
    speed, edges, terms = card.files
    assert (speed.name, speed.about, speed.sha256) == ("speed.csv", "a column a sensor", sha)
    assert (speed.url, speed.optional) == ("https://example.org/speed.csv", False)
    assert (edges.sha256, edges.url, edges.optional) == (None, None, False)
    assert (terms.name, terms.optional) == ("LICENSE", True)
    assert card.source == "The library of Alexandria."
    assert card.shapes == [(10, 1694), (3007, 17856)]
    assert card.row("Shape", "missing") == "a zero"
    assert (card.row("Shape", "nothing"), card.section("Load"), card.section("Terms")) == ("", "No.", "")


def test_files_are_found_missing_and_verified(monkeypatch, tmp_path):
    folder = tmp_path / "root" / "atlantis"
    folder.mkdir(parents=True)
    sha = hashlib.sha256(b"tide").hexdigest()
    rows = [f"| `{name}` | x | `{sha}` |" for name in ("right.csv", "wrong.csv", "away.csv")]
    card = parsed(
        "\n".join([*rows, "| `free.csv` | x | not known |", "| `LICENSE` | optional |"]), monkeypatch, tmp_path
    )
    for file, content in [("right.csv", b"tide"), ("wrong.csv", b"ebb"), ("free.csv", b"sea")]:
        (folder / file).write_bytes(content)
    assert missing_files(card, folder) == ["away.csv"]
    assert verify_files(card, folder) == {
        "right.csv": "as on the card",
        "wrong.csv": "differs from the card",
        "away.csv": "missing",
        "free.csv": "present, checksum not on the card",
    }
    assert sha256_of(folder / "right.csv") == sha
    text = where_to_get(card, folder)
    assert f"atlantis: away.csv missing in {folder}, and there is no lawful mirror" in text
    assert "Source: The library of Alexandria." in text
    assert "`tsjt cities atlantis`" in text


def test_of_some_files_one_is_enough(monkeypatch, tmp_path):
    card = parsed(
        "| `a.pkl` (or `b.pkl`) | weights |\n| `c.csv` | instead of the pickle: distances |\n| `d.h5` | readings |\n"
        "| or `e.h5` | readings |\n| `f.csv` | may be absent: positions |\n",
        monkeypatch,
        tmp_path,
    )
    assert [(file.name, file.others, file.optional) for file in card.files] == [
        ("a.pkl", ("b.pkl", "c.csv"), False),
        ("d.h5", ("e.h5",), False),
        ("f.csv", (), True),
    ]
    assert missing_files(card, tmp_path) == ["a.pkl", "d.h5"]
    assert "a.pkl or b.pkl or c.csv, d.h5 or e.h5 missing in" in where_to_get(card, tmp_path)
    for file in ("c.csv", "e.h5"):
        (tmp_path / file).touch()
    assert missing_files(card, tmp_path) == []
    assert list(verify_files(card, tmp_path)) == ["c.csv", "e.h5"]


def test_files_may_lie_in_a_folder_and_have_other_names(monkeypatch, tmp_path):
    card = parsed(
        "| `a.pkl` (or `b.pkl`; or in `graph/`) | weights |\n| `c.csv` (or in `graph/`) | instead of the pickle |\n",
        monkeypatch,
        tmp_path,
    )
    (file,) = card.files
    assert file.names == ("a.pkl", "b.pkl", "graph/a.pkl", "graph/b.pkl", "c.csv", "graph/c.csv")
    assert [card.file(name) for name in file.names] == [file] * 6
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "b.pkl").touch()
    assert missing_files(card, tmp_path) == []
    assert list(verify_files(card, tmp_path)) == ["graph/b.pkl"]


def test_a_checksum_is_that_of_the_first_name(monkeypatch, tmp_path):
    """Another release of the same by another name differs from it, and is not damaged for that."""
    card = parsed(f"| `a.csv` (or `b.csv`) | x | `{hashlib.sha256(b'tide').hexdigest()}` |\n", monkeypatch, tmp_path)
    for name, content, state in [
        ("a.csv", b"tide", "as on the card"),
        ("a.csv", b"ebb", "differs from the card"),
        ("b.csv", b"tide", "as on the card"),
        ("b.csv", b"ebb", "present, checksum not on the card"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert verify_files(card, tmp_path)[name] == state
        (tmp_path / name).unlink()


def test_a_folder_of_libcity_has_the_card_of_its_format(monkeypatch, tmp_path):
    (tmp_path / "libcity.md").write_text("# libcity\n\n## Files\n\n| `<NAME>.geo` | places |\n", encoding="utf-8")
    monkeypatch.setattr("tsjt_pyg.datasets.cards.files", lambda _: tmp_path)
    card = read_card("libcity/METR_LA")
    assert [file.name for file in card.files] == ["METR_LA.geo"]
    assert (card.shapes, card.source, card.page) == ([], "", "libcity")
    assert [file.name for file in read_card("libcity/a | `b`").files] == ["a | `b`.geo"]
    assert "`tsjt cities libcity`" in where_to_get(card, tmp_path)


def test_a_shape_with_a_remark():
    card = replace(CARD, text=CARD.text.replace("10 x 1,694", "10 (paper, not verified) x 1,694"))
    assert card.shapes == [(10, 1694), (3007, 17856)]


@pytest.mark.parametrize("name", ["atlantis", "../README", "demo/", "demo/../los_loop", ""])
def test_there_is_no_such_card(name):
    with pytest.raises(FileNotFoundError, match="there is no card datasets/"):
        read_card(name)
