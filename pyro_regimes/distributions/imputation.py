"""Missing entries of a sequence, estimated from all of its observed ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.distributions import observation


class Imputation(NamedTuple):
    r"""The mean and the variance of every entry given all observed entries.

    Those of a missing entry are of a mixture, over the states, of its distributions given the
    observed entries of its row. With means :math:`m_{tk}`, variances :math:`v_{tk}` and smoothed
    probabilities :math:`\gamma_t(k)` of the states,

    .. math::
        m_t = \sum_k \gamma_t(k)\, m_{tk}, \qquad
        v_t = \sum_k \gamma_t(k) \left(v_{tk} + (m_{tk} - m_t)^2\right).

    The mean of an angle is the mean direction of that mixture, and its variance the circular one.
    The moments of a category are those of its number. An observed entry is its own mean, with
    variance 0.
    """

    mean: Tensor  #: in the shape of the value
    variance: Tensor  #: likewise


def impute(
    observation_dist: Distribution,
    value: Tensor,
    filled: Tensor,
    missing: Tensor | None,
    smoothed_probs: Tensor,
) -> Imputation:
    """Impute the missing entries of a value.

    :param observation_dist: batch shape ``(K,)`` or ``(..., 1 or T, K)``.
    :param value: ``(..., T, *event)``; entries that are not missing are kept.
    :param filled: the value with any numbers in the support where entries are missing.
    :param missing: in its shape; None if nothing is.
    :param smoothed_probs: ``(..., T, K)``; 0 for a sequence of probability zero, which has no mean.
    :raises ValueError: if the distribution has no mean or variance of the missing entries.
    """
    if missing is None:
        return Imputation(value, torch.zeros_like(value))
    event_dim = len(observation_dist.event_shape)
    means, variances = observation.moments_of_missing(observation_dist, filled, missing)
    weights = smoothed_probs.masked_fill((smoothed_probs == 0).all(-1, keepdim=True), torch.nan)
    weights = weights.reshape(weights.shape + (1,) * event_dim)

    def average(each: Tensor) -> Tensor:
        # A state that has no part in a row has none in its moments, which may be infinite.
        total: Tensor = torch.where(weights == 0, 0.0, weights * each).sum(-1 - event_dim)
        return total

    mean = average(means)
    spread = (means - mean.unsqueeze(-1 - event_dim)).square()
    variance = average(variances + spread)
    are_angles = observation.are_angles(observation_dist, mean.device)
    if are_angles.any():
        lengths = 1 - variances  # of the mean vectors
        across, along = average(lengths * means.cos()), average(lengths * means.sin())
        mean = torch.where(are_angles, torch.atan2(along, across), mean)
        variance = torch.where(are_angles, 1 - torch.hypot(across, along), variance)
    return Imputation(
        torch.where(missing, mean, value.to(mean.dtype)), torch.where(missing, variance, 0.0)
    )
