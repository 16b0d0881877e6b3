"""Live error: a verdict on sales that is valid whenever it is looked at, and finds what begins late."""

import json

import numpy as np
import pytest

from housing_mlops.monitoring.live_error import (
    ERRORS,
    STANDS,
    ErrorsUnknown,
    alarms,
    confidence_sequence,
    factors,
    judge_errors,
    promise_of,
    simulate_errors,
)

HALF = 4.5  # of the interval


def residuals(count=500, seed=0):
    """Of a model with heavy tails, as errors of houses have them."""
    return np.random.default_rng(seed).standard_t(4, count) * 2.5


def sales(count, seed, scale=1.0, bias=0.0):
    """Errors, and whether each price was outside the interval."""
    errors = residuals(count, seed) * scale + bias
    return errors, (np.abs(errors) > HALF) * 1.0


def after(*parts):
    """Sales one after the other."""
    return [np.concatenate(side) for side in zip(*parts, strict=True)]


def test_a_good_model_is_left_alone_and_a_worse_one_found_late_and_early():
    promise = promise_of(residuals())
    good = [judge_errors(*sales(3000, seed), promise) for seed in range(1, 11)]
    assert [j.verdict for j in good].count("worse") <= 1
    for seed in range(1, 6):
        early = judge_errors(*sales(400, seed, scale=1.7), promise)
        late = judge_errors(*after(sales(2000, seed), sales(300, seed + 50, scale=1.7)), promise)
        assert early.verdict == late.verdict == "worse" and "squared error" in late.measures
        assert late.since is not None and late.since >= 2000


@pytest.mark.parametrize(("bias", "name"), [(2.5, "bias up"), (-2.5, "bias down")])
def test_a_bias_is_called_one(bias, name):
    found = judge_errors(*sales(400, 3, bias=bias), promise_of(residuals()))
    assert found.verdict == "worse" and name in found.measures
    assert (found.bias[0] > 0) == (bias > 0) and found.bias[1] * found.bias[2] > 0


def test_an_interval_that_holds_too_little_is_found_though_errors_are_as_promised():
    errors, _ = sales(400, 4)
    narrow = (np.abs(errors) > HALF / 2) * 1.0
    found = judge_errors(errors, narrow, promise_of(residuals()))
    assert found.measures == ("outside the interval",)
    none = judge_errors(errors, np.full(400, np.nan), promise_of(residuals()))
    assert none.verdict == "ok" and none.outside is None


def test_an_alarm_stands_for_a_while_and_clears():
    promise = promise_of(residuals())
    bad = sales(300, 5, scale=2)
    assert judge_errors(*after(bad, sales(50, 6)), promise).verdict == "worse"
    assert judge_errors(*after(bad, sales(STANDS + 150, 6)), promise).verdict == "ok"


def test_few_sales_are_unknown_and_a_judgement_is_json():
    promise = promise_of(residuals())
    for count in (0, 1, 29, 200):
        found = judge_errors(*sales(count, 7), promise)
        assert (found.verdict == "unknown") == (count < 30)
        assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["sales"] == count
    with pytest.raises(ErrorsUnknown, match="30"):
        promise_of(residuals(29))
    with pytest.raises(ErrorsUnknown):
        promise_of(np.zeros(100))


def test_a_bet_is_fair_and_its_alarms_are_rare():
    known = residuals(4000)
    promise = promise_of(known)
    outside = (np.abs(known) > np.quantile(np.abs(known), 0.9)) * 1.0
    bets = factors(-known, outside, promise)
    assert (bets.mean(1) <= 1.001).all() and (bets > 0).all()
    assert not alarms(np.ones((4, 2, 5000))).any(), "nobody gets rich without winning"


def test_the_sequence_covers_the_mean_at_every_look():
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(60):
        values = (rng.random(200) < 0.3) * 1.0
        seen = [confidence_sequence(values[:n]) for n in (20, 60, 120, 200)]
        missed += any(not low <= 0.3 <= high for low, high in seen)
        assert seen[-1][1] - seen[-1][0] < seen[0][1] - seen[0][0]
    assert missed <= 6


def test_runs_of_sales_are_counted_as_judged_one_by_one():
    found = simulate_errors(residuals(), "half-more", runs=30)
    assert found.share == 1 and found.median is not None and found.median < 200
    assert simulate_errors(residuals(), "good", runs=30).share <= 0.1
    ratio = simulate_errors(residuals(), "doubled-late", runs=30, ratio=True)
    assert ratio.median is None or ratio.median > 500, "what was done before"
    with pytest.raises(ErrorsUnknown, match=", ".join(ERRORS)):
        simulate_errors(residuals(), "rumours")


def test_errors_that_lean_to_one_side_are_simulated_as_they_are_promised():
    skewed = (
        np.random.default_rng(3).gamma(1.0, 3.0, 506) - 3.0
    )  # paid more than was said, rarely much
    for known in (skewed, -skewed):
        assert simulate_errors(known, "good", runs=100).share <= 0.05
