"""The methods of a comparison, one file for each kind.

Every function runs one method from the common start.
"""

from pyro_regimes.comparison.methods.em import run_em, run_em_map
from pyro_regimes.comparison.methods.lbfgs import run_lbfgs
from pyro_regimes.comparison.methods.nuts import run_nuts
from pyro_regimes.comparison.methods.optimisers import OPTIMISERS
from pyro_regimes.comparison.methods.squarem import run_squarem
from pyro_regimes.comparison.methods.svi import run_auto_delta, run_svi
from pyro_regimes.comparison.methods.variational import GUIDES, run_guide

__all__ = [
    "GUIDES",
    "OPTIMISERS",
    "run_auto_delta",
    "run_em",
    "run_em_map",
    "run_guide",
    "run_lbfgs",
    "run_nuts",
    "run_squarem",
    "run_svi",
]
