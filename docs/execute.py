"""Run the notebooks, and save the outputs of those that tell a story; what was run is kept in _proc/.

usage: python docs/execute.py [--stories] [--fresh] [--jobs N] [NOTEBOOK_OR_FOLDER...]

A notebook is run again when its cells changed, or a module, file or pinned requirement that it uses; `--fresh` runs it
anyhow. Each has a kernel and a HOUSING_HOME of its own, and computes with one thread, so that figures do not depend on
the machine's cores.
"""

import argparse
import ast
import hashlib
import inspect
import io
import os
import re
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import nbformat
from generate import ROOT, is_story, notebooks, sources_digest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

KEPT = ROOT / "_proc"
PACKAGE = ROOT / "housing_mlops"
NO_EVAL = re.compile(r"^#\| *eval: *false", re.M)
MAGIC = re.compile(r"^\s*[%!].*", re.M)
DOTTED = re.compile(r"housing_mlops(\.\w+)+(:\w+)?")
RUNS = {  # the settings that name a notebook which papermill runs
    "training_notebook": "nbs/4_training/08_training.ipynb",
    "report_notebook": "nbs/9_operations/03_report.ipynb",
}
QUOTED = re.compile(r"""["']([\w./-]+\.\w+)["']""")
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar; its script is elsewhere
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")
PASSING = [  # what is another one at every run, and what stands for it in a story
    (re.compile(r"(?:\b\d{16}\.)?\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+\d\d:\d\d|Z)?"), "…"),
    (re.compile(r"""(['"](?:latency_ms|uptime_s|age_s)['"]: )[\d.e-]+"""), r"\1…"),
    (re.compile(r"\b\d+(?= (?:MB free|ms of processor time))"), "…"),
]
# Plots are sharp white cards, which read alike by day and by night.
MATPLOTLIB = "figure.dpi: 128\nfigure.facecolor: white\nsavefig.facecolor: white\n"


def code(
    path: Path,  # a notebook or a module
) -> str:
    """The code of a file; the cells of a notebook one below the other."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imported(
    path: Path,  # a notebook or a module
    text: str,  # its code
) -> Iterator[tuple[str, ...]]:
    """What a file names of the package, as parts: `("monitoring", "drift", "judge")`."""
    here = path.relative_to(PACKAGE.parent).parts if path.suffix == ".py" else ()
    for node in ast.walk(ast.parse(MAGIC.sub("", text))):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*start, *module, name.name) for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DOTTED.fullmatch(node.value):  # what a process is told to run
                yield tuple(re.split("[.:]", node.value))
            elif node.value == "housing-mlops":
                yield (PACKAGE.name, "cli")
        elif isinstance(node, ast.Attribute) and node.attr in RUNS:
            yield (node.attr,)
    if any("housing-mlops" in line for line in MAGIC.findall(text)):
        yield (PACKAGE.name, "cli")


@cache
def needs(
    path: Path,  # a notebook or a module
) -> frozenset[Path]:
    """The modules, notebooks and files that a file names."""
    text, found = code(path), set()
    for first, *parts in imported(path, text):
        if first in RUNS and path != PACKAGE / "config.py":
            found.add(ROOT / RUNS[first])
        for n in range(len(parts), 0, -1) if first == PACKAGE.name else ():
            module = PACKAGE.joinpath(*parts[:n]).with_suffix(".py")
            if module.is_file():
                found.add(module)
                break
    if path.suffix == ".ipynb":
        places = [folder / name for name in QUOTED.findall(text) for folder in (path.parent, ROOT)]
        found |= {place.resolve() for place in places if place.is_file()}
    return frozenset(found - {path})


def used(
    path: Path,  # a notebook
) -> set[Path]:
    """All that a notebook uses, straight or by way of others."""
    found, new = {path}, {path}
    while new:
        readable = [p for p in new if p.suffix in (".py", ".ipynb") and ROOT in p.parents]
        new = {
            n for p in readable if PACKAGE in p.parents or p.suffix == ".ipynb" for n in needs(p)
        }
        new -= found
        found |= new
    return found


@cache
def file_digest(
    path: Path,  # a file; of a notebook its code counts
) -> bytes:
    """What changes when the file does."""
    content = code(path).encode() if path.suffix == ".ipynb" else path.read_bytes()
    return hashlib.sha256(content).digest()


@cache
def common() -> tuple[Path, ...]:
    """What every notebook depends on: the requirements, and what the package carries beside its modules."""
    from generate import modules  # those that notebooks write are looked at one by one

    written = {ROOT / path for path in modules(ROOT)} | {PACKAGE / "_modidx.py"}
    carried = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return (ROOT / "requirements/dev.lock", *sorted({*carried} - written))


def key(
    path: Path,  # a notebook
) -> str:
    """What names a run of a notebook: another one is needed when this changes."""
    way = "".join(inspect.getsource(part) for part in (small, outputs, run))
    digest = hashlib.sha256(repr((sys.version_info[:2], way, MATPLOTLIB, ALONE)).encode())
    for file in [*common(), *sorted(used(path))]:
        digest.update(os.fsencode(file.relative_to(ROOT)) + file_digest(file))
    return digest.hexdigest()


def small(
    png: str,  # a picture, in base64
) -> str:
    """The same picture with at most 64 colours, a third of the size."""
    picture = Image.open(io.BytesIO(b64decode(png))).convert("RGB")
    out = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return b64encode(out.getvalue()).decode()


def outputs(
    cell: NotebookNode,  # one that was run
) -> list[NotebookNode]:
    """What readers want of what a cell gave: no progress, no log, no number of execution; small pictures."""
    kept = []
    for output in cell.outputs:
        data = output.get("data", {})
        if WIDGET in data or output.get("name") == "stderr":
            continue
        if "image/png" in data:
            data["image/png"] = small(data["image/png"])
        if "execution_count" in output:
            output.execution_count = None
        output.get("metadata", {}).clear()
        kept.append(output)
    return kept


def run(
    path: Path,  # a notebook
) -> NotebookNode:
    """The notebook with its outputs, run in its own folder; stops where a cell fails."""
    notebook, ran = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in ran.cells:
        if NO_EVAL.search(cell.source):
            cell.source = ""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "matplotlibrc").write_text(MATPLOTLIB)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("HOUSING_", "MPL"))}
        environ |= ALONE | {"HOUSING_HOME": home, "MATPLOTLIBRC": home}
        client = NotebookClient(
            ran,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
        )
        try:
            client.execute(env=environ)
        except CellExecutionError as error:
            raise SystemExit(f"{path.relative_to(ROOT)} fails.\n{error}") from None
    for cell, done in zip(notebook.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = outputs(done), None
    return notebook


def executed(
    path: Path,  # a notebook
    fresh: bool = False,  # run it, whatever was kept
) -> NotebookNode:
    """The notebook with its outputs: what was kept of it, or run now."""
    name = "-".join(path.relative_to(ROOT / "nbs").with_suffix("").parts)
    place, wanted = KEPT / f"{name}.ipynb", key(path)
    if place.exists() and not fresh:
        kept = nbformat.read(place, 4)
        if kept.metadata.get("key") == wanted:
            kept = dress(nbformat.read(path, 4), kept)
            return kept
    begun = time.perf_counter()
    notebook = run(path)
    print(f"{name:44} {time.perf_counter() - begun:6.1f} s", flush=True)
    notebook.metadata["key"] = wanted
    KEPT.mkdir(exist_ok=True)
    beside = place.with_suffix(f".{os.getpid()}")
    nbformat.write(notebook, beside)
    beside.replace(place)
    return dress(nbformat.read(path, 4), notebook)


def dress(
    notebook: NotebookNode,  # as it is now: its text may be newer than the run
    ran: NotebookNode,  # the same code cells, with their outputs
) -> NotebookNode:
    """The notebook with the outputs of the run."""
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = [cell for cell in ran.cells if cell.cell_type == "code"]
    for cell, other in zip(code_cells, done, strict=True):
        cell.outputs = other.outputs
    return notebook


def execute_all(
    paths: list[Path],  # notebooks
    jobs: int,  # so many at a time
    fresh: bool = False,  # run them, whatever was kept
) -> list[NotebookNode]:
    """The notebooks with their outputs, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            # the last ones take longest: begun first, they leave no core idle at the end
            return list(pool.map(lambda path: executed(path, fresh), paths[::-1]))[::-1]
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise


def steady(
    text: str,  # what a cell gave
) -> str:
    """The same with … for what is another one at every run: identifiers, the time of day, what took how long."""
    for pattern, instead in PASSING:
        text = pattern.sub(instead, text)
    return text


def merged(
    given: list[NotebookNode],  # outputs of a cell
) -> list[NotebookNode]:
    """The same with what was printed in one piece: where a kernel cuts it is chance."""
    kept: list[NotebookNode] = []
    for output in given:
        if kept and "name" in output and output.name == kept[-1].get("name"):
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def settle(
    output: NotebookNode,  # of a story
) -> None:
    """Take out of an output what passes, and drawings that need a style sheet; its text stays."""
    if "text" in output:
        output["text"] = steady(output["text"])
    data = output.get("data", {})
    if "sk-container" in data.get("text/html", ""):
        del data["text/html"]
    for form in {"text/plain", "text/html"} & data.keys():
        data[form] = steady(data[form])


def settled(
    notebook: NotebookNode,  # a story that was run
) -> NotebookNode:
    """The story with the outputs that are saved, and of which sources they are; they are the same at every run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
            for output in cell.outputs:
                settle(output)
    notebook.metadata["story"] = sources_digest(notebook)
    return notebook


def told(
    cell: NotebookNode,  # of a story
) -> list[str]:
    """What a cell shows in words; of a picture, that there is one."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        shown.append(output.get("text") or data.get("text/plain", ""))
        shown += ["a picture"] * ("image/png" in data)
    return shown


def changes(
    saved: NotebookNode,  # a story as it stands in the repository
    ran: NotebookNode,  # the same one, run now
) -> list[str]:
    """A sentence for each cell that tells something else now than it did when the story was saved."""
    return [
        f"{old.source}\ntold\n{before}\nand tells\n{after}"
        for old, new in zip(saved.cells, settled(ran).cells, strict=True)
        if (before := "".join(told(old))) != (after := "".join(told(new)))
    ]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK_OR_FOLDER")
    parser.add_argument(
        "--stories", action="store_true", help="only those that carry their outputs"
    )
    parser.add_argument("--fresh", action="store_true", help="run them, whatever was kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at a time")
    asked = parser.parse_args()
    within = [path.resolve() for path in asked.paths]
    paths = [p for p in notebooks(ROOT) if not within or {p, *p.parents} & {*within}]
    stories = [p for p in paths if is_story(nbformat.read(p, 4))]
    chosen = stories if asked.stories else paths
    if not chosen:
        raise SystemExit("No notebook lies there.")
    begun = time.perf_counter()
    for path, notebook in zip(chosen, execute_all(chosen, asked.jobs, asked.fresh), strict=True):
        if path in stories:
            nbformat.write(settled(notebook), path)
    print(
        f"{len(chosen)} notebooks in {time.perf_counter() - begun:.0f} s; outputs saved in {len(stories)}."
    )


if __name__ == "__main__":
    main()
