"""The candidates: which there are, and the Gaussian process that scikit-learn has not."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from housing_mlops.data.table import Table
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.training.candidates import (
    CANDIDATES,
    GaussianProcess,
    UnknownModel,
    candidates,
    matern_kernel,
    rows_to_learn,
    unlikeliness,
    voting,
)


@pytest.fixture(scope="module")
def standardised(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The features on one scale, and the prices."""
    X = table.features
    return ((X - X.mean()) / X.std()).to_numpy(), table.prices.to_numpy()


def test_a_stranger_is_named_beside_those_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"No model Rigde\. There are LinearRegression, Ridge"):
        candidates(["Ridge", "Rigde"])


def test_candidates_keep_the_order_of_the_list() -> None:
    names = ["Ridge", "LinearRegression"]
    assert [c.name for c in candidates(names)] == ["LinearRegression", "Ridge"]
    assert [c.name for c in candidates([])] == list(CANDIDATES)


def test_a_gaussian_process_learns_from_a_sample_of_a_large_table(
    standardised: tuple[np.ndarray, np.ndarray],
) -> None:
    z, y = standardised
    first, second, other = (
        GaussianProcess(iterations=2, max_rows=100, random_state=seed).fit(z, y)
        for seed in (0, 0, 1)
    )
    assert len(first.process_.X_train_) == 100
    assert np.array_equal(first.predict(z), second.predict(z))
    assert not np.array_equal(first.predict(z), other.predict(z))
    assert first.score(z, y) > 0.6


def test_a_price_looks_at_no_more_cells_however_many_columns_there_are() -> None:
    assert rows_to_learn(404, 13) == 404 and rows_to_learn(5_000, 13) == 2_000
    assert rows_to_learn(5_000, 80) == 1_000 and rows_to_learn(5_000, 100_000) == 20
    rng = np.random.default_rng(0)
    wide = GaussianProcess(iterations=1).fit(rng.normal(size=(300, 400)), rng.normal(size=300))
    assert wide.process_.X_train_.shape == (200, 400)


def test_a_prior_holds_the_length_scales_to_where_they_start(
    standardised: tuple[np.ndarray, np.ndarray],
) -> None:
    z, y = standardised
    away = []
    for prior in (0.0, 1.0, 1e4):
        kernel = GaussianProcess(5, prior=prior).fit(z[::5], y[::5]).process_.kernel_
        away.append(np.abs(np.log(kernel.k1.k2.length_scale / 3)).max())
    assert away[0] > away[1] > away[2] and away[2] < 0.01


def test_the_likelihood_is_scikit_learns_and_has_no_value_without_a_decomposition(
    standardised: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = standardised[0][::5], standardised[1][::5]
    y = (y - y.mean()) / y.std()
    slow = GaussianProcessRegressor(matern_kernel(x.shape[1]), optimizer=None).fit(x, y)
    theta = slow.kernel_.theta + np.random.default_rng(0).normal(0, 0.5, x.shape[1] + 2)
    value, gradient = slow.log_marginal_likelihood(theta, eval_gradient=True)
    ours = unlikeliness(theta, x, y)
    assert np.isclose(-ours[0], value) and np.allclose(-ours[1], gradient)
    theta[[0, -1]] = 40, -40  # twins, and next to no noise
    value, gradient = unlikeliness(theta, np.vstack([x, x]), np.hstack([y, y]))
    assert value == np.inf and not gradient.any()


def test_a_gaussian_process_does_as_well_in_another_unit(
    standardised: tuple[np.ndarray, np.ndarray],
) -> None:
    z, y = standardised
    thousands = GaussianProcess(iterations=2).fit(z[::5], y[::5]).predict(z)
    dollars = GaussianProcess(iterations=2).fit(z[::5], 1000 * y[::5]).predict(z)
    assert np.allclose(dollars, 1000 * thousands)


def test_a_vote_is_the_average_of_its_members(table: Table) -> None:
    X, y = model_input(table.dataset, table.features), table.prices
    pair = candidates(["Ridge", "HistGradientBoosting"])
    alone = [m.build(table.dataset, 0).fit(X, y).predict(X) for m in pair]
    assert np.allclose(voting(table.dataset, pair, 0).fit(X, y).predict(X), np.mean(alone, axis=0))
