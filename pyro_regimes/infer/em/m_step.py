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

from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.distributions import LowerCholeskyTransform, constraints, transform_to

from pyro_regimes.emissions.links import noise
from pyro_regimes.emissions.roles import Role
from pyro_regimes.infer.em.e_step import Arguments, Expected
from pyro_regimes.infer.em.grouping import tail_dim
from pyro_regimes.infer.em.recognise.affine import Affine, solve
from pyro_regimes.infer.em.recognise.identity import blocks
from pyro_regimes.infer.em.recognise.jacobian import gram
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan, Use
from pyro_regimes.infer.em.recognise.priors import Statistics

_LOWER_CHOLESKY = LowerCholeskyTransform()


class Maximised(NamedTuple):
    """What an M-step finds."""

    values: dict[str, Tensor]  #: of the parameters, as the store will give them
    leaves: dict[str, Tensor]  #: what the store holds of those that are positive definite
    arguments: dict[str, Arguments]  #: of the sites, holding these values
    #: for each parameter, whether it has no maximum in some cell that has weight
    unbounded: dict[str, Tensor]
    idle: dict[str, Tensor]  #: and whether it has some cell without weight, which stays as it is


def normalise_counts(counts: Tensor) -> Tensor:
    """Expected counts ``(cells, K)`` to probabilities; NaN for a state that was never left."""
    total = counts.sum(-1, keepdim=True)
    tiny = torch.finfo(counts.dtype).tiny
    return counts / total.masked_fill(total < tiny, torch.nan)


def update_probs(counts: Tensor, old: Tensor) -> Tensor:
    """Probabilities from expected counts ``(cells, K)``; NaN for a state that was never left.

    A probability that underflowed to 0 becomes the least number, unless it was 0 before. A zero is
    for ever: EM never revives it, and a model that takes its logarithm gets NaN gradients.
    """
    tiny = torch.finfo(old.dtype).tiny
    probs = (counts / counts.sum(-1, keepdim=True)).to(old.dtype)
    if probs.device.type == "cpu" and bool((probs > tiny).all()):
        return probs  # there is nothing of the kind; elsewhere to look costs more than to go on
    probs = normalise_counts(counts).to(old.dtype)
    return torch.where(old > 0, probs.clamp(min=tiny), probs)


def maximise(
    plan: Plan,
    expected: dict[str, Expected],
    params: dict[str, Tensor],
    leaves: dict[str, Tensor],
    floor: float,
    pseudo: dict[str, Statistics],
    keep: Callable[[str, Tensor, Tensor], Tensor],
) -> Maximised:
    """New values of all parameters, each given those before it in the plan.

    Where a cell has no weight, or no maximum (a covariance that is singular, also once it has been
    rounded on its way through the store), it keeps its value: the objective is not lowered.
    Locations come before the spreads about them (ECM).

    :param params: the present values.
    :param leaves: of the positive definite ones, what the store holds.
    :param floor: on the eigenvalues of covariances.
    :param pseudo: what conjugate priors add to the statistics of a parameter.
    :param keep: from a name, the old and the new value, the one that is to count.
    """
    arguments = {name: dict(each.arguments) for name, each in expected.items()}
    values, stored, unbounded, idle = {}, {}, {}, {}
    if plan.affine.names:
        values = _solve_affine(plan.affine, expected, params, arguments, pseudo)
        values = {name: keep(name, params[name], value) for name, value in values.items()}
        fill_affine(plan.affine, values, params, arguments)
    for each in plan.order:
        old = params[each.name]
        statistics = pooled_statistics(each, expected, arguments)
        if each.name in pseudo:
            statistics = tuple(map(torch.add, statistics, pseudo[each.name]))
        cells = blocks(old, each.event_dim)
        if each.update is not None:
            new = each.update.maximise(statistics, floor).reshape(cells.shape)
        else:
            new = update_probs(statistics[0], each.link.forward(cells))
        new = each.link.inverse(new).to(old.dtype)
        leaf = leaves.get(each.name)
        if leaf is not None:
            new, stored[each.name] = _as_cells(as_stored(new.reshape(old.shape)), cells.shape)
        missing = ~is_sound(each, new)
        if missing.device.type != "cpu" or bool(missing.any()):
            weight = statistics[0].reshape(len(new), -1).amax(-1)
            counted = weight > torch.finfo(weight.dtype).tiny
            unbounded[each.name] = (missing & counted).any()
            idle[each.name] = (missing & ~counted).any()
            missing = missing.reshape((-1,) + (1,) * each.event_dim)
            new = torch.where(missing, cells, new)
            if leaf is not None:
                before = leaf.reshape(cells.shape)
                stored[each.name] = torch.where(missing, before, stored[each.name])
        values[each.name] = keep(each.name, old, new.reshape(old.shape))
        if leaf is not None:
            stored[each.name] = keep(each.name, leaf, stored[each.name].reshape(old.shape))
        fill_arguments(each, values[each.name], arguments)
    return Maximised(values, stored, arguments, unbounded, idle)


def as_stored(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A positive definite parameter as it is read from the store, and what the store holds.

    That is the Cholesky factor with the logarithm of its diagonal, in which the last digits are
    lost that decide about the likelihood of a matrix near singularity. NaN where it has none.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    factor = factor.masked_fill((info != 0)[..., None, None], torch.nan)
    leaf = _LOWER_CHOLESKY._inverse(factor)
    return transform_to(constraints.positive_definite)(leaf), leaf


def _as_cells(tensors: tuple[Tensor, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
    one, other = tensors
    return one.reshape(shape), other.reshape(shape)


def is_sound(each: Assignment, cells: Tensor) -> Tensor:
    """For each cell whether it is a number at which the model can be run."""
    sound = ~cells.isnan()
    if each.update is not None:
        held = each.link.forward(cells)
        admitted = each.update.sound(held)
        if not each.link.is_identity and each.event_dim == 2:
            # A plan holds as long as the model and EM agree on what the link makes of the matrix.
            stable = noise(each.link, cells, held) <= torch.finfo(cells.dtype).eps ** 0.5
            admitted = admitted & stable
        sound = sound & admitted.reshape(admitted.shape + (1,) * (cells.dim() - admitted.dim()))
    return sound.reshape(len(cells), -1).all(-1)


def fill_arguments(each: Assignment, value: Tensor, arguments: dict[str, Arguments]) -> None:
    """Put a parameter's cells where they stand in the arguments of the sites."""
    for use in each.uses:
        argument = arguments[use.site][use.argument]
        if each.role.is_chain and use.argument.endswith("_logits"):
            new = value.log() if each.link.is_identity else value
        else:
            new = each.link.forward(value)
        new = new.to(argument.dtype)
        if not use.whole:
            cells, where = blocks(new, each.event_dim), use.cells.to(new.device)
            new = blocks(argument, each.event_dim).clone()
            new[where >= 0] = cells[where[where >= 0]]
        arguments[use.site][use.argument] = new.reshape(argument.shape)


def fill_affine(
    affine: Affine,
    values: dict[str, Tensor],
    old: dict[str, Tensor],
    arguments: dict[str, Arguments],
) -> None:
    """Move the locations as their parameters have moved."""
    if not affine.names:
        return
    moved = affine.flat(values) - affine.flat(old)
    for use in affine.uses:
        argument = arguments[use.site][use.argument]
        change = (use.jacobian @ moved).reshape(argument.shape)
        arguments[use.site][use.argument] = argument + change.to(argument.dtype)


def normal_equations(
    affine: Affine,
    expected: dict[str, Expected],
    params: dict[str, Tensor],
    arguments: dict[str, Arguments],
    pseudo: dict[str, Statistics],
) -> tuple[Tensor, Tensor]:
    """Of the weighted least squares: the matrix, and the right side."""
    start = affine.flat(params)
    normal, right = start.new_zeros((len(start), len(start))), torch.zeros_like(start)
    for use in affine.uses:
        there = expected[use.site]
        given = arguments[use.site]
        site = there.data.site
        assert site.family is not None
        update = next(each for each in site.family.UPDATES if each.argument == use.argument)
        tail = 2 + (len(site.hmm.observation_dist.event_shape) if update.elementwise else 0)
        lead_dim = len(there.batch_shape) + tail
        lead = site.arguments[use.argument].lead
        statistics = tuple(
            _to_lead(part, lead_dim, lead)
            for part in update.statistics(there.observed(), given, True)
        )
        constant = given[use.argument].double().flatten() - use.jacobian @ start
        more_normal, more_right = gram(use.jacobian, statistics, constant)
        normal, right = normal + more_normal, right + more_right
    for name in affine.priors:
        affine.add_prior(name, pseudo[name], normal, right)
    return normal, right


def _solve_affine(
    affine: Affine,
    expected: dict[str, Expected],
    params: dict[str, Tensor],
    arguments: dict[str, Arguments],
    pseudo: dict[str, Statistics],
) -> dict[str, Tensor]:
    """The parameters in which locations are affine, by weighted least squares."""
    normal, right = normal_equations(affine, expected, params, arguments, pseudo)
    start = affine.flat(params)
    found = solve(normal, right, start)
    return affine.unflat(torch.where(found.isfinite(), found, start), params)


def pooled_statistics(
    each: Assignment, expected: dict[str, Expected], arguments: dict[str, Arguments]
) -> tuple[Tensor, ...]:
    """Statistics of every block that a cell serves, added up: ``(cells, *block)``."""
    total: tuple[Tensor, ...] = ()
    for use in each.uses:
        there = expected[use.site]
        lead_dim = len(there.batch_shape) + tail_dim(each, there.data.site)
        lead = there.data.site.arguments[use.argument].lead
        pooled = tuple(
            _pool(part, lead_dim, lead, use, each.num_cells)
            for part in _statistics(each, there, arguments[use.site])
        )
        total = tuple(map(torch.add, total, pooled)) if total else pooled
    return total


def _pool(part: Tensor, lead_dim: int, lead: torch.Size, use: Use, num_cells: int) -> Tensor:
    """One statistic of every block, added up by cells."""
    part = _to_lead(part, lead_dim, lead)
    block = part.shape[1:]
    if use.whole:
        return part
    where = use.cells.to(part.device)
    cells = part.new_zeros((num_cells,) + block)
    return cells.index_add(0, where[where >= 0], part[where >= 0])


def _to_lead(part: Tensor, lead_dim: int, lead: torch.Size) -> Tensor:
    """One statistic of every block, ``(blocks, *block)``."""
    block = part.shape[lead_dim:]
    if part.numel() != lead.numel() * block.numel():
        part = part.sum_to_size(lead + block)
    return part.reshape((lead.numel(),) + block)


def _statistics(each: Assignment, there: Expected, given: Arguments) -> tuple[Tensor, ...]:
    """Expected statistics of one site for every block of one argument."""
    if each.role is Role.INITIAL:
        return (there.initial_counts(),)
    if each.role is Role.TRANSITION:
        return (there.transition_counts(),)
    assert each.update is not None
    # A prior's precision stands beside that of the data.
    weighted = each.shared or each.prior is not None
    return each.update.statistics(there.observed(), given, weighted)
