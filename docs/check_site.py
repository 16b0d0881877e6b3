"""Follow every link of a built site: each leads to a file and a place in it, and nothing is fetched from elsewhere.

usage: python docs/check_site.py [FOLDER]
"""

import re
import sys
from html import unescape
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote

# Sphinx writes quotes inside text as entities, so that these are attributes.
ATTRIBUTE = re.compile(r'<(\w+)(?=\s)|\s(href|src|id|name)="([^"]*)"')
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}
IN_CSS = re.compile(r"(?:@import\s+|url\()['\"]?(https?://[^'\")\s]+)")


def read(
    html: str,  # a page
) -> tuple[set[str], set[str], set[str]]:
    """What a page links to, the places in it, and what it fetches."""
    links, places, fetched, tag = set(), set(), set(), ""
    for begun, name, value in ATTRIBUTE.findall(html):
        if begun:
            tag = begun
        elif name in ("id", "name"):
            places.add(unescape(value))
        else:
            links.add(unescape(value))
            if (tag, name) in FETCHED:
                fetched.add(unescape(value))
    return links, places, fetched


def faults(
    site: Path,  # a folder of pages
) -> list[str]:
    """A sentence for each link that leads nowhere, and for what would be fetched from another site."""
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    pages = {n: read((site / n).read_text("utf-8")) for n in sorted(files) if n.endswith(".html")}
    said = []
    for here, (links, _, fetched) in pages.items():
        for link in sorted(links):
            if re.match(r"[a-z]+:|//", link):
                if link in fetched and not link.startswith("data:"):
                    said.append(f"{here} fetches {link} from another site.")
                continue
            path, _, fragment = link.partition("#")
            to = normpath(join(dirname(here), unquote(path.partition("?")[0]))) if path else here
            if to not in files:
                said.append(f"{here} links to {link}: there is no such file.")
            elif to in pages and fragment and unquote(fragment) not in pages[to][1]:
                said.append(f"{here} links to {link}: there is no such place.")
    for name in sorted(files):
        if name.endswith(".css"):
            for address in IN_CSS.findall((site / name).read_text("utf-8")):
                said.append(f"{name} fetches {address} from another site.")
    return said


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "_docs"
    found = faults(Path(sys.argv[1]) if sys.argv[1:] else default)
    print(*found, sep="\n")
    sys.exit(bool(found))
