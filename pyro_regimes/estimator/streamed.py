"""A fit of :class:`.RegimeModel` to data in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from pyro_regimes.estimator import problems, validation
from pyro_regimes.estimator.all_starts import FitEM
from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitting import FittedRegimes, fit_regimes, units_and_floor
from pyro_regimes.estimator.inputs import chunk_tables
from pyro_regimes.estimator.naming import Order, reordered, sort_regimes
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.preparation import prepare
from pyro_regimes.estimator.pyro_model import (
    argument_names,
    from_arguments,
    pyro_model,
    stationary_initial,
    to_arguments,
)
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.stickiness import log_normaliser, log_prior, sticky_guide
from pyro_regimes.estimator.survey import Survey, survey_of_all
from pyro_regimes.estimator.units import Units
from pyro_regimes.estimator.validation import Settings
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.reading.chunks import Chunks, is_empty


class Streamed(NamedTuple):
    """A fit to chunks."""

    fitted: FittedRegimes
    spec: Spec
    survey: Survey
    doubts: list[Warning]  #: about the data


def fit_chunks(
    model: BaseEstimator,
    chunks: Chunks,
    callback: Callable[[int, float], None] | None,
    ranks: Ranks | None = None,
) -> Streamed:
    """Fit regimes to data in chunks, in the memory of two chunks.

    The starts are fitted to a sample of the rows. EM continues from the best one on all rows.

    :param model: has the settings; gets the number and the names of the columns.
    :param callback: called after each iteration on all rows, with its number and log-likelihood.
    :param ranks: each of which has chunks of its own.
    :raises ValueError: if a setting does not allow chunks, or the data are not valid.
    """
    settings = validation.read_settings(model)
    _check_settings(settings)
    survey = survey_of_all(lambda: Survey(model, chunks, settings.given.values), ranks)
    if survey.names is not None:
        model.feature_names_in_ = survey.names
    data, sizes = survey.sample()
    filled, spec, settings, doubt = prepare(model, data, settings, survey.spec)
    rng = _same_on_all(validation.random_state(model.random_state), ranks)
    with plain_torch(settings.device):
        start = fit_regimes(
            data, filled, sizes, spec, settings._replace(regularization=0.0), rng, None
        )
        if ranks is not None:  # processors may round differently
            start = ranks.objects(start)[0]
        fit = _Fit(chunks, survey, spec, settings, ranks, *units_and_floor(filled, spec, settings))
        least = spec.collapsed_variance(fit.units.scale(filled), settings.dtype)
        fitted = fit.run(start, least, callback)
    doubts = [] if doubt is None else [doubt]
    if spec.of_changes:
        rows_of = "X" if len(data) == survey.num_rows else "a sample of X"
        names = None if survey.names is None else list(survey.names)
        doubts = problems.of_data(data, sizes, names, rows_of) + doubts
    return Streamed(fitted, spec, survey, doubts)


def _same_on_all(rng: np.random.RandomState, ranks: Ranks | None) -> np.random.RandomState:
    """The random numbers of the first rank."""
    if ranks is None:
        return rng
    state = ranks.objects(rng.get_state())[0]
    if not ranks.is_first:
        rng = np.random.RandomState(0)
        rng.set_state(state)
    return rng


def _check_settings(settings: Settings) -> None:
    """:raises ValueError: if a setting needs all rows at once."""
    if settings.inference != "em":
        raise ValueError(
            f"expected inference='em' for data in chunks, got {settings.inference!r}"
        )
    if not isinstance(settings.order_by, str):
        raise ValueError(
            "expected order_by='volatility' or 'mean' for data in chunks, got a fitted model, "
            "which needs all rows at once"
        )


class _Fit(NamedTuple):
    """EM on all chunks, from one start."""

    chunks: Chunks
    survey: Survey
    spec: Spec
    settings: Settings
    ranks: Ranks | None  #: each of which has chunks of its own
    units: Units
    min_eigenvalue: float  #: the floor in these units

    def run(
        self, start: FittedRegimes, least: float, callback: Callable[[int, float], None] | None
    ) -> FittedRegimes:
        """Fit, sort and name the regimes.

        :param least: the largest variance of the scaled data that cannot be told from 0.
        """
        settings, spec = self.settings, self.spec
        at = start.parameters._replace(
            emission=spec.scale(start.parameters.emission, self.units)
        )
        offset = self._log_jacobian() + log_normaliser(at.transition_matrix, settings.stickiness)

        def report(step: int, loss: float) -> None:
            if settings.verbose and (self.ranks is None or self.ranks.is_first):
                print(f"step {step}: log-likelihood {-loss - offset:.4f}")
            if callback is not None:
                callback(step, -loss - offset)

        constant = argument_names(settings.given.fixed, spec)
        held = self._arguments(at)
        guide = None
        if settings.stickiness:
            guide = sticky_guide(held["transition_probs"])
        em = FitEM(
            pyro_model(
                held,
                spec,
                fixed=constant,
                initial=settings.initial,
                stickiness=settings.stickiness,
            ),
            guide,
            min_eigenvalue=max(self.min_eigenvalue, least),
        )
        result = em.run(
            self._scaled(),
            num_steps=settings.max_iter,
            tol=settings.tol,
            callback=report,
            acceleration=settings.acceleration,
            process_group=None if self.ranks is None else self.ranks.group,
        )
        found = from_arguments({**held, **em.values()}, at, spec)
        if settings.initial == "stationary":
            probs = stationary_initial(torch.from_numpy(found.transition_matrix)).numpy()
            found = found._replace(initial_probs=probs)
        is_collapsed = spec.collapsed(found.emission, least, settings.dtype)
        is_collapsed = is_collapsed & (self.min_eigenvalue <= least)
        history = np.array([-loss for loss in result.history]) - offset
        warnings = _problems(result.converged, is_collapsed, settings, len(history) - 1)
        return self._finish(found, history, result.converged, warnings, em.is_unbounded)

    def _finish(
        self,
        scaled: Parameters,
        history: Array,
        converged: bool,
        warnings: list[Warning],
        is_unbounded: bool,
    ) -> FittedRegimes:
        """Regularize, sort and name the regimes, and evaluate the model on all rows."""
        settings, spec = self.settings, self.spec
        emission = spec.regularized(
            spec.unscale(scaled.emission, self.units),
            settings.regularization,
            settings.regularization_scale == "relative",
        )
        parameters = settings.given.restored(scaled._replace(emission=emission))
        log_likelihood, share = self._evaluate(parameters)
        if not is_unbounded and not warnings:
            before = float(history[-1]) - log_prior(scaled.transition_matrix, settings.stickiness)
            lost = problems.of_regularization(settings.regularization, before, log_likelihood)
            warnings = warnings if lost is None else [lost]
        found = self._order(parameters, share)
        if found.doubt is not None:
            warnings.append(UserWarning(found.doubt))
        return FittedRegimes(
            reordered(parameters, spec, found.order),
            found.names,
            sorted(settings.given.fixed),
            history,
            converged,
            log_likelihood,
            share[found.order],
            warnings,
            share[found.order],
            0,
            found.order,
        )

    def _order(self, parameters: Parameters, share: Array) -> Order:
        """The order of the regimes; where transitions are masked, they keep their numbers."""

        def no_reference(hmm: Any) -> Array:
            raise NotImplementedError

        found = sort_regimes(
            parameters,
            self.spec,
            self.settings.order_by,
            lambda: share * self.survey.num_rows,
            no_reference,
        )
        return found if self.settings.transition_mask is None else found.kept()

    def _evaluate(self, parameters: Parameters) -> tuple[float, Array]:
        """The log-likelihood of all rows, and the share of time of each regime."""
        scaled = parameters._replace(emission=self.spec.scale(parameters.emission, self.units))
        em = FitEM(pyro_model(self._arguments(scaled), self.spec))
        state = em.expect_chunks(self._scaled(), self.ranks)
        ((_, site),) = state.expected.items()
        counts = site.statistics(frozenset()).chain
        entered = counts.transitions.sum(-2).reshape(-1) + counts.initial.reshape(-1)
        if self.ranks is not None:
            (entered,) = self.ranks.add([entered])
        share = (entered / entered.sum()).numpy()
        return -float(state.losses.sum()) - self._log_jacobian(), share

    @property
    def _where(self) -> dict[str, Any]:
        return {"dtype": self.settings.dtype, "device": self.settings.device}

    def _arguments(self, parameters: Parameters) -> dict[str, Tensor]:
        return to_arguments(parameters, self.spec, **self._where)

    def _log_jacobian(self) -> float:
        """log p(z) - log p(x) of all rows."""
        gone = float(self.survey.num_missing @ np.log(self.units.unit))
        return self.units.log_jacobian(self.survey.num_rows) - gone

    def _scaled(self) -> Chunks:
        """The chunks in the units of the fit, as arguments of the model."""

        def read() -> Iterator[tuple[Any, ...]]:
            num_rows = 0
            for chunk in self.chunks:
                if is_empty(chunk):
                    continue
                arrays = [np.asarray(each, np.float64) for each in chunk_tables(chunk)]
                whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
                sizes = [len(each) for each in arrays]
                num_rows += len(whole)
                yield pack(self.units.scale(whole), sizes, **self._where)
            if num_rows != self.survey.num_own_rows:
                raise ValueError(
                    f"expected the same chunks in every pass, got {num_rows} rows in one after "
                    f"{self.survey.num_own_rows} in the first: the source must be one that can be "
                    "read again"
                )

        return Chunks(read, continues=self.chunks.continues)


def _problems(
    converged: bool, is_collapsed: Flags, settings: Settings, num_steps: int
) -> list[Warning]:
    """Warnings about the fit."""
    if np.any(is_collapsed):
        return [
            problems.CollapseWarning(
                f"{int(np.sum(is_collapsed))} of {settings.n_regimes} regimes collapsed onto a few "
                "points: they do not vary in some direction, so the likelihood has no maximum. Use "
                "fewer regimes, another covariance_type or min_eigenvalue."
            )
        ]
    if not converged and settings.max_iter > 0 and settings.tol is not None:
        return [problems.of_convergence(num_steps)]
    return []
