"""A log with predictions, for the tests of the loop."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.inference import Model
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.registry.shelf import install_bundle


@pytest.fixture
def home(tmp_path: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with a champion in its cache, and commands that run there."""
    settings = Settings(home=tmp_path)
    install_bundle(bundles["Ridge"], "1", settings)
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    return settings


@pytest.fixture
def priced(home: Settings, bundles: dict[str, Path], table: Table) -> Callable[..., list[str]]:
    """Prices houses of the table until some hours ago, some columns moved; gives the ids."""

    def price(rows: int, seed: int = 1, ago_h: float = 0, **shift: float) -> list[str]:
        model, version = Model.open(bundles["Ridge"], "1"), "1"
        houses = table.features.sample(rows, replace=True, random_state=seed)
        for column, by in shift.items():
            houses[column] += by
        quotes = model.quote(houses.to_numpy().tolist()).rows()
        end, ids, lines = time.time_ns() // 1000 - int(ago_h * 3600e6), [], []
        for i, (house, (price, low, high)) in enumerate(
            zip(houses.to_dict("records"), quotes, strict=True)
        ):
            ids.append(new_id())
            text = json.dumps({k: None if v != v else v for k, v in house.items()})
            at = end - (rows - i) * 60_000_000  # a minute between two
            values = (ids[-1], at, "Ridge", version, price, low, high, 0.2, "/predict", "", text)
            lines.append(encode_record(Record(*values)))
        engine = connect(home.database)
        migrate(engine)
        insert(engine, lines)
        engine.dispose()
        return ids

    return price
