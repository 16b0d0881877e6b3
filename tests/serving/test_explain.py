"""Reasons asked for over HTTP: what is answered, who may ask, and that prices do not wait."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from houses import HOUSE, JSON, comparable, connected
from processes import until

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving import explain
from housing_mlops.serving.api import create_app


@pytest.fixture
def fresh(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A home with a champion and an empty log."""
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    return tmp_path


def adds_up(price: float, told: dict[str, Any]) -> bool:
    """Whether contributions are the difference of the two prices, to the last digit."""
    parts = [Decimal(repr(reason["contribution"])) for reason in told["reasons"]]
    return sum(parts) == Decimal(repr(price)) - Decimal(repr(told["base"]))


def test_reasons_add_up_and_leave_no_record(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh))) as api:
        until(connected(api))
        answer = api.post("/explain", json=HOUSE).json()
        told = answer["explanation"]
        assert adds_up(answer["prediction"], told)
        assert {r["feature"] for r in told["reasons"]} == set(HOUSE)
        assert [c["feature"] for c in told["contrasts"]] == ["RM"]
        assert api.app.service.log.flush(20)
        assert api.get("/monitoring/predictions").json()["predictions"] == []
        priced = api.post("/predict", json=HOUSE).json()
        assert priced["prediction"] == answer["prediction"] and "explanation" not in priced


def test_a_price_is_on_record_whether_or_not_it_says_why(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh))) as api:
        until(connected(api))
        plain = api.post("/predict", json=HOUSE)
        why = api.post("/predict?explain=true", json=HOUSE)
        told = why.json().pop("explanation")
        assert adds_up(why.json()["prediction"], told)
        assert {k: v for k, v in comparable(why.text).items() if k != "explanation"} == comparable(
            plain.text
        )
        for no in ("false", "0"):
            answer = api.post(f"/predict?explain={no}", json=HOUSE)
            assert comparable(answer.text) == comparable(plain.text)
        assert api.post("/predict?explain=perhaps", json=HOUSE).status_code == 422
        assert api.app.service.log.flush(20)
        rows = api.get("/monitoring/predictions").json()["predictions"]
        assert len(rows) == 4 and {row["route"] for row in rows} == {"/predict"}
        assert why.json()["prediction_id"] in {row["id"] for row in rows}
        counted = {
            (r["route"], r["status"]): r["count"]
            for r in api.get("/metrics").json()["requests"]["by_route"]
        }
        assert counted["/explain", 200] == 1 and counted["/predict", 200] == 3


@pytest.mark.parametrize("path", ["/explain", "/predict?explain=true"])
def test_what_is_no_house_is_refused(home: Path, path: str) -> None:
    with TestClient(create_app(Settings(home=home, log="off"))) as api:
        for house in ({}, HOUSE | {"RM": "six"}, HOUSE | {"POOL": 1}, [HOUSE]):
            answer = api.post(path, json=house)
            assert answer.status_code == 422 and answer.json()["detail"][0]["msg"], house
        twice = '{"RM": 6, ' + str(HOUSE)[1:].replace("'", '"')
        assert "stands twice" in api.post(path, content=twice, headers=JSON).text


def test_they_count_against_the_limit_of_a_client(home: Path) -> None:
    with TestClient(create_app(Settings(home=home, log="off", rate_limit="2/hour"))) as api:
        states = [api.post("/explain", json=HOUSE).status_code for _ in range(3)]
    assert states == [200, 200, 429]


def test_only_so_many_are_worked_out_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    really = explain.work_out

    def watched(*args: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        try:
            return really(*args)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(explain, "work_out", watched)
    app = create_app(Settings(home=home, log="off", explain_at_once=2))

    async def all_at_once() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = await asyncio.gather(*[client.post("/explain", json=HOUSE) for _ in range(8)])
        return [answer.status_code for answer in answers]

    app.service.model = app.service.champion.load()
    assert asyncio.run(all_at_once()) == [200] * 8
    assert most == 2
    app.service.pool.shutdown()


@pytest.mark.fault
def test_whoever_would_wait_too_long_is_told_and_nothing_is_on_record(fresh: Path) -> None:
    settings = Settings(home=fresh, explain_wait_s=0.05)
    with TestClient(create_app(settings)) as api:
        until(connected(api))
        service = api.app.service
        held = [service.explaining.acquire() for _ in range(settings.explain_at_once)]
        for one in held:
            api.portal.call(lambda one=one: one)
        for path in ("/explain", "/predict?explain=true"):
            answer = api.post(path, json=HOUSE)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
            assert "try again" in answer.json()["detail"]
        assert api.post("/predict", json=HOUSE).status_code == 200, "prices do not wait"
        assert service.log.flush(20)
        assert len(api.get("/monitoring/predictions").json()["predictions"]) == 1
        for _ in held:
            service.explaining.release()
        assert api.post("/explain", json=HOUSE).status_code == 200


@pytest.mark.fault
def test_a_failure_gives_its_place_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise ZeroDivisionError

    with TestClient(
        create_app(Settings(home=home, log="off")), raise_server_exceptions=False
    ) as api:
        with monkeypatch.context() as patched:
            patched.setattr(explain, "work_out", fails)
            states = [api.post("/explain", json=HOUSE).status_code for _ in range(3)]
        assert states == [500] * 3 and api.post("/explain", json=HOUSE).status_code == 200


def test_without_a_model_there_are_no_reasons(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(home=tmp_path, log="off"))) as api:
        for path in ("/explain", "/predict?explain=true"):
            answer = api.post(path, json=HOUSE)
            assert answer.status_code == 503 and "No model" in answer.json()["detail"]


def test_the_server_takes_the_fast_path_for_prices_alone(serve: Callable[..., Any]) -> None:
    server = serve()
    with httpx.Client(base_url=server.address) as client:
        plain = client.post("/predict", json=HOUSE)
        why = client.post("/predict?explain=true", json=HOUSE)
        assert "explanation" not in plain.json()
        assert adds_up(why.json()["prediction"], why.json()["explanation"])
        with ThreadPoolExecutor(16) as threads:
            answers = [*threads.map(lambda _: client.post("/explain", json=HOUSE), range(32))]
        assert {answer.status_code for answer in answers} == {200}
        assert len({comparable(answer.text)["explanation"]["base"] for answer in answers}) == 1
