"""The translation to ONNX: what passes its proof, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from housing_mlops.data.table import Table, fingerprint
from housing_mlops.model.bundle import BundleError, read_reference
from housing_mlops.preprocessing.pipeline import model_input, pipeline
from housing_mlops.schema import parse
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.export import export_bundle, parity, to_graph

ABOUT = {"model": "RandomForest", "parameters": {}, "metrics": {}}


class Unconvertible(RandomForestRegressor):
    """A class that the converter does not know."""


@pytest.fixture(scope="module")
def mixed(table: Table) -> Table:
    """The embedded table with a column of text."""
    town = {"name": "town", "type": "category", "nullable": True}
    declared = table.dataset.model_dump()
    dataset = parse({**declared, "features": [town, *declared["features"]]})
    frame = table.frame.assign(town=np.where(table.frame.index < 300, "north", "south"))
    return Table(dataset, frame, "made up", fingerprint(frame))


def test_a_model_that_does_not_convert_is_named(table: Table) -> None:
    fitted = Unconvertible(2).fit(table.features, table.prices)
    with pytest.raises(BundleError, match="Unconvertible does not convert"):
        to_graph(table.dataset, fitted)


def test_a_graph_that_prices_otherwise_is_not_exported(table: Table, tmp_path: Path) -> None:
    forest = pipeline(table.dataset, RandomForestRegressor(50, random_state=42), scale=True)
    forest.fit(model_input(table.dataset, table.features), table.prices)
    with pytest.raises(BundleError, match=r"RandomForest prices a house .* not exported"):
        export_bundle(tmp_path / "bundle", forest, table, np.zeros(506), ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Ridge", "GaussianProcess", "GradientBoosting"])
def test_texts_gaps_and_a_category_not_seen_are_priced_alike(mixed: Table, name: str) -> None:
    X, y = model_input(mixed.dataset, mixed.features), mixed.prices
    X.loc[::7, "town"] = ""
    model = CANDIDATES[name].build(mixed.dataset, 0).fit(X.iloc[:400], y.iloc[:400])
    graph = to_graph(mixed.dataset, model)
    assert parity(mixed.dataset, model, graph, X.assign(town="west")) < 1e-4 * y.std()


def test_a_bundle_carries_what_drift_is_measured_against(mixed: Table, tmp_path: Path) -> None:
    X, y = model_input(mixed.dataset, mixed.features), mixed.prices
    model = CANDIDATES["Ridge"].build(mixed.dataset, 0).fit(X, y)
    info = export_bundle(tmp_path / "bundle", model, mixed, np.zeros(3), ABOUT)
    reference = read_reference(tmp_path / "bundle")
    assert (info.rows, info.fingerprint) == (506, mixed.fingerprint)
    assert reference.numbers.shape == (506, 13) and reference.texts.shape == (506, 1)
    assert np.allclose(reference.predictions, model.predict(X), atol=1e-3)


def test_a_table_of_texts_alone_is_priced_alike(mixed: Table) -> None:
    texts = mixed.dataset.without(*(f.name for f in mixed.dataset.used if not f.is_category))
    X, y = model_input(texts, mixed.frame), mixed.prices
    model = CANDIDATES["Ridge"].build(texts, 0).fit(X, y)
    assert X.columns.tolist() == ["town"]
    assert parity(texts, model, to_graph(texts, model), X) < 1e-4 * y.std()
