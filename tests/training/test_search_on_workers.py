"""A search whose trials are made by workers: the same as here, whoever dies on the way."""

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
from housing_mlops.training.candidates import Candidate
from housing_mlops.training.cross_validation import CrossValidation, make_folds
from housing_mlops.training.search import (
    TRIAL,
    Attempt,
    Budget,
    Choices,
    Found,
    Outcome,
    Record,
    Rows,
    candidate_of,
    new_study,
    search,
)
from housing_mlops.training.tracking import OpenRun, open_run

KEY = "the search of these tests"
LINES = Choices(("Ridge",), log=True)


class Unwritten:
    """A record that only counts."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def take_over(self) -> list[Any]:
        return []

    def keep(self, trial: FrozenTrial, *_: object) -> None:
        self.kept.append(trial.number)


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
    begun = [t.params["Ridge.log price"] for t in found.study.trials]
    assert {*begun} == {True, False}, "what was to be tried first was tried"
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


def test_what_is_tried_first_is_tried_whichever_trials_were_left() -> None:
    study = new_study(LINES, 0, [])
    first, second = (trial.system_attrs["fixed_params"] for trial in study.trials)
    trial = study.ask(), study.ask()
    candidate_of(trial[1], LINES)
    left = study.tell(trial[1], 3.0)
    again = new_study(LINES, 0, [left])
    assert left.params.items() >= second.items()
    waiting = [t.system_attrs["fixed_params"] for t in again.trials[1:]]
    assert waiting == [first], "the second is done, the first is not"
