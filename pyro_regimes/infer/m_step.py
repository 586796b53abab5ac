"""The M-step: expected statistics, pooled over what shares a parameter, and their maximisers.

The updates of the chain itself are

.. math::
    \\pi_i = \\gamma_1(i), \\qquad
    A_{ij} = \\frac{\\sum_{t=1}^{T-1} \\xi_t(i, j)}{\\sum_{t=1}^{T-1} \\sum_j \\xi_t(i, j)}

(equations 28 and 27; Baum et al. 1970). The denominator is the row sum of the summed
:math:`\\xi`: the expected number of transitions that *leave* i, at t = 1 to T - 1. A sum over
:math:`\\gamma_t` for t = 2 to T, as sometimes printed, counts arrivals instead, and rows do not sum
to 1 then. Those of the observations are in :mod:`pyro_regimes.emissions`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.update import Observed
from pyro_regimes.infer.grouping import tail_dim
from pyro_regimes.infer.identity import Role, blocks
from pyro_regimes.infer.parameters import Assignment, Plan
from pyro_regimes.infer.tracing import Site
from pyro_regimes.kernels.ops import Expectations


class Expected(NamedTuple):
    """A site and the expectations of its hidden paths."""

    site: Site
    expectations: Expectations
    weight: Tensor  #: of each sequence, ``(...)``


def normalise_counts(counts: Tensor) -> Tensor:
    """Expected counts ``(cells, K)`` to probabilities; NaN for a state that was never left."""
    total = counts.sum(-1, keepdim=True)
    tiny = torch.finfo(counts.dtype).tiny
    return counts / total.masked_fill(total < tiny, torch.nan)


def keep_alive(probs: Tensor, old: Tensor) -> Tensor:
    """Replace a probability that underflowed to 0 by the least number; keep zeros that stood.

    A zero is for ever: EM never revives it, and a model that takes its logarithm gets NaN
    gradients.
    """
    tiny = torch.finfo(probs.dtype).tiny
    return torch.where(old > 0, probs.clamp(min=tiny), probs)


def maximise(
    plan: Plan, expected: dict[str, Expected], params: dict[str, Tensor], floor: float
) -> tuple[dict[str, Tensor], list[str]]:
    """New values of all parameters, and the names of those that have no maximum somewhere.

    Where a cell has no weight, or no maximum (a covariance that is singular), it keeps its value:
    the objective is not lowered. Locations come before the spreads about them (ECM).

    :param floor: on the eigenvalues of covariances.
    """
    given = {
        name: {
            key: argument.value.to(each.expectations.smoothed_probs.dtype)
            for key, argument in each.site.arguments.items()
        }
        for name, each in expected.items()
    }
    values, unbounded = {}, []
    for each in sorted(plan.assignments, key=lambda each: each.role is not Role.LOCATION):
        old = params[each.name]
        statistics = _pooled_statistics(each, expected, given)
        cells = blocks(old, _event_dim(each))
        if each.update is not None:
            new = each.update.maximise(statistics, floor).reshape(cells.shape).to(old.dtype)
        else:
            before = cells.softmax(-1) if each.logits else cells
            new = keep_alive(normalise_counts(statistics[0]).to(old.dtype), before)
            new = new.log() if each.logits else new
        missing = new.isnan().reshape(len(new), -1).any(-1)
        weight = statistics[0].reshape(len(new), -1).amax(-1)
        if each.update is not None and (missing & (weight > torch.finfo(weight.dtype).tiny)).any():
            unbounded.append(each.name)
        new = torch.where(missing.reshape((-1,) + (1,) * _event_dim(each)), cells, new)
        values[each.name] = new.reshape(old.shape)
        for use in each.uses:
            argument = given[use.site][use.argument]
            filled = blocks(argument, _event_dim(each)).clone()
            where = use.cells.to(filled.device)
            filled[where >= 0] = new[where[where >= 0]].to(filled.dtype)
            given[use.site][use.argument] = filled.reshape(argument.shape)
    return values, unbounded


def _event_dim(assignment: Assignment) -> int:
    return 1 if assignment.update is None else assignment.update.event_dim


def _pooled_statistics(
    each: Assignment, expected: dict[str, Expected], given: dict[str, dict[str, Tensor]]
) -> tuple[Tensor, ...]:
    """Statistics of every block that a cell serves, added up: ``(cells, *block)``."""
    shared = sum(int((use.cells >= 0).sum()) for use in each.uses) > each.num_cells
    total: tuple[Tensor, ...] = ()
    for use in each.uses:
        there = expected[use.site]
        lead_dim = there.weight.dim() + tail_dim(each, there.site)
        lead = there.site.arguments[use.argument].lead
        where = use.cells.to(there.weight.device)
        pooled = []
        for part in _statistics(each, there, given[use.site], shared):
            block = part.shape[lead_dim:]
            part = part.sum_to_size(lead + block).reshape((lead.numel(),) + block)
            cells = part.new_zeros((each.num_cells,) + block)
            pooled.append(cells.index_add(0, where[where >= 0], part[where >= 0]))
        total = tuple(map(torch.add, total, pooled)) if total else tuple(pooled)
    return total


def _statistics(
    each: Assignment, there: Expected, given: dict[str, Tensor], shared: bool
) -> tuple[Tensor, ...]:
    """Expected statistics of one site for every block of one argument."""
    site, expectations, weight = there
    gamma = _weighted(expectations.smoothed_probs, weight[..., None, None])
    if each.role is Role.INITIAL:
        return (gamma[..., 0, :],)
    if each.role is Role.TRANSITION:
        moved = expectations.expected_transitions
        if moved.dim() == weight.dim() + 2:
            moved = moved.unsqueeze(-3)
        return (_weighted(moved, weight[..., None, None, None]),)
    assert each.update is not None
    event_shape = site.hmm.observation_dist.event_shape
    value = site.value.to(gamma.dtype).unsqueeze(-1 - len(event_shape))  # (..., T, 1, *event)
    # As many batch dims as the weights have: a family tells the event's dims by the difference.
    value = value[(None,) * (gamma.dim() + len(event_shape) - value.dim())]
    if site.observation_mask is not None:
        mask = torch.as_tensor(site.observation_mask, device=gamma.device)
        gamma = _weighted(gamma, mask.to(gamma.dtype))
    if site.observation_mask is not None or site.hmm.lengths is not None:
        # Padding and masked observations hold anything, NaN included.
        counted = (gamma != 0).any(-1)
        counted = counted.reshape(counted.shape + (1,) * (1 + len(event_shape)))
        value = torch.where(counted, value, 0.0)
    return each.update.statistics(Observed(value, gamma, site.varies), given, shared)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    """The product, with 0 where the weight is, whatever the value."""
    return torch.where(weight == 0, 0.0, values * weight)
