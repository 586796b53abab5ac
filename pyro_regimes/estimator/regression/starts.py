"""Starts of a Markov-switching regression, from responsibilities of the regimes for the rows."""

from __future__ import annotations

from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.form import Form
from pyro_regimes.estimator.soft_starts import clusters, random_runs

#: Arguments that the chain has.
CHAIN = ("initial_probs", "transition_probs", "transition_coefficients")

_SHARE = 0.1  # of each row that all regimes have, so that each has a regression
_STEPS = 2  # the coefficients at the first variances, and again
_LEAST = 0.05  # of the deviation of the residuals, with which a regime starts
_STAYS = (0.6, 0.97)  # the range of the probability to stay


class Starts:
    """Makes the arguments of the Pyro model for one start after the other.

    The first start is from k-means of the residuals of one regression of all rows and of their
    size. Others are in turn from random runs of rows, each of one regime, and from random lines:
    regressions of K short runs of rows, each row going to the lines by its distances. Regressions
    are least squares of the response, in the coordinates of the predictor.

    :param tensors: of :meth:`.Form.tensors`.
    :param working: the response in these coordinates ``(T,)``, NaN where missing.
    """

    def __init__(
        self, form: Form, tensors: Mapping[str, Tensor], working: Array,
        rng: np.random.RandomState,
    ) -> None:  # fmt: skip
        self._form, self._tensors, self._rng = form, tensors, rng
        self._design = torch.cat([tensors["own"], tensors["common"]], -1).numpy()
        known = ~np.isnan(working)
        self._theta = np.linalg.lstsq(self._design[known], working[known], rcond=None)[0]
        fitted = self._design @ self._theta
        self._y = np.where(known, working, fitted)
        self._residuals = self._y - fitted
        #: Of the residuals of one regression of all rows.
        self.deviation = float(np.sqrt(np.square(self._residuals[known]).mean()))

    def arguments(self, number: int) -> dict[str, Tensor]:
        """The arguments of a start, by its number from 0."""
        form, rng = self._form, self._rng
        first = self._first()
        if form.num_regimes == 1:
            return first
        if number == 0:
            size = np.abs(self._residuals)
            features = np.stack([self._residuals, size], 1) / self._unit
            given = clusters(features, form.num_regimes, True, rng)
        elif number % 2:
            given = self._from_lines()
        else:
            given = random_runs(len(self._y), form.num_regimes, rng)
        weights = (1 - _SHARE) * given + _SHARE / form.num_regimes
        em = IsolatedEM(form.pyro_model(first, self._tensors, fixed=CHAIN))
        found = {**first, **em.maximise(torch.from_numpy(weights), _STEPS)}
        if form.response.has_unit and "scale" in found:
            found["scale"] = found["scale"].clamp(min=_LEAST * self.deviation)
        return {**found, **self._chain()}

    @property
    def _unit(self) -> float:
        """Of distances; any one where a regression is exact."""
        return self.deviation or 1.0

    def _first(self) -> dict[str, Tensor]:
        """One regression for all regimes."""
        form, own = self._form, self._tensors["own"].shape[1]
        number = form.num_regimes
        found = {"coefficients": np.tile(self._theta[:own], (number, 1))}
        scales = number if form.switching_variance else 1
        if form.response.scale is not None:
            scale = form.response.first_scale(self.deviation)
            if form.spread is None:
                found["scale"] = np.full(scales, scale)
            else:
                spread = self._tensors["spread"].numpy()
                level = np.linalg.lstsq(spread, np.ones(len(spread)), rcond=None)[0]
                found["scale_coefficients"] = np.tile(
                    np.log(scale * form.unit) * level, (scales, 1)
                )
        if self._tensors["common"].shape[1]:
            found["common_coefficients"] = self._theta[own:].copy()
        return {**{name: torch.tensor(v) for name, v in found.items()}, **self._chain()}

    def _chain(self) -> dict[str, Tensor]:
        """A chain that stays with a random probability."""
        form = self._form
        number = form.num_regimes
        stay = self._rng.uniform(*_STAYS) if number > 1 else 1.0
        found = {"initial_probs": torch.full((number,), 1 / number, dtype=torch.float64)}
        leave = (1 - stay) / max(number - 1, 1)
        if form.moves is None:
            matrix = np.full((number, number), leave)
            np.fill_diagonal(matrix, stay)
            return {**found, "transition_probs": torch.tensor(matrix)}
        moves = self._tensors["moves"].numpy()
        level = np.linalg.lstsq(moves, np.ones(len(moves)), rcond=None)[0]
        log_odds = np.log(leave / stay) if number > 1 else 0.0
        gamma = np.tile(log_odds * level, (number, max(number - 1, 0), 1))
        return {**found, "transition_coefficients": torch.tensor(gamma)}

    def _from_lines(self) -> Array:
        """Responsibilities by the distances from regressions of short runs of rows."""
        number, num_rows = self._form.num_regimes, len(self._y)
        width = self._design.shape[1]
        size = min(num_rows, max(3 * width, num_rows // (10 * number)))
        squares = np.empty((num_rows, number))
        ridge = np.eye(width)  # towards the regression of all rows, by one row's weight
        for k in range(number):
            at = self._rng.randint(num_rows - size + 1)
            rows = slice(at, at + size)
            theta = np.linalg.lstsq(
                np.concatenate([self._design[rows], ridge]),
                np.concatenate([self._y[rows], self._theta]),
                rcond=None,
            )[0]
            squares[:, k] = np.square((self._y - self._design @ theta) / self._unit)
        weights = np.exp(2 * (squares.min(-1, keepdims=True) - squares))
        found: Array = weights / weights.sum(-1, keepdims=True)
        return found
