"""Files of houses as they come: what is passed through, what is refused, and by which words."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.batch import (
    KINDS,
    STREAM,
    BatchError,
    Piece,
    column_of,
    numbers_of,
    price_file,
    reasons,
)
from housing_mlops.model.inference import Model
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import parse

COMMAND = [sys.executable, "-c", "from housing_mlops.cli import app; app()"]
FLATS = parse(
    {
        "format": 1,
        "name": "flats",
        "title": "Flats",
        "source": {},
        "target": {"name": "price", "unit": "EUR"},
        "features": [
            {"name": "area", "minimum": 10, "maximum": 500, "example": 80.0},
            {"name": "rooms", "type": "integer", "nullable": True},
            {"name": "town", "type": "category", "nullable": True},
            {"name": "street", "type": "category", "example": "Elm"},
            {"name": "year", "type": "integer", "date": "sold", "part": "year", "example": 2020},
        ],
    }
)


@pytest.fixture
def model(bundles: dict[str, Path]) -> Model:
    return Model.open(bundles["Ridge"], "1")


def files(table: Table, folder: Path) -> tuple[pd.DataFrame, dict[str, Path]]:
    """Boston as a file with columns that nobody declared, and as what kinds of file."""
    frame = table.features.copy()
    frame.insert(0, "id", [f"nº {i}, east" for i in range(len(frame))])
    frame["seen"] = pd.Timestamp("2024-05-17")
    frame["notes"] = np.arange(len(frame))
    frame["MEDV"] = table.prices
    frame.to_csv(folder / "homes.csv", index=False)
    frame.to_parquet(folder / "homes.parquet")
    return frame, {kind: folder / f"homes.{kind}" for kind in ("csv", "parquet")}


@pytest.mark.parametrize("source", ["csv", "parquet"])
@pytest.mark.parametrize("target", ["csv", "parquet"])
def test_every_column_is_passed_through(
    model: Model, table: Table, tmp_path: Path, source: str, target: str
) -> None:
    frame, path = files(table, tmp_path)
    out = tmp_path / f"priced.{target}"
    assert price_file(model, path[source], out, progress=False) == (506, 0)
    priced = pd.read_csv(out) if target == "csv" else pd.read_parquet(out)
    assert list(priced.columns) == [*frame.columns, *KINDS]
    assert priced["id"].tolist() == frame["id"].tolist()
    assert np.allclose(priced[table.dataset.columns], table.features)
    assert pd.to_datetime(priced["seen"]).eq(frame["seen"]).all()
    told = pd.DataFrame(model.quote(table.features.to_numpy().tolist()).table())
    assert np.allclose(priced[["prediction", "low", "high"]], told[["prediction", "low", "high"]])
    assert priced["clipped"].tolist() == told["clipped"].tolist()
    outside = [o if isinstance(o, str) else "" for o in priced["outside"]]  # CSV: empty is NaN
    assert outside == told["outside"].tolist()
    if source == target == "parquet":
        assert priced.dtypes[frame.columns].equals(pd.read_parquet(path[source]).dtypes)


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "float64", "decimal", "string"])
def test_a_number_may_be_of_any_kind_that_parquet_has(kind: str) -> None:
    size = pa.decimal128(9, 2) if kind == "decimal" else pa.type_for_alias(kind)
    given: list[Any] = ["4", None, "1.5e2"] if kind == "string" else [4, None, 150]
    numbers = numbers_of(pa.array(given, size))
    assert numbers.dtype == np.float64
    assert np.array_equal(numbers, [4, np.nan, 150], equal_nan=True)


def test_a_csv_is_passed_through_to_the_letter(model: Model, table: Table, tmp_path: Path) -> None:
    row = {name: f"{value:g}" for name, value in table.dataset.example.items()}
    row = {"": "007", **row, "RM": "6.5750", "note": 'a "b", c'}
    pd.DataFrame([row]).to_csv(tmp_path / "one.csv", index=False)
    price_file(model, tmp_path / "one.csv", tmp_path / "out.csv", progress=False)
    given = (tmp_path / "one.csv").read_text().splitlines()
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert written[0] == ",".join([given[0], *KINDS]) and written[1].startswith(given[1] + ",")


def test_a_refused_house_keeps_its_cells_and_gets_its_reasons(
    model: Model, table: Table, tmp_path: Path
) -> None:
    frame = table.features.astype(object).head(4)
    frame.loc[1, ["RM", "AGE"]] = ["six", 130]
    frame.loc[2, "RAD"] = 1.5
    frame.to_csv(tmp_path / "homes.csv", index=False)
    for name in ("out.csv", "out.parquet"):
        count = price_file(model, tmp_path / "homes.csv", tmp_path / name, progress=False)
        assert count == (2, 2)
    priced = pd.read_csv(tmp_path / "out.csv")
    assert priced["RM"][1] == "six" and priced.loc[[1, 2], "prediction":"outside"].isna().all(
        axis=None
    )
    assert "RM: Input should be a valid number; AGE: Input should be less" in priced["error"][1]
    assert priced["error"][2].startswith("RAD") and priced["error"].isna().tolist()[0]
    arrow = pd.read_parquet(tmp_path / "out.parquet")
    assert np.isnan(arrow["RM"][1]) and arrow["RM"][0] == 6.575
    assert arrow["error"].tolist()[1] == priced["error"][1]


cells = {
    "area": st.sampled_from(["80", "10", "9.99", "500.1", "", "NA", "inf", "1e3", "x", " 20 "]),
    "rooms": st.sampled_from(["3", "3.0", "2.5", "", "nan", "-1", "1,5"]),
    "town": st.sampled_from(["", "None", "Faro", "x" * 200, "x" * 201]),
    "street": st.sampled_from(["Elm", "", "null"]),
    "sold": st.sampled_from(["2020-01-31", "", "31/01/2020"]),
}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=8))
def test_a_column_is_judged_as_the_request_model_judges_a_house(rows: list[dict[str, str]]) -> None:
    piece = Piece({name: tuple(row[name] for row in rows) for name in cells}, len(rows), {})
    columns = {f.name: column_of(f, piece.columns) for f in FLATS.used}
    refused = set(reasons(FLATS, piece, columns))
    for i, row in enumerate(rows):
        house: dict[str, Any] = {}
        for name in ("area", "rooms"):
            known = row[name] not in ("", "NA", "nan")
            house[name] = (
                (float(row[name]) if row[name] not in ("x", "1,5") else "x") if known else None
            )
        house["town"] = row["town"] if row["town"] not in ("", "None") else None
        house["street"] = row["street"] if row["street"] == "Elm" else None
        house["year"] = {"2020-01-31": 2020, "": None}.get(row["sold"], "no date")
        try:
            FLATS.request_model.model_validate(house)
        except ValidationError:
            assert i in refused, row
        else:
            assert i not in refused, row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": 1}, "to be renamed, for the prices need the name: prediction"),
        ({"RM": None}, "missing: RM"),
    ],
)
def test_a_header_in_the_way_is_told(
    model: Model, table: Table, tmp_path: Path, change: dict, message: str
) -> None:
    frame = table.features.head(2).assign(**change)
    frame = frame.drop(columns=[name for name, value in change.items() if value is None])
    frame.to_csv(tmp_path / "homes.csv", index=False)
    with pytest.raises(BatchError, match=message):
        price_file(model, tmp_path / "homes.csv", tmp_path / "out.csv", progress=False)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.process
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_command_reads_standard_input_and_writes_standard_output(
    bundles: dict[str, Path], table: Table, tmp_path: Path, kind: str
) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    frame, path = files(table, tmp_path)
    done = subprocess.run(
        [*COMMAND, "predict", "-", "--quiet"],
        input=path[kind].read_bytes(),
        capture_output=True,
        check=True,
        env={**os.environ, "HOUSING_HOME": str(tmp_path)},
    )
    priced = pd.read_csv(io.BytesIO(done.stdout))
    assert priced["id"].tolist() == frame["id"].tolist() and priced["prediction"].notna().all()
    assert b"506 priced, 0 refused" in done.stderr and Path("-") == STREAM
