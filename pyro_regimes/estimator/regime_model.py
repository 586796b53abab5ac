"""RegimeModel, a scikit-learn estimator of market regimes from returns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.estimator import missing, persistence, problems, updating, validation
from pyro_regimes.estimator.annotations import Annotations, annotate
from pyro_regimes.estimator.beginning import NUM_ROWS
from pyro_regimes.estimator.elsewhere import (
    emission_values,
    hmmlearn_parameters,
    of_values,
    without_fit,
)
from pyro_regimes.estimator.fitting import FittedRegimes, fit_regimes
from pyro_regimes.estimator.inputs import periods_per_year as periods_by_dates
from pyro_regimes.estimator.inputs import row_name
from pyro_regimes.estimator.lengths import sequences_of
from pyro_regimes.estimator.mask import check_masked, read_mask
from pyro_regimes.estimator.naming import own_names
from pyro_regimes.estimator.parameters import Array, finite_numbers
from pyro_regimes.estimator.preparation import prepare
from pyro_regimes.estimator.reported_model import ReportedModel
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.streamed import fit_chunks
from pyro_regimes.infer.em.ranks import Ranks, alone, ranks_of
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.messages import shown
from pyro_regimes.reading.chunks import Chunks

#: What set_fit_request, set_output and their like set, and :func:`sklearn.base.clone` keeps.
_SKLEARN_SETTINGS = ("_metadata_request", "_sklearn_output_config")


class RegimeModel(ReportedModel):
    r"""Hidden Markov model of returns or other series, fitted by EM from many starts in one batch.

    .. math::
        \log p(x, q) = \log \pi_{q_1} + \sum_{t=2}^T \log A_{q_{t-1} q_t}
            + \sum_{t=1}^T \log b_{q_t}(x_t)

    The density :math:`b_k` of an observation in regime k is Gaussian,
    :math:`N(x_t; \mu_k, \Sigma_k)`, unless ``emission`` is another one.

    Data are ``(T, D)``: T steps in order of time, D series. Methods with a ``lengths`` argument
    accept several sequences, either concatenated with the number of rows of each in ``lengths``, or
    as a list of arrays. Results are concatenated. Sequences are not padded, so their lengths may be
    very different.

    NaN, or what a masked array masks, is a missing value: the likelihood is that of the values that
    are there, exactly, in a fit and in all other methods. A row without any value is a step without
    an observation. :meth:`impute` estimates the missing values.

    :param n_regimes: number of hidden states, K.
    :param covariance_type: "full", "diag", "spherical" or "tied" (one full matrix for all regimes).
        Of scale matrices if ``emission="student_t"``. Emissions without covariances ignore the
        default, and refuse others.
    :param n_init: number of starts. The first one is from k-means. The others are random: in turn
        random observations as means, and regimes that differ mostly in their volatility. The start
        with the best final log-likelihood is kept.
    :param max_iter: maximum number of iterations (of steps of Adam if ``inference="svi"``).
    :param tol: tolerance of convergence. EM stops when an iteration raises the log-likelihood of
        every start by less. SVI stops when ten successive steps each change it by less, and one EM
        step would raise it by less than ``10 * tol``. None runs all ``max_iter`` iterations.
    :param regularization: added to the diagonal of every covariance after the fit: this share of
        each variance, so that units do not matter.
    :param regularization_scale: "absolute" adds ``regularization`` itself instead, in the squared
        unit of the data.
    :param min_eigenvalue: floor of the eigenvalues of the covariances (of the variances if they are
        diagonal) during the fit, in the squared unit of the data. A warning says where it binds.
    :param inference: "em", or "svi" for maximum likelihood by gradient on the same Pyro model. Both
        maximise the same function with the same floor. SVI enforces the floor by its
        parametrisation, which adds a non-negative part to the floor.
    :param order_by: "volatility" sorts regimes by their average volatility, lowest first (Calm,
        Normal, Turbulent); "mean" by their average mean, highest first, and names them Bull,
        Sideways and Bear where the means differ by more than chance explains. A fitted model
        passes on its order and names, such that as many rows of X as possible have the name that it
        gives them (the expected number, by the smoothed probabilities of both models). A warning
        says where a name then contradicts the volatility. If that model has a model in ``order_by``
        itself, a copy without it is kept, so that a chain of fits keeps one model only.
    :param periods_per_year: number of steps per year, with which :meth:`summary` annualises. None
        takes it from the dates of the training data (12 for monthly rows), or 252 without dates.
    :param dtype: "float64" or "float32", or the torch dtype, of all computation.
    :param device: a torch device; None is the CPU.
    :param random_state: seed of the starts and of :meth:`sample`: an integer, a NumPy
        ``RandomState``, or None for a new seed at every call. No global generator is used.
    :param verbose: whether to print the log-likelihood at every iteration.
    :param acceleration: "squarem" extrapolates every other iteration of EM (Varadhan and Roland
        2008), which then needs a half to a third of them. The log-likelihood still never falls. A
        start may end in another of several maxima than by plain EM, which is None. SVI does not
        use it.
    :param init_params: values that every start begins with: a dict with any of ``initial_probs``,
        ``transition_matrix``, ``means`` and ``covariances``, in the shapes of the attributes below
        and in the units of the data; or a fitted model, for a warm start from all of its
        parameters. Parameters that are not given start as they do without ``init_params``. If the
        transition matrix, means and covariances are all given, there is only one start. A
        probability of 0 stays 0. For one series trailing dims of length 1 may be left out.
    :param fixed: names of parameters in ``init_params`` that the fit leaves as they are, except
        for the order of the regimes. They do not count in ``n_parameters_``, and
        ``regularization`` does not change them.
    :param initial: the distribution of the first regime: "free" is estimated, which one sequence
        hardly determines; "stationary" is the stationary distribution of the transition matrix, as
        in Stata and EViews; "uniform" is 1 / K. The last two are no parameters of their own.
    :param transition_mask: a bool matrix ``(K, K)``, (old, new), of the transitions that are
        allowed; the others have probability 0 and are no parameters. ``np.triu(np.ones((K, K)))``
        makes a left-to-right chain. The regimes keep the numbers of the mask instead of being
        sorted; their names are still those of ``order_by``. None allows all transitions.
    :param stickiness: a prior of regimes that last: each row of the transition matrix has a
        Dirichlet distribution with concentration 1, and 1 + ``stickiness`` on the diagonal. The fit
        is then the mode of the posterior, as if so many more steps within each regime had been
        observed. 0 is maximum likelihood.
    :param emission: the family of the observations: "gaussian", or "student_t" for heavy tails.
        :doc:`emissions` lists all, with the attributes of each. A dict from the names or numbers
        of all columns to families gives each column its own; columns of different families are
        independent given the regime.
    :param n_components: number of Gaussians in each regime if ``emission="gaussian_mixture"``; None
        is 2. Other emissions refuse more than 1. (The number of regimes is ``n_regimes``.)

    Attributes after :meth:`fit`, with arrays in NumPy float64 and regimes in their order:

    =======================  =================================================================
    ``initial_probs_``       ``(K,)``
    ``transition_matrix_``   ``(K, K)``, (old, new)
    ``means_``               ``(K, D)``
    ``covariances_``         "full" ``(K, D, D)``, "diag" ``(K, D)``, "spherical" ``(K,)``, "tied"
                             ``(D, D)``; variances where diagonal
    ``regime_names_``        list of K names
    ``share_of_time_``       ``(K,)``, mean smoothed probability over the training data
    ``log_likelihood_``      of the training data, after ``regularization``
    ``history_``             log-likelihood of the kept start before each iteration, and the final
                             one, before ``regularization``; with ``stickiness`` plus that times the
                             sum of the logarithms of the diagonal of the transition matrix
    ``covariance_type_``     the ``covariance_type`` of the fit
    ``emission_``            the ``emission`` of the fit; other attributes than ``means_`` and
                             ``covariances_`` are listed in :doc:`emissions`
    ``fixed_``               names of the parameters that the fit left as they were given, sorted
    ``initial_``             the ``initial`` of the fit
    ``transition_mask_``     the ``transition_mask`` of the fit; None if it allowed everything
    ``expected_durations_``  ``(K,)``, the mean number of steps of a stay in each regime
    ``n_iter_``              number of iterations of the kept start; the callback counts until the
                             last start has stopped
    ``converged_``           whether the kept start had converged
    ``starts_``              :class:`.StartResults`: how each start ended, and which reached the
                             best log-likelihood; None without a fit
    ``n_parameters_``        number of free parameters in :meth:`aic` and :meth:`bic`
    ``n_samples_fit_``       number of observations in the fit: of rows with some value, each by its
                             ``sample_weight``
    ``n_missing_``           ``(D,)``, number of missing values of each series in the training data,
                             and ``n_missing_rows_`` of rows without any value, likewise
    ``n_updates_``           number of calls of :meth:`partial_fit` since the fit
    ``periods_per_year_``    number of steps per year by the dates of the training data, or 252
    ``training_start_``      the first rows of the training data; None if it had several sequences
    ``n_features_in_``       D; also ``feature_names_in_`` if X has column names
    =======================  =================================================================

    >>> import numpy as np
    >>> rng = np.random.RandomState(0)
    >>> calm, wild = rng.normal(0.1, 1.0, (300, 2)), rng.normal(-0.2, 4.0, (100, 2))
    >>> model = RegimeModel(n_regimes=2, n_init=2, random_state=0)
    >>> model.fit(np.concatenate([calm, wild])).regime_names_
    ['Calm', 'Turbulent']
    >>> model.predict_proba(calm).shape
    (300, 2)

    If a regime collapses onto a few points, with a variance that is 0 to working precision in some
    direction, the likelihood is unbounded. Such a start is kept only if every start collapses, with
    a warning. A small variance of many observations is no collapse.
    """

    def __init__(
        self,
        n_regimes: int = 3,
        covariance_type: str = "full",
        n_init: int = 10,
        max_iter: int = 100,
        tol: float | None = 1e-4,
        regularization: float = 1e-6,
        regularization_scale: str = "relative",
        min_eigenvalue: float = 0.0,
        inference: str = "em",
        order_by: str | RegimeModel = "volatility",
        periods_per_year: float | None = None,
        dtype: str | torch.dtype = "float64",
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        acceleration: str | None = "squarem",
        init_params: dict[str, npt.ArrayLike] | RegimeModel | None = None,
        fixed: Sequence[str] = (),
        initial: str = "free",
        transition_mask: npt.ArrayLike | None = None,
        stickiness: float = 0.0,
        emission: str | dict[Any, str] = "gaussian",
        n_components: int | None = None,
    ) -> None:
        self.n_regimes = n_regimes
        self.covariance_type = covariance_type
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.regularization = regularization
        self.regularization_scale = regularization_scale
        self.min_eigenvalue = min_eigenvalue
        self.inference = inference
        self.order_by = order_by
        self.periods_per_year = periods_per_year
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.acceleration = acceleration
        self.init_params = init_params
        self.fixed = fixed
        self.initial = initial
        self.transition_mask = transition_mask
        self.stickiness = stickiness
        self.emission = emission
        self.n_components = n_components

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "density_estimator"
        tags.input_tags.allow_nan = True
        return tags

    def __setattr__(self, name: str, value: Any) -> None:
        # A chain of models, each the reference of the next, would keep all of them alive.
        if isinstance(value, RegimeModel) and (value is self or value._references()):
            value = value._without_references()
        super().__setattr__(name, value)

    def _references(self) -> list[str]:
        """The names of parameters that are models."""
        return [name for name, value in vars(self).items() if isinstance(value, RegimeModel)]

    def _without_references(self) -> RegimeModel:
        """A copy with the same fit, and the defaults of parameters that are models."""
        other, defaults = copy(self), RegimeModel()
        for name in self._references():
            setattr(other, name, getattr(defaults, name))
        return other

    def __sklearn_clone__(self) -> RegimeModel:
        # A fitted model in order_by or init_params is a setting, and stays fitted.
        copies = {
            name: value if isinstance(value, RegimeModel) else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        other = type(self)(**copies)
        for name in _SKLEARN_SETTINGS:
            if name in vars(self):
                setattr(other, name, deepcopy(vars(self)[name]))
        return other

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        lengths: npt.ArrayLike | None = None,
        callback: Callable[[int, float], None] | None = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
        process_group: Any = None,
    ) -> RegimeModel:
        """Fit by maximum likelihood, in a private parameter store.

        If the fit raises or is interrupted, the model keeps its previous fit. The fit neither
        depends on nor changes Pyro's handlers, parameters and random states, or the modes of torch
        (gradients, autocast, default device).

        :param X: ``(T, D)`` array or DataFrame, in order of time, a Series, or a list or dict of
            these; of 1-D arrays, each is a univariate sequence. Or :class:`.Chunks` of such tables,
            which need not fit in memory: the starts are fitted to a sample of the rows, and EM
            continues from the best one on all rows. ``starts_`` is then None.
        :param y: taken for ``lengths``, as in hmmlearn, unless it has an entry for each row of X:
            that is a target, which a scikit-learn Pipeline passes, and it is ignored.
        :param lengths: number of rows of each sequence in X, if X holds several.
        :param callback: called after each iteration with its number and the mean log-likelihood of
            the starts (of long data: of those that run at once, one batch after the other).
        :param states: known regimes of the training data: one number for each row, from 0, and -1
            (or NaN) where unknown; or a bool array ``(T, K)`` of the regimes that each row may
            have. For several sequences, concatenated or a list or dict as X is. The regimes keep
            these numbers instead of being sorted; their names are still those of ``order_by``. The
            likelihood is that of the data together with these regimes. If all are known, the fit is
            the maximum-likelihood estimate of supervised learning.
        :param sample_weight: a non-negative weight for each sequence, or for each row and equal
            within each sequence. A sequence of weight 2 counts as if it were there twice; one of
            weight 0 is ignored. May be a dict if X is one, with the same keys.
        :param gaps: for rows that are not equally spaced: the number of steps since the row before,
            a positive integer for each row, ``(T,)``. Those of the first row of each sequence are
            ignored. A gap of g steps has exactly the effect of g - 1 missing rows. In the forms of
            ``states``.
        :param process_group: a ``torch.distributed`` group, each rank of which calls this method
            with sequences of its own, or with consecutive rows of one sequence as :class:`.Chunks`;
            None for the default group, where it is initialised (under ``torchrun``). All ranks get
            the same model, of the data of all. The starts are fitted to a sample of the rows of all
            ranks, as for Chunks. A group of one rank is that rank alone.
        :return: the fitted model, ``self``.
        :raises ValueError: if a parameter of the model, or X, is not valid.
        """
        if callback is not None and not callable(callback):
            raise ValueError(f"expected callback to be a function or None, got {callback!r}")
        ranks = ranks_of(process_group)
        if ranks is not None or isinstance(X, Chunks):
            beside = {"states": states, "sample_weight": sample_weight, "gaps": gaps}
            if isinstance(X, Chunks):
                beside |= {"y": y, "lengths": lengths}
                return self._fit_chunks(X, beside, callback, ranks)
            chunks = Chunks(lambda: [sequences_of(X, lengths, y)], continues=False)
            return self._fit_chunks(chunks, beside, callback, ranks)
        settings = validation.read_settings(self)
        fresh = type(self)(**self.get_params(deep=False))
        data, sizes = validation.check_data(fresh, X, lengths, y, reset=True)
        beside = {"states": states, "sample_weight": sample_weight, "gaps": gaps}
        found = annotate(data, sizes, X, settings.n_regimes, **beside, to_fit=True)
        data, sizes, annotations, _ = found
        filled, spec, settings, doubt = prepare(fresh, data, settings)
        rng = validation.random_state(self.random_state)
        with plain_torch(settings.device):
            row_of = found.naming(row_name(X))
            fitted = fit_regimes(
                data, filled, sizes, spec, settings, rng, callback, row_of, annotations
            )
            fresh._set_fitted(fitted, spec)
            hmm = fresh._hmm()._replace(annotations=annotations)
            fresh._running = updating.statistics_of_fit(hmm, settings, X, data, filled, sizes)
        fresh._set_counts(data, sizes, annotations)
        fresh.periods_per_year_ = periods_by_dates(X)
        of_data = []
        if spec.of_changes:
            of_data = problems.of_data(data, sizes, getattr(fresh, "feature_names_in_", None))
        for problem in [*of_data, *([] if doubt is None else [doubt]), *fitted.problems]:
            warnings.warn(problem, stacklevel=levels_to_the_caller())
        return self._become(fresh)

    def _become(self, fresh: RegimeModel) -> RegimeModel:
        """Take over the fit of another model."""
        # All attributes at once, after everything that may raise (a warning may, too).
        others = {name: value for name, value in vars(self).items() if not _is_fitted(name)}
        own = {name: value for name, value in vars(fresh).items() if _is_fitted(name)}
        self.__dict__ = others | own
        return self

    def _fit_chunks(
        self,
        chunks: Chunks,
        beside: dict[str, Any],
        callback: Callable[[int, float], None] | None,
        ranks: Ranks | None,
    ) -> RegimeModel:
        """Fit to data in chunks; :meth:`partial_fit` cannot update such a model."""
        for name, value in beside.items():
            if value is not None:
                where = "X is Chunks" if ranks is None else "ranks have parts of the data"
                raise ValueError(f"expected {name}=None where {where}, got {shown(value)}")
        fresh = type(self)(**self.get_params(deep=False))
        found = fit_chunks(fresh, chunks, callback, ranks)
        survey = found.survey
        fresh._set_fitted(found.fitted, found.spec)
        fresh.n_samples_fit_ = survey.num_rows - survey.num_empty
        fresh.n_missing_, fresh.n_missing_rows_ = survey.num_missing, survey.num_empty
        fresh.training_start_ = survey.training_start if survey.num_sequences == 1 else None
        fresh.periods_per_year_ = survey.periods_per_year
        for problem in [*found.doubts, *found.fitted.problems]:
            warnings.warn(problem, stacklevel=levels_to_the_caller())
        return self._become(fresh)

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        lengths: npt.ArrayLike | None = None,
        continues: bool | None = None,
        half_life: float | None = None,
    ) -> RegimeModel:
        r"""Update the model by new rows, without those before: one step of stochastic EM.

        On a model without a fit it is :meth:`fit`. Otherwise it makes an E-step on this block of m
        rows, moves running averages of the expected statistics of a row by a share of
        :math:`m / (n + m)` towards those of the block, with n the number of rows before, and makes
        an M-step (Cappe and Moulines 2009). The size of the averages does not grow with the number
        of rows. The regimes keep their order and names.

        The statistics of earlier rows are not computed again, so the result is close to that of
        :meth:`fit` on all rows, but not equal to it. The first block should therefore be long
        enough to distinguish the regimes. With a ``half_life`` earlier rows count less, for data
        whose regimes change.
        Updates are computed in float64, whatever the ``dtype``.

        A model from :meth:`load` or :meth:`from_parameters` has no running averages, and cannot be
        updated; neither can a fit by SVI, to :class:`.Chunks`, or with known states, weights, gaps,
        ``stickiness`` or ``fixed`` parameters. Pickle keeps the averages.

        After an update, ``n_samples_fit_``, ``n_missing_`` and ``n_missing_rows_`` count all rows,
        and ``share_of_time_`` is the mean over all rows of the smoothed probabilities that each
        had within its block. ``log_likelihood_`` is a sum over the calls: that of the fit, and of
        each later block given the rows before, at the parameters before its update. So :meth:`aic`
        and :meth:`bic` need an X. ``history_``, ``n_iter_`` and ``converged_`` stay those of the
        fit, and ``n_updates_`` counts the updates.

        :param X: as in :meth:`fit`, with the D series of the first call. A later block may have any
            number of rows, and missing values anywhere.
        :param y: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :param continues: whether the first row of X is the step after the last row of the call
            before. It then starts from the filtered probabilities of that row, and the transition
            between the two counts. None is True if X and the rows of that call are one sequence
            each; several sequences always begin anew.
        :param half_life: the number of new rows after which earlier ones count half as much; None
            is the plain average of all rows. It may differ between calls, and a fit ignores it.
        :return: the updated model, ``self``.
        :raises ValueError: if an argument or a parameter of the model is not valid, if the model
            has no running averages or other settings than in its fit, if X continues rows of later
            dates, or if the rows have probability zero. The model is then unchanged.
        """
        updating.check_settings(self)
        half_life = updating.read_half_life(half_life)
        if not hasattr(self, "initial_probs_"):
            updating.check_first(continues)
            with alone():  # updates are of the data of one process
                return self.fit(X, y, lengths=lengths)
        changed, problem = updating.update_model(self, X, y, lengths, continues, half_life)
        if problem is not None:
            warnings.warn(problem, stacklevel=2)
        # All attributes at once, after everything that may raise (a warning may, too).
        self.__dict__ = {**vars(self), **changed}
        return self

    @classmethod
    def from_parameters(
        cls,
        initial_probs: npt.ArrayLike | None,
        transition_matrix: npt.ArrayLike,
        means: npt.ArrayLike | None = None,
        covariances: npt.ArrayLike | None = None,
        *,
        regime_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        **settings: Any,
    ) -> RegimeModel:
        """A model with these parameters, as published or as fitted elsewhere, without a fit.

        It predicts, scores, forecasts and saves as a fitted one. Its ``n_samples_fit_`` is 0, its
        ``log_likelihood_`` NaN, and its ``share_of_time_`` that of the long run.

        :param initial_probs: ``(K,)``; None is the stationary distribution, or the uniform one if
            ``initial="uniform"``. Unless ``initial="free"`` no other one is accepted.
        :param transition_matrix: ``(K, K)``, (old, new).
        :param means: ``(K, D)``, or ``(K,)`` for one series.
        :param covariances: in the shape of the attribute, which depends on ``covariance_type``. For
            one series trailing dims of length 1 may be left out.
        :param regime_names: K names; None is those that ``order_by`` gives. The regimes keep their
            order in either case.
        :param feature_names: D names of series.
        :param settings: parameters of the constructor; and, for another ``emission`` than
            "gaussian", its attributes by their names without the underscore, such as ``rates``.
        :return: the model.
        :raises ValueError: if the parameters are not valid.
        """
        matrix = finite_numbers("transition_matrix", transition_matrix)
        settings.setdefault("n_regimes", len(np.atleast_1d(matrix)))
        emission, settings = emission_values(settings, means, covariances)
        model = cls(**settings)
        validation.check_parameters(model)
        parameters, spec = of_values(
            initial_probs, matrix, emission, model.n_regimes, model._spec(), model.initial
        )
        mask = read_mask(model.transition_mask, model.n_regimes)
        check_masked("transition_matrix", parameters.transition_matrix, mask)
        shapes = {name: value.shape for name, value in parameters.emission.items()}
        spec, model.n_features_in_ = spec.with_shapes(shapes)
        if feature_names is not None:
            names = validation.names("feature_names", feature_names, model.n_features_in_)
            model.feature_names_in_ = np.array(names, dtype=object)
        names_in = getattr(model, "feature_names_in_", None)
        spec = spec.for_columns(names_in, model.n_features_in_)
        order = validation.reference(model)
        names = own_names(parameters, spec, order)
        if regime_names is not None:
            names = validation.names("regime_names", regime_names, model.n_regimes)
        model._set_fitted(without_fit(parameters, names), spec)
        model.n_samples_fit_, model.training_start_ = 0, None
        model.n_missing_, model.n_missing_rows_ = np.zeros(model.n_features_in_, np.int64), 0
        model.periods_per_year_ = 252.0
        return model

    @classmethod
    def from_hmmlearn(cls, other: Any, **settings: Any) -> RegimeModel:
        """A model with the parameters of a fitted ``hmmlearn.hmm.GaussianHMM``.

        :param other: the fitted model of hmmlearn.
        :param settings: as in :meth:`from_parameters`. The ``covariance_type`` is that of
            ``other``.
        :return: the model.
        :raises ValueError: if ``other`` has no parameters of Gaussian emissions, or a setting
            contradicts it.
        """
        return cls.from_parameters(**hmmlearn_parameters(other, settings))

    def _set_fitted(self, fitted: FittedRegimes, spec: Spec) -> None:
        """Set all that :meth:`fit` sets, except what :mod:`.validation` sets."""
        self.covariance_type_, self.emission_ = self.covariance_type, copy(self.emission)
        self.fixed_ = fitted.fixed
        self.initial_ = self.initial
        self.transition_mask_ = read_mask(self.transition_mask, self.n_regimes)
        self.regime_names_ = fitted.regime_names
        self.initial_probs_, self.transition_matrix_, emission = fitted.parameters
        for name in spec.attributes:
            setattr(self, f"{name}_", emission[name])
        self.history_ = fitted.history
        self.n_iter_ = max(len(fitted.history) - 1, 0)
        self.converged_ = fitted.converged
        self.log_likelihood_ = fitted.log_likelihood
        self.share_of_time_ = fitted.share_of_time
        self.starts_ = fitted.starts
        self.n_updates_ = 0

    def _set_counts(self, data: Array, sizes: list[int], annotations: Annotations) -> None:
        """Set what :meth:`fit` keeps of the training data."""
        observed = missing.observed_rows(data)
        self.n_samples_fit_ = annotations.num_rows(sizes, observed)
        self.n_missing_ = np.array([annotations.num_rows(sizes, c) for c in np.isnan(data).T])
        self.n_missing_rows_ = annotations.num_rows(sizes, ~observed)
        self.training_start_ = data[:NUM_ROWS].copy() if len(sizes) == 1 else None

    def fit_predict(
        self,
        X: Any,
        y: Any = None,
        *,
        lengths: npt.ArrayLike | None = None,
        states: Any = None,
        sample_weight: npt.ArrayLike | None = None,
        gaps: Any = None,
    ) -> npt.NDArray[np.int64]:
        """Fit, and return the most likely path of regimes of the training data.

        :param X: as in :meth:`fit`.
        :param y: as in :meth:`fit`.
        :param lengths: as in :meth:`fit`.
        :param states: as in :meth:`fit`.
        :param sample_weight: as in :meth:`fit`.
        :param gaps: as in :meth:`fit`.
        :return: ``(T,)``.
        :raises ValueError: if a parameter of the model, or X, is not valid.
        """
        self.fit(X, y, lengths=lengths, states=states, sample_weight=sample_weight, gaps=gaps)
        hmm, data, sizes = self._hmm_of(X, lengths, y=y, states=states, gaps=gaps)
        return hmm.decode(data, sizes, "viterbi")[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model as JSON without rounding. An existing file is replaced atomically.

        A ``random_state`` that is a generator is not saved; it loads as None. Nor is a model in
        ``order_by``, which loads as "volatility". ``init_params`` and ``fixed`` are saved unless
        they were set for another fit after this one, with which they do not agree.

        :param path: the file to write.
        :raises OSError: if the file cannot be written.
        :raises ValueError: if a parameter that was set after the fit is not valid.
        """
        check_is_fitted(self)
        persistence.write_model(path, self, self._fitted_spec())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegimeModel:
        """Read a model that :meth:`save` wrote. No code in the file is executed.

        :param path: the file to read.
        :return: the model.
        :raises ValueError: if the file is not a saved model, or has an unknown version.
        :raises OSError: if the file cannot be read.
        """
        return persistence.read_model(path, cls)


def _is_fitted(name: str) -> bool:
    """Whether an attribute is set by a fit: by scikit-learn's convention, or for further fits."""
    return name == "_running" or (name.endswith("_") and not name.startswith("_"))
