r"""The family of counts with additional zeros, ``ZeroInflatedPoisson(rate, gate=...)``.

An observation is a structural zero with the probability :math:`\pi_k` (the gate), and otherwise a
count of a Poisson. Whether a zero is structural is hidden. Given a zero it has the probability

.. math:: w_k = \frac{\pi_k}{\pi_k + (1 - \pi_k) e^{-\lambda_k}},

one more expectation of the E-step. With the expected number of structural zeros
:math:`z_k = \sum_t \gamma_t(k) [x_t = 0] w_k` and of all observations
:math:`n_k = \sum_t \gamma_t(k)`

.. math::
    \pi_k = \frac{z_k}{n_k}, \qquad
    \lambda_k = \frac{\sum_t \gamma_t(k) x_t}{n_k - z_k}

(Lambert 1992). The information of the complete data counts whether a zero is structural.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes.emissions import counts, poisson, totals
from pyro_regimes.emissions.arithmetic import over_event
from pyro_regimes.emissions.base import Arguments, Family, Observed
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Totals, Trials
from pyro_regimes.emissions.trials import LOGITS, PROBS, outcomes


class ZeroInflated(NamedTuple):
    """Expected statistics, ``(..., 1 or T, K, *event)``."""

    structural: Tensor  #: number of structural zeros
    counted: Tensor  #: number of the other observations
    total: Tensor  #: weighted sum of the counts


def _reduce_rate(stats: ZeroInflated, given: Arguments, weighted: bool) -> Totals:
    return Totals(stats.counted, stats.total)


def _reduce_gate(stats: ZeroInflated, given: Arguments, weighted: bool) -> Trials:
    return Trials(stats.structural + stats.counted, stats.structural, stats.counted)


RATE = replace(poisson.RATE, reduce=_reduce_rate)
GATE = replace(PROBS, name="gate", what="share of structural zeros", reduce=_reduce_gate)
GATE_LOGITS = replace(LOGITS, name="gate_logits", what=GATE.what, reduce=_reduce_gate)


class _Family(Family):
    """``ZeroInflatedPoisson(rate, gate=...)``, or with ``gate_logits``."""

    distributions = (dist.ZeroInflatedPoisson,)
    max_event_dim = math.inf
    arguments = (RATE, GATE, GATE_LOGITS)

    def read(self, distribution: dist.ZeroInflatedPoisson) -> Arguments:
        """The rate, and the gate or its logits."""
        return {"rate": distribution.rate, **read_given(distribution, "gate", "gate_logits")}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log (\pi_k [x_t = 0] + (1 - \pi_k) e^{-\lambda_k} \lambda_k^{x_t} / x_t!)`."""
        value = value.unsqueeze(-1 - event_dim)
        gate = outcomes(given, "gate", "gate_logits")
        each = counts.zero_inflated(value, counts.poisson(value, given["rate"]), gate)
        return over_event(each, event_dim)

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> ZeroInflated:
        """Expected numbers of zeros of both kinds, and expected counts."""
        gate = outcomes(given, "gate", "gate_logits")
        # The log odds that a zero is structural.
        odds = gate.success - gate.failure + given["rate"].double()
        structural = odds.sigmoid()
        is_zero = observed.value == 0
        dtype = observed.value.dtype
        return ZeroInflated(
            totals.over_time(observed, is_zero * structural.to(dtype)),
            totals.over_time(observed, torch.where(is_zero, (-odds).sigmoid(), 1.0).to(dtype)),
            totals.take(observed).total,
        )


ZERO_INFLATED_POISSON = _Family()
