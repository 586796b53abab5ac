"""Fits to many data sets at once are those of each data set alone."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.missing import filled
from pyro_regimes.estimator.replicates import fit_replicates, simulate
from tests import seeds
from tests.estimator.emission_cases import CASES, Case

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
def test_a_data_set_does_not_depend_on_its_neighbours(case, holes):
    data = data_sets(case, 3, holes=holes)
    together = fitted(case, data, [1, 2, 3])
    for place in (0, 2):
        alone = fitted(case, data[place : place + 1], [1 + place])
        assert alone.log_likelihood[0] == together.log_likelihood[place]
        assert (alone.parameters[1][0] == together.parameters[1][place]).all()
        for name, value in alone.parameters.emission.items():
            assert (value[0] == together.parameters.emission[name][place]).all(), name
