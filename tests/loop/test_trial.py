"""A trial and a former champion, looked at: what follows, what is on record, and what survives each fault."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser
from servers import Server
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.monitoring.comparison import Verdict, Word
from housing_mlops.operations import trial, watch
from housing_mlops.operations.trial import Standing, begin_trial, look_at_trial
from housing_mlops.operations.watch import look_at_field, look_at_watch
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.decisions import end_decision, read_decisions, record_decision
from housing_mlops.prediction_log.record import LogUnavailable
from housing_mlops.prediction_log.second_prices import Pair
from housing_mlops.registry.aliases import promote
from housing_mlops.registry.audit import history
from housing_mlops.registry.client import open_registry
from housing_mlops.registry.store import RegistryError, register_bundle
from housing_mlops.registry.trial import parse_tags, take_share
from housing_mlops.training.tracking import open_experiment


@pytest.fixture(scope="module")
def registry(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three versions, the third in another unit, and the first as champion."""
    home = tmp_path_factory.mktemp("registry")
    local = Settings(home=home)
    other = home / "other"
    shutil.copytree(bundles["Ridge"], other)
    info = json.loads((other / "bundle.json").read_text())
    info["dataset"]["target"]["unit"] = "USD"
    (other / "bundle.json").write_text(json.dumps(info))
    for folder in (bundles["LinearRegression"], bundles["Ridge"], other):
        with mlflow.start_run(experiment_id=open_experiment(local)) as run:
            pass
        register_bundle(folder, run.info.run_id, local)
    promote("1", local)
    return home


@pytest.fixture
def local(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a copy of it, which carry out verdicts; commands run there."""
    home = tmp_path / "home"
    shutil.copytree(registry, home)
    for name, value in {"HOME": home, "AUTOPROMOTE": "trial"}.items():
        monkeypatch.setenv(f"HOUSING_{name}", str(value))
    return Settings(home=home, autopromote="trial")


@pytest.fixture
def engine(local: Settings) -> Iterator[sa.Engine]:
    made = connect(local.database)
    migrate(made)
    yield made
    made.dispose()


def champion(local: Settings) -> str:
    return open_registry(local).model().aliases["champion"]


def in_trial(local: Settings) -> bool:
    return "trial" in open_registry(local).model().tags


def finds(monkeypatch: pytest.MonkeyPatch, word: Word, wait: Callable[[], Any] = lambda: 0) -> None:
    """Have the sales say this of whichever two versions are compared."""

    def compare(pair: Pair, *_: object) -> Standing:
        wait()
        ends = {"promote": (1.0, 3.0), "stop": (-3.0, -1.0), "go on": (-1.0, 3.0)}[word]
        verdict = Verdict(word, "the challenger is so", 90, 2.0, *ends, ())
        return Standing(pair, verdict, 0, (3.0, 2.6), {}, datetime.now(UTC))

    for module in (trial, watch):
        monkeypatch.setattr(module, "compare_versions", compare)


def say(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*words])
    return done.exit_code, (done.stdout + done.stderr).strip()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["2", "--share", "150%"], "A share is between 0 and 100 %; this one is 1.5."),
        (["2", "--share", "-1%"], "A share is between 0 and 100 %; this one is -0.01."),
        (["2", "--share", "some"], "'some' is no share: say 10% or 0.1."),
        (["2", "--share", "nan"], "A share is between 0 and 100 %; this one is nan."),
        (["2", "--shadow", "--share", "10%"], "Say one of them"),
        (["2", "--stop"], "Say one of them"),
        (["--shadow"], "Say which version is to be tried"),
    ],
)
def test_what_cannot_be_meant_begins_nothing(words: list[str], told: str) -> None:
    code, said = say("challenge", *words)
    assert code == 1 and told in said


def test_a_trial_begins_in_the_shadow_gets_a_share_and_ends_on_record(
    local: Settings, engine: sa.Engine
) -> None:
    assert "prices in the shadow beside 1" in say("challenge", "2", "--shadow")[1]
    assert "answers 0.2 of the clients" in say("challenge", "2", "--share", "20%")[1]
    told = say("challenge")[1]
    assert "go on: fewer than 10 sales" in told and told.endswith("(0 sales).")
    assert say("challenge", "--stop") == (0, "No trial is under way.") and not in_trial(local)
    acts = [d.act for d in reversed(read_decisions(engine))]
    assert acts == ["trial: begin", "trial: begin", "trial: go on", "trial: end"]
    assert say("challenge", "--stop")[0] == 0, "twice changes nothing"


@pytest.mark.fault
def test_a_share_that_a_server_took_is_gone_from_the_registry_and_on_record(
    local: Settings, engine: sa.Engine
) -> None:
    begun = begin_trial("2", local, engine, 0.2)
    take_share(begun, local)
    tags = open_registry(local).model().tags
    assert parse_tags(tags).share == 0.2, "a server beside a store of files cannot write to it"
    told = look_at_trial(local, engine, tell=True)
    assert told.trial.share == 0.2 and len(read_decisions(engine)) == 1, "it only looked"
    for _ in range(2):
        assert look_at_trial(local, engine).trial.share == 0
    assert parse_tags(open_registry(local).model().tags) == replace(begun, share=0.0)
    acts = [d.act for d in reversed(read_decisions(engine))]
    assert acts == ["trial: begin", "trial: share taken", "trial: go on", "trial: go on"]
    begin_trial("2", local, engine, 0.1)
    assert look_at_trial(local, engine).trial.share == 0.1, "a person is believed"


def test_another_declaration_is_refused_with_what_differs(
    local: Settings, engine: sa.Engine
) -> None:
    for words in (["--share", "10%"], ["--shadow"]):
        code, said = say("challenge", "3", *words)
        assert code == 1 and "MEDV in USD is not MEDV in 1000 USD" in said
    assert not in_trial(local) and read_decisions(engine) == []


@pytest.mark.fault
def test_a_trial_is_ended_whatever_became_of_the_database(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_trial("2", local, engine, 0.5)
    monkeypatch.setenv("HOUSING_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    code, said = say("challenge", "2", "--share", "60%")
    assert code == 1 and in_trial(local), "without a log there is nothing to judge by"
    code, said = say("challenge", "--stop")
    assert code == 0 and "That is not on record" in said and not in_trial(local)


def test_two_looks_at_once_move_once(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_trial("2", local, engine)
    both = threading.Barrier(2, timeout=30)
    finds(monkeypatch, "promote", both.wait)
    failed: list[BaseException] = []

    def look() -> None:
        try:
            look_at_trial(local, engine)
        except RegistryError as error:  # "Another promotion is under way"
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert champion(local) == "2" and len(failed) <= 1
    moves = [m for m in history(local).moves if m.after == "2"]
    assert [m.action for m in moves] == ["promote"] and "closer in its trial" in moves[0].why
    assert look_at_trial(local, engine) is None and not in_trial(local)
    states = [d.state for d in read_decisions(engine, acts=["trial: promote"])]
    assert len(states) == 2 and "done" in states and "running" not in states


@pytest.mark.fault
def test_a_registry_that_goes_in_the_middle_leaves_the_trial_as_it_was(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_trial("2", local, engine)
    finds(monkeypatch, "promote")

    def gone(*_: object) -> None:
        raise RegistryError("The registry does not answer.")

    with monkeypatch.context() as broken:
        broken.setattr(trial, "promote", gone)
        assert [*look_at_field(local, engine)] == ["trial: failed: The registry does not answer."]
    assert champion(local) == "1" and in_trial(local)
    newest, before = read_decisions(engine, 2)
    assert (newest.act, before.act, before.state) == ("trial: failed", "trial: promote", "failed")
    [line] = look_at_field(local, engine)
    assert line.endswith("; promoted") and champion(local) == "2" and not in_trial(local)


@pytest.mark.fault
@pytest.mark.parametrize("where", ["the process is killed", "the database is gone"])
def test_what_was_moved_and_not_written_down_is_settled(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    begin_trial("2", local, engine)
    finds(monkeypatch, "promote")

    def dies(*_: object, **__: object) -> None:
        raise SystemExit if where == "the process is killed" else LogUnavailable("gone")

    with monkeypatch.context() as broken:
        name = "stop_trial" if where == "the process is killed" else "end_decision"
        broken.setattr(trial, name, dies)
        with pytest.raises((SystemExit, LogUnavailable)):
            look_at_trial(local, engine)
    assert champion(local) == "2" and read_decisions(engine)[0].state == "running"
    assert look_at_trial(local, engine) is None and not in_trial(local)
    [row] = read_decisions(engine, acts=["trial: promote"])
    assert row.state == "done" and "version 2 is champion" in str(row.verdict)


@pytest.mark.fault
def test_a_roll_back_that_fails_is_made_by_the_next_look(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("2", local)
    finds(monkeypatch, "promote")

    def gone(*_: object) -> None:
        raise RegistryError("The registry does not answer.")

    with monkeypatch.context() as broken:
        broken.setattr(watch, "roll_back", gone)
        with pytest.raises(RegistryError):
            look_at_watch(local, engine)
    assert champion(local) == "2" and read_decisions(engine)[0].state == "failed"
    assert look_at_watch(local, engine).done == "rolled back" and champion(local) == "1"
    assert "was shown to be closer on 90 sales" in history(local).moves[0].why
    assert look_at_watch(local, engine) is None


@pytest.mark.parametrize(("way", "moved"), [("off", False), ("gate", False), ("trial", True)])
def test_a_verdict_waits_for_a_person_unless_told_otherwise(
    local: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, way: Any, moved: bool
) -> None:
    begin_trial("2", local, engine)
    finds(monkeypatch, "promote")
    monkeypatch.setenv("HOUSING_AUTOPROMOTE", way)
    monkeypatch.setenv("HOUSING_RETRAIN", "off")
    told = say("challenge")[1]
    assert ("`housing-mlops promote 2` does it" in told) != moved
    assert (champion(local) == "2") is moved
    assert say("retrain")[1].splitlines()[-1] == "wait: HOUSING_RETRAIN is off"


def test_a_waiting_version_is_tried_once(local: Settings, engine: sa.Engine) -> None:
    begun = record_decision(engine, "train", "drift", {}, "running")
    end_decision(engine, begun, "done", "passed the gate, and waits", "r", "2")
    told = say("retrain", "--dry-run")[1]
    assert not in_trial(local), "told alone, nothing begins"
    told = [*look_at_field(local, engine)]
    assert in_trial(local) and told[0].startswith("trial: go on: version 2 beside 1")
    say("challenge", "--stop")
    assert [*look_at_field(local, engine)] == [] and not in_trial(local)


def test_a_look_that_only_tells_settles_and_ends_nothing(
    local: Settings, engine: sa.Engine
) -> None:
    begin_trial("2", local, engine)
    about = {"version": "2", "against": "1", "share": 0.0, "since": "2026-11-24T12:00:00+00:00"}
    for act in ("trial: promote", "watch: keep"):  # their processes died
        record_decision(engine, act, "shown", {"trial": about}, "running")
    promote("2", local)
    before = [(row.act, row.state) for row in read_decisions(engine)]
    assert look_at_trial(local, engine, tell=True) is None
    look_at_watch(local, engine, tell=True)
    assert in_trial(local) and [(row.act, row.state) for row in read_decisions(engine)] == before
    look_at_trial(local, engine)
    assert not in_trial(local) and read_decisions(engine)[0].act == "trial: end"


def test_the_dashboard_shows_the_trial(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    log = connect(Settings(home=server.home).database)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{server.address}/dashboard")
    page.get_by_text("No version was tried beside the champion yet").wait_for()
    about = {"version": "8", "against": "7", "share": 0.2, "since": "2026-11-24T12:00:00+00:00"}
    band = {"low": None, "high": None, "houses": 400, "sales": 60, "gain": 2.5}
    found = {
        "sales": 60,
        **{"gain": 2.5, "low": -0.5, "high": 5.5, "bands": [band]},
        "rmse": {"champion": 3.61, "challenger": 3.12},
        "answered": {"7": 321, "8": 79},
    }
    for _ in range(3):
        record_decision(log, "trial: go on", "undecided <b>", {"trial": about, **found})
    watch = {**about, "version": "7", "against": "8", "share": 0.0}
    record_decision(log, "watch: keep", "the former champion is worse", {"trial": watch, **found})
    log.dispose()
    page.reload()
    page.get_by_text("undecided <b>; under way").wait_for()
    text = page.locator("#trial").inner_text()
    assert "80 %" in text and "20 %" in text and "321" in text and "3.12" in text and "15 %" in text
    assert page.locator("#trial svg path").count() == 2, "the gain and its band"
    assert "former champion" in page.locator("#watch").inner_text()
    assert "undecided" not in page.locator("#decisions").inner_text(), "a point of the chart"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong
    page.close()
