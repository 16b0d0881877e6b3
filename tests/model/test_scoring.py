"""Houses priced in parts: cut where a house ends, each part once, the same whatever dies on the way."""

import csv
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import until

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model import scoring
from housing_mlops.model.batch import BatchError, Count, price_file
from housing_mlops.model.inference import Model
from housing_mlops.model.scoring import _stretches, parts, score, source_files

HERE = Settings(scheduler="")
cells = st.text(alphabet='ab",\n\r é', max_size=6)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.tuples(cells, cells), max_size=12), st.integers(1, 60))
def test_a_cut_is_never_within_a_house(rows: list[tuple[str, str]], size: int) -> None:
    path = Path(os.environ["HOUSING_HOME"]) / "cut.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", 'a "b"\n,c'), *rows])
    text = path.read_bytes()
    cuts = [*_stretches(path, size)]
    assert b"".join(text[a:b] for a, b in cuts) == text[len(b'x,"a ""b""\n,c"\r\n') :]
    assert all(one[1] == other[0] for one, other in pairwise(cuts))
    read = [
        tuple(row)
        for a, b in cuts
        for row in csv.reader(io.StringIO(text[a:b].decode(), newline=""))
    ]
    assert read == rows


def write_houses(table: Table, path: Path, rows: int) -> Path:
    """The embedded table over and over, a remark and a refused house among it."""
    frame = table.features.iloc[np.resize(np.arange(len(table.features)), rows)]
    frame = frame.reset_index(drop=True).assign(id=range(rows), remark="plain")
    frame.loc[::97, "AGE"] = 130
    frame.loc[::50, "remark"] = 'a "quoted",\nbroken remark'
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, row_group_size=rows // 40)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some hundred houses."""
    monkeypatch.setattr(scoring, "PART", 100)
    monkeypatch.setattr(scoring, "STRETCH", 9_000)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_parts_hold_what_one_file_holds(
    bundles: dict[str, Path], table: Table, tmp_path: Path, kind: str
) -> None:
    source = write_houses(table, tmp_path / f"houses{kind}", 2_000)
    model = Model.open(bundles["Ridge"], "1")
    whole = price_file(model, source, tmp_path / f"whole{kind}", progress=False)
    found = score(bundles["Ridge"], "1", source, tmp_path / "out", HERE, progress=False)
    assert found == whole == Count(1979, 21)
    made = sorted((tmp_path / "out").glob("part-*"))
    assert len(made) == len([*parts([source])]) > 5
    if kind == ".csv":
        text = b"".join(p.read_bytes().partition(b"\n")[2] for p in made)
        assert text == (tmp_path / "whole.csv").read_bytes().partition(b"\n")[2]
    else:
        read = pd.read_parquet(tmp_path / "out")
        assert read.equals(pd.read_parquet(tmp_path / "whole.parquet"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(p.name for p in made),
        "_job.json",
        "_SUCCESS",
    }


PROGRAM = """
import os, signal, sys
from pathlib import Path
from housing_mlops.config import Settings
from housing_mlops.model import scoring

def deadly(*arguments, run_tasks=scoring.run_tasks):
    for i, count in enumerate(run_tasks(*arguments)):
        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield count

scoring.PART, scoring.run_tasks = int(sys.argv[4]), deadly
if __name__ == "__main__":
    bundle, source, target = map(Path, sys.argv[1:4])
    scoring.score(bundle, "1", source, target, Settings(scheduler=sys.argv[5]), progress=False)
"""


def identities(folder: Path) -> dict[str, int]:
    """Which file each part is."""
    return {p.name: p.stat().st_ino for p in folder.glob("part-*")}


@pytest.mark.fault
@pytest.mark.process
def test_a_run_that_was_killed_goes_on_and_prices_nothing_twice(
    bundles: dict[str, Path],
    table: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = write_houses(table, tmp_path / "in.parquet", 20_000), tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, bundles["Ridge"], source, target, "500", ""]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not (target / "_SUCCESS").exists()
    monkeypatch.setattr(scoring, "PART", 500)
    before = identities(target)
    (target / ".0-part-00039.parquet").write_text("half of a part")
    found = score(bundles["Ridge"], "1", source, target, HERE, progress=False)
    after = identities(target)
    assert 2 < len(before) < len(after) == 40 and before.items() <= after.items()
    assert found == score(bundles["Ridge"], "1", source, tmp_path / "again", HERE, progress=False)
    for part in after:
        assert (target / part).read_bytes() == (tmp_path / "again" / part).read_bytes()
    assert not [*target.glob(".*")]


@pytest.mark.fault
@pytest.mark.usefixtures("small")
def test_two_workers_of_which_one_dies_make_the_same_bytes(
    bundles: dict[str, Path], table: Table, tmp_path: Path, dask_client: Any
) -> None:
    source, target = write_houses(table, tmp_path / "in.parquet", 40_000), tmp_path / "out"
    pids = [*dask_client.run(os.getpid).values()]

    def kill() -> None:
        until(lambda: len(identities(target)) > 1, what="two parts")
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    there = Settings(scheduler=dask_client.scheduler_info(n_workers=-1)["address"])
    found = score(bundles["Ridge"], "1", source, target, there, progress=False)
    killer.join()
    assert {*dask_client.run(os.getpid).values()} != {*pids}, "one of them is another now"
    assert found == score(bundles["Ridge"], "1", source, tmp_path / "one", HERE, progress=False)
    assert len(identities(target)) == 40
    for part in identities(target):
        assert (target / part).read_bytes() == (tmp_path / "one" / part).read_bytes()


@pytest.mark.nightly
@pytest.mark.fault
@pytest.mark.process
def test_600_000_houses_on_workers_killed_and_resumed_equal_one_process(
    bundles: dict[str, Path], table: Table, tmp_path: Path, dask_client: Any
) -> None:
    source, target = write_houses(table, tmp_path / "in.parquet", 600_000), tmp_path / "out"
    there = Settings(scheduler=dask_client.scheduler_info(n_workers=-1)["address"])
    common = [bundles["Ridge"], source, target, str(scoring.PART), there.scheduler]
    assert subprocess.run([sys.executable, "-c", PROGRAM, *common]).returncode == -signal.SIGKILL
    before = identities(target)
    assert 2 < len(before) < 6 and not (target / "_SUCCESS").exists()
    found = score(bundles["Ridge"], "1", source, target, there, progress=False)
    after = identities(target)
    assert len(after) == 6 and before.items() <= after.items(), "no part was priced twice"
    assert found == score(bundles["Ridge"], "1", source, tmp_path / "one", HERE, progress=False)
    assert sum(found) == 600_000
    for part in after:
        assert (target / part).read_bytes() == (tmp_path / "one" / part).read_bytes()


def other_version(bundle: Path, source: Path, target: Path) -> None:
    score(bundle, "2", source, target, HERE, progress=False)


def other_source(bundle: Path, source: Path, target: Path) -> None:
    source.touch()
    score(bundle, "1", source, target, HERE, progress=False)


def other_folder(bundle: Path, source: Path, target: Path) -> None:
    score(bundle, "1", source, target.parent, HERE, progress=False)


def same_folder(bundle: Path, source: Path, target: Path) -> None:
    score(bundle, "1", source.parent, source.parent, HERE, progress=False)


def busy(bundle: Path, source: Path, target: Path) -> None:
    with scoring._locked(target):
        score(bundle, "1", source, target, HERE, progress=False)


def mixed(bundle: Path, source: Path, target: Path) -> None:
    (source.parent / "other.csv").touch()
    (source.parent / "_note.csv").touch()
    source_files(source.parent)


def unlike(bundle: Path, source: Path, target: Path) -> None:
    text = source.read_text()
    (source.parent / "more.csv").write_text(text.replace("remark", "REMARK", 1))
    score(bundle, "1", source.parent, target.parent / "new", HERE, progress=False)


def unwritable(bundle: Path, source: Path, target: Path) -> None:
    score(bundle, "1", source, Path("/dev/null/out"), HERE, progress=False)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (other_version, r"begun with another version \(version 1\)"),
        (other_source, "begun with another source"),
        (other_folder, "holds other things"),
        (same_folder, "is the source"),
        (busy, "being filled by another process"),
        (mixed, "one kind is needed"),
        (unlike, "other columns than .*: REMARK, remark"),
        (unwritable, "cannot be used"),
    ],
)
def test_what_would_mix_prices_is_refused_and_nothing_is_touched(
    bundles: dict[str, Path],
    table: Table,
    tmp_path: Path,
    attempt: Callable[[Path, Path, Path], None],
    message: str,
) -> None:
    (tmp_path / "in").mkdir()
    kind = ".parquet" if attempt is mixed else ".csv"
    source = write_houses(table, tmp_path / f"in/houses{kind}", 100)
    score(bundles["Ridge"], "1", source, tmp_path / "out", HERE, progress=False)
    before = identities(tmp_path / "out")
    with pytest.raises(BatchError, match=message):
        attempt(bundles["Ridge"], source, tmp_path / "out")
    assert identities(tmp_path / "out") == before
