"""What is evaluated where a method has ended."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison.scores import log_densities
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, X, real


class Tempered(RegimeHMM):
    """A subclass with a density of its own."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


def test_the_likelihood_of_a_subclass_is_its_own() -> None:
    def model(kind: type[RegimeHMM]) -> None:
        hmm = kind(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(real("loc", LOC), SCALE),
        )
        pyro.sample("x", hmm, obs=X)

    tempered = log_densities(lambda x: model(Tempered), X)
    plain = log_densities(lambda x: model(RegimeHMM), X)
    assert tempered.likelihood == tempered.joint == 0.5 * plain.likelihood != 0
