"""Pseudo-residuals beside those of brute force: a row deleted, and integrals of joint densities."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import integrate
from scipy.special import ndtr
from scipy.stats import norm

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.marginals import cdf_below
from pyro_regimes.estimator.parameters import Array
from tests import seeds
from tests.estimator.emission_cases import ALL, CASES, Case

NAMES = {case.name: case for case in CASES}
GAUSSIAN = NAMES["gaussian-full"]
KINDS = {"forecast": "filtered", "ordinary": "smoothed"}

BESIDE: list[dict[str, Any]] = [
    {},
    {"lengths": [4, 1, 2, 13]},
    {"lengths": [7, 13], "start": [0.2, 0.8]},
    {"after": [0.9, 0.1]},
    {"gaps": np.arange(20) % 3 + 1},
    {"lengths": [9, 11], "gaps": np.arange(20) % 4 + 1},
]


def weights_without(model: RegimeModel, x: Array, kind: str, row: int, **beside: Any) -> Array:
    """Probabilities of the regimes of a row given others, by taking its observation away."""
    others = x.copy()
    others[row] = np.nan
    probs: Array = model.predict_proba(others, kind=KINDS[kind], **beside)[row]
    return probs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", BESIDE)
def test_gaussian_residuals_are_those_of_a_deleted_row(beside, kind):
    model = GAUSSIAN.true()
    x = GAUSSIAN.sample(0, 20)[0]
    x[3], x[8, 1] = np.nan, np.nan
    values = model.residuals(x, kind, **beside).values
    deviations = np.sqrt(np.diagonal(model.covariances_, axis1=1, axis2=2))
    for row in range(len(x)):
        weights = weights_without(model, x, kind, row, **beside)
        levels = weights @ ndtr((x[row] - model.means_) / deviations)
        np.testing.assert_allclose(ndtr(values[row]), levels, rtol=1e-9)


def test_training_data_begin_as_they_began_and_others_in_the_long_run():
    x = GAUSSIAN.sample(1, 60)[0]
    model = GAUSSIAN.model(n_init=1, max_iter=5, tol=None).fit(x)
    both = np.concatenate([x, x[::-1]])
    found = model.residuals(both, lengths=[60, 60]).values
    np.testing.assert_allclose(found[:60], model.residuals(x).values, rtol=1e-9)
    np.testing.assert_allclose(
        found[60:], model.residuals(x[::-1], start="stationary").values, rtol=1e-9
    )


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_each_series_by_its_marginal_distribution(case, kind):
    model, x = case.true(), case.sample(2, 12)[0]
    residuals = model.residuals(x, kind)
    spec = model._fitted_spec()
    emission = {name: getattr(model, f"{name}_") for name in spec.attributes}
    lower = residuals.values if residuals.lower is None else residuals.lower
    upper = residuals.values if residuals.upper is None else residuals.upper
    for row in (0, 5, 11):
        weights = weights_without(model, x, kind, row)
        for column, marginal in enumerate(spec.marginals(emission)):
            at = x[row, column]
            ends = weights @ cdf_below(marginal, [at]), weights @ marginal.cdf([at])
            assert ndtr(lower[row, column]) == pytest.approx(ends[0], rel=1e-8, abs=1e-14)
            assert ndtr(upper[row, column]) == pytest.approx(ends[1], rel=1e-8)
            assert ndtr(residuals.values[row, column]) == pytest.approx(np.mean(ends), rel=1e-8)


#: Where the second series of each case lies: so many integers from 0, or an interval.
NUMBERS = {"poisson": 300, "negative_binomial": 500, "categorical": 3, "bernoulli": 2}
NUMBERS |= {"columns": 100}
INTERVALS = {"von_mises": (-np.pi, np.pi)} | dict.fromkeys(
    ("gamma", "lognormal", "exponential"), (0.0, np.inf)
)


def second_given_first(case: Case, model: RegimeModel, row: Array, weights: Array) -> Array:
    """P(X2 < x2) and P(X2 <= x2) given x1, by integrals or sums of the joint density."""

    def density(second: float) -> float:
        at, total = np.array([[row[0], second]]), 0.0
        for k, weight in enumerate(weights):
            values = [
                getattr(model, f"{name}_") if name in case.shared else getattr(model, f"{name}_")[k]
                for name in case.values
            ]
            total += weight * float(np.exp(np.ravel(case.log_density(at, *values))[0]))
        return total

    family = case.name.split("-")[0]
    if family in NUMBERS:
        terms = np.array([density(number) for number in range(NUMBERS[family])])
        below = np.append(0.0, terms.cumsum() / terms.sum())
        return below[[int(row[1]), int(row[1]) + 1]]
    low, high = INTERVALS.get(family, (-np.inf, np.inf))
    parts = [
        integrate.quad(density, *ends, epsabs=1e-14, limit=300)[0]
        for ends in ((low, row[1]), (row[1], high))
    ]
    return np.full(2, parts[0] / sum(parts))


@ALL
def test_second_series_given_the_first(case):
    model, x = case.true(), case.sample(3, 8)[0]
    residuals = model.residuals(x, "ordinary", by="rosenblatt")
    alone = model.residuals(x, "ordinary")
    np.testing.assert_allclose(residuals.values[:, 0], alone.values[:, 0], rtol=1e-9)
    lower = residuals.values if residuals.lower is None else residuals.lower
    upper = residuals.values if residuals.upper is None else residuals.upper
    for row in (0, 4, 7):
        weights = weights_without(model, x, "ordinary", row)
        expected = second_given_first(case, model, x[row], weights)
        found = [ndtr(each[row, 1]) for each in (lower, upper)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_three_gaussian_series_in_turn_with_missing_entries():
    """By the regression of each series on those before it, and Bayes' rule."""
    rng = seeds.rng(4)
    roots = rng.standard_normal((2, 3, 3)) + 2 * np.eye(3)
    covariances, means = roots @ roots.transpose(0, 2, 1), rng.standard_normal((2, 3))
    model = RegimeModel.from_parameters(None, [[0.9, 0.1], [0.2, 0.8]], means, covariances)
    x = model.sample(30, random_state=rng)[0]
    x[4, 0], x[9, 1], x[12], x[20, :2] = np.nan, np.nan, np.nan, np.nan
    found = model.residuals(x, by="rosenblatt").values
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    for row in range(30):
        weights = weights_without(model, x, "forecast", row)
        for column in np.flatnonzero(~np.isnan(x[row])):
            before = [each for each in range(column) if not np.isnan(x[row, each])]
            levels, likelihoods = [], []
            for mean, covariance in zip(means, covariances, strict=True):
                inner = covariance[np.ix_(before, before)]
                slopes = np.linalg.solve(inner, covariance[before, column])
                deviation = x[row, before] - mean[before]
                variance = covariance[column, column] - slopes @ covariance[before, column]
                centred = x[row, column] - mean[column] - slopes @ deviation
                levels.append(ndtr(centred / variance**0.5))
                square = deviation @ np.linalg.solve(inner, deviation)
                likelihoods.append(np.exp(-square / 2) / np.linalg.det(2 * np.pi * inner) ** 0.5)
            share = weights * likelihoods
            expected = share @ levels / share.sum()
            assert ndtr(found[row, column]) == pytest.approx(expected, rel=1e-8)


@ALL
def test_missing_values_have_no_residual(case):
    model, x = case.true(), case.sample(5, 30)[0]
    x[3], x[7, 0], x[29, 1] = np.nan, np.nan, np.nan
    for by in ("series", "rosenblatt"):
        residuals = model.residuals(x, by=by)
        for values in (residuals.values, residuals.lower, residuals.upper):
            if values is not None:
                np.testing.assert_array_equal(np.isnan(values), np.isnan(x))


def test_one_regime_of_gaussians_has_standard_scores():
    """Thousands of standard deviations away, too, and in any unit."""
    model = RegimeModel.from_parameters([1.0], [[1.0]], [[3e-9]], [[[1e-24]]])
    scores = np.array([0.0, 1.0, -9.0, 40.0, -1e3, 1e6, -1e12])
    found = model.residuals(3e-9 + 1e-12 * scores[:, None]).values[:, 0]
    np.testing.assert_allclose(found, scores, rtol=1e-9, atol=1e-5)  # the rounding of 3e-9


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outliers_have_finite_residuals(case, dtype):
    x = case.sample(6, 40)[0]
    if case.emission not in ("von_mises", "categorical", "bernoulli"):
        x[7], x[21, 0] = 3000.0, 40_000.0
    for by in ("series", "rosenblatt"):
        residuals = case.true(dtype=dtype).residuals(x, "ordinary", by=by)
        assert np.isfinite(residuals.values).all()
        if case.factor != 1.0 and by == "series":  # not of counts and angles
            assert (residuals.values[[7, 21], 0] > 2).all()


def test_zero_of_an_exponential_distribution_has_a_finite_residual():
    case = NAMES["exponential-full"]
    x = case.sample(7, 30)[0]
    x[4, 1] = 0.0
    assert -40 < case.true().residuals(x).values[4, 1] < -30


def test_segments_of_counts():
    """By hand: one regime of Poisson counts with mean 1."""
    model = RegimeModel.from_parameters(None, [[1.0]], emission="poisson", rates=[[1.0]])
    residuals = model.residuals([[0.0], [1.0], [np.nan]])
    assert residuals.lower is not None and residuals.upper is not None
    first, second = np.exp(-1), 2 * np.exp(-1)
    np.testing.assert_allclose(residuals.lower[:, 0], [-np.inf, norm.ppf(first), np.nan])
    np.testing.assert_allclose(residuals.upper[:, 0], [norm.ppf(first), norm.ppf(second), np.nan])
    middle = norm.ppf([first / 2, 1.5 * first])
    np.testing.assert_allclose(residuals.values[:2, 0], middle, rtol=1e-12)
    assert residuals.is_discrete.all()


def test_randomised_residuals_lie_in_their_segments():
    case = NAMES["columns-full"]
    residuals = case.true().residuals(case.sample(8, 200)[0])
    drawn = residuals.randomized(0)
    assert residuals.is_discrete.tolist() == [False, True]
    assert drawn.lower is None and drawn.upper is None and not drawn.is_discrete.any()
    np.testing.assert_array_equal(drawn.values[:, 0], residuals.values[:, 0])
    assert (residuals.lower <= drawn.values)[:, 1].all()
    assert (drawn.values <= residuals.upper)[:, 1].all()
    np.testing.assert_array_equal(drawn.values, residuals.randomized(0).values)
    assert (drawn.values != residuals.randomized(1).values)[:, 1].all()
    # Uniform between the probabilities of both ends.
    low, high, at = (ndtr(each[:, 1]) for each in (residuals.lower, residuals.upper, drawn.values))
    shares = (at - low) / (high - low)
    assert 0.3 < shares.mean() < 0.7 and shares.min() < 0.1 and shares.max() > 0.9


def test_long_data_are_computed_in_blocks(monkeypatch):
    x = GAUSSIAN.sample(9, 100)[0]
    whole = GAUSSIAN.true().residuals(x, by="rosenblatt").values
    monkeypatch.setattr("pyro_regimes.estimator.residuals._MOST_ROWS", 7)
    np.testing.assert_allclose(
        GAUSSIAN.true().residuals(x, by="rosenblatt").values, whole, rtol=1e-12
    )


def test_forms_of_data():
    x = GAUSSIAN.sample(10, 50)[0]
    dates = pd.date_range("2020-01-01", periods=50)
    table = pd.DataFrame(x, index=dates, columns=["a", "b"])
    model = GAUSSIAN.model(n_init=1, max_iter=2, tol=None).fit(table)
    found = model.residuals(table)
    assert found.series_names == ["a", "b"] and list(found.dates) == list(dates)
    several = model.residuals([table.iloc[:20], table.iloc[20:]])
    assert several.lengths == [20, 30] and several.dates is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns without names
        np.testing.assert_array_equal(model.residuals(x).values, found.values)
    assert model.residuals(table, start="stationary").series_names == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "smoothed"}, "expected kind to be one of 'forecast', 'ordinary', got 'smoothed'"),
        ({"by": "row"}, "expected by to be one of 'series', 'rosenblatt', got 'row'"),
        ({"lengths": [3]}, "lengths"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GAUSSIAN.true().residuals(GAUSSIAN.sample(11, 20)[0], **options)


def test_an_impossible_observation_and_what_follows_it():
    """No regime has category 2: it is above all others, and nothing is known of later regimes."""
    model = RegimeModel.from_parameters(
        None, [[0.9, 0.1], [0.2, 0.8]], emission="categorical",
        probabilities=[[[0.5, 0.5, 0.0]], [[0.3, 0.7, 0.0]]],
    )  # fmt: skip
    values = model.residuals([[0.0], [1.0], [2.0], [1.0]]).values[:, 0]
    assert np.isfinite(values[:2]).all() and values[2] == np.inf and np.isnan(values[3])


def test_underflow_of_small_probabilities_is_no_error():
    """Where the caller makes NumPy raise."""
    model, x = CASES[0].true(), CASES[0].sample(9, 20)[0]
    x[-1] = 80.0, -90.0
    expected = model.residuals(x).values
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(model.residuals(x).values, expected)
