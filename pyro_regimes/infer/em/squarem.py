r"""Extrapolation of EM's steps (squared iterative methods).

Two steps of EM lead from :math:`\theta_0` to :math:`\theta_1` and :math:`\theta_2`. With
:math:`r = \theta_1 - \theta_0`, :math:`v = \theta_2 - 2 \theta_1 + \theta_0` and
:math:`\alpha = -\max(1, |r| / |v|)`, the next point is

.. math:: \theta_0 - 2 \alpha r + \alpha^2 v

(Varadhan and Roland 2008, step length S3). It is :math:`\theta_2` for :math:`\alpha = -1`. A point
whose objective is below that of :math:`\theta_1` is rejected, and the step is :math:`\theta_2`, so
that the objective never falls. Then the next :math:`|\alpha|` is at most a quarter of the rejected
one, and each success at this bound raises the bound fourfold.

Convergence is tested after steps of EM only, because an extrapolated step may gain little by
chance.

Each restart has its own :math:`\alpha` and bound. Coordinates are those of the arguments' charts
(:mod:`pyro_regimes.emissions.charts`). Parameters without a chart make EM's step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.emissions.base import blocks
from pyro_regimes.infer.em.e_step import Expected
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.m_step import Maximised, as_stored_after, is_sound
from pyro_regimes.infer.em.problem import Array, Flags, Params, Problem, TensorState
from pyro_regimes.infer.em.recognise.plan import Assignment

#: Steps that differ by less than this share of their length are not extrapolated.
_STRAIGHT = 1e-12

#: The factor of a bound of the extrapolation after a failure, or after a success at the bound.
_FACTOR = 4.0


def next_bounds(bounds: Array, lengths: Array, rejected: Flags) -> Array:
    r"""The bounds of the next :math:`|\alpha|` of each restart, ``(R,)``.

    :param lengths: the :math:`|\alpha|` tried; 1 is a step of EM, and 0 where none was considered.
    :param rejected: the restarts whose extrapolation was rejected.
    """
    raised = np.where((lengths > 0) & (lengths >= bounds), _FACTOR * bounds, bounds)
    lowered: Array = np.maximum(lengths / _FACTOR, 1.0)
    return np.where(rejected, lowered, raised)


class Proposal(NamedTuple):
    """An extrapolated step of some restarts."""

    values: Params
    leaves: Params  #: what the store holds of those that are positive definite
    lengths: Array  #: :math:`|\\alpha|` of each restart, ``(R,)``, as in :func:`next_bounds`

    @property
    def which(self) -> Flags:
        """The restarts that are extrapolated, ``(R,)``."""
        extrapolated: Flags = self.lengths > 1
        return extrapolated

    def replace(self, groups: Groups, found: Maximised) -> tuple[Params, Params]:
        """Parameters after the step, and as stored: those of EM's step elsewhere."""
        if not self.which.any():
            return found.values, found.leaves
        values, leaves = dict(found.values), dict(found.leaves)
        for mixed, own in ((values, self.values), (leaves, self.leaves)):
            for name, value in own.items():
                mixed[name] = groups.choose(name, self.which, value, mixed[name])
        return values, leaves


class Squarem:
    """The memory of one run: the parameters before the last step, and the bounds."""

    def __init__(self) -> None:
        self._before: Params = {}
        self._armed: Flags = np.empty(0, dtype=np.bool_)  # whether the last step was one of EM
        self._bounds: Array = np.empty(0)

    def propose(
        self, problem: Problem, now: TensorState, after: Params, free: Flags
    ) -> Proposal:
        """Extrapolate from the parameters before the last step, now, and after a step of EM.

        :param free: the restarts that this step moves, ``(R,)``.
        """
        values: Params = {}
        leaves: Params = {}
        if len(self._armed) != len(free) or now.params.keys() != self._before.keys():
            self._armed, self._bounds = np.zeros_like(free), np.full(len(free), np.inf)
        considered, lengths = free & self._armed, np.zeros(len(free))
        if considered.any():
            values, leaves, found = _extrapolate(problem, self._before, now, after, self._bounds)
            lengths = np.where(considered, found, lengths)
        proposal = Proposal(values, leaves, lengths)
        self._before, self._armed = now.params, free & ~proposal.which
        return proposal

    def judge(self, proposal: Proposal, rejected: Flags) -> Proposal:
        """What is left of a proposal, part of which was rejected."""
        self._bounds = next_bounds(self._bounds, proposal.lengths, rejected)
        return proposal._replace(lengths=np.where(rejected, 0.0, proposal.lengths))


def _extrapolate(
    problem: Problem, before: Params, now: TensorState, after: Params, most: Array
) -> tuple[Params, Params, Array]:
    r"""The extrapolated parameters, what the store holds of some, and :math:`|\alpha|`.

    It is 0 in a restart where it is not known, or where a parameter would no longer be valid, such
    as a covariance that becomes singular in rounding.
    """
    groups = problem.groups
    squares = torch.zeros(2, groups.num_restarts, dtype=torch.float64, device="cpu")
    moves = {}
    for each in problem.plan.assignments:
        if each.argument.chart is None or each.name in problem.constraints:
            continue
        start, middle, end = (_point(each, params) for params in (before, now.params, after))
        step = middle - start
        bend = end - middle - step
        still = _is_still(each, before, now.params, after)
        if still.any():  # also what is no valid cell, as no argument uses it
            for part in (step, bend):
                part[still] = 0.0
        moves[each.name] = start, step, bend, still
        unit = _unit(each, {**now.expected, **problem.priors})
        cells = groups.cells[each.name].cpu()
        for total, part in zip(squares, (step, bend), strict=True):
            lengths = (part / unit).square().reshape(len(part), -1).sum(-1)
            total.index_add_(0, cells, lengths.cpu())
    step_length, bend_length = squares.sqrt()
    known = (bend_length > _STRAIGHT * step_length) & bend_length.isfinite()
    length = (step_length / bend_length).clamp(min=1.0).minimum(torch.from_numpy(most))
    values, leaves = {}, {}
    for each in problem.plan.assignments:
        if each.name not in moves:
            continue
        start, step, bend, still = moves[each.name]
        cells = groups.cells[each.name]
        own = length.to(start.device)[cells].reshape((-1,) + (1,) * (start.dim() - 1))
        found = _value(each, start + 2 * own * step + own**2 * bend, after, problem)
        given = blocks(after[each.name], each.event_dim)
        finite = (found.isfinite() | (found == given)).reshape(len(start), -1).all(-1)
        finite = finite | still
        if still.any():  # without the rounding of its coordinates
            found = found.clone()
            found[still] = given[still]
        value = found.reshape(after[each.name].shape)
        if each.name in now.leaves:
            stored = as_stored_after(value, now.params[each.name], now.leaves[each.name])
            value, leaves[each.name] = stored
        valid = finite & (is_sound(each, blocks(value, each.event_dim)) | still)
        known[cells.cpu()[~valid.cpu()]] = False
        values[each.name] = value
    return values, leaves, length.where(known, 0.0).numpy()


def _is_still(each: Assignment, *params: Params) -> Tensor:
    """Which cells have the same value in all of some parameters, ``(cells,)``."""
    first, *others = (blocks(every[each.name], each.event_dim) for every in params)
    same = torch.ones_like(first, dtype=torch.bool)
    for other in others:
        same &= (first == other) | (first.isnan() & other.isnan())
    return same.reshape(len(first), -1).all(-1)


def _point(each: Assignment, params: Params) -> Tensor:
    """The coordinates of a parameter, ``(cells, ...)``, float64."""
    assert each.argument.chart is not None
    cells = blocks(params[each.name].detach().double(), each.event_dim)
    return each.argument.chart.to(each.link.forward(cells))


def _value(each: Assignment, point: Tensor, like: Params, problem: Problem) -> Tensor:
    """The cells of a parameter with these coordinates, above the floor of covariances.

    :param like: the parameters after a step of EM.
    """
    chart = each.argument.chart
    assert chart is not None
    held = chart.of(point)
    if chart.within is not None:
        held = chart.within(held, each.link.forward(blocks(like[each.name], each.event_dim)))
    if problem.min_eigenvalue > 0:
        finite = held.isfinite().reshape(len(held), -1).all(-1)
        held[finite] = each.argument.feasible(held[finite], problem.min_eigenvalue)
    return each.link.inverse(held).to(like[each.name].dtype)


def _unit(each: Assignment, expected: dict[str, Expected]) -> Tensor | float:
    """The units of a parameter's coordinates: those of the first block that each cell serves."""
    assert each.argument.chart is not None
    if each.argument.chart.unit is None:
        return 1.0
    use = each.uses[0]
    given = expected[use.site].arguments
    unit = _of_shape(given[use.argument].shape, each.argument.chart.unit(given).double())
    parts = blocks(unit, each.event_dim)
    cells = use.cells.to(parts.device)
    first = torch.zeros(each.num_cells, dtype=torch.long, device=parts.device)
    last = torch.arange(len(cells) - 1, -1, -1, device=parts.device)
    first[cells.flip(0)[cells.flip(0) >= 0]] = last[cells.flip(0) >= 0]
    return parts[first]


def _of_shape(shape: torch.Size, unit: Tensor) -> Tensor:
    """Units for an argument: the first along the dims over which it is broadcast, as over time."""
    while unit.dim() > len(shape):
        unit = unit[0]
    for dim in range(-unit.dim(), 0):
        if shape[dim] == 1:
            unit = unit.narrow(dim, 0, 1)
    return unit.expand(shape)
