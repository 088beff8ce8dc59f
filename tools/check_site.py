"""The built site by itself: every link within it leads somewhere, and nothing comes from elsewhere.

`python tools/check_site.py build/site` prints what is wrong; its exit code says whether anything
is.  Links to other sites are not followed: `make docs-links` does, where there is a network.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
}
_URL = re.compile(r"""url\(\s*['"]?([a-z]+:)?//[^)]*\)|@import\s+['"](?:[a-z]+:)?//""")


class Page(HTMLParser):
    """What a page is called at (`ids`), leads to (`links`) and fetches (`fetched`)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's attributes."""
        for name, value in attrs:
            if value is None:
                continue
            if name == "id":
                self.ids.add(value)
            elif (tag, name) in FETCHED:
                self.fetched.append(value)
                self.links.append(value)
            elif name == "href":
                self.links.append(value)


def faults(site: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} holds no pages"
    for path, page in pages.items():
        where = path.relative_to(site)
        for link in page.fetched:
            if _elsewhere(link):
                yield f"{where} fetches {link}"
        for link in page.links:
            if _elsewhere(link) or link.startswith(("data:", "mailto:")):
                continue
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{where} leads to {link}, which is not there"
            elif parts.fragment and target.suffix == ".html":
                known = pages[site.resolve() / target.relative_to(site.resolve())].ids
                if unquote(parts.fragment) not in known:
                    yield f"{where} leads to {link}, where nothing is called so"
    for path in sorted(site.rglob("*.css")):
        for found in _URL.finditer(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)} fetches {found[0]}"


def _elsewhere(link: str) -> bool:
    return bool(urlsplit(link).netloc)


def main() -> None:
    """Look at the site that is named."""
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) if found else "every link within the site leads somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
