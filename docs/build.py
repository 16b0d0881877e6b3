"""Render the notebooks as a site in _docs/: execute them, keep what readers want, run Sphinx, follow every link.

usage: python docs/build.py [--jobs N]

What was executed and what Sphinx read is kept in _proc/, so that only what changed is done again.
"""

import argparse
import ast
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import nbformat
from api_reference import entries
from check_site import faults
from execnb.nbio import nb2str
from execute import KEPT, execute_all
from generate import DIRECTIVE, ROOT, from_root, notebooks, relink
from nbdev.process import NBProcessor
from nbdev.processors import filter_stream_, hide_, hide_line, strip_ansi
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from sphinx.cmd.build import main as sphinx

OUT = ROOT / "_docs"
INDEX = Path("nbs/index.ipynb")
READING = "The notebooks, a folder a room, in reading order"  # what stands before the list of them
TOP = {"cli": "the command line"}  # notebooks in no room that are not the ground
GUIDES = {  # and their pages
    "QUICKSTART.md": "quickstart",
    "docs/demo.md": "demo",
    "docs/demo.es.md": "demo.es",
    "CONTRIBUTING.md": "contributing",
}
RUN = {  # for those who run it
    "deploy/README.md": "deploy",
    "docs/operations.md": "operations",
    "docs/metrics-and-logs.md": "metrics-and-logs",
}
LOOK_UP = [  # to look things up in
    *("decisions", "model-card", "settings", "routes", "commands", "data-dictionary"),
    "declaration",
]
TEXTS = GUIDES | RUN | {f"docs/{name}.md": name for name in LOOK_UP}
TICKED = re.compile(r"(?<![\[`])`([A-Za-z]\w*)(?:\(\))?`(?![`\]])")
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

ini = ConfigParser(delimiters=["="])
ini.read(ROOT / "settings.ini", encoding="utf-8")
REPOSITORY = "{git_url}/blob/{branch}".format(**ini["DEFAULT"])


@dataclass(frozen=True)
class Symbol:
    """A function or class that a notebook exports."""

    name: str
    page: str
    summary: str

    @property
    def label(self) -> str:
        """What the cell that defines it is called on the site."""
        kind = "-class" if self.name[0].isupper() else ""  # labels know no capitals
        return f"{self.page}{kind}-{self.name}".lower().replace("/", "-")

    @property
    def full(self) -> str:
        """Its name in the package, which its entry in the reference is found by."""
        return f"housing_mlops.{self.page.replace('/', '.')}.{self.name}"

    @property
    def link(self) -> str:
        """A link to that cell."""
        return f"[`{self.name}`](#{self.label})"


@dataclass
class Page:
    """What readers see of a notebook."""

    path: Path  # of the notebook, from the project's root
    cells: list[NotebookNode]
    symbols: list[Symbol]
    exported: list[str]  # the sources of the cells that are

    @property
    def title(self) -> str:
        """Its first heading."""
        first = next(c.source for c in self.cells if c.source.startswith("# "))
        return first.partition("\n")[0].removeprefix("# ")

    @property
    def name(self) -> str:
        """Where it lies on the site."""
        return page_name(self.path)

    @property
    def room(self) -> str:
        """What the notebooks of its folder are about, as the side bar says it."""
        folder = self.name.rpartition("/")[0] or TOP.get(self.name, "the ground")
        return folder.replace("_", " ").capitalize()


def page_name(
    path: str | Path,  # a notebook
) -> str:
    """The name of its page: `nbs/7_monitoring/02_drift.ipynb` becomes `monitoring/drift`."""
    _, *parts = Path(path).with_suffix("").parts
    return "/".join(re.sub(r"^\d+_", "", part) for part in parts)


def defined(
    source: str,  # a cell that is exported
    page: str,  # the page that it stands on
) -> Iterator[Symbol]:
    """The public functions and classes of a cell."""
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITION) and not node.name.startswith("_"):
            yield Symbol(node.name, page, (ast.get_docstring(node) or "").partition("\n")[0])


def only_imports(
    source: str,  # a cell
) -> bool:
    """Whether a cell holds imports alone, which the page folds."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def read(
    path: Path,  # an executed notebook
    source: Path,  # the notebook, from the project's root
) -> Page:
    """What nbdev's directives leave of a notebook, with a label before each definition."""
    processor = NBProcessor(path, procs=[hide_, hide_line, filter_stream_, strip_ansi])
    processor.process()
    page = Page(source, [], [], [])
    kept = nbformat.reads(nb2str(processor.nb), 4).cells
    for cell, before in zip(kept, processor.nb.cells, strict=True):
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source)
            if before.directives_.keys() & {"export", "exports"}:
                symbols = list(defined(cell.source, page.name))
                labels = "\n".join(f"({symbol.label})=" for symbol in symbols)
                page.cells += [new_markdown_cell(labels)] if labels else []
                page.symbols += symbols
                page.exported.append(cell.source)
            if only_imports(cell.source):
                cell.metadata["tags"] = ["hide-input"]
        if cell.source.strip():
            page.cells.append(cell)
    return page


def on_site(
    folder: str,  # the folder of a page, from the project's root
    page: str,  # its name on the site
    site: Path,  # where the pages are gathered
) -> Callable[[str], str]:
    """A function that gives a link of that page its target on the site."""

    def move(target: str) -> str:
        path, fragment = from_root(target, folder)
        up = "../" * page.count("/")
        if path == "README.md":
            return up + "index.ipynb" + fragment
        if guide := TEXTS.get(path):
            return up + guide + ".md" + fragment
        if path.startswith("nbs/"):
            return up + page_name(path) + ".ipynb" + fragment
        if path.endswith((".svg", ".png")):
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, site / path)  # as old as it is, so that Sphinx sees no change
            return up + path
        return f"{REPOSITORY}/{path}{fragment}"

    return move


def write(
    page: Page,  # a page
    site: Path,  # where the pages are gathered
    symbols: dict[str, Symbol],  # what all notebooks export, by name
) -> None:
    """Write a page, its links moved and each `name` that a notebook exports made a link."""
    own = symbols | {symbol.name: symbol for symbol in page.symbols}

    def ticked(match: re.Match[str]) -> str:
        return own[match[1]].link if match[1] in own else match[0]

    for cell in page.cells:
        if cell.cell_type == "markdown":
            move = on_site(str(page.path.parent), page.name, site)
            lines = relink(cell.source, move).split("\n")
            cell.source = "\n".join(t if t[:1] == "#" else TICKED.sub(ticked, t) for t in lines)
    python = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    for number, cell in enumerate(page.cells):
        cell["id"] = f"c{number}"  # those that are made here have a new one every time
    notebook = new_notebook(cells=page.cells, metadata=python)
    update(site / f"{page.name}.ipynb", nbformat.writes(notebook) + "\n")


def reference(
    pages: list[Page],  # in reading order
) -> dict[str, str]:
    """Pages that list what each module exports: one of all in one line each, and one a room with parameters."""
    rooms: dict[str, list[str]] = {}
    parts = ["# Reference", "> Every public function and class, by module."]
    for page in pages:
        if not page.symbols:
            continue
        room = page.room.lower().replace(" ", "-")
        module = page.name.replace("/", ".")
        rows = "\n".join(f"| [`{s.name}`](#{s.full}) | {s.summary} |" for s in page.symbols)
        parts += [
            f"## [{module}]({page.name}.ipynb)",
            f"| name | in one line |\n|---|---|\n{rows}",
        ]
        shown = {s.name: f"Shown in [{page.title}](#{s.label})." for s in page.symbols}
        of_room = rooms.setdefault(room, [f"# {page.room}, in full"])
        of_room += [f"## {module}", f":::{{py:currentmodule}} housing_mlops.{module}\n:::"]
        of_room += [text for source in page.exported for text in entries(source, shown)]
    parts.append(contents("", [f"reference/{room}" for room in rooms]))
    made = {f"reference/{room}": "\n\n".join(text) + "\n" for room, text in rooms.items()}
    return {"reference": "\n\n".join(parts) + "\n"} | made


def contents(
    caption: str,  # its title in the side bar, if any
    names: list[str],  # the pages below it
) -> str:
    """A table of contents that shows in the side bar."""
    title = [f":caption: {caption}"] if caption else []
    return "\n".join(["```{toctree}", ":hidden:", *title, "", *names, "```"])


def reading_order(
    index: NotebookNode,  # nbs/index.ipynb
) -> list[Path]:
    """The notebooks as the index lists them, from the project's root; stops where it leaves one out."""
    text = "\n".join(cell.source for cell in index.cells if cell.cell_type == "markdown")
    listed = re.findall(r"\]\(([\w/]+\.ipynb)\)", text[text.index(READING) :])
    order = list(dict.fromkeys(Path("nbs") / name for name in listed))
    there = {path.relative_to(ROOT) for path in notebooks(ROOT)} - {INDEX}
    if lost := there ^ {*order}:
        raise SystemExit(f"nbs/index.ipynb lists what is not there, or leaves out: {sorted(lost)}")
    return order


def update(
    path: Path,  # a file
    content: str,  # what is to stand in it
) -> None:
    """Write a file only if that changes it: Sphinx reads again what is newer than its last run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.write_text(content, encoding="utf-8")


def gather(
    site: Path,  # where to gather the pages
    jobs: int,  # notebooks to execute at a time
) -> None:
    """Execute the notebooks, and write the pages that Sphinx renders."""
    paths = [INDEX, *reading_order(nbformat.read(ROOT / INDEX, 4))]
    with tempfile.TemporaryDirectory() as work:
        pages = []
        done = execute_all([ROOT / path for path in paths], jobs)
        for number, (path, notebook) in enumerate(zip(paths, done, strict=True)):
            file = Path(work) / f"{number}.ipynb"
            nbformat.write(notebook, file)
            pages.append(read(file, path))
    index, *pages = pages

    for path, name in TEXTS.items():
        move = on_site(str(Path(path).parent), name, site)
        update(site / f"{name}.md", relink((ROOT / path).read_text(encoding="utf-8"), move))
    guides = [contents("Begin", list(GUIDES.values())), contents("Run it", list(RUN.values()))]
    for room, notes in groupby(pages, lambda page: page.room):
        guides.append(contents(room, [page.name for page in notes]))
    guides.append(contents("Look up", [*LOOK_UP, "reference"]))
    index.cells.append(new_markdown_cell("\n\n".join(guides)))

    symbols = {symbol.name: symbol for page in pages for symbol in page.symbols}
    for page in [index, *pages]:
        write(page, site, symbols)
    for name, text in reference(pages).items():
        update(site / f"{name}.md", text)
    named = {site / f"{page.name}.ipynb" for page in [index, *pages]}
    for stranger in {*site.rglob("*.ipynb")} - named:  # a notebook that was renamed
        stranger.unlink()


def build(
    jobs: int,  # notebooks to execute at a time
) -> int:
    """Build the site; returns Sphinx's exit code, or 1 where a link leads nowhere."""
    site, html, read_before = (KEPT / name for name in ("site", "html", "doctrees"))
    gather(site, jobs)
    options = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", str(read_before)]
    status = sphinx([*options, str(site), str(html)])
    if status == 0 and (said := faults(html)):
        print(*said, sep="\n", file=sys.stderr)
        status = 1
    if status:  # or it would not warn again of what it has read
        shutil.rmtree(read_before, ignore_errors=True)
        return status
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(html, OUT)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    status = build(parser.parse_args().jobs)
    print(
        f"the site: file://{OUT}/index.html" if status == 0 else "The site has faults, see above."
    )
    sys.exit(status)
