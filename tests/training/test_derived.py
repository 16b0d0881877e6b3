"""Derived features and a price learnt as a logarithm, from the fold to the graph."""

import numpy as np
import pandas as pd
import pytest

from housing_mlops.data.table import Table
from housing_mlops.preprocessing.derived import Derived, LogTarget
from housing_mlops.preprocessing.pipeline import model_input, pipeline
from housing_mlops.schema import parse
from housing_mlops.training.candidates import CANDIDATES, Candidate, voting
from housing_mlops.training.export import as_tensors, parity, run_graph, to_graph

EVERYTHING = (
    Derived("log", ("CRIM",)),
    Derived("log", ("LSTAT",)),
    Derived("ratio", ("TAX", "RM")),
    Derived("product", ("RM", "LSTAT")),
    Derived("distance", ("RM", "LSTAT", "DIS")),
    Derived("missing", ("CRIM",)),
)


def with_derived(name: str, log: bool, derived: tuple[Derived, ...] = EVERYTHING) -> Candidate:
    """The candidate of that name, given what is derived."""
    known = CANDIDATES[name]
    return Candidate(name, known.scale, known.make, known.cost, derived, log)


@pytest.mark.parametrize("name", ["Ridge", "GradientBoosting", "ExtraTrees", "GaussianProcess"])
@pytest.mark.parametrize("log", [False, True])
def test_the_graph_prices_derived_features_as_the_model_does(
    name: str, log: bool, table: Table
) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    model = with_derived(name, log).build(table.dataset, 0).fit(X[:300], y[:300])
    graph = to_graph(table.dataset, model)
    assert parity(table.dataset, model, graph, X) < 1e-4 * y.std()
    gone = X.head(20).assign(CRIM=np.nan, RM=-1.0)  # unknown, and below all that was seen
    prices = run_graph(graph, as_tensors(table.dataset, gone))
    assert np.abs(prices - model.predict(gone)).max() < 1e-4 * y.std()


@pytest.mark.parametrize("one", EVERYTHING, ids=str)
def test_each_kind_converts_alone(one: Derived, table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    model = with_derived("Ridge", False, (one,)).build(table.dataset, 0).fit(X, y)
    graph = to_graph(table.dataset, model)
    assert parity(table.dataset, model, graph, X) < 1e-4 * y.std()


def test_a_weighted_average_converts(table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    parts = [with_derived("Ridge", True), CANDIDATES["LinearRegression"]]
    model = voting(table.dataset, parts, 0, weights=(0.75, 0.25)).fit(X, y)
    one, other = (m.predict(X) for m in model.estimators_)
    assert np.allclose(model.predict(X), 0.75 * one + 0.25 * other)
    assert parity(table.dataset, model, to_graph(table.dataset, model), X) < 1e-4 * y.std()


def test_a_gap_that_tells_something_is_kept() -> None:
    features = [{"name": "area", "example": 80.0, "nullable": True}]
    about = {"format": 1, "name": "a", "title": "A", "source": {}}
    dataset = parse({**about, "target": {"name": "price", "unit": "EUR"}, "features": features})
    rng = np.random.default_rng(0)
    X = model_input(dataset, pd.DataFrame({"area": rng.uniform(20, 200, 200)}))
    gap = rng.random(200) < 0.3
    X.loc[gap, "area"] = np.nan
    y = np.where(gap, 10.0, 100.0)
    line = CANDIDATES["LinearRegression"]
    plain = pipeline(dataset, line.make(0), True).fit(X, y)
    marked = pipeline(dataset, line.make(0), True, [Derived("missing", ("area",))]).fit(X, y)
    assert plain.score(X, y) < 0.5 and marked.score(X, y) > 0.999
    assert parity(dataset, marked, to_graph(dataset, marked), X) < 1e-3


def test_a_price_of_nothing_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match="has no logarithm"):
        LogTarget(CANDIDATES["Ridge"].make(0)).fit([[1.0], [2.0]], [0.0, 1.0])
