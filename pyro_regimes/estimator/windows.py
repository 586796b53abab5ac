"""Fits of one model to many windows of a sequence, several at once.

A fit of a window depends on its own rows alone, and on the settings and the first window's fit,
from which it starts. Fits that run at once do not affect each other to the bit: see the notes on
restarts in :doc:`design_notes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyro_regimes import progress
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.alignment import Known
from pyro_regimes.estimator.all_starts import FittedStarts, fit_starts
from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.fitting import Problem, best_regimes, make_problem, options
from pyro_regimes.estimator.naming import Earlier, reordered
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.preparation import prepare
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.starts import kind_of
from pyro_regimes.infer.isolation import plain_torch

Integers = npt.NDArray[np.int64]

#: The number of windows whose fits run at once. More of them gain little.
_MOST_WINDOWS = 16

#: The longest window of a batch has at most this many times the rows of the shortest one.
_MOST_PADDING = 1.25

#: Bytes of the data and the probabilities of a batch.
_MOST_MEMORY = 2**27

#: The share of uniform probabilities in a start from an earlier fit: EM keeps a probability of 0.
_UNIFORM = 0.01


class Window(NamedTuple):
    """Rows ``first`` to ``end - 1`` of the data."""

    first: int
    end: int


class Refit(NamedTuple):
    """The fit of one window."""

    window: Window
    model: RegimeModel | None  #: None if it failed
    start: str  #: the start that was kept: "first window", or a kind of :func:`.kind_of`
    problems: list[str]  #: warnings about the fit, or why it failed
    last_probs: Array  #: ``(K,)``, probabilities of the regimes at the last row of the window
    order: Integers  #: ``(K,)``, the number that each regime had in that start


class _Attempt(NamedTuple):
    """A window that is to be fitted."""

    window: Window
    problem: Problem | None  #: None if it cannot be
    problems: list[str]  #: warnings about the data, or why not

    def can_share(self, other: _Attempt) -> bool:
        """Whether both may be in one batch, so that the results are those of each alone.

        Data that follow must not decide about the computation of those before them. So what does
        not depend on one window alone is equal in both: the floor, and whether anything is missing.
        """
        one, two = self.problem, other.problem
        if one is None or two is None or one.spec != two.spec or one.least != two.least:
            return False
        if np.isnan(one.z).any() != np.isnan(two.z).any():
            return False
        return _is_plain(one) and _is_plain(two)


def _is_plain(problem: Problem) -> bool:
    settings = problem.settings
    return (
        isinstance(problem.spec, (MatrixGaussian, DiagonalGaussian))
        and settings.inference == "em"
        and settings.device.type == "cpu"
        and not (settings.min_eigenvalue or settings.stickiness)
    )


def fit_windows(
    model: RegimeModel, data: Array, windows: Sequence[Window], row_name: Callable[[int], str]
) -> list[Refit]:
    """Fit a model to windows, in order of time, and keep the names of the regimes.

    The first window is fitted as :meth:`.RegimeModel.fit` does. Each later one has two starts: the
    parameters of the first fit, and k-means of its own rows. Its regimes take the names of those
    of the window before with the nearest densities (:func:`.naming.sort_regimes`).

    :param model: with its settings, and the columns of the data.
    :param data: ``(T, D)``; NaN where entries are missing.
    :param row_name: the name of a row for messages, from its number.
    :raises ValueError: if the first window cannot be fitted. A later one that cannot has no model.
    """
    settings = validation.read_settings(model)
    rng = validation.random_state(model.random_state)
    with plain_torch(settings.device):
        attempt = _attempt(model, data, windows[0], settings, rng)
        (fit,) = _fits([attempt])
        found = _refit(model, attempt, fit, row_name, None)
        if found.model is None:
            raise ValueError(f"{found.problems[0]} (in the first {windows[0].end} rows)")
        refits, before, seed = [found], found.model, rng.randint(2**31)
        start, spec = _unsorted(before, found.order), before._fitted_spec()
        attempts = (
            _attempt(
                model,
                data,
                window,
                settings._replace(n_init=1),
                np.random.RandomState([seed, number]),
                start,
                spec,
            )
            for number, window in enumerate(windows[1:], 1)
        )
        with progress.bar("refits", of_loops=False) as tell:
            for batch in _batches(attempts):
                for attempt, fit in zip(batch, _fits(batch), strict=True):
                    found = _refit(model, attempt, fit, row_name, before)
                    before = before if found.model is None else found.model
                    refits.append(found)
                    tell(len(refits), len(windows))
    return refits


def _attempt(
    model: RegimeModel,
    data: Array,
    window: Window,
    settings: validation.Settings,
    rng: np.random.RandomState,
    start: Parameters | None = None,
    spec: Spec | None = None,
) -> _Attempt:
    """Make the problem of a window.

    :param start: one more start, before the others.
    :param spec: of the first fit, whose categories some windows may lack.
    """
    rows = data[window.first : window.end]
    try:
        filled, spec, settings, doubt = prepare(
            model, rows, settings, None if spec is None else lambda filled: spec
        )
        known = Known(Annotations(), settings.transition_mask, settings.given.values)
        problem = make_problem(rows, filled, [len(rows)], spec, settings, rng, known)
    except ValueError as error:
        return _Attempt(window, None, [str(error)])
    if start is not None:
        problem = problem._replace(starts=_with(start, problem), least=_rounded(problem.least))
    return _Attempt(window, problem, [] if doubt is None else [str(doubt)])


def _with(start: Parameters, problem: Problem) -> Parameters:
    """The starts of a problem with one more before them."""
    return Parameters.concatenate([Parameters.stack([problem.scaled(start)]), problem.starts])


def _unsorted(model: RegimeModel, order: Integers) -> Parameters:
    """The parameters of the first fit as a start, with the regimes as they were numbered in it.

    Fixed parameters and transition masks have that order.
    """
    parameters, fixed = model._hmm().parameters, model.fixed_
    initial, matrix = parameters.initial_probs, parameters.transition_matrix
    share = 1 / len(initial)
    if "initial_probs" not in fixed:
        initial = np.full(len(initial), share)  # of another first row in other windows
    if "transition_matrix" not in fixed:
        allowed = matrix > 0 if model.transition_mask_ is None else model.transition_mask_
        uniform = np.where(allowed | (model.transition_mask_ is None), share, 0.0)
        matrix = (1 - _UNIFORM) * matrix + _UNIFORM * uniform / uniform.sum(-1, keepdims=True)
    start = Parameters(initial, matrix, parameters.emission)
    return reordered(start, model._fitted_spec(), order.argsort())


def _rounded(least: float) -> float:
    """The next power of 4, so that many windows have the same one."""
    return 4.0 ** math.ceil(math.log(least, 4)) if least > 0 else least


def _batches(attempts: Iterable[_Attempt]) -> Iterator[list[_Attempt]]:
    """Windows whose fits run at once, in order of time."""
    batch: list[_Attempt] = []
    for attempt in attempts:
        if batch and not _has_room(batch, attempt):
            yield batch
            batch = []
        batch.append(attempt)
    if batch:
        yield batch


def _has_room(batch: list[_Attempt], attempt: _Attempt) -> bool:
    """Whether a batch takes one more window."""
    if len(batch) == _MOST_WINDOWS or not batch[0].can_share(attempt):
        return False
    every = [each.problem for each in (*batch, attempt) if each.problem is not None]
    sizes = [len(each.z) for each in every]
    num_starts = sum(len(each.starts.initial_probs) for each in every)
    width = every[0].z.shape[1] + 3 * every[0].settings.n_regimes
    memory = 8 * num_starts * max(sizes) * width
    return memory <= _MOST_MEMORY and max(sizes) <= _MOST_PADDING * min(sizes)


def _fits(batch: list[_Attempt]) -> list[FittedStarts | str]:
    """The fitted starts of each window, or why they failed."""
    every = [each.problem for each in batch if each.problem is not None]
    if not every:
        return [batch[0].problems[0]]
    try:
        return [*_fit_together(every)]
    except (ValueError, torch.linalg.LinAlgError) as error:
        if len(batch) == 1:
            return [str(error)]
    return [fit for each in batch for fit in _fits([each])]


def _fit_together(every: list[Problem]) -> list[FittedStarts]:
    first = every[0]
    dtype, device = first.settings.dtype, first.settings.device
    shared = {**options(first), "least": first.least}
    if len(every) == 1:
        x, lengths = pack(first.z, first.sizes, dtype=dtype, device=device)
        return [fit_starts(first.starts, first.spec, x, lengths, **shared)]
    ends = np.cumsum([len(each.starts.initial_probs) for each in every])
    sizes = np.repeat([len(each.z) for each in every], np.diff(ends, prepend=0))
    x = torch.zeros(len(sizes), int(sizes.max()), first.z.shape[1], dtype=dtype, device=device)
    slices = [slice(end - len(p.starts.initial_probs), end) for p, end in zip(every, ends)]
    for problem, which in zip(every, slices):
        x[which, : len(problem.z)] = torch.tensor(problem.z)
    starts = Parameters.concatenate([each.starts for each in every])
    fit = fit_starts(starts, first.spec, x, torch.tensor(sizes), **shared)
    if not fit.is_compiled:
        # Steps of the tensor engine may differ in the last digit by what else is in the batch.
        return [each for problem in every for each in _fit_together([problem])]
    return [fit.select(which) for which in slices]


def _refit(
    model: RegimeModel,
    attempt: _Attempt,
    fit: FittedStarts | str,
    row_name: Callable[[int], str],
    before: RegimeModel | None,
) -> Refit:
    """The fit of a window, with the names of the regimes of the one before."""
    window, problem, nothing = attempt.window, attempt.problem, np.zeros(0)
    if problem is None or isinstance(fit, str):
        return Refit(window, None, "", [str(fit)], nothing, nothing.astype(np.int64))
    if before is not None:
        order_by = Earlier(before.regime_names_, before._hmm())
        problem = problem._replace(settings=problem.settings._replace(order_by=order_by))
    try:
        found = best_regimes(problem, fit, lambda row: row_name(window.first + row))
    except ValueError as error:
        return Refit(window, None, "", [str(error)], nothing, nothing.astype(np.int64))
    fitted = type(model)(**model.get_params(deep=False))
    for name in ("n_features_in_", "feature_names_in_", "periods_per_year_"):
        if hasattr(model, name):
            setattr(fitted, name, getattr(model, name))
    fitted._set_fitted(found, problem.spec)
    fitted._set_counts(problem.data, problem.sizes, Annotations())
    of_first = before is not None and len(problem.starts.initial_probs) > 1
    start = "first window" if of_first and not found.best else kind_of(found.best - of_first)
    problems = [*attempt.problems, *map(str, found.problems)]
    return Refit(window, fitted, start, problems, found.last_probs, found.order)
