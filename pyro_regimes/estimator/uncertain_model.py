"""The methods of a fitted regime model that say how well its parameters are known."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes import progress
from pyro_regimes.estimator import intervals, validation
from pyro_regimes.estimator.annotations import annotate
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.fitted_model import FittedModel
from pyro_regimes.estimator.interval_table import ConfidenceIntervals
from pyro_regimes.estimator.missing import check_columns
from pyro_regimes.estimator.parameter_errors import (
    Held,
    ParameterErrors,
    by_name,
    parameter_errors,
)
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.quantities import Quantities


class UncertainModel(FittedModel):
    """Standard errors, confidence intervals, and probabilities averaged over the parameters."""

    stickiness: float

    def standard_errors(
        self,
        X: Any,
        *,
        method: str = "observed",
        lengths: npt.ArrayLike | None = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> ParameterErrors:
        r"""Standard errors of the fitted parameters.

        They are those of :func:`pyro_regimes.standard_errors`: the inverse of the observed
        information, which is exact, or the sandwich, by the scores of the sequences if there are
        more of them than parameters and else of the rows. With ``stickiness``, the prior is part of
        the information.

        A probability of 0 or 1 has no standard error: it is NaN, and named in the ``notes``, as are
        directions in which the information is singular. What the fit holds (``fixed`` parameters,
        initial probabilities unless they are free, forbidden transitions) has the error 0.

        :param X: the data of the fit, as in :meth:`fit`, which the model does not keep.
        :param method: "observed" or "sandwich".
        :param lengths: as in :meth:`fit`.
        :param states: as in :meth:`fit`.
        :param sample_weight: as in :meth:`fit`, for "observed".
        :param gaps: as in :meth:`fit`.
        :return: a :class:`.ParameterErrors`, with ``standard_errors`` by the name of the attribute.
        :raises ValueError: if an argument is not valid, the method cannot be used, or the model is
            not fitted.
        """
        validation.one_of("method", method, intervals.METHODS[:2])
        hmm, data, sizes = self._hmm_of_fit(X, lengths, states, sample_weight, gaps)
        with progress.bar("second derivatives"):
            errors = parameter_errors(hmm, self._held(), data, sizes, method)
        intervals.warn_of(errors)
        return errors

    def conf_int(
        self,
        X: Any,
        *,
        level: float = 0.95,
        method: str = "observed",
        lengths: npt.ArrayLike | None = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
        n_bootstrap: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ) -> ConfidenceIntervals:
        r"""Confidence intervals of the parameters, and of what :meth:`summary` derives from them.

        The rows are the emission's own parameters, initial and transition probabilities, stationary
        shares, expected durations, and means and volatilities, annualised as in :meth:`summary`.
        The standard errors of derived numbers are those of the delta method. An interval is
        symmetric on the scale of log-odds for a probability, of logarithms for a positive number
        and for the excess of a duration over 1, and else on that of the number itself, so that its
        ends are admissible.

        "bootstrap" draws ``n_bootstrap`` data sets of the size of X from the model and refits it to
        each, in one batch, from the fitted parameters. Their regimes are matched to those of the
        model by the rows on which they agree. An interval is that of the percentiles, and the
        standard error the standard deviation. Missing values of X are missing in each set.

        :param X: as in :meth:`standard_errors`.
        :param level: probability that an interval is to cover, between 0 and 1.
        :param method: "observed", "sandwich" or "bootstrap".
        :param lengths: as in :meth:`fit`.
        :param states: as in :meth:`fit`, without "bootstrap".
        :param sample_weight: as in :meth:`fit`, for "observed".
        :param gaps: as in :meth:`fit`.
        :param n_bootstrap: number of data sets, at least 2.
        :param random_state: seed of the draws; None uses that of the model.
        :return: a :class:`.ConfidenceIntervals`. ``print`` shows it as a table, and so does a
            notebook; its ``to_frame()`` is a DataFrame.
        :raises ValueError: if an argument is not valid, the method cannot be used, or the model is
            not fitted.
        """
        level = intervals.check_level(level)
        validation.one_of("method", method, intervals.METHODS)
        hmm, data, sizes = self._hmm_of_fit(X, lengths, states, sample_weight, gaps)
        names = getattr(self, "feature_names_in_", None)
        series = [f"series {i + 1}" for i in range(data.shape[1])] if names is None else list(names)
        quantities = Quantities.make(
            hmm.spec, hmm.parameters, self.regime_names_, series, self._periods_per_year()
        )
        if method != "bootstrap":
            with progress.bar("second derivatives"):
                errors = parameter_errors(hmm, self._held(), data, sizes, method)
            intervals.warn_of(errors)
            return intervals.asymptotic(errors, quantities, level, method)
        num_sets = validation.integer("n_bootstrap", n_bootstrap, 2)
        check_columns(data, names)
        rng = validation.random_state(self.random_state if random_state is None else random_state)
        settings = validation.read_settings(self)
        held = self._held()
        with progress.bar(f"{num_sets} refits, iterations"):
            return intervals.by_bootstrap(
                hmm, held, settings, quantities, data, sizes, level, num_sets, rng
            )

    def average_proba(
        self,
        X: Any,
        errors: ParameterErrors,
        *,
        kind: str = "smoothed",
        n_draws: int = 100,
        lengths: npt.ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Array:
        r"""Probabilities of the regimes, averaged over the uncertainty of the parameters.

        .. math:: p(q_t = k \mid x) \approx \frac1S \sum_s p(q_t = k \mid x, \theta_s)

        The parameters :math:`\theta_s` are draws from the asymptotic normal distribution of
        unconstrained coordinates, as in :meth:`.StandardErrors.draw`. The regimes are near those
        of the fit in every draw, and are not matched. The first regime of each sequence is as in
        :meth:`predict_proba`, at the drawn parameters.

        :param X: as in :meth:`predict_proba`; need not be the data of the fit.
        :param errors: from :meth:`standard_errors`, on the data of the fit.
        :param kind: "smoothed" or "filtered".
        :param n_draws: the number S of draws, at least 1.
        :param lengths: as in :meth:`fit`.
        :param random_state: seed of the draws; None uses that of the model.
        :return: ``(T, K)``.
        :raises ValueError: if an argument is not valid, some parameter has no standard error
            without being on a bound, or the model is not fitted.
        """
        check_is_fitted(self, "initial_probs_")
        validation.one_of("kind", kind, ("smoothed", "filtered"))
        n_draws = validation.integer("n_draws", n_draws, 1)
        if not isinstance(errors, ParameterErrors):
            raise ValueError(
                f"expected errors from standard_errors, got {type(errors).__name__}"
            )
        if not _are_equal(by_name(errors.chart.estimates), by_name(self._hmm().parameters)):
            raise ValueError(
                "expected errors of the parameters of this model, got those of others; call its "
                "standard_errors on the data of the fit"
            )
        rng = validation.random_state(self.random_state if random_state is None else random_state)
        total: Array = np.zeros(())
        for parameters in errors.draw(n_draws, int(rng.randint(2**31))):
            hmm, data, sizes = self._with(parameters)._hmm_of(X, lengths)
            total = total + hmm.posterior(data, sizes, kind)[1]
        return total / n_draws

    def _hmm_of_fit(
        self,
        X: Any,
        lengths: npt.ArrayLike | None,
        states: Any,
        sample_weight: npt.ArrayLike | None,
        gaps: Any,
    ) -> tuple[FittedHMM, Array, list[int]]:
        """The fitted model with its own initial probabilities, and the data of the fit."""
        check_is_fitted(self, "initial_probs_")
        data, sizes = validation.check_data(self, X, lengths)
        beside = {"states": states, "sample_weight": sample_weight, "gaps": gaps}
        n_regimes = len(self.regime_names_)
        data, sizes, annotations, _ = annotate(data, sizes, X, n_regimes, **beside)
        hmm = self._hmm()._replace(annotations=annotations)
        hmm.spec.check_support(data, getattr(self, "feature_names_in_", None))
        return hmm, data, sizes

    def _with(self, parameters: Parameters) -> UncertainModel:
        """The model with other values of its parameters."""
        other = copy(self)
        other.initial_probs_, other.transition_matrix_, emission = parameters
        for name, value in emission.items():
            setattr(other, f"{name}_", value)
        return other

    def _held(self) -> Held:
        """What the fit has not estimated."""
        return Held(self.fixed_, self.initial_, self.transition_mask_, self.stickiness)


def _are_equal(some: dict[str, Array], others: dict[str, Array]) -> bool:
    """Whether these are the same parameters, to the last digit."""
    return some.keys() == others.keys() and all(
        np.array_equal(value, others[name]) for name, value in some.items()
    )
