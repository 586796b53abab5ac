"""What hmmlearn and statsmodels call the attributes of a fitted model, for error messages."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator

_OURS = {
    # hmmlearn
    "startprob_": "initial_probs_",
    "transmat_": "transition_matrix_",
    "covars_": "covariances_",
    "lambdas_": "rates_",
    "emissionprob_": "probabilities_",
    "monitor_": "history_, n_iter_ and converged_",
    "get_stationary_distribution": "stationary_distribution_",
    # scikit-learn's mixtures
    "lower_bound_": "log_likelihood_",
    "lower_bounds_": "history_",
    # statsmodels' Markov switching models
    "llf": "log_likelihood_",
    "expected_durations": "expected_durations_",
    "regime_transition": "transition_matrix_, which has (old, new)",
    "filtered_marginal_probabilities": "predict_proba(X, kind='filtered')",
    "smoothed_marginal_probabilities": "predict_proba(X)",
    "predicted_marginal_probabilities": "forecast(X, 1).regime_probs",
    "bse": "standard_errors(X)",
    "simulate": "sample",
}


class SuggestingNames(BaseEstimator):
    """An estimator whose errors about unknown attributes say how this package calls them."""

    def __getattr__(self, name: str) -> Any:
        """Called where an attribute is not found, and where a property raises an AttributeError."""
        try:
            return super().__getattribute__(name)  # raises the error again
        except AttributeError as error:
            if name not in _OURS:
                raise
            raise AttributeError(
                f"{error}; use {_OURS[name]}", name=name, obj=self
            ) from None
