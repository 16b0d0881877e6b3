"""No call to a database outlasts its limit, whatever the database does."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, once

from housing_mlops.prediction_log.database import connect, migrate, reach
from housing_mlops.prediction_log.deadlines import cut_off
from housing_mlops.prediction_log.insertion import insert_all
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.queries import live_error, read_page
from housing_mlops.prediction_log.record import LogUnavailable

ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n",
    "postgresql": "SELECT pg_sleep(3600)",
}


@pytest.fixture
def stopped(postgres: Any) -> Iterator[Callable[[], None]]:
    """Stops every process of PostgreSQL where it stands; they go on after the test."""
    yield lambda: postgres.signal(signal.SIGSTOP)
    postgres.signal(signal.SIGCONT)


def ends(call: Callable[[], object], within_s: float = 60) -> BaseException | None:
    """What `call` raised; the test fails when it does not return, and goes on without it."""
    found: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            found.append(error)
        else:
            found.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(within_s)
    assert found, f"no end within {within_s:g} s"
    return found[0]


@pytest.mark.fault
def test_a_question_without_an_end_has_one(url: str) -> None:
    engine = connect(url, timeout_s=1)
    migrate(engine)

    def ask() -> None:
        with reach(engine) as connection:
            connection.exec_driver_sql(ENDLESS[engine.dialect.name])

    error = ends(ask, 20)
    assert isinstance(error, LogUnavailable), error
    assert read_page(engine).rows == []  # the next caller has a good connection
    engine.dispose()


@pytest.mark.fault
@pytest.mark.database
def test_a_stopped_postgresql_holds_no_caller(
    postgres_url: str, stopped: Callable[[], None], postgres: Any
) -> None:
    engine = connect(postgres_url, timeout_s=1)
    migrate(engine)
    with engine.connect():  # one stays in the pool
        stopped()
    first = ends(lambda: live_error(engine), 20)  # the pooled connection
    assert isinstance(first, LogUnavailable) and "no answer in time" in str(first)
    second = ends(lambda: read_page(engine), 20)  # a new one
    assert isinstance(second, LogUnavailable)
    postgres.signal(signal.SIGCONT)
    assert read_page(engine).rows == []
    engine.dispose()


@pytest.mark.fault
@pytest.mark.database
def test_a_commit_that_is_not_answered_ends_and_is_tried_again(
    postgres_url: str, stopped: Callable[[], None], postgres: Any, start: Callable[..., Any]
) -> None:
    log: PredictionLog = start(postgres_url, timeout_s=1)
    ids = append(log, 20)
    assert log.flush(30)
    stopped()
    ids |= append(log, 20)
    until(lambda: "no answer" in log.state.error)
    postgres.signal(signal.SIGCONT)
    assert log.flush(60)
    once(log.engine, ids)


@pytest.mark.fault
@pytest.mark.database
def test_readers_do_not_take_the_connections_of_the_writer(
    postgres_url: str, start: Callable[..., Any]
) -> None:
    log: PredictionLog = start(postgres_url)
    held = [log.engine.connect() for _ in range(15)]  # all that there may be
    error = ends(lambda: read_page(log.engine), 20)
    assert isinstance(error, LogUnavailable)
    ids = append(log, 20)
    assert log.flush(20)
    for connection in held:
        connection.close()
    once(log.engine, ids)


@pytest.mark.fault
def test_the_end_of_a_log_ends_what_is_asked(url: str, start: Callable[..., Any]) -> None:
    log: PredictionLog = start(url, timeout_s=3600)
    inside = threading.Event()

    def ask() -> None:
        with reach(log.engine) as connection:
            inside.set()
            connection.exec_driver_sql(ENDLESS[log.engine.dialect.name])

    thread = threading.Thread(target=lambda: ends(ask), daemon=True)
    thread.start()
    assert inside.wait(30)
    time.sleep(0.2)  # the question is on its way
    log.close()
    thread.join(20)
    assert not thread.is_alive()


def test_a_limit_that_is_cut_off_leaves_no_half_of_a_transaction(engine: sa.Engine) -> None:
    with pytest.raises(LogUnavailable), reach(engine, writing=True) as connection:
        connection.exec_driver_sql("DELETE FROM housing_alembic_version")
        cut_off(engine)
        connection.exec_driver_sql(ENDLESS[engine.dialect.name])
        raise AssertionError
    migrate(engine)
    assert insert_all(engine, []) == (0, [])
