"""The commands on the pages people start from: each exists, and what needs no server is run as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from processes import ROOT

from housing_mlops.cli import app
from housing_mlops.config import Settings, describe
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import load_dataset

PAGES = ["QUICKSTART.md", "README.md", "CONTRIBUTING.md", "deploy/README.md"]
PAGES += ["docs/operations.md", "docs/demo.md"]
ASSIGNED = re.compile(r"([A-Z_]+)=(.*)", re.S)


def blocks(page: str) -> list[str]:
    """The shell blocks of a page."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def commands(page: str) -> list[list[str]]:
    """The words of every simple command in the blocks of a page, assignments first."""
    found = []
    for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
        words = shlex.shlex(re.sub(r"\b2>\S+", "", line), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;<>()"):
                found.append(command)
                command = []
            else:
                command.append(word)
    return [command for command in found if command]


def stripped(command: list[str]) -> tuple[list[str], list[str]]:
    """The names of the settings that stand before a command, and the command."""
    names = []
    while command and (assigned := ASSIGNED.fullmatch(command[0])):
        names.append(assigned[1])
        command = command[1:]
    return names, command


def understood(words: list[str]) -> None:
    """Nothing, when `housing-mlops` knows the command and its options; click's error otherwise."""
    group: Any = typer.main.get_command(app)
    while hasattr(group, "commands"):
        name, *words = words
        assert name in group.commands, f"there is no command {name}"
        group = group.commands[name]
    group.make_context(name, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    settings = {row["setting"] for row in describe(Settings())}
    for command in commands(page):
        names, words = stripped(command)
        assert {n for n in names if n.startswith("HOUSING_")} <= settings, command
        if words[:1] == ["make"]:
            named = [w for w in words[1:] if "=" not in w and not w.startswith("-")]
            assert set(named) <= targets, command
        if words[:1] == ["housing-mlops"]:
            understood(words[1:])


@pytest.mark.process
@pytest.mark.parametrize(("first", "left"), [("predict", "priced.csv"), ("schema", "houses.toml")])
def test_what_needs_no_server_runs_as_written(
    bundles: dict[str, Path], tmp_path: Path, first: str, left: str
) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    (tmp_path / "housing_mlops").symlink_to(ROOT / "housing_mlops")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    boston = pd.read_csv(ROOT / "housing_mlops/datasets/boston.csv")
    boston.rename(columns={"MEDV": "SalePrice"}).to_csv(tmp_path / "houses.csv", index=False)
    chosen = [
        b for b in blocks("QUICKSTART.md") if re.search(rf"^housing-mlops {first}\b", b, re.M)
    ]
    assert chosen
    for block in chosen:
        done = subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "HOUSING_HOME": str(tmp_path),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )
        assert done.returncode == 0, done.stderr
    if first == "schema":
        assert load_dataset(str(tmp_path / left)).target.unit == "USD"
    else:
        assert len(pd.read_csv(tmp_path / left)) == 506
