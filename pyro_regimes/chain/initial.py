r"""The closed-form update of the initial distribution.

.. math:: \pi_i = \gamma_1(i)

(equation 28; Baum et al. 1970).
"""

from __future__ import annotations

from dataclasses import replace

import pyro.distributions as dist
from torch.distributions import constraints

from pyro_regimes.chain import rows
from pyro_regimes.chain.rows import ChainCounts
from pyro_regimes.emissions import charts, conjugate, draws, links
from pyro_regimes.emissions.base import Argument, Arguments
from pyro_regimes.emissions.statistics import Counts


def _reduce(stats: ChainCounts, given: Arguments, weighted: bool) -> Counts:
    return Counts(stats.initial)


INITIAL_PROBS = Argument(
    name="initial_probs",
    kind="initial probabilities",
    event_dim=1,
    elementwise=False,
    what="first smoothed probabilities (28)",
    links=links.PROBABILITIES,
    inside=(constraints.simplex, constraints.positive, constraints.nonnegative),
    draw=draws.rows,
    reduce=_reduce,
    maximise=rows.maximise,
    sound=rows.is_sound,
    natural=rows.NATURAL,
    canonical=rows.of_probs,
    priors={"probabilities": {dist.Dirichlet: conjugate.dirichlet}},
    num_own_dims=0,
    chart=charts.ROWS,
)

INITIAL_LOGITS = replace(
    INITIAL_PROBS,
    name="initial_logits",
    canonical=rows.of_logits,
    written=rows.write_logits,
)
