"""From a table nobody has declared to a draft that holds, and from there to a served price."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from processes import ROOT, until

from housing_mlops.config import Settings
from housing_mlops.data.draft import draft, limits, number
from housing_mlops.data.sources import DataError
from housing_mlops.data.table import Table, load_table
from housing_mlops.operations.notebooks import report
from housing_mlops.schema import Dataset, load_dataset
from housing_mlops.serving.api import create_app

COMMAND = [sys.executable, "-c", "from housing_mlops.cli import app; app()"]


def homes(rows: int = 240) -> pd.DataFrame:
    """A made-up table: text, gaps, dates, awkward names, and columns that are no features."""
    rng = np.random.default_rng(3)
    area = rng.gamma(6, 15, rows).round(1) + 20
    town = rng.choice(["north: hill", 'the "old" town', "Graça"], rows)
    sold = pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.integers(0, 1400, rows), unit="D")
    rate = pd.Series(town).map({"north: hill": 2000, 'the "old" town': 4000, "Graça": 3000})
    return pd.DataFrame(
        {
            "Id": np.arange(rows) + 1,
            "town: side": town,
            "price": rng.integers(1, 6, rows),  # of living there, from 1 to 5
            "living area": area,
            "built %": np.where(rng.random(rows) < 0.1, None, rng.integers(0, 100, rows)),
            "sold": sold.strftime("%Y-%m-%d"),
            "country": "PT",
            "SalePrice": (area * rate + 9000 * (sold.year - 2021)).round(-2),
        }
    )


def draft_of(folder: Path, table: pd.DataFrame) -> str:
    """What is drafted for `table`, written beside it."""
    table.to_csv(folder / "homes.csv", index=False)
    (folder / "homes.toml").write_text(draft(folder / "homes.csv", "SalePrice", "EUR"))
    return (folder / "homes.toml").read_text()


def drafted(folder: Path, table: pd.DataFrame) -> Dataset:
    """The declaration that is drafted for `table`."""
    draft_of(folder, table)
    return load_dataset(str(folder / "homes.toml"))


def features(folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """What each drafted feature of `table` is."""
    return {f.name: f.type for f in drafted(folder, table).used}


def test_a_draft_is_loadable_as_it_stands(tmp_path: Path) -> None:
    made = drafted(tmp_path, homes())
    assert made.ignore == ("Id", "country")
    numbers = ["price", "living area", "built %", "sold year", "sold month"]
    assert made.columns == [*numbers, "town: side"]
    table = load_table(made, Settings(home=tmp_path))
    assert len(table.features) == 240 and table.features["sold month"].between(1, 12).all()
    assert made.request_model.model_validate(made.example)


def test_a_table_drafts_the_same_from_parquet(tmp_path: Path) -> None:
    table = homes().assign(lift=np.tile([True, False], 120), sold=pd.to_datetime(homes()["sold"]))
    table["built %"] = table["built %"].astype(float)
    table.to_parquet(tmp_path / "homes.parquet")
    (tmp_path / "homes.toml").write_text(draft(tmp_path / "homes.parquet", "SalePrice"))
    made = load_dataset(str(tmp_path / "homes.toml"))
    kinds = {f.name: f.type for f in made.used}
    assert kinds == features(tmp_path, homes()) | {"lift": "integer"}
    assert len(load_table(made, Settings(home=tmp_path)).frame) == 240


@pytest.mark.parametrize("name", ["a price", "a:b", "é%", 'a "quoted"', "back\\slash", "tab\there"])
def test_a_name_may_be_any_text(name: str, tmp_path: Path) -> None:
    assert name in features(tmp_path, homes().rename(columns={"living area": name}))


def test_codes_are_no_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = homes().assign(
        zipcode=rng.integers(10_000, 10_060, 240), flag=[f"0{i % 3}" for i in range(240)]
    )
    found = features(tmp_path, table)
    assert found["zipcode"] == found["flag"] == "category"


def test_a_column_that_gives_the_price_away_is_set_aside(tmp_path: Path) -> None:
    table = homes()
    table["in pounds"] = table["SalePrice"] * 0.85 + 10
    table["log"] = np.log(table["SalePrice"])
    assert {"in pounds", "log"} <= set(drafted(tmp_path, table).ignore)


def test_a_category_of_ten_thousand_values_is_not_listed(tmp_path: Path) -> None:
    rows = 30_000
    rng = np.random.default_rng(0)
    street = [f"street {i}" for i in rng.integers(0, 10_000, rows)]
    table = pd.DataFrame({"street": street, "SalePrice": rng.integers(1, 900, rows)})
    [feature] = drafted(tmp_path, table).used
    assert feature.is_category and not feature.categories


def test_prices_that_pile_up_at_the_top_are_a_cap(table: Table, tmp_path: Path) -> None:
    table.frame.to_csv(tmp_path / "boston.csv", index=False)
    drafted = draft(tmp_path / "boston.csv", "MEDV", "1000 USD")
    assert "# 16 rows stand at 50 exactly" in drafted and "\ncap = 50\n" in drafted
    assert "cap =" not in draft_of(tmp_path, homes())


def test_whole_numbers_have_whole_limits() -> None:
    garages = number("garages", pd.Series([1.0, 2.0, 1.0, 2.0]), {})
    assert (garages.features[0]["minimum"], garages.features[0]["maximum"]) == (0, 3)


def test_limits_leave_room_and_keep_signs() -> None:
    assert limits(pd.Series([20.0, 340.0])) == (0, 500)
    assert limits(pd.Series([-3.0, 5.0])) == (-7, 9)
    assert limits(pd.Series([0.0, 1.0])) == (0, 1)
    assert limits(pd.Series([7.0, 7.0])) == (0, 14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SalePrice": None}, "no number in 240 of 240 rows, the first is row 1: empty"),
        ({"SalePrice": "350,000"}, "'350,000'"),
        ({"SalePrice": np.inf}, "'inf'"),
        ({"SalePrice": 7}, "SalePrice is 7 in every row"),
    ],
)
def test_a_price_that_is_none_is_told(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        drafted(tmp_path, homes().assign(**change))


def drift_of(api: TestClient) -> Any:
    return api.get("/monitoring/drift").json()


@pytest.mark.train
@pytest.mark.usefixtures("with_tables")
def test_a_csv_becomes_a_served_price_with_no_python(tmp_path: Path) -> None:
    table = homes()
    table.to_csv(tmp_path / "homes.csv", index=False)
    environment = {**os.environ, "HOUSING_HOME": str(tmp_path), "HOUSING_DATASET": "homes.toml"}

    def housing(*words: str) -> str:
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    toml = housing("schema", "--from", "homes.csv", "--target", "SalePrice", "--unit", "EUR")
    (tmp_path / "homes.toml").write_text(toml)
    quick = [
        "-p",
        "models",
        '["Ridge", "HistGradientBoosting"]',
        "-p",
        "folds",
        "2",
        "-p",
        "repeats",
    ]
    housing("train", *quick, "1")  # with the notebook of the checkout
    often = {"drift_interval_s": 0.1, "drift_least_s": 0}
    settings = Settings(home=tmp_path, dataset="homes.toml", **often)
    with TestClient(create_app(settings)) as api:
        declared = load_dataset("homes.toml", tmp_path)
        asked = api.get("/openapi.json").json()["components"]["schemas"]["House"]
        assert set(asked["required"]) == set(declared.columns)
        frame = load_table(declared, settings).features
        houses = json.loads(frame.replace({"": None}).to_json(orient="records"))
        answers = api.post("/predict/batch", json=houses).json()
        assert answers["predictions"][0]["unit"] == "EUR" and answers["count"] == 240
        api.app.state.service.log.flush()
        columns = set(declared.columns)
        until(lambda: columns <= {f["name"] for f in drift_of(api)["report"]["features"]})
        assert api.get("/dashboard").status_code == 200
    page = report({}, settings, ROOT / settings.report_notebook)
    assert "living area" in page.read_text(encoding="utf-8")
