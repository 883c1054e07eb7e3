"""Pages of the site that are made of files outside ``docs/``, and links to such files.

The pages of ``docs/`` are read on the site and, as plain Markdown, where the code is. So their links name files of the
repository, and here they are led to the page that the site has of the file:

- ``benchmarks/results/*.md``, the cards ``datasets/*.md`` and ``CHANGELOG.md`` are copied into ``docs/_generated``;
- a comparison, a folder in ``benchmarks/results``, becomes a page with its table and picture;
- a script of the galleries leads to its page, a module of ``tsjt_pyg`` to the API entry of what it defines.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from command_line import reference
from public_names import defined_in
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from tsjt_pyg.evaluation import Comparison

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"(^(`{3,}).*?^\2\s*?$)", flags=re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^<!--.*?-->$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def page_of(file: str) -> str | None:
    """The page of a file or folder of the repository; None where the site has none."""
    path = PurePosixPath(file)
    folder, name = path.parent.as_posix(), path.stem
    if folder in ("docs/tutorials", "docs/how_it_works") and path.suffix == ".py":
        return f"_generated/{path.parent.name}/{name}"
    if path.suffix == ".md" or not path.suffix:
        places = {"benchmarks/results": "_generated/results", "datasets": "_generated/cards"}
        if folder in places:
            return f"{places[folder]}/{name}"
    known = {
        "README.md": "index",
        "CHANGELOG.md": "_generated/changelog",
        "benchmarks/results": "_generated/results/index",
        "datasets": "_generated/cards/index",
        "docs/tutorials": "_generated/tutorials/index",
        "docs/how_it_works": "_generated/how_it_works/index",
    }
    return known.get(file) or (f"{name}" if folder == "docs" and path.suffix == ".md" else None)


def file_of(page: str) -> str:
    """The file of the repository that a page was made of; its links are relative to that."""
    folder, _, name = page.rpartition("/")
    places = {"_generated/results": "benchmarks/results", "_generated/cards": "datasets"}
    if folder in places:
        return f"{places[folder]}/{name}.md"
    return "CHANGELOG.md" if page == "_generated/changelog" else f"docs/{page}.md"


def lead(page: str, text: str) -> str:
    """The Markdown of a page for the site: links lead to its pages, comments (the tests' checks) are gone."""
    here = os.path.dirname(file_of(page))  # noqa: PTH120

    def led(match: re.Match[str]) -> str:
        label, link, heading = match.groups(default="")
        file = os.path.normpath(f"{here}/{link}").rstrip("/")
        if file.startswith("tsjt_pyg/") and file.endswith(".py"):
            return f"{{py:obj}}`{label.strip('`')} <{defined_in(file)}>`"
        there = page_of(file)
        if there is not None:
            kind = "rst" if there.startswith(("_generated/tutorials/", "_generated/how_it_works/")) else "md"
            return f"[{label}](/{there}.{kind}{heading})"
        if (ROOT / file).exists() and not file.startswith("docs/"):
            raise ExtensionError(f"{page}: the site has no page of {file}, where a link leads (docs/_ext/elsewhere.py)")
        return match[0]  # a picture, or nothing: then Sphinx says so

    pieces = FENCE.split(text)
    for i in range(0, len(pieces), 3):  # text, fence, its ticks, text, …
        without = COMMENT.sub(lambda match: "\n" * match[0].count("\n"), pieces[i])
        pieces[i] = LINK.sub(led, without)
    return "".join(piece for i, piece in enumerate(pieces) if i % 3 != 2)


def made_pages() -> Iterator[tuple[str, str]]:
    """Pages and their Markdown."""
    results, cards = ROOT / "benchmarks/results", ROOT / "datasets"
    yield "changelog", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    yield "command_line", reference()
    for file in (*sorted(results.glob("*.md")), *sorted(cards.glob("*.md"))):
        folder = "cards" if file.parent == cards else "results"
        yield f"{folder}/{file.stem}", file.read_text(encoding="utf-8")
    comparisons = sorted(file.parent for file in results.glob("*/comparison.json"))
    for folder in comparisons:
        yield f"results/{folder.name}", comparison_page(folder)
    measured = contents([file.stem for file in sorted(results.glob("*.md"))], "Speed, memory, parts of the model")
    yield "results/index", f"{RESULTS}\n{measured}\n{contents([folder.name for folder in comparisons], 'Comparisons')}"
    yield "cards/index", f"{CARDS}\n{contents([file.stem for file in sorted(cards.glob('*.md'))])}"


RESULTS = """# Measured, run by run

Every page here is as a command of `benchmarks/` or `tsjt compare` wrote it; it says which. What was found on real
cities is in [Results](../../docs/results.md).
"""
CARDS = """# Data sets

A card a city: its source, terms, shape, checksums, and where its files belong. `tsjt cities` says which of them are
present. The simulated demo cities come with the package.
"""


def comparison_page(folder: Path) -> str:
    """A comparison's table, its picture if it has one, and its protocol."""
    found = Comparison.load(folder)
    about = {key: value for key, value in found.protocol.items() if not isinstance(value, dict | list)}
    sources = ", ".join(found.protocol["sources"])
    title = f"# {found.protocol['target']}, {found.protocol['visible_days']:g} visible days"
    picture = f"![Error by horizon and gain over target_only]({folder.name}.png)"
    picture = picture if (folder / "comparison.png").exists() else ""
    rows = "\n".join(f"| {key} | {value} |" for key, value in about.items())
    versions = ", ".join(f"{name} {number}" for name, number in found.protocol["versions"].items())
    return (
        f"{title}\n\nSources: {sources}. The record is `benchmarks/results/{folder.name}/comparison.json`.\n\n"
        f"{found.to_markdown()}\n\n{picture}\n\n| protocol | |\n| --- | --- |\n{rows}\n| versions | {versions} |\n"
    )


def contents(pages: list[str], caption: str = "") -> str:
    named = f":caption: {caption}\n" if caption else ""
    return "```{{toctree}}\n:maxdepth: 1\n{}\n{}\n```\n".format(named, "\n".join(pages))


def make_pages(app: Sphinx) -> None:
    made = Path(app.srcdir) / "_generated"
    for name, text in made_pages():
        write(made / f"{name}.md", text)
    listed = "".join(file.read_text(encoding="utf-8") for file in (Path(app.srcdir) / "api").glob("*.rst"))
    for stub in (made / "api").glob("*.rst"):
        if f"~{stub.stem}\n" not in listed:
            stub.unlink()  # of a name that is gone
    for picture in (ROOT / "benchmarks/results").glob("*/comparison.png"):
        shutil.copy2(picture, made / "results" / f"{picture.parent.name}.png")


def write(file: Path, text: str) -> None:
    """Leaves a file alone that is so already: what did not change is not built again."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def lead_links(app: Sphinx, page: str, source: list[str]) -> None:
    if Path(app.env.doc2path(page)).suffix == ".md":
        source[0] = lead(page, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", make_pages, priority=400)  # before autosummary and the galleries
    app.connect("source-read", lead_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
