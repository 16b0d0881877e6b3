"""Records on their way into both databases: as they were, once, and what no database takes."""

import json
import sqlite3
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from recording import id_of, once, record

from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import accepts_records, insert, insert_all
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.prediction_log.record import untab_features


def test_values_arrive_as_they_were(engine: sa.Engine) -> None:
    house = '{"RM": 6.5,\t"name": "Tür \\u00e9 \\"\\\\\\n' + "'%s%(x)s?:a" + '"}'
    line = record("1.0", low=None, high=None, request_id="r\\1", price=24.123456789, time_us=5)
    line = b"\t".join([*line.split(b"\t")[:10], house.encode(), b"shop"])
    assert insert(engine, [untab_features(line)]) == 1
    (row,) = read_page(engine).rows
    assert (row.price, row.low, row.high, row.actual) == (24.123456789, None, None, None)
    assert row.time == datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC)
    assert (row.model_version, row.request_id) == ("1.0", "r\\1")
    assert row.features == json.loads(house) and row.client == "shop"


def test_a_record_is_stored_once(engine: sa.Engine) -> None:
    records = [record() for _ in range(250)]
    assert insert(engine, records[:120]) == 120
    assert insert(engine, [*records, records[0]]) == 130
    once(engine, set(map(id_of, records)))


def test_a_record_that_is_too_large_is_refused_alone(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    migrate(engine)
    engine.dispose()

    def narrow(connection: Any, _: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)

    sa.event.listen(engine, "connect", narrow)
    large, lines = record(features='{"x": "' + "y" * 20_000 + '"}'), [record(), record()]
    new, refused = insert_all(engine, [lines[0], large, lines[1]])
    assert (new, [line for line, _ in refused]) == (2, [large])
    assert "too big" in refused[0][1]
    once(engine, set(map(id_of, lines)))
    engine.dispose()


def test_good_records_among_an_outage_are_not_refused(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    with pytest.raises(sa.exc.OperationalError):  # no table yet
        insert_all(engine, [record()])
    assert not accepts_records(engine)
    engine.dispose()
