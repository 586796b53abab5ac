"""Observation distributions under ``expand``, ``to_event`` and ``mask``."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM
from tests.infer.models import Y, chain, covariance, observe, real

K, D = 2, 3
LOC = torch.tensor([[-0.6], [0.9]], dtype=torch.float64)


def expanded() -> dist.Distribution:
    """One location and one scale of each state, for all series."""
    scale = pyro.param("scale", 1 + 0 * LOC, constraint=constraints.positive)
    return dist.ExpandedDistribution(
        dist.Normal(real("loc", LOC), scale), torch.Size([K, D])
    ).to_event(1)


def broadcast() -> dist.Distribution:
    """The same in other words."""
    scale = pyro.param("scale", 1 + 0 * LOC, constraint=constraints.positive)
    return dist.Normal(real("loc", LOC).expand(K, D), scale.expand(K, D)).to_event(1)


def ran(make: Callable[[], dist.Distribution], num_steps: int = 60) -> tuple[float, list[Tensor]]:
    pyro.clear_param_store()
    result = EM(lambda: observe(observation_dist=make(), obs=Y, **chain())).run(num_steps=num_steps)
    assert result.converged and not result.unconfirmed
    values = [value.detach().clone() for value in pyro.get_param_store().values()]
    return result.history[-1], values


def test_an_expanded_event_is_pooled() -> None:
    loss, values = ran(expanded, 500)
    expected, others = ran(broadcast, 500)
    assert loss == pytest.approx(expected, rel=1e-12)
    for one, other in zip(values, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


MASK = torch.arange(len(Y)).unsqueeze(-1) % 5 != 2  # (T, 1)


def test_a_mask_does_not_make_arguments_vary_in_time() -> None:
    """Then statistics would have a block for every step; those of whole masked rows count not."""
    em = EM(lambda: observe(observation_dist=masked(MASK), obs=Y, **chain()))
    em.run(num_steps=3, tol=None)
    uses = [use for each in em.plan.assignments for use in each.uses if use.argument != "initial"]
    assert all(use.cells.numel() <= K for use in uses)


def masked(mask: Tensor) -> dist.Distribution:
    return dist.MultivariateNormal(real("loc", LOC.expand(K, D)), covariance()).mask(mask)


def test_a_masked_row_may_hold_anything() -> None:
    """By the same rows with a density of 1 in every state."""
    losses = []
    for data in (Y, torch.where(MASK, Y, 1e6)):
        pyro.clear_param_store()
        em = EM(lambda data=data: observe(observation_dist=masked(MASK), obs=data, **chain()))
        losses.append(em.run(num_steps=20, tol=None).history)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert all(after <= before + 1e-9 for before, after in zip(losses[0], losses[0][1:]))
