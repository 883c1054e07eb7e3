"""Follows every link of the built site that stays within it: `python docs/check_links.py docs/_build/html`."""

import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places in it that links may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.places.add(value or "")
            elif name in ("href", "src") and value:
                self.links.append(value)


def dead_links(site: Path) -> dict[str, list[str]]:
    """Files and places that are not there, each with the pages that lead to it."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    if not pages:
        raise SystemExit(f"{site}: no page is there; `make docs` builds the site")
    dead: dict[str, list[str]] = {}
    for file, page in pages.items():
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            place = unquote(parts.fragment)
            if not there.is_file() or (place and there in pages and place not in pages[there].places):
                name = os.path.relpath(there, site) + (f"#{place}" if place else "")
                dead.setdefault(name, []).append(file.relative_to(site).as_posix())
    return dead


def main(site: Path) -> None:
    dead = dead_links(site.resolve())
    for name, pages in dead.items():
        more = f" and {len(pages) - 1} more pages" if len(pages) > 1 else ""
        print(f"{name}: is not there, but {pages[0]}{more} leads to it")
    if dead:
        raise SystemExit(f"{len(dead)} dead links")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
