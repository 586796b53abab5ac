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


@pytest.mark.parametrize(
    "n_regimes, printed, aic, bic",
    [
        (2, 342.3183, 692.6365, 703.3278),
        (3, 329.4603, 676.9206, 700.976),
        (4, 327.8316, 687.6632, 730.4279),
    ],
)
def test_earthquakes(n_regimes, printed, aic, bic):
    """Zucchini and MacDonald (2009), table 6.1: from starts of our own."""
    x = np.genfromtxt(DATA / "earthquakes_1900_2006.csv", delimiter=",", skip_header=1)[:, 1:]
    model = RegimeModel(
        n_regimes, emission="poisson", initial="stationary", n_init=20, max_iter=3000, tol=1e-8,
        random_state=0,
    ).fit(x)  # fmt: skip
    assert -model.log_likelihood_ == pytest.approx(printed, abs=6e-5)
    assert model.n_parameters_ == n_regimes**2
    assert model.aic() == pytest.approx(aic, abs=6e-4)
    assert model.bic() == pytest.approx(bic, abs=6e-4)
    assert (np.diff(model.rates_[:, 0]) > 0).all()
