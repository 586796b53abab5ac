"""Student-t emissions: heavy tails, infinite variances, and what a Gaussian makes of outliers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeModel
from tests import seeds

TRANSITIONS = np.array([[0.97, 0.03], [0.05, 0.95]])
VALUES = {
    "means": np.array([[0.1], [-0.2]]),
    "scale_matrices": np.array([[[0.5]], [[6.0]]]),
    "degrees_of_freedom": np.array([4.0, 4.0]),
}


def model(**settings: object) -> RegimeModel:
    own = dict(n_init=3, random_state=0, emission="student_t", max_iter=300)
    return RegimeModel(2, **(own | settings))


def true(**values: object) -> RegimeModel:
    return RegimeModel.from_parameters(
        None, TRANSITIONS, emission="student_t", **(VALUES | values)
    )


def test_heavy_tails_are_no_regime() -> None:
    """Two regimes of heavy tails, which a Gaussian model leaves for every extreme day."""
    x, states = true().sample(1500, random_state=seeds.rng(0))
    heavy, gaussian = model().fit(x), model(emission="gaussian").fit(x)
    assert heavy.bic() < gaussian.bic() - 20
    switches = [(np.diff(each.predict(x)) != 0).sum() for each in (heavy, gaussian)]
    assert switches[0] < switches[1]
    right = [(each.predict(x) == states).mean() for each in (heavy, gaussian)]
    assert right[0] > right[1] - 0.02
    assert heavy.regime_names_ == ["Calm", "Turbulent"]
    assert (heavy.degrees_of_freedom_ > 2).all() and (heavy.degrees_of_freedom_ < 9).all()


def test_the_fit_is_a_maximum_in_every_parameter() -> None:
    x, _ = true().sample(300, random_state=seeds.rng(1))
    fitted = model(tol=1e-7, max_iter=1000, regularization=0.0, init_params=true()).fit(x)
    values = {name: getattr(fitted, f"{name}_") for name in VALUES}
    for name, value in values.items():
        for regime in range(2):
            for step in (-1e-3, 1e-3):
                other = value.copy()
                other[regime] += step * np.abs(other[regime])
                moved = RegimeModel.from_parameters(
                    fitted.initial_probs_, fitted.transition_matrix_, emission="student_t",
                    **(values | {name: other}),
                )  # fmt: skip
                assert moved.score(x, start="fitted") < fitted.score(x, start="fitted") + 1e-6


def test_the_summary_has_the_volatility_not_the_scale() -> None:
    known = true(degrees_of_freedom=[3.0, 6.0])
    summary = known.summary()
    np.testing.assert_allclose(summary.volatility[:, 0] ** 2, 252 * np.array([0.5 * 3, 6.0 * 1.5]))
    rows = [line for line in str(summary).splitlines() if line.startswith("degrees of freedom")]
    assert rows[0].split()[-2:] == ["3.0000", "6.0000"]
    frame = summary.to_frame()
    assert frame.loc[("degrees of freedom", "")].tolist() == [3.0, 6.0]


def test_infinite_variances_and_means() -> None:
    """They are told as such, and the regimes still have an order and names."""
    known = true(degrees_of_freedom=[1.5, 4.0])
    assert known.regime_names_ == ["Turbulent", "Calm"]  # as the first has no finite variance
    x = np.linspace(-1, 1, 30)[:, None]
    forecast = known.forecast(x, 2)
    assert np.isinf(forecast.covariance).all() and np.isfinite(forecast.mean).all()
    assert "inf" in str(known.summary())
    assert np.isnan(true(degrees_of_freedom=[0.5, 4.0]).forecast(x, 1).mean).all()
    named = model(order_by=known, n_init=1, max_iter=2, tol=None).fit(x)
    assert named.regime_names_ == ["Turbulent", "Calm"]
    drawn, _ = known.sample(500, random_state=seeds.rng(0))
    fitted = model().fit(drawn)
    assert np.isfinite(fitted.score(drawn)) and len(fitted.regime_names_) == 2


def test_fixed_degrees_of_freedom() -> None:
    x, _ = true().sample(500, random_state=seeds.rng(2))
    five = [5.0, 5.0]
    fitted = model(
        init_params={"degrees_of_freedom": five}, fixed=["degrees_of_freedom"]
    ).fit(x)
    assert fitted.degrees_of_freedom_.tolist() == five
    free = model().fit(x)
    assert free.n_parameters_ == fitted.n_parameters_ + 2
    assert free.log_likelihood_ > fitted.log_likelihood_ - 1e-3


def test_many_degrees_of_freedom_are_a_gaussian() -> None:
    x = seeds.rng(3).standard_normal((300, 2)) * np.repeat([[1.0, 2.0], [4.0, 3.0]], 150, 0)
    gaussian = model(emission="gaussian").fit(x)
    values = dict(
        means=gaussian.means_, scale_matrices=gaussian.covariances_, degrees_of_freedom=[1e9, 1e9]
    )
    same = RegimeModel.from_parameters(
        gaussian.initial_probs_, gaussian.transition_matrix_, emission="student_t", **values
    )
    np.testing.assert_allclose(same.score(x, start="fitted"), gaussian.score(x), rtol=1e-6)
    np.testing.assert_allclose(
        same.forecast(x, 1).covariance, gaussian.forecast(x, 1).covariance, rtol=1e-6
    )
    np.testing.assert_array_equal(same.regime_names_, gaussian.regime_names_)


def test_a_floor_of_the_scale_matrices() -> None:
    x, _ = true().sample(300, random_state=seeds.rng(4))
    with pytest.warns(UserWarning, match="min_eigenvalue=50 binds: without it, the variance"):
        fitted = model(min_eigenvalue=50.0, regularization=0.0).fit(x)
    assert (fitted.scale_matrices_ >= 50 * (1 - 1e-9)).all()
    with pytest.raises(ValueError, match="min_eigenvalue=0 where scale matrices are fixed"):
        model(
            min_eigenvalue=1.0, init_params={"scale_matrices": [1.0, 2.0]},
            fixed=["scale_matrices"],
        ).fit(x)  # fmt: skip


def test_it_reads_tables_and_names_the_parameter_at_fault() -> None:
    dates = pd.date_range("2020-01-01", periods=200, freq="B")
    x, _ = true().sample(200, random_state=seeds.rng(5))
    frame = pd.DataFrame(x, index=dates, columns=["index"])
    fitted = model().fit(frame)
    assert list(fitted.feature_names_in_) == ["index"] and fitted.periods_per_year_ > 200
    with pytest.raises(ValueError, match="expected degrees_of_freedom to be positive, got -1"):
        true(degrees_of_freedom=[-1.0, 3.0])
    with pytest.raises(ValueError, match="expected scale_matrices to be symmetric and positive"):
        true(scale_matrices=[[[-1.0]], [[1.0]]])
