"""Reasons: judged by the definition, written out; on numbers, texts and what is unknown."""

from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations, pairwise
from math import factorial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from housing_mlops.data.table import Table, fingerprint
from housing_mlops.model.bundle import Reference
from housing_mlops.model.explanation import (
    REST,
    Tensors,
    add_up,
    as_columns,
    as_told,
    contrasts,
    contributions,
    draw_subsets,
    explain,
    grid,
    make_design,
    measure_basis,
    reason_columns,
    reference_house,
    with_pauses,
)
from housing_mlops.model.inference import CHUNK, Model, to_tensors
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import Dataset, Feature, parse
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.export import export_bundle

FLATS = parse(
    {
        "format": 1,
        "name": "flats",
        "title": "Flats",
        "source": {},
        "target": {"name": "price", "unit": "EUR"},
        "features": [
            {"name": "area", "example": 80.0, "minimum": 10},
            {"name": "rooms", "type": "integer", "example": 3, "changeable": True},
            {"name": "year", "nullable": True, "changeable": True},
            {"name": "district", "type": "category", "example": "Alfama"},
            {"name": "heating", "type": "category", "nullable": True},
        ],
    }
)
FLAT = [120.0, 4, None, "Belem", "gas"]
REFERENCE = [80.0, 3, 1960.0, "Alfama", None]


def price(tensors: Tensors) -> NDArray[np.float64]:
    """A price in which everything acts together with something, and three things with each other."""
    area, rooms, year = tensors["numbers"].astype(np.float64).T
    district, heating = tensors["texts"].T
    good = np.where(district == "Belem", 1.3, 1.0)
    warm = np.where(heating == "gas", 1.1, np.where(heating == "", 0.9, 1.0))
    age = np.where(np.isnan(year), 0.8, 1 + (year - 1960) / 100)
    return area * 2 * good * warm * age + 10 * rooms * good + 3 * (area > 100) * rooms * (age < 1)


def defined(dataset: Dataset, house: Sequence[Any], other: Sequence[Any]) -> list[float]:
    """Shapley's values as they are defined: every subset of the others, feature by feature."""
    count = len(house)

    def value(of: tuple[int, ...]) -> float:
        row = [house[i] if i in of else other[i] for i in range(count)]
        return float(price(to_tensors(dataset, [row]))[0])

    found = []
    for i in range(count):
        others, total = [j for j in range(count) if j != i], 0.0
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for subset in combinations(others, size):
                total += weight * (value((*subset, i)) - value(subset))
        found.append(total)
    return found


def test_numbers_texts_and_unknowns_get_what_the_definition_says() -> None:
    house, other = to_tensors(FLATS, [FLAT]), to_tensors(FLATS, [REFERENCE])
    found, design = contributions(price, house, other, calls=1024)
    assert design is not None and design.is_exact and len(design.coalitions) == 32
    assert np.allclose(found, defined(FLATS, FLAT, REFERENCE), atol=1e-3)  # float32 holds the rows
    assert np.isclose(found.sum(), price(house)[0] - price(other)[0])


@pytest.mark.parametrize("same", [[], [0], [1, 3], [2, 4], [0, 1, 2, 3, 4]])
def test_what_is_the_same_adds_exactly_nothing(same: list[int]) -> None:
    row = [REFERENCE[i] if i in same else FLAT[i] for i in range(5)]
    house, other = to_tensors(FLATS, [row]), to_tensors(FLATS, [REFERENCE])
    found, design = contributions(price, house, other, calls=1024)
    assert (design is None) == (len(same) == 5)
    assert all(found[i] == 0 for i in same) and all(
        found[i] != 0 for i in range(5) if i not in same
    )


def test_what_both_do_not_know_adds_nothing() -> None:
    house, other = [120.0, 4, None, "Belem", None], [80.0, 3, None, "Alfama", None]
    found, design = contributions(
        price, to_tensors(FLATS, [house]), to_tensors(FLATS, [other]), calls=1024
    )
    assert design is not None and len(design.coalitions) == 8 and found[2] == found[4] == 0


@pytest.mark.parametrize("features", [11, 14, 20, 30])
def test_a_drawn_design_adds_up_and_knows_pairs(features: int) -> None:
    """Paired coalitions are exact where no more than two features act together."""
    rng = np.random.default_rng(features)
    design = make_design(features, 1024)
    line, pairs = rng.normal(size=features), np.triu(rng.normal(size=(features, features)), 1)
    z = design.coalitions.astype(float)
    values = z @ line + np.einsum("ki,ij,kj->k", z, pairs, z)
    expected = line + (pairs.sum(axis=0) + pairs.sum(axis=1)) / 2
    assert not design.is_exact and len(design.coalitions) <= 1024
    assert len(np.unique(design.coalitions, axis=0)) == len(design.coalitions)
    assert np.allclose(design.weights @ values, expected, atol=1e-8)
    anything = rng.normal(size=len(z))
    assert np.isclose((design.weights @ anything).sum(), anything[1] - anything[0])


def test_more_features_than_calls_are_explained_all_the_same() -> None:
    line = np.random.default_rng(0).normal(size=600)
    design = make_design(600, 1024)
    assert np.allclose(design.weights @ (design.coalitions @ line), line, atol=1e-8)


@pytest.mark.parametrize(("features", "size"), [(6, 3), (7, 3), (18, 9), (40, 20)])
def test_subsets_are_different_and_of_one_size(features: int, size: int) -> None:
    drawn = draw_subsets(features, size, 8, np.random.default_rng(0))
    assert drawn.shape == (8, features) and (drawn.sum(axis=1) == size).all()
    assert len(np.unique(drawn, axis=0)) == 8
    if 2 * size == features:
        assert drawn[:, 0].all(), "of two that complete each other there is one"


money = st.floats(-1e7, 1e7).map(lambda v: float(f"{v:.7g}"))


@settings(derandomize=True, max_examples=500)
@example(1e6, 0.001953125, [0.0])
@given(money, money, st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_what_is_shown_adds_up_to_the_last_digit(
    dear: float, base: float, shares: list[float]
) -> None:
    parts = (dear - base) * np.array(shares) / (sum(shares) or 1.0)
    if not sum(shares):
        parts[0] = dear - base
    shown = add_up(dear, base, parts)
    whole = Decimal(repr(dear)) - Decimal(repr(base))
    largest = int(max(abs(dear), abs(base), abs(dear - base)))
    decimals = max(-Decimal(repr(told)).as_tuple().exponent for told in (dear, base))
    if len(str(largest)) + decimals <= 15:  # else the digits of both do not fit one number
        assert sum(Decimal(repr(part)) for part in shown) == whole
    assert np.allclose(shown, parts, atol=max(1e-4, 1e-7 * abs(dear) + 1e-7 * abs(base)))


def test_the_reference_house_is_made_of_values_that_houses_have() -> None:
    reference = Reference(
        numbers=np.array([[50, 2, np.nan], [80, 3, 1900], [90, 5, 2001]], dtype=np.float32),
        texts=np.array([["Alfama", ""], ["Belem", ""], ["Alfama", "gas"]]),
        predictions=np.zeros(3, dtype=np.float32),
        residuals=np.zeros(0, dtype=np.float32),
    )
    house = {"area": 80, "rooms": 3, "year": 1900, "district": "Alfama", "heating": None}
    assert reference_house(FLATS, reference) == house
    nothing = reference.model_copy(update={"numbers": np.full((3, 3), np.nan, np.float32)})
    assert reference_house(FLATS, nothing)["area"] is None


def test_the_basis_says_how_far_off_explanations_are() -> None:
    rng = np.random.default_rng(0)
    wide = parse(
        {
            **FLATS.model_dump(),
            "features": [{"name": f"x{i}", "example": 0.0} for i in range(15)],
        }
    )
    numbers = rng.normal(size=(50, 15)).astype(np.float32)

    def together(tensors: Tensors) -> NDArray[np.float64]:
        z = tensors["numbers"].astype(np.float64)
        return z.sum(axis=1) + 5 * z[:, 0] * z[:, 1] * z[:, 2]

    rows = {"numbers": numbers, "texts": np.zeros((50, 0), dtype=np.str_)}
    reference = Reference(
        **rows, predictions=together({"numbers": numbers}), residuals=np.zeros(0, np.float32)
    )
    basis = measure_basis(wide, together, reference)
    assert (basis.measured, basis.calls) == (32, 1024) and 0 < (basis.error or 0) < 1
    plain = measure_basis(wide, lambda t: t["numbers"].sum(axis=1, dtype=np.float64), reference)
    assert plain.error == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def mixed(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A boosting on the embedded table with a column of text, and some values unknown."""
    town = {"name": "town", "type": "category", "nullable": True, "example": "north"}
    dataset = parse(
        {**table.dataset.model_dump(), "features": [town, *table.dataset.model_dump()["features"]]}
    )
    frame = table.frame.assign(town=np.where(table.frame["RM"] < 6.2, "north", "south"))
    frame.loc[::7, "town"] = None
    X = model_input(dataset, frame)
    fitted = CANDIDATES["GradientBoosting"].build(dataset, 0).fit(X, table.prices)
    folder = tmp_path_factory.mktemp("mixed") / "bundle"
    facts = {"model": "GradientBoosting", "parameters": {}, "metrics": {}}
    facts |= {"interval": {"coverage": 0.9, "half_width": 5.0}}
    mixed_table = Table(dataset, frame, "made up", fingerprint(frame))
    export_bundle(folder, fitted, mixed_table, np.zeros(1), facts)
    return Model.open(folder, "1")


def house_of(model: Model, i: int, **change: Any) -> list[Any]:
    """A training row, as a request gives it."""
    numbers = [None if v != v else float(str(v)) for v in model.reference.numbers[i]]
    texts = [t or None for t in model.reference.texts[i].tolist()]
    row = dict(zip(model.dataset.columns, [*numbers, *texts], strict=True))
    return [*(row | change).values()]


@pytest.mark.parametrize("change", [{}, {"LSTAT": None, "town": None}, {"town": "never seen"}])
def test_fifty_houses_are_explained_to_the_last_digit(mixed: Model, change: Any) -> None:
    for i in range(0, 500, 10):
        row = house_of(mixed, i, **change)
        told = explain(mixed, row)
        assert told.price == mixed.quote([row]).prices[0]
        shown = sum(Decimal(repr(r.contribution)) for r in told.reasons)
        assert shown == Decimal(repr(told.price)) - Decimal(repr(told.base))
        assert {r.feature: r.value for r in told.reasons} == dict(
            zip(mixed.dataset.columns, row, strict=True)
        )
        sizes = [abs(r.contribution) for r in told.reasons]
        assert sizes == sorted(sizes, reverse=True)
        assert told.error == (
            0
            if told.calls
            == 2 + 2 ** np.count_nonzero([r.value != r.reference for r in told.reasons])
            else mixed.info.basis.error
        )


def test_the_large_ones_agree_with_all_coalitions(mixed: Model) -> None:
    """Order and sign of whatever is larger than what the export found to be possible."""
    basis = mixed.info.basis
    assert basis is not None and basis.error is not None and basis.error < 0.5
    other = to_tensors(mixed.dataset, [[*basis.house.values()]])
    for i in range(5, 500, 50):
        row = house_of(mixed, i)
        exact, design = contributions(
            as_told(mixed.band, mixed.price), to_tensors(mixed.dataset, [row]), other, 2**14
        )
        assert design is not None and design.is_exact
        judge = dict(zip(mixed.dataset.columns, exact.tolist(), strict=True))
        told = explain(mixed, row)
        assert max(abs(r.contribution - judge[r.feature]) for r in told.reasons) < 2 * basis.error
        large = [r for r in told.reasons if abs(r.contribution) > 4 * basis.error]
        assert large and all(r.contribution * judge[r.feature] > 0 for r in large)
        for a, b in pairwise(large):
            if abs(a.contribution) - abs(b.contribution) > 4 * basis.error:
                assert abs(judge[a.feature]) > abs(judge[b.feature])


def test_a_line_is_told_by_its_coefficients(bundles: dict[str, Path]) -> None:
    """As the graph prices; what clients are told is held to a range, and no line any more."""
    model = Model.open(bundles["LinearRegression"], "1")
    assert model.info.basis is not None and model.info.basis.error is not None
    assert model.info.basis.error < 0.2
    other, house = [*model.info.basis.house.values()], house_of(model, 0)
    tensors, base = (to_tensors(model.dataset, [row]) for row in (house, other))
    found, _ = contributions(model.price, tensors, base, 1024)
    for i, value in enumerate(house):
        alone = to_tensors(model.dataset, [[*other[:i], value, *other[i + 1 :]]])
        assert model.price(alone)[0] - model.price(base)[0] == pytest.approx(found[i], abs=1e-4)


@pytest.mark.parametrize(("rooms", "price"), [(20.0, 50.0), (1.0, 0.0)])
def test_a_price_at_the_end_of_its_range_is_explained_as_it_is_told(
    bundles: dict[str, Path], rooms: float, price: float
) -> None:
    model = Model.open(bundles["Ridge"], "1")
    row = house_of(model, 398 if price == 0 else 0, RM=rooms)
    told, basis = explain(model, row), model.info.basis
    assert told.price == price and basis is not None
    whole = sum(Decimal(repr(r.contribution)) for r in told.reasons)
    assert whole == Decimal(repr(told.price)) - Decimal(repr(told.base))
    house, other = (to_tensors(model.dataset, [r]) for r in (row, [*basis.house.values()]))
    found, _ = contributions(as_told(model.band, model.price), house, other, basis.calls)
    by_name = dict(zip(model.dataset.columns, found, strict=True))
    for reason in told.reasons:
        assert reason.contribution == pytest.approx(by_name[reason.feature], abs=1e-4)


def test_a_bundle_of_an_earlier_release_is_explained(mixed: Model) -> None:
    info = mixed.info.model_copy(update={"basis": None})
    former = Model(info, "1", mixed_graph(mixed), mixed.reference)
    told, now = explain(former, house_of(mixed, 3)), explain(mixed, house_of(mixed, 3))
    assert told.reasons == now.reasons and told.error is None


def mixed_graph(model: Model) -> Any:
    """What a model prices with."""

    class Priced:
        look = staticmethod(model.look)

    return Priced()


def test_contrasts_go_along_what_an_owner_can_change(mixed: Model) -> None:
    row = house_of(mixed, 0, RM=8.7)
    [rooms] = contrasts(mixed, row)
    assert (rooms.feature, rooms.unit, rooms.value) == ("RM", "rooms", 8.7)
    assert rooms.values == sorted(rooms.values) and len(rooms.values) == 22
    known = mixed.reference.numbers[:, mixed.dataset.columns.index("RM")]
    assert rooms.values[0] >= known.min() and rooms.values[-1] == 8.7 and 8.7 not in known
    i = mixed.dataset.columns.index("RM")
    for v, p, low, high in zip(rooms.values, rooms.prices, rooms.low, rooms.high, strict=True):
        quote = mixed.quote([[*row[:i], v, *row[i + 1 :]]])
        assert p == pytest.approx(quote.prices[0], rel=1e-6)
        assert (low, high) == pytest.approx((quote.low[0], quote.high[0]), rel=1e-6)


def test_a_grid_keeps_to_whole_numbers_and_to_the_declared_range() -> None:
    known = np.array([1, 2, 2, 3, 9, np.nan], dtype=np.float32)
    rooms = Feature(name="rooms", type="integer", minimum=2, maximum=8, example=2, changeable=True)
    assert grid(rooms, known, None) == [2, 3, 4, 5, 6, 7, 8]
    assert grid(rooms, known, 3) == [2, 3, 4, 5, 6, 7, 8]
    nothing = np.full(3, np.nan, dtype=np.float32)
    assert grid(rooms, nothing, 4) == [4] and grid(rooms, nothing, None) == []


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_line_of_a_file_adds_up_too(mixed: Model, count: int) -> None:
    told = explain(mixed, house_of(mixed, 7))
    line = as_columns(told, count)
    assert [*line] == [name for name in reason_columns(count) if name in line]
    named = [v for k, v in line.items() if k.startswith("contribution_")]
    assert len(named) == min(count, 14) and (count < 14 or line[REST] == 0)
    parts = [Decimal(repr(part)) for part in (line["base"], line[REST], *named)]
    assert sum(parts) == Decimal(repr(told.price))


@pytest.mark.parametrize("rows", [1, CHUNK, 2 * CHUNK + 1])
def test_pauses_change_no_price(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append)
    monkeypatch.setattr("housing_mlops.model.explanation.time", clock)
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(rows, 1)), "b": rng.normal(size=(rows, 1))}

    def added(given: Tensors) -> NDArray[np.float64]:
        assert len(given["a"]) == len(given["b"]) <= CHUNK
        return np.asarray(given["a"] + given["b"]).ravel()

    told = with_pauses(added, 0.001)(tensors)
    assert (told == (tensors["a"] + tensors["b"]).ravel()).all()
    assert pauses == [0.001] * -(-rows // CHUNK)
