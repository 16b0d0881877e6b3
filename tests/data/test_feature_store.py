"""Features by id in SQL: nothing is overwritten, nothing of later reaches the past, one question a look-up."""

import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import Postgres

from housing_mlops.data.feature_store import SqlStore, migrate
from housing_mlops.data.feature_view import (
    ExpiredHouse,
    FeatureRow,
    FeatureStoreError,
    UnknownHouse,
    feature_view,
)
from housing_mlops.schema import SchemaError, load_dataset

BOSTON = load_dataset("boston")
HOUSE, VIEW = BOSTON.example, feature_view(BOSTON)
DAY = 86_400_000_000
Make = Callable[[], SqlStore]


def row(house_id: str, event: int, rooms: float, created: int | None = None) -> FeatureRow:
    return FeatureRow(house_id, event, HOUSE | {"RM": rooms}, created)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{tmp_path}/features.db")
    yield store
    store.close()


def rooms_at(store: SqlStore, at: int, known: int | None = None, house: str = "a") -> float | None:
    [found] = store.get_historical_features(VIEW, [(house, at)], known)
    return found and found["RM"]


def tell_the_whole_story(store: SqlStore) -> None:
    """What a store has to hold to, whatever database it is on."""
    assert store.write(VIEW, [row("a", 10, 5, 10), row("b", 10, 6, 10), row("a", 20, 7, 20)]) == 3
    assert store.write(VIEW, [row("a", 10, 5.5, 30)]) == 1, "a late correction"
    assert rooms_at(store, 15) == rooms_at(store, 29) - 2 == 5
    assert rooms_at(store, 15, known=30) == 5.5 and rooms_at(store, 15, known=29) == 5
    assert rooms_at(store, 9) is None and rooms_at(store, 15, house="z") is None
    assert store.get_online_features(VIEW, "a").features == HOUSE | {"RM": 7}
    assert store.get_online_features(VIEW, "a", now_us=19).features["RM"] == 5.5
    assert store.write(VIEW, [row("a", 20, 7)]) == 0, "known already"
    assert store.write(VIEW, [row("a", 20, 8)]) == 1
    assert store.get_online_features(VIEW, "a").features["RM"] == 8
    with pytest.raises(UnknownHouse, match="'c'"):
        store.get_online_features(VIEW, "c")
    with pytest.raises(UnknownHouse):
        store.get_online_features(feature_view(BOSTON.model_copy(update={"name": "other"})), "a")
    with pytest.raises(FeatureStoreError, match="another row"):
        store.write(VIEW, [row("c", 10, 1, 10), row("b", 10, 9, 10)])
    with pytest.raises(UnknownHouse):
        store.get_online_features(VIEW, "c")
    weeks = feature_view(BOSTON, ttl_days=7)
    with pytest.raises(ExpiredHouse, match=r"1970-01-01.* 8\.0 days old"):
        store.get_online_features(weeks, "a", now_us=20 + 8 * DAY)
    assert store.get_historical_features(weeks, [("a", 20 + 8 * DAY)]) == [None]
    migrate(store.engine)


def test_the_story_in_sqlite(sqlite: SqlStore) -> None:
    tell_the_whole_story(sqlite)


def test_the_story_in_postgresql(postgres: Postgres) -> None:
    url = postgres.make("features")
    store = SqlStore(url)
    with pytest.raises(FeatureStoreError, match="features load"):
        store.get_online_features(VIEW, "a")
    tell_the_whole_story(store)
    admin = SqlStore(url)
    with admin.engine.begin() as connection:  # as a server that is restarted does
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.exec_driver_sql(others + " AND pid <> pg_backend_pid()")
    admin.close()
    for _ in range(3):
        assert store.get_online_features(VIEW, "b").features["RM"] == 6
    store.close()


def test_the_past_is_what_somebody_then_would_have_been_told(sqlite: SqlStore) -> None:
    """Against the plainest way to say it, on rows drawn at random."""
    draw = random.Random(0)
    keys = {(draw.choice("abc"), draw.randrange(9), draw.randrange(9)) for _ in range(120)}
    rows = [row(h, e, n / 100 + 3, c) for n, (h, e, c) in enumerate(sorted(keys))]
    sqlite.write(VIEW, draw.sample(rows, len(rows)))
    points = [(h, at) for h in "abcd" for at in range(10)]
    for known in (None, 0, 4, 9):
        told = sqlite.get_historical_features(VIEW, points, known)
        for (house, at), found in zip(points, told, strict=True):
            limit = at if known is None else known
            right = [
                r
                for r in rows
                if r.house_id == house and r.event_us <= at and r.created_us <= limit
            ]
            best = max(right, key=lambda r: (r.event_us, r.created_us), default=None)
            assert found == (best and best.features), (house, at, known)


def test_a_look_up_is_one_question_that_reads_one_row(sqlite: SqlStore) -> None:
    sqlite.write(VIEW, [row(f"h{i}", k, 6, k) for i in range(50) for k in range(20)])
    asked: list[str] = []

    def watch(connection: sqlite3.Connection, _: Any) -> None:
        connection.set_trace_callback(asked.append)

    sqlite.engine.dispose()
    sa.event.listen(sqlite.engine, "connect", watch)
    for _ in range(3):
        sqlite.get_online_features(VIEW, "h7")
    questions = [text for text in asked if "feature_rows" in text]
    assert len(questions) == 3 and len(asked) == 3
    with sqlite.engine.connect() as connection:
        [plan] = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {questions[0]}").all()
    assert "SEARCH feature_rows USING PRIMARY KEY (view=? AND house_id=? AND event_us<?)" in plan[3]


@pytest.mark.fault
def test_a_reader_makes_no_store_and_says_what_is_missing(tmp_path: Path) -> None:
    missing = SqlStore(f"sqlite:///{tmp_path}/none.db")
    for ask in (
        lambda: missing.get_online_features(VIEW, "a"),
        lambda: missing.get_historical_features(VIEW, [("a", 1)]),
    ):
        with pytest.raises(FeatureStoreError, match="no feature store at"):
            ask()
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("a letter, not a database" * 99)
    for name, why in (("empty", "holds no features"), ("text", "not a database")):
        store = SqlStore(f"sqlite:///{tmp_path}/{name}.db")
        with pytest.raises(FeatureStoreError, match=why):
            store.get_online_features(VIEW, "a")
        store.close()
    away = SqlStore("postgresql://me:s3cret@127.0.0.1:9/features", timeout_s=1)
    with pytest.raises(FeatureStoreError, match="does not answer") as error:
        away.get_online_features(VIEW, "a")
    assert "s3cret" not in str(error.value)
    with pytest.raises(FeatureStoreError, match="no database URL"):
        SqlStore("sqlite//features.db")


@pytest.mark.fault
def test_a_load_that_fails_has_written_nothing(sqlite: SqlStore) -> None:
    sqlite.write(VIEW, [row("a", 1, 5)])
    many = [row(f"h{i:04}", 1, 5) for i in range(1200)]
    with pytest.raises(FeatureStoreError, match="POOL"):
        sqlite.write(VIEW, [*many, FeatureRow("z", 1, HOUSE | {"POOL": 1})])
    with sqlite.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM feature_rows").scalar() == 1


@pytest.mark.fault
def test_a_store_of_a_newer_form_is_left_alone(sqlite: SqlStore) -> None:
    sqlite.write(VIEW, [row("a", 1, 5)])
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE features_alembic_version SET version_num = '9999'")
    with pytest.raises(FeatureStoreError, match="form"):
        sqlite.write(VIEW, [row("b", 1, 5)])
    assert sqlite.get_online_features(VIEW, "a").features["RM"] == 5


def test_look_ups_go_on_while_houses_are_loaded(sqlite: SqlStore) -> None:
    sqlite.write(VIEW, [row("a", 1, 5)])
    with sqlite.engine.execution_options(writing=True).begin() as connection:
        connection.exec_driver_sql("DELETE FROM feature_rows")
        assert sqlite.get_online_features(VIEW, "a").features["RM"] == 5
        connection.rollback()
    loads = [
        threading.Thread(
            target=sqlite.write, args=(VIEW, [row(f"{n}{i}", 1, 5) for i in range(99)])
        )
        for n in range(4)
    ]
    for load in loads:
        load.start()
    for load in loads:
        load.join()
    with sqlite.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM feature_rows").scalar() == 397


def test_the_migration_makes_what_the_code_declares(sqlite: SqlStore) -> None:
    sqlite.write(VIEW, [])
    told = {
        c["name"]: str(c["type"]) for c in sa.inspect(sqlite.engine).get_columns("feature_rows")
    }
    from housing_mlops.data.feature_store import feature_rows

    assert told == {c.name: str(c.type) for c in feature_rows.c}
    key = sa.inspect(sqlite.engine).get_pk_constraint("feature_rows")["constrained_columns"]
    assert key == ["view", "house_id", "event_us", "created_us"]


def test_a_feature_cannot_have_a_name_of_the_store() -> None:
    feature = BOSTON.features[0].model_copy(update={"name": "house_id"})
    taken = BOSTON.model_copy(update={"features": (feature, *BOSTON.features[1:])})
    vars(taken).pop("used", None), vars(taken).pop("columns", None)
    with pytest.raises(SchemaError, match="house_id"):
        feature_view(taken)


def test_what_is_stored_is_what_was_written(sqlite: SqlStore) -> None:
    odd = HOUSE | {"RM": 0.1 + 0.2, "LSTAT": None, "CRIM": 5e-324}
    sqlite.write(VIEW, [FeatureRow("Übersee, 'Nr. 1'", -5, odd, -5)])
    assert sqlite.get_online_features(VIEW, "Übersee, 'Nr. 1'") == ("Übersee, 'Nr. 1'", -5, odd, -5)
    assert json.loads(json.dumps(odd)) == odd
