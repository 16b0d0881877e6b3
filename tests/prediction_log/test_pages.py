"""Where a page of the log ends, in both databases."""

import json

import pytest
import sqlalchemy as sa
from recording import record

from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import ROW_BYTES, measure_page, read_page

ROWS = 40


@pytest.mark.parametrize("limit", [1, 7, 38, 39, 500])
@pytest.mark.parametrize("size", [1, 4_000, 10**9])
def test_a_page_ends_at_its_limit_or_its_size(engine: sa.Engine, limit: int, size: int) -> None:
    houses = [json.dumps({"name": "ü" * (i % 5 * 60)}, ensure_ascii=False) for i in range(ROWS)]
    versions = ["1" if i % 3 else "2" for i in range(ROWS)]
    told = zip(houses, versions, strict=True)
    insert(engine, [record(v, features=h, time_us=10**15 + i) for i, (h, v) in enumerate(told)])
    for version in (None, "1"):
        whole = read_page(engine, limit=ROWS, version=version).rows
        first = read_page(engine, limit=1, version=version)
        assert first.next is not None
        wanted, ahead = 0, 0
        while wanted < min(limit, len(whole) - 1) and ahead < size:
            text = json.dumps(whole[1 + wanted].features, ensure_ascii=False)
            wanted, ahead = wanted + 1, ahead + len(text) + ROW_BYTES
        found = measure_page(engine, first.next, limit, size, version)
        assert found is not None and found.more == (1 + wanted < len(whole))
        page = read_page(engine, first.next, ROWS, version, until=found.last)
        assert page.rows == whole[1 : 1 + wanted] and page.next is None
        assert measure_page(engine, f"0.{whole[0].id}", limit, size, version) is None
