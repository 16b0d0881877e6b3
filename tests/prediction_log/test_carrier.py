"""From the journal into the database while something is wrong with either: nothing is lost."""

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, id_of, once, record

from housing_mlops.prediction_log import insertion
from housing_mlops.prediction_log.database import connect
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import LogUnavailable

# records that no database takes

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
    assert {r.decode(errors="surrogateescape") for r in BAD.values()} < texts
    assert log.state.connected and log.state.stored == 60
    assert "refused" in caplog.text
    assert log.close() == (0, 0)


def test_a_body_with_tabs_and_line_ends_is_a_record_like_any_other(
    url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(url)
    line = b"\t".join([*record().split(b"\t")[:10], b'{\n\t"RM":\t6.5\r\n}', b"shop"])
    log.journal.append_many([record(), line, record()])
    assert log.flush(30)
    rows = {row.id: row for row in read_page(log.engine).rows}
    assert len(rows) == 3 and rows[id_of(line)].features == {"RM": 6.5}
    assert rows[id_of(line)].client == "shop"
    assert log.state.quarantined == 0


def test_damaged_lines_are_quarantined(
    sqlite_url: str, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    log = PredictionLog(sqlite_url, folder)
    garbled, line = record(), record()
    log.journal.append_many([garbled, line])
    (path,) = folder.glob("*.journal")
    data = path.read_bytes().replace(garbled[-20:], b"?" * 20, 1)
    path.write_bytes(data)  # the same file, still open
    log.start(30)
    assert log.flush(30)
    once(log.engine, {id_of(line)})
    assert log.state.quarantined == 1
    assert "damaged" in (folder / "refused.jsonl").read_text()
    assert log.close() == (0, 0)


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
    log.journal.append_many([BAD["no json"]])
    until(lambda: "refused.jsonl" in log.state.error)
    in_the_way.rmdir()
    assert log.flush(30)
    assert log.state.quarantined == 1 and in_the_way.is_file()


def test_a_crash_between_commit_and_bookkeeping_stores_nothing_twice(
    url: str, start: Callable[..., PredictionLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = start(url)
    real, failures = log.reader.commit, iter([OSError("just then"), MemoryError()])

    def commit(*args: Any) -> None:
        if error := next(failures, None):
            raise error
        real(*args)

    monkeypatch.setattr(log.reader, "commit", commit)
    ids = append(log, 10)
    assert log.flush(30)
    once(log.engine, ids)
    assert log.state.duplicates >= 10


# faults of the database


class Fault:
    """Something that befalls a SQLite database, and its end."""

    words: str  # of the error that it makes, any of those between bars

    def __init__(self, log: PredictionLog, path: Path):
        self.log, self.path = log, path

    def pragma(self, *statements: str) -> None:
        """Run on every connection that the log opens from now on."""

        def run(connection: Any, _: Any) -> None:
            for statement in statements:
                connection.execute(statement)

        self.listener = run
        sa.event.listen(self.log.database.writer, "connect", run)
        self.log.database.close()
        self.log.database.forget()

    def begin(self) -> None: ...

    def end(self) -> None:
        sa.event.remove(self.log.database.writer, "connect", self.listener)
        self.log.database.close()


class Locked(Fault):
    words = "locked"

    def begin(self) -> None:
        self.holder = sqlite3.connect(self.path, isolation_level=None)
        self.holder.execute("BEGIN EXCLUSIVE")

    def end(self) -> None:
        self.holder.close()


class Full(Fault):
    words = "full"

    def begin(self) -> None:
        self.pragma("PRAGMA max_page_count=1")


class ReadOnly(Fault):
    words = "readonly"

    def begin(self) -> None:
        self.pragma("PRAGMA query_only=ON")


class Gone(Fault):
    words = "unable to open|No such file"

    def begin(self) -> None:
        self.away = self.path.parent.with_name("away")
        self.path.parent.rename(self.away)

    def end(self) -> None:
        self.away.rename(self.path.parent)


@pytest.mark.parametrize("kind", [Locked, Full, ReadOnly, Gone])
def test_a_fault_of_the_database_loses_nothing(
    kind: type[Fault], tmp_path: Path, folder: Path, start: Callable[..., PredictionLog]
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
    assert any(word in log.state.error for word in fault.words.split("|")), log.state.error
    assert log.state.backlog_rows == 300 and log.state.quarantined == 0
    ids |= append(log, 300)
    fault.end()
    assert log.flush(60)
    once(log.engine, ids)
    assert log.state.connected and log.state.error == ""
    assert log.close() == (0, 0)
    assert not list(folder.iterdir())


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

    real, path = insertion.insert_all, tmp_path / "predictions.db"
    for file in tmp_path.glob("predictions.db*"):
        file.unlink()
    until(path.exists)  # made again, with no record to store
    until(lambda: log.state.connected)

    def replaced_meanwhile(*args: Any) -> Any:
        result = real(*args)
        if args[1]:
            monkeypatch.setattr(insertion, "insert_all", real)
            path.rename(tmp_path / "old.db")
            for extra in tmp_path.glob("predictions.db-*"):
                extra.unlink()
        return result

    monkeypatch.setattr(insertion, "insert_all", replaced_meanwhile)
    ids = append(log, 7)
    assert log.flush(30)
    until(path.exists)
    until(lambda: log.state.connected)
    engine = connect(sqlite_url)  # a connection of the log's may still lead to the old file
    once(engine, ids)
    engine.dispose()


@pytest.mark.database
def test_postgresql_stops_and_starts(
    postgres: Any, postgres_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(postgres_url)
    ids = append(log, 200)
    assert log.flush(30)
    seen: list[str] = []
    over = threading.Event()

    def outage() -> None:
        postgres.stop()
        try:
            until(lambda: not log.state.connected)
            read_page(log.engine)
        except LogUnavailable as error:
            seen.append(str(error))
        over.wait(2)
        postgres.start()

    thread = threading.Thread(target=outage)
    thread.start()
    while thread.is_alive():
        ids |= append(log, 20)
        over.wait(0.01)
    thread.join()
    assert len(seen) == 1 and "does not answer" in seen[0]
    assert log.flush(60)
    once(log.engine, ids)
    assert log.state.connected and log.state.quarantined == 0


@pytest.mark.database
def test_an_outage_is_seen_without_traffic(
    postgres: Any, postgres_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(postgres_url)
    until(lambda: log.state.connected)
    postgres.stop()
    until(lambda: not log.state.connected)
    postgres.start()
    until(lambda: log.state.connected)


def test_a_call_that_does_not_return_is_seen_and_does_not_hold_up_the_end(
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = start(sqlite_url, stall_s=0.1)
    let_go, inside = threading.Event(), threading.Event()

    def hang(*_: Any) -> Any:
        inside.set()
        let_go.wait(60)
        raise OSError("at last")

    with monkeypatch.context() as patched:
        patched.setattr(insertion, "insert_all", hang)
        append(log, 1)
        assert inside.wait(30)
        until(lambda: "does not return" in log.state.error)
        assert not log.state.connected
        assert log.close(0, grace_s=0.1).rows == 1
        assert "still does not answer" in caplog.text
        assert list(log.journal.folder.glob("*.journal"))
    let_go.set()
    assert log.thread.stop(0, grace_s=30)
