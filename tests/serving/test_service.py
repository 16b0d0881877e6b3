"""What is rare in the life of a service: a model that changes meanwhile, a lock that is held, no log."""

import asyncio
import ctypes
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient
from houses import connected
from processes import until

from housing_mlops.config import Settings
from housing_mlops.model.inference import Model
from housing_mlops.monitoring import verdicts as verdicts_module
from housing_mlops.serving import api as api_module
from housing_mlops.serving import server
from housing_mlops.serving.answers import Feedback
from housing_mlops.serving.api import create_app, judge
from housing_mlops.serving.service import read_live_error


def test_a_judgement_of_a_model_that_is_gone_is_not_kept(
    home: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(home=home, log="off"))
    app.service.model, app.service.log = Model.open(bundles["Ridge"], "1"), Mock()

    def judges(log: object, model: Model, *design: float) -> Mock:
        app.service.model = Model.open(bundles["Ridge"], "2")
        return Mock()

    monkeypatch.setattr(api_module, "share_verdicts", judges)
    asyncio.run(judge(app))
    assert app.service.judgement is None


def test_a_worker_is_tied_to_its_master(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tied: list[int] = []
    monkeypatch.setattr(api_module, "tie_to_parent", tied.append)
    monkeypatch.setattr(api_module.multiprocessing, "parent_process", lambda: Mock(pid=17))
    with TestClient(create_app(Settings(home=home, log="off"))):
        assert tied == [17]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way is Linux's")
def test_a_parent_that_is_gone_already_ends_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    try:
        server.tie_to_parent(os.getppid())
        assert raised == []
        server.tie_to_parent(0)
        assert raised == [signal.SIGTERM]
    finally:
        ctypes.CDLL(None).prctl(1, 0)
    monkeypatch.setattr(sys, "platform", "elsewhere")
    server.tie_to_parent(0)
    assert raised == [signal.SIGTERM]


def test_without_a_model_the_documentation_has_no_range(tmp_path: Path) -> None:
    told = create_app(Settings(home=tmp_path, log="off")).openapi()
    assert "maximum" not in told["components"]["schemas"]["Feedback"]["properties"]["price"]


def test_whoever_asks_for_drift_is_told_the_last_judgement_and_sets_none_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[object] = []
    monkeypatch.setattr(verdicts_module, "judge_log", lambda *_, **__: judged.append(1))
    with TestClient(create_app(Settings(home=home, drift_interval_s=600))) as api:
        until(connected(api))
        told = [api.get("/monitoring/drift").json() for _ in range(3)]
    assert judged == [] and told[0]["judged"] is None
    assert (told[0]["verdict"], told[0]["reason"]) == ("unknown", "not judged yet")


def test_two_workers_judge_once_and_tell_the_same(home: Path) -> None:
    settings = Settings(home=home, drift_interval_s=0.5)
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as other:
        for api in (one, other):
            until(lambda api=api: api.app.service.judgement is not None)
        until(lambda: one.get("/monitoring/drift").json() == other.get("/monitoring/drift").json())


def test_without_a_log_there_is_no_live_error(home: Path) -> None:
    service = create_app(Settings(home=home, log="off")).service
    assert read_live_error(service) >= 0 and service.live == ()


def test_a_time_is_taken_as_it_is() -> None:
    now = datetime.now(UTC)
    assert Feedback(prediction_id="x", price=1.0, time=now).time == now
