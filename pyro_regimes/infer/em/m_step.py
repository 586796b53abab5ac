"""The M-step: pools expected statistics over everything that shares a parameter, and maximises.

The arguments define the updates, in :mod:`pyro_regimes.chain` and :mod:`pyro_regimes.emissions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Callable, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import LowerCholeskyTransform, constraints, transform_to

from pyro_regimes.emissions.base import Argument, Arguments, Pooled, Stats, add, apply, blocks
from pyro_regimes.emissions.links import noise
from pyro_regimes.infer.em.e_step import SiteData, SiteStatistics
from pyro_regimes.infer.em.recognise.affine import Affine, solve
from pyro_regimes.infer.em.recognise.jacobian import gram
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan, Use
from pyro_regimes.infer.em.search import search
from pyro_regimes.infer.tracing import Site, Slot, num_own_dims

_LOWER_CHOLESKY = LowerCholeskyTransform()


class Expectation(Protocol):
    """The interface of a site for the M-step, with statistics of the data or averages."""

    @property
    def data(self) -> SiteData:
        """The data of the site that do not change between steps."""

    @property
    def arguments(self) -> Arguments:
        """The current arguments."""

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the statistics."""

    def statistics(self, names: frozenset[str]) -> SiteStatistics:
        """The statistics that are needed to update some arguments."""

    def retake(self, arguments: Arguments, names: frozenset[str]) -> Stats | None:
        """Statistics of the observations at other arguments; None if there are no data."""


class Collected:
    """The statistics of all sites, with the arguments that the M-step updates."""

    def __init__(self, plan: Plan, expected: dict[str, Expectation]) -> None:
        self.expected = expected
        self.arguments = {name: dict(each.arguments) for name, each in expected.items()}
        self._found = {
            name: each.statistics(plan.updated(name)) for name, each in expected.items()
        }

    def reduce(
        self, site: str, argument: Argument, weighted: bool, joint: bool = False
    ) -> Pooled:
        """The pooled statistics of every block of one argument, at the current arguments.

        :param joint: whether those for its maximisation together with another argument.
        """
        found, given = self._found[site], self.arguments[site]
        family = self.expected[site].data.site.family
        if family is None or argument not in family.arguments:
            return argument.reduce(found.chain, given, weighted)
        accurate: Tensor | bool = argument.name in found.names
        accurate = accurate and family.is_accurate(found.emission, given, argument.name)
        some = bool(accurate.any()) if isinstance(accurate, Tensor) else accurate
        if not (bool(accurate.all()) if isinstance(accurate, Tensor) else accurate):
            again = self.expected[site].retake(given, frozenset({argument.name}))
            if again is not None:
                if some and isinstance(accurate, Tensor):  # no block depends on the others
                    again = family.merge(accurate, found.emission, again)
                found = found._replace(
                    emission=family.renew(found.emission, again),
                    names=found.names | {argument.name},
                )
                self._found[site] = found
        if joint and argument.joint is not None:
            return argument.joint.reduce(found.emission, given)
        return argument.reduce(found.emission, given, weighted)


class Maximised(NamedTuple):
    """The result of an M-step."""

    values: dict[str, Tensor]  #: of the parameters, as the store will give them
    leaves: dict[str, Tensor]  #: what the store holds of those that are positive definite
    arguments: dict[str, Arguments]  #: of the sites, holding these values
    #: for each parameter, whether it has no maximum in some cell that has weight
    unbounded: dict[str, Tensor]
    idle: dict[str, Tensor]  #: and whether it has a cell without weight, which does not change


def maximise(
    plan: Plan,
    expected: dict[str, Expectation],
    params: dict[str, Tensor],
    leaves: dict[str, Tensor],
    floor: float,
    pseudo: dict[str, Pooled],
    keep: Callable[[str, Tensor, Tensor], Tensor],
) -> Maximised:
    """Compute new values of all parameters, each given those before it in the plan.

    A cell without weight or without a maximum keeps its value, so the objective does not fall. A
    covariance has no maximum if it is singular, or becomes so by rounding in the store. Locations
    come before the spreads about them (ECM).

    :param params: the current values.
    :param leaves: the stored tensors of the positive definite parameters.
    :param floor: floor of the eigenvalues of covariances.
    :param pseudo: terms that conjugate priors add to the statistics of a parameter.
    :param keep: selects the value to use, given a name, the old and the new value.
    """
    collected = Collected(plan, expected)
    arguments = collected.arguments
    sites = {name: each.data for name, each in expected.items()}
    values, stored, unbounded, idle = {}, {}, {}, {}
    if plan.affine.names:
        values = _solve_affine(plan.affine, collected, params, pseudo)
        values = {name: keep(name, params[name], value) for name, value in values.items()}
        fill_affine(plan.affine, values, params, arguments)
    for each in _with_joint(plan.order):
        old = params[each.name]
        pooled = pool(each, collected, pseudo, joint=bool(each.joint))
        cells = blocks(old, each.event_dim)
        new = _maximiser(each, old, pooled, collected, pseudo, floor, plan.is_subsampled)
        new = each.link.inverse(new).to(old.dtype)
        leaf = leaves.get(each.name)
        if leaf is not None:
            new, stored[each.name] = _as_cells(as_stored(new.reshape(old.shape)), cells.shape)
        missing = ~is_sound(each, new)
        if missing.device.type != "cpu" or bool(missing.any()):
            weight = pooled[0].reshape(len(new), -1).amax(-1)
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
        fill_arguments(each, values[each.name], arguments, sites)
    return Maximised(values, stored, arguments, unbounded, idle)


def _maximiser(
    each: Assignment,
    old: Tensor,
    pooled: Pooled,
    collected: Collected,
    pseudo: dict[str, Pooled],
    floor: float,
    is_subsampled: bool,
) -> Tensor:
    """The best value of the argument for each cell of a parameter; NaN where there is none."""
    cells = blocks(old, each.event_dim)
    now = each.link.forward(cells)
    argument = each.argument
    if each.joint and argument.joint is not None:
        return argument.joint.maximise(pooled, now, floor).reshape(cells.shape)
    if argument.search is None:
        return argument.maximise(pooled, now, floor).reshape(cells.shape)
    sites = {name: there.data for name, there in collected.expected.items()}

    def at(cells: Tensor) -> Pooled:
        value = each.link.inverse(cells).to(old.dtype).reshape(old.shape)
        fill_arguments(each, value, collected.arguments, sites)
        return pool(each, collected, pseudo)

    return search(argument, pooled, now, None if is_subsampled else at).reshape(cells.shape)


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


def fill_arguments(
    each: Assignment, value: Tensor, arguments: dict[str, Arguments], sites: dict[str, SiteData]
) -> None:
    """Write a parameter's cells to the arguments of the sites."""
    for use in each.uses:
        old = arguments[use.site][use.argument]
        argument = sites[use.site].site.slots[use.argument].argument
        new = argument.written(each.link, value).to(old.dtype)
        if not use.whole:
            cells, where = blocks(new, each.event_dim), use.cells.to(new.device)
            new = blocks(old, each.event_dim).clone()
            new[where >= 0] = cells[where[where >= 0]]
        arguments[use.site][use.argument] = new.reshape(old.shape)


def fill_affine(
    affine: Affine,
    values: dict[str, Tensor],
    old: dict[str, Tensor],
    arguments: dict[str, Arguments],
) -> None:
    """Update the locations after an update of their parameters."""
    if not affine.names:
        return
    moved = affine.flat(values) - affine.flat(old)
    for use in affine.uses:
        argument = arguments[use.site][use.argument]
        change = (use.jacobian @ moved).reshape(argument.shape)
        arguments[use.site][use.argument] = argument + change.to(argument.dtype)


def normal_equations(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> tuple[Tensor, Tensor]:
    """The matrix and the right-hand side of the weighted least squares."""
    start = affine.flat(params)
    normal, right = start.new_zeros((len(start), len(start))), torch.zeros_like(start)
    for use in affine.uses:
        pooled = _pooled_blocks(use.site, use.argument, collected, True)
        given = collected.arguments[use.site][use.argument]
        constant = given.double().flatten() - use.jacobian @ start
        more_normal, more_right = gram(use.jacobian, pooled, constant)
        normal, right = normal + more_normal, right + more_right
    for name in affine.priors:
        affine.add_prior(name, pseudo[name], normal, right)
    return normal, right


def _solve_affine(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> dict[str, Tensor]:
    """Solve for the parameters in which locations are affine, by weighted least squares."""
    normal, right = normal_equations(affine, collected, params, pseudo)
    start = affine.flat(params)
    found = solve(normal, right, start)
    return affine.unflat(torch.where(found.isfinite(), found, start), params)


def pool(
    each: Assignment,
    collected: Collected,
    pseudo: dict[str, Pooled],
    weighted: bool = False,
    joint: bool = False,
) -> Pooled:
    """Sum the statistics of the blocks of each cell: fields ``(cells, *block)``.

    :param pseudo: terms that conjugate priors add.
    :param weighted: whether locations are weighted with precisions in any case.
    :param joint: whether for the maximisation together with another parameter.
    :return: of one dtype, which need not be that of the parameter.
    """
    # The precision of a prior is added to that of the data.
    weighted = weighted or each.shared or each.prior is not None
    total: Pooled = None
    for use in each.uses:
        found = _pooled_blocks(use.site, use.argument, collected, weighted, joint)
        if not use.whole:
            found = apply(lambda part, use=use: _by_cells(part, use, each.num_cells), found)
        total = found if total is None else add(total, found)
    return _of_one_dtype(add(total, pseudo[each.name]) if each.name in pseudo else total)


def _of_one_dtype(pooled: Pooled) -> Pooled:
    """Priors and several sites may differ in dtype: all fields in the widest."""
    dtypes = [part.dtype for part in pooled if part is not None]
    if len(set(dtypes)) < 2:
        return pooled
    widest = reduce(torch.promote_types, dtypes)
    return apply(lambda part: part.to(widest), pooled)


def _pooled_blocks(
    site: str, name: str, collected: Collected, weighted: bool, joint: bool = False
) -> Pooled:
    """The statistics of every block of an argument: fields ``(blocks, *block)``."""
    there = collected.expected[site]
    slot = there.data.site.slots[name]
    lead_dim = len(there.batch_shape) + num_own_dims(slot.argument, there.data.site)

    def to_lead(part: Tensor) -> Tensor:
        block = part.shape[lead_dim:]
        if part.numel() != slot.lead.numel() * block.numel():
            part = part.sum_to_size(slot.lead + block)
        return part.reshape((slot.lead.numel(),) + block)

    # A location that is constant in time may stand beside spreads that are not.
    weighted = weighted or _is_over_time(there.data.site, slot)
    return apply(to_lead, collected.reduce(site, slot.argument, weighted, joint))


def _is_over_time(site: Site, slot: Slot) -> bool:
    """Whether a block serves all steps of a distribution that varies in time."""
    if site.family is None or slot.argument not in site.family.arguments:
        return False
    own = num_own_dims(slot.argument, site)
    return (len(slot.lead) < own or slot.lead[len(slot.lead) - own] == 1) and site.varies


def _by_cells(part: Tensor, use: Use, num_cells: int) -> Tensor:
    """Sum one statistic of the blocks by cells."""
    where = use.cells.to(part.device)
    cells = part.new_zeros((num_cells,) + part.shape[1:])
    return cells.index_add(0, where[where >= 0], part[where >= 0])
