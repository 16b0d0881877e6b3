"""The application in this process: what the other tests of it leave over."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.inference import Model
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving import api as serving
from housing_mlops.serving import fast_path as short_way
from housing_mlops.serving.service import Asked, Service


@pytest.fixture
def home(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A home whose champion is a ridge regression."""
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    return tmp_path


def until(holds: Any, patience_s: float = 20) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_the_root_leads_to_the_documentation(home: Path) -> None:
    with TestClient(serving.create_app(Settings(home=home))) as api:
        answer = api.get("/", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


def test_a_batch_of_nothing_but_mistakes_is_answered(home: Path) -> None:
    with TestClient(serving.create_app(Settings(home=home))) as api:
        answer = api.post("/predict/batch", json=[{}, {"RM": 1}]).json()
    assert answer["count"] == 2 and all("error" in one for one in answer["predictions"])


def test_history_comes_as_csv_where_it_is_asked_for(home: Path, table: Table) -> None:
    with TestClient(serving.create_app(Settings(home=home))) as api:
        until(lambda: api.app.state.service.log.state.connected)
        want = {"Accept": "text/csv"}
        assert api.get("/monitoring/predictions", headers=want).text == "id\r\n"
        made = api.post("/predict", json=table.dataset.example).json()["prediction_id"]
        api.app.state.service.log.flush()
        header, row = api.get("/monitoring/predictions", headers=want).text.splitlines()
        assert header.startswith("id,time,") and row.startswith(made)


def test_without_a_log_prices_are_given_and_history_is_not(home: Path, table: Table) -> None:
    with TestClient(serving.create_app(Settings(home=home, log="off"))) as api:
        for path, body in [
            ("/predict", table.dataset.example),
            ("/predict/batch", [table.dataset.example]),
        ]:
            assert api.post(path, json=body).status_code == 200
        assert "HOUSING_LOG is off" in api.get("/monitoring/predictions").json()["detail"]
        assert api.get("/metrics").json()["log"] is None
        assert api.get("/health").json()["checks"]["log"]["state"] == "healthy"
    assert not (home / "predictions.db").exists()


def test_no_registry_and_no_cache_is_told(tmp_path: Path) -> None:
    nowhere = Settings(home=tmp_path, tracking_uri="http://127.0.0.1:9", log="off")
    with TestClient(serving.create_app(nowhere)) as api:
        assert "out of reach" in api.get("/readyz").json()["detail"]
        assert api.get("/health").json()["checks"]["registry"]["state"] == "degraded"


def test_a_cursor_that_no_page_gave_is_a_mistake(home: Path) -> None:
    with TestClient(serving.create_app(Settings(home=home))) as api:
        until(lambda: api.app.state.service.log.state.connected)
        for cursor in ("x", "1-2", "9" * 30 + ".x"):
            answer = api.get("/monitoring/predictions", params={"before": cursor})
            assert answer.status_code == 422, cursor


def test_drift_is_judged_and_counters_are_shared_in_the_background(home: Path) -> None:
    busy = Settings(home=home, drift_interval_s=0.05, metrics_dir=Path("metrics"))
    with TestClient(serving.create_app(busy)) as api:
        service = api.app.state.service
        until(lambda: service.judgement is not None)
        until(lambda: list((home / "metrics").glob("*.json")))
        assert api.get("/metrics").json()["drift"]["verdict"] == "unknown"
    quiet = Settings(home=home, drift_interval_s=0.05, log="off")
    with TestClient(serving.create_app(quiet)) as api:
        time.sleep(0.2)
        assert api.app.state.service.judgement is None


def test_a_background_task_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    async def fails() -> None:
        tries.append(1)
        raise ValueError("not yet")

    async def some() -> None:
        task = asyncio.create_task(serving._every(0, fails))
        while len(tries) < 2:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(some())
    assert "tried again" in caplog.text


@pytest.fixture
def asked(table: Table) -> list[Asked]:
    body = table.dataset.request_model.model_validate(table.dataset.example)
    text = body.model_dump_json(by_alias=True).encode()
    return [Asked(text, b"", time.perf_counter()) for _ in range(2)]


def test_the_short_way_leaves_what_it_cannot_answer(
    bundles: dict[str, Path], tmp_path: Path, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Settings(home=tmp_path))
    service.open_log()
    model = Model.open(bundles["Ridge"], "1")
    assert None not in short_way.quick_path(service, model)(asked)

    def full(records: list[bytes]) -> None:
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(service.log.journal, "append_many", full)
        assert short_way.quick_path(service, model)(asked) == [None, None]
    with monkeypatch.context() as patch:
        patch.setattr(model, "price", lambda tensors: np.array([np.nan, 20.0]))
        first, second = short_way.quick_path(service, model)(asked)
        assert first is None and second is not None
    loop = asyncio.new_event_loop()
    gone, waiting = loop.create_future(), loop.create_future()
    gone.cancel()
    service.asked = [
        (one, partial(short_way._settle, future))
        for one, future in zip(asked, (gone, waiting), strict=True)
    ]
    short_way._price_asked(service)  # its model is gone, and one client is
    assert waiting.result() is None and service.asked == []
    service.log.close()
    service.pool.shutdown()
    loop.close()


def connection(path: str) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """A POST whose headers have come, what is sent back, and the function that sends."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"300")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": headers,
        "query_string": b"",
    }
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    return scope, sent, send


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
@pytest.mark.parametrize("late", [True, False])
def test_a_request_that_never_comes_is_cut_off_and_one_that_leaves_is_let_go(
    home: Path, path: str, late: bool
) -> None:
    app = serving.create_app(Settings(home=home, log="off", deadline_s=0.01))
    service, (scope, sent, send) = app.service, connection(path)
    service.quick = lambda asked: [None] * len(asked)

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> None:
        task = asyncio.create_task(app(scope, never, send))
        while task not in service.waiting:
            await asyncio.sleep(0)
        if late:
            service.waiting[task] = 0  # as the loop that cuts off does
        task.cancel()
        await task

    if late:
        asyncio.run(scenario())
        assert sent[0]["status"] == 408 and service.traffic.errors == {"slow": 1}
    else:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(scenario())
        assert sent == []
    assert service.in_progress == 0


def test_a_request_that_arrives_as_it_is_cut_off_is_read_to_its_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = serving.create_app(Settings(home=home, log="off"))
    scope, _, send = connection("/feedback")
    read: list[bytes] = []

    async def receive() -> dict[str, Any]:
        task = asyncio.current_task()
        assert task is not None
        app.service.waiting[task] = 0
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def reads_twice(self: Any, scope: Any, receive: Any, send: Any) -> None:
        read.extend([(await receive())["body"], (await receive())["body"]])

    monkeypatch.setattr(short_way.FastAPI, "__call__", reads_twice)
    asyncio.run(app(scope, receive, send))
    assert read == [b"{}", b"{}"]


def test_with_the_registry_away_the_cached_champion_serves(home: Path, table: Table) -> None:
    away = Settings(home=home, tracking_uri="http://127.0.0.1:9", log="off")
    with TestClient(serving.create_app(away)) as api:
        assert api.post("/predict", json=table.dataset.example).status_code == 200
        said = api.get("/health").json()
    assert said["status"] == "degraded"
    assert "Serving from the cache" in said["checks"]["registry"]["detail"]
