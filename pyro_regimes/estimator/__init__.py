"""The scikit-learn estimator of market regimes, RegimeModel, and its parts."""

from pyro_regimes.estimator.parameter_errors import ParameterErrors
from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.report import Forecast, Imputation, Summary

__all__ = [
    "Forecast",
    "Imputation",
    "ParameterErrors",
    "RegimeModel",
    "Summary",
    "plot_regimes",
]
