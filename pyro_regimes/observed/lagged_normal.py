r"""The density of an autoregression in deviations from the means of a tuple of regimes.

With the regimes :math:`u = (q_{t-p}, \dots, q_t)`,

.. math::
    x_t \mid x_{t-1}, \dots, x_{t-p}, u \sim N\Big(\sum_{j=1}^p \phi_j x_{t-j} + c_u^\top \mu,
    \sigma^2\Big), \qquad c_u = e_{q_t} - \sum_{j=1}^p \phi_j e_{q_{t-j}},

where :math:`\phi` and :math:`\sigma` may depend on :math:`q_t`. The :math:`K^{p+1}` tuples are
numbered with the latest regime varying fastest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


def regimes_of_tuples(num_states: int, order: int) -> Tensor:
    """The regime at each lag, the latest first, of each tuple: ``(K^(p+1), p + 1)``."""
    number = torch.arange(num_states ** (order + 1), device="cpu")
    return torch.stack([number // num_states**lag % num_states for lag in range(order + 1)], -1)


def per_tuple(values: Tensor, num_states: int, order: int) -> Tensor:
    """Values of the latest regime for each tuple, ``(..., 1 or K) -> (..., K^(p+1))``."""
    values = values.expand(values.shape[:-1] + (num_states,))
    return values.repeat((1,) * (values.dim() - 1) + (num_states**order,))


def design(coefficients: Tensor, num_states: int) -> Tensor:
    """:math:`c_u` of each tuple, ``(..., S, K)``.

    :param coefficients: ``(..., 1 or K, p)``.
    """
    order = coefficients.shape[-1]
    regimes = regimes_of_tuples(num_states, order).to(coefficients.device)
    each = torch.nn.functional.one_hot(regimes, num_states).to(coefficients.dtype)  # (S, p+1, K)
    own = per_tuple(coefficients.mT, num_states, order).mT  # (..., S, p)
    return each[:, 0] - (own.unsqueeze(-1) * each[:, 1:]).sum(-2)


def centre(loc: Tensor, coefficients: Tensor) -> Tensor:
    r""":math:`c_u^\top \mu` of each tuple, ``(..., S)``; arguments as in :func:`log_density`."""
    return (design(coefficients, loc.shape[-1]) @ loc.unsqueeze(-1)).squeeze(-1)


def regressions(rows: Tensor, coefficients: Tensor) -> Tensor:
    r""":math:`x_t - \sum_j \phi_j x_{t-j}`, ``(..., T, 1 or K)``."""
    return rows[..., :1] - rows[..., 1:] @ coefficients.mT


def log_density(rows: Tensor, loc: Tensor, coefficients: Tensor, scale: Tensor) -> Tensor:
    """The log density of each row in each tuple, ``(..., T, S)``.

    It is computed about the first mean, so that no digits are lost if the level is far from 0.

    :param rows: the observation and those before it, the latest first, ``(..., T, p + 1)``.
    :param loc: the means, ``(..., K)``.
    :param coefficients: ``(..., 1 or K, p)``.
    :param scale: ``(..., 1 or K)``.
    """
    level = loc[..., :1].detach()
    rows, loc = rows - level.unsqueeze(-1), loc - level
    means = centre(loc, coefficients).unflatten(-1, (-1, loc.shape[-1]))  # (..., K^p, K)
    ahead = regressions(rows, coefficients)  # (..., T, 1 or K)
    scale = scale.unsqueeze(-2).unsqueeze(-2)  # (..., 1, 1, 1 or K)
    z = (ahead.unsqueeze(-2) - means.unsqueeze(-3)) / scale
    density = -0.5 * z.square() - (scale.log() + 0.5 * math.log(2 * math.pi))
    return density.flatten(-2)


class LaggedNormal(Distribution):
    r"""The density of :math:`x_t` in each tuple of regimes, of :math:`(x_t, \dots, x_{t-p})`.

    :param Tensor loc: the means, ``(..., K)``.
    :param Tensor coefficients: ``(..., 1 or K, p)``.
    :param Tensor scale: ``(..., 1 or K)``.

    The batch shape is ``(..., 1, S)``, of steps and tuples.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, coefficients: Tensor, scale: Tensor) -> None:
        self.loc, self.coefficients, self.scale = loc, coefficients, scale
        order = coefficients.shape[-1]
        batch = torch.broadcast_shapes(loc.shape[:-1], coefficients.shape[:-2], scale.shape[:-1])
        super().__init__(
            batch + (1, loc.shape[-1] ** (order + 1)), torch.Size([order + 1]), validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of rows ``(..., T, 1, p + 1)`` in each tuple, ``(..., T, S)``."""
        return log_density(value.squeeze(-2), self.loc, self.coefficients, self.scale)
