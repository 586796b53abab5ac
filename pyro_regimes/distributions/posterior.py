"""What smoothing a sequence returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Posterior(NamedTuple):
    r"""Every probability of the hidden path given the data, by time.

    On padding all three probabilities are 0; so are the smoothed ones of a sequence of
    probability zero, the filtered ones from the observation on at which it became impossible,
    and the predicted ones after that.
    """

    log_likelihood: Tensor  #: ``(...)``, :math:`\log p(x)` in nats, float64 whatever the dtype
    filtered_probs: Tensor  #: ``(..., T, K)``, :math:`p(q_t \mid x_1, \dots, x_t)`
    predicted_probs: Tensor  #: ``(..., T, K)``, :math:`p(q_t \mid x_1, \dots, x_{t-1})`
    smoothed_probs: Tensor  #: ``(..., T, K)``, :math:`\gamma_t = p(q_t \mid x_1, \dots, x_T)`
    #: ``(..., K, K)``, :math:`\sum_t \xi_t`; ``(..., T-1, K, K)`` where transitions vary in time
    expected_transitions: Tensor
