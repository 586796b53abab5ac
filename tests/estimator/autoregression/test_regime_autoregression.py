"""RegimeAutoregression: the published fit, and independent computations."""

from __future__ import annotations

import inspect
import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pyro
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.base import clone

from pyro_regimes import RegimeAutoregression
from pyro_regimes.estimator.autoregression.fitted_autoregression import FittedAutoregression
from pyro_regimes.estimator.regression.tabled_regression import TabledRegression
from tests import seeds
from tests.estimator.regression.cases import forward_of

RGNP = pd.read_csv(Path(__file__).parents[2] / "data" / "rgnp.csv")

#: The estimates of EViews, and standard errors of statsmodels 0.15 (inverse of the Hessian).
HAMILTON = {
    ("Regime 1", "mean"): (-0.358811, 0.26453979),
    ("Regime 2", "mean"): (1.163516, 0.07451872),
    ("all regimes", "lag 1"): (0.013486, 0.11999417),
    ("all regimes", "lag 2"): (-0.057521, 0.13766308),
    ("all regimes", "lag 3"): (-0.246983, 0.10691027),
    ("all regimes", "lag 4"): (-0.212923, 0.1105311),
    ("transition probabilities", "Regime 1 to Regime 1"): (0.754673, 0.09651889),
    ("transition probabilities", "Regime 2 to Regime 1"): (0.095915, 0.03773618),
}


@pytest.fixture(scope="module")
def hamilton() -> RegimeAutoregression:
    return RegimeAutoregression(order=4, n_init=6, random_state=0).fit(RGNP.rgnp)


def test_hamiltons_growth_of_output_from_its_own_starts(hamilton):
    assert hamilton.converged_
    assert hamilton.log_likelihood_ == pytest.approx(-181.26339, abs=5e-6)
    frame = hamilton.coefficients_.to_frame()
    for label, (estimate, error) in HAMILTON.items():
        assert frame["estimate"][label] == pytest.approx(estimate, abs=2e-5), label
        assert frame["standard error"][label] == pytest.approx(error, rel=1e-3), label
    assert hamilton.n_parameters_ == 9 and hamilton.n_samples_fit_ == 131
    assert hamilton.aic() == pytest.approx(18 - 2 * hamilton.log_likelihood_)
    assert hamilton.bic() == pytest.approx(9 * np.log(131) - 2 * hamilton.log_likelihood_)
    recession = hamilton.predict_proba(RGNP.rgnp)[:5, 0]
    printed = [0.03190318, 0.00892901, 0.00144059, 0.04146542, 0.45934918]
    np.testing.assert_allclose(recession, printed, atol=1e-4)
    assert "Order                            4" in str(hamilton.summary())


def simulated(num_rows: int = 250) -> np.ndarray:
    rng = seeds.rng(1790)
    mean = np.where(np.arange(num_rows) // 25 % 2, 2.0, -1.0)
    deviation = np.zeros(num_rows)
    for t in range(1, num_rows):
        deviation[t] = 0.5 * deviation[t - 1] + 0.6 * rng.normal()
    return mean + deviation


Y = simulated()


def dense(y, means, phi, sigma, matrix) -> tuple[np.ndarray, float]:
    """Filtered probabilities of tuples of regimes, and log p, by a chain without structure.

    :param phi: ``(K, p)``.
    """
    number, order = phi.shape
    tuples = list(itertools.product(range(number), repeat=order + 1))  # the oldest first
    values, vectors = np.linalg.eig(matrix.T)
    law = np.real(vectors[:, np.argmax(np.real(values))])
    law = law / law.sum()
    first, steps = np.empty(len(tuples)), np.zeros((len(tuples),) * 2)
    for a, one in enumerate(tuples):
        first[a] = law[one[0]] * np.prod([matrix[i, j] for i, j in zip(one, one[1:])])
        for b, other in enumerate(tuples):
            if one[1:] == other[:-1]:
                steps[a, b] = matrix[one[-1], other[-1]]
    density = np.empty((len(y) - order, len(tuples)))
    for a, one in enumerate(tuples):
        k = one[-1]
        centre = means[k] + sum(
            phi[k, j - 1] * (y[order - j : len(y) - j] - means[one[-1 - j]])
            for j in range(1, order + 1)
        )
        density[:, a] = norm.logpdf(y[order:], centre, sigma[k])
    return forward_of(density, first, np.broadcast_to(steps, (len(y) - order - 1, *steps.shape)))


CASES = [
    {"order": 1},
    {"order": 2, "switching_autoregression": True, "switching_variance": True},
    {"order": 1, "n_regimes": 3},
]


@pytest.mark.filterwarnings("ignore:EM did not converge", "ignore:The fit")
@pytest.mark.parametrize("settings", CASES)
def test_likelihood_and_filter_are_those_of_the_dense_chain(settings):
    model = RegimeAutoregression(n_init=4, random_state=0, errors=None, **settings).fit(Y)
    number = model.n_regimes
    arguments = model.means_, model.autoregression_, model.sigma_, model.transition_matrix_
    filtered, value = dense(Y, *arguments)
    assert model.log_likelihood_ == pytest.approx(value, abs=1e-7)
    assert model.score(Y) == pytest.approx(value, abs=1e-7)
    probs = filtered.reshape(len(filtered), -1, number).sum(1)
    np.testing.assert_allclose(model.predict_proba(Y, kind="filtered"), probs, atol=1e-8)
    assert model.predict(Y).shape == (len(Y) - model.order,)
    assert (np.diff(model.means_) >= 0).all()
    # The next row has the filtered probabilities as weights, and moves by the matrix.
    ahead = model.forecast(Y)
    np.testing.assert_allclose(ahead.regime_probs[0], probs[-1] @ model.transition_matrix_)
    assert ahead.cdf(ahead.quantile(0.3)) == pytest.approx(0.3)
    longer = [model.score(np.append(Y, each)) for each in (0.0, 1.0)]
    density = np.exp(np.array(longer) - model.score(Y))
    step = 1e-4
    slopes = [(ahead.cdf(x + step) - ahead.cdf(x - step))[0] / (2 * step) for x in (0.0, 1.0)]
    np.testing.assert_allclose(slopes, density, rtol=1e-5)


def test_the_fit_is_at_the_maximum():
    model = RegimeAutoregression(n_init=4, random_state=0).fit(Y)

    def loss(u: np.ndarray) -> float:
        stay = 1 / (1 + np.exp(-u[4:]))
        matrix = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
        return -dense(Y, u[:2], np.full((2, 1), u[2]), np.full(2, np.exp(u[3])), matrix)[1]

    stay = np.diagonal(model.transition_matrix_)
    point = np.concatenate(
        [
            model.means_, model.autoregression_[0], np.log(model.sigma_[:1]),
            np.log(stay / (1 - stay)),
        ]
    )  # fmt: skip
    best = minimize(loss, point, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-7})
    assert -best.fun < model.log_likelihood_ + 1e-6


def test_one_regime_is_least_squares():
    model = RegimeAutoregression(order=2, n_regimes=1, tol=1e-12).fit(Y)
    X = np.column_stack([np.ones(len(Y) - 2), Y[1:-1], Y[:-2]])
    beta, (squares,), *_ = np.linalg.lstsq(X, Y[2:], rcond=None)
    np.testing.assert_allclose(model.autoregression_[0], beta[1:], rtol=1e-5)
    assert model.means_[0] == pytest.approx(beta[0] / (1 - beta[1:].sum()), rel=1e-5)
    assert model.sigma_[0] == pytest.approx(np.sqrt(squares / len(X)), rel=1e-7)


@pytest.mark.parametrize(("level", "unit"), [(0.0, 1e-6), (1e6, 1.0), (0.0, 1e6)])
def test_units_and_levels_do_not_matter(level, unit):
    model = RegimeAutoregression(n_init=2, random_state=0).fit(Y)
    other = RegimeAutoregression(n_init=2, random_state=0).fit(level + unit * Y)
    np.testing.assert_allclose((other.means_ - level) / unit, model.means_, rtol=1e-4, atol=1e-4)
    expected = model.log_likelihood_ - (len(Y) - 1) * np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, abs=1e-5)


def test_series_of_all_kinds():
    settings = {"n_init": 1, "random_state": 0}
    model = RegimeAutoregression(**settings).fit(Y)
    strided = np.repeat(Y, 2)[::2]
    for each in (pd.Series(Y), polars.Series(Y), Y[:, None], pd.DataFrame({"y": Y}), strided):
        same = RegimeAutoregression(**settings).fit(each)
        np.testing.assert_array_equal(same.means_, model.means_)
        np.testing.assert_array_equal(same.predict_proba(each), model.predict_proba(Y))
    short = RegimeAutoregression(**settings).fit(Y.astype(np.float32))
    np.testing.assert_allclose(short.means_, model.means_, rtol=1e-4)


def test_scikit_learn_pickle_and_nothing_of_the_caller_changes():
    pyro.get_param_store()["scale"] = torch.tensor(3.0)
    pyro.set_rng_seed(seeds.seed(5))
    before, y = torch.get_rng_state(), Y.copy()
    model = RegimeAutoregression(n_init=2, random_state=0).fit(Y)
    assert torch.equal(before, torch.get_rng_state()) and (y == Y).all()
    assert list(pyro.get_param_store().keys()) == ["scale"]
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(Y), model.predict_proba(Y))
    assert str(again.summary()) == str(model.summary())
    means = model.means_
    with pytest.raises(ValueError):
        model.fit(Y[:2])
    assert model.means_ is means


@pytest.mark.parametrize(
    ("settings", "y", "told"),
    [
        ({}, np.where(np.arange(50) == 7, np.nan, Y[:50]), "missing values, got nan in row 7"),
        ({}, np.where(np.arange(50) == 7, np.inf, Y[:50]), "missing values, got inf in row 7"),
        ({}, np.ones(50), "expected y to vary"),
        ({}, Y[:100].reshape(50, 2), "y to be one series, got shape"),
        ({"order": 60}, Y[:50], "more rows than order=60, got 50"),
        ({"order": 9}, Y[:25], "and the 20 means and coefficients of 2 regimes, got 25"),
        ({"order": 0}, Y, "order to be at least 1"),
        ({"switching_variance": 1}, Y, "switching_variance to be True or False"),
        ({"acceleration": "fast"}, Y, "acceleration to be one of"),
        ({"errors": "sandwich"}, Y, "errors to be one of 'observed', got 'sandwich'"),
        ({}, ["a"] * 50, "y to hold numbers"),
        ({"order": 16}, np.tile(Y, 2), "at most 100000"),
    ],
)
def test_what_is_not_valid_is_refused(settings, y, told):
    with pytest.raises(ValueError, match=told):
        RegimeAutoregression(**settings).fit(y)


def test_a_series_without_a_maximum_is_told():
    with pytest.warns(match="The best start did not converge in 2 iterations"):
        RegimeAutoregression(n_init=1, random_state=0, max_iter=2, errors=None).fit(Y)
    with pytest.warns(match="does not confirm a maximum|fits its rows exactly"):
        alternating = np.tile([0.0, 1.0], 30)
        RegimeAutoregression(n_init=1, random_state=0, errors=None).fit(alternating)


def test_what_has_not_been_fitted_is_refused():
    for call in (lambda m: m.predict(Y), lambda m: m.aic(), lambda m: m.summary()):
        with pytest.raises(ValueError, match="not fitted"):
            call(RegimeAutoregression())


def test_docstrings():
    own = vars(TabledRegression) | vars(FittedAutoregression) | vars(RegimeAutoregression)
    for name, value in own.items():
        if name.startswith("_") or not inspect.isfunction(value):
            continue
        found = re.findall(r"^:(param \w+|return|raises)", inspect.getdoc(value), re.MULTILINE)
        expected = [f"param {n}" for n in inspect.signature(value).parameters if n != "self"]
        assert found == [*expected, "return", "raises"], name
    found = re.findall(r"^:param (\w+):", inspect.getdoc(RegimeAutoregression), re.MULTILINE)
    assert found == list(inspect.signature(RegimeAutoregression).parameters)
