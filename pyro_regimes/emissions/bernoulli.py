r"""The family of events that happen or not, ``Bernoulli(probs)`` or ``Bernoulli(logits=...)``.

.. math::
    p_k = \frac{\sum_t \gamma_t(k) x_t}{\sum_t \gamma_t(k)}
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Bernoulli

from pyro_regimes.emissions import counts, totals
from pyro_regimes.emissions.base import Arguments, Linear, Observed
from pyro_regimes.emissions.logs import Outcomes, outcomes_of_probs
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import TrialsFamily, of_successes
from pyro_regimes.kernels.ops import log_in_one_thread


def _natural(probs: Tensor, event_dim: int) -> Tensor:
    """The log probabilities of failure, category 0, and of success, category 1."""
    trial = outcomes_of_probs(probs, log_in_one_thread)
    return torch.stack([trial.failure, trial.success], -1)


def _statistics(sums: Tensor, event_shape: torch.Size) -> Trials:
    return of_successes(sums[..., 1], sums[..., 0])


class _Family(TrialsFamily):
    """``Bernoulli(probs)``."""

    distributions = (Bernoulli, dist.Bernoulli)
    linear = Linear(counts.categories, _natural, _statistics, is_table=True)

    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        r""":math:`x_t \log p_k + (1 - x_t) \log (1 - p_k)`."""
        return counts.bernoulli(value, trial)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Trials:
        """Expected numbers of events."""
        weight, successes = totals.take(observed)
        _, failures = totals.take(observed._replace(value=1 - observed.value))
        return Trials(weight, successes, failures)


BERNOULLI = _Family()
