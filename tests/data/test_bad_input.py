"""What people give first, and gets a sentence that says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from housing_mlops.config import HousingError, Settings
from housing_mlops.data.table import Table, load_table
from housing_mlops.schema import parse

FLATS: dict[str, Any] = {
    "format": 1,
    "name": "flats",
    "title": "Flats",
    "source": {"embedded": "flats.csv"},
    "target": {"name": "sold", "unit": "EUR"},
    "features": [
        {"name": "price", "minimum": 0, "maximum": 9, "example": 1.0},
        {"name": "town: side", "type": "category", "example": "north"},
    ],
}


def flats(rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    side = rng.choice(["north", "south"], rows)
    return pd.DataFrame(
        {"price": rng.integers(0, 9, rows), "town: side": side, "sold": rng.integers(1, 99, rows)}
    )


def load(folder: Path, frame: pd.DataFrame, **changes: Any) -> Table:
    frame.to_csv(folder / "flats.csv", index=False)
    return load_table(parse({**FLATS, **changes}, folder, "flats.toml"), Settings(home=folder))


def test_a_feature_may_be_called_price_and_hold_spaces_and_colons(tmp_path: Path) -> None:
    assert load(tmp_path, flats()).dataset.columns == ["price", "town: side"]


def feature(**keys: Any) -> dict[str, Any]:
    return {"features": [{"name": "price", "example": 1.0, **keys}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            feature(nulable=True),
            "feature price, nulable: there is no such key; did you mean nullable",
        ),
        ({"titel": "F"}, "titel: there is no such key; did you mean title?"),
        ({"target": {"name": "sold", "units": "EUR"}}, "target, units: .* did you mean unit?"),
        ({"target": None}, "target: "),
        ({"ignore": ["price"]}, "declared twice: price"),
        (feature(type="whole"), "feature price, type: Input should be 'number', 'integer' or"),
        (feature(type="integer", part="year"), "a date and its part, both or none"),
    ],
)
def test_a_declaration_that_is_wrong(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(HousingError, match=rf"^flats.toml: .*{message}"):
        load(tmp_path, flats(), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="sold"), "wrong header; missing: sold"),
        (lambda t: t.assign(note=1), "wrong header; not declared: note"),
        (lambda t: t.assign(sold=t["sold"].where(t.index > 0)), "row 1, sold = nan: not empty"),
        (lambda t: t.assign(sold=np.inf), "row 1, sold = inf: finite"),
        (lambda t: t.head(3), "3 rows are too few; it takes 20"),
        (lambda t: t.assign(sold=7), "sold is 7 in every row"),
        (
            lambda t: t.assign(sold="350,000"),
            "'350,000': a number, written with a point and no comma, as 1234.5",
        ),
    ],
)
def test_a_table_that_is_wrong(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(HousingError, match=message):
        load(tmp_path, change(flats()))


def test_a_constant_column_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, flats().assign(price=1))
    assert "the same in every row, so it teaches nothing: price" in caplog.text


def test_ten_thousand_categories_are_not_told_one_by_one(tmp_path: Path) -> None:
    listed = {"type": "category", "categories": [f"street {i}" for i in range(10_000)]}
    with pytest.raises(HousingError, match="street 8 or 9991 others") as caught:
        load(tmp_path, flats().drop(columns="town: side"), **feature(**listed, **{"example": "a"}))
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("price,town: side,sold\n1,Peñón,7\n".encode("latin-1"), "not UTF-8: the byte 0xf1 at 26"),
        ("price,town: side,sold\n1,a,7\n".encode("utf-16"), "not UTF-8: the byte 0xff at 0"),
        (b"price;town: side;sold\n1,5;a;7\n", "separated by ';'"),
        (b"price,sold,sold\n1,7,8\n", "two columns have one name: sold"),
    ],
)
def test_a_file_of_another_kind(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "flats.csv").write_bytes(content)
    with pytest.raises(HousingError, match=message):
        load_table(parse(FLATS, tmp_path), Settings(home=tmp_path))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    flats().to_csv(tmp_path / "flats.csv", index=False, encoding="utf-8-sig")
    assert len(load_table(parse(FLATS, tmp_path), Settings(home=tmp_path)).frame) == 60


def test_dates_are_read_in_parts(tmp_path: Path) -> None:
    month = {"name": "month", "type": "integer", "date": "day", "part": "month", "example": 5}
    frame = flats().assign(day="2024-05-17")
    table = load(tmp_path, frame, features=[*FLATS["features"], month])
    assert table.features["month"].tolist() == [5.0] * 60
    with pytest.raises(HousingError, match="row 60, month = inf: finite"):
        frame.loc[59, "day"] = "17/05/2024"
        load(tmp_path, frame, features=[*FLATS["features"], month])
