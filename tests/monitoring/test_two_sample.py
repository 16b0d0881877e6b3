"""The two-sample tests, held against scipy."""

import numpy as np
import pytest
from scipy import stats

from housing_mlops.monitoring.two_sample import (
    benjamini_hochberg,
    chi_square,
    chi_square_p,
    kolmogorov_p,
    ks_statistic,
    share_p,
    stability_index,
)


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
