"""Render the notebooks as a site in _docs/: execute them, keep what readers want, run Sphinx.

usage: python docs/build.py
"""

import ast
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import nbformat
from execnb.nbio import nb2str
from generate import DIRECTIVE, ROOT, from_root, notebooks, relink
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.process import NBProcessor
from nbdev.processors import filter_stream_, hide_, hide_line, strip_ansi
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from sphinx.cmd.build import main as sphinx

OUT = ROOT / "_docs"
TOP = {"cli": "commands"}  # notebooks in no room that are not the ground
GUIDES = {"QUICKSTART.md": "quickstart", "CONTRIBUTING.md": "contributing"}  # and their pages
RUN = {  # for those who run it
    "deploy/README.md": "deploy",
    "docs/operations.md": "operations",
    "docs/metrics-and-logs.md": "metrics-and-logs",
}
TICKED = re.compile(r"(?<![\[`])`([A-Za-z]\w*)(?:\(\))?`(?![`\]])")
NO_EVAL = re.compile(r"^#\| *eval: *false", re.M)
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar; its script is elsewhere
# Plots are sharp white cards, which read alike by day and by night.
MATPLOTLIB = "figure.dpi: 144\nfigure.facecolor: white\nsavefig.facecolor: white\n"

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
    def link(self) -> str:
        """A link to that cell."""
        return f"[`{self.name}`](#{self.label})"


@dataclass
class Page:
    """What readers see of a notebook."""

    path: Path  # of the notebook, from the project's root
    cells: list[NotebookNode]
    symbols: list[Symbol]

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


def execute(
    path: Path,  # a notebook
    to: Path,  # where to write it with its outputs
) -> None:
    """Run a notebook in its own folder; stops the build where a cell fails."""
    notebook, ran = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in ran.cells:
        if NO_EVAL.search(cell.source):
            cell.source = ""
    try:
        NotebookClient(
            ran,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    except CellExecutionError as error:
        raise SystemExit(f"{path.relative_to(ROOT)} fails.\n{error}") from None
    for cell, done in zip(notebook.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = [o for o in done.outputs if WIDGET not in o.get("data", {})]
    nbformat.write(notebook, to)


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
    page = Page(source, [], [])
    kept = nbformat.reads(nb2str(processor.nb), 4).cells
    for cell, before in zip(kept, processor.nb.cells, strict=True):
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source)
            if before.directives_.keys() & {"export", "exports"}:
                symbols = list(defined(cell.source, page.name))
                labels = "\n".join(f"({symbol.label})=" for symbol in symbols)
                page.cells += [new_markdown_cell(labels)] if labels else []
                page.symbols += symbols
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
        if guide := (GUIDES | RUN).get(path):
            return up + guide + ".md" + fragment
        if path.startswith("nbs/"):
            return up + page_name(path) + ".ipynb" + fragment
        if path.endswith((".svg", ".png")):
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, site / path)
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
    to = site / f"{page.name}.ipynb"
    to.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=page.cells, metadata=python), to)


def reference(
    pages: list[Page],  # in reading order
) -> str:
    """A page that lists what each module exports."""
    parts = ["# Reference", "> Every public function and class, by module."]
    for page in pages:
        if page.symbols:
            rows = "\n".join(f"| {s.link} | {s.summary} |" for s in page.symbols)
            parts += [
                f"## [{page.name.replace('/', '.')}]({page.name}.ipynb)",
                f"| name | in one line |\n|---|---|\n{rows}",
            ]
    return "\n\n".join(parts) + "\n"


def contents(
    caption: str,  # its title in the side bar
    names: list[str],  # the pages below it
) -> str:
    """A table of contents that shows in the side bar."""
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"])


def build(
    work: Path,  # an empty folder
) -> int:
    """Build the site; returns Sphinx's exit code."""
    site, home = work / "site", work / "home"
    site.mkdir()
    home.mkdir()
    (work / "matplotlibrc").write_text(MATPLOTLIB)
    os.environ.update(HOUSING_HOME=str(home), MATPLOTLIBRC=str(work))
    os.environ.pop("MPLBACKEND", None)

    pages = []
    for path in notebooks(ROOT):
        begun, source = time.perf_counter(), path.relative_to(ROOT)
        execute(path, work / path.name)
        pages.append(read(work / path.name, source))
        print(f"{page_name(source):32} {time.perf_counter() - begun:6.1f} s", flush=True)
    index = next(page for page in pages if page.name == "index")
    pages.remove(index)

    for path, name in (GUIDES | RUN).items():
        move = on_site(str(Path(path).parent), name, site)
        text = relink((ROOT / path).read_text(encoding="utf-8"), move)
        (site / f"{name}.md").write_text(text, encoding="utf-8")
    guides = [contents("Begin", list(GUIDES.values())), contents("Run it", list(RUN.values()))]
    for room, notes in groupby(pages, lambda page: page.room):
        guides.append(contents(room, [page.name for page in notes]))
    guides.append(contents("Look up", ["reference"]))
    index.cells.append(new_markdown_cell("\n\n".join(guides)))

    symbols = {symbol.name: symbol for page in pages for symbol in page.symbols}
    for page in [index, *pages]:
        write(page, site, symbols)
    (site / "reference.md").write_text(reference(pages), encoding="utf-8")

    options = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", str(work / "doctrees")]
    status = sphinx([*options, str(site), str(work / "html")])
    if status == 0:
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.move(work / "html", OUT)
    return status


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        status = build(Path(folder))
    print(
        f"the site: file://{OUT}/index.html" if status == 0 else "The site has faults, see above."
    )
    sys.exit(status)
