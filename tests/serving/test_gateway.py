"""What stands in front of the routes: limits, the deadline, identifiers, the access log."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from houses import BODY, HOUSE, JSON
from talk import post, running

from housing_mlops.config import Settings
from housing_mlops.serving.api import create_app
from housing_mlops.serving.fast_path import Turn


def test_a_client_that_asks_too_often_waits(home: Path) -> None:
    pytest.importorskip("limits")
    limited = Settings(home=home, rate_limit="3/hour", api_keys="mine")
    with TestClient(create_app(limited)) as api:
        mine = {"X-API-Key": "mine"}
        answers = [api.post("/predict", json=HOUSE, headers=mine) for _ in range(5)]
        assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600
        guesses = [
            api.post("/predict", json=HOUSE, headers={"X-API-Key": f"k{i}"}) for i in range(5)
        ]
        assert [a.status_code for a in guesses] == [401] * 3 + [429] * 2
        assert {api.get(path).status_code for path in ("/livez", "/readyz", "/metrics")} == {200}

        async def fails(*_: Any) -> bool:
            raise ConnectionError("made up")

        api.app.service.limiter.strategy.hit = fails
        assert api.post("/predict", json=HOUSE, headers=mine).status_code == 200


def test_too_many_in_progress_are_told_to_come_back(home: Path) -> None:
    with TestClient(create_app(Settings(home=home, max_in_progress=2))) as api:
        api.app.service.in_progress += 2
        answer = api.post("/predict", json=HOUSE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        api.app.service.in_progress -= 2
        assert api.post("/predict", json=HOUSE).status_code == 200


def test_browsers_of_other_origins_are_not_let_in_unless_configured(home: Path) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    for allowed, header in (("", None), (origin["Origin"], origin["Origin"])):
        with TestClient(create_app(Settings(home=home, cors_origins=allowed))) as api:
            for answer in (
                api.get("/readyz", headers=origin),
                api.post("/predict", json=HOUSE, headers=origin),
            ):
                assert answer.status_code == 200
                assert answer.headers.get("access-control-allow-origin") == header


def test_request_ids_come_back_both_ways(home: Path) -> None:
    given = JSON | {"X-Request-ID": "abc-1 <script>"}
    with TestClient(create_app(Settings(home=home))) as api:
        for body in (BODY, b"{"):
            answer = api.post("/predict", content=body, headers=given)
            assert answer.headers["x-request-id"] == "abc-1script"
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_access_log_is_written_aside(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with TestClient(create_app(Settings(home=home, access_log="all"))) as api:
        api.post("/predict", json=HOUSE, headers={"X-Request-ID": "seen"})
        api.get("/livez")
    lines = [json.loads(r.message) for r in caplog.records if r.name.endswith(".access")]
    assert {line["path"] for line in lines} == {"/predict", "/livez"}
    assert lines[0]["request_id"] == "seen" and lines[0]["status"] == 200
    assert {line["client"] for line in lines} == {"testclient"}


@pytest.mark.parametrize("proxies", ["", "127.0.0.1"])
def test_the_access_log_names_the_client_whichever_way_a_price_takes(
    home: Path, caplog: pytest.LogCaptureFixture, proxies: str
) -> None:
    caplog.set_level("INFO")
    with running(home, log="off", access_log="all", proxies=proxies) as api:
        told = b"X-Forwarded-For: 198.51.100.9"
        assert [answer[0] for answer in api.talk(post(BODY, told), post(BODY, told))] == [200, 200]
        assert api.tasks == (2 if proxies else 0)
    lines = [json.loads(r.message) for r in caplog.records if r.name.endswith(".access")]
    assert [line["client"] for line in lines] == ["198.51.100.9" if proxies else "127.0.0.1"] * 2


@pytest.mark.fault
def test_a_refusal_has_its_reason_in_its_line_and_the_first_of_many_is_an_error(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("limits")
    caplog.set_level("INFO")
    told = {"rate_limit": "5/hour", "api_keys": "mine", "max_body_bytes": 2_000, "log": "off"}
    named = {"X-API-Key": "mine", "X-Request-ID": "order-17"}
    with TestClient(create_app(Settings(home=home, max_in_progress=1, **told))) as api:
        service = api.app.service
        service.in_progress = 1
        statuses = [api.post("/predict", json=HOUSE, headers=named).status_code for _ in range(3)]
        statuses.append(api.post("/predict", content=b" " * 2_001, headers=named).status_code)
        service.in_progress, model, service.model = 0, service.model, None
        api.app.prices.fast_path = None
        statuses.append(api.post("/predict", json=HOUSE, headers=named).status_code)
        service.model = model
        statuses.append(api.post("/predict", json=HOUSE, headers=named).status_code)
        assert statuses == [503, 503, 503, 413, 503, 429]
        assert api.get("/readyz").status_code == 200
        refused = {"busy": 3, "too_large": 1, "no_model": 1, "rate": 1}
        assert service.counters.errors == refused
        service.refusals.quiet_s = -1
        service.refusals.look()
    lines = [json.loads(r.message) for r in caplog.records if r.name.endswith(".access")]
    assert [line["reason"] for line in lines] == ["busy"] * 3 + ["too_large", "no_model", "rate"]
    assert {(line["request_id"], line["client"][:4]) for line in lines} == {("order-17", "key-")}
    began = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(began) == 4 and "HOUSING_MAX_IN_PROGRESS" in began[0], began
    over = [r.getMessage() for r in caplog.records if "No more refusals" in r.getMessage()]
    assert len(over) == 4 and "3 in 0 s (busy)" in over[0], over


@pytest.mark.fault
@pytest.mark.parametrize("way", ["folder", "bound", "flush"])
def test_a_server_whose_journal_takes_nothing_is_not_ready_until_it_does(
    home: Path, tmp_path: Path, way: str
) -> None:
    told = {"journal_dir": tmp_path / "journal", "database_url": "sqlite:///off.db"}
    with TestClient(create_app(Settings(home=home, durability="process", **told))) as api:
        log = api.app.service.log
        assert log is not None and api.get("/readyz").status_code == 200
        journal, folder, most = log.journal, tmp_path / "journal", log.journal.max_bytes
        if way == "folder":
            folder.rename(tmp_path / "aside")
            folder.write_text("a file where the folder was")
        elif way == "flush":
            journal.blocked = "it cannot be flushed to disk (made up)"
        else:
            journal.bytes_allowed = journal.max_bytes = 100
        answer = api.get("/readyz")
        assert answer.status_code == 503 and "takes no record" in answer.json()["detail"]
        assert answer.headers["retry-after"] and api.get("/livez").status_code == 200
        assert api.get("/health").json()["checks"]["journal"]["state"] == "unhealthy"
        if way == "folder":
            folder.unlink()
            (tmp_path / "aside").rename(folder)
        journal.blocked, journal.bytes_allowed, journal.max_bytes = "", most, most
        assert api.get("/readyz").status_code == 200
        assert api.get("/health").json()["checks"]["journal"]["state"] == "healthy"
        assert api.app.service.counters.errors == {"journal": 1}


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


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
@pytest.mark.parametrize("late", [True, False])
def test_a_request_that_never_comes_is_cut_off_and_one_that_leaves_is_let_go(
    home: Path, path: str, late: bool
) -> None:
    deadline_s = 0.01 if late else 60
    app = create_app(Settings(home=home, log="off", deadline_s=deadline_s))
    scope, sent, send = connection(path)
    app.prices.fast_path = lambda requests: Turn([None] * len(requests))

    async def scenario() -> None:
        task = asyncio.create_task(app(scope, never, send))
        while not app.reader.waiting:
            await asyncio.sleep(0)
        if late:
            await asyncio.sleep(0.02)
            app.reader.cut_off()
            app.reader.cut_off()  # nobody is cut off twice
        else:
            app.reader.cut_off()  # it has time left
            task.cancel()
        await task

    if late:
        asyncio.run(scenario())
        assert sent[0]["status"] == 408 and app.service.counters.errors == {"slow": 1}
        assert (b"connection", b"close") in [(k.lower(), v) for k, v in sent[0]["headers"]]
        assert b"too long" in sent[1]["body"]
    else:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(scenario())
        assert sent == []
    assert app.service.in_progress == 0 and not app.reader.waiting


def test_a_body_in_pieces_is_priced_like_a_whole_one(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        scope, sent, send = connection("/predict")
        pieces = [BODY[:40], BODY[40:90], BODY[90:]]

        async def receive() -> dict[str, Any]:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        asyncio.run(api.app(scope, receive, send))
        assert sent[0]["status"] == 200 and json.loads(sent[1]["body"])["prediction"] > 0
        assert api.app.service.counters.version("1").count == 1


def test_a_client_that_leaves_while_it_is_answered_meets_no_deadline(home: Path) -> None:
    app = create_app(Settings(home=home, log="off", deadline_s=0.01))
    scope, sent, send = connection("/feedback")
    messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await never()

    async def watches(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaves = asyncio.create_task(receive())
        await asyncio.sleep(0.02)
        app.reader.cut_off()
        assert not leaves.done() and not app.reader.waiting
        leaves.cancel()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    app.reader.app = watches
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 204
