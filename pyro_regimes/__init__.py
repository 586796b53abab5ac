"""Hidden Markov models in Pyro: a distribution, EM beside SVI, and market regimes."""

from pyro_regimes.distributions import Posterior, RegimeHMM
from pyro_regimes.estimator import RegimeModel
from pyro_regimes.infer import EM, EMResult, infer_regimes

__version__ = "0.1.0"

__all__ = [
    "EM",
    "EMResult",
    "Posterior",
    "RegimeHMM",
    "RegimeModel",
    "infer_regimes",
    "__version__",
]
