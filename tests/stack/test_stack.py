"""The whole stack: what it answers, what it keeps, and what happens when parts of it die.

The tests run in the order they stand in, on one stack: `make test-stack`.
"""

import base64
import json
import re
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from processes import ROOT, ask, free_port, until
from running import GRAFANA, NEXT, NOTES, ODD, TAG, Load, Stack, run

pytestmark = pytest.mark.process
SERVICES = ("db", "mlflow", "api", "proxy", "monitor", "prometheus")


def test_the_image_is_small_enough(stack: Stack) -> None:
    done = run(sys.executable, "deploy/image_size.py", env={"TAG": TAG})
    NOTES.extend(done.stdout.splitlines())


def test_every_service_is_healthy_and_training_ended_well(stack: Stack) -> None:
    stack.wait_healthy(*SERVICES)
    until(lambda: stack.state("train") == "exited", 60, "training ended")
    state, count = stack.inspect("train")["State"], stack.inspect("train")["RestartCount"]
    assert (state["ExitCode"], count) == (0, 0), stack.logs("train")[-2000:]


def test_the_requests_of_the_brief(stack: Stack) -> None:
    status, answer = ask(stack.url("api", "/predict"), stack.house)
    assert status == 200 and 5 < answer["prediction"] < 50 and answer["unit"] == "1000 USD", answer
    stack.accepted.append(answer["prediction_id"])
    status, answer = ask(stack.url("api", "/predict/batch"), [stack.house] * 3)
    assert status == 200 and answer["count"] == 3
    stack.accepted += [one["prediction_id"] for one in answer["predictions"]]
    status, answer = ask(stack.url("api", "/health"))
    assert status == 200 and answer["checks"]["database"]["state"] == "healthy", answer
    status, answer = ask(stack.url("api", "/metrics"))
    assert status == 200 and answer["predictions"]["count"] == 4, answer
    status, answer = ask(stack.url("api", "/model/info"))
    assert status == 200 and answer["model_version"] == "1", answer
    status, answer = ask(stack.url("api", "/openapi.json"))
    assert status == 200 and "/predict" in answer["paths"]


def experiment(stack: Stack) -> list[str]:
    """The names of the runs in MLflow, sorted."""
    api = stack.url("mlflow", "/api/2.0/mlflow")
    status, found = ask(f"{api}/experiments/get-by-name?experiment_name=housing")
    assert status == 200, found
    number = found["experiment"]["experiment_id"]
    status, found = ask(f"{api}/runs/search", {"experiment_ids": [number], "max_results": 100})
    assert status == 200, found
    return sorted(one["info"]["run_name"] for one in found["runs"])


def test_mlflow_keeps_the_experiment_in_postgresql(stack: Stack) -> None:
    names = experiment(stack)
    wanted = {"LinearRegression", "Ridge", "RandomForest", "GradientBoosting"}
    assert wanted < set(names), names
    assert int(stack.sql("SELECT count(*) FROM runs", "mlflow")) == len(names)
    assert stack.sql(
        "SELECT alias FROM registered_model_aliases WHERE alias = 'champion'", "mlflow"
    )


def test_prometheus_scrapes_the_api_and_has_its_rules(stack: Stack) -> None:
    def health() -> bool:
        _, said = ask(stack.url("prometheus", "/api/v1/targets"))
        found = {t["labels"]["job"]: t["health"] for t in said["data"]["activeTargets"]}
        return found == dict.fromkeys(("housing-api", "proxy", "prometheus"), "up")

    until(health, 40, "every target is up")
    _, said = ask(stack.url("prometheus", "/api/v1/rules"))
    rules = [rule["name"] for group in said["data"]["groups"] for rule in group["rules"]]
    text = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    assert rules == re.findall(r"^ +- (?:alert|record): (\S+)$", text, re.M)


def test_grafana_shows_the_dashboard(stack: Stack) -> None:
    here = run("docker", "image", "inspect", GRAFANA, check=False).returncode == 0
    if not here and run("docker", "pull", "-q", GRAFANA, check=False, timeout=300).returncode:
        pytest.skip(f"{GRAFANA} cannot be had here")
    stack.do("--profile", "observability", "up", "-d", "--no-deps", "grafana")
    stack.wait_healthy("grafana")
    password = stack.do("exec", "-T", "grafana", "cat", "/run/passwords/grafana").stdout
    key = base64.b64encode(f"admin:{password}".encode()).decode()
    url = stack.url("grafana", "/api/dashboards/uid/housing-mlops")
    status, said = ask(url, headers={"Authorization": f"Basic {key}"})
    assert status == 200 and said["meta"]["provisioned"], said


def test_containers_may_do_little(stack: Stack) -> None:
    for service in ("api", "proxy", "monitor", "mlflow"):
        said = stack.do("exec", "-T", service, "id", "-u").stdout.strip()
        assert said == "10001", service
        touch = stack.do("exec", "-T", service, "touch", "/app/x", check=False)
        assert touch.returncode and "Read-only" in touch.stderr
        host = stack.inspect(service)["HostConfig"]
        assert host["Memory"] > 0 and host["CapDrop"] == ["ALL"]
    for service in SERVICES:
        bound = stack.inspect(service)["HostConfig"]["PortBindings"] or {}
        addresses = {one["HostIp"] for all_of_port in bound.values() for one in all_of_port}
        assert addresses <= {"127.0.0.1"}, service


def test_each_reader_has_its_own_password_and_no_other(stack: Stack) -> None:
    for service, role in (("api", "housing"), ("monitor", "housing"), ("mlflow", "mlflow")):
        read = ("exec", "-T", service, "sh", "-c", "ls /run/passwords; cat /run/passwords/*")
        name, line = stack.do(*read).stdout.split("\n", 1)
        assert name == "pgpass" and line.startswith(f"*:*:*:{role}:"), line
    assert line == "*:*:*:mlflow:a\\:b\\\\c@d/e%f'g\n"  # as .env had it, and MLflow got in with it
    for service in SERVICES:
        said = [one for one in stack.inspect(service)["Config"]["Env"] if "PASSWORD" in one]
        assert not said, f"{service} is told a password for all to see"


def test_the_rate_limit_counts_clients_and_not_the_proxy(stack: Stack, tmp_path: Path) -> None:
    limited = tmp_path / "limited.env"
    limited.write_text(f"{stack.env_file.read_text()}HOUSING_RATE_LIMIT=3/minute\n")
    stack.do("up", "-d", "--no-deps", "api", env_file=limited)
    try:
        stack.wait_ready()
        url = stack.url("api", "/model/info")

        def told(number: int) -> int:
            return ask(url, headers={"X-Forwarded-For": f"10.1.2.{number}"})[0]

        assert [told(n) for n in range(5)] == [200, 200, 200, 429, 429], "who lies is counted too"
        inside = (
            "import urllib.request as u; "
            "print(u.urlopen('http://proxy:8000/model/info', timeout=5).status)"
        )
        done = stack.do("exec", "-T", "monitor", "python", "-c", inside)
        assert done.stdout.strip() == "200", "another client has a count of its own"
    finally:
        stack.do("up", "-d", "--no-deps", "api")
    stack.wait_ready()


def test_what_is_accepted_is_stored(stack: Stack) -> None:
    with Load(stack, 500) as load:
        pass
    assert not load.failed and len(load.ids) == 1000
    stack.wait_stored()
    assert int(stack.sql("SELECT count(*) FROM predictions")) == len(stack.accepted)


@pytest.mark.nightly
def test_a_roll_back_beside_the_api_is_followed_and_no_request_fails(stack: Stack) -> None:
    trainer = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "housing-mlops", "train")
    quick = ("-p", "models", '["Ridge"]', "-p", "folds", "2", "-p", "repeats", "1")
    stack.do(*trainer, "train", *quick)
    why = ("--force", "--reason", "to be rolled back", "--quiet")
    stack.do(*trainer, "promote", "2", *why)

    def served() -> object:
        return ask(stack.url("api", "/model/info"))[1]["model_version"]

    until(lambda: served() == "2", what="the API serves what was promoted")
    with Load(stack, 1500, 0.01) as load:
        done = stack.make_exec("housing-mlops rollback --reason 'it prices nonsense' --by ann")
        until(lambda: served() == "1", what="the API serves the former champion")
    assert done.stdout == "Version 1 is the champion again.\n" and not load.failed, load.failed
    told = json.loads(stack.make_exec("housing-mlops history --json").stdout)
    assert [(m["action"], m["before"], m["after"]) for m in told[:2]] == [
        *(("rollback", "2", "1"), ("promote", "1", "2"))
    ]
    assert (told[0]["who"], told[0]["why"], told[1]["forced"]) == (
        "ann",
        "it prices nonsense",
        True,
    )
    refused = stack.make_exec("housing-mlops promote 2", check=False)
    assert refused.returncode and "train promote 2" in refused.stderr, refused.stderr


# Faults


def test_the_database_dies_under_load(stack: Stack) -> None:
    before = stack.inspect("db")["RestartCount"]
    with Load(stack, 1200, 0.02) as load:
        stack.kill("db")
        until(lambda: stack.inspect("db")["RestartCount"] > before, 30, "the database is back")
    assert not load.failed, load.failed  # the journal takes what the database cannot
    stack.wait_healthy("db")
    stack.wait_stored(90)


def test_the_database_is_restarted_under_load(stack: Stack) -> None:
    with Load(stack, 600, 0.02) as load:
        stack.do("restart", "-t", "20", "db")
    assert not load.failed, load.failed
    stack.wait_healthy("db")
    stack.wait_stored(90)


def test_the_api_is_killed_under_load(stack: Stack) -> None:
    before = stack.inspect("api")["RestartCount"]
    with Load(stack, 800, 0.01) as load:
        stack.kill("api")
        until(lambda: stack.inspect("api")["RestartCount"] > before, 30, "the API is back")
        stack.wait_ready()
    assert len(load.ids) > 100  # it came back to the same clients, whether or not the proxy waited
    stack.wait_stored()


def test_the_api_is_killed_while_the_database_is_away(stack: Stack) -> None:
    before = stack.inspect("api")["RestartCount"]
    stack.do("stop", "db")
    with Load(stack, 300, 0.01) as load:
        pass
    assert not load.failed  # what was accepted now stands in the journal and nowhere else
    stack.kill("api")
    until(lambda: stack.inspect("api")["RestartCount"] > before, 30, "the API is back")
    stack.wait_ready()
    stack.do("start", "db")
    stack.wait_healthy("db")
    stack.wait_stored()


@pytest.mark.parametrize("service", ["mlflow", "monitor", "prometheus"])
def test_a_service_that_is_killed_comes_back(stack: Stack, service: str) -> None:
    before = stack.inspect(service)["RestartCount"]
    stack.kill(service)
    until(lambda: stack.inspect(service)["RestartCount"] > before, 30, f"{service} is back")
    assert ask(stack.url("api", "/predict"), stack.house)[0] == 200
    stack.wait_healthy(service)


def test_the_api_starts_while_mlflow_is_away(stack: Stack) -> None:
    stack.do("stop", "mlflow")
    stack.do("restart", "api")
    stack.wait_ready()
    _, said = ask(stack.url("api", "/health"))
    assert said["status"] == "degraded" and "out of reach" in said["checks"]["registry"]["detail"]

    # With nothing in its cache it says so, and why, and takes the model when there is one.
    name = "housing-test-empty"
    run("docker", "rm", "-f", name, check=False)
    empty = ("-e", "HOUSING_MODEL_DIR=/tmp/models", "-e", "HOUSING_JOURNAL_DIR=/tmp/journal")
    stack.do("run", "-d", "--no-deps", "--name", name, *empty, "api")
    try:
        inside = (
            "import urllib.request as u, urllib.error\n"
            "try: print(u.urlopen('http://127.0.0.1:8000/readyz', timeout=4).read().decode())\n"
            "except urllib.error.HTTPError as e: print(e.code, e.read().decode())"
        )

        def readyz() -> str:
            return run("docker", "exec", name, "python", "-c", inside, check=False).stdout

        said = until(lambda: readyz().strip(), 30, "it answers")
        assert said.startswith("503") and "MLflow" in said, said
        stack.do("start", "mlflow")
        until(lambda: '"ready"' in readyz(), 90, "it takes the model")
    finally:
        run("docker", "rm", "-f", name, check=False)
    stack.wait_healthy("mlflow")
    until(
        lambda: ask(stack.url("api", "/health"))[1]["checks"]["registry"]["state"] == "healthy",
        30,
        "the API is healthy again",
    )


def test_a_password_that_the_database_does_not_know_is_told_and_mended(stack: Stack) -> None:
    for role in ("housing", "mlflow"):
        stack.sql(f"ALTER ROLE {role} PASSWORD 'another'")
    stack.do("restart", "api", "mlflow")
    for service in ("api", "mlflow"):
        until(
            lambda name=service: "password authentication failed" in stack.logs(name),
            60,
            f"{service} names the reason",
        )
        assert stack.inspect(service)["RestartCount"] <= 2, "no storm"
    stack.wait_ready()
    with Load(stack, 100) as load:  # prices are given all the same, and kept
        pass
    assert not load.failed
    _, said = ask(stack.url("api", "/health"))
    assert "password authentication failed" in said["checks"]["database"]["detail"], said
    stack.do("restart", "-t", "20", "db")  # which takes over what stands in the files
    stack.wait_healthy("db")
    stack.wait_stored()
    stack.wait_healthy("mlflow")


def test_a_port_that_is_taken_is_named(stack: Stack, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = tmp_path / "other.env"
        text = re.sub(r"_PORT=.*$", f"_PORT={free_port()}", stack.env_file.read_text(), flags=re.M)
        text = re.sub(r"^PROMETHEUS_PORT=.*$", f"PROMETHEUS_PORT={port}", text, flags=re.M)
        other.write_text(text)
        do = partial(stack.do, project="housing-test-port", env_file=other, check=False)
        try:
            done = do("up", "-d", "--no-deps", "prometheus")
            assert done.returncode and f"127.0.0.1:{port}" in done.stdout + done.stderr, done
        finally:
            do("down", "-v")


def test_a_full_volume_stops_prices_and_nothing_else(stack: Stack) -> None:
    name = volume = "housing-test-full"
    run("docker", "rm", "-f", name, check=False)
    run("docker", "volume", "rm", "-f", volume)
    small = ("type=tmpfs", "device=tmpfs", "o=size=1m,uid=10001,gid=10001")
    options = [word for one in small for word in ("--opt", one)]
    run("docker", "volume", "create", "--driver", "local", *options, volume)
    here = ("-v", f"{volume}:/journal", "-e", "HOUSING_JOURNAL_DIR=/journal")
    stack.do("run", "-d", "--no-deps", "--name", name, *here, "api")
    inside = (
        "import json, sys, urllib.request as u, urllib.error\n"
        "body = sys.argv[2].encode() or None\n"
        "ask = u.Request('http://127.0.0.1:8000' + sys.argv[1], body, "
        "{'Content-Type': 'application/json'})\n"
        "try: print(u.urlopen(ask, timeout=4).status)\n"
        "except urllib.error.HTTPError as e: print(e.code, e.read().decode())"
    )

    def asked(path: str, body: str = "") -> str:
        done = run("docker", "exec", name, "python", "-c", inside, path, body, check=False)
        return done.stdout.strip()

    house = json.dumps(stack.house)
    try:
        until(lambda: asked("/readyz") == "200", 60, "it is ready")
        assert asked("/predict", house) == "200"
        fill = "dd if=/dev/zero of=/journal/filler bs=1k 2>/dev/null"
        run("docker", "exec", name, "sh", "-c", fill, check=False)
        until(lambda: asked("/predict", house).startswith("503"), 30, "no price is promised")
        assert asked("/livez") == "200" and asked("/model/info") == "200"
        until(lambda: asked("/readyz").startswith("503"), 30, "it says that it is not ready")
        run("docker", "exec", name, "rm", "/journal/filler")
        until(lambda: asked("/predict", house) == "200", 30, "prices again")
        until(lambda: asked("/readyz") == "200", 30, "it is ready again")
    finally:
        run("docker", "rm", "-f", name, check=False)
        run("docker", "volume", "rm", "-f", volume)


# Two APIs behind the proxy


@pytest.mark.nightly
def test_two_apis_share_the_address_and_one_that_dies_is_not_missed(stack: Stack) -> None:
    stack.do("up", "-d", "--no-deps", "--no-recreate", "--scale", "api=2", "api")
    both = stack.containers("api")
    assert len(both) == 2

    def known() -> bool:
        _, said = ask(stack.url("prometheus", "/api/v1/query?query=up{job='housing-api'}==1"))
        return len(said["data"]["result"]) == 2

    until(known, 60, "Prometheus has found both")
    with Load(stack, 1500, 0.01) as load:
        stack.kill("api")
        until(lambda: stack.inspect("api")["RestartCount"] > 0, 30, "it is back")
    assert not load.failed, load.failed
    counts = [run("docker", "logs", one).stderr.count("Serving") for one in both]
    assert all(counts), "each served"
    stack.wait_stored()


# Workers for what is too much for one machine


@pytest.mark.nightly
def test_a_search_on_two_workers_survives_the_death_of_one(stack: Stack) -> None:
    scale = ("--profile", "scale")
    stack.do(
        *scale,
        "up",
        "-d",
        "--no-recreate",
        "--scale",
        "worker=2",
        "scheduler",
        "worker",
        timeout=1500,
    )
    assert len(stack.containers("worker")) == 2
    quick = {"models": '["GradientBoosting"]', "folds": 2, "repeats": 1, "diagnose": "false"}
    wanted = quick | {"search": "tune", "trials": 20, "minutes": 0, "register": "false"}
    words = [word for name, value in wanted.items() for word in ("-p", name, str(value))]
    ended = "SELECT count(*) FROM tags WHERE key = 'search.trial'"

    def kill() -> None:
        until(lambda: int(stack.sql(ended, "mlflow")) > 2, 240, "three trials")
        stack.kill("worker")

    killer = threading.Thread(target=kill)
    killer.start()
    stack.do(*scale, "run", "--rm", "-T", "score", "train", *words, timeout=600)
    killer.join()
    assert int(stack.sql(ended, "mlflow")) == 20, "none was lost, none was done twice"
    failed = """SELECT count(*) FROM tags WHERE key = 'search.trial' AND value LIKE '%"FAIL"%'"""
    assert stack.sql(failed, "mlflow") == "0"
    until(lambda: stack.inspect("worker")["RestartCount"] > 0, 60, "the worker is back")
    stack.do(*scale, "rm", "-sf", "scheduler", "worker")


def test_six_hundred_half_sent_requests_keep_nobody_from_the_probes(stack: Stack) -> None:
    port, halves = stack.ports["api"], []
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    try:
        for number in range(600):
            half = socket.create_connection(("127.0.0.1", port), timeout=5)
            half.sendall(head if number % 2 else head + b"Content-Length: 300\r\n\r\n{")
            halves.append(half)
        for path in ("/livez", "/readyz", "/metrics"):
            assert ask(stack.url("api", path))[0] == 200, path
        assert ask(stack.url("api", "/predict"), stack.house)[0] == 429  # of this one address
        halves[0].settimeout(20)
        assert b" 408 " in halves[0].recv(4096), "a half is not waited for without end"
    finally:
        for half in halves:
            half.close()
    until(lambda: ask(stack.url("api", "/predict"), stack.house)[0] == 200, 20, "prices again")


@pytest.mark.nightly
def test_an_upgrade_and_the_way_back_fail_no_request(stack: Stack) -> None:
    recipe = stack.folder / "next"
    recipe.write_text(f"FROM housing-mlops-api:{TAG}\nLABEL next=true\n")
    run("docker", "build", "-q", "-t", f"housing-mlops-api:{NEXT}", "-f", str(recipe), "deploy")
    run("docker", "tag", f"housing-mlops-train:{TAG}", f"housing-mlops-train:{NEXT}")
    apis = len(stack.containers("api"))  # two, after the tests above
    for tag, most in ((NEXT, 7), (TAG, 8)):
        changed = re.sub(r"HOUSING_MAX_BATCH=.*\n", "", stack.env_file.read_text())
        stack.env_file.write_text(f"{changed}HOUSING_MAX_BATCH={most}\n")
        with Load(stack, 9000, 0.02, 180) as load:
            stack.upgrade(tag)
            load.stopped.set()
        assert not load.failed and len(load.ids) > 200, load.failed
        found = [json.loads(run("docker", "inspect", c).stdout) for c in stack.containers("api")]
        images = [one[0]["Config"]["Image"] for one in found]
        assert images == [f"housing-mlops-api:{tag}"] * apis
        # An operator's commands find the APIs, whatever numbers they have by now, and a setting has changed.
        told = stack.make_exec("housing-mlops settings").stdout
        assert re.search(rf"HOUSING_MAX_BATCH\s+{most}\b", told), told
    stack.wait_stored()
    stack.wait_healthy("mlflow", "monitor")


@pytest.mark.nightly
def test_every_password_is_changed_and_no_request_fails(stack: Stack) -> None:
    def pages() -> None:
        while not load.stopped.is_set():
            answers.append(ask(stack.url("api", "/monitoring/predictions?limit=2"))[0])
            load.stopped.wait(0.02)

    answers: list[int] = []
    before = stack.inside("api", "cat", "/run/passwords/pgpass").stdout
    with Load(stack, 4000, 0.01) as load:
        reader = threading.Thread(target=pages)
        reader.start()
        done = stack.do("run", "--rm", "-T", "--no-deps", "secrets", "rotate")
        assert "changed: housing, postgres" in done.stdout, done
        text = stack.env_file.read_text().replace(ODD, f"{ODD}, another one")
        stack.env_file.write_text(text)  # the one that is chosen
        stack.do("up", "-d", "--no-deps", "secrets")
        until(lambda: "changed: mlflow" in stack.logs("secrets"), 30, "MLflow's is changed")
        load.stopped.set()
        reader.join()
    assert not load.failed and set(answers) == {200}, (load.failed, set(answers))
    after = stack.inside("api", "cat", "/run/passwords/pgpass").stdout
    assert after != before
    for service in ("api", "mlflow"):  # whoever connects anew gets in
        stack.do("restart", service)
    stack.wait_ready()
    stack.wait_stored()
    stack.wait_healthy("mlflow")
    attempt = "import psycopg; psycopg.connect('postgresql://housing@db/housing', password='old')"
    old = attempt.replace("'old'", repr(before.strip().rpartition(":")[2]))
    done = stack.inside("api", "python", "-c", old, check=False)
    assert done.returncode and "password authentication failed" in done.stderr


def test_a_full_restart_keeps_model_log_and_experiments(stack: Stack) -> None:
    stack.wait_stored()
    rows, names = stack.sql("SELECT count(*) FROM predictions"), experiment(stack)
    stack.do("stop", "-t", "30")
    assert stack.inspect("api")["State"]["ExitCode"] == 0, "the API did not end in order"
    stack.do("down")
    stack.do("up", "-d")
    stack.wait_ready(120)
    stack.wait_healthy(*SERVICES)
    assert ask(stack.url("api", "/model/info"))[1]["model_version"] == "1"
    assert stack.sql("SELECT count(*) FROM predictions") == rows
    assert experiment(stack) == names
    until(lambda: stack.state("train") == "exited", 60, "training ended")
    assert stack.inspect("train")["State"]["ExitCode"] == 0
    assert "nothing to do" in stack.logs("train")


def test_the_monitor_judges_drift_and_writes_the_report(stack: Stack) -> None:
    def told() -> dict[str, str]:
        lines = map(json.loads, stack.logs("monitor").splitlines())
        return {line["check"]: line["level"] for line in lines}

    until(lambda: told().keys() >= {"drift", "report"}, 120, "both are told")
    assert told()["report"] == "info", stack.logs("monitor")
    kept = stack.do("exec", "-T", "monitor", "find", "/data/reports", "-name", "*.html").stdout
    assert kept.strip()


def test_logs_are_lines_of_json(stack: Stack) -> None:
    ask(stack.url("api", "/nowhere"))
    for service in ("api", "monitor"):
        lines = [json.loads(line) for line in stack.logs(service).splitlines()]
        assert lines and all({"time", "level", "logger"} <= line.keys() for line in lines)
    path = {line.get("path") for line in map(json.loads, stack.logs("api").splitlines())}
    assert "/nowhere" in path
