"""Which names are public, and one entry of the inventory for each place that an object is public at.

``City`` can be had from ``tsjt_pyg`` and ``tsjt_pyg.data``: the API reference describes it once, and the other name
leads there.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.viewcode import viewcode_anchor

MODULES = [
    "tsjt_pyg",
    *(f"tsjt_pyg.{room}" for room in ("data", "datasets", "nn", "optim", "optim.filters", "training", "evaluation")),
]


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public name, in full, and what it is."""
    for name in MODULES:
        module = import_module(name)
        for public in module.__all__:
            yield f"{name}.{public}", getattr(module, public)


def defined_in(file: str) -> str:
    """The first public object that a module of the repository defines."""
    module = file.removesuffix(".py").replace("/", ".")
    found = [name for name, obj in public_names() if getattr(obj, "__module__", "") == module]
    if not found:
        raise ValueError(f"{file} defines nothing public that a link could lead to")
    return found[0]


def add_aliases(app: Sphinx, env: BuildEnvironment) -> None:
    """Other names of what is described, its members among them: other public ones, and where it is defined."""
    described = env.domains.python_domain.objects
    homes = {id(found): name for name, found in public_names() if name in described}
    others = [(name, homes[id(found)]) for name, found in public_names() if id(found) in homes]
    others += [
        (f"{found.__module__}.{found.__qualname__}", homes[id(found)])
        for _, found in public_names()
        if id(found) in homes and hasattr(found, "__qualname__")
    ]
    for other, home in others:
        for name in [name for name in described if name == home or name.startswith(f"{home}.")]:
            described.setdefault(other + name.removeprefix(home), described[name]._replace(aliased=True))


def name_by_module(app: Sphinx, doctree: nodes.document) -> None:
    """Every entry can be led to by the module of its source, too: so does the page that shows the source."""
    for signature in doctree.findall(addnodes.desc_signature):
        for source in signature.findall(viewcode_anchor):
            place = f"{source['reftarget'].removeprefix('_modules/').replace('/', '.')}.{source['refid']}"
            if place not in signature["ids"]:
                signature["ids"].append(place)


def lead_back(app: Sphinx, env: BuildEnvironment) -> None:
    """viewcode keeps one name of a module for the way back from its source, though it has entries by several."""
    modules: dict[str, Any] = getattr(env, "_viewcode_modules", {})
    modules.update({name: (*entry[:3], name) for name, entry in modules.items() if entry})


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", name_by_module, priority=900)  # after viewcode
    app.connect("env-updated", add_aliases)
    app.connect("env-updated", lead_back)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
