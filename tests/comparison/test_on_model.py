"""Every method on a Pyro model of the caller's own."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison import compare
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, X


def test_methods_that_need_priors():
    with pytest.raises(ValueError, match=r"a prior_model for the methods \['AutoNormal'\]"):
        compare(lambda data: None, torch.zeros(3, 1), methods=["EM", "AutoNormal"])


def test_compare_takes_a_model_with_latent_sites() -> None:
    """And finds the HMM under a mask."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, SCALE).to_event(0),
        )
        pyro.sample("x", hmm.mask(torch.tensor(True)), obs=x)

    start = {"loc": LOC}
    found = compare(
        model, X, methods=["EM, MAP", "AutoNormal"], init_values=start, svi_steps=5, num_draws=3
    )
    mode, variational = found.runs
    assert mode.log_likelihood < 0 and mode.values[-1] == pytest.approx(mode.log_joint)
    assert variational.posterior is not None
    with pytest.raises(ValueError, match=r"a model without latent sites for \['EM'\]"):
        compare(model, X, methods=["EM"])
