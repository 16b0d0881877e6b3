"""What a long history costs: pages, numbers, retention and the upgrade, at five million predictions.

Makes a database in its former form, brings it up to date as a server does at its start, and asks
for every page through the application. `--rows 100000` takes some seconds; `--url` takes an empty
PostgreSQL database instead of a SQLite file.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from champion import houses, make
from fastapi.testclient import TestClient

from housing_mlops.config import Settings
from housing_mlops.prediction_log.database import connect, downgrade, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.prediction_log.retention import delete_old
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving.api import create_app

# One row of `n` each: an identifier that sorts by time, four versions one after another.
PREDICTION = """
INSERT INTO predictions SELECT
  {id}, at, 'housing', CAST(4 * i / {rows} + 1 AS text), price, price - 4.4, price + 4.4,
  0.1 + (i * 7919 % 1000) / 2000.0, '/predict', '', features
FROM (SELECT i, CAST({begin} + i * {step} AS bigint) AS at,
      10.0 + (i * 104729 % 3000) / 100.0 AS price, houses.features
      FROM {numbers} JOIN houses ON houses.j = i % 506) AS rows
"""
SOLD = """
INSERT INTO feedback SELECT id, price + (latency_ms - 0.35) * 20, time_us, time_us
FROM predictions WHERE {tenth}
"""
# What the former version asked for, over all rows.
FORMER = {
    "live error, as /metrics and the page asked": """
SELECT model, model_version, count(*), avg(abs(error)), avg(error * error), avg(error),
       avg(within), max(time_us)
FROM (SELECT p.model, p.model_version, p.time_us, p.price - f.price AS error,
             CASE WHEN f.price BETWEEN p.low AND p.high THEN 1.0 ELSE 0.0 END AS within,
             row_number() OVER (PARTITION BY p.model, p.model_version
                                ORDER BY p.time_us DESC, p.id) AS rank
      FROM predictions p JOIN feedback f ON f.prediction_id = p.id) AS errors
GROUP BY model, model_version""",
    "traffic?minutes=100000&slices=500": """
SELECT slot, count(*), avg(latency_ms), min(CASE WHEN rank * 20 >= size * 19 THEN latency_ms END),
       max(latency_ms), avg(price)
FROM (SELECT time_us / 12000000000 AS slot, latency_ms, price,
             row_number() OVER (PARTITION BY time_us / 12000000000 ORDER BY latency_ms) AS rank,
             count(*) OVER (PARTITION BY time_us / 12000000000) AS size
      FROM predictions) AS ranked
GROUP BY slot""",
    "finding 1,000 to delete by count": """
SELECT time_us, id FROM predictions ORDER BY time_us DESC, id DESC LIMIT 1 OFFSET {kept}""",
}
DIALECTS = {
    "sqlite": {
        "id": "printf('%08x-%04x-7000-8000-%012x', at / 65536000, at / 1000 % 65536, i)",
        "numbers": "(WITH RECURSIVE n(i) AS (SELECT {a} UNION ALL SELECT i + 1 FROM n "
        "WHERE i + 1 < {b}) SELECT i FROM n) AS n",
        "tenth": "rowid % 10 = 0",
    },
    "postgresql": {
        "id": "lpad(to_hex(at / 65536000), 8, '0') || '-' || lpad(to_hex(at / 1000 % 65536), 4, '0')"
        " || '-7000-8000-' || lpad(to_hex(i), 12, '0')",
        "numbers": "(SELECT i::bigint AS i FROM generate_series({a}, {b} - 1) AS i) AS n",
        "tenth": "right(id, 1) IN ('0', '8') AND substr(id, 35, 1) IN ('1', '5', '9', 'c', 'e')"
        " OR right(id, 2) IN ('33', '77', 'bb', 'ff', '3b')",
    },
}


def fill(engine: sa.Engine, rows: int, days: float, chunk: int = 250_000) -> None:
    """A migrated database in the former form, with that many predictions and a tenth as many sales."""
    migrate(engine)
    downgrade(engine, "0001")
    words = DIALECTS[engine.dialect.name]
    step = int(days * 86_400_000_000 / rows)
    begin = time.time_ns() // 1000 - step * rows
    text = "json" if engine.dialect.name == "postgresql" else "text"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE houses (j integer PRIMARY KEY, features {text})")
        table = sa.table("houses", sa.column("j"), sa.column("features", sa.JSON))
        connection.execute(
            table.insert(), [{"j": j, "features": h} for j, h in enumerate(houses())]
        )
    for a in range(0, rows, chunk):
        numbers = words["numbers"].format(a=a, b=min(a + chunk, rows))
        values = {"rows": rows, "begin": begin, "step": step, "numbers": numbers}
        with engine.execution_options(writing=True).begin() as connection:
            statement = PREDICTION.format(id=words["id"], **values)
            connection.exec_driver_sql(
                statement.replace("%", "%%") if text == "json" else statement
            )
    with engine.execution_options(writing=True).begin() as connection:
        statement = SOLD.format(tenth=words["tenth"])
        connection.exec_driver_sql(statement.replace("%", "%%") if text == "json" else statement)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE houses")
        connection.exec_driver_sql("ANALYZE")


def timed(call: Callable[[], object], times: int = 3) -> list[float]:
    """The seconds of each call."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def told(name: str, seconds: list[float], what: str = "") -> None:
    """Print the first time, when nothing is in memory, and the best."""
    print(f"{name:<52}{seconds[0] * 1e3:10,.1f}{min(seconds) * 1e3:10,.1f} {what}", flush=True)


PAGES = [
    *("/metrics", "/health", "/monitoring/predictions", "/monitoring/predictions?limit=10000"),
    *("/monitoring/predictions?version=1", "/monitoring/traffic"),
    *(
        "/monitoring/traffic?minutes=100000&slices=500",
        "/monitoring/traffic?minutes=9500&slices=500",
    ),
    *(
        "/monitoring/traffic?minutes=43200&version=2",
        "/monitoring/prices",
        "/monitoring/prices?n=10000",
    ),
    *("/monitoring/drift", "/monitoring/live-error", "/monitoring/live-error?n=1000"),
    *("/monitoring/live-error?n=100000", "/monitoring/live-error?version=2"),
]


def ask_pages(url: str, home: Path, engine: sa.Engine) -> None:
    """Every page through the application, and what it costs in memory."""
    install_bundle(make(Path("runs/bench/models"), ("Ridge",)), "4", Settings(home=home))
    settings = Settings(home=home, database_url=url, live_error_interval_s=0.2)
    with TestClient(create_app(settings)) as client:
        deadline = time.monotonic() + 60
        while not client.get("/metrics").json()["live_error"] and time.monotonic() < deadline:
            time.sleep(0.1)
        middle = read_page(engine, limit=1, version="2").rows[0]
        cursor = f"{int(middle.time.timestamp() * 1e6)}.{middle.id}"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for page in [*PAGES, f"/monitoring/predictions?before={cursor}"]:
            seconds = timed(lambda page=page: client.get(page).raise_for_status())
            told(page if "before=" not in page else "/monitoring/predictions?before=…", seconds)
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"memory: {more / 1024:.0f} MB more than before the first page")


def ask_formerly(engine: sa.Engine, rows: int) -> None:
    """The statements of the former version, once each: some take a minute and more."""
    with engine.connect() as connection:
        for name, statement in FORMER.items():
            asked = statement.format(kept=int(0.8 * rows))
            told(f"before: {name}", timed(lambda a=asked: connection.exec_driver_sql(a).all(), 1))


def write(engine: sa.Engine, rows: int, days: float) -> None:
    """Storing new records, and deleting old ones by both bounds."""
    now = time.time_ns() // 1000
    house = json.dumps(houses()[0])
    records = [
        encode_record(Record(new_id(), now + i, "housing", "4", 22.5, 18.0, 27.0, 0.2, "/predict", "", house))
        for i in range(5000)
    ]  # fmt: skip
    seconds = timed(lambda: insert(engine, records), 1)
    told("5,000 new records", seconds, f"({seconds[0] / 5000 * 1e6:.1f} µs each)")
    told("deleting 1,000 by age", timed(lambda: delete_old(engine, days=0.9 * days)))
    told("deleting 1,000 by count", timed(lambda: delete_old(engine, rows=int(0.8 * rows))))


def main() -> None:
    """Make, upgrade, ask, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--days", type=float, default=60, help="over which they are spread")
    parser.add_argument("--url", default="", help="an empty database; default: a SQLite file")
    parser.add_argument("--before", action="store_true", help="what the former version took, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as folder:
        url = args.url or f"sqlite:///{folder}/predictions.db"
        engine = connect(url, timeout_s=3600)
        [made] = timed(lambda: fill(engine, args.rows, args.days), 1)
        print(
            f"{args.rows:,} predictions in {engine.dialect.name}, made in {made:.0f} s", flush=True
        )
        if args.before:
            ask_formerly(engine, args.rows)
        [upgraded] = timed(lambda: migrate(engine), 1)
        print(f"brought up to date in {upgraded:.1f} s, while records would wait in the journal\n")
        print(f"{'milliseconds':<52}{'first':>10}{'best':>10}")
        ask_pages(url, Path(folder), engine)
        write(engine, args.rows, args.days)
        engine.dispose()


if __name__ == "__main__":
    main()
