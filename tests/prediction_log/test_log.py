"""A log as a server has it: its start and its end, feedback, retention, several processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, id_of, once, opened, record, stored

from housing_mlops.config import ConfigError
from housing_mlops.prediction_log.database import connect, feedback, migrate, save_feedback
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.log import PredictionLog, take_feedback
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import LogUnavailable, UnknownPrediction, new_id

# a start without a database


def test_a_database_that_is_away_at_the_start(
    tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    log = start(f"sqlite:///{tmp_path}/later/predictions.db")
    ids = append(log, 10)
    assert not log.state.connected and log.state.error
    with pytest.raises(LogUnavailable, match="does not answer"):
        read_page(log.engine)
    with pytest.raises(LogUnavailable):
        take_feedback(log, next(iter(ids)), 22.0)
    assert not log.flush(0.01)
    assert log.close(0).rows == 10
    (tmp_path / "later").mkdir()
    heir = start(f"sqlite:///{tmp_path}/later/predictions.db")
    until(lambda: heir.state.replayed == 10)
    once(heir.engine, ids)


def test_a_url_that_is_none_is_an_outage_and_stops_no_price(folder: Path) -> None:
    log = PredictionLog("no url", folder).start(30)
    append(log, 2)
    assert "HOUSING_DATABASE_URL" in log.state.error
    with pytest.raises(ConfigError):
        read_page(log.engine)
    assert log.close(0).rows == 2


def test_a_database_of_a_later_version_is_left_alone(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    engine = connect(sqlite_url)
    migrate(engine)
    with engine.begin() as connection:
        newest = connection.scalar(sa.text("SELECT version_num FROM housing_alembic_version"))
        connection.exec_driver_sql("UPDATE housing_alembic_version SET version_num = '9999'")
    log = start(sqlite_url)
    ids = append(log, 3)
    assert "9999" in log.state.error
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE housing_alembic_version SET version_num = '{newest}'")
    assert log.flush(60)
    once(engine, ids)
    engine.dispose()


def test_a_folder_that_cannot_be_read_stops_nothing(
    folder: Path,
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder.write_text("in the way")
    log = start(sqlite_url)
    until(lambda: "cannot be read" in caplog.text)
    assert log.state.connected
    folder.unlink()
    ids = append(log, 3)
    assert log.flush(30)
    once(log.engine, ids)


def test_a_clock_that_jumps_back(sqlite_url: str, start: Callable[..., PredictionLog]) -> None:
    log = start(sqlite_url)
    now = time.time_ns() // 1000
    lines = [record(time_us=now + jump) for jump in (0, 1, -3_600_000_000, -3_599_999_999, 2)]
    for line in lines:
        log.journal.append_many([line])
    assert log.flush(30)
    first = read_page(log.engine, limit=2)
    seen = [*first.rows, *read_page(log.engine, first.next).rows]
    assert [r.id for r in seen] == [id_of(lines[i]) for i in (4, 1, 0, 3, 2)]


# feedback and retention


def test_feedback_for_a_prediction_that_is_on_its_way(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url, interval_s=0.3)
    line = record()
    log.journal.append_many([line])
    assert take_feedback(log, id_of(line), 20.0, wait_s=30) == "stored"
    other = start(sqlite_url)  # another worker, asked about this one's prediction
    line = record()
    log.journal.append_many([line])
    assert take_feedback(other, id_of(line), 20.0, wait_s=30) == "stored"
    with pytest.raises(UnknownPrediction):
        take_feedback(log, new_id(), 20.0, wait_s=0.05)
    assert log.thread.stop(0, grace_s=60)
    line = record()
    log.journal.append_many([line])  # and nobody to carry it
    with pytest.raises(LogUnavailable, match="behind"):
        take_feedback(log, id_of(line), 20.0, wait_s=0)


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
    log = start(url, **bound, retention_share=1)
    ids = append(log, 100)
    assert log.flush(30)
    until(lambda: len(stored(log.engine)) == 100)
    once(log.engine, ids)
    with log.engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(feedback)) == 0


# several processes, and their ends

WORKS = """
import os, signal, sys, time
from pathlib import Path
from housing_mlops.prediction_log.log import LogOptions, PredictionLog
from housing_mlops.prediction_log.record import Record, encode_record, new_id

url, folder, how = sys.argv[1:]
log = PredictionLog(url, Path(folder), LogOptions(interval_s=0.01)).start(30)
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
if how == "dies at the commit":
    log.reader.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
while not ended:
    made = new_id()
    record = Record(made, time.time_ns() // 1000, "housing", "1", 22.5, None, None, 0.2, "/predict", "", "{}")
    log.journal.append_many([encode_record(record)])
    sys.stdout.write(made + "\\n")
    sys.stdout.flush()
sys.exit(log.close(60).rows)
"""


def work(url: str, folder: Path, how: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKS, url, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rest_of(child: subprocess.Popen[str]) -> set[str]:
    """The ids that `child` printed wholly before its end."""
    return {line for line in child.communicate()[0].splitlines() if len(line) == 36}


def read_some(child: subprocess.Popen[str], n: int) -> set[str]:
    assert child.stdout
    return {child.stdout.readline().strip() for _ in range(n)}


@pytest.mark.process
def test_two_processes_one_killed_and_one_ended(
    url: str, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    killed, ended = work(url, folder), work(url, folder)
    accepted = read_some(killed, 500) | read_some(ended, 500)
    killed.send_signal(signal.SIGKILL)
    ended.send_signal(signal.SIGTERM)
    of_ended = rest_of(ended)
    accepted |= of_ended | rest_of(killed)
    assert ended.returncode == 0
    engine = connect(url)
    assert of_ended <= set(stored(engine))  # before any restart
    engine.dispose()
    heir = start(url)
    until(lambda: not list(folder.glob("*.lock")))
    found = stored(heir.engine)
    assert len(found) == len(set(found)) and accepted <= set(found)
    assert heir.close() == (0, 0)


@pytest.mark.process
def test_a_process_that_dies_between_commit_and_bookkeeping(
    url: str, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    child = work(url, folder, "dies at the commit")
    accepted = rest_of(child)
    assert child.returncode == -signal.SIGKILL
    heir = start(url)
    until(lambda: not list(folder.glob("*.lock")))
    found = stored(heir.engine)
    assert len(found) == len(set(found)) and accepted <= set(found)
    assert heir.state.duplicates > 0


def test_a_process_that_dies_is_followed_by_one_that_runs(
    sqlite_url: str, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    survivor = start(sqlite_url)
    ids = append(survivor, 5)
    other, reader = opened(folder)
    lines = [record() for _ in range(5)]
    other.append_many(lines)
    assert survivor.flush(30)
    once(survivor.engine, ids)
    for writer in reader.writers:
        os.close(writer.lock)
    until(lambda: survivor.state.replayed == 5)
    once(survivor.engine, ids | set(map(id_of, lines)))
    until(lambda: len(survivor.reader.writers) == 1)
