"""The promises of monitoring, kept by a real server: drift, restarts, outages, metrics, faults."""

import asyncio
import json
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import sqlalchemy as sa
from processes import until
from servers import program

from housing_mlops.data.table import Table
from housing_mlops.prediction_log.database import connect, predictions


@dataclass
class Load:
    """A bounded load: what was accepted, and what went otherwise."""

    accepted: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)  # by status; 0: no answer
    done: bool = False

    def run(self, port: int, bodies: Sequence[bytes], number: int, connections: int = 8) -> None:
        """Send `number` requests, or as many as are answered; from any thread."""
        asyncio.run(self._all(port, bodies, number, connections))
        self.done = True

    async def _all(self, port: int, bodies: Sequence[bytes], number: int, many: int) -> None:
        turns = iter(range(number))
        await asyncio.gather(*(self._one(port, bodies, turns) for _ in range(many)))

    async def _one(self, port: int, bodies: Sequence[bytes], turns: Any) -> None:
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for i in turns:
                body = bodies[i % len(bodies)]
                writer.write(
                    b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split(b" ", 2)[1])
                found = re.search(rb"content-length: *(\d+)", head, re.I)
                assert found is not None
                answer = await reader.readexactly(int(found[1]))
                if status == 200:
                    self.accepted.append(json.loads(answer)["prediction_id"])
                else:
                    self.refused[status] += 1
        except (OSError, asyncio.IncompleteReadError):
            self.refused[0] += 1  # the connection broke: this request was not accepted
        finally:
            if writer is not None:
                writer.close()

    def background(self, *args: Any, **kwargs: Any) -> threading.Thread:
        """The same in a thread of its own, started."""
        thread = threading.Thread(target=self.run, args=args, kwargs=kwargs)
        thread.start()
        return thread


def houses(table: Table, rows: int, seed: int = 0, **shift: float) -> list[bytes]:
    """Request bodies for houses of the table in shuffled order, some columns moved."""
    whole, left = table.features, rows % len(table.features)
    parts = [whole.sample(frac=1, random_state=seed + i) for i in range(rows // len(whole))]
    frame = pd.concat([*parts, whole.sample(left, random_state=seed + 99)])
    for column, by in shift.items():
        frame[column] += by
    return [json.dumps(row).encode() for row in frame.to_dict("records")]


def ids_in(url: str) -> list[str]:
    """Every id in the table, as often as it stands there."""
    engine = connect(url)
    with engine.connect() as connection:
        found = connection.execute(sa.select(predictions.c.id)).scalars().all()
    engine.dispose()
    return list(found)


def log_of(server: Any) -> str:
    return f"sqlite:///{server.home / 'predictions.db'}"


def stored_once(url: str, accepted: Sequence[str], seconds: float = 60) -> None:
    """Every accepted id is in the table, exactly once."""
    if seconds:
        until(lambda: set(accepted) <= set(ids_in(url)), seconds, "the accepted ids in the table")
    found = Counter(ids_in(url))
    assert [i for i in accepted if found[i] != 1] == []
    assert len(set(accepted)) == len(accepted)


# ---- drift


def judged(server: Any, rows: int) -> Any:
    """What is told of drift, once it is told of so many rows."""

    def told() -> Any:
        found = server.get("/monitoring/drift")
        return found if found["report"]["rows"] == rows else None

    return until(told, what=f"a judgement of {rows} rows")


def test_quiet_traffic_is_ok_and_a_shift_is_named(serve: Callable[..., Any], table: Table) -> None:
    server, load = serve(HOUSING_DRIFT_INTERVAL_S="0.2"), Load()
    load.run(server.port, houses(table, 2000), 2000)
    assert len(load.accepted) == 2000 and not load.refused
    stored_once(log_of(server), load.accepted)
    until(lambda: server.get("/monitoring/drift")["verdict"] == "ok")
    assert server.get("/monitoring/drift")["features"] == []
    half = -0.5 * float(table.features["RM"].std())
    load.run(server.port, houses(table, 400, seed=7, RM=half), 400)
    stored_once(log_of(server), load.accepted)
    until(lambda: server.get("/monitoring/drift")["verdict"] == "drift")
    found = server.get("/monitoring/drift")
    assert found["features"][0] == "RM"
    health = server.get("/health")
    assert health["status"] == "degraded" and "RM" in health["checks"]["drift"]["detail"]


# ---- nothing accepted is lost


def killed_under_load(server: Any, bodies: Sequence[bytes], number: int, sign: int) -> Load:
    """The load, of which a part was answered when the server ended."""
    load = Load()
    thread = load.background(server.port, bodies, number)
    until(lambda: len(load.accepted) > number // 2 or load.done, 120)
    server.kill(sign)
    thread.join(60)
    assert load.done and number // 2 < len(load.accepted) <= number
    return load


@pytest.mark.parametrize("workers", ["1", "2"])
def test_kill_9_loses_nothing(serve: Callable[..., Any], table: Table, workers: str) -> None:
    server = serve(HOUSING_WORKERS=workers)
    load = killed_under_load(server, houses(table, 506), 3000, signal.SIGKILL)
    assert len(load.accepted) < 3000
    server.start()
    stored_once(log_of(server), load.accepted)
    until(lambda: not list((server.home / "journal").glob("*.foreign")))


def test_sigterm_stores_all_before_it_ends(serve: Callable[..., Any], table: Table) -> None:
    server = serve()
    load = killed_under_load(server, houses(table, 506), 3000, signal.SIGTERM)
    assert server.process.returncode in (0, -signal.SIGTERM)
    stored_once(log_of(server), load.accepted, seconds=0)
    assert not list((server.home / "journal").glob("*.journal"))


def through_an_outage(
    server: Any, url: str, postgres: Any, bodies: Sequence[bytes], seconds: float
) -> Load:
    """The load that ran while PostgreSQL was stopped for `seconds`."""
    load, over = Load(), False

    def press() -> None:
        while not over:
            load.run(server.port, bodies, 500, 4)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        until(lambda: len(load.accepted) > 500, 60)
        postgres.stop()
        before = len(load.accepted)
        time.sleep(seconds)
        health = server.get("/health")
        assert health["status"] == "degraded"
        assert health["checks"]["database"]["state"] == "degraded"
        log = server.get("/metrics")["log"]
        assert not log["connected"] and log["backlog_rows"] > 0 < log["backlog_bytes"]
        assert len(load.accepted) > before
    finally:
        postgres.start()
        over = True
        thread.join(60)
    return load


def test_an_outage_of_postgresql_fails_no_request(
    serve: Callable[..., Any], table: Table, postgres: Any
) -> None:
    url = postgres.make("outage")
    server = serve(HOUSING_DATABASE_URL=url)
    load = through_an_outage(server, url, postgres, houses(table, 506), 2.5)
    assert not load.refused
    stored_once(url, load.accepted)
    until(lambda: server.get("/health")["checks"]["database"]["state"] == "healthy")
    assert server.get("/metrics")["log"]["backlog_rows"] == 0


# ---- metrics


SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Prometheus's text by name and label values, these in the order of their labels' names."""
    found = {}
    for line in text.splitlines():
        if match := SAMPLE.match(line):
            labels = re.findall(r'\w+="([^"]*)"', match[2] or "")
            found[(match[1], *labels)] = float(match[3])
    return found


def agree(told: dict[str, Any], text: dict[tuple[str, ...], float], asked: int = 0) -> None:
    """Number by number; `asked` requests to `/metrics` came between the two."""
    for row in told["requests"]["by_route"]:
        key = ("housing_request_seconds_count", row["route"], str(row["status"]))
        assert text[key] == row["count"] + (asked if row["route"] == "/metrics" else 0)
    for version, count in told["predictions"]["by_version"].items():
        assert text["housing_predictions_total", version] == count
    for reason, count in told["requests"]["errors_by_reason"].items():
        assert text["housing_errors_total", reason] == count
    for name in ("stored", "replayed", "quarantined"):
        assert text[(f"housing_records_{name}_total",)] == told["log"][name]
    for name in ("rows", "bytes"):
        assert text[(f"housing_journal_backlog_{name}",)] == told["log"][f"backlog_{name}"]
    assert text[("housing_database_up",)] == told["log"]["connected"]
    assert text["housing_health", told["health"]] == 1
    assert text["housing_drift", told["drift"]["verdict"]] == 1
    for row in told["drift"]["effects"]:
        if row["effect"] is not None:
            assert text["housing_drift_effect", row["feature"], row["role"]] == row["effect"]
    for row in told["live_error"]:
        for measure in ("mae", "rmse", "bias", "within"):
            key = ("housing_live_error", measure, row["model"], row["model_version"])
            assert text[key] == pytest.approx(row[measure], rel=1e-12)
    assert text["housing_model_info", told["model"]["name"], told["model"]["version"]] == 1
    age = told["model"]["age_s"]
    assert text[("housing_model_age_seconds",)] == pytest.approx(age, abs=60)
    served = [r for r in told["requests"]["by_route"] if r["route"].startswith("/predict")]
    served = [(r["route"], str(r["status"])) for r in served if r["status"] == 200]
    total = sum(text["housing_request_seconds_sum", *key] for key in served)
    count = sum(text["housing_request_seconds_count", *key] for key in served)
    assert told["latency_ms"]["mean"] == pytest.approx(total / count * 1e3, abs=1e-4)


def test_metrics_agree_and_promtool_accepts_them(serve: Callable[..., Any], table: Table) -> None:
    often = {"HOUSING_LIVE_ERROR_INTERVAL_S": "0.1", "HOUSING_DRIFT_INTERVAL_S": "0.5"}
    server, load = serve(**often), Load()
    load.run(server.port, houses(table, 300), 300)
    stored_once(log_of(server), load.accepted)
    with httpx.Client(base_url=server.address) as client:
        for i in load.accepted[:50]:
            client.post("/feedback", json={"prediction_id": i, "price": 21.5})
        assert client.post("/predict", json={"nothing": 1}).status_code == 422
        assert client.get("/nowhere").status_code == 404
        until(lambda: client.get("/monitoring/drift").json()["verdict"] == "ok")
        until(lambda: [r["n"] for r in server.get("/metrics")["live_error"]] == [50])
        kind = client.get("/metrics").headers["content-type"]
        assert kind == "application/json", "what is piped to jq"
    told = server.get("/metrics", "*/*")
    text = server.get("/metrics", "text/plain")
    agree(told, samples(text), asked=1)
    assert told["predictions"]["count"] == 300 and len(told["live_error"]) == 1
    assert told["requests"]["errors"] >= 2 and told["drift"]["effects"]
    assert server.get("/metrics", "application/openmetrics-text").rstrip().endswith("# EOF")
    promtool = program("prometheus", "promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_metrics_count_every_worker(
    serve: Callable[..., Any], table: Table, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    server = serve(HOUSING_WORKERS="2", HOUSING_METRICS_DIR=str(shared))
    until(lambda: len(list(shared.glob("*.json"))) == 2)
    load = Load()
    load.run(server.port, houses(table, 506), 600, connections=12)
    stored_once(log_of(server), load.accepted)
    files = [json.loads(path.read_text()) for path in shared.glob("*.json")]
    time.sleep(1.2)  # every worker writes its counters twice a second
    for _ in range(12):  # whichever worker answers
        told = server.get("/metrics")
        assert told["predictions"]["by_version"] == {"1": 600}
        assert told["log"]["stored"] == 600 and told["log"]["backlog_rows"] == 0
        count = {r["route"]: r["count"] for r in told["requests"]["by_route"]}
        assert count["/predict"] == 600
    assert len(files) == 2
    text = samples(server.get("/metrics", "text/plain"))
    assert text["housing_predictions_total", "1"] == 600
    assert text[("housing_records_stored_total",)] == 600


# ---- faults


def test_a_journal_that_takes_nothing_is_a_503_until_it_does(
    serve: Callable[..., Any], table: Table
) -> None:
    server = serve()
    body = json.loads(houses(table, 1)[0])
    with httpx.Client(base_url=server.address) as client:
        assert client.post("/predict", json=body).status_code == 200
        until(lambda: server.get("/metrics")["log"]["stored"] == 1)
        folder = server.home / "journal"
        shutil.rmtree(folder)
        folder.write_text("a file where the folder was")
        refused = until(
            lambda: (a := client.post("/predict", json=body)).status_code == 503 and a, 30
        )
        assert refused and "journal" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        batch = client.post("/predict/batch", json=[body, body])
        assert batch.status_code == 503 and batch.headers["Retry-After"]
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "unhealthy"
        assert health.json()["checks"]["journal"]["state"] == "unhealthy"
        assert server.get("/metrics")["requests"]["errors_by_reason"]["journal"] >= 2
        folder.unlink()
        answer = until(lambda: (a := client.post("/predict", json=body)).status_code == 200 and a)
        until(lambda: client.get("/health").status_code == 200)
    stored_once(log_of(server), [answer.json()["prediction_id"]])


def test_a_full_journal_is_a_503_until_the_database_is_back(
    serve: Callable[..., Any], table: Table, postgres: Any
) -> None:
    url, load = postgres.make("backlog"), Load()
    server = serve(HOUSING_DATABASE_URL=url, HOUSING_JOURNAL_MAX_MB="1")
    bodies = houses(table, 506)
    load.run(server.port, bodies, 50)
    postgres.stop()
    try:
        load.run(server.port, bodies, 5000)
        assert load.refused[503] > 0 and set(load.refused) == {503}
        health = httpx.get(server.address + "/health")
        assert health.status_code == 503
        assert "1000000 bytes" in health.json()["checks"]["journal"]["detail"]
    finally:
        postgres.start()
    stored_once(url, load.accepted)
    again = Load()
    again.run(server.port, bodies, 50)
    assert not again.refused
    until(lambda: server.get("/health")["checks"]["journal"]["state"] == "healthy")


def test_the_log_switched_off(serve: Callable[..., Any], table: Table) -> None:
    server, load = serve(HOUSING_LOG="off"), Load()
    load.run(server.port, houses(table, 20), 20)
    assert len(load.accepted) == 20
    assert not (server.home / "journal").exists()
    assert not (server.home / "predictions.db").exists()
    health, told = server.get("/health"), server.get("/metrics")
    assert health["status"] == "healthy" and "off" in health["checks"]["log"]["detail"]
    assert told["predictions"]["count"] == 20 and told["log"] is None
    with httpx.Client(base_url=server.address) as client:
        for path in ("drift", "predictions", "live-error", "traffic", "prices"):
            answer = client.get(f"/monitoring/{path}")
            assert answer.status_code == 503 and "HOUSING_LOG" in answer.json()["detail"]
        given = {"prediction_id": load.accepted[0], "price": 1.0}
        assert client.post("/feedback", json=given).status_code == 503


def test_windows_larger_than_the_log(serve: Callable[..., Any], table: Table) -> None:
    server, load = serve(HOUSING_DRIFT_INTERVAL_S="0.2"), Load()
    assert judged(server, rows=0)["verdict"] == "unknown"
    load.run(server.port, houses(table, 60), 60)
    stored_once(log_of(server), load.accepted)
    assert judged(server, rows=60)["verdict"] == "unknown"
    prices = server.get("/monitoring/prices?n=10000")
    assert prices["rows"] == sum(prices["window"]) + prices["below"] + prices["above"] == 60
    traffic = server.get("/monitoring/traffic?minutes=100000&slices=500")
    assert sum(s["count"] for s in traffic["slices"]) == 60 and len(traffic["slices"]) == 500
    page = server.get("/monitoring/predictions?limit=10000")
    assert len(page["predictions"]) == 60 and page["next"] is None
    assert server.get("/monitoring/live-error?n=1000000")["versions"] == []


def test_feedback_for_predictions_of_other_models(
    serve: Callable[..., Any], table: Table, bundles: dict[str, Path]
) -> None:
    from housing_mlops.config import Settings
    from housing_mlops.registry.shelf import install_bundle

    server = serve(HOUSING_REGISTRY_POLL_S="0.1")
    body = json.loads(houses(table, 1)[0])
    with httpx.Client(base_url=server.address) as client:
        old = client.post("/predict", json=body).json()
        install_bundle(bundles["LinearRegression"], "2", Settings(home=server.home))
        until(lambda: server.get("/readyz")["model_version"] == "2")
        new = client.post("/predict", json=body).json()
        assert (old["model_version"], new["model_version"]) == ("1", "2")
        for answer, error in ((old, 1.0), (new, -3.0)):
            price = answer["prediction"] - error
            given = {"prediction_id": answer["prediction_id"], "price": price}
            assert client.post("/feedback", json=given).json()["status"] == "stored"
        unknown = {"prediction_id": "0190a0a0-0000-7000-8000-000000000000", "price": 20.0}
        assert client.post("/feedback", json=unknown).status_code == 404
        again = {"prediction_id": old["prediction_id"], "price": 99.0}
        assert client.post("/feedback", json=again).status_code == 409
        fixed = client.post("/feedback", json=again | {"replace": True})
        assert fixed.json()["status"] == "replaced"
    errors = {r["model_version"]: r for r in server.get("/monitoring/live-error")["versions"]}
    assert errors["1"]["bias"] == pytest.approx(old["prediction"] - 99.0)
    assert errors["2"]["bias"] == pytest.approx(-3.0) and errors["2"]["model"] == "LinearRegression"
    judged(server, rows=1)  # of the version that serves


def test_a_database_file_that_cannot_be_opened(serve: Callable[..., Any], table: Table) -> None:
    where = "sqlite:////proc/nowhere/predictions.db"  # not even root can make a file there
    server, load = serve(HOUSING_DATABASE_URL=where), Load()
    load.run(server.port, houses(table, 30), 30)
    assert len(load.accepted) == 30
    health = server.get("/health")
    assert health["status"] == "degraded"
    assert "30 rows" in health["checks"]["journal"]["detail"]
    answer = httpx.get(f"{server.address}/monitoring/predictions")
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    kept = [p for p in (server.home / "journal").iterdir() if p.suffix == ".journal"]
    assert all(stat.S_ISREG(p.stat().st_mode) for p in kept) and kept


# ---- a database that is stopped where it stands


@pytest.mark.fault
def test_a_stopped_postgresql_holds_no_probe_and_no_end(
    serve: Callable[..., Any], table: Table, postgres: Any
) -> None:
    url = postgres.make("stopped")
    server = serve(HOUSING_DATABASE_URL=url, HOUSING_DATABASE_TIMEOUT_S="2")
    body, load = houses(table, 506), Load()
    load.run(server.port, body, 200)
    stored_once(url, load.accepted)
    pages = ["predictions", "traffic", "live-error", "prices"] * 15
    with httpx.Client(base_url=server.address, timeout=60) as client:
        assert all(client.get(f"/monitoring/{page}").status_code == 200 for page in pages[:4])
    postgres.signal(signal.SIGSTOP)
    try:
        answers = asyncio.run(ask_at_once(server.address, pages, json.loads(body[0])))
        assert set(answers["pages"]) == {503}, "each of them in the end"
        assert answers["probes"] == [200] * 31, "a batch among them"
        load.run(server.port, body, 50)
        assert len(load.accepted) == 250 and not load.refused
        until(lambda: not server.get("/metrics")["log"]["connected"])
        server.kill(signal.SIGTERM)  # waits for the end, for half a minute
    finally:
        postgres.signal(signal.SIGCONT)
    server.start()
    stored_once(url, load.accepted)


async def ask_at_once(address: str, pages: Sequence[str], house: Any) -> dict[str, list[int]]:
    """The statuses of many pages at once, and of probes, the first of which do not wait for them."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        waiting = [asyncio.create_task(client.get(f"/monitoring/{page}")) for page in pages]
        await asyncio.sleep(0.3)
        probes = []
        for path in ("/metrics", "/health", "/livez") * 10:
            probes.append((await client.get(path)).status_code)
            if len(probes) == 3:
                assert not all(page.done() for page in waiting), "the database answers"
        probes.append((await client.post("/predict/batch", json=[house] * 20)).status_code)
        return {"pages": [(await page).status_code for page in waiting], "probes": probes}
