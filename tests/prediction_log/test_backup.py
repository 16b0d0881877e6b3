"""Copies of a log with data in it, restored, and brought from one form to another and back."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, id_of, once, record, stored

from housing_mlops.prediction_log.backup import BackupError, back_up, restore
from housing_mlops.prediction_log.database import (
    NewerDatabase,
    connect,
    downgrade,
    migrate,
    progress,
    save_feedback,
    traffic,
)
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.queries import live_error


def filled(engine: sa.Engine, n: int = 300) -> set[str]:
    """The ids of n new predictions, stored, every third of them with its actual price."""
    lines = [record(str(i % 2), price=20.0 + i % 7) for i in range(n)]
    insert(engine, lines)
    for line in lines[::3]:
        save_feedback(engine, id_of(line), 21.0)
    return set(map(id_of, lines))


def told(engine: sa.Engine) -> tuple[Any, ...]:
    """What is computed from the log; sums are the same to a rounding."""
    with engine.begin() as connection:
        sums = connection.execute(sa.select(traffic).order_by(*traffic.primary_key)).all()
    rounded = [
        [round(value, 6) if isinstance(value, float) else value for value in row] for row in sums
    ]
    return live_error(engine), live_error(engine, n=20), rounded


def test_a_copy_is_what_was_there(engine: sa.Engine, tmp_path: Path) -> None:
    ids = filled(engine)
    before, copy = told(engine), tmp_path / "log.copy"
    back_up(engine, copy)
    filled(engine)
    assert len(stored(engine)) == 600
    with pytest.raises(BackupError, match=r"600 predictions.*--replace"):
        restore(engine, copy)
    assert restore(engine, copy, replace=True) == 300
    once(engine, ids)
    assert told(engine) == before
    assert filled(engine, 5) and len(stored(engine)) == 305
    assert not list(tmp_path.glob(".*")), "what was in the making is gone"


def test_a_copy_fills_another_database(
    engine: sa.Engine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ids = filled(engine)
    back_up(engine, tmp_path / "log.copy")
    kind = engine.dialect.name
    url = f"sqlite:///{tmp_path}/other.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").make("restored")
    other = connect(url)
    assert restore(other, tmp_path / "log.copy") == 300
    once(other, ids)
    assert told(other) == told(engine)
    other.dispose()


def test_a_server_goes_on_while_it_is_copied_and_restored(
    url: str, tmp_path: Path, start: Any
) -> None:
    log: PredictionLog = start(url)
    append(log, 50)
    assert log.flush(30)
    over = threading.Event()

    def press() -> None:
        while not over.wait(0.001):
            append(log, 1)

    engine, thread = connect(url), threading.Thread(target=press)
    thread.start()
    try:
        until(lambda: len(stored(engine)) > 200)
        back_up(engine, tmp_path / "log.copy")
        restored = restore(engine, tmp_path / "log.copy", replace=True)
        assert restored > 200
    finally:
        over.set()
        thread.join()
    assert log.flush(30)
    ids = append(log, 20)
    assert log.flush(30)
    assert ids < set(stored(engine)) and log.state.connected
    engine.dispose()


@pytest.mark.fault
def test_a_copy_of_a_later_version_is_refused_before_anything_is_touched(
    sqlite_url: str, tmp_path: Path
) -> None:
    engine = connect(sqlite_url)
    migrate(engine)
    ids = filled(engine)
    back_up(engine, tmp_path / "log.copy")
    with sqlite3.connect(tmp_path / "log.copy") as copy:
        copy.execute("UPDATE housing_alembic_version SET version_num = '9999'")
    copy.close()
    with pytest.raises(NewerDatabase, match="9999"):
        restore(engine, tmp_path / "log.copy", replace=True)
    once(engine, ids)
    engine.dispose()


@pytest.mark.fault
@pytest.mark.database
def test_without_its_tools_the_command_is_told(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(postgres_url)
    migrate(engine)
    (tmp_path / "log.copy").write_bytes(b"no copy")
    with pytest.raises(BackupError, match="pg_restore failed"):
        restore(engine, tmp_path / "log.copy")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match=r"not on the PATH.*pg_dump --dbname=postgresql://"):
        back_up(engine, tmp_path / "other.copy")
    assert [p.name for p in tmp_path.iterdir()] == ["log.copy"]
    engine.dispose()


def test_down_and_up_again_loses_nothing(engine: sa.Engine) -> None:
    ids = filled(engine)
    before = told(engine)
    downgrade(engine, "0001")
    once(engine, ids)
    with engine.execution_options(writing=True).begin() as connection:  # as the former version does
        values = "price, time_us, reported_us) SELECT id, 21.0, 0, 0 FROM predictions"
        new = "WHERE id NOT IN (SELECT prediction_id FROM feedback)"
        connection.exec_driver_sql(f"INSERT INTO feedback (prediction_id, {values} {new}")
    migrate(engine)
    after = told(engine)
    assert after[2:] == before[2:], "the traffic is counted anew"
    assert sum(row.n for row in after[0]) == 300


@pytest.mark.fault
def test_an_upgrade_that_is_broken_off_goes_on(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from housing_mlops.prediction_log import database

    filled(engine)
    before = told(engine)
    downgrade(engine, "0001")
    monkeypatch.setattr(database, "_STEP", 40)
    real, steps = database.fill_step, iter(range(6))

    def dies(engine: sa.Engine) -> str:
        if next(steps, None) is None:
            raise MemoryError("killed")
        return real(engine)

    with monkeypatch.context() as patched:
        patched.setattr(database, "fill_step", dies)
        with pytest.raises(MemoryError):
            migrate(engine)
    with engine.begin() as connection:
        assert connection.execute(sa.select(progress)).all(), "it is noted how far it came"
    migrate(engine)
    assert told(engine) == before
    with engine.begin() as connection:
        assert not connection.execute(sa.select(progress)).all()
