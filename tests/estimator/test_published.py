"""Published fits through the estimator; sources in ``tests/data/README.md``."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from pyro_regimes import RegimeModel

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    "file, column, n_regimes, covariance_type, printed, accuracy",
    [
        ("geyser.csv", "waiting", 2, "full", -1092.794, 1e-3),
        ("geyser.csv", "waiting", 3, "full", -1051.138, 1e-3),
        ("fedfunds.csv", "fedfunds", 2, "tied", -508.63592, 1e-5),
    ],
)
def test_a_stationary_start(file, column, n_regimes, covariance_type, printed, accuracy):
    x = np.genfromtxt(DATA / file, delimiter=",", names=True)[column][:, None]
    model = RegimeModel(
        n_regimes, covariance_type, initial="stationary", regularization=0.0, max_iter=1000,
        tol=1e-7, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Column.* of X look", UserWarning)
        model.fit(x)
    assert model.log_likelihood_ == pytest.approx(printed, abs=accuracy)
    assert model.n_parameters_ == n_regimes * (n_regimes - 1) + n_regimes + (
        1 if covariance_type == "tied" else n_regimes
    )
