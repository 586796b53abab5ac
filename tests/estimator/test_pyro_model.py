"""The Pyro models that are made of a regime model's parameters."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import biject_to

from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.pyro_model import (
    prior_model,
    regime_hmm,
    site_values,
    to_arguments,
)
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from tests import seeds


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_prior_model_has_the_same_likelihood(covariance_type):
    rng = np.random.default_rng(seeds.seed(1))
    spread = {
        "full": np.stack([np.cov(rng.normal(size=(9, 3)).T) for _ in range(2)]),
        "tied": np.cov(rng.normal(size=(9, 3)).T),
        "diag": rng.uniform(0.5, 2.0, size=(2, 3)),
        "spherical": rng.uniform(0.5, 2.0, size=2),
    }[covariance_type]
    emission = {"means": rng.normal(size=(2, 3)), "covariances": spread}
    parameters = Parameters(
        np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.2, 0.8]]), emission
    )
    spec = find_spec(covariance_type)
    arguments = to_arguments(parameters, spec)
    x = torch.as_tensor(rng.normal(size=(20, 3)))
    model = prior_model(2, spec, x.mean(0), x.std(0))
    conditioned = pyro.poutine.condition(model, data=site_values(arguments, spec))
    trace = pyro.poutine.trace(conditioned).get_trace(x)
    trace.compute_log_prob()
    actual = trace.nodes["observations"]["log_prob_sum"]
    expected = regime_hmm(arguments, spec).log_prob(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0.0)
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name != "observations":
            assert torch.isfinite(node["log_prob_sum"])
            biject_to(node["fn"].support).inv(node["value"])
