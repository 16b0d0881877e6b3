"""Preprocessing: what reaches a model, whatever the table lacks."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from housing_mlops.data.table import Table
from housing_mlops.preprocessing.pipeline import model_input, pipeline, preprocessor
from housing_mlops.schema import Dataset, parse

FLATS = parse(
    {
        "format": 1,
        "name": "flats",
        "title": "Flats",
        "source": {},
        "target": {"name": "price", "unit": "EUR"},
        "features": [
            {"name": "district", "type": "category", "nullable": True},
            {"name": "area", "example": 80.0, "nullable": True},
        ],
    }
)
KNOWN = pd.DataFrame(
    {
        "district": ["Belem", "Alfama", None, "Belem"],
        "area": [80.0, None, 55.0, 100.0],
        "price": [300.0, 180.0, 150.0, 380.0],
    }
)


def transform(dataset: Dataset, scale: bool, frame: pd.DataFrame) -> np.ndarray:
    """`frame` as a model that learnt from `KNOWN` would be given it."""
    fitted = preprocessor(dataset, scale).fit(model_input(dataset, KNOWN))
    return fitted.transform(model_input(dataset, frame))


def test_a_model_is_given_numbers_first_and_no_null_among_texts() -> None:
    given = model_input(FLATS, KNOWN)
    assert given.columns.tolist() == ["area", "district"]
    assert given["district"].tolist() == ["Belem", "Alfama", "", "Belem"]
    assert given["area"].dtype == np.float64 and given["district"].dtype == object


def test_a_gap_becomes_the_median_and_a_new_category_zeros() -> None:
    new = pd.DataFrame({"district": ["Belem", "Chiado"], "area": [None, 70.0]})
    assert (transform(FLATS, False, new) == [[80, 0, 0, 1], [70, 0, 0, 0]]).all()


@pytest.mark.parametrize("scale", [False, True])
def test_no_gap_is_left_not_even_in_an_empty_column(table: Table, scale: bool) -> None:
    X = model_input(table.dataset, table.features).mask(
        np.random.default_rng(0).random(table.features.shape) < 0.1
    )
    out = preprocessor(table.dataset, scale).fit_transform(X.assign(CRIM=np.nan))
    assert out.shape == X.shape and not np.isnan(out).any()


def test_a_table_may_lack_numbers_or_texts(table: Table) -> None:
    texts = FLATS.without("area")
    assert transform(texts, True, KNOWN).shape == (4, 3)
    numbers = preprocessor(table.dataset, True)
    assert [name for name, *_ in numbers.transformers] == ["numbers"]


def test_the_scale_is_learnt_from_the_rows_that_are_fitted(table: Table) -> None:
    X = model_input(table.dataset, table.features)
    half = pipeline(table.dataset, Ridge(), scale=True).fit(X.head(253), table.prices.head(253))
    scaled = half["preprocess"].transform(X.head(253))
    assert np.allclose(scaled.mean(axis=0), 0) and np.allclose(scaled.std(axis=0), 1)
    assert not np.allclose(half["preprocess"].transform(X).mean(axis=0), 0)
