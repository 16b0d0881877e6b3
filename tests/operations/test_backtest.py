"""The log again by another version: what the command prints, and a house that the version cannot price."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.operations import backtest
from housing_mlops.prediction_log.database import connect, migrate, predictions
from housing_mlops.registry import fetch


def log_of(table: Table, path: Path) -> sa.Engine:
    """A log of eleven predictions of version 1, one of them of a house with a column missing."""
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    houses = table.features.head(11).to_dict("records")
    del houses[4]["RM"]
    about = {"model": "Ridge", "model_version": "1", "latency_ms": 0.1, "price": 20.0}
    about |= {"route": "/predict", "request_id": ""}
    rows = [{"id": f"p{i}", "time_us": i, "features": h, **about} for i, h in enumerate(houses)]
    with engine.begin() as connection:
        connection.execute(predictions.insert(), rows)
    return engine


def test_the_command_tells_what_another_version_would_have_said(
    bundles: dict[str, Path], table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch_version", lambda version, settings: bundles["Ridge"])
    monkeypatch.setattr(backtest, "PAGE", 4)
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    log_of(table, tmp_path / "predictions.db").dispose()
    done = CliRunner().invoke(app, ["backtest", "2", "--quiet"])
    assert done.exit_code == 0, done.output
    [header, row] = [line.split() for line in done.output.splitlines()[:2]]
    found = dict(zip(header, row, strict=False))
    assert (found["version"], found["houses"], found["refused"]) == ("1", "10", "1")
    assert (tmp_path / "runs/backtest-2/prices/_SUCCESS").exists()


@pytest.mark.fault
def test_a_run_that_was_stopped_goes_on_with_the_same_log(
    bundles: dict[str, Path], table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, folder = log_of(table, tmp_path / "log.db"), tmp_path / "out"
    told = (bundles["Ridge"], "2", folder, Settings(scheduler=""), False)
    with monkeypatch.context() as patch:
        patch.setattr(backtest, "score", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            backtest.backtest(engine, *told)
    before = (folder / "log.parquet").stat().st_ino
    [one] = backtest.backtest(engine, *told)
    assert (folder / "log.parquet").stat().st_ino == before and one.houses == 10
    assert one.rmse is None and one.apart is not None and one.sold == 0
    engine.dispose()
