"""The search in passes over the data stays within its brackets, whatever its steps are."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.emissions.base import End, Natural, Search
from pyro_regimes.emissions.weibull import CONCENTRATION
from pyro_regimes.infer.em.search import search

ROOTS = torch.tensor([0.3, 5.0, -700.0, 1e-8]).double()


class Slope(NamedTuple):
    """The derivative of a concave function."""

    weight: Tensor


def at(cells: Tensor) -> Slope:
    return Slope((ROOTS[: len(cells)] - cells).atan())


def newton(pooled: Slope, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """Of an arc tangent, which diverges from far away."""
    step = pooled.weight * (1 + pooled.weight.tan().square())
    return now + step, step.abs() < 1e-9


def mad(pooled: Slope, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """Always far beyond."""
    is_last = pooled.weight.abs() < 1e-12
    return torch.where(is_last, now, now + 1e6 * pooled.weight.sign()), is_last


@pytest.mark.parametrize("step", [newton, mad])
def test_it_ends_at_the_roots(step: Callable[..., tuple[Tensor, Tensor]]) -> None:
    natural = Natural(CONCENTRATION.natural.perturb, lambda pooled, cells: pooled.weight, newton)
    argument = replace(CONCENTRATION, natural=natural, search=Search(step))
    start = torch.tensor([40.0, 4.0, 900.0, 0.0]).double()
    found = search(argument, at(start), start, at)
    assert_close(found, ROOTS, rtol=1e-9, atol=1e-9)
    alone = search(argument, at(start[:1]), start[:1], at)  # no cell depends on the others
    assert torch.equal(alone, found[:1])
    once = search(argument, at(start), start, None)
    assert torch.equal(once, step(at(start), start, End(start, None), End(start, None))[0])


def test_what_has_no_maximum_is_nan_and_the_rest_is_found() -> None:
    def step(pooled: Slope, now: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
        new, is_last = newton(pooled, now, low, high)
        new[0] = torch.nan
        return new, is_last

    natural = Natural(CONCENTRATION.natural.perturb, lambda pooled, cells: pooled.weight, newton)
    argument = replace(CONCENTRATION, natural=natural, search=Search(step))
    start = torch.tensor([0.0, 4.0, -699.0, 0.0]).double()
    found = search(argument, at(start), start, at)
    assert found[0].isnan()
    assert_close(found[1:], ROOTS[1:], rtol=1e-9, atol=1e-9)
