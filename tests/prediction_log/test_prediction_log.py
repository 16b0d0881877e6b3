"""The prediction log on both databases, with every fault that it is meant to survive."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from housing_mlops.config import HousingError
from housing_mlops.prediction_log import database as history
from housing_mlops.prediction_log import database as module
from housing_mlops.prediction_log import log as prediction_log
from housing_mlops.prediction_log.database import (
    connect,
    delete_old,
    insert,
    insert_all,
    metadata,
    migrate,
    predictions,
    save_feedback,
)
from housing_mlops.prediction_log.journal import Journal
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.queries import (
    live_error,
    read_page,
    read_window,
    traffic_over_time,
)
from housing_mlops.prediction_log.record import (
    FeedbackConflict,
    LogUnavailable,
    Record,
    UnknownPrediction,
    encode_record,
    new_id,
)
from housing_mlops.schema import Dataset, load_dataset

DATASET = load_dataset("boston")
HOUSE = json.dumps(DATASET.example)
names = (f"log{n}" for n in itertools.count())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    made: str = request.getfixturevalue("postgres").make(next(names))
    return made


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'predictions.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """A migrated database."""
    made = connect(url)
    migrate(made)
    yield made
    made.dispose()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PredictionLog]]:
    """Starts logs that share one journal folder, and closes them."""
    logs: list[PredictionLog] = []

    def make(url: str, **options: Any) -> PredictionLog:
        options = {"interval_s": 0.01, "housekeeping_s": 0.05, **options}
        logs.append(PredictionLog(url, tmp_path / "journal", **options))
        return logs[-1].start(30)

    yield make
    for log in logs:
        log.close(0)


def record(version: str = "1", **fields: Any) -> bytes:
    values = Record(new_id(), time.time_ns() // 1000, "housing", version, 22.5, 18.0, 27.0, 0.2, "/predict", "", HOUSE)  # fmt: skip
    return encode_record(values._replace(**fields))


def id_of(line: bytes) -> str:
    return line.split(b"\t")[0].decode()


def append(log: PredictionLog, n: int) -> set[str]:
    """The ids of n new records, accepted by the journal."""
    records = [record() for _ in range(n)]
    for line in records:
        log.journal.append(line)
    return {id_of(line) for line in records}


def stored(engine: sa.Engine) -> list[str]:
    with engine.begin() as connection:
        return list(connection.scalars(sa.select(predictions.c.id)))


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for `condition`; a machine under load is waited for long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def once(engine: sa.Engine, ids: set[str]) -> None:
    """Assert that exactly `ids` are stored."""
    found = stored(engine)
    assert len(found) == len(ids) and set(found) == ids


# tables


def test_migrations_make_what_the_module_expects(engine: sa.Engine) -> None:
    options = {"version_table": "housing_alembic_version"}
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_many_may_migrate_at_once(url: str) -> None:
    errors: list[Exception] = []

    def go() -> None:
        engine = connect(url)
        try:
            migrate(engine)
        except Exception as error:
            errors.append(error)
        engine.dispose()

    threads = [threading.Thread(target=go) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [e for e in errors if "locked" not in str(e)] == []
    engine = connect(url)
    migrate(engine)
    assert stored(engine) == []
    engine.dispose()


def test_migrations_can_be_taken_back(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import command

    monkeypatch.setattr(command, "upgrade", lambda config, _: command.downgrade(config, "base"))
    migrate(engine)
    assert sa.inspect(engine).get_table_names() == ["housing_alembic_version"]


# storing


def test_values_arrive_as_they_were(engine: sa.Engine) -> None:
    house = '{"RM": 6.5,\t"name": "Tür \\u00e9 \\"\\\\\\n' + "'%s%(x)s?:a" + '"}'
    line = record("1.0", low=None, high=None, request_id="r\\1", price=24.123456789, time_us=5)
    line = line.rpartition(b"\t")[0] + b"\t" + house.encode()
    assert insert(engine, [prediction_log._eleven(line)]) == 1
    (row,) = read_page(engine).rows
    assert (row.price, row.low, row.high, row.actual) == (24.123456789, None, None, None)
    assert row.time == datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC)
    assert (row.model_version, row.request_id) == ("1.0", "r\\1")
    assert row.features == json.loads(house)


def test_a_record_is_stored_once(engine: sa.Engine) -> None:
    records = [record() for _ in range(250)]
    assert insert(engine, records[:120]) == 120
    assert insert(engine, [*records, records[0]]) == 130
    once(engine, set(map(id_of, records)))


BAD = {
    "no json": record(features="{'a': 1}"),
    "no features": record(features=""),
    "no number": record(price="dear"),
    "no time": record(time_us="today"),
    "too late": record(time_us=10**30),
    "no text": record().replace(b"CRIM", b"\xff\xfe"),
    "a null byte": record(features='{"a": "\0"}'),
}


def test_bad_records_are_quarantined_and_stop_nothing(
    url: str, start: Callable[..., PredictionLog], caplog: pytest.LogCaptureFixture
) -> None:
    log = start(url)
    good = [record() for _ in range(60)]
    mixed = [*good[:20], *BAD.values(), *good[20:], b"three\tfields\tonly"]
    log.journal.append_many(mixed)
    assert log.flush(30)
    once(log.engine, set(map(id_of, good)))
    lines = (log.journal.folder / "refused.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == len(BAD) + 1 == log.state.quarantined
    assert all(entry["reason"] and entry["time"] for entry in entries)
    texts = {entry["record"] for entry in entries}
    assert {r.decode(errors="backslashreplace") for r in BAD.values()} < texts
    assert log.state.connected and log.state.stored == 60
    assert "refused" in caplog.text
    assert log.close() == (0, 0)


def test_damaged_lines_are_quarantined(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url)
    line = record()
    log.journal._write(b"00000000 garbled\n" + module_frame(line), 2)
    assert log.flush(30)
    once(log.engine, {id_of(line)})
    assert "damaged" in (log.journal.folder / "refused.jsonl").read_text()


def module_frame(line: bytes) -> bytes:
    from housing_mlops.prediction_log.journal import frame

    return frame(line)


def test_a_database_that_refuses_everything_is_to_blame_itself(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url)
    with log.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON predictions BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    ids = append(log, 10)
    until(lambda: not log.state.connected)
    assert log.state.quarantined == 0 and log.state.backlog_rows == 10
    with log.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER no")
    assert log.flush(30)
    once(log.engine, ids)


def test_a_quarantine_that_cannot_be_written_is_waited_for(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url)
    log.journal.folder.mkdir(exist_ok=True)
    in_the_way = log.journal.folder / "refused.jsonl"
    in_the_way.mkdir()
    log.journal.append(BAD["no json"])
    until(lambda: "refused.jsonl" in log.state.error)
    in_the_way.rmdir()
    assert log.flush(30)
    assert log.state.quarantined == 1 and in_the_way.is_file()


def test_a_crash_between_commit_and_bookkeeping_stores_nothing_twice(
    url: str, start: Callable[..., PredictionLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = start(url)
    real, failures = log.journal.done, iter([OSError("just then"), MemoryError()])

    def done(*args: Any) -> None:
        if error := next(failures, None):
            raise error
        real(*args)

    monkeypatch.setattr(log.journal, "done", done)
    ids = append(log, 10)
    assert log.flush(30)
    once(log.engine, ids)
    assert log.state.duplicates >= 10


# faults of the database


class Fault:
    """Something that befalls a SQLite database, and its end."""

    def __init__(self, log: PredictionLog, path: Path):
        self.log, self.path = log, path

    def pragma(self, *statements: str) -> None:
        """Run on every connection that the log opens from now on."""

        def run(connection: Any, _: Any) -> None:
            for statement in statements:
                connection.execute(statement)

        self.listener = run
        sa.event.listen(self.log.engine, "connect", run)
        self.log.engine.dispose()
        self.log._file = None

    def begin(self) -> None: ...

    def end(self) -> None:
        sa.event.remove(self.log.engine, "connect", self.listener)
        self.log.engine.dispose()


class Locked(Fault):
    said = "locked"

    def begin(self) -> None:
        self.holder = sqlite3.connect(self.path, isolation_level=None)
        self.holder.execute("BEGIN EXCLUSIVE")

    def end(self) -> None:
        self.holder.close()


class Full(Fault):
    said = "full"

    def begin(self) -> None:
        self.pragma("PRAGMA max_page_count=1")


class ReadOnly(Fault):
    said = "readonly"

    def begin(self) -> None:
        self.pragma("PRAGMA query_only=ON")


class Gone(Fault):
    said = "unable to open|No such file"

    def begin(self) -> None:
        self.away = self.path.parent.with_name("away")
        self.path.parent.rename(self.away)

    def end(self) -> None:
        self.away.rename(self.path.parent)


@pytest.mark.parametrize("kind", [Locked, Full, ReadOnly, Gone])
def test_a_fault_of_the_database_loses_nothing(
    kind: type[Fault], tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "predictions.db"
    log = start(f"sqlite:///{path}", housekeeping_s=1000)
    ids = append(log, 300)
    assert log.flush(30) and log.state.connected
    fault = kind(log, path)
    fault.begin()
    ids |= append(log, 300)
    until(lambda: not log.state.connected)
    assert any(word in log.state.error for word in fault.said.split("|")), log.state.error  # type: ignore[attr-defined]
    assert log.state.backlog_rows == 300 and log.state.quarantined == 0
    ids |= append(log, 300)
    fault.end()
    assert log.flush(60)
    once(log.engine, ids)
    assert log.state.connected and log.state.error == ""
    assert log.close() == (0, 0)
    assert not list((tmp_path / "journal").iterdir())


def test_a_database_whose_file_is_replaced_is_noticed(
    tmp_path: Path,
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = start(sqlite_url)
    append(log, 3)
    assert log.flush(30)
    for path in tmp_path.glob("predictions.db*"):
        path.unlink()
    ids = append(log, 5)
    assert log.flush(30)
    once(log.engine, ids)

    real, path = module.insert_all, tmp_path / "predictions.db"
    for file in tmp_path.glob("predictions.db*"):
        file.unlink()
    until(path.exists)  # made again, with no record to store
    until(lambda: log.state.connected)

    def replaced_meanwhile(*args: Any) -> Any:
        result = real(*args)
        if args[1]:
            monkeypatch.setattr(module, "insert_all", real)
            path.rename(tmp_path / "old.db")
            for extra in tmp_path.glob("predictions.db-*"):
                extra.unlink()
        return result

    monkeypatch.setattr(module, "insert_all", replaced_meanwhile)
    ids = append(log, 7)
    assert log.flush(30)
    once(log.engine, ids)


def test_a_database_that_is_away_at_the_start(
    tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    log = start(f"sqlite:///{tmp_path}/later/predictions.db")
    ids = append(log, 10)
    assert not log.state.connected and log.state.error
    with pytest.raises(LogUnavailable, match="does not answer"):
        log.page()
    with pytest.raises(LogUnavailable):
        log.feedback(next(iter(ids)), 22.0)
    assert not log.flush(0.01)
    assert log.close(0).rows == 10
    (tmp_path / "later").mkdir()
    heir = start(f"sqlite:///{tmp_path}/later/predictions.db")
    until(lambda: heir.state.replayed == 10)
    once(heir.engine, ids)


def test_a_database_of_a_later_version_is_left_alone(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    engine = connect(sqlite_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE housing_alembic_version SET version_num = '9999'")
    log = start(sqlite_url)
    ids = append(log, 3)
    assert "9999" in log.state.error
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE housing_alembic_version SET version_num = '0001'")
    assert log.flush(60)
    once(engine, ids)
    engine.dispose()


def test_postgresql_stops_and_starts(postgres: Any, start: Callable[..., PredictionLog]) -> None:
    log = start(postgres.make(next(names)))
    ids = append(log, 200)
    assert log.flush(30)
    seen: list[str] = []

    def outage() -> None:
        postgres.stop()
        try:
            until(lambda: not log.state.connected)
            log.page()
        except LogUnavailable as error:
            seen.append(str(error))
        time.sleep(2)
        postgres.start()

    thread = threading.Thread(target=outage)
    thread.start()
    while thread.is_alive():
        ids |= append(log, 20)
        time.sleep(0.01)
    thread.join()
    assert len(seen) == 1 and "does not answer" in seen[0]
    assert log.flush(60)
    once(log.engine, ids)
    assert log.state.connected and log.state.quarantined == 0


def test_an_outage_is_seen_without_traffic(
    postgres: Any, start: Callable[..., PredictionLog]
) -> None:
    log = start(postgres.make(next(names)))
    until(lambda: log.state.connected)
    postgres.stop()
    until(lambda: not log.state.connected)
    postgres.start()
    until(lambda: log.state.connected)


def test_a_call_that_does_not_return_is_seen_and_does_not_hold_up_the_end(
    sqlite_url: str, start: Callable[..., PredictionLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = start(sqlite_url)
    let_go, inside = threading.Event(), threading.Event()

    def hang(*_: Any) -> Any:
        inside.set()
        let_go.wait(60)
        raise OSError("at last")

    monkeypatch.setattr(module, "insert_all", hang)
    append(log, 1)
    assert inside.wait(30)
    log._begun -= 10
    assert "does not return" in log.state.error and not log.state.connected
    monkeypatch.setattr(log._thread, "join", lambda _: None)
    assert log.close(0).rows == 1
    monkeypatch.undo()
    let_go.set()
    log._thread.join()


# several processes, and their ends

WORKS = """
import os, signal, sys, time, json
from pathlib import Path
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.record import Record, encode_record, new_id

url, folder, how = sys.argv[1:]
log = PredictionLog(url, Path(folder), interval_s=0.01).start(30)
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
if how == "dies at the commit":
    log.journal.done = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
while not ended:
    made = new_id()
    log.journal.append(encode_record(Record(made, time.time_ns() // 1000, "housing", "1", 22.5, None, None, 0.2, "/predict", "", "{}")))
    sys.stdout.write(made + "\\n")
    sys.stdout.flush()
sys.exit(log.close(60).rows)
"""


def work(url: str, folder: Path, how: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKS, url, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(child: subprocess.Popen[str]) -> set[str]:
    return {line for line in child.communicate()[0].splitlines() if len(line) == 36}


def read_some(child: subprocess.Popen[str], n: int) -> set[str]:
    assert child.stdout
    return {child.stdout.readline().strip() for _ in range(n)}


def test_two_processes_one_killed_and_one_ended(
    url: str, tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    folder = tmp_path / "journal"
    killed, ended = work(url, folder), work(url, folder)
    accepted = read_some(killed, 500) | read_some(ended, 500)
    killed.send_signal(signal.SIGKILL)
    ended.send_signal(signal.SIGTERM)
    of_ended = said(ended)
    accepted |= of_ended | said(killed)
    assert ended.returncode == 0
    engine = connect(url)
    assert of_ended <= set(stored(engine))  # before any restart
    engine.dispose()
    heir = start(url)
    until(lambda: not list(folder.glob("*.lock")))
    found = stored(heir.engine)
    assert len(found) == len(set(found)) and accepted <= set(found)
    assert heir.close() == (0, 0)


def test_a_process_that_dies_between_commit_and_bookkeeping(
    url: str, tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    child = work(url, tmp_path / "journal", "dies at the commit")
    accepted = said(child)
    assert child.returncode == -signal.SIGKILL
    heir = start(url)
    until(lambda: not list((tmp_path / "journal").glob("*.lock")))
    found = stored(heir.engine)
    assert len(found) == len(set(found)) and accepted <= set(found)
    assert heir.state.duplicates > 0


def test_a_process_that_dies_is_followed_by_one_that_runs(
    sqlite_url: str, tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    survivor = start(sqlite_url)
    ids = append(survivor, 5)
    other = Journal(tmp_path / "journal")
    lines = [record() for _ in range(5)]
    other.append_many(lines)
    assert survivor.flush(30)
    once(survivor.engine, ids)
    for owner in other.owners:
        os.close(owner.lock)
    until(lambda: survivor.state.replayed == 5)
    once(survivor.engine, ids | set(map(id_of, lines)))
    until(lambda: len(survivor.journal.owners) == 1)


def test_a_folder_that_cannot_be_read_stops_nothing(
    tmp_path: Path,
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "journal").write_text("in the way")
    log = start(sqlite_url)
    until(lambda: "cannot be read" in caplog.text)
    assert log.state.connected
    (tmp_path / "journal").unlink()
    ids = append(log, 3)
    assert log.flush(30)
    once(log.engine, ids)


def test_a_clock_that_jumps_back(sqlite_url: str, start: Callable[..., PredictionLog]) -> None:
    log = start(sqlite_url)
    now = time.time_ns() // 1000
    lines = [record(time_us=now + jump) for jump in (0, 1, -3_600_000_000, -3_599_999_999, 2)]
    for line in lines:
        log.journal.append(line)
    assert log.flush(30)
    first = log.page(limit=2)
    seen = [*first.rows, *log.page(first.next).rows]
    assert [r.id for r in seen] == [id_of(lines[i]) for i in (4, 1, 0, 3, 2)]


# retention


@pytest.mark.parametrize("bound", [{"retention_rows": 100}, {"retention_days": 1}])
def test_old_predictions_go(
    url: str, start: Callable[..., PredictionLog], bound: dict[str, float]
) -> None:
    engine = connect(url)
    migrate(engine)
    now = time.time_ns() // 1000
    old = [record(time_us=now - 2 * 86_400_000_000 + i) for i in range(2500)]
    insert(engine, old)
    save_feedback(engine, id_of(old[0]), 20.0)
    engine.dispose()
    log = start(url, **bound)
    ids = append(log, 100)
    assert log.flush(30)
    until(lambda: len(stored(log.engine)) == 100)
    once(log.engine, ids)
    with log.engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(history.feedback)) == 0


def test_nothing_goes_unless_asked(engine: sa.Engine) -> None:
    insert(engine, [record(time_us=0)])
    assert delete_old(engine) == 0
    assert delete_old(engine, rows=1) == 0


# ground truth


def test_feedback(engine: sa.Engine) -> None:
    line = record()
    insert(engine, [line])
    made = id_of(line)
    at = datetime(2026, 5, 1, 12)
    assert save_feedback(engine, made, 21.0, at) == "stored"
    assert save_feedback(engine, made, 21.0) == "unchanged"
    with pytest.raises(FeedbackConflict, match="replace"):
        save_feedback(engine, made, 22.0)
    assert save_feedback(engine, made, 22.0, at.replace(tzinfo=UTC), replace=True) == "replaced"
    with pytest.raises(UnknownPrediction, match="No prediction"):
        save_feedback(engine, "nonsense", 22.0)
    assert read_page(engine).rows[0].actual == 22.0
    with engine.begin() as connection:
        time_us = connection.scalar(sa.select(history.feedback.c.time_us))
    assert time_us == at.replace(tzinfo=UTC).timestamp() * 1e6


def test_feedback_reported_by_several_at_once_is_stored_once(engine: sa.Engine) -> None:
    line = record()
    insert(engine, [line])
    results: list[str] = []

    def report(price: float) -> None:
        try:
            results.append(save_feedback(engine, id_of(line), price))
        except HousingError as error:
            results.append(type(error).__name__)

    threads = [threading.Thread(target=report, args=[p]) for p in (20.0, 20.0, 20.0, 21.0)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results.count("stored") == 1
    assert set(results) <= {"stored", "unchanged", "FeedbackConflict"}


def test_feedback_waits_for_the_one_that_is_reporting(postgres: Any) -> None:
    engine = connect(postgres.make(next(names)))
    migrate(engine)
    line = record()
    insert(engine, [line])
    results: list[str] = []
    report = threading.Thread(
        target=lambda: results.append(save_feedback(engine, id_of(line), 20.0))
    )
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with engine.begin() as connection:
        connection.execute(sa.select(predictions.c.id).with_for_update())
        row = {"prediction_id": id_of(line), "price": 20.0, "time_us": 0, "reported_us": 0}
        connection.execute(history.feedback.insert().values(row))
        report.start()
        # each look in a transaction of its own: PostgreSQL shows one the same activity throughout
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
            until(lambda: other.exec_driver_sql(waiting).scalar())
    report.join()
    assert results == ["unchanged"]
    engine.dispose()


def test_feedback_for_a_prediction_that_is_on_its_way(
    sqlite_url: str, tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url, interval_s=0.3)
    line = record()
    log.journal.append(line)
    assert log.feedback(id_of(line), 20.0, wait_s=30) == "stored"
    other = start(sqlite_url)  # another worker, asked about this one's prediction
    line = record()
    log.journal.append(line)
    assert other.feedback(id_of(line), 20.0, wait_s=30) == "stored"
    with pytest.raises(UnknownPrediction):
        log.feedback(new_id(), 20.0, wait_s=0.05)
    log._stop_at = 0
    log._wake.set()
    log._thread.join()
    line = record()
    log.journal.append(line)  # and nobody to carry it
    with pytest.raises(LogUnavailable, match="behind"):
        log.feedback(id_of(line), 20.0, wait_s=0)


def test_live_error_is_what_pandas_says(engine: sa.Engine) -> None:
    rng = np.random.default_rng(0)
    now = time.time_ns() // 1000
    rows = []
    for i in range(400):
        price = float(rng.normal(22, 9))
        has = i % 3 > 0
        rows.append(
            {
                "id": new_id(),
                "time_us": now - (400 - i) * 1_000_000,
                "model": "housing" if i % 2 else "other",
                "model_version": str(i % 5),
                "price": price,
                "low": price - 4 if has else None,
                "high": price + 4 if has else None,
                "actual": price + float(rng.normal(1, 4)) if i % 7 else None,
            }
        )
    fields = [{k: v for k, v in row.items() if k != "actual"} for row in rows]
    insert(engine, [record(**values) for values in fields])
    for row in rows:
        if row["actual"] is not None:
            save_feedback(engine, str(row["id"]), float(str(row["actual"])))
    frame = pd.DataFrame(rows).dropna(subset="actual")

    def check(frame: pd.DataFrame, **filters: Any) -> None:
        groups = frame.groupby(["model", "model_version"])
        found = live_error(engine, **filters)
        assert len(found) == len(groups)
        for row in found:
            part = groups.get_group((row.model, row.model_version))
            error = part.price - part.actual
            inside = part.actual.between(part.low, part.high)[part.low.notna()]
            expected = [len(part), error.abs().mean(), (error**2).mean() ** 0.5, error.mean()]
            assert np.allclose(row[2:6], expected, rtol=1e-9)
            assert row.within == pytest.approx(inside.mean())

    check(frame)
    check(frame[frame.model_version == "3"], version="3")
    check(frame.groupby(["model", "model_version"]).tail(10), n=10)
    since = datetime.fromtimestamp(now / 1e6, UTC) - timedelta(seconds=100)
    check(frame[frame.time_us >= history.to_us(since)], since=since)
    assert live_error(engine, version="none") == []


# reading


def test_traffic_over_time_is_what_pandas_says(engine: sa.Engine) -> None:
    rng, now = np.random.default_rng(3), time.time_ns() // 1000
    times = now - (rng.random(400) * 7200e6).astype(int)  # half of them before the hour
    frame = pd.DataFrame({"at": times, "ms": rng.lognormal(size=400), "price": rng.random(400)})
    frame["version"] = rng.choice(["1", "2"], 400)
    rows = frame.itertuples()
    insert(
        engine,
        [
            encode_record(
                Record(
                    new_id(), int(r.at), "m", r.version, r.price, None, None, r.ms, "/", "", HOUSE
                )
            )
            for r in rows
        ],
    )
    for version in (None, "2"):
        told = traffic_over_time(engine, 60, 12, version)
        assert len(told) == 12 and told[-1].time <= datetime.now(UTC)
        assert {b.time - a.time for a, b in itertools.pairwise(told)} == {timedelta(minutes=5)}
        for one in told:
            begin = int(one.time.timestamp() * 1e6)
            inside = frame[(frame["at"] >= begin) & (frame["at"] < begin + 300 * 10**6)]
            if version:
                inside = inside[inside["version"] == version]
            assert one.count == len(inside)
            if inside.empty:  # the present slice may have just begun
                assert one.mean_ms is None and one.p95_ms is None
                continue
            assert one.mean_ms == pytest.approx(inside["ms"].mean())
            p95 = inside["ms"].quantile(0.95, interpolation="higher")
            assert inside["ms"].quantile(0.9, interpolation="lower") <= one.p95_ms <= p95
            assert one.max_ms == pytest.approx(inside["ms"].max())
            assert one.mean_price == pytest.approx(inside["price"].mean())
    assert sum(s.count for s in traffic_over_time(engine, 60, version="none")) == 0
    assert traffic_over_time(engine, 60, version="none")[0].p95_ms is None


def test_pages_show_every_row_once_while_others_arrive(engine: sa.Engine) -> None:
    lines = [record(str(i % 2), time_us=1000 + i // 7) for i in range(100)]
    insert(engine, lines)
    seen, cursor = [], None
    while True:
        page = read_page(engine, cursor, limit=9)
        seen += page.rows
        insert(engine, [record("new", time_us=2000)])
        if (cursor := page.next) is None:
            break
    times = [r.time for r in seen]
    assert times == sorted(times, reverse=True)
    assert sorted(r.id for r in seen) == sorted(map(id_of, lines))
    assert len(read_page(engine, version="1").rows) == 50
    assert read_page(engine, limit=50, version="0").next is None


def test_a_window_of_rows_that_do_not_fit(engine: sa.Engine, tmp_path: Path) -> None:
    dataset = _with_category()
    houses: list[object] = [
        {"rooms": 3, "area": 71.5, "town": "Lynn"},
        {"rooms": None, "area": "large", "town": 7},
        {"rooms": True},
        [1, 2],
    ]
    insert(engine, [record(features=json.dumps(house)) for house in houses])
    window = read_window(engine, dataset, n=100)
    assert len(window) == 4
    nan = np.nan
    assert np.array_equal(
        window.numbers, [[3, 71.5], [nan, nan], [nan, nan], [nan, nan]], equal_nan=True
    )
    assert window.categories.tolist() == [["Lynn"], [None], [None], [None]]
    assert np.isnan(window.actual).all()
    assert window.times.dtype == "datetime64[us]" and window.versions == ["1"] * 4
    assert len(read_window(engine, dataset, n=None, version="2")) == 0


def _with_category() -> Dataset:
    return Dataset.model_validate(
        {
            "format": 1,
            "name": "flats",
            "title": "Flats",
            "source": {},
            "target": {"name": "rent", "unit": "EUR"},
            "features": [
                {"name": "town", "type": "category", "categories": ["Lynn"], "example": "Lynn"},
                {"name": "rooms", "example": 3},
                {"name": "area", "example": 70},
            ],
        }
    )


def test_good_records_among_an_outage_are_not_refused(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    with pytest.raises(sa.exc.OperationalError):  # no table yet
        insert_all(engine, [record()])
    assert not history._is_sound(engine)
    engine.dispose()
