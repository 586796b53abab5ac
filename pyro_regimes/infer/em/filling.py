"""Writes parameters to the arguments of the sites."""

from __future__ import annotations

from torch import Tensor

from pyro_regimes.emissions.base import Arguments, blocks
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.recognise.affine import Affine
from pyro_regimes.infer.em.recognise.factors import MatrixUse, SizeUse
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.em.recognise.powers import PowerUse


def fill_arguments(
    each: Assignment,
    value: Tensor,
    before: Tensor,
    arguments: dict[str, Arguments],
    sites: dict[str, SiteData],
) -> None:
    """Write a parameter's cells to the arguments of the sites.

    :param before: the value at which the arguments are.
    """
    for use in each.uses:
        if isinstance(use, (SizeUse, MatrixUse)):
            old = arguments[use.site][use.argument]
            event_dim = sites[use.site].site.slots[use.argument].event_dim
            new = use.stretched(blocks(old, event_dim), each.link, before, value)
            arguments[use.site][use.argument] = new.reshape(old.shape)
            continue
        if isinstance(use, PowerUse):
            continue  # see fill_products
        old = arguments[use.site][use.argument]
        argument = sites[use.site].site.slots[use.argument].argument
        new = argument.written(each.link, value).to(old.dtype)
        if not use.whole:
            cells, where = blocks(new, each.event_dim), use.cells.to(new.device)
            new = blocks(old, each.event_dim).clone()
            new[where >= 0] = cells[where[where >= 0]]
        arguments[use.site][use.argument] = new.reshape(old.shape)


def fill_products(
    plan: Plan,
    values: dict[str, Tensor],
    arguments: dict[str, Arguments],
    sites: dict[str, SiteData],
) -> None:
    """Write the arguments whose entries are products of several parameters' shares."""
    for product in plan.products:
        there, slots = arguments[product.site], sites[product.site].site.slots
        old = there[product.argument]
        there[product.argument] = product.write(slots[product.argument], old, values)


def fill_affine(
    affine: Affine,
    values: dict[str, Tensor],
    old: dict[str, Tensor],
    arguments: dict[str, Arguments],
) -> None:
    """Update locations and linear predictors after an update of their parameters."""
    if not affine.names:
        return
    moved = affine.flat(values) - affine.flat(old)
    for use in affine.uses:
        argument = arguments[use.site][use.argument]
        change = (use.jacobian @ moved).reshape(argument.shape)
        if use.predictor is None:
            new = argument + change.to(argument.dtype)
        else:
            new = use.predictor.write(use.read(argument) + change, argument)
        arguments[use.site][use.argument] = new
