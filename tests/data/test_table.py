"""The table: the embedded copy against another, and how it is divided."""

import numpy as np
import pytest
from mlxtend.data import boston_housing_data

from housing_mlops.data.sources import DataError
from housing_mlops.data.table import Table, split


def test_the_embedded_table_is_the_one_that_mlxtend_ships(table: Table) -> None:
    X, y = boston_housing_data()
    assert np.array_equal(table.features.to_numpy(), X)
    assert np.array_equal(table.prices.to_numpy(), y)


def test_a_split_is_of_all_rows_and_goes_by_its_seed(table: Table) -> None:
    train, test = split(table, 0.2, 0)
    assert sorted([*train, *test]) == list(range(len(table.frame)))
    assert np.array_equal(test, split(table, 0.2, 0)[1])
    assert not np.array_equal(test, split(table, 0.2, 1)[1])


def test_a_split_that_leaves_nothing_is_refused(table: Table) -> None:
    with pytest.raises(DataError, match="does not divide"):
        split(table, 0.9999, 0)
