"""The M-step: maximises each parameter given the statistics that are pooled for it.

The arguments define the updates, in :mod:`pyro_regimes.chain` and :mod:`pyro_regimes.emissions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.distributions import LowerCholeskyTransform, constraints, transform_to

from pyro_regimes.emissions.base import Arguments, Pooled, blocks
from pyro_regimes.emissions.links import noise
from pyro_regimes.infer.em.filling import fill_affine, fill_arguments, fill_products
from pyro_regimes.infer.em.grouping import Groups
from pyro_regimes.infer.em.newton import maximise_locations, maximise_predicted
from pyro_regimes.infer.em.pooling import Collected, Expectation, blocks_of, pool
from pyro_regimes.infer.em.products import maximise_products
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.affine import Affine
from pyro_regimes.infer.em.recognise.factors import MatrixUse
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.em.search import search

#: Rounds over cells that are maximised in turn, in one M-step.
_ROUNDS = 2

_LOWER_CHOLESKY = LowerCholeskyTransform()


class Maximised(NamedTuple):
    """The result of an M-step."""

    values: dict[str, Tensor]  #: of the parameters, as the store will give them
    leaves: dict[str, Tensor]  #: what the store holds of those that are positive definite
    arguments: dict[str, Arguments]  #: of the sites, holding these values
    #: for each parameter, whether it has no maximum in some cell that has weight
    unbounded: dict[str, Tensor]
    idle: dict[str, Tensor]  #: and whether it has a cell without weight, which does not change


def names_of(flags: dict[str, Tensor]) -> list[str]:
    """The parameters that are flagged."""
    return [name for name, there in flags.items() if there]


def maximise(
    plan: Plan,
    expected: dict[str, Expectation],
    params: dict[str, Tensor],
    leaves: dict[str, Tensor],
    floor: float,
    pseudo: dict[str, Pooled],
    groups: Groups,
    keep: Callable[[str, Tensor, Tensor], Tensor],
    ranks: Ranks | None = None,
) -> Maximised:
    """Compute new values of all parameters, each given those before it in the plan.

    A cell without weight or without a maximum keeps its value, so the objective does not fall. A
    covariance without one is singular, or becomes so in the store. Locations come first (ECM).

    :param params: the current values.
    :param leaves: the stored tensors of the positive definite parameters.
    :param floor: floor of the eigenvalues of covariances.
    :param pseudo: terms that conjugate priors add to the statistics of a parameter.
    :param groups: the restarts.
    :param keep: selects the value to use, given a name, the old and the new value.
    :param ranks: over which pooled statistics are added.
    """
    collected = Collected(plan, expected, params, ranks)
    arguments, sites = collected.arguments, {name: each.data for name, each in expected.items()}
    stored, idle = {}, {}
    values, unbounded = _maximise_affine(plan.affine, collected, params, pseudo, keep)
    together = maximise_products(plan, collected, pseudo, groups)
    for each in _with_joint(plan.order):
        old = params[each.name]
        pooled = pool(each, collected, pseudo, joint=bool(each.joint))
        cells = blocks(old, each.event_dim)
        new = _maximiser(each, old, pooled, collected, pseudo, floor, plan, together)
        new = each.link.inverse(new).to(old.dtype)
        leaf = leaves.get(each.name)
        if leaf is not None:
            new, stored[each.name] = _as_cells(as_stored(new.reshape(old.shape)), cells.shape)
        missing = ~is_sound(each, new)
        if missing.device.type != "cpu" or bool(missing.any()):
            counted = pooled[0].reshape(len(new), -1).amax(-1) > torch.finfo(pooled[0].dtype).tiny
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
        fill_arguments(each, values[each.name], old, arguments, sites)
        collected.set(each.name, values[each.name], each.prior)
    fill_products(plan, values, arguments, sites)
    return Maximised(values, stored, arguments, unbounded, idle)


def _maximise_affine(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
    keep: Callable[[str, Tensor, Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """New values in closed form and by Newton's method, and what has no maximum.

    Locations come first, as a scale may be a function of a linear predictor.
    """
    values: dict[str, Tensor] = {}
    unbounded: dict[str, Tensor] = {}
    for is_predicted in (False, True):
        now = params | values
        if is_predicted:
            found, unbounded = maximise_predicted(affine, collected, now, pseudo)
        else:
            found = maximise_locations(affine, collected, now, pseudo)
        found = {name: keep(name, params[name], value) for name, value in found.items()}
        if found:
            fill_affine(affine.part(is_predicted), now | found, now, collected.arguments)
        for name, value in found.items():
            collected.set(name, value, affine.priors.get(name))
        values |= found
    return values, unbounded


def _maximiser(
    each: Assignment,
    old: Tensor,
    pooled: Pooled,
    collected: Collected,
    pseudo: dict[str, Pooled],
    floor: float,
    plan: Plan,
    together: dict[str, Tensor],
) -> Tensor:
    """The best value of the argument for each cell of a parameter; NaN where there is none.

    :param together: those of parameters that were maximised together.
    """
    if each.name in together:
        return together[each.name]
    cells = blocks(old, each.event_dim)
    now = each.link.forward(cells)
    argument = each.argument
    floor = floor_of(each, collected, floor)
    if each.joint and argument.joint is not None:
        return argument.joint.maximise(pooled, now, floor).reshape(cells.shape)
    if each.turns:
        return _maximise_in_turn(each, old, collected, pseudo, floor)
    if argument.search is None:
        return argument.maximise(pooled, now, floor).reshape(cells.shape)
    sites = {name: there.data for name, there in collected.expected.items()}

    def at(cells: Tensor) -> Pooled:
        value = each.link.inverse(cells).to(old.dtype).reshape(old.shape)
        fill_arguments(each, value, old, collected.arguments, sites)
        return pool(each, collected, pseudo)

    return search(argument, pooled, now, None if plan.is_subsampled else at).reshape(cells.shape)


def floor_of(each: Assignment, collected: Collected, floor: float) -> float:
    """The floor of the eigenvalues of a parameter's own matrices."""
    if not floor > 0:
        return floor
    held = each.link.forward(blocks(collected.params[each.name], each.event_dim))
    matrices = [use for use in each.uses if isinstance(use, MatrixUse)]
    return max(
        (use.floor(blocks_of(use, collected), held, floor) for use in matrices), default=floor
    )


def _maximise_in_turn(
    each: Assignment,
    old: Tensor,
    collected: Collected,
    pseudo: dict[str, Pooled],
    floor: float,
) -> Tensor:
    """As :func:`_maximiser`, of cells that are maximised given the others."""
    sites = {name: there.data for name, there in collected.expected.items()}
    before = {name: dict(given) for name, given in collected.arguments.items()}
    now = each.link.forward(blocks(old, each.event_dim))
    for _ in range(_ROUNDS):
        for turn in each.turns:
            best = each.argument.maximise(pool(each, collected, pseudo), now, floor).to(now.dtype)
            kept = ~turn.to(best.device) | best.isnan()
            now = torch.where(kept, now, best)
            value = each.link.inverse(now).reshape(old.shape)
            last = collected.params[each.name]
            fill_arguments(each, value, last, collected.arguments, sites)
            collected.params[each.name] = value
    collected.params[each.name] = old
    for name, given in before.items():
        collected.arguments[name].update(given)
    return now


def _with_joint(order: list[Assignment]) -> Iterator[Assignment]:
    """The order of updates, in which what is maximised together with a parameter follows it."""
    before: list[Assignment] = []
    for each in order:
        yield each
        yield from (other for other in before if other.name in each.joint)
        before.append(each)


def as_stored(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A positive definite parameter after writing to the store, and the stored tensor.

    The store holds the Cholesky factor with the logarithm of its diagonal. This rounds the last
    digits, which matter for a nearly singular matrix. NaN if there is no Cholesky factor.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.device.type != "cpu" or bool(info.any()):
        factor = factor.masked_fill((info != 0)[..., None, None], torch.nan)
    leaf = _LOWER_CHOLESKY._inverse(factor)
    return transform_to(constraints.positive_definite)(leaf), leaf


def as_stored_after(matrix: Tensor, old: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`as_stored`, but what equals the old matrix keeps that and its stored tensor."""
    value, stored = as_stored(matrix)
    same = (matrix == old).flatten(-2).all(-1)
    if same.device.type == "cpu" and not bool(same.any()):
        return value, stored
    same = same[..., None, None]
    return torch.where(same, old, value), torch.where(same, leaf, stored)


def _as_cells(tensors: tuple[Tensor, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
    one, other = tensors
    return one.reshape(shape), other.reshape(shape)


def is_sound(each: Assignment, cells: Tensor) -> Tensor:
    """For each cell, whether it is valid, so that the model can be run."""
    held = each.link.forward(cells)
    admitted = each.argument.sound(held)
    if not each.link.is_identity and each.event_dim == 2:
        # A plan holds as long as the model and EM agree on what the link makes of the matrix.
        stable = noise(each.link, cells, held) <= torch.finfo(cells.dtype).eps ** 0.5
        admitted = admitted & stable
    admitted = admitted.reshape(admitted.shape + (1,) * (cells.dim() - admitted.dim()))
    sound = ~cells.isnan() & admitted
    return sound.reshape(len(cells), -1).all(-1)
