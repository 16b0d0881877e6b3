"""The application in this process: its routes, its background, and what is missing."""

import asyncio
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from houses import HOUSE, connected
from processes import until

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving import history
from housing_mlops.serving.api import create_app, repeat


@pytest.fixture
def home(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A home whose champion is a ridge regression."""
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    return tmp_path


def test_the_root_leads_to_the_documentation(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        answer = api.get("/", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


def test_a_batch_of_nothing_but_mistakes_is_answered(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        answer = api.post("/predict/batch", json=[{}, {"RM": 1}]).json()
    assert answer["count"] == 2 and all("error" in one for one in answer["predictions"])


def test_history_comes_as_csv_where_it_is_asked_for(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        until(connected(api))
        want = {"Accept": "text/csv"}
        assert api.get("/monitoring/predictions", headers=want).text == "id\r\n"
        made = api.post("/predict", json=HOUSE).json()["prediction_id"]
        assert api.app.service.log.flush(20)
        header, row = api.get("/monitoring/predictions", headers=want).text.splitlines()
        assert header.startswith("id,time,") and row.startswith(made)


def test_without_a_log_prices_are_given_and_history_is_not(home: Path) -> None:
    with TestClient(create_app(Settings(home=home, log="off"))) as api:
        for path, body in [("/predict", HOUSE), ("/predict/batch", [HOUSE])]:
            assert api.post(path, json=body).status_code == 200
        assert "HOUSING_LOG is off" in api.get("/monitoring/predictions").json()["detail"]
        assert api.get("/metrics").json()["log"] is None
        assert api.get("/health").json()["checks"]["log"]["state"] == "healthy"
    assert not (home / "predictions.db").exists()


def test_no_registry_and_no_cache_is_told(tmp_path: Path) -> None:
    nowhere = Settings(home=tmp_path, tracking_uri="http://127.0.0.1:9", log="off")
    with TestClient(create_app(nowhere)) as api:
        assert "out of reach" in api.get("/readyz").json()["detail"]
        assert api.get("/health").json()["checks"]["registry"]["state"] == "degraded"


def test_a_cursor_that_no_page_gave_is_a_mistake(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        until(connected(api))
        for cursor in ("x", "1-2", "9" * 30 + ".x"):
            answer = api.get("/monitoring/predictions", params={"before": cursor})
            assert answer.status_code == 422, cursor


def test_whatever_is_refused_is_counted_by_its_reason(home: Path) -> None:
    with TestClient(create_app(Settings(home=home, max_body_bytes=1000))) as api:
        until(connected(api))
        unknown = {"prediction_id": "none", "price": 1.0}
        for method, path, options, status in [
            ("GET", "/nowhere", {}, 404),
            ("GET", "/dashboard/nothing", {}, 404),
            ("PUT", "/predict", {}, 405),
            ("POST", "/predict", {"json": {}}, 422),
            ("POST", "/feedback", {"content": b" " * 1001}, 413),
            ("POST", "/admin/reload", {}, 401),
            ("POST", "/feedback", {"json": unknown}, 404),
        ]:
            answer = api.request(method, path, **options)
            assert answer.status_code == status and answer.json()["detail"], path
        assert api.app.service.counters.errors == {
            **{"not_found": 2, "method": 1, "invalid": 1, "too_large": 1, "key": 1},
            "unknown_prediction": 1,
        }


def test_drift_is_judged_and_counters_are_shared_in_the_background(home: Path) -> None:
    busy = Settings(home=home, drift_interval_s=0.05, metrics_dir=Path("metrics"))
    with TestClient(create_app(busy)) as api:
        until(lambda: api.app.service.judgement is not None)
        until(lambda: list((home / "metrics").glob("*.json")))
        assert api.get("/metrics").json()["drift"]["verdict"] == "unknown"
    quiet = Settings(home=home, drift_interval_s=0.05, log="off")
    with TestClient(create_app(quiet)) as api:
        time.sleep(0.2)
        assert api.app.service.judgement is None


def test_a_background_task_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    async def fails() -> None:
        tries.append(1)
        raise ValueError("not yet")

    async def some() -> None:
        task = asyncio.create_task(repeat(0, fails))
        while len(tries) < 2:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(some())
    assert "tried again" in caplog.text


def test_a_new_champion_is_followed(home: Path, bundles: dict[str, Path]) -> None:
    polled = Settings(home=home, registry_poll_s=0.02, log="off")
    with TestClient(create_app(polled)) as api:
        install_bundle(bundles["LinearRegression"], "2", polled)
        until(lambda: api.get("/readyz").json()["model_version"] == "2")
        assert api.post("/predict", json=HOUSE).json()["model"] == "LinearRegression"
        install_bundle(bundles["Ridge"], "3", polled)
        until(lambda: api.get("/readyz").json()["model_version"] == "3")


def test_with_the_registry_away_the_cached_champion_serves(home: Path) -> None:
    away = Settings(home=home, tracking_uri="http://127.0.0.1:9", log="off")
    with TestClient(create_app(away)) as api:
        assert api.post("/predict", json=HOUSE).status_code == 200
        health = api.get("/health").json()
    assert health["status"] == "degraded"
    assert "served from the cache" in health["checks"]["registry"]["detail"]


def test_a_page_of_history_is_bounded_in_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE_BYTES", 4_000)
    monkeypatch.setattr(history, "PAGE_PART", 3)
    with TestClient(create_app(Settings(home=home))) as api:
        until(connected(api))
        given = [api.post("/predict", json=HOUSE).json()["prediction_id"] for _ in range(40)]
        assert api.app.service.log.flush(20)
        seen, cursor = [], ""
        while cursor is not None:
            following = f"&before={cursor}" if cursor else ""
            page = api.get(f"/monitoring/predictions?limit=10000{following}")
            assert len(page.content) < 4_000 + 3 * 600
            seen += [row["id"] for row in page.json()["predictions"]]
            cursor = page.json()["next"]
        assert seen[:40] == given[::-1] and len(seen) == len(set(seen))
