"""Hidden Markov models in Pyro: a distribution, EM, and an estimator of market regimes."""

from pyro_regimes.distributions import Posterior, RegimeHMM
from pyro_regimes.estimator import RegimeModel
from pyro_regimes.infer import EM, EMResult, infer_regimes
from pyro_regimes.version import __version__

__all__ = [
    "EM",
    "EMResult",
    "Posterior",
    "RegimeHMM",
    "RegimeModel",
    "infer_regimes",
    "__version__",
]
