r"""Stochastic EM: running averages of the expected statistics of minibatches.

Where a plate is subsampled, each step sees some of the sequences. Cappe and Moulines (2009) average
the expected sufficient statistics, not the parameters: with :math:`\hat s_n` the statistics of the
n-th minibatch, scaled to all the data,

.. math::
    s_n = s_{n-1} + \rho_n (\hat s_n - s_{n-1}), \qquad \theta_n = \arg\max_\theta Q(\theta; s_n).

It converges to a stationary point of the whole data's likelihood where
:math:`\sum \rho_n = \infty` and :math:`\sum \rho_n^2 < \infty`, as for
:math:`\rho_n = n^{-\kappa}` with :math:`\tfrac12 < \kappa \le 1`.

For Gaussian observations the statistics of a state are its weight, sum and sum of squares about a
fixed origin, at each time where the observation distribution varies in time. Here they become data
again: 2D points about the mean with the same three, so that every closed form serves as it is.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.update import Observed
from pyro_regimes.kernels import ops

#: The weight of the n-th minibatch, n = 1, 2, ...; 1 for the first.
Schedule = Callable[[int], float]


def default_schedule(step: int) -> float:
    """:math:`n^{-0.6}`, as Cappe and Moulines recommend."""
    return float(step**-0.6)


class Averages(NamedTuple):
    """Expected statistics of one site, over all its sequences; float64."""

    initial: Tensor  #: ``(K,)``
    moved: Tensor  #: ``(1 or T-1, K, K)``
    origin: Tensor  #: of the values below, ``(D,)``
    weight: Tensor  #: n, ``(1 or T, K)``
    first: Tensor  #: ``(1 or T, K, D)``
    second: Tensor  #: ``(1 or T, K, D, D)``

    def mix(self, new: Averages, share: float) -> Averages:
        """Move by a share of the way to new statistics about the same origin."""
        mixed = [old + share * (other - old) for old, other in zip(self, new)]
        return Averages(*mixed)._replace(origin=self.origin)

    def as_data(self, event_shape: torch.Size) -> Observed:
        """Sequences of points with these moments, ``(2DK, 1 or T, 1, *event)``, and weights."""
        num_steps, num_states, size = self.first.shape
        weight = self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny).unsqueeze(-1)
        mean = self.first / weight
        covariance = self.second / weight.unsqueeze(-1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        spread = (vectors * (size * values.clamp(min=0.0)).sqrt().unsqueeze(-2)).mT
        about = self.origin + mean.unsqueeze(-2)
        points = torch.cat([about + spread, about - spread], -2)  # (1 or T, K, 2D, D)
        points = points.movedim(0, 2).reshape((-1, num_steps, 1) + event_shape)
        own = torch.eye(num_states, dtype=weight.dtype, device=weight.device)
        weights = self.weight.unsqueeze(-1) / (2 * size) * own  # (1 or T, K, K): of each point
        weights = weights.transpose(0, 1).unsqueeze(1).expand(-1, 2 * size, -1, -1)
        return Observed(points, weights.flatten(0, 1), num_steps > 1)


def read_averages(
    observed: Observed | None, initial: Tensor, moved: Tensor, origin: Tensor | None
) -> Averages:
    """The statistics of one minibatch.

    :param observed: its data with the E-step's weights; None where no closed form needs them.
    :param initial: gamma at the first step, ``(..., K)``.
    :param moved: summed xi, ``(..., 1 or T-1, K, K)``.
    :param origin: of the values; None for about their mean.
    """
    initial = initial.double().reshape(-1, initial.shape[-1]).sum(0)
    moved = moved.double().reshape((-1,) + moved.shape[-3:]).sum(0)
    num_states = len(initial)
    if observed is None:
        nothing = initial.new_zeros((1, num_states, 0))
        origin = initial.new_zeros(0)
        second = initial.new_zeros((1, num_states, 0, 0))
        return Averages(initial, moved, origin, initial.unsqueeze(0), nothing, second)
    value, weights, varies = observed
    event_dim = value.dim() - weights.dim()
    value = value.squeeze(-1 - event_dim)
    lead = value.shape[: value.dim() - event_dim]
    value = value.reshape(lead + (-1,)).double()  # (..., T, D)
    weights = weights.double()
    if origin is None:
        total = ops.weighted_sums(value, weights)[1].reshape(-1, num_states, value.shape[-1])
        origin = total.sum((0, 1)) / weights.sum()
    # Where the distribution varies in time, each step is a sequence of its own.
    steps = (each.unsqueeze(-2) if varies else each.unsqueeze(-3) for each in (value, weights))
    value, weights = steps  # (..., 1 or T, T or 1, D), (..., 1 or T, T or 1, K)
    weight, total = ops.weighted_sums(value, weights)
    second = ops.weighted_scatter(value, weights, origin.expand(num_states, -1))
    weight, total, second = (
        part.reshape((-1, weights.shape[-3]) + shape).sum(0)
        for part, shape in (
            (weight, weight.shape[-1:]),
            (total, total.shape[-2:]),
            (second, second.shape[-3:]),
        )
    )
    return Averages(initial, moved, origin, weight, total - weight.unsqueeze(-1) * origin, second)
