"""Who may do what: roles, names of the host, proxies, and a start that would let everybody in."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from houses import BODY, HOUSE, JSON, connected
from processes import until
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import HousingError, Settings
from housing_mlops.serving.api import create_app, renew_keys
from housing_mlops.serving.keys import make_key, remove_keys

ONE = {"predict": "p", "feedback": "f", "history": "h", "admin": "a"}
KEYED = {"api_keys": "p", "feedback_keys": "f", "history_keys": "h", "admin_keys": "a"}
SOLD = {"prediction_id": "0190a0a0-0000-7000-8000-000000000000", "price": 24.0}
ROUTES: list[tuple[str, str, str, Any]] = [
    ("predict", "POST", "/predict", HOUSE),
    ("predict", "POST", "/predict/batch", [HOUSE]),
    ("predict", "POST", "/explain", HOUSE),
    ("feedback", "POST", "/feedback", SOLD),
    ("history", "GET", "/monitoring/predictions", None),
    ("history", "GET", "/monitoring/drift", None),
    ("history", "GET", "/monitoring/traffic", None),
    ("history", "GET", "/monitoring/prices", None),
    ("history", "GET", "/monitoring/live-error", None),
    ("history", "GET", "/monitoring/decisions", None),
    ("history", "GET", "/monitoring/trial", None),
    ("admin", "POST", "/admin/reload", None),
]
PUBLIC = {"/livez", "/readyz", "/health", "/metrics", "/model/info"}


@pytest.fixture(scope="module")
def keyed(home: Path) -> Any:
    with TestClient(create_app(Settings(home=home, **KEYED))) as api:
        until(connected(api))
        yield api


@pytest.mark.parametrize(("role", "method", "path", "body"), ROUTES, ids=lambda x: str(x)[:24])
def test_a_route_opens_to_its_role_alone(
    keyed: TestClient, role: str, method: str, path: str, body: Any
) -> None:
    for holds, key in {**ONE, "": "", "nobody": "guess"}.items():
        answer = keyed.request(method, path, json=body, headers={"X-API-Key": key})
        if holds == role or (holds, role) == ("predict", "feedback"):  # on what it asked for
            assert answer.status_code in (200, 404), answer.text
        else:
            assert answer.status_code == (403 if holds in ONE else 401), (holds, answer.text)
            assert "detail" in answer.json()


def test_every_route_has_a_role_or_is_meant_to_be_public(keyed: TestClient) -> None:
    documented = keyed.get("/openapi.json").json()
    roles = {(method.upper(), path): role for role, method, path, _ in ROUTES}
    scheme = documented["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")
    for path, operations in documented["paths"].items():
        for method, operation in operations.items():
            if path in PUBLIC:
                assert "security" not in operation
            else:
                assert operation["security"] == [{"key": [roles[method.upper(), path]]}]
                assert {"401", "403", "421"} <= operation["responses"].keys(), path


def test_without_keys_all_but_administration_is_open_and_said_to_be(home: Path) -> None:
    with TestClient(create_app(Settings(home=home))) as api:
        until(connected(api))
        for role, method, path, body in ROUTES:
            status = api.request(method, path, json=body).status_code
            assert status in ((401,) if role == "admin" else (200, 404)), path
        told = api.get("/openapi.json").json()["paths"]
        secured = {p for p, ops in told.items() for op in ops.values() if "security" in op}
        assert secured == {"/admin/reload"}


def test_a_key_of_the_file_works_until_it_is_removed(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = make_key(file, "shop", ["predict"])
    with TestClient(create_app(Settings(home=home, keys_file=file))) as api:
        asked = {"content": BODY, "headers": JSON | {"X-API-Key": key}}
        assert api.post("/predict", **asked).status_code == 200
        assert api.post("/predict", json=HOUSE).status_code == 401
        remove_keys(file, "shop")
        api.portal.call(renew_keys, api.app)
        assert api.post("/predict", **asked).status_code == 401


@pytest.mark.fault
def test_a_server_never_opens_while_it_runs(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    key = make_key(file, "shop", ["predict"])
    with TestClient(create_app(Settings(home=home, keys_file=file))) as api:
        for damage in (lambda: file.write_text("[{"), file.unlink):
            damage()
            api.portal.call(renew_keys, api.app)
            assert api.post("/predict", json=HOUSE).status_code == 401
            mine = {"X-API-Key": key}
            assert api.post("/predict", json=HOUSE, headers=mine).status_code == 200
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize("path", ["/predict", "/monitoring/predictions", "/livez", "/docs"])
def test_a_page_that_rebinds_its_name_is_refused(home: Path, path: str) -> None:
    method = "POST" if path == "/predict" else "GET"
    with TestClient(create_app(Settings(home=home, hosts="api.example.com"))) as api:
        until(connected(api))
        for host, good in (
            *(("localhost:8000", True), ("10.2.3.4:8000", True), ("[::1]:8000", True)),
            *(("api:8000", True), ("api.example.com", True), ("API.example.com.:80", True)),
            *(("evil.example:8000", False), ("127.0.0.1.evil.example", False)),
        ):
            content = {"content": BODY, "headers": JSON | {"Host": host}}
            answer = api.request(
                method, path, **(content if method == "POST" else {"headers": {"Host": host}})
            )
            assert answer.status_code == (200 if good else 421), host
        assert api.app.service.counters.errors["host"] == 2


def test_a_client_behind_a_proxy_is_counted_and_one_that_claims_to_be_is_not(home: Path) -> None:
    pytest.importorskip("limits")
    limited: dict[str, Any] = {"home": home, "log": "off", "rate_limit": "2/hour"}
    for proxies, expected in (("", [200, 200, 429, 429]), ("10.0.0.0/24", [200, 200, 200, 200])):
        counted = create_app(Settings(**limited, proxies=proxies))
        with TestClient(counted, client=("10.0.0.5", 1)) as api:
            told = [
                api.post("/predict", json=HOUSE, headers={"X-Forwarded-For": f"198.51.100.{n}"})
                for n in range(4)
            ]
            assert [answer.status_code for answer in told] == expected, proxies


def test_the_storage_of_the_limit_learns_no_key(home: Path) -> None:
    pytest.importorskip("limits")
    limited = Settings(home=home, log="off", rate_limit="9/hour", api_keys="s3cret-key")
    with TestClient(create_app(limited)) as api:
        answer = api.post("/predict", json=HOUSE, headers={"X-API-Key": "s3cret-key"})
        assert answer.status_code == 200
        counted = json.dumps([*api.app.service.limiter.strategy.storage.storage])
        assert "key-" in counted and "s3cret" not in counted


@pytest.mark.parametrize("words", [["serve"], ["serve", "--host", "::"], ["up"]])
def test_a_start_that_lets_everybody_in_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    monkeypatch.setenv("HOUSING_HOST", "0.0.0.0")
    monkeypatch.setenv("HOUSING_PORT", "1")  # what would come next is a complaint about the port
    former = signal.getsignal(signal.SIGTERM)
    said = CliRunner().invoke(app, words).output
    assert "HOUSING_OPEN" in said and "keys make" in said
    for name, value in (("OPEN", "true"), ("API_KEYS", "mine"), ("PUBLISHED", "127.0.0.1")):
        with pytest.MonkeyPatch.context() as meant:
            meant.setenv(f"HOUSING_{name}", value)
            meant.setattr("housing_mlops.serving.server.check_port", taken)
            meant.setattr("housing_mlops.operations.up.check_port", taken)
            assert "the port is next" in CliRunner().invoke(app, words).output, name
    signal.signal(signal.SIGTERM, former)


def taken(*_: object) -> None:
    raise HousingError("the port is next")


def test_a_server_that_was_started_otherwise_lets_nobody_in(home: Path) -> None:
    for settings, status in (({}, 403), ({"open": True}, 200), ({"api_keys": "p"}, 401)):
        beyond = {"base_url": "http://192.0.2.1:8000"}
        with TestClient(create_app(Settings(home=home, log="off", **settings)), **beyond) as api:
            assert api.post("/predict", json=HOUSE).status_code == status
