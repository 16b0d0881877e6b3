"""A search from its first trial to a model that is served, a killed one that goes on, and bad budgets."""

import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from processes import ROOT, until

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.inference import Model
from housing_mlops.operations.notebooks import RunError, train
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.cross_validation import (
    CrossValidation,
    TrainingError,
    make_folds,
    score_folds,
)
from housing_mlops.training.recipe import recipe_of
from housing_mlops.training.search import (
    TRIAL,
    Budget,
    Found,
    as_text,
    asked_for,
    candidate_of,
    choices_of,
    ensemble,
    from_text,
    greedy,
    new_study,
    plot_search,
    setting_importance,
)

NOTEBOOK = ROOT / Settings().training_notebook
DECLARATION = """\
format = 1
name = "homes"
title = "Homes"
exclude = []
[source]
[target]
name = "price"
unit = "EUR"
[[features]]
name = "area"
type = "number"
example = 80.0
[[features]]
name = "age"
type = "number"
example = 20.0
nullable = true
"""
QUICK = {"models": ["Ridge"], "folds": 3, "repeats": 1, "diagnose": False}


def homes(folder: Path, rows: int = 120) -> dict[str, str]:
    """The parameters and the environment of a small table whose prices go by powers of its columns."""
    rng = np.random.default_rng(0)
    area, age = rng.lognormal(4.3, 0.5, rows), rng.lognormal(3, 1, rows)
    price = 2000 * area**0.9 / (1 + age) ** 0.3 * rng.lognormal(0, 0.1, rows)
    lines = [
        f"{a:.1f},{'' if g > 90 else f'{g:.1f}'},{p:.0f}"
        for a, g, p in zip(area, age, price, strict=True)
    ]
    (folder / "homes.csv").write_text("\n".join(["area,age,price", *lines]) + "\n")
    (folder / "homes.toml").write_text(DECLARATION)
    return {"HOUSING_HOME": str(folder), "HOUSING_DATA_PATH": str(folder / "homes.csv")}


def whole_trials(home: Path) -> int:
    """How many trials stand in the tracking database."""
    if not (home / "mlflow.db").is_file():
        return 0
    with sqlite3.connect(home / "mlflow.db") as database:
        made = "select count(*) from sqlite_master where name = 'tags'"
        if not database.execute(made).fetchone()[0]:
            return 0
        return database.execute(f"select count(*) from tags where key = '{TRIAL}'").fetchone()[0]


@pytest.mark.train
def test_a_search_finds_a_model_that_is_exported_and_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in homes(tmp_path).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    wanted = {"dataset": str(tmp_path / "homes.toml"), "search": "auto", "trials": 3, "minutes": 0}
    summary = train({**QUICK, **wanted}, settings, NOTEBOOK)
    assert summary["winner"] == "Search" and summary["promoted"], summary["reason"]
    bundle = Path(summary["folder"]) / "bundle"
    info = Model.open(bundle, "1").info
    recipe = recipe_of(info)
    assert 1 <= len(recipe.parts) <= 4 and np.isclose(sum(recipe.weights), 1)
    assert any(part.log for part in recipe.parts), (
        "prices that go by powers are learnt as logarithms"
    )
    client = mlflow.MlflowClient(settings.tracking)
    parent = client.get_run(summary["run_id"])
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'"
    )
    assert sum(TRIAL in run.data.tags for run in nested) == 3
    logged = {a.path for a in client.list_artifacts(summary["run_id"])}
    assert {"search.png", "search.csv", "features.csv"} <= logged
    assert "-p search auto -p trials 3" in parent.data.tags["mlflow.note.content"]


@pytest.mark.nightly
@pytest.mark.train
@pytest.mark.process
@pytest.mark.fault
@pytest.mark.usefixtures("with_tables")
def test_a_search_that_was_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    environment = {**os.environ, **homes(tmp_path)}
    command = [sys.executable, "-c", "from housing_mlops.cli import app; app()", "train"]
    wanted = {"dataset": tmp_path / "homes.toml", "models": '["Ridge"]', "folds": 3, "repeats": 1}
    wanted |= {"search": "auto", "trials": 14, "minutes": 0, "diagnose": "false"}
    for name, value in wanted.items():
        command += ["-p", name, str(value)]
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        until(lambda: whole_trials(tmp_path) >= 3, 120, "three trials")
    finally:
        kernel = psutil.Process(first.pid).children(recursive=True)
        for process in (first, *kernel):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        first.wait()
    left = whole_trials(tmp_path)
    assert 3 <= left < 14
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on after" in done.stderr + done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("housing").experiment_id
    parents = [r for r in client.search_runs([experiment], "tags.`search.owner` != ''")]
    states = sorted(r.info.status for r in parents)
    assert states == ["FINISHED", "KILLED"]
    [kept] = [r for r in parents if r.info.status == "FINISHED"]
    nested = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{kept.info.run_id}' and tags.`{TRIAL}` != ''"
    )
    assert len(nested) == 14, "none was lost, none was done twice"


def test_a_search_that_cannot_be_done_says_why(table: Table) -> None:
    with pytest.raises(TrainingError, match="it is none, tune or auto"):
        asked_for("all", 0, 10)
    with pytest.raises(TrainingError, match="needs trials or minutes"):
        asked_for("tune", 0, 0)
    with pytest.raises(TrainingError, match="nothing to search"):
        choices_of("tune", [CANDIDATES["LinearRegression"]], table.prices.to_numpy(), {}, {})


@pytest.mark.train
def test_a_bad_budget_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs trials or minutes"):
        nothing = {"search": "tune", "trials": 0, "minutes": 0}
        train({**QUICK, **nothing}, Settings(home=tmp_path), NOTEBOOK)
    assert not (tmp_path / "mlflow.db").exists()


def test_an_average_is_judged_on_rows_it_was_not_chosen_on(table: Table) -> None:
    rng, y = np.random.default_rng(0), np.random.default_rng(1).normal(20, 5, 60)
    folds = make_folds(len(y), 5, 1, 0)
    results = []
    for i in range(40):  # noise alone: whoever is chosen is chosen by luck
        predictions = (y + rng.normal(0, 3, len(y)))[None]
        scores = score_folds(y, predictions, folds)
        part = CANDIDATES["Ridge"]
        results.append(CrossValidation(f"r{i}", predictions, scores, 0.0, parts=(part,)))
    found = ensemble(results, y, folds, members=4)
    flattered = np.tensordot(
        found.weights, [results[i].predictions for i in chosen(results, found, y)], 1
    )
    assert found.rmse > np.sqrt(np.mean((flattered - y) ** 2))
    assert 1 <= len(found.weights) <= 4 and np.isclose(sum(found.weights), 1)


def chosen(results: list[CrossValidation], found: CrossValidation, y: np.ndarray) -> list[int]:
    """The places of the members of an average, in the order of their weights."""
    errors = np.stack([r.predictions[0] - y for r in results])
    weights = greedy(errors @ errors.T, 4)
    return [int(i) for i in np.argsort(-weights, kind="stable") if weights[i] > 0]


def test_a_trial_is_written_down_and_read_again() -> None:
    y = np.array([1.0, 2.0])
    choices = choices_of("auto", list(CANDIDATES.values()), y)
    assert choices.log and "LinearRegression" not in choices.families
    assert not choices_of("auto", list(CANDIDATES.values()), y - 1).log
    study = new_study(choices, 0)
    trial = study.ask()
    trial.suggest_float("a", 0.1, 1.0, log=True)
    frozen = study.tell(trial, 3.0)
    again = from_text(as_text(frozen))
    assert (again.params, again.distributions, again.value) == (
        frozen.params,
        frozen.distributions,
        3.0,
    )


def test_a_budget_has_an_end() -> None:
    with pytest.raises(TrainingError, match="needs trials or minutes"):
        Budget(0, 0)
    assert Budget(3, 0).left(2, 1e9) and not Budget(3, 0).left(3, 0)
    assert Budget(0, 1).left(9999, 59) and not Budget(0, 1).left(0, 60)


def test_a_search_that_ends_before_its_first_trials_are_through_is_told_all_the_same() -> None:
    choices = choices_of("auto", list(CANDIDATES.values()), np.array([1.0, 2.0]))
    study = new_study(choices, 0)
    trial = study.ask()
    candidate_of(trial, choices)
    study.tell(trial, 3.0)
    found = Found(study, {})
    assert len(study.trials) > 2, "the others still wait"
    assert list(found.table()["rmse"]) == [3.0] and setting_importance(found).empty
    plot_search(found, "EUR")
