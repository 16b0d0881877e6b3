"""A search whose trials are made by workers: the same as here, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState
from processes import ROOT, free_port, until

from housing_mlops.cluster import ClusterError, TaskLost, Tasks, workers
from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.training import search as searching
from housing_mlops.training.attempt import Attempt, Outcome, Rows, try_out
from housing_mlops.training.candidates import CANDIDATES, Candidate
from housing_mlops.training.cross_validation import CrossValidation, make_folds
from housing_mlops.training.search import (
    TRIAL,
    Budget,
    Choices,
    Found,
    Record,
    as_text,
    from_text,
    search,
)
from housing_mlops.training.tracking import OpenRun, open_run

KEY = "the search of these tests"
LINES = Choices(("Ridge",), log=True)


class Unwritten:
    """A record that is kept in this process, of which something may be there already."""

    def __init__(self, *there: tuple[str, Any]) -> None:
        self.there, self.kept = [*there], list[int]()

    def take_over(self) -> list[Any]:
        return [(from_text(text), predictions) for text, predictions in self.there]

    def keep(self, trial: FrozenTrial, _: Candidate, result: CrossValidation | None) -> None:
        self.kept.append(trial.number)
        self.there.append((as_text(trial), result and result.predictions))


def small(table: Table, kind: Callable[..., Rows] = Rows, *more: str) -> Rows:
    """What trials learn from: a tenth of the table, two repeats of three folds."""
    few = np.arange(0, len(table.features), 10)
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    folds = make_folds(len(few), 3, 2, 0)
    return kind(table.dataset, X.iloc[few].reset_index(drop=True), y[few], folds, 0, *more)


def told(found: Found) -> list[Any]:
    """Everything that is known of the trials, but how long they took."""
    trials = [(t.params, t.state, t.value, t.intermediate_values) for t in found.study.trials]
    return [*trials, *((n, r.predictions.tobytes()) for n, r in found.results.items())]


def written(opened: OpenRun, run_id: str) -> list[str]:
    """The trials that stand in MLflow as those of a run, by name."""
    mine = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`{TRIAL}` != ''"
    found = mlflow.MlflowClient().search_runs([opened.experiment], mine)
    return sorted(run.info.run_name for run in found)


@dataclass(frozen=True)
class Deadly(Rows):
    """The first process that has a trial nearly done is killed, and never tells what it found."""

    mark: str = ""

    def attempt(self, *arguments: Any) -> tuple[float, CrossValidation | None]:
        did = super().attempt(*arguments)
        with suppress(FileExistsError):
            Path(self.mark).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return did


@pytest.mark.train
@pytest.mark.fault
@pytest.mark.usefixtures("with_tables")
def test_a_worker_killed_in_mid_trial_loses_no_trial_and_changes_nothing(
    table: Table, tmp_path: Path, dask_client: Any
) -> None:
    budget = Budget(trials=6, at_once=4)
    pids, mark = {*dask_client.run(os.getpid).values()}, tmp_path / "died"
    opened = open_run(Settings(home=tmp_path))
    rows = small(table, Deadly, str(mark))
    found = search(LINES, rows, budget, Record(opened, KEY), dask_client)
    opened.monitor.finish()
    assert mark.exists() and {*dask_client.run(os.getpid).values()} != pids, "one was killed"
    assert len(written(opened, opened.id)) == 6
    assert {t.state for t in found.study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert told(found) == told(search(LINES, small(table), budget, Unwritten()))  # type: ignore[arg-type] # all it uses


CLIENT = """
import os, signal, sys
from pathlib import Path
from housing_mlops.cluster import workers
from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.schema import load_dataset
from housing_mlops.training.tracking import open_run
sys.path += sys.argv[3:]
from test_search_on_workers import KEY, LINES, Budget, Record, search, small

class Killed(Record):
    kept = 0
    def keep(self, *arguments):
        super().keep(*arguments)
        self.kept += 1
        if self.kept == 3:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    opened = open_run(Settings(home=Path(sys.argv[1])))
    with workers(Settings(scheduler=sys.argv[2])) as client:
        rows = small(load_table(load_dataset("boston"), Settings(data_path=None)))
        search(LINES, rows, Budget(trials=8, at_once=4), Killed(opened, KEY), client)
"""


@pytest.mark.nightly
@pytest.mark.train
@pytest.mark.fault
@pytest.mark.process
@pytest.mark.usefixtures("with_tables")
def test_a_client_that_was_killed_goes_on_where_it_stopped(
    table: Table, tmp_path: Path, dask_client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    address = dask_client.scheduler_info(n_workers=-1)["address"]
    paths = [str(ROOT / "tests"), str(ROOT / "tests/training")]
    killed = [sys.executable, "-c", CLIENT, str(tmp_path), address, *paths]
    assert subprocess.run(killed).returncode == -signal.SIGKILL
    opened = open_run(Settings(home=tmp_path))
    record = Record(opened, KEY)
    found = search(LINES, small(table), Budget(trials=8, at_once=4), record, dask_client)
    opened.monitor.finish()
    assert "goes on after 3 trials" in capsys.readouterr().out
    mine = written(opened, opened.id)
    assert len(mine) == len(found.study.trials) == 8, "none was lost, none was done twice"
    whole = search(LINES, small(table), Budget(trials=8, at_once=4), Unwritten())  # type: ignore[arg-type] # all it uses
    assert told(found) == told(whole), "the same as if nobody had been killed"
    parents = mlflow.MlflowClient().search_runs([opened.experiment], "tags.`search.owner` != ''")
    [left] = [run.info for run in parents if run.info.run_id != opened.id]
    assert left.status == "KILLED" and not written(opened, left.run_id)


@dataclass(frozen=True)
class Waiting(Rows):
    """Trials that wait for a file once one has begun."""

    gate: str = ""

    def attempt(self, *arguments: Any) -> tuple[float, CrossValidation | None]:
        Path(f"{self.gate}.begun").touch()
        until(Path(self.gate).exists, 60, "the gate")
        return super().attempt(*arguments)


@pytest.mark.nightly
@pytest.mark.train
@pytest.mark.fault
@pytest.mark.process
@pytest.mark.scale
def test_a_scheduler_that_dies_is_told_and_the_search_goes_on_without_it(
    table: Table, tmp_path: Path
) -> None:
    gate, port = tmp_path / "gate", free_port()
    address = f"tcp://127.0.0.1:{port}"
    paths = os.pathsep.join(str(ROOT / p) for p in ("tests", "tests/training"))
    plain = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": paths}}
    alone = ["--host", "127.0.0.1", "--no-dashboard"]
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", str(port), *alone], **plain)
    worker = subprocess.Popen([*dask, "worker", address, "--no-nanny", *alone], **plain)

    def kill() -> None:
        until(Path(f"{gate}.begun").exists, 60, "a trial has begun")
        scheduler.kill()

    try:
        opened = open_run(Settings(home=tmp_path))
        with workers(Settings(scheduler=address)) as client:
            killer = threading.Thread(target=kill)
            killer.start()
            with pytest.raises(ClusterError, match="The same command goes on"):
                rows = small(table, Waiting, str(gate))
                search(LINES, rows, Budget(trials=4, at_once=4), Record(opened, KEY), client)
            killer.join()
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    opened.monitor.finish()
    mlflow.MlflowClient().set_terminated(opened.id, "FAILED")
    again = open_run(Settings(home=tmp_path))
    found = search(LINES, small(table), Budget(trials=4, at_once=4), Record(again, KEY))
    again.monitor.finish()
    assert len(found.study.trials) == 4


class Lossy(Tasks[Attempt, Outcome]):
    """Trial 1 takes its workers with it."""

    def next(self) -> tuple[Attempt, Outcome]:
        if self._waiting[0].number == 1:
            raise TaskLost(self._waiting.popleft())
        return super().next()


def test_a_trial_that_takes_its_workers_with_it_is_on_record_as_failed(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "Tasks", Lossy)
    record = Unwritten()
    found = search(LINES, small(table), Budget(trials=4, at_once=2), record)  # type: ignore[arg-type] # all it uses
    assert [t.state.name for t in found.study.trials][1] == "FAIL"
    assert "took its workers with it" in found.study.trials[1].user_attrs["problem"]
    assert record.kept == [0, 1, 2, 3] and [*found.results] == [0, 2, 3]


def test_what_a_fit_raises_is_the_trial_s_problem(table: Table) -> None:
    class Broken(Rows):
        def attempt(self, candidate: Candidate, *_: Any) -> tuple[float, CrossValidation | None]:
            if not candidate.log:
                raise ValueError("no such matrix")
            return super().attempt(candidate)

    found = search(LINES, small(table, Broken), Budget(trials=2), Unwritten())  # type: ignore[arg-type] # all it uses
    failed = [t for t in found.study.trials if t.state == TrialState.FAIL]
    assert [t.user_attrs["problem"] for t in failed] == ["ValueError: no such matrix"]


class Killed(Unwritten):
    """A record whose process is gone once five trials stand in it."""

    def keep(self, *arguments: Any) -> None:
        super().keep(*arguments)
        if len(self.kept) == 5:
            raise KeyboardInterrupt


class Backwards(Tasks[Attempt, Outcome]):
    """The last that was sent is the first to be ready."""

    def next(self) -> tuple[Attempt, Outcome]:
        self._waiting.rotate(1)
        return super().next()


def stopped(table: Table, monkeypatch: pytest.MonkeyPatch, budget: Budget) -> list[tuple[str, Any]]:
    """What a search that is stopped leaves on record, its trials having come in the wrong order."""
    record = Killed()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(searching, "Tasks", Backwards)
        search(LINES, small(table), budget, record)  # type: ignore[arg-type] # all it uses
    assert record.kept != sorted(record.kept), "some that were asked for later came earlier"
    return record.there


def test_a_search_that_was_stopped_finds_what_it_would_have_found(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(trials=12, at_once=4)
    record = Unwritten(*stopped(table, monkeypatch, budget))
    left = {from_text(text).number for text, _ in record.there}
    found = search(LINES, small(table), budget, record)  # type: ignore[arg-type] # all it uses
    assert told(found) == told(search(LINES, small(table), budget, Unwritten()))  # type: ignore[arg-type] # all it uses
    assert sorted({*record.kept} | left) == [*range(12)] and not left & {*record.kept}


@pytest.mark.parametrize("budget", [Budget(trials=12, at_once=1), Budget(trials=2, at_once=4)])
def test_a_search_that_goes_on_another_way_loses_none_that_had_ended(
    table: Table, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    record = Unwritten(*stopped(table, monkeypatch, Budget(trials=12, at_once=4)))
    left = len(record.there)
    for _ in range(2):
        there = [from_text(text) for text, _ in record.there]
        found = search(LINES, small(table), budget, record)  # type: ignore[arg-type] # all it uses
        known = [(t.params, t.state, t.value) for t in found.study.trials if t.state.is_finished()]
        assert all((t.params, t.state, t.value) in known for t in there)
        assert max(budget.trials, left) <= len(known) == len(record.there) <= 13


# What Dask's worker does with what it is sent; its nanny and its connections aside.
WORKER = """
import json, sys
import cloudpickle
function, *arguments = cloudpickle.load(sys.stdin.buffer)
outcome = function(*arguments)
assert outcome.result is not None, outcome.problem
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.process
def test_a_worker_loads_neither_mlflow_nor_optuna(table: Table) -> None:
    attempt = Attempt.of(0, CANDIDATES["Ridge"])
    sent = cloudpickle.dumps([try_out, attempt, small(table), 1])
    done = subprocess.run([sys.executable, "-c", WORKER], input=sent, stdout=-1, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "sklearn" in loaded and not loaded & {
        "mlflow",
        "matplotlib",
        "optuna",
        "onnx",
        "papermill",
    }
