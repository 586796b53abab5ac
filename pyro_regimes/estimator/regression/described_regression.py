"""The tables and criteria of a fitted Markov-switching regression."""

from __future__ import annotations

from pyro_regimes.estimator import problems
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.coefficient_table import (
    CoefficientTable,
    RegressionSummary,
    coefficient_table,
)
from pyro_regimes.estimator.regression.errors import RegressionErrors
from pyro_regimes.estimator.regression.fitted_regression import FittedRegression
from pyro_regimes.estimator.regression.tabled_regression import TabledRegression
from pyro_regimes.estimator.start_results import StartResults


class DescribedRegression(TabledRegression, FittedRegression):
    """The methods of :class:`.RegimeRegression` that describe a fit.

    A subclass sets the attributes below.
    """

    n_missing_: int
    share_of_time_: Array
    starts_: StartResults
    _errors: RegressionErrors | None

    def _table(self, level: float) -> CoefficientTable:
        design = self._design
        return coefficient_table(
            self._form, self._parameters(), self._errors, self.regime_names_, design.columns,
            design.transition_columns, design.scale_columns, level,
        )  # fmt: skip

    def summary(self, level: float = 0.95) -> RegressionSummary:
        """What the fit is of, how good it is, and the table of all estimates.

        :param level: the probability that an interval covers.
        :return: a :class:`.RegressionSummary`; ``print`` shows it.
        :raises ValueError: if the level is not valid, or the model is not fitted.
        """
        table = self.conf_int(level)
        response = self._form.response
        facts = [("Markov-switching regression", self._design.formula or "of arrays")]
        if response.name != "gaussian":
            facts.append(("Family", f"{response.name}, {response.link} link"))
        if self._form.spread is not None:
            facts.append((f"Log of {response.scale}", str(self._design.scale_formula)))
        if self._form.moves is not None:
            of = self._design.transition_formula or "of arrays"
            row = "entered" if self._form.enters else "left"
            facts.append(("Transitions", f"{of}, by the row that is {row}"))
        missing = f" ({self.n_missing_} more not observed)" if self.n_missing_ else ""
        durations = ", ".join(f"{each:.2f}" for each in self.expected_durations_)
        facts += [
            ("Regimes", str(len(self.regime_names_))),
            ("Observations", f"{self.n_samples_fit_}{missing}"),
            ("Log-likelihood", f"{self.log_likelihood_:.5f}"),
            ("AIC", f"{self.aic():.3f}"),
            ("BIC", f"{self.bic():.3f}"),
            ("Initial distribution", self._form.initial),
            ("Expected durations", durations),
            ("Shares of time", ", ".join(f"{share:.1%}" for share in self.share_of_time_)),
        ]
        notes = list(self.starts_.describe()) + problems.of_shares(
            self.regime_names_,
            self.share_of_time_,
            self.expected_durations_,
            self.n_samples_fit_,
            2 * (int(self._form.switching.sum()) + self._form.num_scales),
            "Compare fewer regimes.",
        )
        if self._form.moves is not None:
            notes.append(
                "Coefficients of moves, such as from Regime 1 to Regime 2, are log-odds against "
                "staying. Expected durations are those at the average covariates."
            )
        return RegressionSummary(facts, table, notes + self._notes())

    def _notes(self) -> list[str]:
        """Doubts about the standard errors of what the table shows."""
        found = [] if self._errors is None else self._errors.notes
        notes = [each for each in found if "direction mainly of" not in each]
        if len(notes) < len(found):
            notes.append(
                "The data do not determine the parameters without a standard error (-), as where "
                "covariates separate the moves from the stays, or regimes are alike."
            )
        if any("on a bound" in each and "transition_probs" in each for each in found):
            notes.append("A probability of 0 or 1 is on a bound, without a standard error (-).")
        return [each for each in notes if not each.startswith("on a bound")]
