r"""The family of failures before a success, ``Geometric(probs)`` or ``Geometric(logits=...)``.

.. math::
    p_k = \frac{\sum_t \gamma_t(k)}{\sum_t \gamma_t(k) (1 + x_t)}
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Geometric

from pyro_regimes.emissions import counts, totals
from pyro_regimes.emissions.base import Arguments, Linear, Observed
from pyro_regimes.emissions.logs import Outcomes, outcomes_of_probs
from pyro_regimes.emissions.statistics import Trials
from pyro_regimes.emissions.trials import TrialsFamily, of_successes
from pyro_regimes.kernels.ops import log_in_one_thread


def _read(value: Tensor, event_dim: int) -> Tensor | None:
    """The failures of one observation, and 1."""
    value = value.double().reshape(value.shape[: value.dim() - event_dim] + (-1,))
    if bool(counts.is_no_count(value).any()):
        return None
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def _natural(probs: Tensor, event_dim: int) -> Tensor:
    """The log probabilities of failure, and the sum of those of success."""
    probs = probs.reshape(probs.shape[: probs.dim() - event_dim] + (-1,))
    trial = outcomes_of_probs(probs, log_in_one_thread)
    return torch.cat([trial.failure, trial.success.sum(-1, keepdim=True)], -1)


def _statistics(sums: Tensor, event_shape: torch.Size) -> Trials:
    return of_successes(*totals.of_sums(sums, event_shape))


class _Family(TrialsFamily):
    """``Geometric(probs)``."""

    distributions = (Geometric, dist.Geometric)
    linear = Linear(_read, _natural, _statistics)

    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        r""":math:`\log p_k + x_t \log (1 - p_k)`."""
        return counts.geometric(value, trial)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Trials:
        """One success for each observation, and its failures."""
        return of_successes(*totals.take(observed))


GEOMETRIC = _Family()
