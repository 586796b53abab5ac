r"""The closed-form update of the initial distribution.

.. math:: \pi_i = \gamma_1(i)

(equation 28; Baum et al. 1970).
"""

from __future__ import annotations

from dataclasses import replace

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.emissions import rows
from pyro_regimes.emissions.base import Arguments
from pyro_regimes.emissions.statistics import Counts


def _reduce(stats: ChainCounts, given: Arguments, weighted: bool) -> Counts:
    return Counts(stats.initial)


INITIAL_PROBS = replace(
    rows.PROBS,
    name="initial_probs",
    kind="initial probabilities",
    elementwise=False,
    what="first smoothed probabilities (28)",
    reduce=_reduce,
    num_own_dims=0,
)

INITIAL_LOGITS = replace(INITIAL_PROBS, name="initial_logits", **rows.AS_LOGITS)
