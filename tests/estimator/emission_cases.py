"""A model of every emission with known parameters, and its densities by scipy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.parameters import Array
from tests import seeds

TRANSITIONS = np.array([[0.95, 0.05], [0.08, 0.92]])

_MATRICES = np.array([[[1.0, 0.3], [0.3, 0.5]], [[9.0, -2.0], [-2.0, 16.0]]])
_VARIANCES = np.diagonal(_MATRICES, axis1=1, axis2=2)
_MEANS = np.array([[0.5, 0.0], [-2.0, 3.0]])

#: The log-density of rows ``(T, D)`` in one regime, from the values of its attributes.
LogDensity = Callable[..., Array]


@dataclass(frozen=True)
class Case:
    """An emission with parameters, in the order of its attributes."""

    emission: Any
    values: dict[str, Array]
    log_density: LogDensity  #: ``(x, *values of one regime) -> (T,)``
    num_parameters: int  #: of the emission
    wrong: Any = np.nan  #: a value that is no observation of it; NaN if there is none
    message: str = ""  #: of the error
    covariance_type: str = "full"
    shared: frozenset[str] = frozenset()  #: attributes that all regimes share
    factor: float = 1.0  #: what a change of units multiplies data with; 1 if they have none
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        family = self.emission if isinstance(self.emission, str) else "columns"
        return f"{family}-{self.covariance_type}"

    def true(self, **settings: Any) -> RegimeModel:
        return RegimeModel.from_parameters(
            None,
            TRANSITIONS,
            emission=self.emission,
            covariance_type=self.covariance_type,
            **self.values,
            **self.settings,
            **settings,
        )

    def sample(self, seed: int, num_steps: int = 400) -> tuple[Array, Array]:
        return self.true().sample(num_steps, random_state=seeds.rng(seed))

    def model(self, **settings: Any) -> RegimeModel:
        own: dict[str, Any] = dict(
            n_init=4, random_state=0, max_iter=300, emission=self.emission,
            covariance_type=self.covariance_type,
        )  # fmt: skip
        return RegimeModel(2, **(own | self.settings | settings))

    def score(self, x: Array, model: RegimeModel) -> float:
        """The log-likelihood by scipy's densities and a recursion of three lines."""
        logits = []
        for k in range(len(model.regime_names_)):
            values = [
                getattr(model, f"{name}_") if name in self.shared else getattr(model, f"{name}_")[k]
                for name in self.values
            ]
            logits.append(self.log_density(x, *values))
        rows = np.stack(logits, 1)
        with np.errstate(divide="ignore"):
            alpha = np.log(model.initial_probs_) + rows[0]
            transitions = np.log(model.transition_matrix_)
        for row in rows[1:]:
            alpha = logsumexp(alpha[:, None] + transitions, axis=0) + row
        return float(logsumexp(alpha))


def _independent(log_density: Callable[..., Array]) -> LogDensity:
    def of_rows(x: Array, *values: Array) -> Array:
        total: Array = log_density(x, *values).sum(-1)
        return total

    return of_rows


def _mixture(x: Array, weights: Array, means: Array, covariances: Array) -> Array:
    each = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        matrix = covariance if covariance.ndim == 2 else np.eye(len(mean)) * covariance
        each.append(np.log(weight) + stats.multivariate_normal(mean, matrix).logpdf(x))
    return np.asarray(logsumexp(each, axis=0))


def _category(x: Array, probs: Array) -> Array:
    return np.log(np.stack([probs[d, x[:, d].astype(int)] for d in range(x.shape[1])], 1)).sum(1)


def _log_normal(x: Array, log_means: Array, log_scales: Array) -> Array:
    return stats.norm.logpdf(np.log(x), log_means, log_scales) - np.log(x)


CASES = [
    Case(
        "gaussian",
        {"means": _MEANS, "covariances": _MATRICES},
        lambda x, mean, covariance: stats.multivariate_normal(mean, covariance).logpdf(x),
        4 + 6,
        factor=1e-3,
    ),
    Case(
        "student_t",
        {
            "means": _MEANS,
            "scale_matrices": _MATRICES,
            "degrees_of_freedom": np.array([4.0, 9.0]),
        },
        lambda x, mean, scale, df: stats.multivariate_t(mean, scale, df).logpdf(x),
        4 + 6 + 2,
        factor=1e-3,
    ),
    Case(
        "student_t",
        {
            "means": _MEANS,
            "scale_matrices": _VARIANCES,
            "degrees_of_freedom": np.array([[4.0, 9.0], [5.0, 30.0]]),
        },
        _independent(lambda x, mean, scale, df: stats.t.logpdf(x, df, mean, np.sqrt(scale))),
        4 + 4 + 4,
        covariance_type="diag",
        factor=1e-3,
    ),
    Case(
        "student_t",
        {
            "means": _MEANS,
            "scale_matrices": np.array([1.0, 16.0]),
            "degrees_of_freedom": np.array([4.0, 9.0]),
        },
        _independent(lambda x, mean, scale, df: stats.t.logpdf(x, df, mean, np.sqrt(scale))),
        4 + 2 + 2,
        covariance_type="spherical",
        factor=1e-3,
    ),
    Case(
        "student_t",
        {
            "means": 2 * _MEANS,
            "scale_matrices": _MATRICES[0],
            "degrees_of_freedom": np.array([4.0, 9.0]),
        },
        lambda x, mean, scale, df: stats.multivariate_t(mean, scale, df).logpdf(x),
        4 + 3 + 2,
        covariance_type="tied",
        shared=frozenset({"scale_matrices"}),
        factor=1e-3,
    ),
    Case(
        "gaussian_mixture",
        {
            "weights": np.array([[0.3, 0.7], [0.5, 0.5]]),
            "means": np.array([[[0.0, 0.0], [3.0, 1.0]], [[9.0, 9.0], [12.0, 5.0]]]),
            "covariances": np.stack([_MATRICES, _MATRICES[::-1]]),
        },
        _mixture,
        2 + 8 + 12,
        factor=1e-3,
    ),
    Case(
        "gaussian_mixture",
        {
            "weights": np.array([[0.3, 0.3, 0.4], [0.5, 0.25, 0.25]]),
            "means": np.array(
                [[[0.0, 0.0], [6.0, 0.0], [12.0, 0.0]], [[60.0, 30.0], [66.0, 30.0], [72.0, 30.0]]]
            ),
            "covariances": np.linspace(0.5, 2.0, 12).reshape(2, 3, 2),
        },
        _mixture,
        4 + 12 + 12,
        covariance_type="diag",
        factor=1e-3,
        settings={"n_components": 3},
    ),
    Case(
        "gaussian_mixture",
        {
            "weights": np.array([[0.3, 0.7], [0.5, 0.5]]),
            "means": np.array([[[0.0, 0.0], [6.0, 1.0]], [[30.0, 9.0], [36.0, 5.0]]]),
            "covariances": np.array([[0.5, 2.0], [1.0, 0.7]]),
        },
        _mixture,
        2 + 8 + 4,
        covariance_type="spherical",
        factor=1e-3,
    ),
    Case(
        "poisson",
        {"rates": np.array([[2.0, 1.0], [9.0, 4.0]])},
        _independent(lambda x, rate: stats.poisson.logpmf(x, rate)),
        4,
        wrong=1.5,
        message="expected X to hold counts, non-negative integers, got 1.5 in row 7 of column 1",
    ),
    Case(
        "negative_binomial",
        {
            "total_counts": np.array([[2.0, 5.0], [4.0, 3.0]]),
            "probabilities": np.array([[0.4, 0.2], [0.8, 0.7]]),
        },
        _independent(lambda x, r, p: stats.nbinom.logpmf(x, r, 1 - p)),
        8,
        wrong=-1.0,
        message="expected X to hold counts, non-negative integers, got -1 in row 7 of column 1",
    ),
    Case(
        "gamma",
        {
            "concentrations": np.array([[2.0, 5.0], [9.0, 20.0]]),
            "rates": np.array([[2.0, 1.0], [0.5, 2.0]]),
        },
        _independent(lambda x, a, rate: stats.gamma.logpdf(x, a, scale=1 / rate)),
        8,
        wrong=0.0,
        message="expected X to hold positive numbers, got 0 in row 7 of column 1",
        factor=1e-3,
    ),
    Case(
        "lognormal",
        {
            "log_means": np.array([[0.0, 1.0], [2.0, -1.0]]),
            "log_scales": np.array([[0.3, 0.5], [0.8, 0.2]]),
        },
        _independent(_log_normal),
        8,
        wrong=-1.0,
        message="expected X to hold positive numbers, got -1 in row 7 of column 1",
        factor=1e-3,
    ),
    Case(
        "exponential",
        {"rates": np.array([[5.0, 10.0], [0.5, 0.2]])},
        _independent(lambda x, rate: stats.expon.logpdf(x, scale=1 / rate)),
        4,
        wrong=-1.0,
        message="expected X to hold non-negative numbers, got -1 in row 7 of column 1",
        factor=1e-3,
    ),
    Case(
        "von_mises",
        {
            "means": np.array([[0.5, -1.0], [3.0, 2.0]]),
            "concentrations": np.array([[4.0, 8.0], [1.0, 5.0]]),
        },
        _independent(lambda x, mean, kappa: stats.vonmises.logpdf(x, kappa, mean)),
        8,
    ),
    Case(
        "categorical",
        {
            "probabilities": np.array(
                [
                    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]],
                    [[0.1, 0.2, 0.7], [0.2, 0.1, 0.7]],
                ]
            )
        },
        _category,
        2 * 2 * 2,
        wrong=-1.0,
        message="expected X to hold categories, integers from 0, got -1 in row 7 of column 1",
    ),
    Case(
        "bernoulli",
        {"probabilities": np.array([[0.1, 0.2], [0.8, 0.7]])},
        _independent(lambda x, p: stats.bernoulli.logpmf(x, p)),
        4,
        wrong=2.0,
        message="expected X to hold 0 and 1, got 2 in row 7 of column 1",
    ),
    Case(
        {0: "student_t", 1: "poisson"},
        {
            "student_t_means": _MEANS[:, :1],
            "student_t_scale_matrices": _MATRICES[:, :1, :1],
            "student_t_degrees_of_freedom": np.array([4.0, 9.0]),
            "poisson_rates": np.array([[1.0], [5.0]]),
        },
        lambda x, mean, scale, df, rate: (
            stats.t.logpdf(x[:, 0], df, mean, scale[0] ** 0.5) + stats.poisson.logpmf(x[:, 1], rate)
        ),
        2 + 2 + 2 + 2,
        wrong=-1.0,
        message="expected X to hold counts, non-negative integers, got -1 in row 7 of column 1",
    ),
]

ALL = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
