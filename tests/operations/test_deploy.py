"""What is deployed is checked here without a cluster: alert rules, dashboard, workflows, compose file."""

import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from processes import ROOT, ask, free_port, until
from servers import Server, program

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.prediction_log.database import connect
from housing_mlops.prediction_log.decisions import record_decision
from housing_mlops.registry.shelf import install_bundle

RULES = ROOT / "deploy/prometheus"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


def promtool(*args: str, cwd: Path = RULES) -> subprocess.CompletedProcess[str]:
    command = [program("prometheus", "promtool"), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# Prometheus


@pytest.mark.process
def test_configuration_and_rules_are_valid() -> None:
    for args in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = promtool("check", *args)
        assert done.returncode == 0, done.stdout + done.stderr
    if amtool := shutil.which("amtool"):
        command = [amtool, "check-config", str(ROOT / "deploy/alertmanager/alertmanager.yml")]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.process
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    text = (RULES / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


ALERTS = [rule["alert"] for rule in rules() if "alert" in rule]


@pytest.mark.process
@pytest.mark.parametrize("wrong", ["vector(1)", "vector(1) > 2"], ids=["always", "never"])
def test_a_wrong_expression_fails_the_alerts_own_test(wrong: str, tmp_path: Path) -> None:
    given, told = (
        yaml.safe_load((RULES / name).read_text(encoding="utf-8"))
        for name in ("alerts.yml", "alerts_test.yml")
    )
    for group in given["groups"]:
        group["rules"] = [rule | {"expr": wrong} for rule in group["rules"] if "alert" in rule]
    for test in told["tests"]:
        test.pop("promql_expr_test", None)
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(given), encoding="utf-8")
    (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(told), encoding="utf-8")
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    failed = set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr))
    right = {"HousingWatchdog"} if wrong == "vector(1)" else set()  # it does fire always
    assert done.returncode == 1 and failed == set(ALERTS) - right


def test_every_alert_names_its_page_and_is_one_for_the_service() -> None:
    for rule in rules():
        if "alert" not in rule:
            continue
        page = f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"].keys() == {"summary", "runbook"}
        assert rule["annotations"]["runbook"] == page
        assert rule["labels"]["severity"] in ("critical", "warning", "info", "none")
        assert "instance" not in rule["annotations"]["summary"].partition("$labels.")[2]
    assert not re.search(r'job *[=!]~? *"', (RULES / "alerts.yml").read_text(encoding="utf-8"))


# Grafana: the dashboard as a file, and every query of it asked


def panels(dashboard: Path) -> list[dict[str, Any]]:
    given: list[dict[str, Any]] = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    return [*given, *(inner for panel in given for inner in panel.get("panels", []))]


QUERIES = sorted(
    {t["expr"] for d in DASHBOARDS for p in panels(d) for t in p.get("targets", [])},
)


def test_dashboards_have_ids_of_their_own_and_panels_that_do_not_overlap() -> None:
    given = [json.loads(d.read_text(encoding="utf-8")) for d in DASHBOARDS]
    assert given and len({d["uid"] for d in given}) == len(given)
    source = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    uids = {s["uid"] for s in source["datasources"]}
    for dashboard in DASHBOARDS:
        every = panels(dashboard)
        assert len({p["id"] for p in every}) == len(every)
        for panel in every:
            assert panel["title"] and (panel["type"] == "row" or panel["datasource"]["uid"] in uids)
            place = panel["gridPos"]
            assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        for a, b in combinations(every, 2):
            p, q = a["gridPos"], b["gridPos"]
            apart = (
                p["x"] + p["w"] <= q["x"]
                or q["x"] + q["w"] <= p["x"]
                or p["y"] + p["h"] <= q["y"]
                or q["y"] + q["h"] <= p["y"]
            )
            assert apart, f"{a['title']!r} lies over {b['title']!r}"


def plain(query: str) -> str:
    """A query as Grafana asks it when nothing was chosen."""
    return re.sub(
        r"\$(environment|instance|version)\b", ".*", query.replace("$__rate_interval", "1m")
    )


def test_what_a_query_leaves_open_can_be_chosen() -> None:
    for dashboard in DASHBOARDS:
        given = json.loads(dashboard.read_text(encoding="utf-8"))["templating"]["list"]
        names = {variable["name"] for variable in given}
        assert names == {"environment", "instance", "version"}
        left = {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)}
        assert left == names | {"__rate_interval"}
        for variable in given:
            assert variable["includeAll"] and variable["allValue"] == ".*"
            promql_parser.parse(
                plain(re.findall(r"label_values\((.*), \w+\)", variable["definition"])[0])
            )


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_promql(query: str) -> None:
    promql_parser.parse(plain(query))


@dataclass
class Pager:
    """An Alertmanager with the stack's configuration, and the receiver that it writes to."""

    port: int  # of Alertmanager
    output: Path  # of the receiver


@pytest.fixture(scope="module")
def pager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pager | None]:
    """Both, running; None where there is no Alertmanager."""
    if (manager := shutil.which("prometheus-alertmanager")) is None:
        yield None
        return
    folder, port, receiver = tmp_path_factory.mktemp("pager"), free_port(), free_port()
    text = (ROOT / "deploy/alertmanager/alertmanager.yml").read_text(encoding="utf-8")
    config = text.replace("http://pager:9095/", f"http://127.0.0.1:{receiver}/")
    (folder / "alertmanager.yml").write_text(config.replace("group_wait: 10s", "group_wait: 0s"))
    commands = (
        [sys.executable, str(ROOT / "deploy/alertmanager/pager.py"), str(receiver)],
        [
            *(manager, f"--config.file={folder / 'alertmanager.yml'}"),
            *(f"--storage.path={folder}", "--cluster.listen-address="),
            f"--web.listen-address=127.0.0.1:{port}",
        ],
    )
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        running = [subprocess.Popen(c, stdout=out, stderr=log, cwd=folder) for c in commands]
    try:
        until(lambda: ask(f"http://127.0.0.1:{port}/-/ready")[0] == 200, what="Alertmanager")
        yield Pager(port, folder / "out")
    finally:
        for process in running:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def prometheus(
    bundles: dict[str, Path],
    table: Table,
    pager: Pager | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a Prometheus that scraped an API which has been asked for everything."""
    home = tmp_path_factory.mktemp("deploy")
    install_bundle(bundles["Ridge"], "1", Settings(home=home))
    often = {"HOUSING_DRIFT_INTERVAL_S": "0.5", "HOUSING_LIVE_ERROR_INTERVAL_S": "0.5"}
    often["HOUSING_TRACKING_URI"] = "http://127.0.0.1:9"  # where nobody listens
    api, port = Server(home, often), free_port()
    config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [manager] = config["alerting"]["alertmanagers"]
    manager["static_configs"] = [{"targets": [f"127.0.0.1:{pager.port}"] if pager else []}]
    text = (RULES / "alerts.yml").read_text(encoding="utf-8")
    (home / "alerts.yml").write_text(re.sub(r"\n +for: \w+", "", text), encoding="utf-8")
    config["rule_files"] = [str(home / "alerts.yml")]
    config["scrape_configs"] = [
        {
            **{k: v for k, v in job.items() if k != "dns_sd_configs"},
            "static_configs": [{"targets": [f"127.0.0.1:{api.port}"]}],
        }
        for job in config["scrape_configs"]
        if job["job_name"] == "housing-api"
    ]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        str(program("prometheus", "prometheus")),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--rules.alert.resend-delay=1s",  # the first is sent before Alertmanager is known
    ]
    metrics = f"http://127.0.0.1:{port}"
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        api.start()
        until(lambda: ask(f"{metrics}/-/ready")[0] == 200, what="Prometheus is ready")
        ask_for_everything(api.address, metrics, table)
        engine = connect(Settings(home=home).database)
        record_decision(engine, "wait", "no signal", {"labels": 0})
        trial = {"version": "2", "against": "1", "share": 0.1, "since": "2026-11-24T12:00:00+00:00"}
        record_decision(engine, "trial: go on", "undecided", {"trial": trial})
        engine.dispose()
        yield metrics
    finally:
        process.terminate()
        api.kill(signal.SIGTERM)
        process.wait(20)


def ask_for_everything(api: str, metrics: str, table: Table) -> None:
    """Prices, batches, mistakes and feedback, until a scrape has seen each of them twice."""
    houses = [
        {k: None if v != v else v for k, v in row.items()}
        for row in table.features.sample(150, random_state=0).to_dict("records")
    ]

    def scrapes() -> float:
        [sample] = value(metrics, 'count_over_time(up{job="housing-api"}[5m])')
        return float(sample["value"][1])

    until(lambda: value(metrics, 'up{job="housing-api"} == 1'), what="a scrape")
    # The first scrape of a series sets its counter; a rate needs one more that is larger.
    for _ in range(2):
        for house in houses:
            status, answer = ask(f"{api}/predict", house)
            assert status == 200, answer
        assert ask(f"{api}/predict", {"nothing": 1})[0] == 422
        assert ask(f"{api}/predict/batch", [table.dataset.example])[0] == 200
        before = scrapes()
        until(lambda before=before: scrapes() >= before + 2, what="two scrapes")
    sold = {"prediction_id": answer["prediction_id"], "price": 24.0}
    until(lambda: ask(f"{api}/feedback", sold)[0] == 200, what="the prediction in the database")
    until(lambda: ask(f"{api}/monitoring/drift")[1]["houses"] > 140, what="a judgement of drift")


def value(prometheus: str, query: str) -> list[Any]:
    """The samples of an instant query."""
    asked = urllib.parse.urlencode({"query": query})
    status, said = ask(f"{prometheus}/api/v1/query?{asked}")
    assert status == 200 and said["status"] == "success", said
    result: list[Any] = said["data"]["result"]
    return result


@pytest.mark.process
@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_answered(prometheus: str, query: str) -> None:
    samples = until(lambda: value(prometheus, plain(query)), 15, f"an answer to {query}")
    assert all(s["value"][1] != "NaN" for s in samples), samples


@pytest.mark.process
def test_the_api_is_scraped_as_text_and_the_rules_are_loaded(prometheus: str) -> None:
    assert value(prometheus, "housing_model_info")[0]["metric"]["model"] == "Ridge"
    _, said = ask(f"{prometheus}/api/v1/rules")
    loaded = [rule for group in said["data"]["groups"] for rule in group["rules"]]
    assert {r["name"] for r in loaded} >= set(ALERTS)
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in ask(f"{prometheus}/api/v1/rules")[1]["data"]["groups"]
            for rule in group["rules"]
        ),
        15,
        "healthy rules",
    )


@pytest.mark.process
def test_an_alert_reaches_whoever_is_to_be_told(prometheus: str, pager: Pager | None) -> None:
    if pager is None:
        pytest.skip("prometheus-alertmanager is not installed")
    wanted = {"HousingWatchdog", "HousingRegistryUnreachable"}

    def written() -> list[dict[str, Any]]:
        return [json.loads(line) for line in pager.output.read_text().splitlines()]

    until(lambda: wanted <= {line["alert"] for line in written()}, 30, "two alerts")
    [told, *_] = [line for line in written() if line["alert"] == "HousingRegistryUnreachable"]
    assert (told["level"], told["status"]) == ("warning", "firing")
    assert told["labels"]["environment"] == "stack" and "instance" not in told["labels"]
    assert told["runbook"] == "docs/operations.md#housingregistryunreachable"
    _, seen = ask(f"http://127.0.0.1:{pager.port}/api/v2/alerts")
    assert wanted <= {one["labels"]["alertname"] for one in seen}


@pytest.mark.process
def test_the_receiver_refuses_what_is_no_message(pager: Pager | None) -> None:
    if pager is None:
        pytest.skip("prometheus-alertmanager is not installed")
    text = (pager.output.parent / "alertmanager.yml").read_text()
    found = re.search(r"http://127\.0\.0\.1:\d+/", text)
    assert found and ask(found[0])[0] == 200
    for wrong in ({"alerts": [{}]}, [1], {"alerts": 1}):
        assert ask(found[0], wrong)[0] == 400


@pytest.mark.process
@pytest.mark.parametrize(
    "name", sorted({n for r in rules() for n in re.findall(r"housing_\w+", r["expr"])})
)
def test_every_metric_in_a_rule_exists(prometheus: str, name: str) -> None:
    until(lambda: value(prometheus, name), 15, f"a scrape of {name}")


# The compose file and its environment


# Where things lie and who listens where is the stack's own; `scheduler` is the profile `scale`'s.
OF_THE_STACK = (
    *("home", "data_path", "data_source", "data_cache", "data_strict", "data_timeout_s"),
    *("model_dir", "journal_dir", "metrics_dir", "training_notebook", "report_notebook"),
    *("host", "port", "published", "proxies", "keys_file", "api_key", "rate_limit_storage"),
    *("scheduler", "scheduler_open", "scale_workers"),
)


def test_compose_names_settings_that_exist_and_publishes_on_loopback() -> None:
    given = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    known = {f"HOUSING_{name.upper()}" for name in Settings.model_fields}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert not re.findall(r"^HOUSING_\w+", example, re.M)  # they would change what runs outside
    for name, service in given["services"].items():
        wanted = {n for n in service.get("environment", {}) if n.startswith("HOUSING_")}
        assert wanted <= known, name
        if "HOUSING_DATABASE_URL" in wanted:  # it reads settings: what .env says reaches it
            assert known - wanted <= {f"HOUSING_{own.upper()}" for own in OF_THE_STACK}, name
        assert service["mem_limit"] and service["restart"], name
        for port in service.get("ports", []):
            assert port.startswith("${BIND:-127.0.0.1}:"), name
    for name, service in given["services"].items():
        said = json.dumps(service)
        assert name == "secrets" or "_PASSWORD}" not in said.replace(":-", ""), (
            f"{name} is told one"
        )
        assert "_PASSWORD:-" not in said or name == "secrets"
    assert set(re.findall(r"\$\{\w+_PASSWORD(.*?)\}", json.dumps(given))) == {":-"}, "a default"


def password_files(home: Path) -> dict[str, str]:
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in home.rglob("*") if p.is_file())
    return {str(p.relative_to(home)): p.read_text() for p in home.rglob("*") if p.is_file()}


@pytest.mark.process
def test_passwords_are_made_once_and_each_reader_finds_its_own(tmp_path: Path) -> None:
    for folder in ("all", "db", "mlflow", "housing", "grafana"):
        (tmp_path / folder).mkdir()

    def passwords(*args: str, **given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "deploy/passwords.py"), *args]
        # A port where nobody listens: the database is not there.
        env = {"PASSWORDS_HOME": str(tmp_path), "PGHOST": "127.0.0.1", "PGPORT": "9", **given}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert passwords("rotate").returncode == 1, "there is nothing to change yet"
    done = passwords("make", GRAFANA_PASSWORD="gr'f ana")
    assert done.returncode == 0, done.stderr
    first = password_files(tmp_path)
    made = {first[f"all/{name}"] for name in ("postgres", "mlflow", "housing")}
    assert len(made) == 3 and all(len(one) == 40 for one in made)
    assert first["grafana/grafana"] == "gr'f ana"
    assert first["housing/pgpass"] == f"*:*:*:housing:{first['all/housing']}\n"
    assert {n for n, text in first.items() if first["all/housing"] in text} == {
        *("all/housing", "db/housing", "housing/pgpass")
    }
    assert first["all/postgres"] not in first["mlflow/pgpass"] + first["housing/pgpass"]
    assert passwords("make").returncode == 0 and password_files(tmp_path) == first

    done = passwords("make", PREDICTIONS_DB_PASSWORD="a:b\\c @d")
    later = password_files(tmp_path)
    assert done.returncode == 0 and "when it starts" in done.stdout
    assert later["db/housing"] == "a:b\\c @d" and later["all/mlflow"] == first["all/mlflow"]
    assert later["housing/pgpass"] == "*:*:*:housing:a\\:b\\\\c @d\n"
    for args, given, told in (
        (("rotate",), {}, "Nothing was changed"),
        (("rotate", "nobody"), {}, "There is no nobody"),
        (("rotate", "mlflow"), {"MLFLOW_DB_PASSWORD": "x"}, "MLFLOW_DB_PASSWORD is set in .env"),
        (("make",), {"MLFLOW_DB_PASSWORD": "a\nb"}, "cannot be printed"),
    ):
        done = passwords(*args, **given)
        assert done.returncode == 1 and told in done.stderr, done
        assert password_files(tmp_path) == later


# Workflows


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.name
)
def test_a_workflow_asks_for_little_and_pins_what_it_uses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    assert given["permissions"] in ({}, {"contents": "read"})
    for name, job in given["jobs"].items():
        assert job.get("timeout-minutes"), f"{name} has no limit of time"
    for used in re.findall(r"uses: *(\S+)", text):
        assert re.search(r"@[0-9a-f]{40}$", used), f"{used} is not pinned"
    tasks = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert called and called <= tasks
