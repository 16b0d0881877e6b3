"""Programs of benchmarks/ that still start, each day, and still measure, each night."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, free_port
from servers import Postgres, program

FOLDER = ROOT / "benchmarks"
PROGRAMS = {p.stem: p for p in sorted(FOLDER.glob("*.py")) if "__main__" in p.read_text()}
# What makes each as small as it can be, for a look at whether it works and not at its figures.
WRK = ["--rounds", "1", "--seconds", "1", "--connections", "4"]
SMALL = {
    "automl": ["flats", "--rows", "200", "--minutes", "0.05"],
    "batch": ["--rows", "3000"],
    "capacity": ["--rows", "5000"],
    "durability": WRK,
    "explain": ["--rounds", "1", "--seconds", "1", "--per-s", "50"],
    "growth": ["--rows", "100", "200", "--columns", "4", "6"],
    "history": ["--rows", "20000", "--days", "5"],
    "inference": ["--sizes", "1", "10000"],
    "limits": ["--splits", "1"],
    "partitions": ["--rows", "20000", "--days", "4", "--remove", "2"],
    "scoring": ["--rows", "3000"],
    "search": ["--seeds", "0", "--splits", "2"],
    "serving": WRK,
    "soak": ["--minutes", "0.05", "--seed", "1"],
    "startup": ["--rounds", "1"],
    "tables": ["flats", "--rows", "200", "--train=-p models '[\"Ridge\"]' -p folds 3 -p repeats 1"],
    "together": ["--seeds", "2", "--trials", "4"],
    "tracing": WRK,
    "trial": ["--starts", "1", *WRK],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_can_be_imported_and_says_what_it_is_for(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {*sys.modules}
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(PROGRAMS[name]), "--help"])
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(PROGRAMS[name]), run_name="__main__")
    finally:  # they import each other by short names, which are no other test's
        for module in {*sys.modules} - before:
            if str(FOLDER) in str(getattr(sys.modules[module], "__file__", "")):
                del sys.modules[module]
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of them run in: the model that they serve is fitted once."""
    return tmp_path_factory.mktemp("benchmarks")


def more(name: str, request: pytest.FixtureRequest) -> list[str]:
    """The arguments that only this machine knows; what the program needs may be missing."""
    if "wrk" in (FOLDER / f"{name}.py").read_text():
        program("wrk", "wrk")
    if name == "partitions":
        postgres: Postgres = request.getfixturevalue("postgres")
        return ["--url", postgres.url("postgres")]
    if name == "tables":
        return ["--port", str(free_port())]
    if name == "search":
        return [str(request.getfixturevalue("bundles")["Ridge"])]
    return []


@pytest.mark.nightly
@pytest.mark.process
@pytest.mark.train
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_measures(name: str, place: Path, request: pytest.FixtureRequest) -> None:
    command = [sys.executable, PROGRAMS[name], *SMALL[name], *more(name, request)]
    environment = {**os.environ, "TMPDIR": str(place), "HOUSING_HOME": str(place)}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert re.search(r"\d", done.stdout), "it measures nothing"
