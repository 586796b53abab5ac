"""Compiled iterations of chains that start from their stationary distributions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, stationary_probs
from pyro_regimes.infer.em.engines import fused_gaussian, fused_linear
from tests import seeds
from tests.infer.fused import both_engines, spy

K = 3
MATRIX = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.02, 0.28, 0.7]]).double()
LOC = torch.tensor([[-1.0, 0.5], [0.5, -0.2], [2.0, 1.0]]).double()
COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double().expand(K, 2, 2).contiguous()


def matrices(*batch: int) -> Tensor:
    noise = torch.rand((*batch, K, K), generator=seeds.generator(2), dtype=torch.float64)
    found = 0.7 * MATRIX + 0.3 * noise / noise.sum(-1, keepdim=True)
    return found


def vectors(count: int = 4, num_steps: int = 40) -> Tensor:
    torch.manual_seed(seeds.seed(3))
    path = torch.arange(num_steps) * 7 // num_steps % K
    return LOC[path] + torch.randn(count, num_steps, 2).double()


def chain_of(data: Tensor, observed: Any, start: Tensor, **more: Any) -> None:
    matrix = pyro.param("matrix", start.clone, constraint=constraints.simplex)
    initial = stationary_probs(matrix.squeeze(-3) if matrix.dim() > 2 else matrix)
    hmm = RegimeHMM(
        initial_probs=initial, transition_probs=matrix, observation_dist=observed, **more
    )
    if start.dim() > 2:
        with pyro.plate("starts", len(start), dim=-2), pyro.plate("sequences", len(data)):
            pyro.sample("x", hmm, obs=data)
    else:
        with pyro.plate("sequences", len(data)):
            pyro.sample("x", hmm, obs=data)


def gaussian(data: Tensor, start: Tensor = MATRIX, **more: Any) -> None:
    batch = (len(start), 1, 1) if start.dim() > 2 else ()
    loc = pyro.param("loc", lambda: LOC.expand(batch + (K, 2)).clone())
    wide = COVARIANCE.expand(batch + (K, 2, 2))
    covariance = pyro.param("covariance", wide.clone, constraint=constraints.positive_definite)
    chain_of(data, dist.MultivariateNormal(loc, covariance), start, **more)


def diagonal(data: Tensor, start: Tensor = MATRIX, **more: Any) -> None:
    loc = pyro.param("loc", LOC.clone)
    scale = pyro.param("scale", torch.ones_like(LOC), constraint=constraints.positive)
    chain_of(data, dist.Normal(loc, scale).to_event(1), start, **more)


def poisson(data: Tensor, start: Tensor = MATRIX, **more: Any) -> None:
    rate = pyro.param("rate", LOC.exp, constraint=constraints.positive)
    chain_of(data.exp().round(), dist.Poisson(rate).to_event(1), start, **more)


MODELS = [(gaussian, fused_gaussian), (diagonal, fused_gaussian), (poisson, fused_linear)]


def run(model: Callable[..., None], *args: Any, **more: Any) -> Callable:
    settings = {"num_steps": 20, "tol": None} | more
    return lambda: EM(model).run(*args, **settings)


@pytest.mark.parametrize("model, module", MODELS)
def test_equals_the_iterations_on_tensors(model, module):
    fast, _ = both_engines(run(model, vectors()), module=module)
    losses = fast.restart_history.flatten()
    assert bool((losses.diff() <= 1e-9 * losses[0].abs()).all()) and losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize("model, module", MODELS)
def test_lengths_and_missing_rows(model, module):
    data = vectors()
    data[1, 3:9] = torch.nan
    data[2, 0] = torch.nan
    given = partial(model, lengths=torch.tensor([40, 33, 2, 38]), missing="marginalise")
    both_engines(run(given, data), module=module)


def test_short_sequences_in_which_the_start_counts():
    both_engines(run(gaussian, vectors(60, 3)))


def test_zeros_stay():
    start = MATRIX.clone()
    start[0, 2] = 0.0
    start = start / start.sum(-1, keepdim=True)
    both_engines(run(partial(gaussian, start=start), vectors()))
    assert float(pyro.param("matrix")[0, 2].detach()) == 0.0


@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_restarts_do_not_depend_on_their_neighbours(acceleration):
    starts, data = matrices(3, 1, 1), vectors()
    together = run(partial(gaussian, start=starts), data, acceleration=acceleration)()
    for index in range(3):
        pyro.clear_param_store()
        alone = partial(gaussian, start=starts[index : index + 1])
        own = run(alone, data, acceleration=acceleration)()
        assert torch.equal(own.restart_history[:, 0], together.restart_history[:, index])


def test_acceleration_ends_at_the_same_optimum():
    data = vectors(6, 60)
    settings = {"num_steps": 4000, "tol": 1e-11}
    plain = run(gaussian, data, **settings)()
    kept = pyro.param("matrix").detach().clone()
    pyro.clear_param_store()
    em = EM(gaussian)
    fast = em.run(data, acceleration="squarem", **settings)
    assert "compiled iterations" in str(em.plan) and "extrapolated" in str(em.plan)
    losses = fast.restart_history.flatten()
    assert bool((losses.diff() <= 1e-9 * losses[0].abs()).all())
    assert fast.num_steps < plain.num_steps
    assert_close(fast.history[-1], plain.history[-1], rtol=1e-9, atol=0.0)
    assert_close(pyro.param("matrix").detach(), kept, rtol=0.0, atol=1e-3)


def test_what_is_not_served(monkeypatch):
    """More states than the compiled M-step takes, and priors."""
    found = spy(monkeypatch)
    size = 7
    start = 0.6 * torch.eye(size).double() + 0.4 / size

    def wide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.linspace(-2, 2, size).double().clone)
        chain_of(data, dist.Normal(loc, 1.0), start)

    EM(wide).run(vectors()[..., 0].contiguous(), num_steps=2, tol=None)
    assert found == [
        "it serves chains of at most 6 states that start from stationary distributions"
    ]
