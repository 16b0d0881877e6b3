"""Where a model is wrong, on tables of another shape than the embedded one."""

import tomllib
from typing import Any

import numpy as np
import pandas as pd
import pytest

from housing_mlops.schema import parse
from housing_mlops.training.diagnosis import (
    errors_by_price,
    errors_by_segment,
    plot_segments,
    worst_rows,
)

FLATS = """
format = 1
name = "flats"
title = "Flats"
[source]
embedded = "flats.csv"
[target]
name = "rent"
unit = "EUR"
[[features]]
name = "area"
nullable = true
[[features]]
name = "rooms"
type = "integer"
example = 3
[[features]]
name = "quarter"
type = "category"
nullable = true
"""


def flats(rows: int) -> tuple[Any, pd.DataFrame, np.ndarray, np.ndarray]:
    """A declaration, houses, rents, and rents as a model without faults would say them."""
    random = np.random.default_rng(7)
    X = pd.DataFrame(
        {
            "area": random.uniform(20, 120, rows),
            "rooms": random.integers(1, 4, rows).astype(float),
            "quarter": random.choice(["north", "south"], rows).astype(object),
        }
    )
    X.loc[: rows // 5, ["area", "quarter"]] = None
    y = random.normal(900, 200, rows)
    return parse(tomllib.loads(FLATS)), X, y, y + random.normal(0, 30, rows)


def test_a_quarter_that_is_priced_too_low_is_found_and_nothing_else() -> None:
    declared, X, y, predicted = flats(600)
    sound = errors_by_segment(X, y, predicted, declared)
    assert not sound["conspicuous"].any()
    assert {"unknown", "north", "south", "1", "2", "3"} <= set(sound["group"])
    dear = (X["quarter"] == "north").to_numpy()
    found = errors_by_segment(X, y + 40 * dear, predicted, declared)
    assert tuple(found.loc[0, ["feature", "group"]]) == ("quarter", "north")
    assert found["conspicuous"].iloc[0] and found["bias"].iloc[0] == pytest.approx(-40, abs=8)
    assert len(plot_segments(errors_by_price(y, predicted), found, "EUR").axes) == 2


@pytest.mark.parametrize("rows", [2, 12])
def test_a_table_of_a_few_rows_has_no_segments(rows: int) -> None:
    declared, X, y, predicted = flats(rows)
    by_price = errors_by_price(y, predicted)
    assert by_price["rows"].sum() == rows
    found = errors_by_segment(X, y, predicted, declared)
    assert found.empty and len(worst_rows(X, y, predicted)) == min(rows, 10)
    plot_segments(by_price, found, "EUR")


def test_prices_that_are_all_the_same_are_one_band() -> None:
    by_price = errors_by_price(np.full(9, 3.0), np.full(9, 2.0))
    assert by_price["rows"].tolist() == [9] and by_price["bias"].tolist() == [-1.0]


def test_the_worst_come_first_with_their_houses() -> None:
    _, X, y, predicted = flats(50)
    predicted[17] += 1000
    worst = worst_rows(X, y, predicted, 3)
    assert worst.index[0] == 17 and worst["wrong"].iloc[0] > 900
    assert worst.loc[17, "rooms"] == X.loc[17, "rooms"]
