"""The report, run by papermill as `make report` does, and its page in a real Chromium."""

import json
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.inference import Model
from housing_mlops.operations.notebooks import RunError, report
from housing_mlops.prediction_log.database import connect, migrate, save_feedback
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.registry.shelf import install_bundle

NOTEBOOK = Path(__file__).resolve().parents[2] / Settings().report_notebook
pytestmark = pytest.mark.train


def fill(settings: Settings, bundle: Path, table: Table, rows: int, **shift: float) -> list[str]:
    """A champion and `rows` predictions on record, a second apart, some columns moved."""
    install_bundle(bundle, "1", settings)
    model = Model.open(bundle, "1")
    houses = table.features.sample(rows, replace=True, random_state=1)
    for column, by in shift.items():
        houses[column] += by
    now, lines, ids = time.time_ns() // 1000, [], []
    for i, house in enumerate(houses.to_dict("records")):
        [(price, low, high)] = model.quote([list(house.values())]).rows()
        ids.append(new_id())
        at = now - (rows - i) * 10**6
        record = Record(
            ids[-1], at, "Ridge", "1", price, low, high, 0.25, "/predict", "", json.dumps(house)
        )
        lines.append(encode_record(record))
    engine = connect(settings.database)
    migrate(engine)
    insert(engine, lines)
    for i in ids[:30]:
        save_feedback(engine, i, 20.0)
    engine.dispose()
    return ids


def test_the_parameters_are_tagged() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    [tagged] = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert all(f"{name}: " in tagged.source for name in ("database", "window", "version", "out"))


def test_an_empty_log_is_told(tmp_path: Path) -> None:
    page = report({}, Settings(home=tmp_path), NOTEBOOK)
    assert "there is no such file yet" in page.read_text()
    assert not (tmp_path / "predictions.db").exists(), "a report only reads"
    engine = connect(Settings(home=tmp_path).database)
    migrate(engine)
    engine.dispose()
    page = report({}, Settings(home=tmp_path), NOTEBOOK)
    assert "The log is empty" in page.read_text() and page.with_suffix(".ipynb").is_file()


def test_a_log_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    gone = {"database": "postgresql://someone:secret@/none?host=/nowhere"}
    page = report(gone, Settings(home=tmp_path), NOTEBOOK)
    told = json.loads((page.parent / "report.json").read_text())
    assert "does not answer" in told["problem"] and "secret" not in json.dumps(told)


@pytest.mark.filterwarnings("ignore")
def test_it_tells_what_the_log_holds(
    tmp_path: Path,
    table: Table,
    bundles: dict[str, Path],
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(Settings(home=tmp_path), bundles["Ridge"], table, 420, LSTAT=8.0)
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND")  # a kernel draws into its notebook
    command = ["report", "--window", "400", "--notebook", str(NOTEBOOK)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = Path(done.stdout.splitlines()[-1].removeprefix("The report: "))
    assert page.is_relative_to(tmp_path / "runs")
    told = json.loads((page.parent / "report.json").read_text())
    assert told["predictions"] == 400 and told["version"] == "1" and told["problem"] == ""
    assert told["drift"] == "drift" and "LSTAT" in told["drifted"]
    assert told["live_error"][0]["n"] == 30
    errors = [abs(line["error"]) for line in told["largest_errors"]]
    assert len(errors) == 8 and errors == sorted(errors, reverse=True)
    assert all("LSTAT" in line["mostly because of"] for line in told["largest_errors"])

    asked: list[str] = []
    opened = browser.new_page()
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    text = opened.inner_text("body")
    assert "drift in LSTAT" in text and "400 predictions" in text
    assert "mostly because of" in text
    assert "import matplotlib" not in text, "the code stays in the notebook"
    assert opened.locator("img").count() >= 4, "traffic, prices, drift, sales"
    assert [u for u in asked if not u.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


def test_a_version_without_predictions_is_told(
    tmp_path: Path, table: Table, bundles: dict[str, Path]
) -> None:
    fill(Settings(home=tmp_path), bundles["Ridge"], table, 5)
    install_bundle(bundles["LinearRegression"], "2", Settings(home=tmp_path))
    page = report({"window": 10_000}, Settings(home=tmp_path), NOTEBOOK)
    assert "no prediction of version 2" in page.read_text()
    told = json.loads((page.parent / "report.json").read_text())
    assert told["model"] == "LinearRegression" and told["predictions"] == 0


def test_a_wrong_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Did you mean window"):
        report({"windw": 3}, Settings(home=tmp_path), NOTEBOOK)
