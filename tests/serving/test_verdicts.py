"""One judgement, made in one place and told in all."""

import ast
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from fastapi.testclient import TestClient
from processes import ROOT, until

from housing_mlops.cli import judge_live
from housing_mlops.config import Settings
from housing_mlops.model.inference import Model
from housing_mlops.monitoring.judgement import NOT_JUDGED, Judgement
from housing_mlops.monitoring.live_error import ErrorJudgement, promise_of
from housing_mlops.monitoring.verdicts import claim, keep, read_verdicts
from housing_mlops.operations.retraining import gather
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.serving.api import create_app

REPORT = ROOT / Settings().report_notebook
JUDGES = {"judge_log", "judge_window", "judge_sales", "judge_errors"}


def source(notebook: Path) -> str:
    """The code of a notebook."""
    cells = nbformat.read(notebook, 4).cells
    return "\n".join(c.source for c in cells if c.cell_type == "code")


def test_nobody_else_judges() -> None:
    package = ROOT / "housing_mlops"
    judging = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if (
            JUDGES
            & {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        )
    }
    assert judging == {"monitoring/judgement.py", "monitoring/verdicts.py"}
    assert not any(name in source(REPORT) for name in JUDGES)


def kept(home: Path, model: Model) -> Settings:
    """A log without a row, and a judgement of it that no row speaks for."""
    settings = Settings(home=home, drift_interval_s=600)
    engine = connect(settings.database)
    migrate(engine)
    about = (model.info.model, model.version)
    told = {**asdict(NOT_JUDGED), "verdict": "drift", "features": ["CHAS"], "reason": ""}
    counts = (0.0, 0.0, 9.0)
    promise = promise_of(model.reference.residuals.astype(float))
    error = ErrorJudgement("worse", ("bias up",), 77, 70, counts, counts, None, promise)
    for kind, body in (
        ("drift", {**told, "houses": 700, "effective": 350.0}),
        ("error", asdict(error)),
    ):
        assert claim(engine, (kind, *about), 0)
        keep(engine, (kind, *about), body["verdict"], json.loads(json.dumps(body)))
    engine.dispose()
    return settings


def reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cells of the report leave behind."""
    monkeypatch.setenv("HOUSING_HOME", str(settings.home))
    names: dict[str, Any] = {"__name__": "report"}
    exec(compile(source(REPORT), str(REPORT), "exec"), names)
    return names


def test_all_tell_the_judgement_that_is_kept(
    home: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.open(bundles["Ridge"], "1")
    settings = kept(home, model)
    with TestClient(create_app(settings)) as api:
        until(lambda: api.app.service.judgement is not None)
        drift = api.get("/monitoring/drift").json()
        error = api.get("/monitoring/live-error").json()["judgement"]
        checks = api.get("/health").json()["checks"]
        metrics = api.get("/metrics").json()
        text = api.get("/metrics", headers={"Accept": "text/plain"}).text
    sentence = f"drift in CHAS (700 houses worth 350, p 0, since {drift['since']})"
    assert {drift["told"], checks["drift"]["detail"], judge_live(settings, model)[0]} == {sentence}
    assert error["told"] == checks["live_error"]["detail"]
    assert error["told"].startswith("worse than promised: bias up (on 77 sales")
    assert (metrics["drift"]["verdict"], metrics["drift"]["features"]) == ("drift", ["CHAS"])
    assert metrics["drift"]["told"] == sentence
    assert "housing_drift_effective_rows 350.0" in text
    assert 'housing_drift{verdict="drift"} 1.0' in text
    assert 'housing_live_error_verdict{verdict="worse"} 1.0' in text
    page = reported(settings, monkeypatch)
    assert sentence in page["drift_words"]() and page["figures"]["drifted"] == ["CHAS"]
    assert page["told"].error.told == error["told"]


def test_a_look_at_training_has_it_judged_and_all_tell_what_it_found(
    home: Path, bundles: dict[str, Path]
) -> None:
    model = Model.open(bundles["Ridge"], "1")
    settings = kept(home, model)
    engine = connect(settings.database)
    known = gather(engine, model, settings, datetime.now(UTC)).known
    told = read_verdicts(engine, model)
    engine.dispose()
    assert (known.drift, known.error) == ((), "") and isinstance(told.drift, Judgement)
    assert (
        told.drift.told
        == judge_live(settings, model)[0]
        == "unknown: 0 different houses in 0 rows; it needs 100 more different houses"
    )
    assert told.error is not None and told.error.verdict == "unknown"
