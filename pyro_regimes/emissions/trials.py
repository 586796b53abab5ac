r"""Probabilities of success, and families of independent trials.

For s expected successes and f expected failures

.. math:: p = \frac{s}{s + f}

maximises :math:`s \log p + f \log (1 - p)`. The probability is one argument, and its logits are
another one of the same kind.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, predictors
from pyro_regimes.emissions.arithmetic import divide, over_event
from pyro_regimes.emissions.base import Argument, Arguments, Family, Natural
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.logs import Outcomes, outcomes_of_logits, outcomes_of_probs
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Trials


def of_successes(successes: Tensor, failures: Tensor) -> Trials:
    """The statistics of so many successes and failures."""
    return Trials(successes + failures, successes, failures)


def _reduce(stats: Trials, given: Arguments, weighted: bool) -> Trials:
    return stats


def _maximise(pooled: Trials, now: Tensor, floor: float) -> Tensor:
    """The share of successes, inside the unit interval.

    EM cannot change a probability of 0 or 1, and its logarithm has no gradient.
    """
    share = divide(pooled.successes, pooled.weight)
    share = share.masked_fill((pooled.successes < 0) | (pooled.failures < 0), torch.nan)
    known = torch.finfo(now.dtype)
    return torch.where((now > 0) & (now < 1), share.clamp(known.tiny, 1 - known.eps), share)


def _is_sound(probs: Tensor) -> Tensor:
    return (probs >= 0) & (probs <= 1)


# In e, with logits of logit(p) + e: the score is s (1 - p) - f p, the information
# (s + f) p (1 - p).


def _shift(probs: Tensor, by: Tensor) -> Tensor:
    raised = probs * by.exp()
    return raised / (1 - probs + raised)


def _score(pooled: Trials, probs: Tensor) -> Tensor:
    return pooled.successes * (1 - probs) - pooled.failures * probs


def _gain(score: Tensor, pooled: Trials, probs: Tensor, floor: float) -> Tensor:
    information = pooled.weight * probs * (1 - probs)
    # The gradient of the logarithm of a probability of exactly 0 is not known.
    known = (information > 0) & score.isfinite()
    return torch.where(known, 0.5 * score**2 / information.masked_fill(~known, 1.0), 0.0)


def _write_logits(link: Link, cells: Tensor) -> Tensor:
    """Logits of a parameter that holds something else; logits are returned unchanged."""
    return cells if link.forward is torch.sigmoid else torch.logit(link.forward(cells))


def _itself(probs: Tensor) -> Tensor:
    return probs


PROBS = Argument(
    name="probs",
    kind="probability of success",
    event_dim=0,
    elementwise=True,
    what="share of successes",
    links=links.PROBABILITY,
    inside=(constraints.unit_interval, constraints.positive, constraints.nonnegative),
    draw=draws.probability,
    reduce=_reduce,
    maximise=_maximise,
    sound=_is_sound,
    natural=Natural(_shift, _score, _gain),
    why_unbounded=(
        "the trials of a state have one outcome, or nearly, and the prior is unbounded there"
    ),
    priors={
        "probability": {dist.Beta: conjugate.beta},
        "complement": {dist.Beta: conjugate.beta_of_complement},
    },
    chart=charts.PROBABILITY,
    predictors=(predictors.LOGIT_OF_PROBS, predictors.PROBIT_OF_PROBS),
)

LOGITS = replace(
    PROBS,
    name="logits",
    canonical=torch.sigmoid,
    written=_write_logits,
    predictors=(predictors.LOGIT,),
)


def outcomes(given: Arguments, probs: str = "probs", logits: str = "logits") -> Outcomes:
    """Log probabilities of success and of failure."""
    return outcomes_of_logits(given[logits]) if logits in given else outcomes_of_probs(given[probs])


class TrialsFamily(Family):
    """A family whose arguments are a probability or its logits, and others that are known."""

    max_event_dim = math.inf
    arguments: tuple[Argument, ...] = (PROBS, LOGITS)

    def read(self, distribution: Any) -> Arguments:
        """The probability, or its logits."""
        return read_given(distribution)

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The density of the trials, summed over the series of one observation."""
        each = self.density(value.unsqueeze(-1 - event_dim), given, outcomes(given))
        return over_event(each, event_dim)

    @abstractmethod
    def density(self, value: Tensor, given: Arguments, trial: Outcomes) -> Tensor:
        """The log density of each element of ``(..., T, 1, *event)``."""
