"""What became of each start of a fit."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.reading.packages import require
from pyro_regimes.text_tables import TitledTable, titled_html_table, titled_table

if TYPE_CHECKING:
    import pandas as pd

#: A start that ends within so many nats of the best log-likelihood has reached it.
TOLERANCE = 0.1


class StartResults(NamedTuple):
    """The R starts of a fit, in their order: the first one is from k-means."""

    log_likelihood: Array  #: ``(R,)``, as the last entry of ``history_``
    n_iter: npt.NDArray[np.int64]  #: ``(R,)``, number of iterations
    converged: Flags  #: ``(R,)``
    collapsed: Flags  #: ``(R,)``, onto a few points, or without a finite log-likelihood
    best: int  #: the number of the start that was kept

    @property
    def reached_best(self) -> Flags:
        """Which starts ended within 0.1 of the log-likelihood of the kept one, ``(R,)``.

        A collapsed start has not reached it unless the kept one has collapsed, too.
        """
        level = self.log_likelihood[self.best] - TOLERANCE
        comparable = ~self.collapsed | self.collapsed[self.best]
        reached: Flags = (self.log_likelihood >= level) & comparable
        return reached

    def describe(self) -> list[str]:
        """A line on how many starts reached the best log-likelihood; none of a single start."""
        number, reached = len(self.log_likelihood), int(self.reached_best.sum())
        if number == 1:
            return []
        line = f"{reached} of {number} starts reached the best log-likelihood, within {TOLERANCE}"
        if self.collapsed.any():
            line += f"; {self.collapsed.sum()} collapsed"
        if reached == 1:
            line += "; a larger n_init may find a better one"
        return [line + "."]

    def to_plain(self) -> dict[str, Any]:
        """The results as JSON has them, in which a number that is not finite is null."""
        finite = np.isfinite(self.log_likelihood)
        return {
            "log_likelihood": [
                float(value) if is_finite else None
                for value, is_finite in zip(self.log_likelihood, finite, strict=True)
            ],
            "n_iter": self.n_iter.tolist(),
            "converged": self.converged.tolist(),
            "collapsed": self.collapsed.tolist(),
            "best": self.best,
        }

    @classmethod
    def from_plain(cls, value: Any) -> StartResults:
        """The inverse of :meth:`to_plain`.

        :raises ValueError: if the value is no such results.
        """
        final, n_iter, *flags, best = (value[name] for name in cls._fields)
        lists = [final, n_iter, *flags]
        are_lists = all(type(each) is list and len(each) == len(final) for each in lists)
        if not (
            are_lists
            and all(each is None or type(each) is float for each in final)
            and all(type(each) is int and 0 <= each < 2**63 for each in n_iter)
            and all(type(each) is bool for flag in flags for each in flag)
            and type(best) is int
            and 0 <= best < len(final)
            and np.isfinite([each for each in final if each is not None]).all()
            and final[best] is not None
        ):
            raise ValueError(f"starts_ does not hold the results of starts: {reprlib.repr(value)}")
        log_likelihood = np.array([-np.inf if each is None else each for each in final])
        converged, collapsed = (np.array(flag, np.bool_) for flag in flags)
        return cls(log_likelihood, np.array(n_iter, np.int64), converged, collapsed, best)

    def __str__(self) -> str:
        return titled_table(*self._table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return titled_html_table(*self._table())

    def _table(self) -> TitledTable:
        """Its title, labels of rows, columns and notes."""
        best = self.log_likelihood[self.best]
        columns = [
            ("log-likelihood", [f"{value:.2f}" for value in self.log_likelihood]),
            ("below the best", [f"{best - value:.2f}" for value in self.log_likelihood]),
            ("reached best", ["yes" if flag else "no" for flag in self.reached_best]),
            ("iterations", [str(number) for number in self.n_iter]),
            ("ended", self._ends()),
        ]
        title = f"Starts of the fit; number {self.best} was kept"
        labels = [str(start) for start in range(len(self.log_likelihood))]
        return title, labels, columns, self.describe()

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for each start.

        :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
        """
        columns = {
            "log-likelihood": self.log_likelihood,
            "reached best": self.reached_best,
            "iterations": self.n_iter,
            "converged": self.converged,
            "collapsed": self.collapsed,
        }
        pandas = require("pandas", "to_frame")
        index = pandas.RangeIndex(len(self.log_likelihood), name="start")
        return pandas.DataFrame(columns, index=index)

    def _ends(self) -> list[str]:
        """How each start ended, in a word or two."""
        words = np.where(self.converged, "converged", "not converged")
        return np.where(self.collapsed, "collapsed", words).tolist()


def best_start(final: Array, degenerate: Flags) -> int:
    """The start with the highest final log-likelihood; degenerate ones only if all are.

    The likelihood of a collapsed regime grows without bound, so it is not comparable.

    :raises ValueError: if no start has a finite log-likelihood.
    """
    if not np.isfinite(final).any():
        raise ValueError(
            "expected X to have a finite log-likelihood, got none from any of "
            f"{len(final)} starts; look for outliers in X, or set min_eigenvalue"
        )
    sound = np.isfinite(final) & (~degenerate | degenerate.all())
    if not sound.any():
        sound = np.isfinite(final)
    return int(np.where(sound, final, -np.inf).argmax())
