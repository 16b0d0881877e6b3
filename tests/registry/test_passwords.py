"""A password in an address reaches its server, and nobody else: no answer, no log, no terminal."""

import logging
import os
from pathlib import Path

import mlflow
import pytest
from fastapi.testclient import TestClient

from housing_mlops.config import ConfigError, Settings, describe, read_settings
from housing_mlops.registry.store import RegistryError, find_version
from housing_mlops.serving.api import create_app
from housing_mlops.serving.server import JsonLines
from housing_mlops.training.cross_validation import TrainingError
from housing_mlops.training.tracking import open_experiment

AWAY = "http://me:s3cret@127.0.0.1:9"


def test_health_and_the_log_name_the_registry_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(create_app(Settings(home=tmp_path, tracking_uri=AWAY, log="off"))) as api:
        for path in ("/health", "/readyz"):
            told = api.get(path).text
            assert "127.0.0.1:9" in told and "s3cret" not in told
    assert "127.0.0.1:9" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:s3cret@db/housing",
        "postgresql://me:s3cret/and@more@db/housing",
        "postgresql:///housing?host=db&password=s3cret",
        "https://me:s3cret/and:more@mlflow.example.com",
        "https://s3cret@mlflow.example.com",
    ],
)
def test_settings_errors_and_log_lines_show_no_password(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "HOUSING_DATABASE_URL" if address.startswith("postgresql") else "HOUSING_TRACKING_URI"
    monkeypatch.setenv(name, address)
    settings = read_settings()
    shown = [row["value"] for row in describe(settings) if row["setting"] == name]
    record = logging.LogRecord("sample", logging.ERROR, "", 0, f"{address} is away", None, None)
    shown += [repr(settings), str(RegistryError(f"{address} is away")), JsonLines().format(record)]
    assert not [text for text in shown if "s3cret" in text or "more" in text]
    assert "***" in shown[0]


def test_an_address_that_is_refused_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOUSING_DATABASE_URL", "mysql://me:s3cret@db/housing")
    with pytest.raises(ConfigError, match=r"mysql://me:\*\*\*@db/housing"):
        read_settings()


def test_mlflow_is_given_the_login_beside_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of somebody else")
    settings = Settings(home=tmp_path, tracking_uri=AWAY)
    for ask, error in ((open_experiment, TrainingError), (find_champion, RegistryError)):
        with pytest.raises(error, match=r"http://127\.0\.0\.1:9") as raised:
            ask(settings)
        assert "s3cret" not in str(raised.value) and raised.value.__cause__ is None
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cret"


def find_champion(settings: Settings) -> str | None:
    return find_version(settings, "champion")
