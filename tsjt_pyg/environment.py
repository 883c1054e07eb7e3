"""What `tsjt doctor` looks at: versions, what is missing, and what mends it."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from . import __version__
from ._compat import TEMPORAL_INSTALL_COMMAND, import_temporal, temporal_version
from .datasets import list_cities

_PACKAGES = (
    "torch",
    "torch-geometric",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "networkx",
    "joblib",
    "matplotlib",
    "rich",
    "typer",
    "requests",
    "tqdm",
)


@dataclass(frozen=True)
class Check:
    """One line of the report; ``fine=False`` needs ``remedy``."""

    what: str
    found: str
    fine: bool = True
    remedy: str = ""


def checks(root: str | Path | None = None) -> list[Check]:
    """All checks in order."""
    found = [Check("tsjt_pyg", __version__), Check("python", platform.python_version())]
    found += [_package(name) for name in _PACKAGES]
    found.append(_temporal())
    if torch.cuda.is_available():
        found.append(Check("GPU", torch.cuda.get_device_name()))
    else:
        found.append(Check("GPU", "none (models train on the CPU)"))
    for entry in list_cities(root):
        if entry.present:
            found.append(Check(entry.name, "present"))
        else:
            found.append(Check(entry.name, "not present (optional)", remedy=f"--root FOLDER; tsjt cities {entry.name}"))
    return found


def _package(name: str) -> Check:
    try:
        return Check(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "not installed", fine=False, remedy=f"pip install {name}")


def _temporal() -> Check:
    name = "torch-geometric-temporal"
    try:
        import_temporal()
    except ImportError as error:
        found = "not installed" if temporal_version() is None else f"cannot be imported ({error})"
        return Check(name, found, fine=False, remedy=TEMPORAL_INSTALL_COMMAND)
    return Check(name, str(temporal_version()))
