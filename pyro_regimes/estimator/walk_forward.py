"""A model that is refitted as time goes on, and what it said at each row."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Callable, NamedTuple

import numpy as np

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.following import follow, log_scores
from pyro_regimes.estimator.forecast_scores import pit_and_crps
from pyro_regimes.estimator.inputs import as_tables, date_index, dates_of
from pyro_regimes.estimator.inputs import periods_per_year as periods_by_dates
from pyro_regimes.estimator.inputs import row_name
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.walk import Walk
from pyro_regimes.estimator.walk_forward_result import WalkForward
from pyro_regimes.estimator.windows import Integers, Refit, Window, fit_windows
from pyro_regimes.messages import shown

_PERIODS = {"month": 1, "quarter": 3, "year": 12}  # in months
_MOST_TEXTS = 3  # that a warning has


def walk_forward(
    model: RegimeModel,
    X: Any,
    *,
    min_train: int,
    refit_every: int | str,
    window: int | None = None,
    horizon: int = 1,
) -> WalkForward:
    r"""What a model would have said at each row, refitted as time goes on.

    A refit at row r (counted from 0) is of the rows before r: of all of them, or of the last
    ``window``. It serves row r and those after it, until the next refit. So at row t there are

    - the filtered probabilities :math:`p(q_t \mid x_{..t})`,
    - the forecast of row t + h, :math:`p(x_{t+h} \mid x_{..t})`, with h the ``horizon``,
    - the scores of the forecast of row t, which was made at row t - h.

    **Nothing in row t depends on a later row, to the bit.** The starts of a refit are the
    parameters of the first one and k-means of its own rows. Each window has its own units and stops
    by itself, though many are computed at once.

    The regimes of a refit have the names of those of the refit before with the nearest densities:
    the sum of the symmetric Kullback-Leibler divergences is the least of all assignments. Where
    densities are equal, the shares of time in the long run decide. The first refit is
    :meth:`.RegimeModel.fit` of its rows, with the ``n_init`` starts and names of the model. A
    ``transition_mask`` keeps the numbers of the regimes instead.

    Rows are equally spaced. Missing values are marginalised, in fits and in scores. A window that
    cannot be fitted leaves the model before it in place; the table of refits says why, and a
    warning is given. A row of probability zero leaves the regimes as they were predicted.

    :param model: its settings; a fit of it is not used. It is not changed.
    :param X: ``(T, D)``, one sequence in order of time, in the forms of :meth:`.RegimeModel.fit`.
    :param min_train: the number of rows before the first refit.
    :param refit_every: the number of rows from one refit to the next; or "month", "quarter" or
        "year", for X with dates: at the first row of each, from the first one that begins after
        row ``min_train``. The first refit is at row ``min_train`` in either case.
    :param window: the number of rows of a refit, at most ``min_train``. None takes all before it.
    :param horizon: h, the number of rows from that of a forecast to the one that it is of.
    :return: a :class:`.WalkForward`.
    :raises ValueError: if an argument or a setting of the model is not valid, X has several
        sequences, or the first refit is not possible.
    """
    if not isinstance(model, RegimeModel):
        raise ValueError(f"expected model to be a RegimeModel, got {shown(model)}")
    template = type(model)(**model.get_params(deep=False))
    tables, are_several = as_tables(X)
    if are_several:
        raise ValueError(
            f"expected X to be one sequence, got a collection of {len(tables)}; walk through each "
            "alone"
        )
    data, _ = validation.check_data(template, X, None, reset=True)
    template.periods_per_year_ = periods_by_dates(X)
    (table,) = tables
    index = table.index if hasattr(table, "iloc") else np.arange(len(data))
    windows = _windows(len(data), date_index(table), min_train, refit_every, window)
    horizon = validation.integer("horizon", horizon, 1)
    _check_begun(data, min_train, row_name(table), getattr(template, "feature_names_in_", None))
    _check_categories(template, data, min_train)
    refits = fit_windows(template, data, windows, row_name(table))
    walk = _walk(data, refits, horizon)
    _warn(refits)
    names = getattr(template, "feature_names_in_", np.arange(data.shape[1]))
    rows = data[min_train:].copy()  # apart from X, which the caller may change
    return WalkForward(index[min_train:], list(names), horizon, rows, walk, refits)


def _check_begun(
    data: Array, min_train: int, row_name: Callable[[int], str], names: Any | None
) -> None:
    """:raises ValueError: if a series has its first value after the rows of the first refit."""
    has_value = ~np.isnan(data)
    late = np.flatnonzero(has_value.any(0) & ~has_value[:min_train].any(0))
    if len(late):
        column = int(late[0])
        first = int(has_value[:, column].argmax())
        name = f"series {column}" if names is None else repr(str(names[column]))
        raise ValueError(
            f"expected every series to have values in the first min_train={min_train} rows of X, "
            f"got the first one of {name} in row {first} ({row_name(first)}); increase min_train, "
            "or leave the series out"
        )


def _check_categories(model: RegimeModel, data: Array, min_train: int) -> None:
    """:raises ValueError: if the number of categories of some series is not known at first."""
    given = validation.read_settings(model).given.values
    names, (num_rows, num_series) = getattr(model, "feature_names_in_", None), data.shape
    spec = model._spec().for_columns(names, num_series)
    spec.for_data(data, given).check_support(data, names)
    at_first, in_all = (
        spec.for_data(data[:rows], given).shapes(model.n_regimes, num_series)
        for rows in (min_train, num_rows)
    )
    if at_first != in_all:
        raise ValueError(
            f"expected the first min_train={min_train} rows of X to hold the largest category of "
            "each series, got a larger one later, which the first refit cannot know; increase "
            "min_train"
        )


def _windows(
    num_rows: int, dates: Any | None, min_train: Any, refit_every: Any, window: Any
) -> list[Window]:
    """The rows of each refit, in order of time."""
    min_train = validation.integer("min_train", min_train, 2)
    if min_train >= num_rows:
        raise ValueError(
            f"expected min_train to be less than the {num_rows} rows of X, got {min_train}"
        )
    if window is not None:
        window = validation.integer("window", window, 2)
        if window > min_train:
            raise ValueError(
                f"expected window to be at most min_train={min_train}, got {window}: the first "
                "refit has no more rows before it"
            )
    if isinstance(refit_every, str):
        ends = _beginnings(dates, refit_every, min_train)
    else:
        step = validation.integer("refit_every", refit_every, 1)
        ends = np.arange(min_train, num_rows, step)
    return [Window(0 if window is None else end - window, end) for end in ends.tolist()]


def _beginnings(dates: Any | None, refit_every: str, min_train: int) -> Integers:
    """Row ``min_train``, and the first row of each later month, quarter or year."""
    validation.one_of("refit_every", refit_every, tuple(_PERIODS))
    if dates is None:
        raise ValueError(
            f"expected X with dates where refit_every={refit_every!r}, got rows without; give a "
            "DataFrame with a DatetimeIndex, or a number of rows"
        )
    months = dates_of(dates).astype("datetime64[M]").astype(np.int64)
    begins = np.flatnonzero(np.diff(months // _PERIODS[refit_every])) + 1
    return np.concatenate([[min_train], begins[begins > min_train]])


class _Stretch(NamedTuple):
    """The rows that one fit serves."""

    refit: Refit
    number: int
    first: int
    end: int


def _stretches(refits: list[Refit], num_rows: int) -> list[_Stretch]:
    """The rows of each refit; those of one that failed are left to the one before."""
    found = [(number, refit) for number, refit in enumerate(refits) if refit.model is not None]
    ends = [refit.window.end for _, refit in found[1:]] + [num_rows]
    return [
        _Stretch(refit, number, refit.window.end, end)
        for (number, refit), end in zip(found, ends, strict=True)
    ]


def _walk(data: Array, refits: list[Refit], horizon: int) -> Walk:
    """Probabilities, forecasts and scores of all rows from the first refit on."""
    first, num_rows = refits[0].window.end, len(data)
    num_regimes, num_series = len(refits[0].last_probs), data.shape[1]
    walk = Walk.empty(num_rows - first, num_regimes, num_series)
    for refit, number, begin, end in _stretches(refits, num_rows):
        assert refit.model is not None
        hmm = refit.model._hmm()
        emission, matrix = hmm.parameters.emission, hmm.parameters.transition_matrix
        densities = hmm.log_densities(data[begin : min(end + horizon, num_rows)])
        filtered = follow(refit.last_probs, matrix, densities[: end - begin])
        ahead = filtered @ np.linalg.matrix_power(matrix, horizon)
        ahead /= ahead.sum(-1, keepdims=True)  # of rounding over many steps
        mean, covariance = hmm.spec.mixture_moments(ahead, emission)
        rows = slice(begin - first, end - first)
        walk.refit[rows] = number
        walk.filtered[rows], walk.ahead[rows], walk.mean[rows] = filtered, ahead, mean
        variances = covariance.diagonal(axis1=-2, axis2=-1)
        walk.deviation[rows] = hmm.spec.deviations_of(variances)
        targets = slice(begin + horizon, min(end + horizon, num_rows))
        came = data[targets]
        known = ahead[: len(came)]
        rows = slice(targets.start - first, targets.stop - first)
        walk.log_score[rows] = log_scores(known, densities[horizon:])
        walk.log_score[rows][np.isnan(came).all(-1)] = np.nan
        walk.pit[rows], walk.crps[rows] = pit_and_crps(came, known, hmm.spec, emission)
    return walk


def _warn(refits: list[Refit]) -> None:
    """One warning for all refits, with each of the most frequent texts once."""
    failed = [refit for refit in refits if refit.model is None]
    doubtful = [refit for refit in refits if refit.problems]
    if not doubtful:
        return
    first: dict[str, Refit] = {}  # with each text
    counts: Counter[str] = Counter()
    for refit in failed or doubtful:
        counts.update(dict.fromkeys(refit.problems, 1))
        for problem in refit.problems:
            first.setdefault(problem, refit)
    listed = " ".join(
        f"{count} refit{'s' * (count > 1)}, {'the first ' * (count > 1)}of "
        f"{first[text].window.end - first[text].window.first} rows: {text}"
        for text, count in counts.most_common(_MOST_TEXTS)
    )
    what = "failed, and the parameters before them stay" if failed else "have warnings"
    warnings.warn(
        f"{len(failed or doubtful)} of {len(refits)} refits {what}; refits.warnings has the texts. "
        f"{listed}",
        stacklevel=levels_to_the_caller(),
    )
