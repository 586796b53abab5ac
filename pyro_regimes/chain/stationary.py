r"""A chain that starts from its stationary distribution: one block over :math:`\pi` and A.

The initial distribution is a function of the transition matrix, and Q in A is

.. math:: Q(A) = \sum_{ij} c_{ij} \log A_{ij} + \sum_i g_i \log \pi_i(A), \qquad \pi = \pi A

with the expected transitions c and the first smoothed probabilities g. It has no closed form and
need not be concave. Let :math:`Z = (I - A + 1 \pi)^{-1}` and :math:`u = Z (g / \pi)`. Then

.. math:: \frac{\partial Q}{\partial A_{ij}} = \frac{c_{ij}}{A_{ij}} + \pi_i u_j

(Schweitzer 1968). :func:`_maximise` makes Newton steps in log A from the better of the old matrix
and the normalised counts, and halves a step that does not raise Q, so that Q never falls. In a long
sequence the second term is small, and two or three steps suffice. For few states on the CPU they
are compiled (:mod:`.kernels.cpu.stationary`). A probability of 0 stays 0, and a
row of a state that is neither left nor the first one stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.chain.transition import TRANSITION_LOGITS, TRANSITION_PROBS
from pyro_regimes.emissions import charts, conjugate, rows
from pyro_regimes.emissions.base import Arguments, Natural
from pyro_regimes.kernels import ops

_MOST_STEPS = 50
_MOST_HALVINGS = 12
_LEAST_GAIN = 1e-15  # of a step, as a share of Q
_LONGEST = 5.0  # step of the logarithm of a probability
LIMITS = _MOST_STEPS, _MOST_HALVINGS, _LEAST_GAIN, _LONGEST


class StationaryCounts(NamedTuple):
    """Expected counts of chains that start from their stationary distribution."""

    transitions: Tensor  #: ``(..., K, K)``
    initial: Tensor  #: ``(..., K)``


def _reduce(stats: ChainCounts, given: Arguments, weighted: bool) -> StationaryCounts:
    return StationaryCounts(stats.transitions, stats.initial.unsqueeze(-2))


def objective(pooled: StationaryCounts, probs: Tensor) -> Tensor:
    """Q of each matrix, ``(cells,)``; -inf where an entry of 0 has counts."""
    initial = ops.stationary_probs(probs)
    return torch.xlogy(pooled.transitions, probs).sum((-2, -1)) + torch.xlogy(
        pooled.initial, initial
    ).sum(-1)


class _Initial(NamedTuple):
    """What the derivatives of the second term of Q are made of."""

    probs: Tensor  #: pi, ``(cells, K)``
    inverse: Tensor  #: Z, ``(cells, K, K)``
    along: Tensor  #: u, ``(cells, K)``

    @classmethod
    def at(cls, initial_counts: Tensor, probs: Tensor) -> _Initial:
        """At the transition matrices ``probs``."""
        initial = ops.stationary_probs(probs)
        eye = torch.eye(probs.shape[-1], dtype=probs.dtype, device=probs.device)
        inverse = torch.linalg.inv(eye - probs + initial.unsqueeze(-2))
        ratio = torch.where(initial_counts > 0, initial_counts / initial, 0.0)
        return cls(initial, inverse, (inverse @ ratio.unsqueeze(-1)).squeeze(-1))

    def score(self, probs: Tensor) -> Tensor:
        """The derivative in log A, ``(cells, K, K)``; its rows sum to 0."""
        return self.probs.unsqueeze(-1) * _centred(self.along.unsqueeze(-2), probs)


def _centred(values: Tensor, probs: Tensor) -> Tensor:
    """Values less their mean in each row, times the row's probabilities."""
    return probs * (values - (probs * values).sum(-1, keepdim=True))


def counts_at(pooled: StationaryCounts, probs: Tensor) -> Tensor:
    r"""Counts n of transitions, of which the derivative of :math:`\sum n \log A` at A is that of Q.

    .. math:: n_{ij} = c_{ij} + \pi_i A_{ij} (u_j - \min_k u_k + \textstyle\sum_k g_k) \ge 0

    A constant in u does not change the derivative, as the rows of A keep their sums. Here it makes
    the counts those of about one more transition of each chain.

    :param probs: A, ``(cells, K, K)``, float64.
    """
    at = _Initial.at(pooled.initial.double(), probs)
    along = at.along - at.along.amin(-1, keepdim=True)
    along = (along + pooled.initial.double().sum(-1, keepdim=True)).unsqueeze(-2)
    return pooled.transitions.double() + at.probs.unsqueeze(-1) * probs * along


def _score(pooled: StationaryCounts, probs: Tensor) -> Tensor:
    pooled = StationaryCounts(*(part.to(probs.dtype) for part in pooled))
    counts = pooled.transitions
    own = counts - counts.sum(-1, keepdim=True) * probs
    return own + _Initial.at(pooled.initial, probs).score(probs)


def _hessian(pooled: StationaryCounts, probs: Tensor, at: _Initial) -> Tensor:
    """The derivative of the score in log A, ``(cells, K K, K K)``; symmetric."""
    size = probs.shape[-1]
    basis = torch.eye(size * size, dtype=probs.dtype, device=probs.device)
    direction = basis.reshape(size * size, size, size)  # of log A, in front of the cells
    moved = _centred(direction.unsqueeze(1), probs)  # of A, (K K, cells, K, K)
    initial = ((at.probs.unsqueeze(-2) @ moved) @ at.inverse).squeeze(-2)
    of_ratio = torch.where(pooled.initial > 0, pooled.initial / at.probs**2, 0.0) * initial
    change = (moved @ at.along.unsqueeze(-1)).squeeze(-1)  # -dM u, M the inverse of Z
    change = change - (initial * at.along).sum(-1, keepdim=True) - of_ratio
    along = (at.inverse @ change.unsqueeze(-1)).squeeze(-1)
    centred = at.along.unsqueeze(-2) - (probs @ at.along.unsqueeze(-1))
    found = initial.unsqueeze(-1) * probs * centred
    of_along = _centred(along.unsqueeze(-2), probs)
    found = found + at.probs.unsqueeze(-1) * (moved * centred + of_along)
    found = found - at.probs.unsqueeze(-1) * probs * (moved * at.along.unsqueeze(-2)).sum(
        -1, keepdim=True
    )
    found = found - pooled.transitions.sum(-1, keepdim=True) * moved
    return found.movedim(0, -1).reshape(len(probs), size * size, size * size)


def _ascent(
    pooled: StationaryCounts, probs: Tensor, free: Tensor, is_plain: Tensor
) -> tuple[Tensor, Tensor]:
    """A direction of log A in which Q rises, and the rise that it promises, ``(cells,)``.

    It is Newton's where Q is concave. Elsewhere curvatures count by their absolute values, or, if
    that does not help (``is_plain``), the direction is the score over the first term's information.
    """
    at = _Initial.at(pooled.initial, probs)
    counts = pooled.transitions
    weight = counts.sum(-1, keepdim=True)
    score = counts - weight * probs + at.score(probs)
    score = torch.where(free, score, 0.0).flatten(-2)
    known = weight + pooled.initial.unsqueeze(-1)
    scale = torch.where(free, (known * probs).clamp(min=1e-300).rsqrt(), 0.0).flatten(-2)
    curvature = -_hessian(pooled, probs, at) * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    along = vectors.mT @ (scale * score).unsqueeze(-1)
    step = vectors @ (along / values.abs().clamp(min=1e-3).unsqueeze(-1))
    newton, plain = (
        (scale * each).clamp(-_LONGEST, _LONGEST) for each in (step.squeeze(-1), scale * score)
    )
    gain = (score * newton).sum(-1)
    is_plain = is_plain | ~(gain > 0)
    gain = torch.where(is_plain, (score * plain).sum(-1), gain)
    direction = torch.where(is_plain.unsqueeze(-1), plain, newton)
    return direction.reshape(probs.shape), gain


def _maximise(pooled: StationaryCounts, old: Tensor, floor: float) -> Tensor:
    """Transition matrices ``(cells, K, K)`` that maximise Q."""
    found = ops.maximise_stationary(*pooled, old, LIMITS)
    if found is None:
        return _climb(pooled, old)
    rest = ~found[1]
    if bool(rest.any()):
        found[0][rest] = _climb(StationaryCounts(*(part[rest] for part in pooled)), old[rest])
    return found[0]


def _climb(pooled: StationaryCounts, old: Tensor) -> Tensor:
    """The same by tensor operations."""
    wide = StationaryCounts(*(part.double() for part in pooled))
    before = old.double()
    before = before / before.sum(-1, keepdim=True)
    kept = before > 0
    counts = torch.where(kept, wide.transitions, 0.0)
    wide = wide._replace(transitions=counts)
    weight = counts.sum(-1) + wide.initial  # of a state that is left, or the first one
    visited = (weight > torch.finfo(torch.float64).tiny).unsqueeze(-1)
    is_left = counts.sum(-1, keepdim=True) > torch.finfo(torch.float64).tiny
    tiny = torch.finfo(old.dtype).tiny
    now = torch.where(is_left, counts / counts.sum(-1, keepdim=True), before)
    now = torch.where(kept, now.clamp(min=tiny), 0.0)
    value, value_before = objective(wide, now), objective(wide, before)
    worse = ~(value >= value_before)
    now = torch.where(worse[:, None, None], before, now)
    value = torch.where(worse, value_before, value)
    moving, is_plain = torch.ones_like(worse), torch.zeros_like(worse)
    for _ in range(_MOST_STEPS):
        direction, gain = _ascent(wide, now, visited & kept, is_plain)
        moving = moving & (gain > _LEAST_GAIN * (1 + value.abs()))
        if not bool(moving.any()):
            break
        size, todo = torch.ones_like(value), moving
        for _ in range(_MOST_HALVINGS):
            raised = now * (size[:, None, None] * direction).exp()
            tried = raised / raised.sum(-1, keepdim=True)
            there = objective(wide, tried)
            better = todo & (there >= value + 1e-4 * size * gain)
            now = torch.where(better[:, None, None], tried, now)
            value = torch.where(better, there, value)
            todo = todo & ~better
            if not bool(todo.any()):
                break
            size = torch.where(todo, size / 2, size)
        moving = moving & ~(todo & is_plain)
        is_plain = todo
    found = torch.where(kept, now.to(old.dtype).clamp(min=tiny), 0.0)
    return torch.where(visited, found, old)


def _gain(score: Tensor, pooled: StationaryCounts, probs: Tensor, floor: float) -> Tensor:
    return rows.NATURAL.gain(score, rows_of(pooled), probs, floor).sum(-1)


def rows_of(pooled: StationaryCounts) -> conjugate.Counts:
    """The expected transitions alone, by rows."""
    return conjugate.Counts(pooled.transitions)


def _dirichlet(
    prior: dist.Dirichlet, given: torch.Size, shape: torch.Size, event_dim: int
) -> StationaryCounts:
    """The terms of a Dirichlet prior of the rows."""
    counts = conjugate.dirichlet(prior, given, shape, event_dim).counts
    return StationaryCounts(counts, torch.zeros_like(counts[..., 0]))


STATIONARY_PROBS = replace(
    TRANSITION_PROBS,
    kind="transition probabilities with a stationary start",
    event_dim=2,
    what="expected transitions and a stationary start, by Newton's method",
    reduce=_reduce,
    maximise=_maximise,
    natural=Natural(rows.NATURAL.perturb, _score, _gain),
    priors={"probabilities": {dist.Dirichlet: _dirichlet}},
    num_own_dims=1,
    chart=charts.TRANSITIONS,
    predictors=(),
)

STATIONARY_LOGITS = replace(
    STATIONARY_PROBS,
    name="transition_logits",
    canonical=TRANSITION_LOGITS.canonical,
    written=TRANSITION_LOGITS.written,
)

#: The block over both for the argument of the transitions alone.
OF_TRANSITION = {TRANSITION_PROBS: STATIONARY_PROBS, TRANSITION_LOGITS: STATIONARY_LOGITS}
