"""The operations page: a section an alert, queries that can be asked, commands that exist; and those that need no registry are run."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from processes import ROOT
from test_quickstart import understood
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.prediction_log.database import connect, migrate, save_feedback
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.registry.shelf import install_bundle

PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
LOOK_UP = (ROOT / "docs/metrics-and-logs.md").read_text(encoding="utf-8")
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]
SECTIONS = dict(re.findall(r"^### (Housing\w+)\n(.*?)(?=^##)", PAGE, re.M | re.S))
QUERIES = re.findall(r"```promql\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_section_that_says_what_to_do(alert: str) -> None:
    assert alert in SECTIONS, f"docs/operations.md has no section {alert}"
    assert SECTIONS.keys() <= set(ALERTS), SECTIONS.keys() - set(ALERTS)
    assert "**Means**" in SECTIONS[alert]
    assert (
        alert == "HousingWatchdog" or "**Do**" in SECTIONS[alert] or "and **do**" in SECTIONS[alert]
    )


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    wanted = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert wanted and wanted <= anchors, wanted - anchors


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_a_service_level_can_be_asked(query: str) -> None:
    promql_parser.parse(query)


def test_every_metric_that_is_asked_for_is_looked_up() -> None:
    listed = set(re.findall(r"^\| `(housing_\w+)`", LOOK_UP, re.M))
    dashboards = [p.read_text() for p in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    asked = [*QUERIES, *(rule["expr"] for rule in RULES), *dashboards]
    for name in {n for text in asked for n in re.findall(r"\bhousing_\w+", text)}:
        bare = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in listed or bare in listed, f"docs/metrics-and-logs.md has no {name}"


def test_every_command_on_the_page_is_one() -> None:
    """Also those in the text; what stands in angle brackets or has no argument is a name alone."""
    found = set(re.findall(r"`([^`\n]*housing-mlops [^`]+)`", PAGE))
    assert found
    for text in found:
        words = text.partition("housing-mlops ")[2].split(" --reason ")[0].rstrip('"').split()
        if words[0] != "…" and words != ["keys", "remove"]:
            understood(words)


def test_the_page_hides_no_figure_that_is_missing() -> None:
    assert not re.findall(r"\b(?:PG|RUN|RETENTION)_\w+", PAGE)


@pytest.fixture(scope="module")
def home(bundles: dict[str, Path], table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion, a log with predictions of it, and a price paid."""
    folder = tmp_path_factory.mktemp("operations")
    settings = Settings(home=folder)
    install_bundle(bundles["Ridge"], "1", settings)
    engine = connect(settings.database)
    migrate(engine)
    house = json.dumps(table.dataset.example)
    ids = [new_id() for _ in range(20)]
    insert(
        engine,
        [
            encode_record(Record(id, 1_790_000_000_000_000 + i, "Ridge", "1", 24.0, 20.0, 28.0, 0.1, "/predict", "", house))
            for i, id in enumerate(ids)
        ],
    )  # fmt: skip
    save_feedback(engine, ids[0], 23.0)
    engine.dispose()
    return folder


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("settings", "HOUSING_LOG_RETENTION_DAYS"),
        ("decisions --trainings", ""),
        ("decisions", ""),
        ("labels --aside", ""),
        ("challenge", ""),
        ("log show", ""),
        ("log repair", ""),
        ("log prune", "0 of 20"),
        ("log prune --apply", "0 were deleted"),
        ("log backup", "whole"),
        ("log restore log.copy --replace", "20 predictions"),
        ("keys make web --role predict", ""),
        ("keys list", "web"),
    ],
)
def test_a_command_does_as_the_page_says(
    command: str, says: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, for later ones use what earlier ones left."""
    assert f"housing-mlops {command}" in PAGE
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOUSING_HOME", str(home))
    monkeypatch.setenv("HOUSING_LOG_RETENTION_ROWS", "1000")
    words: list[Any] = command.split() + (["log.copy"] if command == "log backup" else [])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert says in done.output


def spoken(text: str) -> set[str]:
    """The commands in a part of the page: lines of its blocks, and what stands between backticks."""
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    between = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    programs = r"(HOUSING_\w+=\S+ |cosign|curl|date|df|docker-compose|gh|housing-mlops|k3d|kind|kubectl|make|python|source|top)(?![\w/=])"
    return {one.strip() for one in [*lines, *between] if re.match(programs, one.strip())}


def test_each_command_is_listed_as_run_or_not_run() -> None:
    said, _, listed = PAGE.partition("## Which of these commands were run\n")
    alone = {"make", "kubectl", "kind", "k3d", "gh", "cosign", "curl"}  # names of programs
    alone |= {"housing-mlops", "housing-mlops …", "make test-stack"}
    assert spoken(said) - alone == spoken(listed) - alone
