r"""The family of failures before a success, ``Geometric(probs)`` or ``Geometric(logits=...)``.

.. math::
    p_k = \frac{\sum_t \gamma_t(k)}{\sum_t \gamma_t(k) (1 + x_t)}
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Geometric

from pyro_regimes.emissions import counts, totals
from pyro_regimes.emissions.base import Arguments, Observed
from pyro_regimes.emissions.logs import Outcomes
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import TrialsFamily, of_successes


class _Family(TrialsFamily):
    """``Geometric(probs)``."""

    distributions = (Geometric, dist.Geometric)

    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        r""":math:`\log p_k + x_t \log (1 - p_k)`."""
        return counts.geometric(value, trial)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Trials:
        """One success for each observation, and its failures."""
        return of_successes(*totals.take(observed))


GEOMETRIC = _Family()
