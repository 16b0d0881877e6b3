"""A list of houses is answered by the short way as by the route, or not by the short way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from houses import BODY, HOUSE, JSON, bodies, connected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import until

from housing_mlops.config import Settings
from housing_mlops.model.inference import Look, Model
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.schema import parse
from housing_mlops.serving import fast_batch
from housing_mlops.serving.api import create_app
from housing_mlops.serving.fast_batch import BatchPricer, HousesParser


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    app = create_app(Settings(home=home, max_batch=3, max_body_bytes=3_000))
    with TestClient(app, raise_server_exceptions=False) as api:
        yield api


def comparable(answer: bytes) -> Any:
    """The payload of an answer without what no two answers share."""
    payload = json.loads(answer)
    for one in (payload, *payload.get("predictions", [])):
        for name in ("prediction_id", "latency_ms"):
            one.pop(name, None)
    return payload


def both(client: TestClient, body: bytes, headers: dict[str, str] = JSON) -> tuple[Any, Any, bool]:
    """Status and payload by the short way, by the route alone, and whether the first answered."""
    given, answered = fast_batch.answer_batch, []

    async def watched(*arguments: Any) -> bytes | None:
        answered.append(await given(*arguments))
        return answered[-1]

    async def nothing(*arguments: Any) -> None:
        return None

    found = []
    with pytest.MonkeyPatch.context() as patch:
        for way in (watched, nothing):
            patch.setattr(fast_batch, "answer_batch", way)
            answer = client.post("/predict/batch", content=body, headers=headers)
            found.append((answer.status_code, comparable(answer.content)))
    return *found, any(answered)


lists = st.lists(bodies, max_size=4).map(lambda parts: b"[" + b", ".join(parts) + b"]")


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=st.one_of(lists, bodies))
def test_both_ways_answer_alike(client: TestClient, body: bytes) -> None:
    fast, fallback, _ = both(client, body)
    assert fast == fallback


@pytest.mark.parametrize(
    ("body", "status", "taken"),
    [
        (b"[%b]" % BODY, 200, True),
        (json.dumps([HOUSE, HOUSE], indent="\t").encode(), 200, True),
        (b"[%b,%b,%b]" % (BODY, BODY.replace(b"6.", b"7."), BODY), 200, True),
        (b"[%b,%b,%b,%b]" % (BODY, BODY, BODY, BODY), 422, False),
        (b"[%b, {}]" % BODY, 200, False),
        (b'[%b, "RM": 6}]' % BODY[:-1], 422, False),
        (b"[]", 422, False),
        (BODY, 422, False),
        (b"[%b]" % BODY + b" " * 3_000, 413, False),
    ],
)
def test_a_list_that_is_in_order_is_answered_by_the_short_way(
    client: TestClient, body: bytes, status: int, taken: bool
) -> None:
    fast, fallback, answered = both(client, body)
    assert fast == fallback and fast[0] == status and answered is taken


@pytest.mark.parametrize(
    ("key", "status"), [({}, 401), ({"X-API-Key": "bad"}, 401), ({"X-API-Key": "good"}, 200)]
)
def test_keys_hold_both_ways(home: Path, key: dict[str, str], status: int) -> None:
    with TestClient(create_app(Settings(home=home, api_keys="good"))) as api:
        fast, fallback, taken = both(api, b"[%b]" % BODY, JSON | key)
        assert fast == fallback and fast[0] == status and taken is (status == 200)
        fast, fallback, taken = both(api, b"[%b]" % BODY, JSON | key | {"Origin": "http://a.b"})
        assert fast == fallback and not taken


def test_the_log_holds_the_same_both_ways(home: Path, tmp_path: Path) -> None:
    settings = Settings(
        home=home, database_url=f"sqlite:///{tmp_path}/log.db", journal_dir=tmp_path / "journal"
    )
    with TestClient(create_app(settings)) as api:
        until(connected(api))
        body = json.dumps([HOUSE, HOUSE | {"RM": 8.5}], indent="\t").encode()
        both(api, body, JSON | {"X-Request-Id": "r7"})
        log = api.app.service.log
        until(lambda: log.state.backlog_rows == 0)
        rows = [vars(row) for row in read_page(log.engine, limit=10).rows]
        numbers = api.get("/metrics").json()
    assert len(rows) == 4 and len({row["id"] for row in rows}) == 4
    shared = [{k: v for k, v in row.items() if k not in VARY} for row in rows]
    assert shared[:2] == shared[2:] and shared[0]["route"] == "/predict/batch"
    assert "r7" in str(shared[0]) and str(numbers).count("4")


VARY = ("id", "time", "latency_ms")


def test_without_a_log_prices_are_given(home: Path) -> None:
    with TestClient(create_app(Settings(home=home, log="off"))) as api:
        assert both(api, b"[%b]" % BODY)[2]


def test_a_trial_and_a_missing_model_are_left_to_the_route(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        service = api.app.service
        service.field.challenger = service.model
        assert not both(api, b"[%b]" % BODY)[2]
        service.field.challenger = service.model = None
        assert both(api, b"[%b]" % BODY)[0][0] == 503


def test_a_price_that_is_no_number_is_left_to_the_route(bundles: dict[str, Path]) -> None:
    model = Model.open(bundles["Ridge"], "1")
    request = fast_batch.PriceRequest(b"[%b]" % BODY, b"", 0.0)
    assert BatchPricer(model)(request, 1) is not None
    model.look = lambda tensors: Look(np.array([np.nan]), [])  # type: ignore[method-assign, assignment]
    assert BatchPricer(model)(request, 1) is None


def test_texts_with_braces_and_colons_fool_nobody() -> None:
    town = {"name": "town", "type": "category", "nullable": True}
    area = {"name": "area", "example": 1.0}
    about = {"format": 1, "name": "s", "title": "S", "source": {}}
    about["target"] = {"name": "p", "unit": "EUR"}
    flats = HousesParser(parse({**about, "features": [town, area]}))
    plain = b'{"town": "Faro", "area": 3}'
    assert flats(b"[%b]" % plain) == ([[3.0, "Faro"]], [plain])
    assert flats(b'[{"town": "a:b", "area": 3}]') is None
    assert flats(b'[{"town": "{::}", "area": 3}]') is None  # as many as of two houses
    assert not HousesParser(parse({**about, "features": [{**area, "name": "a:b"}]})).plain


def test_a_full_journal_is_told_as_by_the_route(home: Path) -> None:
    with TestClient(create_app(Settings(home=home)), raise_server_exceptions=False) as api:

        def full(records: list[bytes]) -> None:
            raise JournalError("The journal is full.")

        api.app.service.log.journal.append_many = full
        fast, fallback, taken = both(api, b"[%b]" % BODY)
        assert fast == fallback and fast[0] == 503 and not taken
