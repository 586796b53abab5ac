"""The models between which to choose: each fitted, with its criteria and its held-out score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.estimator import missing, validation
from pyro_regimes.estimator.criteria import Criteria, information_criteria
from pyro_regimes.estimator.held_out import held_out_scores
from pyro_regimes.estimator.likelihood_ratio import RatioTest, bootstrap_ratio
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.problems import CollapseWarning
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.spec import has_components
from pyro_regimes.infer.em.ranks import alone

_NOTHING = Criteria(math.nan, math.nan, math.nan, math.nan)


class Family(NamedTuple):
    """An emission with a covariance type."""

    emission: Any
    covariance_type: str | None  #: None of an emission without covariances

    @property
    def name(self) -> str:
        """As in a table: "gaussian, full"."""
        return ", ".join([self.emission_name, *([self.covariance_type or ""] if self[1] else [])])

    @property
    def emission_name(self) -> str:
        """The emission, or of each column its own."""
        if isinstance(self.emission, Mapping):
            return " ".join(f"{key}:{family}" for key, family in self.emission.items())
        return str(self.emission)


class Candidate(NamedTuple):
    """One number of regimes of one family."""

    n_regimes: int
    family: Family
    model: RegimeModel | None  #: the fitted model; None if the fit failed
    error: str = ""  #: why it failed
    is_collapsed: bool = False  #: a regime has no variance, and the likelihood no bound
    log_likelihood: float = math.nan
    n_parameters: float = math.nan
    criteria: Criteria = _NOTHING
    held_out: float = math.nan  #: the sum of :attr:`block_scores`
    block_scores: Array = np.zeros(0)  #: log-density of each block given the other rows
    ratio: RatioTest | None = None  #: the test against one more regime
    problems: tuple[str, ...] = ()  #: warnings about the fit and the held-out score

    @property
    def name(self) -> str:
        """As in a note: "2 regimes (gaussian, full)"."""
        return f"{self.n_regimes} regime{'s' * (self.n_regimes > 1)} ({self.family.name})"

    def value(self, criterion: str) -> float:
        """The value of a column of the table."""
        if criterion == "p_value":
            return math.nan if self.ratio is None else self.ratio.p_value
        if criterion in Criteria._fields:
            return float(getattr(self.criteria, criterion))
        return float(getattr(self, criterion))


class Sample(NamedTuple):
    """The data of all candidates."""

    X: Any  #: as the user gave them
    lengths: Any
    data: Array  #: ``(T, D)``, of all sequences; NaN where entries are missing
    sizes: list[int]  #: the number of rows of each sequence


def fit_candidate(
    n_regimes: int, family: Family, sample: Sample, settings: Mapping[str, Any]
) -> Candidate:
    """Fit one candidate. Data that it cannot be fitted to are its ``error``.

    :param settings: parameters of :class:`.RegimeModel`; ``n_components`` is of mixtures alone.
    """
    kind = family.covariance_type or "full"
    if not has_components(family.emission):
        settings = {name: value for name, value in settings.items() if name != "n_components"}
    model = RegimeModel(n_regimes, kind, emission=family.emission, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with alone():
                model.fit(sample.X, lengths=sample.lengths)
        except ValueError as error:
            return Candidate(n_regimes, family, None, str(error))
    entropy = model._hmm().path_entropy(sample.data, sample.sizes)
    return Candidate(
        n_regimes,
        family,
        model,
        is_collapsed=any(issubclass(each.category, CollapseWarning) for each in caught),
        log_likelihood=model.log_likelihood_,
        n_parameters=model.n_parameters_,
        criteria=information_criteria(
            model.log_likelihood_, model.n_parameters_, model.n_samples_fit_, entropy
        ),
        problems=tuple(str(each.message) for each in caught),
    )


def with_held_out(candidate: Candidate, sample: Sample, folds: int, seed: int) -> Candidate:
    """The candidate with its held-out score; NaN, with a problem, where it has none."""
    model = candidate.model
    if model is None:
        return candidate
    rng = np.random.RandomState([seed, candidate.n_regimes, 1])
    own = validation.read_settings(model)
    try:
        scores, fits = held_out_scores(
            sample.data, sample.sizes, model._fitted_spec(), own, folds, rng
        )
    except ValueError as error:
        return candidate._replace(
            problems=(*candidate.problems, f"It has no held-out score: {error}.")
        )
    found = list(candidate.problems)
    for flags, what in (
        (fits.degenerate, "collapsed"),
        (~fits.converged & ~fits.degenerate, "did not converge"),
    ):
        if flags.any() and own.tol is not None:
            found.append(f"The fit {what} with {flags.sum()} of {folds} blocks held out.")
    if np.isneginf(scores).any():
        found.append("A held-out block has density 0.")
    return candidate._replace(
        held_out=float(scores.sum()), block_scores=scores, problems=tuple(found)
    )


def with_ratio(
    candidate: Candidate, larger: Candidate, sample: Sample, num_replicates: int, seed: int
) -> Candidate:
    """The candidate with its bootstrap test against one more regime, if both have a maximum."""
    model, other = candidate.model, larger.model
    if model is None or other is None or candidate.is_collapsed or larger.is_collapsed:
        return candidate
    # Before regularization, as in the replicates.
    statistic = 2 * float(other.history_[-1] - model.history_[-1])
    ratio = bootstrap_ratio(
        statistic,
        model._hmm().parameters,
        sample.data,
        sample.sizes,
        model._fitted_spec(),
        validation.read_settings(model),
        num_replicates,
        np.random.RandomState([seed, candidate.n_regimes, 2]),
    )
    found = list(candidate.problems)
    if statistic < 0:
        found.append(
            f"With {larger.n_regimes} regimes the log-likelihood is lower by {-statistic / 2:.2f}, "
            "so that fit has not found its maximum: increase n_init."
        )
    if ratio.num_collapsed:
        found.append(
            f"In {ratio.num_collapsed} of {num_replicates} replicates the fit of "
            f"{larger.n_regimes} regimes collapsed; they count as ratios above that of the data."
        )
    return candidate._replace(ratio=ratio, problems=tuple(found))


def num_observed(sample: Sample) -> int:
    """The number of rows with some value."""
    return int(missing.observed_rows(sample.data).sum())
