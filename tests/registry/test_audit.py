"""Every move of the champion is on record, whatever goes away half-way, and whoever made it."""

import logging
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy as sa

from housing_mlops.config import HousingError, Settings
from housing_mlops.prediction_log.database import connect, moves
from housing_mlops.registry import aliases
from housing_mlops.registry.aliases import promote, roll_back
from housing_mlops.registry.audit import (
    MOVING,
    Reason,
    former_champion,
    history,
    refuse,
    saved_moves,
    tagged_moves,
)
from housing_mlops.registry.client import StoreRegistry, open_registry
from housing_mlops.registry.store import RegistryError, register_bundle
from housing_mlops.training.tracking import open_experiment

pytestmark = pytest.mark.train


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    """A registry and a database in files of their own."""
    return Settings(home=tmp_path)


@pytest.fixture
def three(local: Settings, bundles: dict[str, Path]) -> list[str]:
    """Three registered versions, of which the first is the champion."""
    experiment = open_experiment(local)
    found = []
    for name in ("LinearRegression", "Ridge", "Ridge"):
        with mlflow.start_run(experiment_id=experiment) as run:
            pass
        found.append(register_bundle(bundles[name], run.info.run_id, local))
    promote(found[0], local, reason=Reason("there was none", "ann"))
    return found


def chain(settings: Settings) -> list[tuple[str, str | None, str | None]]:
    """What the history tells, the oldest first."""
    return [(m.action, m.before, m.after) for m in reversed(history(settings).moves)]


def test_a_move_is_in_the_database_and_in_mlflow(local: Settings, three: list[str]) -> None:
    verdict = {"gain": 0.4, "checks": ["a", "b"]}
    promote("2", local, reason=Reason("better\nby far", "ci", verdict, forced=True))
    refuse("3", local, Reason("a tie", "ci", {"gain": 0}))
    assert roll_back(local, reason=Reason("it priced nonsense", "bob")) == "1"
    listed = history(local).moves
    assert [(m.action, m.before, m.after, m.who, m.why) for m in reversed(listed)] == [
        ("promote", None, "1", "ann", "there was none"),
        ("promote", "1", "2", "ci", "better by far"),
        ("refuse", "2", "3", "ci", "a tie"),
        ("rollback", "2", "1", "bob", "it priced nonsense"),
    ]
    assert (listed[2].verdict, listed[2].forced) == (verdict, True)
    tagged = tagged_moves(open_registry(local).versions())
    assert {m.id: m for m in tagged} == {m.id: m for m in saved_moves(local)}


def test_a_long_verdict_is_whole_in_the_database(local: Settings, three: list[str]) -> None:
    promote("2", local, reason=Reason("better", verdict={"rows": "x" * 30_000}))
    tagged = {m.after: m for m in tagged_moves(open_registry(local).versions())}
    assert tagged["2"].verdict is None
    saved = {m.after: m.verdict for m in saved_moves(local)}
    assert saved["2"] == {"rows": "x" * 30_000}


@pytest.mark.fault
def test_without_a_database_it_is_moved_and_put_on_record_later(
    local: Settings, three: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    away = local.model_copy(update={"database_url": f"sqlite:///{local.home}/none/here.db"})
    with caplog.at_level(logging.WARNING):
        promote("2", away, reason=Reason("better"))
    assert "history` puts the record in" in caplog.text
    assert former_champion(open_registry(away).model()) == "1"
    told = history(away)
    assert [m.after for m in told.moves] == ["2", "1"] and "does not answer" in told.notes[0]
    (local.home / "none").mkdir()
    assert history(away).notes == []
    assert {m.after for m in saved_moves(away)} == {"1", "2"}


@pytest.mark.fault
def test_without_a_registry_the_database_tells(local: Settings, three: list[str]) -> None:
    gone = local.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    told = history(gone)
    assert [m.after for m in told.moves] == ["1"] and "out of reach" in told.notes[0]
    nothing = gone.model_copy(update={"database_url": "sqlite:////none/here.db"})
    with pytest.raises(HousingError, match="out of reach"):
        history(nothing)
    with pytest.raises(HousingError, match="out of reach"):
        history(gone.model_copy(update={"log": "off"}))


@pytest.mark.database
def test_postgresql_has_the_same_record(local: Settings, three: list[str], postgres: Any) -> None:
    there = local.model_copy(update={"database_url": postgres.make("audited")})
    promote("2", there, reason=Reason("better", verdict={"gain": 0.4}))
    promote("1", there)
    assert {m.id: m for m in saved_moves(there)} == {m.id: m for m in history(local).moves}
    engine = connect(there.database)
    with engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(moves)) == 3
    engine.dispose()


class Away:
    """Lets a registry go away at one of the writes that follow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, patience: int) -> None:
        self.left = patience
        for name in ("tag", "tag_version", "point"):
            monkeypatch.setattr(StoreRegistry, name, self.counted(getattr(StoreRegistry, name)))

    def counted(self, write: Any) -> Any:
        """`write`, until it is too late."""

        def one(*args: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise RegistryError("The registry is gone.")
            write(*args)

        return one


@pytest.mark.fault
@pytest.mark.parametrize("writes", range(8))
def test_a_registry_that_goes_away_leaves_no_half_of_a_move(
    writes: int, local: Settings, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "LEASE_S", 0)  # so that nobody waits for who was broken off
    away = Away(monkeypatch, writes)
    moved = writes > 3  # the lock, the announcement, the record, and then the alias
    try:
        promote("2", local, reason=Reason("better"))
        assert moved
    except RegistryError as error:
        assert not moved and "is gone" in str(error)
    away.left = 99
    model = open_registry(local).model()
    assert model.aliases["champion"] == ("2" if moved else "1")
    told = history(local)
    assert [m.after for m in told.moves] == (["2", "1"] if moved else ["1"])
    assert bool(told.notes) == (MOVING in model.tags) == (2 <= writes < 7)
    promote("3", local, reason=Reason("better still"))
    first, second = ("promote", None, "1"), ("promote", "1", "2")
    last = ("promote", "2" if moved else "1", "3")
    assert chain(local) == ([first, second, last] if moved else [first, last])
    assert MOVING not in open_registry(local).model().tags
    assert {m.id for m in saved_moves(local)} == {m.id for m in history(local).moves}
    assert roll_back(local) == ("2" if moved else "1")


def test_what_was_moved_by_hand_is_noticed(local: Settings, three: list[str]) -> None:
    promote("2", local)
    client = mlflow.MlflowClient(local.tracking)
    client.set_registered_model_alias("housing", "champion", "3")
    told = history(local)
    assert (told.moves[0].action, told.moves[0].after) == ("by hand", "3")
    assert "without housing-mlops" in told.notes[0]
    assert len(saved_moves(local)) == 2, "looking records nothing"
    assert roll_back(local) == "2", "which was replaced by hand, and not 1, which `previous` says"
    assert chain(local)[2:] == [("by hand", "2", "3"), ("rollback", "3", "2")]
    assert history(local).notes == []


@pytest.mark.fault
def test_a_version_that_was_deleted_is_told_and_its_history_stays(
    local: Settings, three: list[str]
) -> None:
    promote("2", local)
    promote("3", local)
    client = mlflow.MlflowClient(local.tracking)
    client.delete_model_version("housing", "2")
    with pytest.raises(RegistryError, match=r"Version 2 .* not there any more: .* takes 1\."):
        roll_back(local)
    with pytest.raises(RegistryError, match="version=2"):
        promote("2", local)
    assert roll_back(local, "1") == "1"
    client.delete_model_version("housing", "1")  # the champion itself: its alias goes too
    assert "champion" not in open_registry(local).model().aliases
    assert [m.after for m in history(local).moves] == [None, "1", "3", "2", "1"]
    assert roll_back(local, "3") == "3"
    assert chain(local)[-2:] == [("by hand", "1", None), ("rollback", None, "3")]


def test_what_never_was_champion_is_no_way_back(local: Settings, three: list[str]) -> None:
    with pytest.raises(RegistryError, match="has had no champion before"):
        roll_back(local)
    with pytest.raises(RegistryError, match="Version 1 of housing is the champion"):
        roll_back(local, "1")
    with pytest.raises(RegistryError, match="Version 2 of housing never was champion"):
        roll_back(local, "2")
    with pytest.raises(RegistryError, match="Version 9 of housing is not there"):
        roll_back(local, "9")
    assert chain(local) == [("promote", None, "1")]
