"""Named cities: which there are, where they lie, and what is said when one is not there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch

from tsjt_pyg.datasets import default_sources, list_cities, load_city
from tsjt_pyg.datasets.catalogue import ROOT_VARIABLE

VERIFIED = ["los_loop", "pems04", "pems08", "jonas_nyc", "jonas_dc"]
"""Cities of which a file was at hand when the card was written."""
NAMED = [entry.name for entry in list_cities("nowhere") if entry.group != "demo"]
CARDS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


def demos() -> list[str]:
    return [entry.name for entry in list_cities() if entry.group == "demo"]


def test_the_bundled_cities_are_there_and_load():
    assert len(demos()) >= 2
    for name in demos():
        city = load_city(name)
        assert city.name == name
        assert city.num_edges > 0
        assert default_sources(name) == [other for other in demos() if other != name]


def test_all_are_listed_and_present_where_their_folder_is(tmp_path):
    (tmp_path / "pems04").mkdir()
    entries = {entry.name: entry for entry in list_cities(tmp_path)}
    assert {*VERIFIED, "metr_la", "pems_bay", "pems03", "pems07", "chengdu_m", "shenzhen", "sz_taxi"} < set(entries)
    assert {f"largest_{region}" for region in ("sd", "gba", "gla", "ca")} < set(entries)
    assert {name for name in NAMED if entries[name].present} == {"pems04"}
    assert entries["pems04"].folder == tmp_path / "pems04"
    assert (entries["los_loop"].group, entries["jonas_dc"].group) == ("speed", "trips")
    assert all(entry.about for entry in entries.values())


def test_without_a_root_only_the_bundled_are_present(monkeypatch, tmp_path):
    (tmp_path / "pems04").mkdir()
    monkeypatch.chdir(tmp_path)
    assert {entry.name for entry in list_cities() if entry.present} == set(demos())
    monkeypatch.setenv(ROOT_VARIABLE, "")
    assert {entry.name for entry in list_cities() if entry.present} == set(demos())


def test_the_environment_names_the_root_and_the_argument_wins(tmp_path, monkeypatch):
    for root, name in [("env", "pems04"), ("argument", "pems08")]:
        (tmp_path / root / name).mkdir(parents=True)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "env"))
    assert [entry.name for entry in list_cities() if entry.present and entry.folder] == ["pems04"]
    assert [e.name for e in list_cities(tmp_path / "argument") if e.present and e.folder] == ["pems08"]


def test_a_saved_city_is_loaded_by_path(make_city, tmp_path):
    city = make_city()
    path = city.save(tmp_path / "mine.npz")
    assert torch.equal(load_city(path).readings, city.readings)
    assert torch.equal(load_city(str(path)).readings, city.readings)


def test_default_sources_are_the_present_others_of_the_group(tmp_path):
    for name in ("los_loop", "pems08", "jonas_nyc"):
        (tmp_path / name).mkdir()
    assert default_sources("los_loop", tmp_path) == ["pems08"]
    assert default_sources("pems04", tmp_path) == ["los_loop", "pems08"]


@pytest.mark.parametrize(
    ("target", "sources"),
    [
        ("los_loop", ["pems08", "stgfsl_pems_bay"]),
        ("metr_la", ["pems08", "stgfsl_pems_bay"]),
        ("stgfsl_pems_bay", ["los_loop", "metr_la", "pems08"]),
        ("largest_sd", ["largest_gba"]),
        ("largest_gba", ["largest_sd"]),
    ],
)
def test_a_city_with_the_targets_sensors_is_no_default_source(tmp_path, target, sources):
    """It would show the target's readings of the days to be forecast."""
    for name in ("los_loop", "metr_la", "pems08", "stgfsl_pems_bay", "largest_sd", "largest_gba", "largest_ca"):
        (tmp_path / name).mkdir()
    assert default_sources(target, tmp_path) == sources


def test_libcity_folders_are_listed(tmp_path):
    (tmp_path / "libcity" / "LOOP_SEATTLE").mkdir(parents=True)
    (tmp_path / "libcity" / "readme.txt").touch()
    entries = [entry for entry in list_cities(tmp_path) if entry.group == "libcity"]
    assert [(entry.name, entry.present) for entry in entries] == [("libcity/LOOP_SEATTLE", True)]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*libcity/X; `tsjt cities libcity` says"):
        load_city("libcity/X", root=tmp_path)


@pytest.mark.parametrize("target", ["jonas_nyc", "nowhere", "mine.npz"])
def test_no_default_sources(tmp_path, target):
    (tmp_path / "jonas_nyc").mkdir()
    with pytest.raises(ValueError, match=rf"sources: there is no other city in the group of '{target}'.*\(--sources\)"):
        default_sources(target, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pems8",
            "city: there is no city 'pems8'; did you mean 'pems08'. Known are .*los_loop, .*libcity/<folder>.*npz",
        ),
        ("los-loop", "did you mean 'los_loop'"),
        ("demo/", "there is no city 'demo/'"),
        ("Atlantis", r"there is no city 'Atlantis'\. Known are "),
        ("../pems04", "did you mean 'pems04'"),
    ],
)
def test_an_unknown_city(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_city(name, root=tmp_path)


def test_a_bundled_city_with_a_slip_of_the_pen():
    name = demos()[0]
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        load_city(name + "n")


def test_no_root():
    with pytest.raises(
        FileNotFoundError,
        match=r"'pems04' is not bundled: .*root= \(--root\).*TSJT_CITIES.*`tsjt cities pems04` says which",
    ):
        load_city("pems04")


def test_no_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"'pems04': there is no folder .*pems04; `tsjt cities pems04` says what"
    ):
        load_city("pems04", root=tmp_path)


# --- cards


@pytest.mark.parametrize("name", NAMED)
def test_cards_say_what_the_errors_promise(name):
    card = (CARDS / f"{name}.md").read_text()
    for heading in ("Source", "Terms", "Shape", "Files", "Load"):
        assert f"\n## {heading}\n" in card
    assert f'load_city("{name}", root=' in card
    assert f"`<root>/{name}/`" in card
    verified = len(re.findall(r"`[0-9a-f]{64}`", card)) >= 1
    assert verified == (name in VERIFIED)
    assert verified or "no file was at hand" in card


@pytest.mark.parametrize("name", VERIFIED)
def test_checksums_of_the_cards(name, cities_root):
    rows = re.findall(r"\| `([^`]+)`[^|]*\|.*`([0-9a-f]{64})`", (CARDS / f"{name}.md").read_text())
    if not (cities_root / name).is_dir():
        pytest.skip(f"the city {name} is not in {cities_root}")
    assert rows
    for file, checksum in rows:
        assert hashlib.sha256((cities_root / name / file).read_bytes()).hexdigest() == checksum, file
