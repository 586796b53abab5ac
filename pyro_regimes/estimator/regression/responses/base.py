"""The interface of a distribution of the response, given a linear predictor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from pyro_regimes.estimator.parameters import Array


class Response:
    """A family of distributions of the response, with a link of its mean.

    :param link: one of ``links``.
    """

    name: ClassVar[str]
    links: ClassVar[tuple[str, ...]]  #: the usual one first
    formula: ClassVar[str]  #: of a row, for the summary
    #: The name of the parameter beside the mean, of which ``name_`` is the attribute; or None.
    scale: ClassVar[str | None] = None
    has_trials: ClassVar[bool] = False  #: whether a response is a number of successes and failures
    marginalises: ClassVar[bool] = False  #: whether NaN may be observed
    has_unit: ClassVar[bool] = False  #: whether the mean and the scale are in the unit of y

    def __init__(self, link: str) -> None:
        self.link = link

    def check(self, y: Array, trials: Array | None) -> None:
        """:raises ValueError: if a response is impossible; it names the row and the value.

        :param y: ``(T,)``, NaN where missing.
        :param trials: ``(T,)``, where the family has some.
        """

    def working(self, y: Array, trials: Array | None) -> Array:
        """The response in the coordinates of the predictor, for starts, ``(T,)``."""
        raise NotImplementedError

    def first_scale(self, deviation: float) -> float:
        """The scale of a start.

        :param deviation: that of :meth:`working` from one regression of all rows.
        """
        return deviation

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """The Pyro distribution in each regime.

        :param eta: the linear predictor ``(T, K)``, and ``scale`` such that it broadcasts.
        :param trials: ``(T, 1)``, or None.
        """
        raise NotImplementedError

    def mean(self, eta: Array) -> Array:
        """The mean response, of one trial, at a linear predictor."""
        raise NotImplementedError

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """The same distribution of :mod:`scipy.stats`, for forecasts."""
        raise NotImplementedError

    def _refuse(self, y: Array, wrong: Any, expected: str, remedy: str) -> None:
        """:raises ValueError: if a response is wrong, with the first one.

        :param wrong: flags ``(T,)``.
        """
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise ValueError(
                f"expected a response of {expected} with family={self.name!r}, got "
                f"{y[rows[0]]:g} in row {rows[0]}; {remedy}"
            )


def as_counts(y: Array) -> Array:
    """Flags of the responses that are no counts, ``(T,)``; a missing one may be."""
    known = np.nan_to_num(y)
    wrong: Array = (known < 0) | (known != np.floor(known))
    return wrong
