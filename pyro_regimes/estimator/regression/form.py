r"""A Markov-switching regression as a Pyro model.

.. math::
    g(E[y_t]) = x_t^\top \beta_{q_t}, \qquad
    p(q_{t+1} = j \mid q_t = i) \propto \exp(z_t^\top \gamma_{ij}), \quad \gamma_{ii} = 0

The model is computed in orthonormal columns: with :math:`X = Q R` the arguments are
:math:`\theta_k = R \beta_k / u`, where u is the unit of a Gaussian y. So no unit or level of a
covariate matters. Columns that switch and columns that do not have a factorisation each.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.pyro_model import stationary_initial
from pyro_regimes.estimator.regression.coordinates import rotated, solved, triangle
from pyro_regimes.estimator.regression.responses import Response
from pyro_regimes.estimator.regression.rows import Rows

Flags = npt.NDArray[np.bool_]


class RegressionParameters(NamedTuple):
    """The parameters in the units of the data."""

    initial_probs: Array  #: ``(K,)``
    coefficients: Array  #: ``(K, P)``; those of columns that do not switch are equal
    scale: Array | None  #: ``(K,)``, such as standard deviations; None if none, or if it varies
    transition_matrix: Array | None  #: ``(K, K)``, (old, new); None where transitions vary
    transition_coefficients: Array | None  #: ``(K, K, Q)``, (old, new), with 0 on the diagonal
    scale_coefficients: Array | None  #: ``(K, S)``, of the logarithm of a scale that varies

    def reordered(self, order: npt.NDArray[np.int64]) -> RegressionParameters:
        """The same model with its regimes in another order."""
        pairs = np.ix_(order, order)
        return RegressionParameters._make(
            None if each is None else each[pairs if name.startswith("transition") else order]
            for name, each in self._asdict().items()
        )


class Form(NamedTuple):
    """What switches, and the coordinates of the computation."""

    response: Response
    num_regimes: int
    switching: Flags  #: ``(P,)``, which columns have a coefficient in each regime
    switching_variance: bool  #: whether each regime has its own scale
    initial: str  #: "free", "stationary" or "uniform"
    enters: bool  #: whether the covariates of the row entered drive a transition
    unit: float  #: u, of y; 1 of responses without a unit
    own: Array  #: R of the columns that switch, so that ``X[:, switching] / R`` is orthonormal
    common: Array  #: R of the others
    moves: Array | None  #: R of Z; None where transitions are constant
    spread: Array | None  #: R of W; None where the scale is constant

    @classmethod
    def of_rows(
        cls, response: Response, rows: Rows, num_regimes: int, switching: Flags,
        switching_variance: bool, initial: str, enters: bool,
    ) -> Form:  # fmt: skip
        """The form of a model of training data."""
        assert rows.y is not None
        y, unit = rows.y[rows.is_known], 1.0
        X = np.nan_to_num(rows.X)
        if response.has_unit:
            most = float(np.abs(y).max()) or 1.0
            unit = most * (float((y / most).std()) or 1.0)
        factors = [
            None if matrix is None else triangle(np.nan_to_num(matrix))
            for matrix in (X[:, switching], X[:, ~switching], rows.Z, rows.W)
        ]
        own, common, moves, spread = factors
        assert own is not None and common is not None
        return cls(
            response, num_regimes, switching, switching_variance, initial, enters, unit, own,
            common, moves, spread,
        )  # fmt: skip

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        number, own = self.num_regimes, int(self.switching.sum())
        transitions = number * (number - 1) * (1 if self.moves is None else len(self.moves))
        first = number - 1 if self.initial == "free" else 0
        scales = self.num_scales * number
        if not self.switching_variance and self.response.scale is not None:
            scales = 1 if self.spread is None else len(self.spread)
        return number * own + len(self.switching) - own + scales + transitions + first

    @property
    def num_scales(self) -> int:
        """The number of parameters of the scale of one regime, if it has its own."""
        if self.response.scale is None or not self.switching_variance:
            return 0
        return 1 if self.spread is None else len(self.spread)

    def to_arguments(self, parameters: RegressionParameters) -> dict[str, Tensor]:
        """The arguments of the Pyro model."""
        beta = parameters.coefficients
        number = self.num_regimes if self.switching_variance else 1
        arrays = {
            "initial_probs": parameters.initial_probs,
            "coefficients": beta[:, self.switching] @ self.own.T / self.unit,
        }
        if self.spread is not None:
            assert parameters.scale_coefficients is not None
            arrays["scale_coefficients"] = parameters.scale_coefficients[:number] @ self.spread.T
        elif parameters.scale is not None:
            arrays["scale"] = parameters.scale[:number] / self.unit
        if not self.switching.all():
            arrays["common_coefficients"] = self.common @ beta[0, ~self.switching] / self.unit
        if self.moves is None:
            assert parameters.transition_matrix is not None
            arrays["transition_probs"] = parameters.transition_matrix
        else:
            assert parameters.transition_coefficients is not None
            away = ~np.eye(self.num_regimes, dtype=np.bool_)
            gamma = parameters.transition_coefficients[away] @ self.moves.T
            arrays["transition_coefficients"] = gamma.reshape(
                self.num_regimes, self.num_regimes - 1, len(self.moves)
            )
        return {name: torch.tensor(value) for name, value in arrays.items()}

    def from_arguments(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters in the units of the data, differentiable in the arguments.

        :return: the fields of :class:`RegressionParameters` that the model has.
        """
        number = self.num_regimes
        own = solved(self.own, arguments["coefficients"]) * self.unit
        beta = own.new_zeros(number, len(self.switching))
        beta[:, torch.from_numpy(self.switching)] = own
        if "common_coefficients" in arguments:
            common = solved(self.common, arguments["common_coefficients"][None]) * self.unit
            beta[:, torch.from_numpy(~self.switching)] = common.expand(number, -1)
        found = {"coefficients": beta}
        if "scale" in arguments:
            found["scale"] = (arguments["scale"] * self.unit).expand(number)
        if self.spread is not None:
            delta = solved(self.spread, arguments["scale_coefficients"])
            found["scale_coefficients"] = delta.expand(number, -1)
        if self.moves is None:
            found["transition_matrix"] = arguments["transition_probs"]
        else:
            gamma = solved(self.moves, arguments["transition_coefficients"])
            found["transition_coefficients"] = with_stays(gamma)
        found["initial_probs"] = self.first(arguments)
        return found

    def first(self, arguments: Mapping[str, Tensor]) -> Tensor:
        """The initial probabilities."""
        if self.initial == "stationary":
            return stationary_initial(arguments["transition_probs"])
        return arguments["initial_probs"]

    def parameters(self, arguments: Mapping[str, Tensor]) -> RegressionParameters:
        """The parameters in the units of the data."""
        found: dict[str, Any] = {
            n: v.detach().numpy().copy() for n, v in self.from_arguments(arguments).items()
        }
        return RegressionParameters._make(map(found.get, RegressionParameters._fields))

    def tensors(self, rows: Rows) -> dict[str, Tensor]:
        """The rows in the coordinates of the computation."""
        X = np.nan_to_num(rows.X)  # without an observation
        found = {
            "own": rotated(X[:, self.switching], self.own),
            "common": rotated(X[:, ~self.switching], self.common),
        }
        if rows.y is not None:
            known = rows.is_known
            y = rows.y if self.response.marginalises else np.where(known, rows.y, 1.0)
            found |= {"y": torch.from_numpy(y / self.unit), "known": torch.from_numpy(known)}
        if rows.trials is not None:
            trials = np.where(np.isnan(rows.trials), 1.0, rows.trials)
            found["trials"] = torch.from_numpy(trials)[:, None]
        if self.spread is not None:
            assert rows.W is not None
            found["spread"] = rotated(np.nan_to_num(rows.W), self.spread)
        if self.moves is not None:
            assert rows.Z is not None
            moves = rotated(rows.Z, self.moves)
            found["moves"] = moves[1:] if self.enters else moves[:-1]
        return found

    def distribution(
        self,
        arguments: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        lengths: Tensor | None = None,
        first_probs: Tensor | None = None,
    ) -> RegimeHMM:
        """The distribution of y in units of u.

        :param tensors: of :meth:`tensors`.
        :param first_probs: in the place of the initial probabilities.
        """
        eta = tensors["own"] @ arguments["coefficients"].mT
        if "common_coefficients" in arguments:
            eta = eta + (tensors["common"] @ arguments["common_coefficients"]).unsqueeze(-1)
        observed = self.response.distribution(
            eta, self.scale(arguments, tensors), tensors.get("trials")
        )
        if not self.response.marginalises and not bool(tensors["known"].all()):
            observed = observed.mask(tensors["known"].unsqueeze(-1))
        options: dict[str, Any] = {"packed_lengths": lengths}
        if self.response.marginalises:
            options["missing"] = "marginalise"
        if self.moves is None:
            options["transition_probs"] = arguments["transition_probs"]
        else:
            gamma = with_stays(arguments["transition_coefficients"])
            options["transition_logits"] = torch.einsum("tq,ijq->tij", tensors["moves"], gamma)
        return RegimeHMM(
            initial_probs=self.first(arguments) if first_probs is None else first_probs,
            observation_dist=observed,
            **options,
        )

    def scale(
        self, arguments: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> Tensor | None:
        """The scale in units of u, ``(K,)`` or ``(T, K)``; None of a response without one."""
        if self.spread is None:
            return arguments.get("scale")
        return (tensors["spread"] @ arguments["scale_coefficients"].mT).exp() / self.unit

    def pyro_model(
        self, arguments: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
        lengths: Tensor | None = None, fixed: Collection[str] = (),
    ) -> Callable[[], None]:  # fmt: skip
        """A Pyro model function with a parameter for each argument, which start at these values.

        :param fixed: names of arguments that are constants instead.
        """
        domains = {
            "initial_probs": constraints.simplex,
            "transition_probs": constraints.simplex,
            "scale": constraints.positive,
        }
        constant = {*fixed, *(name for name, value in arguments.items() if not value.numel())}
        if self.initial != "free":
            constant.add("initial_probs")

        def model() -> None:
            held = {
                name: value
                if name in constant
                else pyro.param(name, value.clone(), domains.get(name, constraints.real))
                for name, value in arguments.items()
            }
            pyro.sample("y", self.distribution(held, tensors, lengths), obs=tensors["y"])

        return model


def with_stays(gamma: Tensor) -> Tensor:
    """Coefficients ``(K, K - 1, Q)`` of leaving each regime as ``(K, K, Q)``; staying has 0."""
    number = len(gamma)
    places = torch.eye(number, dtype=gamma.dtype, device=gamma.device)
    away = torch.stack([places[[j for j in range(number) if j != i]] for i in range(number)])
    return torch.einsum("imq,imj->ijq", gamma, away)


def transition_matrices(gamma: Array, Z: Array) -> Array:
    """The transition matrices ``(T, K, K)`` of rows of covariates."""
    logits = np.einsum("tq,ijq->tij", Z, gamma)
    logits -= logits.max(-1, keepdims=True)
    odds = np.exp(logits)
    found: Array = odds / odds.sum(-1, keepdims=True)
    return found
