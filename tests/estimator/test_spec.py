"""A new emission is one object: Poisson counts, in this file alone, in every method."""

from __future__ import annotations

import warnings
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.stats import poisson
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, Spec, find_spec
from pyro_regimes.estimator.units import Units
from tests import seeds
from tests.regimes import COVARIANCES, MEANS


class Poisson:
    """Independent counts in each series, at ``rates`` ``(..., K, D)``."""

    attributes = ("rates",)
    arguments = ("rate",)

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        return {"rates": (num_regimes, num_series)}

    def num_free_parameters(self, num_regimes: int, num_series: int) -> dict[str, int]:
        return {"rates": num_regimes * num_series}

    def check_values(self, emission: Emission) -> None:
        if (emission.get("rates", np.ones(1)) <= 0).any():
            raise ValueError("rates_ that are not positive")

    def select(self, emission: Emission, order: npt.NDArray[np.int64]) -> Emission:
        return {"rates": emission["rates"][order]}

    def moments(self, emission: Emission) -> Moments:
        return Moments(emission["rates"], emission["rates"])

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        return rng.poisson(emission["rates"][states]).astype(np.float64)

    def regularized(self, emission: Emission, amount: float, relative: bool) -> Emission:
        return emission

    def units(self, data: Array, equal: bool = False) -> Units:
        return Units(np.zeros(data.shape[1]), np.ones(data.shape[1]))

    def units_of(self, emission: Emission) -> Units:
        return self.units(emission["rates"])

    def scale(self, emission: Emission, units: Units) -> Emission:
        return emission

    def unscale(self, emission: Emission, units: Units) -> Emission:
        return emission

    def check_data(
        self, data: Array, feature_names: npt.NDArray[np.object_] | None, dtype: torch.dtype
    ) -> str | None:
        if (data < 0).any():
            raise ValueError("expected X to hold counts, got a negative number")
        return None

    def is_below(self, emission: Emission, floor: float) -> npt.NDArray[np.bool_]:
        return emission["rates"].min(-1) < floor

    def fewest_observations(self, num_series: int) -> int:
        return 0

    def collapsed_variance(self, z: Array, dtype: torch.dtype) -> float:
        return 0.0

    def collapsed(
        self, emission: Emission, least: float, dtype: torch.dtype
    ) -> npt.NDArray[np.bool_]:
        return np.zeros(emission["rates"].shape[:-1], np.bool_)

    def least_variances(self, emission: Emission) -> Array:
        return emission["rates"].min(-1)

    def raised(self, emission: Emission, floor: float) -> Emission:
        return emission

    def start_from_clusters(
        self, x: Array, responsibilities: Array, centers: Array, floor: float
    ) -> Emission:
        return {"rates": responsibilities.T @ x / responsibilities.sum(0)[:, None] + 0.1}

    def start_around(self, x: Array, centers: Array, multiples: Array, floor: float) -> Emission:
        return {"rates": centers + 0.1}

    def to_arguments(self, emission: Emission) -> dict[str, Array]:
        return {"rate": emission["rates"]}

    def from_arguments(self, arguments: Mapping[str, Array], like: Emission) -> Emission:
        return {"rates": arguments["rate"].reshape(like["rates"].shape)}

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.positive

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Poisson(arguments["rate"]).to_event(1)

    def sample_observation_dist(
        self, num_regimes: int, mean: Tensor, scale: Tensor
    ) -> dist.TorchDistribution:
        raise NotImplementedError

    def site_values(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


class PoissonModel(RegimeModel):
    """The estimator, with nothing changed but its emission."""

    def _spec(self, covariance_type: str) -> Spec:
        return Poisson()


RATES = np.array([[9.0, 3.0], [1.0, 2.0]])


@pytest.fixture(scope="module")
def fitted() -> tuple[PoissonModel, Array, npt.NDArray[np.int64]]:
    rng = seeds.rng(0)
    states = (np.arange(400) // 40) % 2
    x = rng.poisson(RATES[states]).astype(np.float64)
    # tol asks what an EM step would gain, and this emission has no EM of its own.
    settings: dict[str, Any] = dict(n_init=2, inference="svi", tol=None, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return PoissonModel(2, random_state=0, order_by="mean", **settings).fit(x), x, states


def test_a_poisson_model_is_fitted_named_and_counted(fitted) -> None:
    model, x, states = fitted
    np.testing.assert_allclose(model.rates_, RATES, rtol=0.25)
    assert model.regime_names_ == ["Bull", "Bear"] and not hasattr(model, "means_")
    assert model.n_parameters_ == 1 + 2 + 4
    assert np.mean(model.predict(x) == states) > 0.95
    assert (np.diff(model.history_) > -1.0).all() and model.history_[-1] > model.history_[0]


def test_its_likelihood_is_that_of_scipys_poisson(fitted) -> None:
    model, x, _ = fitted
    log_prob, path = model.decode(x)
    expected = poisson.logpmf(x, model.rates_[path]).sum() + np.log(model.initial_probs_[path[0]])
    expected += np.log(model.transition_matrix_[path[:-1], path[1:]]).sum()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)
    assert log_prob < model.score(x) == model.log_likelihood_


def test_it_samples_forecasts_and_is_saved(fitted, tmp_path) -> None:
    model, x, _ = fitted
    drawn, states = model.sample(5000, random_state=1)
    assert (drawn == drawn.round()).all()
    means = np.stack([drawn[states == k].mean(0) for k in range(2)])
    np.testing.assert_allclose(means, model.rates_, rtol=0.1)
    forecast = model.forecast(x, 2)
    np.testing.assert_allclose(forecast.mean, forecast.regime_probs @ model.rates_, rtol=1e-10)
    np.testing.assert_allclose(
        forecast.distribution.variance.numpy(),
        np.diagonal(forecast.covariance, axis1=1, axis2=2),
        rtol=1e-8,
    )
    np.testing.assert_allclose(model.summary().mean, 252 * model.rates_, rtol=1e-12)
    model.save(tmp_path / "model.json")
    loaded = PoissonModel.load(tmp_path / "model.json")
    np.testing.assert_array_equal(loaded.rates_, model.rates_)
    assert loaded.score(x) == model.score(x)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace(repr(float(model.rates_[0, 0])), "-1.0"))
    with pytest.raises(ValueError, match="rates_ that are not positive"):
        PoissonModel.load(tmp_path / "model.json")


def test_it_refuses_its_own_data_and_forgets_another_emission(fitted) -> None:
    model, x, _ = fitted
    with pytest.raises(ValueError, match="expected X to hold counts"):
        PoissonModel(2).fit(x - 1)
    gaussian = RegimeModel(2, n_init=1, max_iter=0, random_state=0).fit(x)
    gaussian.__class__ = PoissonModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gaussian.set_params(inference="svi", tol=None, max_iter=2).fit(x)
    assert hasattr(gaussian, "rates_") and not hasattr(gaussian, "means_")


# ---- the Gaussian ones ---------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_arguments_units_and_order_come_back(covariance_type) -> None:
    spec = find_spec(covariance_type)
    emission = {"means": MEANS, "covariances": COVARIANCES[covariance_type]}
    shapes = {name: value.shape for name, value in emission.items()}
    assert shapes == spec.shapes(3, 2) and tuple(emission) == spec.attributes
    units = Units(np.array([1.0, -2.0]), np.array([3.0, 3.0]))
    order = np.array([2, 0, 1])
    for found in (
        spec.from_arguments(spec.to_arguments(emission), emission),
        spec.unscale(spec.scale(emission, units), units),
        spec.select(spec.select(emission, order), np.argsort(order)),
        spec.raised(emission, 1e-9),
        spec.regularized(emission, 0.0, True),
    ):
        for name, value in emission.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12)
    # In units z the covariances are those of z.
    _, before = spec.moments(emission)
    _, after = spec.moments(spec.scale(emission, units))
    np.testing.assert_allclose(9.0 * after, before, rtol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_clusters_may_be_soft(covariance_type) -> None:
    """A point of weight 1/2 in each of two copies counts as one point."""
    rng = seeds.rng(0)
    x = rng.standard_normal((60, 2)) * [1.0, 3.0]
    hard = np.eye(3)[rng.randint(3, size=60)]
    twice = np.concatenate([x, x])
    halves = np.concatenate([hard, hard]) / 2
    spec = find_spec(covariance_type)
    once = spec.start_from_clusters(x, hard, MEANS, 1e-6)
    found = spec.start_from_clusters(twice, halves, MEANS, 1e-6)
    np.testing.assert_allclose(found["covariances"], once["covariances"], rtol=1e-10)
    if covariance_type == "full":
        members = [x[hard[:, k] > 0] for k in range(3)]
        expected = np.stack([np.cov(each, rowvar=False, bias=True) for each in members])
        np.testing.assert_allclose(once["covariances"], expected, rtol=1e-10)
