"""Fits to many data sets at once are those of each data set alone."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import replicates, validation
from pyro_regimes.estimator.missing import filled
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.replicates import fit_replicates, simulate
from tests import seeds
from tests.estimator.emission_cases import ALL, CASES, TRANSITIONS, Case

SIZES = [90, 60]


def data_sets(case: Case, number: int, *, holes: bool = False) -> np.ndarray:
    found = np.stack([case.sample(40 + each, sum(SIZES))[0] for each in range(number)])
    if holes:
        found[:, 20:40] = np.nan
    return found


def fitted(case: Case, data: np.ndarray, rng_seeds: list[int], sizes=SIZES, **settings):
    model = RegimeModel(2, case.covariance_type, emission=case.emission, max_iter=15, n_init=3)
    model.set_params(**case.settings, **settings)
    reference = data_sets(case, 1)[0]
    spec = case.true()._fitted_spec()
    rngs = [seeds.rng(seed) for seed in rng_seeds]
    own = validation.read_settings(model)
    return fit_replicates(data, sizes, spec, own, filled(reference), rngs=rngs)


@ALL
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
def test_a_data_set_does_not_depend_on_its_neighbours(case, holes):
    """To the bit, if no elementwise function of torch rounds by the place of a number.

    Otherwise another of two starts with the same maximum may be the best one.
    """
    data = data_sets(case, 3, holes=holes)
    together = fitted(case, data, [1, 2, 3])
    for place in (0, 2):
        alone = fitted(case, data[place : place + 1], [1 + place])
        scores = alone.log_likelihood[0], together.log_likelihood[place]
        if case.emission != "gaussian":
            assert scores[0] == pytest.approx(scores[1], rel=1e-8)
            continue
        assert scores[0] == scores[1]
        assert (alone.parameters[1][0] == together.parameters[1][place]).all()
        for name, value in alone.parameters.emission.items():
            assert (value[0] == together.parameters.emission[name][place]).all()


@pytest.mark.parametrize("sizes", [[150], SIZES], ids=["one", "several"])
def test_the_fit_of_the_reference_is_that_of_the_model(sizes):
    case = CASES[0]
    data = data_sets(case, 1)
    found = fitted(case, data, [7], sizes, regularization=1e-3)
    model = case.true().set_params(max_iter=15, n_init=3, regularization=1e-3)
    model.set_params(random_state=seeds.rng(7)).fit(data[0], lengths=sizes)
    assert found.log_likelihood[0] == pytest.approx(model.history_[-1], rel=1e-12)
    order = found.parameters.emission["covariances"][0, :, 0, 0].argsort()
    means = found.parameters.emission["means"][0, order]
    np.testing.assert_allclose(means, model.means_, rtol=1e-9)
    covariances = found.parameters.emission["covariances"][0, order]
    np.testing.assert_allclose(covariances, model.covariances_, rtol=1e-9)


def test_data_sets_are_fitted_in_several_batches_if_memory_is_short(monkeypatch):
    case = CASES[0]
    data = data_sets(case, 3)
    together = fitted(case, data, [1, 2, 3])
    monkeypatch.setattr(replicates, "starts_at_once", lambda x, num_states: 6)
    apart = fitted(case, data, [1, 2, 3])
    assert (apart.log_likelihood == together.log_likelihood).all()
    assert (apart.parameters[1] == together.parameters[1]).all()


def test_starts_in_the_units_of_the_data_serve_every_data_set():
    case = CASES[0]
    data = 1e4 * data_sets(case, 2) + 3e5
    true = case.true()._hmm().parameters
    emission = {
        "means": 1e4 * true.emission["means"] + 3e5,
        "covariances": 1e8 * true.emission["covariances"],
    }
    start = Parameters.stack([true._replace(emission=emission)])
    own = validation.read_settings(RegimeModel(2, max_iter=100))
    found = fit_replicates(data, [150], case.true()._fitted_spec(), own, data[0], starts=start)
    for place in (0, 1):
        given = {"means": emission["means"], "covariances": emission["covariances"]}
        given |= {"transition_matrix": TRANSITIONS, "initial_probs": true.initial_probs}
        model = RegimeModel(2, init_params=given).fit(data[place])
        assert found.log_likelihood[place] == pytest.approx(model.history_[-1], rel=1e-7)


def test_a_simulated_data_set_has_the_holes_of_the_data():
    case = CASES[0]
    data = data_sets(case, 1)[0]
    data[3:9, 0] = np.nan
    true = case.true()
    drawn = simulate(true._hmm().parameters, true._fitted_spec(), data, SIZES, seeds.rng(1))
    assert (np.isnan(drawn) == np.isnan(data)).all() and (drawn != data).all()
