"""What is deleted: the oldest, as many as are due, and never most of all without a person's word."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, id_of, once, record, stored

from housing_mlops.prediction_log.database import connect, migrate, traffic
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.retention import (
    Due,
    RetentionStopped,
    count_between,
    count_due,
    delete_old,
)

DAY_US = 86_400_000_000


def sums(engine: sa.Engine) -> list[int]:
    """The predictions that the traffic counts, by minutes and by tens of minutes."""
    t = traffic.c
    query = sa.select(sa.func.sum(t.count)).group_by(t.width).order_by(t.width)
    with engine.begin() as connection:
        return [int(n) for n in connection.scalars(query)]


def test_nothing_goes_unless_asked(engine: sa.Engine) -> None:
    insert(engine, [record(time_us=0)])
    assert delete_old(engine) == 0
    assert delete_old(engine, rows=1) == 0


def test_what_is_stored_is_counted_once(engine: sa.Engine) -> None:
    now = time.time_ns() // 1000
    lines = [record(str(i % 2), time_us=now - i * 11_000_000) for i in range(300)]
    insert(engine, lines[:200])
    assert insert(engine, lines[100:]) == 100  # half of them are there already
    assert insert(engine, lines) == 0
    assert sums(engine) == [300, 300]
    with engine.begin() as connection:
        begin = now - 1234 * 1_000_000
        expected = sum(begin <= now - i * 11_000_000 < now for i in range(300))
        assert count_between(connection, begin, now) == expected
        assert count_due(connection, rows=10) == Due(300, 290)


def test_a_bound_in_rows_leaves_so_many_the_newest(engine: sa.Engine) -> None:
    now = time.time_ns() // 1000
    lines = [record(time_us=now - i // 3 * 20_000_000) for i in range(400)]
    insert(engine, lines)
    while delete_old(engine, rows=250, batch=70):
        pass
    left = set(stored(engine))
    assert len(left) == 250 and left >= set(map(id_of, lines[:249]))
    with engine.begin() as connection:
        assert count_due(connection, rows=250) == Due(250, 0)


def a_history(url: str) -> set[str]:
    """The ids of 600 predictions of the last hour, stored."""
    engine = connect(url)
    migrate(engine)
    now = time.time_ns() // 1000
    lines = [record(time_us=now - i * 6_000_000) for i in range(600)]
    insert(engine, lines)
    engine.dispose()
    return set(map(id_of, lines))


@pytest.mark.fault
def test_a_clock_that_jumps_two_years_ahead_deletes_nothing(
    url: str,
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = a_history(url)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 730 * DAY_US * 1000)
    log: PredictionLog = start(url, retention_days=90)
    until(lambda: "log prune" in log.state.retention)
    ids |= append(log, 5)
    assert log.flush(30)
    once(log.engine, ids)
    assert log.state.connected, "it is stopped, nothing is broken"
    assert caplog.text.count("retention would delete 600 of") == 1
    monkeypatch.setattr(time, "time_ns", real)  # somebody sets the clock
    until(lambda: not log.state.retention)
    once(log.engine, ids)


@pytest.mark.fault
def test_a_bound_that_somebody_set_wrongly_deletes_nothing(
    url: str, start: Callable[..., Any]
) -> None:
    ids = a_history(url)
    log: PredictionLog = start(url, retention_rows=6)  # a thousand times as many were meant
    until(lambda: log.state.retention)
    once(log.engine, ids)


def test_a_small_log_asks_nobody(engine: sa.Engine) -> None:
    insert(engine, [record(time_us=i) for i in range(400)])
    assert delete_old(engine, days=1, share=0.5) == 400
    insert(engine, [record(time_us=i) for i in range(500)])
    with pytest.raises(RetentionStopped, match=r"500 of 500 .* log prune --apply"):
        delete_old(engine, days=1, share=0.5)
    assert delete_old(engine, days=1, share=1) == 500
