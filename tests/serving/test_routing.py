"""A challenger that has a share of the clients: who is asked, what is kept, and what becomes of one that fails."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from fastapi.testclient import TestClient
from houses import HOUSE
from processes import until

from housing_mlops.config import Settings
from housing_mlops.model.inference import Look, Model
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.registry.store import RegistryError
from housing_mlops.registry.trial import Trial, keep_trial
from housing_mlops.serving import routing
from housing_mlops.serving.api import create_app
from housing_mlops.serving.routing import Field

CLIENTS = [f"agency-{i}" for i in range(60)]
TRIAL = Trial("2", "1", 0.5, "2026-11-24T12:00:00+00:00")


@pytest.fixture
def settings(bundles: dict[str, Path], tmp_path: Path) -> Settings:
    """A home with a champion (1, ridge), a challenger (2, linear regression), and no trial yet."""
    settings = Settings(home=tmp_path, registry_poll_s=0.02)
    install_bundle(bundles["LinearRegression"], "2", settings)
    install_bundle(bundles["Ridge"], "1", settings)
    return settings


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    """The application, with the trial under way."""
    begin(settings, TRIAL)
    with TestClient(create_app(settings)) as client:
        until(lambda: client.app.service.field.trial == TRIAL)
        yield client


def begin(settings: Settings, trial: Trial) -> None:
    [folder] = [
        p for p in (settings.home / "models" / "housing").iterdir() if p.name.startswith("2-")
    ]
    keep_trial((trial, folder), settings)


def ask(api: TestClient, client: str = "", path: str = "/predict", body: object = HOUSE) -> Any:
    headers = {"X-Client-Id": client} if client else {}
    answer = api.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(client: str, trial: Trial = TRIAL) -> str:
    return "2" if trial.takes(b"client " + client.encode()) else "1"


def test_a_client_stays_on_its_side_whichever_way_it_asks(api: TestClient) -> None:
    assert api.app.prices.fast_path is not None
    sides = {c: ask(api, c)["model_version"] for c in CLIENTS}
    assert sides == {c: expected(c) for c in CLIENTS} and set(sides.values()) == {"1", "2"}
    api.app.prices.fast_path = None  # the fallback route alone
    assert {c: ask(api, c)["model_version"] for c in CLIENTS} == sides
    for client in CLIENTS[:5]:
        batch = ask(api, client, "/predict/batch", [HOUSE, {}, HOUSE])["predictions"]
        assert [p.get("model_version") for p in batch] == [sides[client], None, sides[client]]


def test_without_a_name_a_house_stays_with_a_model(api: TestClient) -> None:
    houses = [{**HOUSE, "RM": 5 + i / 50} for i in range(50)]
    fast = [ask(api, body=house)["model_version"] for house in houses]
    assert set(fast) == {"1", "2"}
    batch = ask(api, "", "/predict/batch", houses)["predictions"]
    assert [p["model_version"] for p in batch] == fast
    text = json.dumps(houses[3], indent=2)  # the house is the same, whatever its text looks like
    again = api.post("/predict", content=text, headers={"Content-Type": "application/json"})
    assert again.json()["model_version"] == fast[3]


def test_each_version_has_its_own_rows_and_counters(api: TestClient) -> None:
    sides = [ask(api, client)["model_version"] for client in CLIENTS]
    log = api.app.service.log
    assert log.flush(30)
    rows = api.get("/monitoring/predictions?limit=100").json()["predictions"]
    assert sorted(row["model_version"] for row in rows) == sorted(sides)
    counted = {v: api.app.service.counters.version(v).count for v in ("1", "2")}
    assert counted == {v: sides.count(v) for v in ("1", "2")}


def test_a_share_grows_moves_nobody_back_and_ends(api: TestClient, settings: Settings) -> None:
    before = {c for c in CLIENTS if expected(c) == "2"}
    for share in (0.8, 1.0, 0.0):
        trial = replace(TRIAL, share=share)
        begin(settings, trial)
        until(lambda t=trial: api.app.service.field.trial == (t if t.share else None))
        theirs = {c for c in CLIENTS if ask(api, c)["model_version"] == "2"}
        assert theirs == (
            set(CLIENTS) if share == 1 else {c for c in CLIENTS if expected(c, trial) == "2"}
        )
        assert before <= theirs or share == 0
    keep_trial(None, settings)
    until(lambda: "trial" not in api.get("/health").json()["checks"])


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["not a number", "a price that is none", "an error"])
@pytest.mark.parametrize("way", ["fast", "fallback"])
def test_a_challenger_that_fails_costs_no_client_its_answer(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, fault: str, way: str
) -> None:
    field, [theirs, *_] = api.app.service.field, [c for c in CLIENTS if expected(c) == "2"]
    assert api.get("/health").json()["checks"]["trial"]["state"] == "healthy"

    def spoilt(tensors: dict[str, np.ndarray]) -> Look:
        if fault == "an error":
            raise RuntimeError("no graph")
        return Look(np.full(max(map(len, tensors.values())), np.nan), None)

    if fault == "a price that is none":
        row = [list(HOUSE.values())]
        wild, [told] = field.challenger.quote(row), field.challenger.tell(row)
        ways = {
            "quote": wild._replace(values=wild.values * 1e9),
            "tell": [told._replace(values=tuple(v * 1e9 for v in told.values))],
        }
        for name, given in ways.items():
            monkeypatch.setattr(field.challenger, name, lambda _, given=given: given)
    else:
        monkeypatch.setattr(field.challenger, "look", spoilt)
    if way == "fallback":
        api.app.prices.fast_path = None
    before = ask(api, theirs)
    assert before["model_version"] == "1" and 0 < before["prediction"] < 100
    check = api.get("/health").json()["checks"]["trial"]
    assert check["state"] == "degraded" and "answers no more" in check["detail"]
    assert field.challenger is None and not field.load(api.app.service.model), "not again"


@pytest.mark.fault
def test_a_challenger_that_fails_in_one_worker_loses_its_share_in_all(
    settings: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(settings, TRIAL)
    champion = Model.open(bundles["Ridge"], "1")
    one, other = Field(settings), Field(settings)
    assert one.load(champion) and other.load(champion)
    one.give_up("its price is none")
    away = Mock(side_effect=RegistryError("The registry does not answer."))
    with monkeypatch.context() as patch:
        patch.setattr(routing, "take_share", away)
        assert not one.load(champion) and not other.load(champion) and away.called
    assert not one.load(champion), "it is told at the next look"
    assert other.load(champion) and other.challenger is None and other.problem == ""
    assert not one.load(champion) and "its price is none" in one.problem
    begin(settings, replace(TRIAL, share=0.2))  # a person has looked, and tries again
    assert one.load(champion) and other.load(champion)
    assert one.trial is not None and one.trial.share == 0.2 and one.problem == ""


@pytest.mark.fault
def test_a_full_journal_is_no_fault_of_the_challenger(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=JournalError("The journal is full."))
    monkeypatch.setattr(api.app.service.log.journal, "append_many", full)
    for client in CLIENTS[:9]:
        answer = api.post("/predict", json=HOUSE, headers={"X-Client-Id": client})
        assert answer.status_code == 503 and "full" in answer.json()["detail"]
    assert api.app.service.field.trial == TRIAL


def test_a_trial_against_another_champion_is_none(
    settings: Settings, bundles: dict[str, Path]
) -> None:
    field, champion = Field(settings), Model.open(bundles["Ridge"], "1")
    begin(settings, replace(TRIAL, against="7"))
    assert not field.load(champion) and field.trial is None
    begin(settings, TRIAL)
    assert not field.load(None) and field.load(champion) and not field.load(champion)
    field.settings = Settings(home=settings.home, tracking_uri="http://127.0.0.1:9")
    assert not field.load(champion) and field.trial == TRIAL, (
        "a registry that is away changes nothing"
    )


@pytest.mark.fault
def test_a_damaged_challenger_is_told_and_not_taken(
    settings: Settings, bundles: dict[str, Path]
) -> None:
    begin(settings, TRIAL)
    [graph] = (settings.home / "models" / "housing").glob("2-*/model.onnx")
    graph.write_bytes(graph.read_bytes()[:-1])
    field = Field(settings)
    assert field.load(Model.open(bundles["Ridge"], "1")) and field.challenger is None
    assert "answers no more" in field.problem


def test_reasons_are_those_of_the_model_that_prices_the_client(api: TestClient) -> None:
    seen = set()
    for client in CLIENTS[:8]:
        plain = ask(api, client)
        for path in ("/explain", "/predict?explain=true"):
            why = ask(api, client, path)
            assert why["model_version"] == plain["model_version"] == expected(client), path
            assert why["prediction"] == plain["prediction"]
        seen.add(why["explanation"]["base"])
    assert len(seen) == 2, "two models, two prices of the reference house"
