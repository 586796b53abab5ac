"""A new emission is one object: geometric counts, in this file alone, in every method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import pytest
from pyro.distributions import constraints
from scipy.stats import geom
from torch import Tensor

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import spec as specs
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.checks import Names, refuse, within
from pyro_regimes.estimator.parameters import Array, Emission, Moments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, SPECS, find_spec
from pyro_regimes.estimator.units import Units
from tests import seeds
from tests.regimes import COVARIANCES, MEANS


class Geometric(Spec):
    """Numbers of failures before a success, of ``chances`` ``(..., K, D)``."""

    title = "geometric"
    attributes, arguments = ("chances",), ("probs",)

    def shapes(self, num_regimes: int, num_series: int) -> dict[str, tuple[int, ...]]:
        return {"chances": (num_regimes, num_series)}

    def check_values(self, emission: Emission) -> None:
        within("chances", emission, 0.0, 1.0)

    def check_support(self, data: Array, feature_names: Names | None) -> None:
        refuse("counts", data, data < 0, feature_names, "count from 0")

    def moments(self, emission: Emission) -> Moments:
        chances = emission["chances"]
        return Moments((1 - chances) / chances, (1 - chances) / chances**2)

    def draw(
        self, emission: Emission, states: npt.NDArray[np.int64], rng: np.random.RandomState
    ) -> Array:
        return rng.geometric(emission["chances"][states]) - 1.0

    def overall(self, x: Array, shares: Array, rng: np.random.RandomState) -> Emission:
        return {"chances": np.tile(1 / (1 + x.mean(0)), (shares.shape[1], 1))}

    def constraint(self, name: str, floor: float) -> constraints.Constraint:
        return constraints.unit_interval

    def observation_dist(self, arguments: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.Geometric(arguments["probs"]).to_event(1)


CHANCES = np.array([[0.6, 0.7], [0.1, 0.2]])


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPECS, ("geometric", "full"), Geometric())
        for module in (specs, validation):
            patch.setattr(module, "EMISSIONS", (*specs.EMISSIONS, "geometric"))
        yield


@pytest.fixture(scope="module")
def fitted(registered: None) -> tuple[RegimeModel, Array, npt.NDArray[np.int64]]:
    rng = seeds.rng(0)
    states = (np.arange(400) // 40) % 2
    x = rng.geometric(CHANCES[states]) - 1.0
    model = RegimeModel(2, random_state=0, n_init=3, emission="geometric", order_by="mean")
    return model.fit(x), x, states


def test_a_geometric_model_is_fitted_named_and_counted(fitted) -> None:
    model, x, states = fitted
    np.testing.assert_allclose(model.chances_, CHANCES[::-1], rtol=0.3)
    assert model.regime_names_ == ["Regime 1", "Regime 2"] and not hasattr(model, "means_")
    assert model.n_parameters_ == 1 + 2 + 4
    assert np.mean(model.predict(x) != states) > 0.9  # the highest mean first
    assert (np.diff(model.history_) > -1e-9).all() and model.history_[-1] > model.history_[0]


def test_its_likelihood_is_that_of_scipys_distribution(fitted) -> None:
    model, x, _ = fitted
    log_prob, path = model.decode(x)
    expected = geom.logpmf(x + 1, model.chances_[path]).sum()
    expected += np.log(model.initial_probs_[path[0]])
    expected += np.log(model.transition_matrix_[path[:-1], path[1:]]).sum()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)
    assert log_prob < model.score(x) == model.log_likelihood_


def test_it_is_saved_and_its_values_are_checked(fitted, tmp_path) -> None:
    model, x, _ = fitted
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    np.testing.assert_array_equal(loaded.chances_, model.chances_)
    assert loaded.score(x) == model.score(x)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace(repr(float(model.chances_[0, 0])), "-1.0"))
    with pytest.raises(ValueError, match="expected chances to be between 0 and 1"):
        RegimeModel.load(tmp_path / "model.json")


def test_it_refuses_its_own_data_and_forgets_another_emission(fitted) -> None:
    model, x, _ = fitted
    with pytest.raises(ValueError, match="expected X to hold counts"):
        RegimeModel(2, emission="geometric").fit(x - 1)
    gaussian = RegimeModel(2, n_init=1, random_state=0).fit(x + seeds.rng(1).rand(*x.shape))
    gaussian.set_params(emission="geometric").fit(x)
    assert hasattr(gaussian, "chances_") and not hasattr(gaussian, "means_")


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
