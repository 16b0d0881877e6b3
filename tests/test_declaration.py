"""Another table is a TOML file and no line of Python, from the declaration to the answer."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.bundle import read_info
from housing_mlops.operations.notebooks import train
from housing_mlops.operations.up import ensure_champion
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving.api import create_app
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.export import export_bundle

NOTEBOOK = Path(__file__).resolve().parents[1] / Settings().training_notebook
FLATS = """
format = 1
name = "flats"
title = "Flats"
source = { embedded = "flats.csv" }
target = { name = "price", unit = "EUR", minimum = 0 }
[[features]]
name = "street: side"
type = "category"
categories = ["north", "south"]
nullable = true
[[features]]
name = "living area"
unit = "m2"
minimum = 10
maximum = 500
example = 80.0
[[features]]
name = "copy"
type = "integer"
nullable = true
example = 2
"""


@pytest.fixture
def flats(tmp_path: Path) -> Path:
    """The declaration of a made-up table with text, gaps and awkward names, beside its table."""
    rng = np.random.default_rng(0)
    side = rng.choice(["north", "south", ""], 300, p=[0.5, 0.4, 0.1])
    area = rng.uniform(20, 200, 300).round(1)
    copies = rng.integers(1, 5, 300).astype(object)
    copies[::9] = None
    price = 3000 * area + 40_000 * (side == "south") + rng.normal(0, 9000, 300)
    columns = {"street: side": side, "living area": area, "copy": copies, "price": price.round()}
    pd.DataFrame(columns).to_csv(tmp_path / "flats.csv", index=False)
    (tmp_path / "flats.toml").write_text(FLATS)
    return tmp_path / "flats.toml"


@pytest.mark.train
@pytest.mark.usefixtures("with_tables")
def test_a_table_with_text_and_gaps_is_trained_and_priced(flats: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, dataset=str(flats))
    quick = {"models": ["Ridge", "GaussianProcess"], "folds": 3, "repeats": 1}
    assert train(quick, settings, NOTEBOOK)["promoted"]
    with TestClient(create_app(settings)) as api:
        house = {"street: side": "south", "living area": 100.0, "copy": None}
        answer = api.post("/predict", json=house).json()
        assert abs(answer["prediction"] - 340_000) < 20_000 and answer["unit"] == "EUR"
        unseen = api.post("/predict", json=house | {"street: side": "west"}).json()
        assert abs(unseen["prediction"] - answer["prediction"]) < 60_000
        wrong = api.post("/predict", json=house | {"living area": 5}).json()["detail"]
        assert wrong[0]["loc"] == ["body", "living area"]
        [both, _] = api.post("/predict/batch", json=[house, {}]).json()["predictions"]
        assert both["prediction"] == answer["prediction"]
        api.app.state.service.log.flush()
        row = api.get("/monitoring/predictions").json()["predictions"][-1]
        assert row["features"] == house
        assert api.get("/monitoring/drift").json()["verdict"] == "unknown"


@pytest.mark.nightly
@pytest.mark.train
def test_the_table_that_is_set_is_trained_and_takes_the_place_of_another(
    flats: Path, tmp_path: Path
) -> None:
    quick = {"models": ["Ridge"], "folds": 2, "repeats": 1}
    boston = Settings(home=tmp_path)
    assert train(quick, boston, NOTEBOOK)["promoted"]
    settings = Settings(home=tmp_path, dataset=str(flats))
    said: list[str] = []
    champion = ensure_champion(settings, lambda: train(quick, settings, NOTEBOOK), said.append)
    assert champion.version == "2" and read_info(champion.folder).dataset.name == "flats"
    assert said == ["The champion, version 1, prices another table: training flats."]
    assert ensure_champion(settings, lambda: 1 / 0) == champion, "it is not trained twice"
    assert ensure_champion(boston, lambda: 1 / 0) == champion, "nobody chose a table"


def test_a_model_of_another_declaration_brings_its_own_routes(
    bundles: dict[str, Path], table: Table, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, registry_poll_s=0, admin_keys="secret")
    install_bundle(bundles["Ridge"], "1", settings)
    dataset = table.dataset.without("B")
    fair = Table(dataset, table.frame.drop(columns="B"), "made up", "0" * 64)
    fitted = CANDIDATES["Ridge"].build(dataset, 0)
    fitted.fit(model_input(dataset, fair.features), fair.prices)
    about = {"model": "Ridge", "parameters": {}, "metrics": {"cv_rmse": 4.9}}
    export_bundle(tmp_path / "fair", fitted, fair, np.zeros(1), about)
    with TestClient(create_app(settings)) as api:
        assert api.post("/predict", json=table.dataset.example).status_code == 200
        assert (
            "B" in api.get("/openapi.json").json()["components"]["schemas"]["House"]["properties"]
        )
        install_bundle(tmp_path / "fair", "2", settings)
        assert api.post("/admin/reload").status_code == 401
        headers = {"X-API-Key": "secret"}
        assert api.post("/admin/reload", headers=headers).json()["model_version"] == "2"
        for way in ("application/json", "application/json; charset=utf-8"):
            kind = {"Content-Type": way}
            old = api.post(
                "/predict", content=pd.Series(table.dataset.example).to_json(), headers=kind
            )
            assert old.status_code == 422 and old.json()["detail"][0]["loc"][-1] == "B"
            new = api.post("/predict", content=pd.Series(dataset.example).to_json(), headers=kind)
            assert new.status_code == 200 and new.json()["interval"] is None
        house = api.get("/openapi.json").json()["components"]["schemas"]["House"]
        assert "B" not in house["properties"]
