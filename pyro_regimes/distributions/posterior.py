"""The result of smoothing a sequence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Posterior(NamedTuple):
    r"""Probabilities of the hidden path given the data, at each time.

    On padding all three probabilities are 0. For a sequence of probability zero, all smoothed
    probabilities are 0, as are the filtered ones from the first impossible observation on and the
    predicted ones after it.
    """

    log_likelihood: Tensor  #: ``(...)``, :math:`\log p(x)` in nats, float64 for every dtype
    filtered_probs: Tensor  #: ``(..., T, K)``, :math:`p(q_t \mid x_1, \dots, x_t)`
    predicted_probs: Tensor  #: ``(..., T, K)``, :math:`p(q_t \mid x_1, \dots, x_{t-1})`
    smoothed_probs: Tensor  #: ``(..., T, K)``, :math:`\gamma_t = p(q_t \mid x_1, \dots, x_T)`
    #: ``(..., K, K)``, :math:`\sum_t \xi_t`; ``(..., T-1, K, K)`` if transitions vary in time
    expected_transitions: Tensor
