"""Maximises over an argument whose statistics are those at one value, in passes over the data."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Argument, End, Pooled, apply


def search(
    argument: Argument, pooled: Pooled, cells: Tensor, at: Callable[[Tensor], Pooled] | None
) -> Tensor:
    """The maximiser for each cell, by steps within brackets; NaN if there is none.

    :param pooled: the statistics at the present cells.
    :param at: takes the statistics at other cells; None if the data are gone, for a single step.
    """
    assert argument.search is not None
    now = cells.to(pooled[0].dtype)
    low = End(torch.full_like(now, -torch.inf), pooled)
    high = End(torch.full_like(now, torch.inf), pooled)
    if at is None:
        return argument.search.step(pooled, now, low, high)[0]
    final = torch.zeros_like(now, dtype=torch.bool)
    for _ in range(argument.search.most):
        score = argument.natural.score(pooled, now)
        low = _replace(low, (score > 0) & ~final, now, pooled)
        high = _replace(high, (score < 0) & ~final, now, pooled)
        new, is_last = argument.search.step(pooled, now, low, high)
        outside = (new <= low.at) | (new >= high.at)
        middle = torch.where((low.at + high.at).isfinite(), (low.at + high.at) / 2, now)
        new = torch.where(outside & ~is_last, middle, new)
        now, final = torch.where(final, now, new), final | is_last | new.isnan() | (new == now)
        if bool(final.all()):
            break
        # What has no maximum has no statistics either.
        pooled = at(torch.where(now.isnan(), cells.to(now.dtype), now))
    return now


def _replace(end: End, where: Tensor, at: Tensor, pooled: Pooled) -> End:
    return End(
        torch.where(where, at, end.at),
        apply(lambda new, old: torch.where(where, new, old), pooled, end.pooled),
    )
