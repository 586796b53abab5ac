r"""Rows of probabilities, of the hidden chain and of categories.

The maximiser of a row is its normalised counts. For the perturbation
:math:`p_j e^{e_j} / \sum_k p_k e^{e_k}` the score of counts c with the sum n is
:math:`c_j - n p_j`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions import charts, conjugate, draws, links, predictors
from pyro_regimes.emissions.base import Argument, Arguments, Natural
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.statistics import Counts
from pyro_regimes.kernels.ops import log_in_one_thread, logsumexp, safe_log, shares_of


def maximise(pooled: Counts, old: Tensor, floor: float) -> Tensor:
    """Probabilities from expected counts ``(cells, K)``; NaN for a row without counts."""
    return shares_of(pooled.counts, old)


def is_sound(probs: Tensor) -> Tensor:
    """All rows are valid."""
    return ~probs.isnan()


def of_probs(probs: Tensor) -> Tensor:
    """Canonical coordinates of rows of probabilities: normalised, or NaN."""
    return (probs / probs.sum(-1, keepdim=True)).masked_fill(probs < 0, torch.nan)


def of_logits(logits: Tensor) -> Tensor:
    """Canonical coordinates of rows of logits: normalised probabilities."""
    return logits.softmax(-1)


def write_logits(link: Link, cells: Tensor) -> Tensor:
    """Logits of a parameter that holds probabilities; logits are returned unchanged."""
    return cells.log() if link.is_identity else cells


def _perturb(probs: Tensor, by: Tensor) -> Tensor:
    raised = probs * by.exp()
    return raised / raised.sum(-1, keepdim=True)


def _score(pooled: Counts, probs: Tensor) -> Tensor:
    counts = pooled.counts.to(probs.dtype)
    return counts - counts.sum(-1, keepdim=True) * probs


def _gain(score: Tensor, pooled: Counts, probs: Tensor, floor: float) -> Tensor:
    # The gradient of the logarithm of a probability of exactly 0 is not known.
    known = (probs > 0) & score.isfinite()
    weight = pooled.counts.to(probs.dtype).sum(-1, keepdim=True)
    scale = (weight * probs).masked_fill(~known, torch.inf)
    share = torch.where(score == 0, 0.0, 0.5 * score**2 / scale)
    return share.masked_fill(~known, 0.0).sum(-1)


NATURAL = Natural(_perturb, _score, _gain)


def _reduce(stats: Counts, given: Arguments, weighted: bool) -> Counts:
    return stats


PROBS = Argument(
    name="probs",
    kind="probabilities of categories",
    event_dim=1,
    elementwise=True,
    what="shares of the categories",
    links=links.PROBABILITIES,
    inside=(constraints.simplex, constraints.positive, constraints.nonnegative),
    draw=draws.rows,
    reduce=_reduce,
    maximise=maximise,
    sound=is_sound,
    natural=NATURAL,
    canonical=of_probs,
    priors={"probabilities": {dist.Dirichlet: conjugate.dirichlet}},
    is_log_linear=True,
    chart=charts.ROWS,
    predictors=(predictors.LOGITS_OF_ROWS,),
)

#: What differs in an argument that holds logits in place of probabilities.
AS_LOGITS: dict[str, Any] = {
    "canonical": of_logits,
    "written": write_logits,
    "predictors": (predictors.LOGITS,),
}

LOGITS = replace(PROBS, name="logits", **AS_LOGITS)

PROBS_OF_VECTOR = replace(PROBS, elementwise=False)
LOGITS_OF_VECTOR = replace(LOGITS, elementwise=False)


def given_dtype(given: Arguments) -> torch.dtype:
    """The dtype of the probabilities or logits of categories."""
    return given["logits" if "logits" in given else "probs"].dtype


def log_probs(given: Arguments, dtype: torch.dtype | None = None) -> Tensor:
    """Normalised log probabilities of categories, exact for a probability of 0.

    :param dtype: in which they are computed; None for that of the argument.
    """
    if "logits" in given:
        logits = given["logits"].to(dtype or given["logits"].dtype)
        return logits - logsumexp(logits).unsqueeze(-1)
    probs = given["probs"].to(dtype or given["probs"].dtype)
    return safe_log(probs / probs.sum(-1, keepdim=True))


def natural(probs: Tensor, event_dim: int) -> Tensor:
    """The log probabilities of categories, float64, as :attr:`.Linear.natural`."""
    probs = probs.double()
    return log_in_one_thread(probs / probs.sum(-1, keepdim=True))


def of_sums(sums: Tensor, event_shape: torch.Size) -> Counts:
    """The expected counts of categories, as :attr:`.Linear.statistics`."""
    return Counts(sums)
