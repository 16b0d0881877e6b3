"""One check of a window: columns that move, columns that break, arrays that do not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flats import DISTRICTS, rows

from housing_mlops.monitoring.drift import (
    SHOWN,
    DriftError,
    DriftReference,
    Observations,
    check,
    flagged_columns,
)


def verdicts(report):
    return {f.name: f.verdict for f in report.features}


# One check


def test_a_quiet_window_is_ok_and_a_moved_one_names_what_moved(known):
    assert check(known, rows(200, 1, residuals=200)).verdict == "ok"
    report = check(known, rows(200, 2, shift=-0.6))
    assert report.verdict == "drift" and set(report.flagged) == {"area", "prediction"}
    strength = [f.p for name in report.flagged for f in report.features if f.name == name]
    assert strength == sorted(strength)


def test_a_change_of_missing_values_is_drift_though_the_known_ones_stay(known):
    window = rows(200, 3)
    window.numbers[:80, 1] = np.nan
    assert check(known, window).flagged == ("year",)


def test_few_known_values_leave_the_distribution_unknown(known):
    sparse = np.array(known.numbers)
    sparse[10:, 1] = np.nan
    thin = replace(known, numbers=sparse)
    window = rows(200, 4)
    window.numbers[4:, 1] = np.nan
    found = check(thin, window).features[1]
    assert found.verdict == "unknown" and "only 4 known" in found.note
    assert check(known, window).features[1].verdict == "drift"  # the share of missing ones moved


def test_categories_moved_rare_and_unseen(known):
    assert check(known, rows(200, 5, districts=(0.2, 0.3, 0.45, 0.05))).flagged == ("district",)
    window = rows(200, 6)
    window.texts[:12, 0] = "Narnia"
    found = check(known, window).features[3]
    assert found.verdict == "drift" and found.window.shares["(other)"] == pytest.approx(0.06)


def test_unknown_categories_are_one_more_category(known):
    window = rows(200, 7)
    window.texts[:40, 0] = ""
    found = check(known, window).features[3]
    assert found.verdict == "drift" and found.window.missing == pytest.approx(0.2)


def test_many_rare_categories_are_pooled_and_still_compared():
    rng = np.random.default_rng(0)
    streets = np.array([f"street {i}" for i in range(200)])
    empty = np.empty((500, 0))

    def draw(some, count):
        return empty[:count], rng.choice(some, (count, 1)), ()

    quiet = []
    for size in (100, 200) * 30:
        old = DriftReference(*draw(streets, 500), columns=("street",))
        quiet.append(check(old, Observations(*draw(streets, size))))
    assert sum(r.verdict == "drift" for r in quiet) <= 4
    for some in (streets[:60], np.array([*streets, *(f"lane {i}" for i in range(60))])):
        assert check(old, Observations(*draw(some, 200))).verdict == "drift"
    assert len(quiet[0].features[0].reference.shares) == SHOWN + 1


def test_a_flag_is_compared_by_its_share(known):
    window = rows(200, 8)
    window.numbers[:, 2] = np.arange(200) % 10 < 6
    found = check(known, window).features[2]
    assert found.verdict == "drift" and set(found.window.shares) == {"0", "1"}
    window.numbers[:, 2] = 0.5
    window.numbers[0, 2] = 1
    assert check(known, window).features[2].window.shares["(other)"] > 0.9


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_an_empty_or_constant_number_is_unknown_and_spoils_no_other(known, column, value):
    window = rows(200, 9)
    window.numbers[:, column] = value
    window = Observations(window.numbers, window.texts, window.predictions)
    report = check(known, window)
    broken = report.features[column]
    assert broken.verdict == "unknown" and broken.degenerate and broken.note
    aside = (broken.name, "residual", "combination")
    assert {v for name, v in verdicts(report).items() if name not in aside} == {"ok"}


@pytest.mark.parametrize("value", ["", "Belem", "Narnia"])
def test_an_empty_or_constant_category_is_unknown_and_spoils_no_other(known, value):
    window = rows(200, 10)
    report = check(
        known, Observations(window.numbers, np.full((200, 1), value), window.predictions)
    )
    assert report.features[3].verdict == "unknown" and report.features[3].degenerate
    assert [f.verdict for f in report.features[:3]] == ["ok"] * 3


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_reference_that_is_empty_or_constant_is_unknown(known, value):
    numbers = np.array(known.numbers)
    numbers[:, 0] = value
    texts = np.full((500, 1), "" if np.isnan(value) else "Belem")
    old = replace(known, numbers=numbers, texts=texts)
    report = check(old, rows(200, 11))
    assert [report.features[i].verdict for i in (0, 3)] == ["unknown"] * 2
    assert report.features[0].degenerate and report.features[3].degenerate
    assert report.features[1].verdict == "ok"
    same = check(old, old.newest(200))  # as constant as it always was: no news
    assert [same.features[i].verdict for i in (0, 3)] == ["unknown"] * 2
    assert same.flagged == () and same.verdict == "ok"


def test_a_rarely_set_flag_that_is_not_set_is_no_news(known):
    numbers = np.array(known.numbers)
    numbers[:, 2] = np.arange(500) < 5
    window = rows(100, 12)
    window.numbers[:, 2] = 0
    found = check(replace(known, numbers=numbers), window).features[2]
    assert found.verdict == "unknown" and not found.degenerate


def test_residuals_count_when_enough_actual_prices_came(known):
    few = check(known, rows(200, 13, residuals=99)).features[-2]
    assert few.verdict == "unknown" and "99 rows" in few.note
    window = rows(200, 13, residuals=150)
    assert check(known, window).features[-2].verdict == "ok"
    worse = replace(window, residuals=window.residuals + 5)
    assert check(known, worse).flagged == ("residual",)
    blind = replace(known, residuals=np.empty(0))
    assert check(blind, worse).features[-2].verdict == "unknown"


def test_without_predictions_the_features_are_still_judged(known):
    window = rows(200, 14)
    report = check(known, Observations(window.numbers, window.texts, ()))
    assert report.features[-3].verdict == "unknown" and report.verdict == "ok"


@pytest.mark.parametrize("count", [0, 1, 99])
def test_below_the_minimum_everything_is_unknown(known, count):
    report = check(known, rows(500, 15, shift=-3).newest(count))
    assert report.verdict == "unknown" and report.flagged == ()
    assert {f.verdict for f in report.features} == {"unknown"}


def test_all_unknown_rows_are_degenerate_not_ok(known):
    blank = Observations(np.full((200, 3), np.nan), np.full((200, 1), ""), np.full(200, np.nan))
    report = check(known, blank)
    assert {f.verdict for f in report.features} == {"unknown"}
    assert set(report.flagged) == {"area", "year", "lift", "district", "prediction"}


def test_reports_are_json_without_nan(known):
    blank = Observations(np.full((300, 3), np.nan), np.full((300, 1), ""), np.full(300, np.nan))
    for window in (rows(0, 0), rows(150, 1), rows(400, 2, shift=-0.5, residuals=300), blank):
        payload = json.loads(json.dumps(check(known, window).as_dict(), allow_nan=False))
        assert payload["verdict"] in ("ok", "drift", "unknown") and len(payload["features"]) == 7


def test_the_flags_alone_are_those_of_the_whole_check(known):
    for seed, shift in enumerate((0.0, -0.3, -0.6, -0.9)):
        window = rows(200, seed, shift=shift, residuals=150)
        window.numbers[:, seed % 2] = 80 if seed % 2 else window.numbers[:, 0]
        found = check(known, window)
        assert flagged_columns(known, window) == {f.key for f in found.features if f.flagged}


# Observations and references that do not fit


def test_one_kind_of_column_is_enough():
    rng = np.random.default_rng(0)
    none = np.empty((300, 0))
    numbers = DriftReference(rng.normal(size=(300, 1)), none, rng.normal(size=300), columns=("x",))
    window = Observations(rng.normal(size=(300, 1)), none, rng.normal(size=300))
    assert check(numbers, window).verdict == "ok"
    texts = DriftReference(none, rng.choice(DISTRICTS, (300, 1)), (), columns=("d",))
    assert check(texts, Observations(none, rng.choice(DISTRICTS, (300, 1)), ())).verdict == "ok"


def test_the_arrays_survive_a_file(known, tmp_path):
    parts = ("numbers", "texts", "predictions", "residuals")
    np.savez(tmp_path / "reference.npz", **{p: getattr(known, p) for p in parts})
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
        again = DriftReference(**arrays, columns=known.columns)
    window = rows(200, 16)
    assert check(again, window) == check(known, window)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (([["six"]], [[""]], [1.0]), "must be numbers"),
        (([1.0, 2.0], [[""]], [1.0]), "numbers must have 2 dimension"),
        (([[1.0]], ["a"], [1.0]), "texts must have 2 dimensions"),
        (([[1.0]], [["a"], ["b"]], [1.0]), "one of each a row"),
        (([[1.0]], [["a"]], [1.0, 2.0]), "one of each a row"),
        (([[1.0]], [["a"]], [[1.0]]), "predictions must have 1 dimension"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, said):
    with pytest.raises(DriftError, match=said):
        Observations(*arrays)


def test_columns_that_differ_are_refused(known):
    with pytest.raises(DriftError, match="4 columns of reference values and 1 names"):
        DriftReference(known.numbers, known.texts, known.predictions, columns=("area",))
    window = rows(200, 17)
    with pytest.raises(DriftError, match="2 numeric and 1 text columns; the reference has 3 and 1"):
        check(known, Observations(window.numbers[:, :2], window.texts, window.predictions))


def test_a_value_that_is_not_finite_is_unknown(known):
    window = rows(200, 28)
    window.numbers[:40, 0] = np.inf
    found = check(known, Observations(window.numbers, window.texts, window.predictions)).features[0]
    assert found.window.missing == 0.2 and np.isfinite(found.window.quantiles).all()


def test_unknown_texts_may_be_none_or_nan():
    found = Observations(np.empty((3, 0)), [["a"], [None], [float("nan")]], ())
    assert found.texts.tolist() == [["a"], [""], [""]]
