"""What deleting old predictions costs in PostgreSQL: row by row as retention does it, and by dropping a day's partition.

    python benchmarks/partitions.py --url postgresql://postgres@/postgres?host=/var/run/postgresql

Makes two databases beside the one that `--url` names, fills both alike, and drops them in the end. One has the tables
as they are; in the other `predictions` is cut by ranges of the identifier, which begins with the time (UUIDv7): a
partition a day, no column more, the same primary key, the same statements. docs/operations.md tells what was found.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from champion import houses
from history import DIALECTS

from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.prediction_log.retention import delete_old
from housing_mlops.prediction_log.traffic import count_statement

DAY_US = 86_400_000_000
WORDS = DIALECTS["postgresql"]

# The tables as `migrate` makes them become a partitioned one. It is empty here; a full one would be copied day by day.
CUT = """
ALTER TABLE feedback DROP CONSTRAINT feedback_prediction_id_fkey;
ALTER TABLE second_prices DROP CONSTRAINT second_prices_prediction_id_fkey;
ALTER TABLE predictions RENAME TO whole;
CREATE TABLE predictions (LIKE whole INCLUDING DEFAULTS) PARTITION BY RANGE (id);
DROP TABLE whole;
ALTER TABLE predictions ADD PRIMARY KEY (id);
CREATE INDEX predictions_time ON predictions (time_us, id);
CREATE INDEX predictions_version_time ON predictions (model_version, time_us, id);
ALTER TABLE feedback ADD FOREIGN KEY (prediction_id) REFERENCES predictions (id) ON DELETE CASCADE;
ALTER TABLE second_prices ADD FOREIGN KEY (prediction_id) REFERENCES predictions (id) ON DELETE CASCADE;
"""
FILL = """
INSERT INTO predictions (id, time_us, model, model_version, price, low, high, latency_ms, route, request_id, features)
SELECT {id}, at, 'housing', '4', price, price - 4.4, price + 4.4,
  0.1 + (i * 7919 % 1000) / 2000.0, '/predict', '', features
FROM (SELECT i, CAST({begin} + i * {step} AS bigint) AS at,
      10.0 + (i * 104729 % 3000) / 100.0 AS price, houses.features
      FROM {numbers} JOIN houses ON houses.j = i % 506) AS rows
"""
SOLD = """
INSERT INTO feedback (prediction_id, price, time_us, reported_us, model, model_version, predicted_us, predicted)
SELECT id, price + 1, time_us, time_us, model, model_version, time_us, price FROM predictions
WHERE substr(id, 36, 1) IN ('0', '8')
"""


def first_id(
    us: int,  # microseconds since 1970
) -> str:
    """The smallest identifier of that moment."""
    ms = f"{us // 1000:012x}"
    return f"{ms[:8]}-{ms[8:]}-7000-8000-000000000000"


def cut(engine: sa.Engine, begin: int, days: int) -> None:
    """Have `predictions` be partitioned, a day each, and one for what no day is there for."""
    with engine.begin() as connection:
        connection.exec_driver_sql(CUT)
        for day in range(days):
            low, high = (first_id(begin + (day + n) * DAY_US) for n in (0, 1))
            connection.exec_driver_sql(
                f"CREATE TABLE day{day} PARTITION OF predictions FOR VALUES FROM ('{low}') TO ('{high}')"
            )
        connection.exec_driver_sql("CREATE TABLE other_days PARTITION OF predictions DEFAULT")


def fill(engine: sa.Engine, rows: int, begin: int, days: int) -> None:
    """That many predictions over the days, a sale for every eighth, and the sums that pages read."""
    step = days * DAY_US // rows
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE houses (j integer PRIMARY KEY, features json)")
        table = sa.table("houses", sa.column("j"), sa.column("features", sa.JSON))
        connection.execute(
            table.insert(), [{"j": j, "features": h} for j, h in enumerate(houses())]
        )
    for a in range(0, rows, 250_000):
        numbers = WORDS["numbers"].format(a=a, b=min(a + 250_000, rows))
        statement = FILL.format(id=WORDS["id"], begin=begin, step=step, numbers=numbers)
        with engine.begin() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%"))
    with engine.begin() as connection:
        connection.exec_driver_sql(SOLD)
        connection.execute(sa.text(count_statement("predictions WHERE id > ''")))
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")


def drop_day(engine: sa.Engine, day: int, end: int) -> None:
    """A day goes: its sales by rows, its predictions as a table, its sums."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM feedback WHERE prediction_id < '{first_id(end)}'")
        connection.exec_driver_sql(
            f"DELETE FROM second_prices WHERE prediction_id < '{first_id(end)}'"
        )
        connection.exec_driver_sql(f"ALTER TABLE predictions DETACH PARTITION day{day}")
        connection.exec_driver_sql(f"DROP TABLE day{day}")
        for width in (1, 10):
            last = end // (width * 60_000_000)
            connection.exec_driver_sql(
                f"DELETE FROM traffic WHERE width = {width} AND slot < {last}"
            )


def delete_day(engine: sa.Engine, end: int) -> None:
    """A day goes as retention does it: a thousand predictions a transaction, the oldest first."""
    while delete_old(engine, days=(time.time_ns() // 1000 - end) / DAY_US):
        pass


def timed(call: Callable[[], object]) -> float:
    """The milliseconds of a call."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


@contextmanager
def wal(engine: sa.Engine, found: list[float]) -> Iterator[None]:
    """Adds to `found` the megabytes that the block wrote ahead."""

    def position() -> float:
        with engine.connect() as connection:
            return float(connection.scalar(sa.text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")))

    before = position()
    yield
    found.append((position() - before) / 1e6)


def size(engine: sa.Engine) -> float:
    """Megabytes of the whole database."""
    with engine.connect() as connection:
        return (
            float(connection.scalar(sa.text("SELECT pg_database_size(current_database())"))) / 1e6
        )


def records(n: int) -> list[bytes]:
    """Fresh records, as the journal holds them."""
    now, house = time.time_ns() // 1000, json.dumps(houses()[0])
    return [
        encode_record(Record(new_id(), now + i, "housing", "4", 22.5, 18.0, 27.0, 0.2, "/predict", "", house))
        for i in range(n)
    ]  # fmt: skip


def measure(name: str, engine: sa.Engine, remove: Callable[[int], None], days: int) -> None:
    """Print what reading, storing and deleting cost."""
    print(f"\n{name}: {size(engine):,.0f} MB", flush=True)
    some = [records(5000) for _ in range(6)]
    stored = [timed(lambda r=r: insert(engine, r)) for r in some]
    again = insert(engine, some[0])
    print(f"  storing 5,000 records: {statistics.median(stored):,.0f} ms; again: {again}")
    pages = [timed(lambda: read_page(engine, limit=100)) for _ in range(20)]
    print(f"  the newest 100: {statistics.median(pages):,.1f} ms")
    written: list[float] = []
    with wal(engine, written):
        spent = [timed(lambda day=day: remove(day)) for day in range(days)]
    print(
        f"  deleting a day: {statistics.median(spent):,.0f} ms (from {min(spent):,.0f} to {max(spent):,.0f}), "
        f"{written[0] / days:,.1f} MB written ahead; then {size(engine):,.0f} MB"
    )
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        vacuum = timed(lambda: connection.exec_driver_sql("VACUUM ANALYZE"))
    print(f"  VACUUM after {days} days: {vacuum:,.0f} ms; then {size(engine):,.0f} MB", flush=True)


def main() -> None:
    """Make both, measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="a server that lets us make databases")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--days", type=int, default=60, help="over which they are spread")
    parser.add_argument("--remove", type=int, default=10, help="how many of the days go")
    args = parser.parse_args()
    begin = (time.time_ns() // 1000 // DAY_US - args.days + 1) * DAY_US
    server = connect(args.url, 3600).execution_options(isolation_level="AUTOCOMMIT")
    print(f"{args.rows:,} predictions over {args.days} days, every eighth with a sale")
    for name in ("rows", "partitions"):
        database = f"housing_bench_{name}"
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {database}")
            connection.exec_driver_sql(f"CREATE DATABASE {database}")
        where = sa.make_url(args.url).set(database=database)
        engine = connect(where.render_as_string(hide_password=False), 3600)
        migrate(engine)
        if name == "partitions":
            cut(engine, begin, args.days + 2)
        spent = timed(lambda e=engine: fill(e, args.rows, begin, args.days))
        print(f"{name} filled in {spent / 1e3:.0f} s", flush=True)

        def remove(day: int, name: str = name, engine: sa.Engine = engine) -> None:
            end = begin + (day + 1) * DAY_US
            if name == "rows":
                delete_day(engine, end)
            else:
                drop_day(engine, day, end)

        measure(name, engine, remove, args.remove)
        engine.dispose()
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {database}")
    server.dispose()


if __name__ == "__main__":
    main()
