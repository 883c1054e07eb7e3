"""How torch_geometric_temporal is imported.

Its wheel asks for torch-sparse and torch-scatter, which exist as source only and take many minutes to compile. The
only use it makes of them is ``from torch_sparse import SparseTensor`` for one annotation. So it is installed without
its dependencies, and imported here with a stand-in for ``torch_sparse`` in :data:`sys.modules` for the duration of
that one import, where the real one is absent.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType

TEMPORAL_INSTALL_COMMAND = "pip install --no-deps torch-geometric-temporal==0.56.2"


def import_temporal() -> ModuleType:
    """The module :mod:`torch_geometric_temporal`.

    Raises:
        ImportError: If it is not installed; the message holds the command that installs it.
    """
    name = "torch_geometric_temporal"
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        raise ImportError(
            f"torch-geometric-temporal is not installed. Install it without its dependencies (it asks for "
            f"torch-sparse, which it does not need): {TEMPORAL_INSTALL_COMMAND}"
        )
    stand_in = not _has_torch_sparse()
    if stand_in:
        from torch_geometric.typing import SparseTensor

        module = ModuleType("torch_sparse")
        module.SparseTensor = SparseTensor  # type: ignore[attr-defined]
        sys.modules["torch_sparse"] = module
    try:
        return importlib.import_module(name)
    finally:
        if stand_in:
            del sys.modules["torch_sparse"]


def _has_torch_sparse() -> bool:
    if "torch_sparse" in sys.modules:
        return True
    try:
        importlib.import_module("torch_sparse")
    except (ImportError, OSError):  # absent, or built for another torch
        sys.modules.pop("torch_sparse", None)
        return False
    return True


def temporal_version() -> str | None:
    """Version of the installed torch-geometric-temporal distribution (its ``__version__`` is wrong), or ``None``."""
    try:
        return importlib.metadata.version("torch-geometric-temporal")
    except importlib.metadata.PackageNotFoundError:
        return None
