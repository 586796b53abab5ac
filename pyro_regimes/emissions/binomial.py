r"""The family of successes in a known number of trials, ``Binomial(total_count, probs)``.

.. math::
    p_k = \frac{\sum_t \gamma_t(k) x_t}{\sum_t \gamma_t(k) n_t}

The number of trials may differ between observations, states and series.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Binomial

from pyro_regimes.emissions import counts, totals
from pyro_regimes.emissions.base import Arguments, Observed, without_update
from pyro_regimes.emissions.logs import Outcomes
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import LOGITS, PROBS, TrialsFamily, of_successes


class _Family(TrialsFamily):
    """``Binomial(total_count, probs)``."""

    distributions = (Binomial, dist.Binomial)
    arguments = (without_update("total_count"), PROBS, LOGITS)

    def read(self, distribution: Any) -> Arguments:
        """The number of trials, and the probability or its logits."""
        return {"total_count": distribution.total_count, **read_given(distribution)}

    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        r""":math:`\log \binom{n_t}{x_t} + x_t \log p_k + (n_t - x_t) \log (1 - p_k)`."""
        tolerance = dist.Binomial.approx_log_prob_tol  # a setting of Pyro
        return counts.binomial(value, given["total_count"], trial, tolerance)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Trials:
        """Expected numbers of successes and of failures."""
        successes = totals.take(observed).total
        failures = totals.over_time(observed, given["total_count"] - observed.value)
        return of_successes(successes, failures)


BINOMIAL = _Family()
