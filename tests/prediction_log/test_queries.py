"""Questions to both databases, and the same answers from pandas."""

import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from recording import HOUSE, id_of, record

from housing_mlops.prediction_log.database import save_feedback, to_us
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import (
    join_windows,
    live_error,
    read_errors,
    read_page,
    read_window,
    traffic_over_time,
)
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.schema import Dataset


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
    check(frame[frame.time_us >= to_us(since)], since=since)
    assert live_error(engine, version="none") == []


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
        found = traffic_over_time(engine, 60, 12, version)
        assert len(found) == 12 and found[-1].time <= datetime.now(UTC)
        assert {b.time - a.time for a, b in itertools.pairwise(found)} == {timedelta(minutes=5)}
        for one in found:
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
            least = inside["ms"].quantile(0.9, interpolation="lower") / 2**0.5  # within a bucket
            assert least <= one.p95_ms <= min(p95 * 2**0.5, one.max_ms)
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


def test_a_window_of_rows_that_do_not_fit(engine: sa.Engine) -> None:
    dataset = with_category()
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


def with_category() -> Dataset:
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


def test_sales_are_judged_by_version_and_by_sale_time_whatever_the_age_of_the_price(
    engine: sa.Engine,
) -> None:
    now = datetime.now(UTC)
    ages, sold_ago = (3, 2, 900, 1, 5), (2.5, 1.5, 2.0, 0.5, 1.0)  # days; the third is a late label
    rows = []
    for i, age in enumerate(ages):
        at = to_us(now - timedelta(days=age))
        price, version = 20.0 + i, "2" if i == 4 else "1"
        about = {"id": new_id(), "time_us": at, "model": "housing", "model_version": version}
        rows.append(
            {**about, "price": price, "low": price - 4, "high": 50.0 if i == 3 else price + 4}
        )
    insert(engine, [record(**row) for row in rows])
    for i in (3, 1, 0, 4, 2):  # as they are reported: the late label last
        sold = now - timedelta(days=sold_ago[i])
        save_feedback(engine, str(rows[i]["id"]), 60.0 if i == 3 else 15.0, sold)
    found = read_errors(engine, "housing", "1", cap=50.0)
    assert found.errors.tolist() == [5.0, 7.0, 6.0, -37.0] and found.outside.tolist() == [
        1,
        1,
        1,
        0,
    ]
    assert read_errors(engine, "housing", "1").outside.tolist() == [1, 1, 1, 1], "without a cap"
    assert read_errors(engine, "housing", "1", n=2).errors.tolist() == [6.0, -37.0]
    assert read_errors(engine, "housing", "2").errors.tolist() == [9.0]


def test_windows_are_read_until_a_time_and_joined(engine: sa.Engine) -> None:
    dataset = with_category()
    now = datetime.now(UTC)
    times = [to_us(now - timedelta(seconds=s)) for s in range(50, 0, -1)]
    insert(engine, [record(id=new_id(), time_us=at, price=float(i)) for i, at in enumerate(times)])
    middle = now - timedelta(seconds=20.5)
    older, newer = (
        read_window(engine, dataset, until=middle),
        read_window(engine, dataset, since=middle),
    )
    assert (len(older), len(newer)) == (30, 20)
    joined, whole = join_windows([older, newer]), read_window(engine, dataset)
    assert joined.prices.tolist() == whole.prices.tolist() and joined.requests == whole.requests
    assert (joined.times == whole.times).all() and joined.clients == whole.clients
