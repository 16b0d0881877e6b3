"""A look at whether to train anew: what it finds, what it decides, and what survives each fault."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from playwright.sync_api import Browser
from processes import ROOT
from servers import Server
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import HousingError, Settings
from housing_mlops.data.table import Table
from housing_mlops.model.bundle import read_info
from housing_mlops.model.inference import Model
from housing_mlops.operations import notebooks, retraining
from housing_mlops.operations.retraining import look
from housing_mlops.prediction_log.database import connect, migrate, save_feedback
from housing_mlops.prediction_log.decisions import (
    end_decision,
    read_decisions,
    record_decision,
)
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import LogUnavailable
from housing_mlops.registry.fetch import fetch_version
from housing_mlops.registry.promotion import challenge
from housing_mlops.registry.store import RegistryError
from housing_mlops.serving.api import create_app

NOTEBOOK = ROOT / Settings().training_notebook
QUICK = {
    "models": ["LinearRegression", "Ridge"],
    "folds": 3,
    "repeats": 1,
    "seed": 7,
    "diagnose": False,
}
Priced = Callable[..., list[str]]


@pytest.fixture
def engine(home: Settings) -> Iterator[sa.Engine]:
    """The log of the home."""
    made = connect(home.database)
    migrate(made)
    yield made
    made.dispose()


@pytest.fixture
def champion(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Model:
    """The one that the registry is to name, without a registry."""
    model = Model.open(bundles["Ridge"], "1")
    monkeypatch.setattr(retraining, "champion_of", lambda settings: model)
    return model


def pay(engine: sa.Engine, ids: list[str], factor: float = 1.0, source: str = "file") -> None:
    """Report a price for each, a factor away from the one that was given."""
    given = {row.id: row.price for row in read_page(engine, limit=5_000).rows}
    for i in ids:
        save_feedback(engine, i, round(min(factor * given[i], 99), 3), source=source)


def trained(parameters: Any) -> dict[str, Any]:
    """What a training comes to."""
    return {"run_id": "r", "version": "2", "promoted": True, "reason": "promoted: better"}


def never(parameters: Any) -> dict[str, Any]:
    raise AssertionError("there was to be no training")


def test_quiet_houses_are_no_reason(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    pay(engine, priced(400)[:60])
    found = look(home, engine, never)
    assert (found.decision.act, found.decision.reason) == ("wait", "no signal")
    [row] = read_decisions(engine)
    assert row.evidence["new"] > 40 and row.evidence["drift"] == [] and row.state == ""


def test_drift_without_a_price_asks_for_prices(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    known = priced(300, ago_h=12)
    new = priced(400, 2, LSTAT=12.0)
    pay(engine, known[:60])
    found = look(home, engine, never)
    assert found.decision.act == "ask" and "LSTAT" in found.decision.reason
    asked = [row["prediction_id"] for row in found.evidence.ask]
    assert 0 < len(asked) <= retraining.ASK and set(asked) <= set(new)
    assert read_decisions(engine)[0].evidence["ask"] == found.evidence.ask
    pay(engine, asked + new[:100])
    assert look(home, engine, trained).decision.act == "train", "once their prices are in"


def test_the_live_error_is_a_reason(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    pay(engine, priced(300), 1.5)
    found = look(home, engine, trained)
    assert found.decision.act == "train" and "live error worse" in found.decision.reason
    again = look(home, engine, never)
    assert again.decision.act == "wait" and "not before" in again.decision.reason
    hasty = home.model_copy(update={"retrain_cooldown_h": 0.0, "retrain_per_day": 9})
    assert look(hasty, engine, never).decision.reason == "0 of 50 new sales are in"


def test_poisoned_prices_are_set_aside_and_too_many_stop_it(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    ids = priced(300, 3)
    pay(engine, ids[:200], 1.5)
    for i in ids[200:220]:
        save_feedback(engine, i, 99.0, source="mallory")
    found = look(home, engine, trained)
    assert found.decision.act == "train" and 15 <= found.evidence.known.refused <= 20
    shown = CliRunner().invoke(app, ["labels", "--aside"], catch_exceptions=False).stdout
    assert shown.count("mallory") >= 15 and "robust deviations" in shown
    strict = home.model_copy(update={"retrain_max_refused": 0.05, "retrain_cooldown_h": 0.0, "retrain_per_day": 9})  # fmt: skip
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM decisions")
    held = look(strict, engine, never)
    assert held.decision.act == "hold" and "cannot be believed" in held.decision.reason


def test_two_at_once_train_once(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    pay(engine, priced(300), 1.5)
    inside, leave = threading.Event(), threading.Event()

    def slow(parameters: Any) -> dict[str, Any]:
        inside.set()
        assert leave.wait(60)
        return trained(parameters)

    first = threading.Thread(target=look, args=(home, engine, slow))
    first.start()
    try:
        assert inside.wait(60)
        second = look(home, engine, never, force=True)
        assert second.decision.reason == "another process is training"
        assert [d.state for d in read_decisions(engine, trainings=True)] == ["running"]
    finally:
        leave.set()
        first.join()
    assert [d.state for d in read_decisions(engine, trainings=True)] == ["done"]


@pytest.mark.fault
def test_a_registry_that_is_gone_is_recorded_and_the_next_look_goes_on(
    home: Settings, engine: sa.Engine, bundles: dict[str, Path], priced: Priced
) -> None:
    pay(engine, priced(300), 1.5)
    gone = home.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(RegistryError):
        look(gone, engine, never)
    [row] = read_decisions(engine)
    assert row.act == "wait" and "the evidence cannot be had" in row.reason
    with pytest.MonkeyPatch.context() as back:
        back.setattr(retraining, "champion_of", lambda _: Model.open(bundles["Ridge"], "1"))
        assert look(home, engine, trained).decision.act == "train"


@pytest.mark.fault
def test_a_database_that_goes_while_training_leaves_nothing_half(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced, monkeypatch: Any
) -> None:
    pay(engine, priced(300), 1.5)

    def train(parameters: Any) -> dict[str, Any]:
        done = trained(parameters)
        folder = Path(parameters["out"])
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps(done))
        return done

    def gone(*_: object, **__: object) -> None:
        raise LogUnavailable("The prediction log does not answer.")

    with monkeypatch.context() as broken:
        broken.setattr(retraining, "end_decision", gone)
        with pytest.raises(LogUnavailable):
            look(home, engine, train)
    assert [d.state for d in read_decisions(engine, trainings=True)] == ["running"]
    assert "recent" in look(home, engine, never).decision.reason
    [row] = read_decisions(engine, trainings=True)
    assert (row.state, row.version, row.promoted) == ("done", "2", True), "settled by what is there"


@pytest.mark.fault
def test_a_training_whose_process_died_is_settled(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    record_decision(engine, "train", "drift", {}, "running", str(home.path("runs/none")))
    look(home, engine, never)
    [row] = read_decisions(engine, trainings=True)
    assert row.state == "failed" and "the process ended" in str(row.verdict)


def test_a_training_that_fails_is_recorded_and_waits_for_the_cooldown(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    pay(engine, priced(300), 1.5)

    def fails(parameters: Any) -> dict[str, Any]:
        raise HousingError("No room on the disk.")

    assert look(home, engine, fails).failure == "No room on the disk."
    [row] = read_decisions(engine)
    assert (row.state, row.verdict) == ("failed", "No room on the disk.")
    assert "not before" in look(home, engine, never).decision.reason
    hasty = home.model_copy(update={"retrain_cooldown_h": 0.0, "retrain_per_day": 9})
    for _ in range(2):
        look(hasty, engine, fails)
    held = look(hasty, engine, never)
    assert held.decision.act == "hold" and "3 trainings in a row" in held.decision.reason
    with pytest.raises(ZeroDivisionError):
        look(home, engine, lambda _: 1 / 0, force=True)
    assert read_decisions(engine)[0].state == "failed", "a fault of ours is on record too"


def test_telling_alone_records_nothing(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced, monkeypatch: Any
) -> None:
    pay(engine, priced(300), 1.5)
    said = CliRunner().invoke(app, ["retrain", "--dry-run"], catch_exceptions=False).stdout
    assert said.startswith("train: live error")
    monkeypatch.setenv("HOUSING_RETRAIN", "off")
    said = CliRunner().invoke(app, ["retrain"], catch_exceptions=False).stdout
    assert said == "wait: HOUSING_RETRAIN is off\n"
    assert read_decisions(engine) == []
    assert CliRunner().invoke(app, ["decisions"]).stdout == "(none)\n"


@pytest.mark.nightly
@pytest.mark.train
def test_prices_paid_become_a_new_version(
    home: Settings, engine: sa.Engine, priced: Priced, table: Table
) -> None:
    first = notebooks.train(QUICK, home, NOTEBOOK)
    assert first["version"] == "1"
    pay(engine, priced(300, 4), 1.4)

    def train(parameters: Any) -> dict[str, Any]:
        return notebooks.train(parameters, home, NOTEBOOK)

    found = look(home, engine, train, force=True, parameters={**QUICK, "labelled_share": 0.4})
    assert found.done is not None and found.done["version"] == "2"
    [row] = read_decisions(engine)
    assert (row.state, row.version, row.run_id) == ("done", "2", found.done["run_id"])
    assert row.verdict == found.done["reason"]
    info = read_info(fetch_version("2", home))
    before = read_info(fetch_version("1", home))
    assert "sales from" in info.origin and info.fingerprint != before.fingerprint
    assert info.parameters["labelled"] == {"since": "", "share": 0.4}
    sales = info.rows - (info.rows * 6) // 10
    assert sales >= 100 and info.rows <= len(table.frame) + 300
    pay(engine, priced(40, 5), 1.2)  # what came in since is no part of its table
    again = challenge("2", home, progress=False)
    assert again.verdict is not None and not again.promoted, "the market has turned"
    assert "506 houses of the base table" in again.reason
    numbers = again.verdict.numbers
    assert numbers["newest_rmse"] < numbers["newest_champion_rmse"], "and that is told"


def test_the_route_and_the_command_list_the_looks(
    home: Settings, engine: sa.Engine, champion: Model, priced: Priced
) -> None:
    pay(engine, priced(300), 1.5)
    look(home, engine, trained)
    look(home, engine, never)
    with TestClient(create_app(home)) as api:
        newest, first = api.get("/monitoring/decisions").json()["decisions"]
        [only] = api.get("/monitoring/decisions?trainings=true&limit=1").json()["decisions"]
    assert newest["act"] == "wait" and "recent" in newest["reason"] and newest["ended"] is None
    assert only == first and first["version"] == "2" and first["promoted"] is True
    assert first["evidence"]["new"] >= 50 and "folder" not in first
    said = CliRunner().invoke(app, ["decisions", "--trainings"], catch_exceptions=False).stdout
    assert "promoted: better" in said and "recent" not in said


def test_the_dashboard_lists_them(
    serve: Callable[..., Server], browser: Browser, home: Settings
) -> None:
    server = serve()
    log = connect(Settings(home=server.home).database)
    page = browser.new_page()
    page.goto(f"{server.address}/dashboard")
    page.get_by_text("Nobody has looked yet").wait_for()
    begun = record_decision(log, "train", "drift in LSTAT <b>", {}, "running", "runs/1")
    end_decision(log, begun, "done", "promoted: better", "r", "7", True)
    record_decision(log, "ask", "no price paid for a house of the new kind", {})
    log.dispose()
    page.reload()
    page.get_by_text("no price paid").wait_for()
    rows = page.locator("#decisions tbody tr").all_inner_texts()
    assert len(rows) == 2 and "ask" in rows[0]
    assert "drift in LSTAT <b>" in rows[1] and "promoted" in rows[1] and "7" in rows[1]
    page.close()
