"""A module imports only from the rooms that docs/contributing.md allows its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "tsjt_pyg"
FOR_ALL = {"_compat", "notebook", "progress"}
MAY_IMPORT = {
    "data": set(),
    "datasets": {"data"},
    "nn": {"data"},
    "optim": set(),
    "training": {"data", "nn", "optim"},
    "evaluation": {"data", "datasets", "nn", "optim", "training"},
}


def rooms_imported_by(file: Path) -> set[str]:
    here = ["tsjt_pyg", *file.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("tsjt_pyg.")}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_from_the_rooms_above_it_alone(room):
    others = {p.stem for p in PACKAGE.iterdir()} - {"__init__", room, *FOR_ALL}
    for file in (PACKAGE / room).rglob("*.py"):
        forbidden = (rooms_imported_by(file) & others) - MAY_IMPORT[room]
        assert not forbidden, f"{file.relative_to(PACKAGE)} imports from {forbidden}"


@pytest.mark.parametrize("name", sorted(FOR_ALL))
def test_what_every_room_may_use_uses_no_room(name):
    assert not rooms_imported_by(PACKAGE / f"{name}.py") & set(MAY_IMPORT)


def test_every_room_has_its_row():
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)
    page = (PACKAGE.parent / "docs/contributing.md").read_text(encoding="utf-8")
    assert all(f"| `tsjt_pyg/{room}` | " in page for room in rooms)
