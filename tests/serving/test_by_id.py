"""Houses by their id over HTTP: what is found, what is not, what is kept, and that nobody else notices."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from houses import BOSTON, HOUSE, JSON, comparable, connected
from processes import until
from typer.testing import CliRunner

from housing_mlops.cli import app as commands
from housing_mlops.config import Settings
from housing_mlops.data.feature_view import FeatureRow, feature_view, read_time
from housing_mlops.data.stores import open_store
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving.api import create_app

URL = "sqlite:///features.db"
Api = Callable[..., TestClient]


@pytest.fixture
def fresh(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A home with a champion, an empty log, and a store of three houses, one of them of 2020."""
    settings = Settings(home=tmp_path, feature_store=URL)
    install_bundle(bundles["Ridge"], "1", settings)
    store = open_store(settings)
    old, new = read_time("2020-05-01T00:00Z"), read_time("now")
    rows = [FeatureRow("old", old, HOUSE), FeatureRow("new", new, HOUSE | {"RM": 5.0})]
    store.write(feature_view(BOSTON), [*rows, FeatureRow("odd", new, HOUSE | {"RM": 99.0})])
    store.close()
    return tmp_path


def ask(api: TestClient, **body: Any) -> tuple[int, Any]:
    answer = api.post("/predict", content=json.dumps(body), headers=JSON)
    return answer.status_code, answer.json()


def test_a_price_by_id_is_the_price_of_the_whole_house(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh, feature_store=URL))) as api:
        until(connected(api))
        whole = api.post("/predict", json=HOUSE | {"RM": 5.0})
        by_id = api.post("/predict", json={"house_id": "new"})
        assert comparable(by_id.text) == comparable(whole.text)
        more = api.post("/predict", json={"house_id": "new", "RM": 8.0, "LSTAT": 3.0})
        said = HOUSE | {"RM": 8.0, "LSTAT": 3.0}
        assert comparable(more.text) == comparable(api.post("/predict", json=said).text)
        why = api.post("/predict?explain=true", json={"house_id": "new"}).json()
        assert why["prediction"] == by_id.json()["prediction"] and why["explanation"]["reasons"]
        assert api.app.service.log.flush(20)
        rows = {r["id"]: r for r in api.get("/monitoring/predictions").json()["predictions"]}
        kept = rows[by_id.json()["prediction_id"]]
        assert kept["features"] == {"house_id": "new", **HOUSE, "RM": 5.0}
        assert kept["route"] == "/predict"
        assert rows[more.json()["prediction_id"]]["features"] == {"house_id": "new", **said}
        paid = {"prediction_id": by_id.json()["prediction_id"], "price": 21.0}
        assert api.post("/feedback", json=paid).status_code == 200
        counted = {
            r["route"]: r["count"] for r in api.get("/metrics").json()["requests"]["by_route"]
        }
        assert counted["/predict by house_id"] == 2 and counted["/predict"] == 2


def test_what_is_not_found_says_why(fresh: Path) -> None:
    with TestClient(
        create_app(Settings(home=fresh, log="off", feature_store=URL, feature_ttl_days=30))
    ) as api:
        status, told = ask(api, house_id="nobody")
        assert status == 404 and "No house 'nobody'" in told["detail"]
        status, told = ask(api, house_id="old")
        assert status == 404 and "days old" in told["detail"] and "30 days" in told["detail"]
        assert ask(api, house_id="new")[0] == 200
        status, told = ask(api, house_id="odd")
        assert (status, told["detail"][0]["loc"]) == (422, ["body", "RM"])
        assert ask(api, house_id="odd", RM=6.0)[0] == 200, "what is said takes its place"
        for body in (
            {"house_id": ""},
            {"house_id": 7},
            {"house_id": "x" * 65},
            {"house_id": "a\x00"},
            {"house_id": "\ud800"},
            {"house_id": None},
        ):
            assert ask(api, **body)[1]["detail"][0]["loc"] == ["body", "house_id"], body
        for more in ({"RM": "six"}, {"RM": 99}, {"POOL": 1}, {"RM": None}):
            assert ask(api, house_id="new", **more)[1]["detail"][0]["loc"] == ["body", *more], more
        twice = '{"house_id": "new", "house_id": "old"}'
        told = api.post("/predict", content=twice, headers=JSON)
        assert told.status_code == 422 and "twice" in told.text
        errors = api.app.service.counters.errors
        assert errors["unknown_house"] == errors["expired_house"] == 1
        assert api.get("/health").json()["checks"]["feature_store"]["state"] == "healthy"


def test_without_a_store_a_request_by_id_is_refused_for_that_reason(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh, log="off"))) as api:
        status, told = ask(api, house_id="new")
        [only] = told["detail"]
        assert (status, only["loc"]) == (422, ["body", "house_id"])
        assert "HOUSING_FEATURE_STORE" in only["msg"]
        assert "feature_store" not in api.get("/health").json()["checks"]
        route = api.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert "404" not in route["responses"] and "HouseById" not in json.dumps(route)


def test_the_documentation_shows_it_where_there_is_a_store(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh, log="off", feature_store=URL))) as api:
        told = api.get("/openapi.json").json()
        route, schemas = told["paths"]["/predict"]["post"], told["components"]["schemas"]
        body = route["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
        assert [part["$ref"].rpartition("/")[2] for part in body] == ["House", "HouseById"]
        assert schemas["HouseById"]["required"] == ["house_id"]
        assert {*schemas["HouseById"]["properties"]} == {"house_id", *HOUSE}
        assert "404" in route["responses"]


def test_it_takes_the_key_that_prices_take(fresh: Path) -> None:
    keys = {"api_keys": "buyer", "history_keys": "reader"}
    with TestClient(create_app(Settings(home=fresh, log="off", feature_store=URL, **keys))) as api:
        states = [
            api.post("/predict", json={"house_id": "new"}, headers={"X-API-Key": key}).status_code
            for key in ("", "reader", "buyer")
        ]
    assert states == [401, 403, 200]


@pytest.mark.fault
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "postgresql://x@127.0.0.1:9/f", "sqlite:///no.db"]
)
def test_a_store_that_is_away_takes_no_other_price_with_it(fresh: Path, url: str) -> None:
    with TestClient(create_app(Settings(home=fresh, log="off", feature_store=url))) as api:
        assert ask(api, **HOUSE)[0] == 200
        answer = api.post("/predict", json={"house_id": "new"})
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert "feature store" in answer.text or "Feast" in answer.text
        assert ask(api, **HOUSE)[0] == 200
        check = api.get("/health").json()["checks"]["feature_store"]
        assert check["state"] == "degraded" and "whole houses go on" in check["detail"]
        assert api.app.service.counters.errors["feature_store"] == 1


def test_whole_houses_never_come_near_the_store(fresh: Path) -> None:
    with TestClient(create_app(Settings(home=fresh, log="off", feature_store=URL))) as api:
        for body in (HOUSE, HOUSE | {"RM": 99}, {}):
            ask(api, **body)
        assert api.app.service.houses._store is None
        assert api.app.prices.fast_path is not None


def test_from_a_file_of_houses_to_a_price(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, table: Any
) -> None:
    """The commands as a person gives them, and the API that was running all along."""
    for name, value in {
        "HOME": str(fresh),
        "LOG": "off",
        "FEATURE_STORE": "sqlite:///town.db",
    }.items():
        monkeypatch.setenv(f"HOUSING_{name}", value)
    houses = table.features.head(20).assign(house_id=[f"12-{i:04}" for i in range(20)])
    houses.to_csv(fresh / "houses.csv", index=False)
    with TestClient(create_app(Settings())) as api:
        assert ask(api, house_id="12-0007")[0] == 503
        load = ["features", "load", str(fresh / "houses.csv"), "--at", "2026-01-01T00:00Z"]
        for written in (20, 0):
            done = CliRunner().invoke(commands, load)
            assert f"20 rows, {written} of them written" in done.output
        status, told = ask(api, house_id="12-0007")
        assert status == 200
        whole = table.features.iloc[7].to_dict()
        assert told["prediction"] == ask(api, **whole)[1]["prediction"]
    with suppress(SystemExit):
        done = CliRunner().invoke(commands, ["features", "get", "12-0007"])
    assert json.loads(done.output)["RM"] == whole["RM"]
