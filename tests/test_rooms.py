"""What keeps the code readable: imports run downward, what serves is light, cells are short."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from processes import ROOT

PACKAGE = ROOT / "housing_mlops"
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
# The ground first: a room imports only from itself and from those before it.
ROOMS = [
    *("config", "schema", "files", "cluster", "data", "preprocessing", "model", "prediction_log"),
    *("training", "registry", "monitoring", "serving", "operations", "cli"),
]
# Those that a serving process imports whole; of the registry it takes what it needs.
SERVING = [
    "config",
    "schema",
    "files",
    "cluster",
    "model",
    "prediction_log",
    "monitoring",
    "serving",
    "cli",
]
HEAVY = {
    *("pandas", "pyarrow", "sklearn", "scipy", "mlflow", "matplotlib", "onnx", "skl2onnx"),
    *("joblib", "cloudpickle", "skops", "shap", "dask", "distributed", "papermill", "nbformat"),
}
LONGEST = 60  # lines of an exported cell; few have more than 25


def parts(path: Path) -> tuple[str, ...]:
    """The name of a module within the package: `("monitoring", "drift")`."""
    return path.relative_to(PACKAGE).with_suffix("").parts


MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if parts(p)[0] not in ("__init__", "_modidx")]


def imports(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every import in a module, wherever it stands: its line and the parts of what it names."""
    here = ("housing_mlops", *parts(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = [*here[: -node.level]] if node.level else []
            start += node.module.split(".") if node.module else []
            yield from ((node.lineno, [*start, name.name]) for name in node.names)


def test_every_module_lies_in_a_room() -> None:
    strangers = {str(p) for p in MODULES if parts(p)[0] not in ROOMS}
    assert not strangers, f"give their room a place in ROOMS: {strangers}"


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_from_rooms_below_it(name: str) -> None:
    above = set(ROOMS[ROOMS.index(name) + 1 :])
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {'.'.join(what)}"
        for path in MODULES
        for line, what in imports(path)
        if parts(path)[0] == name and what[0] == "housing_mlops" and what[1] in above
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.process
@pytest.mark.parametrize("name", SERVING)
def test_what_serves_loads_nothing_heavy(name: str) -> None:
    modules = [".".join(("housing_mlops", *parts(p))) for p in MODULES if parts(p)[0] == name]
    modules = [m.removesuffix(".__init__") for m in modules if ".migrations." not in m]
    assert modules or name == "files", f"there is no room {name}"
    code = f"import json, sys, {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in json.loads(done.stdout)}
    assert not loaded & HEAVY, f"{name} loads {sorted(loaded & HEAVY)}"


@pytest.mark.process
def test_the_application_starts_without_its_database() -> None:
    code = "import sys, housing_mlops.serving.api; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "alembic", "psycopg"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "path",
    NOTEBOOKS,
    ids=lambda p: str(p.relative_to(ROOT / "nbs")),
)
def test_exported_cells_are_short(path: Path) -> None:
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    exported = [c.source for c in cells if re.search(r"^#\| *exports?i?\b", c.source, re.M)]
    for source in exported:
        lines = source.rstrip().splitlines()
        names = re.findall(r"^(?:async )?(?:def|class) (\w+)", source, re.M)
        assert len(lines) <= LONGEST, f"{len(lines)} lines: the cell of {', '.join(names)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(parts(p)))
def test_a_module_comes_from_the_notebook_of_its_name(path: Path) -> None:
    made = re.search(r"File to edit: (?:\.\./)+nbs/(\S+)\.ipynb", path.read_text(encoding="utf-8"))
    name = "/".join(parts(path))
    if made is None:
        assert path.name == "__init__.py" or "migrations" in parts(path), f"{name} is from nowhere"
        return
    notebook = "/".join(re.sub(r"^\d+_", "", part) for part in made[1].split("/"))
    room = parts(path)[0]
    assert notebook == name.replace("__init__", room), f"{name} comes from nbs/{made[1]}.ipynb"
