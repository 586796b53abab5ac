"""The scikit-learn estimator of market regimes, RegimeModel, and its parts."""

from pyro_regimes.estimator.autoregression.regime_autoregression import RegimeAutoregression
from pyro_regimes.estimator.forecast import Forecast
from pyro_regimes.estimator.interval_table import ConfidenceIntervals
from pyro_regimes.estimator.online_filter import OnlineFilter
from pyro_regimes.estimator.parameter_errors import ParameterErrors
from pyro_regimes.estimator.plots import plot_regimes
from pyro_regimes.estimator.predictive_checks import PredictiveCheck
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.regression.coefficient_table import CoefficientTable, RegressionSummary
from pyro_regimes.estimator.regression.regime_regression import RegimeRegression
from pyro_regimes.estimator.regression.regression_forecast import RegressionForecast
from pyro_regimes.estimator.report import Imputation, Summary
from pyro_regimes.estimator.residual_tests import ResidualTests
from pyro_regimes.estimator.residuals import Residuals
from pyro_regimes.estimator.sampling import Paths
from pyro_regimes.estimator.selection import select
from pyro_regimes.estimator.selection_result import Selection
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.estimator.walk_forward import walk_forward
from pyro_regimes.estimator.walk_forward_result import WalkForward

__all__ = [
    "CoefficientTable",
    "ConfidenceIntervals",
    "Forecast",
    "Imputation",
    "OnlineFilter",
    "ParameterErrors",
    "Paths",
    "PredictiveCheck",
    "RegimeAutoregression",
    "RegimeModel",
    "RegimeRegression",
    "RegressionForecast",
    "RegressionSummary",
    "ResidualTests",
    "Residuals",
    "Selection",
    "StartResults",
    "Summary",
    "WalkForward",
    "plot_regimes",
    "select",
    "walk_forward",
]
