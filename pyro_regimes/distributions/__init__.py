"""Distributions to use in Pyro models."""

from pyro_regimes.distributions.posterior import Posterior
from pyro_regimes.distributions.regime_hmm import RegimeHMM

__all__ = ["Posterior", "RegimeHMM"]
