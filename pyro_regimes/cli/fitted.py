"""A saved model together with rows of data, for the commands that use one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_regimes.cli import screen
from pyro_regimes.cli.options import use_one_thread
from pyro_regimes.cli.reading import Data

if TYPE_CHECKING:
    from pyro_regimes.datasets import Returns
    from pyro_regimes.estimator import RegimeModel

_OTHER_UNIT = 20.0  # times by which standard deviations differ in different units
_FEWEST_ROWS = 30  # that tell a standard deviation
_FEW_ROWS = 5  # that show a level, if all are positive and
_STEP = 0.25  # the logarithm changes by less than this from row to row
_OFTEN = 0.01  # the share of negative values of a series that is no level


class Fitted(NamedTuple):
    """A saved model and data that have its series, in its order."""

    model: RegimeModel
    returns: Returns
    frame: Any  #: the same, as the model takes them


def read_fitted(path: Path, data: Data) -> Fitted:
    """Read a saved model, and the data; print what is doubtful about the data.

    :raises ValueError: if either cannot be read, the data lack a series of the model, or they are
        levels and the model is one of changes.
    """
    from pyro_regimes.estimator import RegimeModel, problems  # takes a second or two

    use_one_thread()
    model = RegimeModel.load(path)
    names = getattr(model, "feature_names_in_", None)
    returns = data.read() if names is None else data.read_series(list(names))
    num_series = returns.values.shape[1]
    if names is None and num_series != model.n_features_in_:
        raise ValueError(
            f"expected DATA to have the {model.n_features_in_} series of the model, got "
            f"{num_series}; choose them (--columns)"
        )
    if names is None:
        screen.note("the model has no names of series; those of the file are taken in their order")
    if model.summary().is_annualised:
        _refuse_levels(model, returns)
        for problem in problems.of_data(returns.values, [len(returns.values)], returns.names):
            screen.show_warning(problem)
    _tell_other_scale(model, returns)
    return Fitted(model, returns, returns.values if names is None else returns.to_frame())


def _refuse_levels(model: RegimeModel, returns: Returns) -> None:
    """Raise for prices without --prices: levels of series of which the model is often negative."""
    import numpy as np
    from scipy.special import ndtr

    from pyro_regimes.estimator import problems

    values = returns.values
    levels = problems.find_levels(values, [len(values)])
    if _FEW_ROWS <= len(values) < _FEWEST_ROWS:
        positive = np.where(values > 0, values, np.nan)
        with np.errstate(invalid="ignore"):
            levels = np.flatnonzero((np.abs(np.diff(np.log(positive), axis=0)) < _STEP).all(0))
    if not len(levels):
        return
    summary, periods = model.summary(), periods_per_year(model)
    means, deviations = summary.mean / periods, summary.volatility / np.sqrt(periods)
    negative = summary.share_of_time @ ndtr(-means / deviations)  # (D,)
    wrong = [returns.names[column] for column in levels if negative[column] > _OFTEN]
    if wrong:
        raise ValueError(
            "expected DATA to hold changes, such as returns, to which the model was fitted, got "
            f"levels (prices, indices, yields) in {', '.join(wrong)}: they are positive and move "
            "little from row to row; for prices add --prices"
        )


def _tell_other_scale(model: RegimeModel, returns: Returns) -> None:
    """Print notes if the frequency or the unit of the data are not those of the model."""
    found = returns.periods_per_year
    if found is not None and not 0.5 < found / periods_per_year(model) < 2:
        screen.note(
            f"the rows are {returns.frequency}, {found:g} a year; the model has "
            f"{periods_per_year(model):g}"
        )
    summary = model.summary()
    if len(returns.values) < _FEWEST_ROWS or not summary.is_annualised:
        return
    import numpy as np

    volatility = summary.volatility / np.sqrt(periods_per_year(model))  # (K, D)
    known = ~np.isnan(returns.values).all(0)
    if not known.any():
        return
    volatility = volatility[:, known]
    with np.errstate(over="ignore"):
        deviation = np.nanstd(returns.values[:, known], 0)
    low, high = (deviation / volatility.min(0)).max(), (deviation / volatility.max(0)).min()
    if low < 1 / _OTHER_UNIT or high > _OTHER_UNIT:
        less = f"{1 / low:.0f} times less than in the calmest"
        more = f"{high:.0f} times more than in the most turbulent"
        than = less if low < 1 / _OTHER_UNIT else more
        screen.note(
            f"the series vary {than} regime of the model; check that they have the unit of the "
            "training data (percent or decimals), and that they are returns (--prices)"
        )


def periods_per_year(model: RegimeModel) -> float:
    """The number of steps per year with which the model annualises."""
    own = model.periods_per_year
    return model.periods_per_year_ if own is None else own


def describe_rows(returns: Returns) -> str:
    """The number of rows and series, and the first and last date."""
    rows, series = returns.values.shape
    counted = f"{rows} row{'s' * (rows != 1)} of {series} series"
    return f"{counted}, {returns.dates[0]} to {returns.dates[-1]}"
