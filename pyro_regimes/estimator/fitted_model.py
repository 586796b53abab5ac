"""The methods of a fitted regime model: paths, probabilities, scores, forecasts and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.estimator import missing, problems, validation
from pyro_regimes.estimator.annotations import annotate
from pyro_regimes.estimator.beginning import initial_probs, stationary_probs
from pyro_regimes.estimator.changes import are_changes
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.forecast import Forecast, forecast
from pyro_regimes.estimator.labels import in_order
from pyro_regimes.estimator.lengths import choice_and_lengths
from pyro_regimes.estimator.mask import num_free
from pyro_regimes.estimator.other_names import SuggestingNames
from pyro_regimes.estimator.parameters import Array, Parameters, probabilities
from pyro_regimes.estimator.pyro_model import PyroModel
from pyro_regimes.estimator.report import Imputation, Summary, summarise
from pyro_regimes.estimator.sampling import draw
from pyro_regimes.estimator.spec import Spec, find_spec
from pyro_regimes.estimator.start_results import StartResults
from pyro_regimes.estimator.states import Bools


class FittedModel(SuggestingNames):
    """The methods of :class:`.RegimeModel` that need a fit, and make none.

    A subclass sets the attributes below.
    """

    periods_per_year: float | None
    periods_per_year_: float
    dtype: Any
    device: Any
    random_state: Any
    emission: Any
    covariance_type: str
    n_components: int | None
    emission_: Any
    covariance_type_: str
    initial_: str
    transition_mask_: Bools | None
    fixed_: list[str]
    regime_names_: list[str]
    initial_probs_: Array
    transition_matrix_: Array
    share_of_time_: Array
    log_likelihood_: float
    n_samples_fit_: float
    n_missing_: npt.NDArray[Any]
    n_missing_rows_: float
    n_updates_: int
    starts_: StartResults | None
    n_features_in_: int
    training_start_: Array | None

    def predict(
        self,
        X: Any,
        lengths: npt.ArrayLike | None = None,
        *,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
        min_duration: int = 1,
        jump_penalty: float = 0.0,
    ) -> npt.NDArray[np.int64]:
        r"""The most likely path of regimes (Viterbi), given the whole sequence.

        A path may change its regime for single rows. With ``min_duration`` n it is the most likely
        one of those whose stays have at least n rows; with ``jump_penalty`` c it maximises
        :math:`\log p(x, q) - c \cdot` (number of changes). Both look ahead, as any path does.
        Filtered probabilities do not.

        :param X: as in :meth:`fit`, with the D series of the model.
        :param lengths: as in :meth:`fit`.
        :param start: probabilities of the first regime of each sequence: an array ``(K,)``,
            "fitted" for ``initial_probs_``, "stationary" for ``stationary_distribution_``, or
            "auto". After a fit to one sequence, ``initial_probs_`` only says in which regime that
            sequence began, so "auto" uses it for sequences that begin with the same rows (also if
            they are rounded to float32 or six decimals), and the stationary distribution for
            others. "auto" is "fitted" for all sequences if the model was fitted to several, if it
            is from :meth:`from_parameters`, or if some regimes cannot be reached from others.
        :param after: probabilities of the regimes at the step before the first row, ``(K,)``, such
            as the last filtered ones of the rows before. Give it instead of ``start``.
        :param states: known regimes of rows, as in :meth:`fit`.
        :param gaps: the number of steps between rows, as in :meth:`fit`. Together with ``after``,
            that of the first row of a sequence counts as well: it is the number of steps since the
            step of ``after``. NaN there is one step.
        :param min_duration: the fewest rows from one change of regime to the next. The first and
            the last stay of a sequence may be shorter, as it may begin and end within one.
        :param jump_penalty: what a change costs in nats, at least 0. 2.3 is as if each change were
            a tenth as likely.
        :return: ``(T,)``; all -1 for a sequence of probability zero.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        min_duration = validation.integer("min_duration", min_duration, 1)
        validation.number("jump_penalty", jump_penalty)
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, states=states, gaps=gaps)
        return hmm.lasting_path(data, sizes, min_duration, float(jump_penalty))

    def predict_proba(
        self,
        X: Any,
        *args: Any,
        kind: str | None = None,
        lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
    ) -> Array:
        """Probability of each regime at each step.

        :param X: as in :meth:`fit`.
        :param args: ``kind`` or ``lengths`` by position, as in ``predict_proba(X, "filtered")`` and
            in hmmlearn's ``predict_proba(X, lengths)``.
        :param kind: "smoothed", given the whole sequence, or "filtered", given past and present.
            None is "smoothed".
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: ``(T, K)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        kind, lengths = choice_and_lengths("kind", args, kind, lengths)
        kind = "smoothed" if kind is None else kind
        validation.one_of("kind", kind, ("smoothed", "filtered"))
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, states=states, gaps=gaps)
        return hmm.posterior(data, sizes, kind)[1]

    def decode(
        self,
        X: Any,
        *args: Any,
        algorithm: str | None = None,
        lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
    ) -> tuple[float, npt.NDArray[np.int64]]:
        """A path of regimes and its log-probability together with the data, log p(x, q).

        :param X: as in :meth:`fit`.
        :param args: ``algorithm`` or ``lengths`` by position, as in ``decode(X, "smoothing")`` and
            in hmmlearn's ``decode(X, lengths)``.
        :param algorithm: "viterbi" for the most likely path; "smoothing" for the most likely regime
            of each step. This minimises the expected number of errors, but the path may have
            probability zero. None is "viterbi".
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: log p(x, q) of that path, over all sequences, and the path ``(T,)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        algorithm, lengths = choice_and_lengths("algorithm", args, algorithm, lengths)
        algorithm = "viterbi" if algorithm is None else algorithm
        validation.one_of("algorithm", algorithm, ("viterbi", "smoothing"))
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, states=states, gaps=gaps)
        return hmm.decode(data, sizes, algorithm)

    def score(
        self,
        X: Any,
        y: Any = None,
        *,
        lengths: npt.ArrayLike | None = None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> float:
        """The log-likelihood of X, summed over all steps and sequences.

        :param X: as in :meth:`predict`.
        :param y: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: as in :meth:`predict`. The result is then the log-probability of X together
            with a path of these regimes.
        :param sample_weight: as in :meth:`fit`.
        :param gaps: as in :meth:`predict`.
        :return: log p(x).
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        hmm, data, sizes = self._hmm_of(
            X, lengths, start, after, y, states, sample_weight, gaps
        )
        return hmm.log_likelihood(data, sizes)

    def score_samples(
        self,
        X: Any,
        lengths: npt.ArrayLike | None = None,
        *,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> Array:
        r"""The log-density of each row given the rows before it; they sum to :meth:`score`.

        .. math:: \log p(x_t \mid x_1, ..., x_{t-1})

        :param X: as in :meth:`predict`.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: ``(T,)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, gaps=gaps)
        return hmm.score_samples(data, sizes)

    def aic(self, X: Any = None, lengths: npt.ArrayLike | None = None) -> float:
        r"""Akaike's criterion, :math:`-2 \log p(x) + 2 p`; lower is better.

        The number of free parameters p, ``n_parameters_``, is :math:`(K-1) + K(K-1) + KD` plus that
        of the covariances: full :math:`K D(D+1)/2`, diag :math:`KD`, spherical :math:`K`, tied
        :math:`D(D+1)/2`. For other emissions than "gaussian" it is :math:`(K-1) + K(K-1)` plus the
        number of elements of their attributes; a row of probabilities counts as one less, and a
        matrix as in a Gaussian. Parameters that were ``fixed`` in the fit are not counted, and
        neither are the :math:`K-1` initial probabilities unless ``initial`` was "free", and
        transitions that ``transition_mask`` forbids.

        :param X: as in :meth:`predict`; None is the training data.
        :param lengths: as in :meth:`fit`.
        :return: the criterion.
        :raises ValueError: if an argument is not valid, if X is None for a model that was not
            fitted to data or has been updated by :meth:`partial_fit`, or if the model is not
            fitted.
        """
        return -2 * self._scored(X, lengths)[0] + 2 * self.n_parameters_

    def bic(self, X: Any = None, lengths: npt.ArrayLike | None = None) -> float:
        r"""Schwarz's criterion, :math:`-2 \log p(x) + p \log T`, with p as in :meth:`aic`.

        T is the number of observations of all sequences: of the rows with some value.

        :param X: as in :meth:`predict`; None is the training data.
        :param lengths: as in :meth:`fit`.
        :return: the criterion.
        :raises ValueError: if an argument is not valid, if X is None for a model that was not
            fitted to data or has been updated by :meth:`partial_fit`, or if the model is not
            fitted.
        """
        log_likelihood, num_rows = self._scored(X, lengths)
        return -2 * log_likelihood + self.n_parameters_ * float(np.log(num_rows))

    def _scored(self, X: Any, lengths: npt.ArrayLike | None) -> tuple[float, float]:
        """The log-likelihood and the number of observations; X None is the training data."""
        check_is_fitted(self)
        if X is None and not self.n_samples_fit_:
            raise ValueError("expected X, got None for a model that was not fitted to data")
        if X is None and self.n_updates_:
            raise ValueError(
                "expected X, got None for a model that partial_fit has updated, whose "
                "log_likelihood_ is that of several parameter values; give the rows on which to "
                "compare models"
            )
        if X is None:
            return self.log_likelihood_, self.n_samples_fit_
        hmm, data, sizes = self._hmm_of(X, lengths)
        return hmm.log_likelihood(data, sizes), int(missing.observed_rows(data).sum())

    @property
    def stationary_distribution_(self) -> Array:
        r"""The share of time of each regime in the long run, :math:`\pi = \pi A`.

        :return: ``(K,)``.
        :raises ValueError: if the transition matrix has several such distributions.
        """
        check_is_fitted(self, "initial_probs_")
        of = "shares in the training data" if self.n_samples_fit_ else "long run of initial_probs_"
        remedy = f"see share_of_time_ for the {of}"
        return stationary_probs(self.transition_matrix_, "transition_matrix_", remedy)

    @property
    def expected_durations_(self) -> Array:
        r"""The mean number of steps of a stay in each regime, :math:`1 / (1 - A_{kk})`.

        :return: ``(K,)``; infinite for a regime that is never left.
        """
        check_is_fitted(self, "initial_probs_")
        with np.errstate(divide="ignore"):
            found: Array = 1 / np.maximum(1 - np.diagonal(self.transition_matrix_), 0)
        return found

    @property
    def n_parameters_(self) -> int:
        """The number of free parameters of the fit.

        :return: p in :meth:`aic`.
        """
        check_is_fitted(self, "initial_probs_")
        n_regimes = len(self.initial_probs_)
        spec = self._fitted_spec()
        counts = {
            "initial_probs": n_regimes - 1,
            "transition_matrix": num_free(self.transition_mask_, n_regimes),
            **spec.num_free_parameters(n_regimes, self.n_features_in_),
        }
        held = {*self.fixed_} if self.initial_ == "free" else {*self.fixed_, "initial_probs"}
        return sum(count for name, count in counts.items() if name not in held)

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Draw one sequence from the fitted model.

        :param n_samples: number of steps, at least 1.
        :param random_state: seed of the draws; None uses that of the model.
        :return: observations ``(n_samples, D)`` and their regimes ``(n_samples,)``.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        n_samples = validation.integer("n_samples", n_samples, 1)
        seed = self.random_state if random_state is None else random_state
        rng = validation.random_state(seed)
        hmm = self._hmm()
        return draw(hmm.parameters, hmm.spec, n_samples, rng)

    def forecast(
        self,
        X: Any,
        n_steps: int,
        *,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> Forecast:
        """Forecast the distribution of each of the observations that follow a sequence.

        :param X: ``(T, D)``, one sequence. None, or a table without rows, forecasts the steps
            after the row whose filtered probabilities are ``after``: given these, the future does
            not depend on earlier rows.
        :param n_steps: number of steps, at least 1.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: a :class:`pyro_regimes.estimator.Forecast`.
        :raises ValueError: if an argument is not valid, X has probability zero, or the model is not
            fitted.
        """
        check_is_fitted(self)
        n_steps = validation.integer("n_steps", n_steps, 1)
        if X is None or (np.ndim(X) == 2 and not len(X)):
            last_probs = self._given_last(X, start, after, gaps)
            hmm, names = self._hmm(), self._column_names()
            return forecast(
                hmm, last_probs, n_steps, self.random_state, names, self.regime_names_
            )
        hmm, data, sizes = self._hmm_of(X, None, start, after, gaps=gaps)
        if len(sizes) > 1:
            raise ValueError(
                f"expected X to be one sequence, got {len(sizes)}; forecast each sequence alone"
            )
        last_probs = hmm.posterior(data, sizes, "filtered")[1][-1]
        if not last_probs.sum() > 0:
            raise ValueError(
                "expected X to have a positive probability in the model, got 0; look for values "
                "that no regime allows"
            )
        names = self._column_names()
        return forecast(hmm, last_probs, n_steps, self.random_state, names, self.regime_names_)

    def _given_last(self, X: Any, start: Any, after: Any, gaps: Any) -> Array:
        """The probabilities of the last regime where no rows follow ``after``."""
        if after is None:
            raise ValueError(
                "expected X to have rows, or after to be the filtered probabilities of the last "
                "row, got neither"
            )
        if gaps is not None or not (isinstance(start, str) and start == "auto"):
            raise ValueError("expected after alone where X has no rows, got start or gaps as well")
        if X is not None and np.shape(X)[1] != self.n_features_in_:
            raise ValueError(
                f"expected X to have {self.n_features_in_} columns, got {np.shape(X)[1]}"
            )
        after = in_order("after", after, self.regime_names_)
        return probabilities("after", after, (len(self.initial_probs_),))

    def impute(
        self,
        X: Any,
        lengths: npt.ArrayLike | None = None,
        *,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        states: Any = None,
        gaps: Any = None,
    ) -> Imputation:
        """Estimate the missing values of X from all observed ones, before, beside and after them.

        The regimes are unknown as well, so the estimate averages over them, by their smoothed
        probabilities, the regressions on the observed values of the same row.

        :param X: as in :meth:`predict`, with NaN for missing values.
        :param lengths: as in :meth:`fit`.
        :param start: as in :meth:`predict`.
        :param after: as in :meth:`predict`.
        :param states: as in :meth:`predict`.
        :param gaps: as in :meth:`predict`.
        :return: a :class:`pyro_regimes.estimator.Imputation` with the mean and the variance of each
            value, ``(T, D)``. Observed values are returned unchanged, with variance 0. Categories
            have no mean: theirs is NaN.
        :raises ValueError: if an argument is not valid, or the model is not fitted.
        """
        check_is_fitted(self)
        hmm, data, sizes = self._hmm_of(X, lengths, start, after, states=states, gaps=gaps)
        return hmm.impute(data, sizes)

    def summary(self) -> Summary:
        """Annualised means and volatilities, correlations, durations, shares of time, transitions.

        Means and standard deviations are annualised if the emission is one of returns
        ("gaussian", "student_t", "gaussian_mixture"). A summary of another emission also has its
        parameters, and one of "student_t" the degrees of freedom.

        :return: a :class:`.Summary`. ``print`` shows it as a table, and so does a notebook;
            ``summary().to_frame()`` is a DataFrame for ``to_excel`` or ``to_latex``.
        """
        check_is_fitted(self)
        names, hmm = self._series_names(), self._hmm()
        durations = self.expected_durations_
        return summarise(
            self.regime_names_,
            names,
            hmm.spec,
            hmm.parameters.emission,
            self.transition_matrix_,
            durations,
            self.share_of_time_,
            self._periods_per_year(),
            f"{len(self.regime_names_)} regimes of {len(names)} series, {hmm.spec.title}, "
            f"{self._score_text()}",
            [
                *self._missing_text(names),
                *self._annualised_text(hmm),
                *([] if self.starts_ is None else self.starts_.describe()),
                *problems.of_shares(
                    self.regime_names_,
                    self.share_of_time_,
                    durations,
                    self.n_samples_fit_,
                    2 * hmm.spec.fewest_observations(len(names)),
                ),
            ],
        )

    def _column_names(self) -> list[str] | None:
        """The names of the columns of the training data; None if they had none."""
        return self._series_names() if hasattr(self, "feature_names_in_") else None

    def _series_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return [f"series {i + 1}" for i in range(self.n_features_in_)]
        return [str(name) for name in names]

    def _annualised_text(self, hmm: FittedHMM) -> list[str]:
        """A line that says with what numbers are annualised, if they are."""
        if not are_changes(hmm.spec, hmm.parameters.emission):
            return []
        periods = self._periods_per_year()
        return [f"Annualised with {periods:.4g} steps per year (periods_per_year)."]

    def _missing_text(self, names: list[str]) -> list[str]:
        """A line that counts the missing values of the training data, if there are some."""
        if not self.n_missing_.any():
            return []
        num_rows = self.n_samples_fit_ + self.n_missing_rows_
        return [missing.describe(self.n_missing_, self.n_missing_rows_, num_rows, names)]

    def _periods_per_year(self) -> float:
        own = self.periods_per_year
        return self.periods_per_year_ if own is None else own

    def _score_text(self) -> str:
        if not self.n_samples_fit_:
            return "not fitted to data"
        if self.n_updates_:
            return f"log-likelihood {self.log_likelihood_:.2f} summed over all blocks"
        return f"log-likelihood {self.log_likelihood_:.2f}"

    @property
    def model(self) -> PyroModel:
        """The fitted model as a Pyro function ``model(x, lengths=None)``, for other inference.

        Its parameters are ``initial_probs``, ``transition_probs`` and the arguments of the
        emission's distribution: ``loc`` and ``covariance_matrix`` (or ``scale``) of Gaussian
        regimes, ``rate`` of Poisson ones, ``poisson_rate`` where each column has a family. They
        start at the fitted values where the caller's parameter store has none of these names; x is
        ``(T, D)``, of one sequence or of several with their lengths ``(N,)``, or padded
        ``(N, T, D)`` with lengths, of the model's dtype. The site is "observations".

        :return: the function.
        """
        check_is_fitted(self)
        return self._hmm().pyro_model()

    def _spec(self) -> Spec:
        """The object that implements the emission and the covariance type of the constructor."""
        return find_spec(self.covariance_type, self.emission, self.n_components)

    def _fitted_spec(self) -> Spec:
        """That of the fit."""
        spec = find_spec(self.covariance_type_, self.emission_)
        shapes = {name: np.shape(getattr(self, f"{name}_")) for name in spec.attributes}
        names = getattr(self, "feature_names_in_", None)
        return spec.with_shapes(shapes)[0].for_columns(names, self.n_features_in_)

    def _hmm_of(
        self,
        X: Any,
        lengths: npt.ArrayLike | None,
        start: Any = "auto",
        after: npt.ArrayLike | None = None,
        y: Any = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> tuple[FittedHMM, Array, list[int]]:
        """The fitted model with the initial probabilities of X, its rows and its sizes."""
        data, sizes = validation.check_data(self, X, lengths, y)
        n_regimes = len(self.regime_names_)
        beside = {"states": states, "sample_weight": sample_weight, "gaps": gaps}
        data, sizes, annotations, _ = annotate(
            data, sizes, X, n_regimes, **beside, is_after=after is not None
        )
        hmm = self._hmm()._replace(annotations=annotations)
        hmm.spec.check_support(data, getattr(self, "feature_names_in_", None))
        first_probs = initial_probs(
            in_order("start", start, self.regime_names_),
            in_order("after", after, self.regime_names_),
            self.initial_probs_,
            self.transition_matrix_,
            self.training_start_,
            hmm.spec.units_of(hmm.parameters.emission).unit,
            data,
            sizes,
            annotations.first_gaps(sizes),
        )
        return hmm._replace(first_probs=first_probs), data, sizes

    def _hmm(self) -> FittedHMM:
        """The fitted parameters, ready for computation."""
        spec = self._fitted_spec()
        emission = {name: getattr(self, f"{name}_") for name in spec.attributes}
        parameters = Parameters(self.initial_probs_, self.transition_matrix_, emission)
        dtype = validation.torch_dtype(self.dtype)
        device = validation.present_device(self.device)
        return FittedHMM(parameters, spec, dtype, device, self.initial_)
