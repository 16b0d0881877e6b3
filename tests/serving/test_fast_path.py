"""The fast path answers what the fallback route would, or nothing."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from houses import BODY, HOUSE, JSON, bodies, comparable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from housing_mlops.config import Settings
from housing_mlops.model.inference import Look, Model
from housing_mlops.monitoring.counters import Counters
from housing_mlops.prediction_log.journal import Journal
from housing_mlops.schema import Dataset
from housing_mlops.serving.api import create_app
from housing_mlops.serving.fast_path import PriceQueue, PriceRequest, Turn, make_fast_path


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    app = create_app(Settings(home=home, max_batch=3, max_body_bytes=2_000))
    with TestClient(app, raise_server_exceptions=False) as api:
        yield api


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


def both(client: TestClient, body: bytes, headers: dict[str, str]) -> tuple[Any, Any, bool]:
    """Status and payload by the fast path, by the fallback route, and whether the first answered."""
    prices, priced = client.app.prices, []
    fast_path = prices.fast_path

    def watched(requests: list[PriceRequest]) -> Turn:
        turn = fast_path(requests)
        priced.extend(a for a in turn.answers if a is not None)
        return turn

    found = []
    for way in (watched, None):
        prices.fast_path = way
        answer = client.post("/predict", content=body, headers=headers)
        found.append((answer.status_code, comparable(answer.content)))
    prices.fast_path = fast_path
    return *found, bool(priced)


@settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    body=bodies,
    kind=st.sampled_from(["application/json"] * 8 + ["application/json; charset=utf-8", "text/x"]),
)
def test_both_ways_answer_alike(client: TestClient, body: bytes, kind: str) -> None:
    fast, fallback, _ = both(client, body, {"Content-Type": kind})
    assert fast == fallback


@pytest.mark.parametrize(
    ("body", "status", "taken"),
    [
        (json.dumps(HOUSE), 200, True),
        (json.dumps(HOUSE, indent="\t"), 200, True),
        (json.dumps(dict(reversed(HOUSE.items()))), 200, True),
        (json.dumps(HOUSE).replace("{", "{  ", 1), 200, True),
        (json.dumps(HOUSE)[:-1] + ', "RM": 6}', 422, False),
        (json.dumps(HOUSE).replace("6.5", "1e400", 1), 422, False),
        (json.dumps(HOUSE | {"RM": float("nan")}), 422, False),
        ("[" * 900, 422, False),
        (b'{"RM": "\xff"}', 422, False),
        *((json.dumps(HOUSE).encode(name), 422, False) for name in ENCODINGS),
        (" " * 2_001, 413, False),
    ],
)
def test_the_fast_path_answers_what_is_valid(
    client: TestClient, body: str | bytes, status: int, taken: bool
) -> None:
    content = body if isinstance(body, bytes) else body.encode()
    fast, fallback, answered = both(client, content, JSON)
    assert fast == fallback and fast[0] == status
    assert answered is taken


@pytest.mark.parametrize(("key", "status"), [("", 401), ("bad", 401), ("new", 200)])
def test_keys_hold_both_ways(home: Path, key: str, status: int) -> None:
    with TestClient(create_app(Settings(home=home, api_keys="old,new"))) as api:
        fast, fallback, taken = both(api, BODY, JSON | {"X-API-Key": key})
        assert fast == fallback and fast[0] == status
        assert taken is (status == 200)


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> Model:
    return Model.open(bundles["Ridge"], "1")


def requests(*bodies: bytes) -> list[PriceRequest]:
    return [PriceRequest(body, b"", time.perf_counter()) for body in bodies]


def test_many_at_once_are_answered_as_one_by_one(model: Model, tmp_path: Path) -> None:
    rng, journal = random.Random(0), Journal(tmp_path, 1_000_000)
    fast_path = make_fast_path(model, Counters(), journal)
    assert fast_path is not None
    contents = [json.dumps(HOUSE | {"RM": 4 + rng.random()}).encode() for _ in range(40)]
    contents[3], contents[17] = b"{", json.dumps(HOUSE | {"RM": "six"}).encode()
    together = fast_path(requests(*contents)).answers
    assert journal.rows_in == 38
    assert [i for i, answer in enumerate(together) if answer is None] == [3, 17]
    identifiers = set()
    for content, answer in zip(contents, together, strict=True):
        [alone] = fast_path(requests(content)).answers
        if answer is None:
            assert alone is None
            continue
        mine, other = json.loads(answer), json.loads(alone or b"")
        identifiers.add(mine["prediction_id"])
        assert mine["prediction"] == pytest.approx(other["prediction"], abs=1e-4)
        assert mine["interval"]["low"] == pytest.approx(other["interval"]["low"], abs=1e-4)
    assert len(identifiers) == 38


def test_a_model_without_an_interval_has_none_in_its_answers(model: Model, tmp_path: Path) -> None:
    info = model.info.model_copy(update={"interval": None, "model": "100% %b"})
    bare = Model(info, "1%", Graph(model), model.reference)
    fast_path = make_fast_path(bare, Counters(), None)
    assert fast_path is not None
    [answer] = fast_path(requests(BODY)).answers
    payload = json.loads(answer or b"")
    assert payload["interval"] is None
    assert (payload["model"], payload["model_version"]) == ("100% %b", "1%")


class Graph:
    """The arithmetic of another model."""

    def __init__(self, model: Model) -> None:
        self.look = model.look


def test_a_name_may_hold_colons(model: Model) -> None:
    declared = model.dataset.model_dump(by_alias=True)
    declared["features"][0]["name"] = "a: b"
    odd = Dataset.model_validate(declared)
    info = model.info.model_copy(update={"dataset": odd})
    fast_path = make_fast_path(Model(info, "1", Graph(model), model.reference), Counters(), None)
    body = json.dumps(odd.example).encode()
    twice = body.replace(b'"RM"', b'"RM":1,"RM"')
    escaped = twice.replace(b'"a: b"', b'"a\\u003a b"')  # one colon less, one key more
    assert escaped.count(b":") == body.count(b":")
    [answer, *others] = fast_path(requests(body, twice, escaped)).answers
    assert answer is not None and others == [None, None]


def test_what_is_odd_about_a_price_is_answered_kept_and_counted_alike(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service
    monkeypatch.setattr(service.model, "look", lambda tensors: Look(np.full(1, -4.24), None))
    kept: list[bytes] = []
    append = service.log.journal.append_many
    monkeypatch.setattr(
        service.log.journal, "append_many", lambda lines: (kept.extend(lines), append(lines))
    )
    before = replace(service.counters.version(service.model.version))
    body = json.dumps(HOUSE | {"RM": 2.0}).encode()
    fast, fallback, taken = both(client, body, JSON)
    assert taken and fast == fallback
    told = fast[1]
    assert told["prediction"] == told["interval"]["low"] == 0 < told["interval"]["high"]
    assert (told["clipped"], told["capped"], told["in_domain"]) == (True, False, False)
    assert told["outside"] == ["RM"]
    usual = both(client, BODY, JSON)[0][1]
    assert (usual["in_domain"], usual["outside"]) == (True, [])
    after = service.counters.version(service.model.version)
    assert after.outside - before.outside == 2 and after.clipped - before.clipped == 4
    odd, clipped = b'{"clipped":true,"outside":["RM"]}', b'{"clipped":true}'
    assert [line.split(b"\t")[12] for line in kept] == [odd, odd, clipped, clipped]


def test_what_the_journal_refuses_is_left_to_the_fallback_route(
    model: Model, tmp_path: Path
) -> None:
    full, counters = Journal(tmp_path, max_bytes=1), Counters()
    fast_path = make_fast_path(model, counters, full)
    assert fast_path is not None
    assert fast_path(requests(BODY, BODY)).answers == [None, None]
    assert full.rows_in == counters.version("1").count == 0


def test_a_price_that_is_no_number_is_left_to_the_fallback_route(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, 1_000_000)
    fast_path = make_fast_path(model, Counters(), journal)
    assert fast_path is not None
    monkeypatch.setattr(model, "look", lambda tensors: Look(np.array([np.nan, 20]), []))
    first, second = fast_path(requests(BODY, BODY)).answers
    assert first is None and json.loads(second or b"")["prediction"] == 20
    assert journal.rows_in == 1
    monkeypatch.setattr(model, "look", lambda tensors: Look(np.array([np.nan, np.inf]), []))
    assert fast_path(requests(BODY, BODY)).answers == [None, None]
    assert journal.rows_in == 1


def test_requests_of_one_turn_are_priced_together() -> None:
    prices, sizes = PriceQueue(), []

    def counting(requests: list[PriceRequest]) -> Turn:
        sizes.append(len(requests))
        return Turn([request.body for request in requests])

    async def all_of_them(number: int) -> list[bytes | None]:
        asked = requests(*(b"%d" % i for i in range(number)))
        return await asyncio.gather(*(prices.answer(request) for request in asked))

    prices.fast_path = counting
    for number in (10, 1):
        assert asyncio.run(all_of_them(number)) == [b"%d" % i for i in range(number)]
    assert sizes == [10, 1]


def test_a_failing_fast_path_leaves_the_fallback_route(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(requests: list[PriceRequest]) -> Turn:
        raise RuntimeError("made up")

    monkeypatch.setattr(client.app.prices, "fast_path", fails)
    assert client.post("/predict", json=HOUSE).status_code == 200
    assert "the fallback route answers" in caplog.text


def test_without_a_model_the_queue_answers_nothing_and_clients_may_leave() -> None:
    async def scenario() -> bytes | None:
        prices = PriceQueue()
        stays, leaves = (asyncio.create_task(prices.answer(r)) for r in requests(BODY, BODY))
        await asyncio.sleep(0)
        leaves.cancel()
        return await stays

    assert asyncio.run(scenario()) is None
