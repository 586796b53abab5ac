"""Distributions to use in Pyro models."""

from pyro_regimes.distributions.forecast import Forecast
from pyro_regimes.distributions.imputation import Imputation
from pyro_regimes.distributions.posterior import Posterior
from pyro_regimes.distributions.regime_hmm import RegimeHMM
from pyro_regimes.distributions.switching_autoregression import SwitchingAutoregression
from pyro_regimes.distributions.wishart import Wishart
from pyro_regimes.kernels.ops import stationary_probs
from pyro_regimes.observed.columns import Columns
from pyro_regimes.observed.mean_gamma import MeanGamma
from pyro_regimes.observed.zero_inflated import ZeroInflatedContinuous

__all__ = [
    "Columns",
    "Forecast",
    "Imputation",
    "MeanGamma",
    "Posterior",
    "RegimeHMM",
    "SwitchingAutoregression",
    "Wishart",
    "ZeroInflatedContinuous",
    "stationary_probs",
]
