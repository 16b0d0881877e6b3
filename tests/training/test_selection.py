"""From folds to a winner and its interval, on predictions that are made up."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import VotingRegressor
from threadpoolctl import threadpool_limits

from housing_mlops.data.table import Table
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.training.calibration import interval, residuals
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.cross_validation import (
    CrossValidation,
    Folds,
    TrainingError,
    cross_validate,
    make_folds,
    score_folds,
)
from housing_mlops.training.features import with_log_price
from housing_mlops.training.selection import build, choose, fitted, leaderboard, metrics, vote

ROWS = 60
PRICES = np.random.default_rng(0).uniform(10, 50, ROWS)
FOLDS = make_folds(ROWS, folds=3, repeats=2, seed=0)


def result(name: str, errors: NDArray[np.float64], folds: Folds = FOLDS) -> CrossValidation:
    """What a candidate would have done that was off by `errors`, in each repeat."""
    predictions = np.tile(PRICES + errors, (len(folds), 1))
    return CrossValidation(name, predictions, score_folds(PRICES, predictions, folds), 1.0)


@pytest.mark.parametrize(("folds", "repeats"), [(1, 1), (5, 0), (10_000, 1)])
def test_folds_that_cannot_be_made_are_refused(folds: int, repeats: int) -> None:
    with pytest.raises(TrainingError, match="it takes 2 to 100 folds"):
        make_folds(100, folds, repeats, seed=0)


def test_every_row_is_validated_once_a_repeat_and_never_by_a_model_that_saw_it() -> None:
    for repeat in FOLDS:
        assert sorted(np.concatenate([held for _, held in repeat])) == list(range(ROWS))
        assert all(not set(fitted) & set(held) for fitted, held in repeat)
    assert not np.array_equal(FOLDS[0][0][1], FOLDS[1][0][1])


def test_the_same_folds_and_seed_give_the_same_predictions(table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    folds, ridge = make_folds(len(y), 3, 1, 0), CANDIDATES["Ridge"]
    first, second = (cross_validate(ridge, table.dataset, X, y, folds, 0) for _ in range(2))
    assert np.array_equal(first.predictions, second.predictions)


@pytest.mark.process
def test_fits_in_processes_are_the_same_to_the_last_bit(table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    folds, boosting = make_folds(len(y), 3, 1, 0), CANDIDATES["GradientBoosting"]
    here, there = (
        cross_validate(boosting, table.dataset, X, y, folds, 0, jobs=jobs) for jobs in (1, 2)
    )
    assert np.array_equal(here.predictions, there.predictions)


def test_a_model_that_goes_out_is_the_same_on_any_number_of_cores(table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    winner = CrossValidation("GaussianProcess", np.empty((1, len(y))), pd.DataFrame(), 0.0)
    prices = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            model = fitted(winner, table.dataset, X[::2], y[::2], 0)
        with threadpool_limits(1):
            prices.append(model.predict(X))
    assert np.array_equal(*prices)


@pytest.mark.parametrize(("exponent", "kept"), [(1.0, ["Ridge-log"]), (0.0, [])])
def test_the_logarithm_is_learnt_where_prices_are_made_of_factors(
    exponent: float, kept: list[str], table: Table
) -> None:
    X, rng = model_input(table.dataset, table.features), np.random.default_rng(0)
    parts = ((X - X.mean()) / X.std()).fillna(0).to_numpy() @ rng.normal(0, 0.2, X.shape[1])
    y = (np.exp(parts) if exponent else 20 + parts) + rng.uniform(0, 0.1, len(X))
    folds = make_folds(len(y), 3, 2, 0)
    ridge = cross_validate(CANDIDATES["Ridge"], table.dataset, X, y, folds, 0)
    told, found = with_log_price([ridge], table.dataset, X, y, folds, 0)
    assert [f.name for f in found] == kept and list(told["kept"]) == [bool(kept)]
    assert (told["low"] < told["gain"]).all() and (told["gain"] < told["high"]).all()
    assert told["folds"].iloc[0] == (6 if kept else 3), "no second look where the first shows none"
    assert with_log_price([ridge], table.dataset, X, y - y.min(), folds, 0)[1] == []


def test_the_best_pair_is_not_always_the_two_best(table: Table) -> None:
    good = result("LinearRegression", np.full(ROWS, 1.0))
    alike = result("Ridge", np.full(ROWS, 1.1))
    opposite = result("ExtraTrees", np.full(ROWS, -1.5))
    voted = vote([good, alike, opposite], PRICES, FOLDS)
    assert voted.members == ("Ridge", "ExtraTrees") and voted.seconds == 2
    assert np.isclose(voted.rmse, 0.2)
    assert choose([good, alike, opposite, voted]) is voted
    assert isinstance(build(voted, table.dataset, 0), VotingRegressor)


def test_the_leaderboard_says_how_far_behind_and_how_sure() -> None:
    close = result("Ridge", np.full(ROWS, 1.0))
    far = result("LinearRegression", np.full(ROWS, 3.0))
    board = leaderboard([far, close])
    assert list(board.index) == ["Ridge", "LinearRegression"]
    assert np.allclose(board["behind"], [0, 2]) and np.allclose(board["behind_se"], 0)


def test_the_metrics_of_a_bundle_have_the_names_that_the_gate_reads() -> None:
    found = metrics(result("Ridge", np.full(ROWS, 1.0)), {"rmse": 2, "mae": 1, "r2": 0.5}, 0.9)
    assert np.isclose(found["cv_rmse"], 1) and found["cv_rmse_std"] < 1e-9
    assert (found["test_rmse"], found["test_interval_coverage"]) == (2, 0.9)


def test_the_interval_holds_what_it_says_and_all_where_rows_are_few() -> None:
    errors = np.random.default_rng(1).normal(0, 2, ROWS)
    found = interval(result("Ridge", errors), PRICES, coverage=0.8)
    assert np.mean(np.abs(errors) <= found.half_width) >= 0.8
    few = CrossValidation("Ridge", np.zeros((1, 5)), result("Ridge", errors).scores, 0.0)
    assert interval(few, np.arange(1.0, 6.0)).half_width == 5


def test_a_residual_is_the_mean_over_the_repeats() -> None:
    twice = np.stack([PRICES - 1, PRICES - 3])
    found = CrossValidation("Ridge", twice, score_folds(PRICES, twice, FOLDS), 0.0)
    assert np.allclose(residuals(found, PRICES), 2)
