"""Drift: the tests against scipy, columns that break, rows that do not fit, and what the alarm does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from housing_mlops.monitoring import drift
from housing_mlops.monitoring.drift import DriftError, DriftMonitor, Reference, Rows, check, judge
from housing_mlops.monitoring.simulation import (
    SimulationResult,
    simulate,
    simulate_all,
    simulation_table,
)
from housing_mlops.monitoring.two_sample import (
    benjamini_hochberg,
    chi_square,
    chi_square_p,
    kolmogorov_p,
    ks_statistic,
    share_p,
    stability_index,
)

DISTRICTS = np.array(["Alfama", "Belem", "Chiado", "Graca"])


def rows(count, seed, shift=0.0, districts=(0.5, 0.3, 0.15, 0.05), residuals=0):
    """Flats: two numbers (the second sometimes unknown), a flag, a district, a price."""
    rng = np.random.default_rng(seed)
    area = rng.normal(80, 20, count) + 20 * shift
    year = np.where(rng.random(count) < 0.1, np.nan, rng.integers(1900, 2020, count))
    lift = (rng.random(count) < 0.3) * 1.0
    district = rng.choice(DISTRICTS, count, p=districts)[:, None]
    price = 3 * area + rng.normal(0, 10, count)
    return Rows(np.column_stack([area, year, lift]), district, price, rng.normal(0, 5, residuals))


def reference(count=500, seed=0, residuals=500):
    r = rows(count, seed, residuals=residuals)
    names = ("area", "year", "lift", "district")
    return Reference(r.numbers, r.texts, r.predictions, r.residuals, columns=names)


@pytest.fixture(scope="module")
def known():
    return reference()


def verdicts(report):
    return {f.name: f.verdict for f in report.features}


# The statistics, against scipy


@pytest.mark.parametrize("seed", range(20))
def test_ks_agrees_with_scipy_with_and_without_ties(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(50, 800), rng.integers(20, 300)
    old, new = rng.normal(size=n), rng.normal(rng.normal(0, 0.4), 1, m)
    if seed % 2:
        old, new = old.round(), new.round()
    old, new = np.sort(old), np.sort(new)
    found = stats.ks_2samp(old, new, method="asymp")
    ours = ks_statistic(old, new)
    assert abs(ours) == pytest.approx(found.statistic)
    assert np.sign(ours) == -found.statistic_sign  # ours speaks of the window
    p = kolmogorov_p(ours, n, m)
    if found.pvalue > 1e-6:
        assert p == pytest.approx(found.pvalue, rel=0.1)
    else:
        assert np.log(p) == pytest.approx(np.log(found.pvalue), rel=0.03)


def test_ks_sign_says_where_the_window_went():
    old = np.arange(100.0)
    assert ks_statistic(old, old - 10) > 0 > ks_statistic(old, old + 10)
    assert ks_statistic(old, old) == 0 and kolmogorov_p(0.0, 100, 100) == 1.0


def test_kolmogorov_p_is_the_limit_law_on_both_sides_of_the_switch():
    for x in (0.21, 0.5, 1.0, 1.17, 1.19, 2.0, 4.0):
        root = np.sqrt(500 * 100 / 600)
        p = kolmogorov_p(x / (root + 0.12 + 0.11 / root), 500, 100)
        assert p == pytest.approx(stats.kstwobign.sf(x), rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_share_agrees_with_fisher(seed):
    rng = np.random.default_rng(seed)
    n, m = map(int, rng.integers(1, 700, 2))
    k, j = int(rng.integers(0, n + 1)), int(rng.integers(0, m + 1))
    expected = stats.fisher_exact([[k, n - k], [j, m - j]]).pvalue
    assert share_p(k, n, j, m) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_share_without_rows_or_without_difference_says_nothing():
    assert share_p(0, 0, 3, 9) == share_p(0, 9, 0, 9) == share_p(9, 9, 4, 4) == 1.0


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 99])
@pytest.mark.parametrize("x", [0.0, 1e-9, 0.5, 3.0, 20.0, 150.0, 900.0])
def test_chi_square_tail_agrees_with_scipy(x, freedom):
    assert chi_square_p(x, freedom) == pytest.approx(stats.chi2.sf(x, freedom), rel=1e-9)


def test_chi_square_agrees_with_the_contingency_table():
    old, new = np.array([250.0, 150, 75, 25]), np.array([40.0, 35, 15, 10])
    expected = stats.chi2_contingency([old, new], correction=False)
    assert chi_square(old, new) == pytest.approx((expected.statistic, expected.pvalue))


def test_benjamini_hochberg_agrees_with_scipy_and_passes_over_the_untested():
    p = np.random.default_rng(0).random(30) ** 3
    assert benjamini_hochberg(p.tolist()) == pytest.approx(stats.false_discovery_control(p))
    assert benjamini_hochberg([None, 0.02, None]) == [None, 0.02, None]
    assert benjamini_hochberg([]) == []


def test_stability_index_has_no_bias_without_drift():
    rng = np.random.default_rng(1)
    draws = [rng.multinomial(n, np.full(10, 0.1)).astype(float) for n in [500, 150] * 1000]
    found = [stability_index(a, b) for a, b in zip(draws[::2], draws[1::2], strict=True)]
    assert abs(np.mean(found)) < 0.01
    assert stability_index(np.full(10, 50.0), np.array([100.0] + [0.0] * 9)) > 1


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
        old = Reference(*draw(streets, 500), columns=("street",))
        quiet.append(check(old, Rows(*draw(streets, size))))
    assert sum(r.verdict == "drift" for r in quiet) <= 4
    for some in (streets[:60], np.array([*streets, *(f"lane {i}" for i in range(60))])):
        assert check(old, Rows(*draw(some, 200))).verdict == "drift"
    assert len(quiet[0].features[0].reference.shares) == drift.SHOWN + 1


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
    window = Rows(window.numbers, window.texts, window.predictions)
    report = check(known, window)
    broken = report.features[column]
    assert broken.verdict == "unknown" and broken.stuck and broken.note
    others = [v for name, v in verdicts(report).items() if name not in (broken.name, "residual")]
    assert set(others) == {"ok"}


@pytest.mark.parametrize("value", ["", "Belem", "Narnia"])
def test_an_empty_or_constant_category_is_unknown_and_spoils_no_other(known, value):
    window = rows(200, 10)
    report = check(known, Rows(window.numbers, np.full((200, 1), value), window.predictions))
    assert report.features[3].verdict == "unknown" and report.features[3].stuck
    assert [f.verdict for f in report.features[:3]] == ["ok"] * 3


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_reference_that_is_empty_or_constant_is_unknown(known, value):
    numbers = np.array(known.numbers)
    numbers[:, 0] = value
    texts = np.full((500, 1), "" if np.isnan(value) else "Belem")
    old = replace(known, numbers=numbers, texts=texts)
    report = check(old, rows(200, 11))
    assert [report.features[i].verdict for i in (0, 3)] == ["unknown"] * 2
    assert report.features[0].stuck and report.features[3].stuck
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
    assert found.verdict == "unknown" and not found.stuck


def test_residuals_count_when_enough_true_prices_came(known):
    few = check(known, rows(200, 13, residuals=99)).features[-1]
    assert few.verdict == "unknown" and "99 rows" in few.note
    window = rows(200, 13, residuals=150)
    assert check(known, window).features[-1].verdict == "ok"
    worse = replace(window, residuals=window.residuals + 5)
    assert check(known, worse).flagged == ("residual",)
    blind = replace(known, residuals=np.empty(0))
    assert check(blind, worse).features[-1].verdict == "unknown"


def test_without_predictions_the_features_are_still_judged(known):
    window = rows(200, 14)
    report = check(known, Rows(window.numbers, window.texts, ()))
    assert report.features[-2].verdict == "unknown" and report.verdict == "ok"


@pytest.mark.parametrize("count", [0, 1, 99])
def test_below_the_minimum_everything_is_unknown(known, count):
    report = check(known, rows(500, 15, shift=-3).newest(count))
    assert report.verdict == "unknown" and report.flagged == ()
    assert {f.verdict for f in report.features} == {"unknown"}


def test_all_unknown_rows_are_stuck_not_ok(known):
    blank = Rows(np.full((200, 3), np.nan), np.full((200, 1), ""), np.full(200, np.nan))
    report = check(known, blank)
    assert {f.verdict for f in report.features} == {"unknown"}
    assert set(report.flagged) == {"area", "year", "lift", "district", "prediction"}


def test_reports_are_json_without_nan(known):
    blank = Rows(np.full((300, 3), np.nan), np.full((300, 1), ""), np.full(300, np.nan))
    for window in (rows(0, 0), rows(150, 1), rows(400, 2, shift=-0.5, residuals=300), blank):
        told = json.loads(json.dumps(judge(known, window).as_dict(), allow_nan=False))
        assert told["verdict"] in ("ok", "drift", "unknown")
        assert len(told["report"]["features"]) == 6


# Rows and references that do not fit


def test_one_kind_of_column_is_enough():
    rng = np.random.default_rng(0)
    none = np.empty((300, 0))
    numbers = Reference(rng.normal(size=(300, 1)), none, rng.normal(size=300), columns=("x",))
    window = Rows(rng.normal(size=(300, 1)), none, rng.normal(size=300))
    assert check(numbers, window).verdict == "ok"
    texts = Reference(none, rng.choice(DISTRICTS, (300, 1)), (), columns=("d",))
    assert check(texts, Rows(none, rng.choice(DISTRICTS, (300, 1)), ())).verdict == "ok"
    assert simulate(texts, rows=200, runs=2, progress=False).runs == 2


def test_rows_come_from_the_houses_of_the_log(known):
    houses = [
        {"district": "Belem", "area": 80.5, "lift": None, "stranger": 1},
        {"area": 70, "year": 1990.0, "lift": 1, "district": None},
    ]
    found = known.rows(houses, [1.0, 2.0], [0.5])
    assert np.array_equal(found.numbers, [[80.5, np.nan, np.nan], [70, 1990, 1]], equal_nan=True)
    assert found.texts.tolist() == [["Belem"], [""]] and found.residuals.tolist() == [0.5]
    assert len(known.rows([])) == 0
    assert judge(known, known.rows([])).verdict == "unknown"


def test_the_arrays_survive_a_file(known, tmp_path):
    parts = ("numbers", "texts", "predictions", "residuals")
    np.savez(tmp_path / "reference.npz", **{p: getattr(known, p) for p in parts})
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
        again = Reference(**arrays, columns=known.columns)
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
        Rows(*arrays)


def test_columns_that_differ_are_refused(known):
    with pytest.raises(DriftError, match="4 columns of reference values and 1 names"):
        Reference(known.numbers, known.texts, known.predictions, columns=("area",))
    window = rows(200, 17)
    with pytest.raises(DriftError, match="2 numeric and 1 text columns; the reference has 3 and 1"):
        check(known, Rows(window.numbers[:, :2], window.texts, window.predictions))


def test_a_value_that_is_not_finite_is_unknown(known):
    window = rows(200, 28)
    window.numbers[:40, 0] = np.inf
    found = check(known, Rows(window.numbers, window.texts, window.predictions)).features[0]
    assert found.window.missing == 0.2 and np.isfinite(found.window.quantiles).all()


def test_unknown_texts_may_be_none_or_nan():
    found = Rows(np.empty((3, 0)), [["a"], [None], [float("nan")]], ())
    assert found.texts.tolist() == [["a"], [""], [""]]


# The alarm


def test_drift_needs_two_windows_that_name_the_same_column(known):
    quiet, moved = rows(400, 18), rows(400, 19, shift=-0.8)
    other = rows(100, 20, districts=(0.1, 0.1, 0.1, 0.7))
    assert judge(known, quiet).verdict == "ok"
    once = judge(known, quiet.then(moved.newest(100)))
    assert once.verdict == "ok" and "area" in once.suspects and once.features == ()
    twice = judge(known, quiet.then(moved.newest(200)))
    assert twice.verdict == "drift" and "area" in twice.features
    differing = judge(known, quiet.then(other).then(moved.newest(100)), windows=(100,))
    assert differing.verdict == "ok" and "area" in differing.suspects


def test_one_window_alone_clears_but_does_not_accuse(known):
    assert judge(known, rows(150, 21)).verdict == "ok"
    suspicion = judge(known, rows(150, 22, shift=-1.0))
    assert suspicion.verdict == "unknown" and "area" in suspicion.suspects


def test_a_stuck_column_raises_the_alarm(known):
    window = rows(400, 23)
    window.numbers[:, 0] = 80
    found = judge(known, window)
    assert found.verdict == "drift" and found.features == found.stuck == ("area",)


def test_the_steady_pair_keeps_the_alarm_standing(known):
    lasting = [rows(400, seed, shift=-0.5) for seed in range(30, 60)]
    quick = sum(judge(known, r, windows=(100,)).verdict == "drift" for r in lasting)
    both = sum(judge(known, r).verdict == "drift" for r in lasting)
    assert both >= 28 > quick


def test_a_window_longer_than_the_log_is_judged_by_what_there_is(known):
    found = judge(known, rows(150, 24), windows=(1000,))
    assert found.verdict == "ok" and found.report.rows == 150
    with pytest.raises(DriftError, match="at least 100"):
        judge(known, rows(150, 24), windows=(50,))
    with pytest.raises(DriftError, match="at least 100"):
        judge(known, rows(150, 24), windows=())


def test_a_monitor_says_what_a_fresh_judgement_of_its_rows_says(known):
    stream = rows(700, 25, residuals=700).then(rows(500, 26, shift=-0.6, residuals=500))
    monitor = DriftMonitor(known)
    assert monitor.verdict == "unknown"
    for start in range(0, 1200, 25):
        part = slice(start, start + 25)
        found = monitor.add(
            Rows(
                *(
                    a[part]
                    for a in (stream.numbers, stream.texts, stream.predictions, stream.residuals)
                )
            )
        )
        past = stream.newest(400, skip=1200 - start - 25)
        assert found == judge(known, past) and found is monitor.judgement
    assert monitor.verdict == "drift"
    assert monitor.add(rows(24, 27)) is found


def test_the_table_itself_is_quiet_until_its_rooms_fall():
    from importlib.resources import files

    path = files("housing_mlops") / "datasets" / "boston.csv"
    table = np.genfromtxt(str(path), delimiter=",", skip_header=1)[:, :13]
    names = path.read_text().partition("\n")[0].split(",")[:13]
    old = Reference(table, np.empty((506, 0)), table[:, 5] * 9, columns=tuple(names))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(506) for _ in range(5)])[:2400]
        live = table[order]
        live[2000:, 5] -= table[:, 5].std() / 2
        monitor = DriftMonitor(old)
        said = []
        for start in range(0, 2400, 25):
            some = live[start : start + 25]
            said.append(monitor.add(Rows(some, np.empty((25, 0)), some[:, 5] * 9)).verdict)
        assert "drift" not in said[:80] and said[79] == "ok"
        assert said[-1] == "drift" and "RM" in monitor.judgement.features


# Simulation


def test_a_simulation_is_quiet_without_drift_and_finds_it_with(known):
    quiet = simulate(known, rows=1000, runs=10, progress=False)
    assert quiet.share() <= 0.1
    moved = simulate(known, rows=500, runs=10, shift=-0.5, feature="area", progress=False)
    assert moved.share() >= 0.9 and moved.median is not None and moved.median <= 250
    again = simulate(known, rows=500, runs=10, shift=-0.5, feature="area", progress=False)
    assert again == moved


@pytest.mark.parametrize("mode", ["same", "split", "resampled"])
def test_modes_and_designs(known, mode):
    found = simulate(known, rows=200, runs=2, mode=mode, windows=(100,), checks=1, progress=False)
    assert found.mode == mode and found.windows == (100,) and found.checks == 1


def test_a_flag_moves_by_its_share(known):
    up = simulate(known, rows=500, runs=5, shift=0.8, feature="lift", progress=False)
    assert up.share() == 1.0
    down = simulate(known, rows=500, runs=5, shift=-5, feature="lift", progress=False)
    assert down.share() == 1.0  # all of them flipped: stuck


def test_moved_houses_are_priced_again(known):
    asked = []

    def predict(numbers, texts):
        asked.append((numbers.shape, texts.shape))
        return numbers[:, 0] * 3

    simulate(known, rows=200, runs=1, shift=1, feature="area", predict=predict, progress=False)
    assert asked == [((200, 3), (200, 1))]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"shift": 0.5}, "together"),
        ({"feature": "area"}, "together"),
        ({"shift": 0.5, "feature": "district"}, "area, year, lift"),
        ({"windows": (110,)}, "divides"),
        ({"runs": 0}, "at least one run"),
        ({"step": 0}, "at least one run"),
        ({"mode": "live"}, "resampled, same or split"),
        ({"windows": (20,)}, "at least 100"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(known, asked, said):
    with pytest.raises(DriftError, match=said):
        simulate(known, progress=False, **asked)


def test_a_table_too_small_to_simulate_is_refused():
    with pytest.raises(DriftError, match="table of at least 100"):
        simulate(reference(60), progress=False)


def test_the_table_of_results():
    some = SimulationResult("x", -0.5, "same", 500, (100,), 25, 2, (100, 200, None, 300))
    none = replace(some, alarms=(None, None, 100))
    assert some.share() == 0.75 and some.share(within=200) == 0.5 and some.median == 250
    assert none.median is None and 0 < none.interval[0] < 1 / 3 < none.interval[1] < 1
    told = simulation_table([some, replace(some, feature=None)])
    assert [row["feature"] for row in told] == ["x", "none (quiet)"]
    assert json.dumps(told, allow_nan=False)


def test_all_features_in_turn(known):
    found = simulate_all(known, runs=1, rows=100, horizon=100, progress=False)
    assert [r.feature for r in found] == [None, "area", "year", "lift"]
