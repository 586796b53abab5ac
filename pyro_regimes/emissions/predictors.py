r"""Arguments as functions of a linear predictor, in which Q is concave.

Let the blocks of an argument be a fixed function of :math:`\eta = J \theta + c`, which is affine in
parameters: generalised linear models (McCullagh and Nelder 1989) of the observations, and
multinomial logits of the hidden chain. With the statistics of a block, Q is

.. math::
    \text{log of a rate of counts} \quad & s \eta - n e^\eta \\
    \text{log of a rate of waiting times} \quad & n \eta - s e^\eta \\
    \text{log of a scale} \quad & -n \eta - \tfrac12 s e^{-2 \eta} \\
    \text{logit of a probability} \quad & s \log \sigma(\eta) + f \log \sigma(-\eta) \\
    \text{probit of a probability} \quad & s \log \Phi(\eta) + f \log \Phi(-\eta) \\
    \text{logits of a row} \quad & \sum_j n_j \eta_j - n \log \sum_j e^{\eta_j}

All are concave, so that Newton's method (iteratively reweighted least squares) finds the maximum in
:math:`\theta`. A probability of exactly 0 in a row stays 0.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_regimes.kernels.ops import logsumexp, safe_log


class Predictor(NamedTuple):
    """A linear predictor of an argument. Statistics are pooled, with one entry for each block."""

    name: str  #: what the linear predictor is of the argument
    #: ``blocks (..., *block) -> eta``, of the same shape; -inf where a rate or a probability is 0
    read: Callable[[Tensor], Tensor]
    #: ``(eta, present blocks) -> blocks``
    write: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Any, Tensor], Tensor]  #: ``(pooled, eta) -> Q`` of each block, ``(blocks,)``
    score: Callable[[Any, Tensor], Tensor]  #: the derivative of Q in eta
    #: ``(pooled, eta, matrix)``: minus the second derivative times a matrix ``(blocks, size, C)``,
    #: where a block has so many entries
    times: Callable[[Any, Tensor, Tensor], Tensor]
    #: How far from 0 eta may be so that the argument keeps its digits, given its dtype.
    reach: Callable[[torch.dtype], float]


def _diagonal(information: Tensor, matrix: Tensor) -> Tensor:
    """The product with a number for each block, which has one entry."""
    return information.reshape(-1, 1, 1) * matrix


def _weighed(weight: Tensor, terms: Tensor) -> Tensor:
    """Products with weights, 0 for a weight of 0 whatever the term is."""
    return torch.where(weight == 0, 0.0, weight * terms)


# ---- rates ---------------------------------------------------------------------------------------


def _exp(eta: Tensor, now: Tensor) -> Tensor:
    """A rate that underflows is the least positive number, unless it was 0."""
    rate = eta.exp().to(now.dtype)
    return torch.where(now > 0, rate.clamp(min=torch.finfo(now.dtype).tiny), rate)


def _reach_of_log(dtype: torch.dtype) -> float:
    return 0.4 * math.log(torch.finfo(dtype).max)


def _count_value(pooled: Any, eta: Tensor) -> Tensor:
    return _weighed(pooled.total, eta) - _weighed(pooled.weight, eta.exp())


def _count_score(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.total - _weighed(pooled.weight, eta.exp())


def _count_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    return _diagonal(_weighed(pooled.weight, eta.exp()), matrix)


#: The logarithm of the rate of counts, with ``Totals``.
LOG_OF_COUNT_RATE = Predictor(
    "log of the rate", safe_log, _exp, _count_value, _count_score, _count_times, _reach_of_log
)


def _waiting_value(pooled: Any, eta: Tensor) -> Tensor:
    return _weighed(pooled.weight, eta) - _weighed(pooled.total, eta.exp())


def _waiting_score(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.weight - _weighed(pooled.total, eta.exp())


def _waiting_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    return _diagonal(_weighed(pooled.total, eta.exp()), matrix)


#: The logarithm of the rate of waiting times, with ``Totals``. That of their mean is minus it.
LOG_OF_WAITING_RATE = Predictor(
    "log of the rate", safe_log, _exp, _waiting_value, _waiting_score, _waiting_times, _reach_of_log
)


# ---- scales --------------------------------------------------------------------------------------


def _scatter_of(pooled: Any, eta: Tensor) -> Tensor:
    """The squares in units of the scale, 0 where there are none."""
    return _weighed(pooled.scatter, (-2 * eta).exp())


def _scale_value(pooled: Any, eta: Tensor) -> Tensor:
    return -_weighed(pooled.weight, eta) - 0.5 * _scatter_of(pooled, eta)


def _scale_score(pooled: Any, eta: Tensor) -> Tensor:
    return _scatter_of(pooled, eta) - pooled.weight


def _scale_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    return _diagonal(2 * _scatter_of(pooled, eta), matrix)


#: The logarithm of the scale of a Normal, with ``Spread``.
LOG_OF_SCALE = Predictor(
    "log of the scale", safe_log, _exp, _scale_value, _scale_score, _scale_times, _reach_of_log
)


# ---- probabilities of success --------------------------------------------------------------------


def _inside(probs: Tensor) -> Tensor:
    """Probabilities whose logits are finite."""
    known = torch.finfo(probs.dtype)
    return probs.clamp(known.tiny, 1 - known.eps / 2)


def _logit(probs: Tensor) -> Tensor:
    return torch.logit(_inside(probs))


def _sigmoid(eta: Tensor, now: Tensor) -> Tensor:
    return eta.sigmoid().to(now.dtype)


def _itself(logits: Tensor) -> Tensor:
    return logits


def _as_logits(eta: Tensor, now: Tensor) -> Tensor:
    return eta.to(now.dtype)


def _reach_of_probs(dtype: torch.dtype) -> float:
    return -0.4 * math.log(torch.finfo(dtype).eps)


def _reach_of_logits(dtype: torch.dtype) -> float:
    return 1e3


def _logit_value(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.successes * logsigmoid(eta) + pooled.failures * logsigmoid(-eta)


def _logit_score(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.successes * (-eta).sigmoid() - pooled.failures * eta.sigmoid()


def _logit_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    total = pooled.successes + pooled.failures
    return _diagonal(total * eta.sigmoid() * (-eta).sigmoid(), matrix)


#: The logits of a probability that is given as such, with ``Trials``.
LOGIT_OF_PROBS = Predictor(
    "logit of the probability",
    _logit,
    _sigmoid,
    _logit_value,
    _logit_score,
    _logit_times,
    _reach_of_probs,
)

#: The same of an argument that holds the logits.
LOGIT = LOGIT_OF_PROBS._replace(read=_itself, write=_as_logits, reach=_reach_of_logits)


def _probit(probs: Tensor) -> Tensor:
    return torch.special.ndtri(_inside(probs))


def _normal_cdf(eta: Tensor, now: Tensor) -> Tensor:
    return torch.special.ndtr(eta).to(now.dtype)


def _reach_of_probit(dtype: torch.dtype) -> float:
    """The tail beyond it has the mass of that beyond :func:`_reach_of_probs`."""
    return float(-torch.special.ndtri(torch.tensor(torch.finfo(dtype).eps ** 0.4).double()))


def _hazard(eta: Tensor) -> Tensor:
    r""":math:`\varphi(\eta) / \Phi(\eta)`."""
    log_density = -0.5 * (eta**2 + math.log(2 * math.pi))
    return (log_density - torch.special.log_ndtr(eta)).exp()


def _probit_value(pooled: Any, eta: Tensor) -> Tensor:
    log_cdf = torch.special.log_ndtr
    return pooled.successes * log_cdf(eta) + pooled.failures * log_cdf(-eta)


def _probit_score(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.successes * _hazard(eta) - pooled.failures * _hazard(-eta)


def _probit_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    up, down = _hazard(eta), _hazard(-eta)
    information = pooled.successes * up * (up + eta) + pooled.failures * down * (down - eta)
    return _diagonal(information.clamp(min=0), matrix)  # in the tails it cancels


#: The normal quantile of a probability that is given as such, with ``Trials``.
PROBIT_OF_PROBS = Predictor(
    "probit of the probability",
    _probit,
    _normal_cdf,
    _probit_value,
    _probit_score,
    _probit_times,
    _reach_of_probit,
)


# ---- rows of probabilities -----------------------------------------------------------------------


def _centred(logs: Tensor) -> Tensor:
    """Log probabilities, up to a constant of each row, less the mean of those above -inf."""
    known = logs > -torch.inf
    finite = logs.masked_fill(~known, 0.0)
    mean = finite.sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    return (finite - mean).masked_fill(~known, -torch.inf)


def _centred_logs(probs: Tensor) -> Tensor:
    return _centred(safe_log(probs))


def _rows_of_logits(eta: Tensor, now: Tensor) -> Tensor:
    return eta.to(now.dtype)


def _rows_of_probs(eta: Tensor, now: Tensor) -> Tensor:
    """A probability that underflows is the least positive number, unless it was 0."""
    probs = eta.softmax(-1).to(now.dtype)
    return torch.where(now > 0, probs.clamp(min=torch.finfo(now.dtype).tiny), probs)


def _rows_value(pooled: Any, eta: Tensor) -> Tensor:
    counts = pooled.counts
    return _weighed(counts, eta).sum(-1) - counts.sum(-1) * logsumexp(eta)


def _rows_score(pooled: Any, eta: Tensor) -> Tensor:
    return pooled.counts - pooled.counts.sum(-1, keepdim=True) * eta.softmax(-1)


def _rows_times(pooled: Any, eta: Tensor, matrix: Tensor) -> Tensor:
    probs = eta.softmax(-1).unsqueeze(-1)
    mean = (probs * matrix).sum(-2, keepdim=True)
    return pooled.counts.sum(-1)[:, None, None] * probs * (matrix - mean)


#: The logits of a row of probabilities, less their mean, with ``Counts``.
LOGITS_OF_ROWS = Predictor(
    "logits of the row",
    _centred_logs,
    _rows_of_probs,
    _rows_value,
    _rows_score,
    _rows_times,
    _reach_of_log,
)

#: The same of an argument that holds the logits.
LOGITS = LOGITS_OF_ROWS._replace(
    read=_centred, write=_rows_of_logits, reach=_reach_of_logits
)
