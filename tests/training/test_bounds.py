"""What a fit may cost, and a category of many values, from the fold to the graph."""

import numpy as np
import pandas as pd
import pytest

from housing_mlops.preprocessing.pipeline import MANY, model_input, width
from housing_mlops.schema import parse
from housing_mlops.training.candidates import (
    CANDIDATES,
    Cost,
    UnknownModel,
    affordable,
    candidates,
)
from housing_mlops.training.export import as_tensors, parity, run_graph, to_graph

MOST = Cost(30, 2_000)  # as the training notebook has it
HOMES = parse(
    {
        "format": 1,
        "name": "homes",
        "title": "Homes",
        "source": {},
        "target": {"name": "price", "unit": "EUR"},
        "features": [
            {"name": "area", "example": 80.0, "nullable": True},
            {"name": "postcode", "type": "category", "nullable": True},
            {"name": "side", "type": "category", "nullable": True},
            {"name": "street", "type": "category", "nullable": True},
        ],
    }
)


def homes(rows: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    """Flats whose price goes by area and postcode, and not by street; prices are whole numbers."""
    rng = np.random.default_rng(0)
    code, area = rng.integers(0, 80, rows), rng.uniform(20, 200, rows).round(1)
    frame = pd.DataFrame(
        {
            "area": area,
            "postcode": [f"P{c}" for c in code],
            "side": rng.choice(["north", "south"], rows),
            "street": [f"street {s}" for s in rng.integers(0, 300, rows)],
        }
    )
    return model_input(HOMES, frame), (3000 * area + 2000 * code + rng.normal(0, 900, rows)).round()


def test_the_embedded_table_affords_every_candidate() -> None:
    assert affordable(candidates([]), 506, 13, MOST) == (candidates([]), [])


def test_five_thousand_rows_of_800_postcodes_ask_for_no_24_gigabytes() -> None:
    kept, left = affordable(candidates([]), 5_000, 36, MOST)
    assert "GaussianProcess" in {c.name for c in kept} and not left
    assert all(c.cost(5_000, 36).megabytes <= 1_000 for c in kept)
    assert CANDIDATES["GaussianProcess"].cost(5_000, 836).megabytes < 500


def test_a_large_table_is_left_some_candidates() -> None:
    kept, left = affordable(candidates([]), 16_000, 80, MOST)
    assert {"Ridge", "HistGradientBoosting"} <= {c.name for c in kept}
    assert left[0].startswith("RandomForest is left out: a fit on 16,000 rows of 80 columns")
    with pytest.raises(UnknownModel, match="No candidate is left"):
        affordable(candidates(["RandomForest"]), 16_000, 80, MOST)


def test_a_category_of_many_values_is_one_column() -> None:
    X, _ = homes()
    assert X["postcode"].nunique() > MANY and width(HOMES, X) == 1 + 1 + 2 + 1


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")  # streets say nothing
@pytest.mark.parametrize("name", ["Ridge", "HistGradientBoosting", "GaussianProcess"])
def test_its_graph_prices_as_the_model_does_what_nobody_has_seen_too(name: str) -> None:
    X, y = homes()
    model = CANDIDATES[name].build(HOMES, 0).fit(X, y)
    graph = to_graph(HOMES, model)
    assert parity(HOMES, model, graph, X) < 1e-4 * y.std()
    new = X.head(4).assign(postcode=["P1", "nowhere", "", "P79"], street="a new street")
    prices = run_graph(graph, as_tensors(HOMES, new))
    assert np.isfinite(prices).all()
    assert np.abs(prices - model.predict(new)).max() < 1e-4 * y.std()


def test_a_row_has_no_say_in_what_its_category_is_worth() -> None:
    X, _ = homes()
    noise = np.random.default_rng(1).normal(size=len(X))
    ridge = (
        CANDIDATES["Ridge"].build(HOMES, 0).fit(X[["area", "postcode", "side", "street"]], noise)
    )
    fitted = ridge["preprocess"].fit_transform(X, noise)
    streets = fitted[:, -1]  # two rows a street: their own mean would go with the noise
    assert abs(np.corrcoef(streets, noise)[0, 1]) < 0.2
