"""What is reported of houses that were sold: prices that may be, by those who may; and whatever is stored is told."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from houses import HOUSE, connected
from processes import until
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from servers import Postgres

from housing_mlops.config import Settings
from housing_mlops.prediction_log.database import save_feedback
from housing_mlops.serving.api import create_app
from housing_mlops.serving.keys import make_key

PATHS = ["/metrics", *(f"/monitoring/{name}" for name in ("live-error", "predictions", "prices", "traffic"))]  # fmt: skip


@pytest.fixture
def api(home: Path, tmp_path: Path) -> Iterator[TestClient]:
    """An application with a log of its own; what it answers with 500 is an answer."""
    settings = Settings(
        home=home, database_url=f"sqlite:///{tmp_path}/log.db", journal_dir=tmp_path
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        until(connected(client))
        yield client


def ask(api: TestClient) -> str:
    """The identifier of a price."""
    return str(api.post("/predict", json=HOUSE).json()["prediction_id"])


@pytest.mark.parametrize("price", [1e200, 24_000.0, 24_000_000.0, -1.0, 201.0])
def test_a_price_that_nobody_paid_is_refused_and_says_why(api: TestClient, price: float) -> None:
    answer = api.post("/feedback", json={"prediction_id": ask(api), "price": price})
    assert answer.status_code == 422
    [complaint] = answer.json()["detail"]
    assert complaint["loc"] == ["body", "price"] and "1000 USD" in complaint["msg"]
    assert "0 to 200" in complaint["msg"] and "another unit" in complaint["msg"]


@pytest.mark.parametrize("price", [0.0, 24.0, 100.0, 200.0])
def test_a_price_that_may_be_is_stored(api: TestClient, price: float) -> None:
    answer = api.post("/feedback", json={"prediction_id": ask(api), "price": price})
    assert answer.json()["status"] == "stored"


def test_the_margin_is_a_setting(home: Path) -> None:
    narrow = Settings(home=home, feedback_margin=0, database_url="sqlite:///narrow.db")
    with TestClient(create_app(narrow)) as api:
        given = {"prediction_id": ask(api), "price": 100.5}
        assert "0 to 100" in api.post("/feedback", json=given).json()["detail"][0]["msg"]


POISON = [[1e200], [1e308, 1e308, 1e308], [math.inf, -math.inf, 1e308], [math.inf, 24.0]]


def poisoned(api: TestClient, prices: list[float]) -> None:
    """Store prices as something else than this API would."""
    ids = [ask(api) for _ in prices]
    log = api.app.service.log
    assert log.flush(20)
    for identifier, price in zip(ids, prices, strict=True):
        save_feedback(log.engine, identifier, price)


def told(api: TestClient) -> None:
    """Every page is JSON as it is defined, and the metrics are those of Prometheus."""
    for path in PATHS:
        answer = api.get(path)
        assert answer.status_code == 200, (path, answer.text)
        json.loads(answer.text, parse_constant=pytest.fail)
    text = api.get("/metrics", headers={"Accept": "text/plain"}).text
    assert {f.name for f in text_string_to_metric_families(text)} >= {"housing_predictions"}


@pytest.mark.fault
@pytest.mark.parametrize("prices", POISON)
def test_whatever_price_is_stored_is_survived(api: TestClient, prices: list[float]) -> None:
    poisoned(api, prices)
    told(api)


@pytest.mark.fault
def test_prices_whose_sums_overflow_are_survived(api: TestClient) -> None:
    ask(api)
    log = api.app.service.log
    assert log.flush(20)
    with log.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE predictions SET price = 9e999, low = -9e999")
    for price in (1e308, 1e308, math.nan):
        api.app.service.counters.version("1").add(price)
    told(api)


@pytest.mark.fault
@pytest.mark.parametrize("prices", [*POISON, [math.nan]])
def test_postgresql_survives_them_too(home: Path, tmp_path: Path, postgres: Postgres, prices: list[float]) -> None:  # fmt: skip
    url = postgres.make(f"poison{POISON.index(prices) if prices in POISON else 'nan'}")
    settings = Settings(home=home, database_url=url, journal_dir=tmp_path)
    with TestClient(create_app(settings), raise_server_exceptions=False) as api:
        until(connected(api))
        poisoned(api, prices)
        told(api)


def test_a_key_reports_on_what_it_asked_for_and_the_office_on_everything(
    home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    keys = {name: make_key(file, name, ["predict"]) for name in ("shop", "rival")}
    keys["office"] = make_key(file, "office", ["feedback", "history"])
    again = make_key(file, "shop", ["predict"])  # another key of the same holder
    url = f"sqlite:///{tmp_path}/log.db"
    own = Settings(home=home, keys_file=file, database_url=url, journal_dir=tmp_path / "journal")
    with TestClient(create_app(own)) as api:
        until(connected(api))
        mine = {"X-API-Key": keys["shop"]}
        fast = api.post("/predict", json=HOUSE, headers=mine).json()
        api.app.prices.fast_path = None
        slow = api.post("/predict", json=HOUSE, headers=mine).json()
        batch = api.post("/predict/batch", json=[HOUSE], headers=mine).json()["predictions"][0]

        def report(of: dict[str, Any], key: str, **more: Any) -> tuple[int, str]:
            given = {"prediction_id": of["prediction_id"], "price": 24.0, **more}
            answer = api.post("/feedback", json=given, headers={"X-API-Key": key})
            return answer.status_code, answer.json().get("status") or answer.json()["detail"]

        for priced in (fast, slow, batch):
            assert report(priced, keys["rival"])[0] == 403
            assert report(priced, keys["shop"]) == (200, "stored")
            assert report(priced, again) == (200, "unchanged")
            assert report(priced, again, price=25.0)[0] == 409
            status, why = report(priced, again, price=25.0, replace=True)
            assert status == 403 and "the role feedback" in why
            assert report(priced, keys["rival"], price=25.0, replace=True)[0] == 403
            assert report(priced, keys["office"], price=25.0, replace=True) == (200, "replaced")
        assert report({"prediction_id": "none"}, keys["rival"])[0] == 404
        looks = {"X-API-Key": keys["office"]}
        rows = api.get("/monitoring/predictions", headers=looks).json()["predictions"]
        assert [row["client"] for row in rows] == ["shop"] * 3


def test_who_asked_is_not_known_of_what_was_asked_without_keys(home: Path, tmp_path: Path) -> None:
    own = Settings(home=home, database_url=f"sqlite:///{tmp_path}/log.db", journal_dir=tmp_path)
    with TestClient(create_app(own)) as api:
        given = {"prediction_id": ask(api), "price": 24.0}
        assert api.app.service.log.flush(20)
    keyed = own.model_copy(update={"api_keys": SecretStr("mine")})
    with TestClient(create_app(keyed)) as api:
        until(connected(api))
        answer = api.post("/feedback", json=given, headers={"X-API-Key": "mine"})
        assert answer.status_code == 403 and "Another client" in answer.json()["detail"]
