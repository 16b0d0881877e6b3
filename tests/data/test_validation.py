"""What a declaration lets pass, and how what it does not is named."""

from pathlib import Path

import pandas as pd
import pytest

from housing_mlops.config import Settings
from housing_mlops.data.sources import DataError
from housing_mlops.data.table import Table, load_table
from housing_mlops.data.validation import InvalidTable, validate
from housing_mlops.schema import load_dataset, parse

BOSTON = load_dataset("boston")
TOWN = {"name": "town", "type": "category", "categories": ["north", "south"], "example": "n"}


def test_a_header_alone_is_no_table(table: Table, tmp_path: Path) -> None:
    table.frame.head(0).to_csv(tmp_path / "head.csv", index=False)
    with pytest.raises(DataError, match="no row"):
        load_table(BOSTON, Settings(data_path=tmp_path / "head.csv"))


def test_categories_are_held_to_their_list() -> None:
    towns = parse(
        {**BOSTON.model_dump(), "segments": [], "behaviours": [], "features": [TOWN], "exclude": []}
    )
    raw = pd.DataFrame({"town": ["north", "west", None], "MEDV": ["1", "2", "3"]})
    with pytest.raises(InvalidTable, match=r"row 2, town = west: one of north, south") as caught:
        validate(towns, raw)
    assert "row 3, town" in str(caught.value)
    open_list = parse(
        {
            **BOSTON.model_dump(),
            "segments": [],
            "behaviours": [],
            "features": [{**TOWN, "categories": []}],
        }
    )
    assert len(validate(open_list, raw.head(2))) == 2


def test_a_cell_that_is_no_number_is_one_fault(table: Table) -> None:
    raw = table.frame.head(3).astype(str)
    raw.loc[1, ["RM", "LSTAT"]] = "six"  # required, and nullable
    with pytest.raises(InvalidTable) as caught:
        validate(BOSTON, raw)
    assert [(b.row, b.column, b.rule) for b in caught.value.cells] == [
        (2, "LSTAT", "a number"),
        (2, "RM", "a number"),
    ]


def test_rows_are_counted_anew_whatever_their_labels(table: Table) -> None:
    raw = table.frame.tail(3)
    with pytest.raises(InvalidTable, match="row 3, AGE = 130"):
        validate(BOSTON, raw.assign(AGE=[1.0, 2.0, 130.0]))
    assert validate(BOSTON, raw).index.tolist() == [0, 1, 2]


def test_a_table_to_be_priced_needs_no_target(table: Table) -> None:
    houses = table.features.head(2)
    assert validate(BOSTON, houses, target=False).columns.tolist() == BOSTON.columns
    with pytest.raises(DataError, match="missing: MEDV"):
        validate(BOSTON, houses)
