"""Each notebook's examples and asserts, run against the exported package.

The cells that are exported are left out and their names come from the module: what is covered is
the code that ships. That it is what the notebook says is held by `make lint`. Warnings are errors,
as in every test. A notebook whose examples start something, or take long, says so in its first
code cell, in pytest's words: `#| marks: process train`.
"""

import importlib
import re
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

CONFIG = get_config()
NOTEBOOKS = sorted(CONFIG.nbs_path.rglob("*.ipynb"))
LEFT_OUT = {"default_exp", "export", "exports", "exporti", *CONFIG.tst_flags.split()}
MARKS = re.compile(r'"#\| *marks: *([\w ]+)')  # in the notebook's file


def notebook_test(path: Path) -> object:
    """The notebook as a parameter of the test below, by its name, with its marks."""
    name = "-".join(path.relative_to(CONFIG.nbs_path).with_suffix("").parts)
    found = MARKS.search(path.read_text(encoding="utf-8"))
    marks = [getattr(pytest.mark, mark) for mark in found[1].split()] if found else []
    return pytest.param(path, id=name, marks=marks)


def left_out(cell) -> bool:
    """Whether a cell is no example: text, exported, slow, or not to be run at all."""
    directives = getattr(cell, "directives_", {})
    no_eval = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or no_eval or bool(LEFT_OUT & directives.keys())


@pytest.mark.parametrize("path", [notebook_test(path) for path in NOTEBOOKS])
def test_notebook(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("IN_TEST", "1")
    notebook = NBProcessor(path, process=True).nb
    shell = CaptureShell(path)
    for cell in notebook.cells:
        if module := getattr(cell, "directives_", {}).get("default_exp"):
            exported = vars(importlib.import_module(f"{CONFIG.lib_name}.{module[0]}"))
            shell.user_ns |= {k: v for k, v in exported.items() if not k.startswith("__")}
    shell.run_all(notebook, exc_stop=True, preproc=left_out)
