"""Plots of fitted regimes, with matplotlib (the ``app`` extra).

The functions take plain arrays and return a figure. They show nothing and do not change pyplot's
state or matplotlib's settings.
"""

from pyro_regimes.estimator.plots.correlations import plot_correlations
from pyro_regimes.estimator.plots.dates import as_time, label_dates
from pyro_regimes.estimator.plots.distributions import plot_distributions
from pyro_regimes.estimator.plots.figure import figure_of, given_axes, new_figure, regime_colors
from pyro_regimes.estimator.plots.lines import standard_scores
from pyro_regimes.estimator.plots.path import plot_regimes
from pyro_regimes.estimator.plots.transitions import plot_transitions

__all__ = [
    "as_time",
    "figure_of",
    "given_axes",
    "label_dates",
    "new_figure",
    "plot_correlations",
    "plot_distributions",
    "plot_regimes",
    "plot_transitions",
    "regime_colors",
    "standard_scores",
]
