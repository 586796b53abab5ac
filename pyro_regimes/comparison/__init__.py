"""Comparison of EM, SVI, L-BFGS, VI and NUTS, on a model or on a table of returns.

:mod:`.comparison.tables` prints a comparison (requires rich), :mod:`.comparison.plots` plots it.
"""

from pyro_regimes.comparison.on_model import (
    ALL_METHODS,
    DEFAULT_METHODS,
    LIKELIHOOD_METHODS,
    PRIOR_METHODS,
    compare,
)
from pyro_regimes.comparison.on_returns import compare_on_returns, default_methods
from pyro_regimes.comparison.plots import plot_comparison
from pyro_regimes.comparison.posterior_plots import plot_posteriors
from pyro_regimes.comparison.runs import Comparison, Interval, MethodRun
from pyro_regimes.comparison.task import Progress

__all__ = [
    "ALL_METHODS",
    "DEFAULT_METHODS",
    "LIKELIHOOD_METHODS",
    "PRIOR_METHODS",
    "Comparison",
    "Interval",
    "MethodRun",
    "Progress",
    "compare",
    "compare_on_returns",
    "default_methods",
    "plot_comparison",
    "plot_posteriors",
]
