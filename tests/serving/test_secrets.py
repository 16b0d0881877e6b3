"""No secret in an answer, a log or a terminal: a server with one in every setting is asked everything."""

import http.client
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from houses import HOUSE
from servers import Server
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.serving.keys import key_hash

# Each is unmistakable, and holds what addresses are cut at.
ADDRESSES = {
    "HOUSING_TRACKING_URI": "http://me:5ecret-a/b@c@127.0.0.1:9",
    "HOUSING_DATABASE_URL": "postgresql://me:5ecret-d@127.0.0.1:9/housing?password=5ecret-e",
    "HOUSING_RATE_LIMIT_STORAGE": "redis://:5ecret-f@127.0.0.1:9/0",
}
KEYS = {
    "HOUSING_API_KEYS": "5ecret-p,5ecret-q",
    "HOUSING_API_KEY": "5ecret-c",
    "HOUSING_FEEDBACK_KEYS": "5ecret-f",
    "HOUSING_HISTORY_KEYS": "5ecret-h",
    "HOUSING_ADMIN_KEYS": "5ecret-a",
}
BESIDE = {"MLFLOW_TRACKING_PASSWORD": "5ecret-m", "MLFLOW_TRACKING_TOKEN": "5ecret-t"}
SECRET = "5ecret"


def test_each_setting_that_may_hold_a_secret_is_tried() -> None:
    for name, field in Settings.model_fields.items():
        if "SecretStr" in str(field.annotation):
            assert f"HOUSING_{name.upper()}" in KEYS
        elif name.endswith(("_uri", "_url", "_storage")):
            assert f"HOUSING_{name.upper()}" in ADDRESSES and not field.repr


def everything(server: Server, key: str) -> list[str]:
    """What the server answers to all that it documents, and to what is wrong, headers included."""
    told = []
    paths = [*server.get("/openapi.json")["paths"], "/openapi.json", "/docs", "/dashboard", "/none"]
    bodies: list[Any] = [HOUSE, [HOUSE], {"prediction_id": "x", "price": 24}, {"RM": SECRET[:3]}]
    for path, (method, body) in itertools.product(
        paths, [("GET", None), *(("POST", body) for body in bodies)]
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"X-API-Key": key, "Content-Type": "application/json"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        told.append(f"{method} {path}: {answer.status} {answer.getheaders()} {answer.read()!r}")
        connection.close()
    return told


@pytest.mark.fault
def test_no_answer_and_no_line_of_the_log_holds_a_secret(serve: Callable[..., Server]) -> None:
    own = {k: v for k, v in ADDRESSES.items() if k != "HOUSING_RATE_LIMIT_STORAGE"}
    server = serve(**own, **KEYS, **BESIDE, HOUSING_ACCESS_LOG="all")
    told = [line for key in ("", "guess", *KEYS.values()) for line in everything(server, key)]
    told += [line for line in everything(server, "5ecret-p") if ": 200" in line]
    assert sum(": 200" in line for line in told) > 20, "they were answered"
    server.kill()
    told += server.output.read_text().splitlines()
    assert any("127.0.0.1" in line for line in told), "and what is away was named"
    assert not [line for line in told if SECRET in line]


COMMANDS = ["settings", "schema", "models", "drift", "report", "predict", "serve", "up", "keys list", "rollback", "promote 1", "train"]  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_help_holds_a_secret(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ADDRESSES, **KEYS, **BESIDE}.items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(app, [*command.split()[:1], "--help"])
    assert said.exit_code == 0 and SECRET not in said.output


def test_settings_are_told_without_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    for name, value in {**ADDRESSES, **KEYS, **BESIDE}.items():
        monkeypatch.setenv(name, value)
    for words in (["settings"], ["keys", "list"], ["drift"], ["predict"]):
        said = CliRunner().invoke(app, words, input=json.dumps(HOUSE))
        assert SECRET not in said.output and SECRET not in str(said.exception), words
    assert SECRET not in repr(Settings()) + str(Settings())


WRONG = [
    *((name, f"mysql+{value}") for name, value in ADDRESSES.items() if "TRACKING" not in name),
    ("HOUSING_PROXIES", "http://me:5ecret@proxy"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_start_that_fails_names_no_secret(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    monkeypatch.setenv("HOUSING_RATE_LIMIT", "9/minute")
    monkeypatch.setenv(name, value)
    said = CliRunner().invoke(app, ["serve"])
    assert said.exit_code == 1 and "housing-mlops: " in said.output, said.exception
    assert SECRET not in said.output


def test_a_key_is_never_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    made = CliRunner().invoke(app, ["keys", "make", "shop", "--role", "predict"])
    key = made.stdout.strip()
    assert key.startswith("hm_") and key not in made.stderr
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert key not in kept and key_hash(key.encode()).hex() in kept
