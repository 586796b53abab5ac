"""No answer depends on a unit: columns scaled, shifted and permuted, on random data."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests import seeds


def two_regimes(seed: int, num_series: int, ratio: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Runs of 40 steps, calm and wild in turn, with other means; and which they are."""
    rng = seeds.rng(seed)
    state = (np.arange(320) // 40) % 2
    mixed = 0.4 * rng.standard_normal((num_series, num_series)) + 2 * np.eye(num_series)
    x = rng.standard_normal((320, num_series)) * np.where(state, ratio, 1.0)[:, None]
    return (x + 4.0 * state[:, None]) @ mixed, state


def fit(x: np.ndarray, covariance_type: str, **settings: object) -> RegimeModel:
    settings = dict(n_init=2, max_iter=300, order_by="volatility", random_state=0) | settings
    return RegimeModel(2, covariance_type, **settings).fit(x)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    powers=st.lists(st.integers(-12, 12), min_size=3, max_size=3),
    levels=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    columns=st.permutations(range(3)),
)
def test_the_same_regimes_in_any_units(seed, covariance_type, powers, levels, columns):
    if covariance_type == "spherical":  # its series have one unit
        powers = powers[:1] * 3
    x, _ = two_regimes(seed, 3, ratio=1.0 if covariance_type == "tied" else 4.0)
    units = 10.0 ** np.array(powers)
    other = ((x + np.array(levels) * x.std(0)) * units)[:, columns]
    one, two = fit(x, covariance_type), fit(other, covariance_type)
    np.testing.assert_array_equal(two.predict(other), one.predict(x))
    expected = one.log_likelihood_ - len(x) * np.log(units).sum()
    np.testing.assert_allclose(two.log_likelihood_, expected, rtol=0, atol=1e-2)
    np.testing.assert_allclose(two.transition_matrix_, one.transition_matrix_, rtol=0, atol=1e-3)
    ours, theirs = (
        each._hmm().spec.moments(each._hmm().parameters.emission).matrices() for each in (one, two)
    )
    scales = np.sqrt(np.diagonal(ours, axis1=1, axis2=2)) * units
    ours = (ours * np.outer(units, units))[:, columns][:, :, columns]
    bound = scales[:, columns, None] * scales[:, None, columns]
    assert (np.abs(theirs - ours) <= 1e-2 * bound).all()


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    states=st.permutations(range(3)),
)
def test_the_same_regimes_from_a_start_with_permuted_states(seed, covariance_type, states):
    """The order of the regimes comes from the data alone."""
    rng = seeds.rng(seed)
    state = (np.arange(360) // 40) % 3
    scales = np.ones(3) if covariance_type == "tied" else np.array([1.0, 2.0, 4.0])
    x = (rng.standard_normal((360, 2)) + 5.0 * state[:, None]) * scales[state][:, None]
    means = np.stack([x[state == k].mean(0) + 0.3 * rng.standard_normal(2) for k in range(3)])
    start = {
        "initial_probs": rng.dirichlet([5.0] * 3),
        "transition_matrix": 0.5 * np.eye(3) + 0.5 * rng.dirichlet([5.0] * 3, 3),
        "means": means,
    }
    permuted = {"initial_probs": start["initial_probs"][states], "means": means[states]}
    permuted["transition_matrix"] = start["transition_matrix"][np.ix_(states, states)]
    cases = []
    for given_start in (start, permuted):
        model = RegimeModel(
            3, covariance_type, n_init=1, max_iter=300, random_state=0, init_params=given_start
        )
        cases.append(model.fit(x))
    one, two = cases
    assert one.regime_names_ == two.regime_names_
    np.testing.assert_array_equal(two.predict(x), one.predict(x))
    np.testing.assert_allclose(two.log_likelihood_, one.log_likelihood_, rtol=0, atol=1e-2)
    for name in ("means_", "covariances_", "transition_matrix_"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=0, atol=1e-2)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("order_by", ["mean", "volatility"])
def test_the_order_of_regimes_does_not_depend_on_the_unit_of_one_series(covariance_type, order_by):
    """In raw units the average over series would be that of the largest one."""
    x, _ = two_regimes(1, 2)
    if covariance_type == "spherical":
        return
    one = fit(x, covariance_type, order_by=order_by)
    for units in ([1e6, 1.0], [1.0, 1e6]):
        two = fit(x * units, covariance_type, order_by=order_by)
        np.testing.assert_array_equal(two.predict(x * units), one.predict(x))


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_a_calm_regime_a_thousandth_as_wild_is_kept(covariance_type):
    """500 steps of each: a small variance of many observations is no collapse."""
    rng = seeds.rng(0)
    state = np.repeat([0, 1, 0, 1], 250)
    x = rng.standard_normal((1000, 2)) * np.where(state, 1.0, 1e-3)[:, None]
    model = fit(x, covariance_type, n_init=6)
    assert (model.predict(x) == state).mean() > 0.99
    deviations = np.sqrt(model._hmm().spec.moments(model._hmm().parameters.emission).variances)
    np.testing.assert_allclose(deviations, [[1e-3] * 2, [1.0] * 2], rtol=0.15)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
@pytest.mark.parametrize("ratio", [1e-3, 1e-4])
def test_a_calm_regime_is_kept_in_float32(covariance_type, ratio):
    """Its deviations have all digits of float32, as they are scaled about the mean."""
    rng = seeds.rng(0)
    state = np.repeat([0, 1, 0, 1], 250)
    x = rng.standard_normal((1000, 2)) * np.where(state, 1.0, ratio)[:, None]
    model = fit(x, covariance_type, n_init=6)
    single = fit(x, covariance_type, n_init=6, dtype="float32")
    np.testing.assert_array_equal(single.predict(x), model.predict(x))
    np.testing.assert_allclose(single.log_likelihood_, model.log_likelihood_, rtol=0, atol=0.1)
    np.testing.assert_allclose(single.covariances_, model.covariances_, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_values_that_repeat_are_a_collapse_in_either_dtype(covariance_type, dtype):
    x = np.concatenate([np.full((60, 1), 1.37), seeds.rng(0).standard_normal((60, 1))])
    with pytest.warns(ConvergenceWarning, match="collapsed onto a few points"):
        fit(x, covariance_type, dtype=dtype)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "tied"])
def test_a_floor_that_does_not_bind_changes_nothing(covariance_type):
    """Whatever the units of the series are."""
    x, _ = two_regimes(2, 2)
    x = x * [1e-2, 1e8]
    free = fit(x, covariance_type, regularization=0.0)
    floored = fit(x, covariance_type, regularization=0.0, min_eigenvalue=1e-9)
    np.testing.assert_allclose(floored.log_likelihood_, free.log_likelihood_, rtol=0, atol=1e-2)
    np.testing.assert_array_equal(floored.predict(x), free.predict(x))


def test_a_floor_that_binds_beside_a_far_larger_variance_is_refused():
    x, _ = two_regimes(2, 2)
    expected = "similar units where min_eigenvalue=1 binds, .* in column 0 to .* in column 1"
    with pytest.raises(ValueError, match=expected):
        fit(x * [1e-2, 1e9], "full", min_eigenvalue=1.0)


def test_a_combination_of_columns_that_hardly_varies_is_named():
    x, _ = two_regimes(3, 3)
    nearly = np.column_stack([x, x[:, 0] - x[:, 2] + 1e-5 * seeds.rng(1).standard_normal(320)])
    with pytest.warns(UserWarning, match="The columns 0, 2, 3 of X nearly depend on each other"):
        fit(nearly, "full", regularization=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(nearly, "diag")


def test_a_collapse_names_the_regime_and_its_rows():
    rng = seeds.rng(0)
    x = rng.standard_normal((60, 1))
    x[[7, 31]] = 50.0
    with pytest.warns(ConvergenceWarning, match=r"Calm holds 2 of 60 rows \(7, 31\)"):
        fit(x, "full", n_init=1)
    days = pd.bdate_range("2023-01-02", periods=60)
    with pytest.warns(ConvergenceWarning, match=r"rows \(2023-01-11, 2023-02-14\)"):
        fit(pd.DataFrame(x, index=days), "full", n_init=1)


def test_an_outlier_that_takes_a_regime_is_told_in_the_summary():
    rng = seeds.rng(0)
    x = rng.standard_normal((400, 1))
    x[[100, 101, 300]] = [[80.0], [90.0], [85.0]]
    model = fit(x, "full", n_init=1)
    assert "Turbulent holds 3 of 400 steps: an outlier" in str(model.summary())
    notes = fit(two_regimes(0, 1)[0], "full").summary().notes
    assert not any("holds" in note for note in notes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calm_regimes_of_correlated_series_are_no_collapse(dtype):
    """In float32, too, where the least eigenvalue of the calm one is 1e-5 of the data's largest."""
    rng = seeds.rng(8)
    state = np.repeat([0, 1, 2, 0, 2, 1, 0, 1, 2], 220)
    x = rng.standard_normal((len(state), 1)) + 0.05 * rng.standard_normal((len(state), 10))
    x *= np.array([0.2, 0.5, 1.0])[state][:, None] * 0.01
    model = RegimeModel(3, n_init=6, random_state=0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The best start did not converge")
        model.fit(x)  # a collapse would be an error
    assert (model.predict(x) == state).mean() > 0.98


@pytest.mark.parametrize("n_regimes, covariance_type", [(1, "full"), (1, "tied"), (2, "tied")])
def test_a_floor_binds_far_below_the_largest_variance(n_regimes, covariance_type):
    """Where rounding of the largest variance is a thousandth of the floor."""
    x = seeds.rng(0).standard_normal((1000, 2)) * [1e-4, 1e3]
    model = RegimeModel(
        n_regimes, covariance_type, min_eigenvalue=1e-7, regularization=0, n_init=1, random_state=0
    )
    with pytest.warns(UserWarning, match="min_eigenvalue=1e-07 binds: without it, the variance"):
        model.fit(x)
    values = np.linalg.eigvalsh(model.covariances_)[..., 0]
    np.testing.assert_allclose(values, 1e-7, rtol=1e-2)


def test_regularization_that_drowns_a_spread_is_told():
    rng = seeds.rng(0)
    wide = np.where(np.repeat([0, 1, 0], 500), 3.0, 1.0)
    leg = 0.01 * rng.standard_normal(1500)
    x = np.column_stack([leg, leg + 3e-6 * wide * rng.standard_normal(1500)])
    with pytest.warns(UserWarning, match="regularization=1e-06 lowers the log-likelihood"):
        fit(x, "full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = (fit(x, "full", regularization=0.0).predict(x) == (wide > 1)).mean()
        assert max(right, 1 - right) > 0.95  # the spread hardly counts in the volatilities
