r"""The family of categories 0, ..., C - 1, ``Categorical(probs)`` or ``Categorical(logits=...)``.

.. math::
    p_k(c) = \frac{\sum_t \gamma_t(k) [x_t = c]}{\sum_t \gamma_t(k)}

An observation is one category, or with ``to_event`` one of each of several variables.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_regimes.emissions import counts, rows
from pyro_regimes.emissions.arithmetic import over_event
from pyro_regimes.emissions.base import Arguments, Family, Linear, Observed
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Counts


class _Family(Family):
    """``Categorical(probs)``."""

    distributions = (Categorical, dist.Categorical)
    max_event_dim = math.inf
    arguments = (rows.PROBS, rows.LOGITS)
    linear = Linear(counts.categories, rows.natural, rows.of_sums, is_table=True)

    def read(self, distribution: Any) -> Arguments:
        """The probabilities, or their logits."""
        return read_given(distribution)

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log p_k(x_t)`, summed over the variables of one observation."""
        each = counts.categorical(value.unsqueeze(-1 - event_dim), rows.log_probs(given))
        return over_event(each, event_dim)

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of the number of the category, for which torch has NaN."""
        probs = rows.log_probs(given).exp()
        numbers = torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)
        mean = (probs * numbers).sum(-1)
        return mean, (probs * (numbers - mean.unsqueeze(-1)).square()).sum(-1)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Counts:
        """Expected counts of the categories, ``(..., 1 or T, K, *event, C)``."""
        num_categories = given["logits" if "logits" in given else "probs"].shape[-1]
        event_dim, value = observed.event_dim, observed.value
        weights = observed.weights.reshape(observed.weights.shape + (1,) * event_dim)
        index = value.clamp(0, num_categories - 1).long()  # others are impossible: they weigh 0
        weights, index = torch.broadcast_tensors(weights, index)
        if observed.varies:
            found = weights.new_zeros(weights.shape + (num_categories,))
            return Counts(found.scatter_(-1, index.unsqueeze(-1), weights.unsqueeze(-1)))
        time = weights.dim() - 2 - event_dim
        weights, index = weights.movedim(time, -1), index.movedim(time, -1)  # (..., K, *event, T)
        found = weights.new_zeros(weights.shape[:-1] + (num_categories,))
        return Counts(found.scatter_add_(-1, index, weights).unsqueeze(time))


CATEGORICAL = _Family()
