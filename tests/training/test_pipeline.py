"""From the training notebook to a price over HTTP, through a real MLflow server."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from fastapi.testclient import TestClient

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.bundle import MODEL, BundleError
from housing_mlops.operations.notebooks import RunError, train
from housing_mlops.operations.up import Process
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.aliases import promote
from housing_mlops.registry.audit import history
from housing_mlops.registry.fetch import fetch_champion, fetch_version
from housing_mlops.registry.shelf import cached_champion, install_bundle
from housing_mlops.registry.store import RegistryError, register_bundle
from housing_mlops.serving.api import create_app
from housing_mlops.training.tracking import open_experiment

NOTEBOOK = Path(__file__).resolve().parents[2] / Settings().training_notebook
QUICK = {"models": ["LinearRegression", "Ridge"], "folds": 3, "repeats": 1, "seed": 7}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Callable[[Path], Path]
) -> tuple[Settings, dict, dict]:
    """A home in which the same training ran twice, and both summaries."""
    settings = Settings(home=mlflow_tables(tmp_path_factory.mktemp("home")))
    return settings, train(QUICK, settings, NOTEBOOK), train(QUICK, settings, NOTEBOOK)


@pytest.mark.train
def test_a_training_leaves_a_notebook_a_page_and_nested_runs(trained: tuple) -> None:
    settings, first, _ = trained
    folder = Path(first["folder"])
    assert folder.parent == settings.path("runs")
    assert (folder / "08_training.ipynb").is_file() and (folder / "08_training.html").is_file()
    client = mlflow.MlflowClient(settings.tracking)
    parent = client.get_run(first["run_id"])
    assert {k: parent.data.params[k] for k in ("folds", "seed")} == {"folds": "3", "seed": "7"}
    assert parent.data.tags["data_fingerprint"] and parent.data.tags["winner"] == first["winner"]
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first['run_id']}'"
    )
    assert {r.info.run_name for r in nested} == {"LinearRegression", "Ridge", "Voting"}
    for run in nested:
        history = client.get_metric_history(run.info.run_id, "fold_rmse")
        assert len(history) == 3
        mean = np.mean([point.value for point in history])
        assert np.isclose(mean, run.data.metrics["cv_rmse"])
    logged = {a.path for a in client.list_artifacts(first["run_id"])}
    assert {"comparison.png", "fit.png", "leaderboard.csv", "notebook"} <= logged
    assert {"segments.png", "importance.png", "learning_curve.png", "worst_rows.csv"} <= logged
    assert {"declaration.json", "errors_by_price.csv", "errors_by_segment.csv"} <= logged
    pages = {a.path for a in client.list_artifacts(first["run_id"], "notebook")}
    assert pages == {"notebook/08_training.ipynb", "notebook/08_training.html"}


@pytest.mark.train
def test_the_run_lasts_as_long_as_the_work_and_says_how_to_repeat_it(trained: tuple) -> None:
    settings, first, _ = trained
    client = mlflow.MlflowClient(settings.tracking)
    run = client.get_run(first["run_id"])
    nested = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first['run_id']}'"
    )
    assert run.info.status == "FINISHED"
    worked = sum(r.data.metrics["seconds"] for r in nested if r.info.run_name != "Voting")
    begun = min(r.info.start_time for r in nested)
    assert run.info.start_time + 1000 * worked <= begun, "it is opened before the first fold"
    stages = {k: v for k, v in run.data.metrics.items() if k.startswith("seconds_")}
    assert {"seconds_candidates", "seconds_diagnosis", "seconds_gate"} <= stages.keys()
    moved = history(settings, False).moves[-1].time  # by the gate
    assert run.info.end_time / 1000 >= moved.timestamp(), "it lasts until the gate has decided"
    assert run.info.end_time - run.info.start_time >= 1000 * sum(stages.values()) - 1000
    [data] = run.inputs.dataset_inputs
    assert run.data.tags["data_fingerprint"].startswith(data.dataset.digest)
    tags = run.data.tags
    assert tags["mlflow.source.name"].endswith("08_training.ipynb")
    note = tags["mlflow.note.content"]
    assert "housing-mlops train -p " in note
    assert '-p models \'["LinearRegression", "Ridge"]\' -p folds 3' in note
    model = mlflow.models.get_model_info("models:/housing@challenger")
    assert model.signature is not None and model.saved_input_example_info is not None


@pytest.mark.train
@pytest.mark.fault
@pytest.mark.usefixtures("with_tables")
def test_a_training_that_fails_leaves_a_run_that_says_so(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(RunError, match="it takes 2 to"):
        train({**QUICK, "folds": 1}, settings, NOTEBOOK)
    client = mlflow.MlflowClient(settings.tracking)
    [run] = client.search_runs([client.get_experiment_by_name("housing").experiment_id])
    assert run.info.status == "FAILED" and run.info.end_time


@pytest.mark.train
def test_the_same_parameters_give_the_same_metrics(trained: tuple) -> None:
    _, first, second = trained
    assert first["metrics"] == second["metrics"]
    assert (first["version"], second["version"]) == ("1", "2")
    assert first["promoted"] and not second["promoted"], "an equal model is no better one"


@pytest.mark.train
def test_mlflow_and_the_api_give_the_same_prices(trained: tuple, table: Table) -> None:
    settings = trained[0]
    mlflow.set_tracking_uri(settings.tracking)
    X = model_input(table.dataset, table.features)
    from_mlflow = mlflow.pyfunc.load_model("models:/housing@champion").predict(X)
    with TestClient(create_app(settings)) as api:
        answers = [api.post("/predict", json=row).json() for row in X.to_dict("records")]
    from_api = np.array([a["prediction"] for a in answers])
    assert np.abs(from_mlflow - from_api).max() < 1e-4 * table.prices.std()


@pytest.mark.train
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fold": 3}, "Did you mean folds"),
        ({"folds": "three"}, "folds is a int"),
        ({"tracking_uri": "http://127.0.0.1:9", "folds": 2}, "No MLflow at"),
    ],
)
def test_a_training_that_cannot_be_done_says_why(
    parameters: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=message):
        train({**QUICK, **parameters}, Settings(home=tmp_path), NOTEBOOK)


def publish(bundle: Path, settings: Settings) -> str:
    """The new version that `bundle` is registered as."""
    with mlflow.start_run(experiment_id=open_experiment(settings)) as run:
        pass
    return register_bundle(bundle, run.info.run_id, settings)


@pytest.mark.process
def test_a_server_fetches_over_http_and_survives_without(
    mlflow_server: tuple[Settings, Process],
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, _ = mlflow_server
    first, second = (publish(bundles[name], trainer) for name in ("LinearRegression", "Ridge"))
    serving = Settings(home=tmp_path, tracking_uri=trainer.tracking_uri, registry_poll_s=0)
    assert fetch_champion(serving) is None, "nothing is promoted yet"
    promote(first, trainer)
    # what training cached stays on its own machine: the server has only HTTP
    got = fetch_champion(serving)
    assert got is not None and got.version == first and not got.problem
    assert got.folder.is_relative_to(tmp_path)
    with TestClient(create_app(serving)) as api:
        assert api.get("/model/info").json()["model"] == "LinearRegression"
        promote(second, trainer)
        api.app.state.service.settings = serving.model_copy(
            update={"tracking_uri": "http://127.0.0.1:9"}
        )
    assert cached_champion(serving).version == first
    gone = serving.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with TestClient(create_app(gone)) as api:
        health = api.get("/health").json()
        assert (health["status"], health["model_version"]) == ("degraded", first)
        assert "out of reach" in health["checks"]["registry"]["detail"]
        assert api.get("/readyz").status_code == 200
    assert fetch_champion(serving).version == second
    with pytest.raises(RegistryError, match="out of reach"):
        fetch_champion(gone.model_copy(update={"home": tmp_path / "new"}))
    with pytest.raises(RegistryError, match="no version 99"):
        fetch_version("99", serving)


@pytest.mark.process
def test_a_bundle_that_was_tampered_with_is_refused_and_the_old_one_stays(
    mlflow_server: tuple[Settings, Process], bundles: dict[str, Path], tmp_path: Path
) -> None:
    trainer = mlflow_server[0].model_copy(update={"model_name": "tampered"})
    good, bad = (publish(bundles[name], trainer) for name in ("LinearRegression", "Ridge"))
    promote(good, trainer)
    serving = trainer.model_copy(update={"home": tmp_path, "registry_poll_s": 0, "admin_keys": "k"})
    serving = Settings(
        **{
            k: getattr(serving, k)
            for k in ("home", "tracking_uri", "model_name", "registry_poll_s")
        },
        admin_keys="k",
    )
    with TestClient(create_app(serving)) as api:
        promote(bad, trainer)
        store = mlflow_server[0].path("mlartifacts")
        for graph in store.rglob(f"Ridge/{MODEL}"):
            graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        answer = api.post("/admin/reload", headers={"X-API-Key": "k"}).json()
        assert answer["model_version"] == good and "damaged" in answer["problem"]
        health = api.get("/health").json()
        assert health["status"] == "degraded" and "damaged" in health["checks"]["model"]["detail"]
        assert api.get("/model/info").json()["model"] == "LinearRegression"


def test_a_cache_that_was_tampered_with_is_refused(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    cached = install_bundle(bundles["Ridge"], "1", settings)
    (cached / MODEL).write_bytes(b"")
    with TestClient(create_app(settings)) as api:
        assert api.get("/readyz").status_code == 503
        health = api.get("/health")
        assert health.status_code == 503 and "damaged" in json.dumps(health.json())
    with pytest.raises(BundleError):
        install_bundle(tmp_path / "none", "2", settings)
