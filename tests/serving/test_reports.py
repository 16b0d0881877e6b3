"""What is reported of houses that were sold: prices that may be, by those who may; and whatever is stored is told."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from houses import HOUSE, connected
from processes import until
from prometheus_client.parser import text_string_to_metric_families
from servers import Postgres

from housing_mlops.config import Settings
from housing_mlops.prediction_log.database import save_feedback
from housing_mlops.serving.api import create_app

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
