"""The tables on both databases: migrations, actual prices, what is deleted."""

import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from processes import until
from recording import id_of, record, stored

from housing_mlops.config import HousingError
from housing_mlops.prediction_log.database import (
    connect,
    downgrade,
    feedback,
    metadata,
    migrate,
    predictions,
    save_feedback,
)
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import FeedbackConflict, UnknownPrediction

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


def test_migrations_can_be_taken_back(engine: sa.Engine) -> None:
    downgrade(engine, "base")
    assert sa.inspect(engine).get_table_names() == ["housing_alembic_version"]


# actual prices


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
        time_us = connection.scalar(sa.select(feedback.c.time_us))
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


@pytest.mark.database
def test_feedback_waits_for_the_one_that_is_reporting(postgres_url: str) -> None:
    engine = connect(postgres_url)
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
        connection.execute(feedback.insert().values(row))
        report.start()
        # each look in a transaction of its own: PostgreSQL shows one the same activity throughout
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
            until(lambda: other.exec_driver_sql(waiting).scalar())
    report.join()
    assert results == ["unchanged"]
    engine.dispose()
