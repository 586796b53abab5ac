"""Scales of a Normal whose logarithm is affine in coefficients of covariates."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests import seeds

T = 240
A = torch.tensor([[0.9, 0.1], [0.15, 0.85]]).double()
START_PROBS = torch.tensor([0.5, 0.5]).double()
SLOPES = torch.tensor([[-1.0, 0.4], [0.3, -0.5]]).double()
BETA = torch.tensor([[0.0, 1.0], [0.5, -1.0]]).double()


def design() -> Tensor:
    drawn = torch.randn(T, 1, generator=seeds.generator(960), dtype=torch.float64)
    return torch.cat([torch.ones(T, 1).double(), drawn], -1)


X = design()


def observations() -> Tensor:
    regime = torch.arange(T) // 20 % 2
    noise = torch.randn(T, generator=seeds.generator(961), dtype=torch.float64)
    return (X * BETA[regime]).sum(-1) + (X * SLOPES[regime]).sum(-1).exp() * noise


Y = observations()


def hmm(beta: Tensor, slopes: Tensor, transition: Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=START_PROBS,
        transition_probs=transition,
        observation_dist=dist.Normal(X @ beta.mT, (X @ slopes.mT).exp()),
    )


def model() -> None:
    beta = pyro.param("beta", BETA)
    slopes = pyro.param("slopes", torch.zeros(2, 2).double())
    transition = pyro.param("transition", A, constraint=constraints.simplex)
    pyro.sample("y", hmm(beta, slopes, transition), obs=Y)


def test_a_step_is_least_squares_and_then_the_maximum_of_the_scales() -> None:
    with torch.no_grad():
        start = hmm(BETA, torch.zeros(2, 2).double(), A)
        gamma = start.posterior(Y).smoothed_probs.numpy()
    em = EM(model)
    em.step()
    assert "Newton, log of the scale" in str(em.plan) and not em.plan.gradient
    beta, slopes = (pyro.param(n).detach().numpy() for n in ("beta", "slopes"))
    for k in range(2):
        root = np.sqrt(gamma[:, k])
        expected = np.linalg.lstsq(root[:, None] * X.numpy(), root * Y.numpy(), rcond=None)[0]
        np.testing.assert_allclose(beta[k], expected, rtol=1e-9)
        # At the maximum over slopes, the score of each is 0 at the new coefficients.
        squares = (Y.numpy() - X.numpy() @ beta[k]) ** 2 / np.exp(2 * X.numpy() @ slopes[k])
        score = X.numpy().T @ (gamma[:, k] * (squares - 1))
        assert np.abs(score).max() < 1e-8 * T


def test_optimum_is_that_of_lbfgs() -> None:
    result = EM(model).run(num_steps=2000, tol=1e-11)
    history = np.array(result.history)
    assert result.converged and (np.diff(history) <= 1e-9 * abs(history[0])).all()
    found = [pyro.param(name).detach() for name in ("beta", "slopes", "transition")]
    free = [found[0] + 0.01, found[1] - 0.01, found[2].log()]
    free = [value.clone().requires_grad_() for value in free]
    optimiser = torch.optim.LBFGS(
        free, max_iter=2000, tolerance_grad=1e-10, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -hmm(free[0], free[1], free[2].softmax(-1)).log_prob(Y)
        value.backward()
        return value

    optimiser.step(loss)
    assert abs(float(loss().detach()) - history[-1]) < 1e-6
    torch.testing.assert_close(free[0].detach(), found[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(free[1].detach(), found[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_covariates_and_of_the_data(unit: float) -> None:
    """A factor of the scale beside the exponential is an offset of its logarithm."""
    found = []
    for size in (1.0, unit):

        def scaled(size: float = size) -> None:
            units = torch.tensor([1.0, size]).double()
            x = X * units
            beta = pyro.param("beta", BETA / units * size)
            slopes = pyro.param("slopes", torch.zeros(2, 2).double())
            own = dist.Normal(x @ beta.mT, size * (x @ slopes.mT).exp())
            pyro.sample(
                "y",
                RegimeHMM(
                    initial_probs=START_PROBS, transition_probs=A, observation_dist=own
                ),
                obs=size * Y,
            )

        pyro.clear_param_store()
        em = EM(scaled)
        em.run(num_steps=10, tol=None)
        assert not em.plan.gradient
        found.append(pyro.param("slopes").detach() * torch.tensor([1.0, size]).double())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


def test_a_parameter_of_location_and_scale_is_refused() -> None:
    def both() -> None:
        beta = pyro.param("beta", BETA)
        observed = dist.Normal(X @ beta.mT, (X @ beta.mT).exp())
        pyro.sample(
            "y",
            RegimeHMM(initial_probs=START_PROBS, transition_probs=A, observation_dist=observed),
            obs=Y,
        )

    with pytest.raises(ValueError, match="beta"):
        EM(both).step()
