r"""The closed-form update of the transition matrix.

.. math::
    A_{ij} = \frac{\sum_{t=1}^{T-1} \xi_t(i, j)}{\sum_{t=1}^{T-1} \sum_j \xi_t(i, j)}

(equation 27; Baum et al. 1970). The denominator is the row sum of the summed :math:`\xi`, which is
the expected number of transitions that *leave* i, at t = 1 to T - 1. Some texts sum
:math:`\gamma_t` for t = 2 to T instead. This counts arrivals, and the rows do not sum to 1.
"""

from __future__ import annotations

from dataclasses import replace

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.chain.initial import INITIAL_PROBS
from pyro_regimes.emissions import rows
from pyro_regimes.emissions.base import Arguments
from pyro_regimes.emissions.statistics import Counts


def _reduce(stats: ChainCounts, given: Arguments, weighted: bool) -> Counts:
    return Counts(stats.transitions)


TRANSITION_PROBS = replace(
    INITIAL_PROBS,
    name="transition_probs",
    kind="transition probabilities",
    what="row sums of expected transitions (27)",
    reduce=_reduce,
    num_own_dims=2,
)

TRANSITION_LOGITS = replace(TRANSITION_PROBS, name="transition_logits", **rows.AS_LOGITS)
