"""The scikit-learn estimator of market regimes, RegimeModel, and its parts."""

from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.report import Forecast, Imputation, Summary
from pyro_regimes.estimator.selection import select
from pyro_regimes.estimator.selection_result import Selection

__all__ = [
    "Forecast",
    "Imputation",
    "RegimeModel",
    "Selection",
    "Summary",
    "plot_regimes",
    "select",
]
