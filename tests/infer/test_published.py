"""Numbers that were printed elsewhere; sources in ``tests/data/README.md``."""

import json
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import Observed
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.kernels import ops

DATA = Path(__file__).parents[1] / "data"


def test_umbrella() -> None:
    published = json.loads((DATA / "umbrella.json").read_text())["umbrella"]
    initial, transition, frame = (
        torch.tensor(published[name], dtype=torch.float64).log()
        for name in ("startprob", "transmat", "frameprob")
    )
    chain = initial, transition.unsqueeze(-3), frame
    expected = ops.expectations(*chain)
    tolerance = {"rtol": 0.0, "atol": 1e-4}
    assert_close(
        expected.smoothed_probs, torch.tensor(published["posteriors"]).double(), **tolerance
    )
    assert float(expected.log_likelihood) == pytest.approx(published["loglik"], abs=1e-4)
    path = ops.viterbi(*chain)
    assert path.tolist() == published["viterbi"]
    best = float(ops.complete_log_likelihood(*chain, path))
    assert best == pytest.approx(published["viterbi_loglik"], abs=1e-3)
    filtered = ops.filter_logits(*chain).exp()
    forward = torch.tensor(published["forward"], dtype=torch.float64)
    # Printed to four decimals, of which small numbers keep two digits.
    assert_close(filtered, forward / forward.sum(-1, keepdim=True), rtol=0.0, atol=3e-3)


@pytest.mark.parametrize("family", [NORMAL, MULTIVARIATE_NORMAL], ids=["normal", "mvn"])
def test_weighted_means(family) -> None:
    """Eq. 35: (.9*.5 + .8*.3 - .1*.4) / 1.8 = 0.361, and (.05 + .06 - .36) / 1.2 = -0.208."""
    returns = torch.tensor([0.5, 0.3, -0.4], dtype=torch.float64)
    gamma = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], dtype=torch.float64)
    event = () if family is NORMAL else (1,)
    observed = Observed(returns.reshape((3, 1) + event), gamma, False)
    loc, old = family.arguments[0], torch.zeros((2,) + event).double()
    stats = family.statistics(observed, {"loc": old}, frozenset({"loc"}))
    loc = loc.maximise(loc.reduce(stats, {"loc": old}, False), old, 0.0)
    assert loc.flatten().tolist() == pytest.approx([0.361, -0.208], abs=5e-4)


def test_soft_counts() -> None:
    """Eq. 27: 90, 7 and 3 expected transitions of 100 that leave a state."""
    counts = torch.tensor([[90.0, 7.0, 3.0]], dtype=torch.float64)
    assert ops.shares_of(counts, torch.full_like(counts, 0.5)).tolist() == [[0.90, 0.07, 0.03]]


def test_row_sums_and_not_arrivals() -> None:
    """Eq. 27 on a chain that is known: 0 0 0 1 leaves state 0 three times, and arrives twice."""
    states = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)

    def model() -> None:
        transition = pyro.param("transition", half, constraint=constraints.simplex)
        observation_dist = dist.Normal(torch.tensor([0.0, 1.0]).double(), 1e-3)
        hmm = RegimeHMM(
            initial_probs=half[0], transition_probs=transition, observation_dist=observation_dist
        )
        pyro.sample("x", hmm, obs=states)

    loss = EM(model).step()
    density = 4 * (math.log(1e3) - 0.5 * math.log(2 * math.pi))
    assert loss == pytest.approx(-density - 4 * math.log(0.5), rel=1e-12)
    transition = pyro.param("transition").detach()
    assert_close(transition[0], torch.tensor([2 / 3, 1 / 3]).double(), rtol=1e-7, atol=0.0)
    assert transition[1].tolist() == [0.5, 0.5]  # never left
