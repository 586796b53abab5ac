"""scikit-learn's own battery for estimators, and RegimeModel among its tools."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_regimes.estimator import RegimeModel
from tests import seeds

EXPECTED_FAILURES = {
    "check_methods_sample_order_invariance": (
        "the rows are a series in time: another order is another path, with another likelihood"
    ),
    "check_methods_subset_invariance": (
        "a row's regime depends on the rows before and after it, so one row at a time differs"
    ),
    "check_sample_weight_equivalence_on_dense_data": (
        "a weight counts a whole sequence: rows of one that differ in their weights are refused"
    ),
    "check_sample_weights_not_overwritten": "it gives one row of a sequence another weight",
}


# The checks fit 10 iterations to 20 points of noise, and mean to: that it warns is no failure.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [RegimeModel(n_init=2, max_iter=10)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_sklearn_compatible(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def returns() -> np.ndarray:
    rng = seeds.rng(0)
    volatile = (np.arange(300) // 50) % 2
    return rng.standard_normal((300, 2)) * (1 + 3 * volatile[:, None]) + volatile[:, None]


def test_clone_and_parameters():
    model = RegimeModel(n_regimes=2, order_by="mean", tol=0.1)
    copy = clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    assert copy.set_params(n_regimes=4).n_regimes == 4 and model.n_regimes == 2
    assert repr(model) == "RegimeModel(n_regimes=2, order_by='mean', tol=0.1)"


def test_pipeline_with_a_y(returns):
    """y is passed and ignored; the scaler's units are the model's."""
    pipeline = make_pipeline(StandardScaler(), RegimeModel(2, n_init=2, tol=1e-3, random_state=0))
    pipeline.fit(returns, np.zeros(300))
    scaled = StandardScaler().fit_transform(returns)
    alone = RegimeModel(2, n_init=2, tol=1e-3, random_state=0).fit(scaled)
    np.testing.assert_array_equal(pipeline.predict(returns), alone.predict(scaled))
    assert pipeline.score(returns, np.zeros(300)) == alone.score(scaled)


def test_grid_search_over_the_number_of_regimes(returns):
    search = GridSearchCV(
        RegimeModel(covariance_type="diag", n_init=2, tol=1e-2, random_state=0),
        {"n_regimes": [1, 2]},
        cv=TimeSeriesSplit(2),
        error_score="raise",
    )
    search.fit(returns)
    assert search.best_params_ == {"n_regimes": 2}
    assert search.best_estimator_.means_.shape == (2, 2)
