"""What a prediction weighs, in the journal and in SQLite, and how long a journal lasts while the database is away.

    python benchmarks/capacity.py

PostgreSQL's part is in `benchmarks/partitions.py`, the requests of a worker in `make bench` and `benchmarks/durability.py`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from champion import houses

from housing_mlops.config import Settings
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.journal import Journal
from housing_mlops.prediction_log.record import Record, encode_record, new_id


def records(n: int) -> list[bytes]:
    """As the fast path writes them, with a client's name and a request identifier."""
    now, shown = time.time_ns() // 1000, [json.dumps(house) for house in houses()]
    return [
        encode_record(
            Record(
                *(new_id(), now + i, "Voting", "12", 22.4567, 18.123, 27.789, 0.0712),
                *("/predict", new_id(), shown[i % len(shown)], "web"),
            )
        )
        for i in range(n)
    ]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="into SQLite")
    args = parser.parse_args()
    bound = Settings().journal_max_mb * 1_000_000
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as folder:
        journal = Journal(Path(folder) / "journal", max_bytes=bound)
        some = records(10_000)
        journal.append_many(some)
        each = journal.bytes_in / len(some)
        print(f"a record in the journal: {each:.0f} bytes")
        print(f"a worker's journal of {bound / 1e6:.0f} MB: {bound / each:,.0f} records")
        for rate in (10, 100, 1_000, 10_000):
            print(
                f"  at {rate:>6,} prices a second a worker: {bound / each / rate / 60:10,.1f} minutes"
            )
        path = Path(folder) / "predictions.db"
        engine = connect(f"sqlite:///{path}")
        migrate(engine)
        begun = time.perf_counter()
        for _ in range(args.rows // 5_000):
            insert(engine, records(5_000))
        spent = time.perf_counter() - begun
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        print(
            f"a row in SQLite: {path.stat().st_size / args.rows:.0f} bytes, {spent / args.rows * 1e6:.0f} µs (with making it)"
        )
        engine.dispose()


if __name__ == "__main__":
    main()
