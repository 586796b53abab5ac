"""Parameters that a fit begins with, raised to the floor of the covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.emissions.base import blocks
from pyro_regimes.infer.em.recognise.factors import MatrixUse, SizeUse
from pyro_regimes.infer.em.recognise.plan import Assignment, Plan
from pyro_regimes.infer.tracing import Run, write_parameter


def raise_to_floor(plan: Plan, run: Run, floor: float) -> bool:
    """Raise covariances to the floor, in the store: EM is monotone only from a feasible start.

    The caller holds Pyro's lock.

    :return: whether any was below.
    """
    is_below = False
    for each in plan.assignments:
        value = run.params[each.name].detach()
        cells = each.link.forward(blocks(value, each.event_dim))
        feasible = _feasible(each, run, cells, floor)
        if feasible is cells or _is_rounding(feasible, cells, floor):
            continue
        write_parameter(each.name, each.link.inverse(feasible).reshape(value.shape))
        is_below = True
    return is_below


def _feasible(each: Assignment, run: Run, cells: Tensor, floor: float) -> Tensor:
    """Cells that satisfy the covariance floor."""
    for use in each.uses:
        if isinstance(use, (MatrixUse, SizeUse)):
            slot = run.chains[use.site].slots[use.argument]
            value = blocks(slot.value.detach(), slot.event_dim)
            if isinstance(use, MatrixUse):
                floor = max(floor, use.floor(value, cells, floor))
            else:
                cells = cells.maximum(floor**0.5 * use.units(value, cells))
    return each.argument.feasible(cells, floor)


def _is_rounding(one: Tensor, other: Tensor, floor: float) -> bool:
    """Whether cells differ by no more than on their way through the store, and far less than floor.

    Beside a large variance, rounding may be larger than the floor itself.
    """
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    bound = 1024 * torch.finfo(one.dtype).eps * other.abs().amax(-1, keepdim=True)
    bound = bound.clamp(max=1e-3 * floor)
    return bool(((one - other).abs() <= bound).all())
