"""Transitions and initial states by multinomial logits of covariates."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests import seeds

T, K, P = 300, 3, 2
LOC = torch.tensor([-2.0, 0.0, 2.0]).double()
TRUE = torch.stack([2.0 * torch.eye(K), torch.tensor([[0.5, 0.0, -0.5]]).expand(K, K)], -1).double()
START = torch.stack([torch.eye(K), torch.zeros(K, K)], -1).double()
INITIAL = torch.full((K,), 1 / K).double()


def covariates(*shape: int) -> Tensor:
    drawn = torch.randn(shape, generator=seeds.generator(930), dtype=torch.float64)
    return torch.stack([torch.ones_like(drawn), drawn], -1)


Z = covariates(T - 1)


def logits(z: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("...tp,ijp->...tij", z, weights)


def hmm(weights: Tensor, z: Tensor = Z, **options: Any) -> RegimeHMM:
    given = {"transition_logits": logits(z, weights), "initial_probs": INITIAL} | options
    return RegimeHMM(observation_dist=dist.Normal(LOC, 1.0), **given)


def observations(z: Tensor = Z) -> Tensor:
    pyro.set_rng_seed(seeds.seed(931))
    return hmm(TRUE, z).sample()


def model_of(y: Tensor, form: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[], None]:
    def model() -> None:
        weights = pyro.param("weights", START)
        pyro.sample("y", hmm(weights, **form(logits(Z, weights))), obs=y)

    return model


def as_logits(eta: Tensor) -> dict[str, Tensor]:
    return {"transition_logits": eta}


def as_probs(eta: Tensor) -> dict[str, Tensor]:
    return {"transition_logits": None, "transition_probs": eta.softmax(-1)}  # type: ignore


def as_log_softmax(eta: Tensor) -> dict[str, Tensor]:
    return {"transition_logits": eta.log_softmax(-1)}


def xi_of(y: Tensor) -> np.ndarray:
    with torch.no_grad():
        return hmm(START).posterior(y).expected_transitions.numpy()


def logistic(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probabilities of an unpenalised multinomial logit with fractional outcomes.

    :param x: ``(T, P)``, with a column of ones; weights: ``(T, K)``.
    """
    num = weights.shape[1]
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    fit.fit(
        np.repeat(x[:, 1:], num, axis=0),
        np.tile(np.arange(num), len(x)),
        sample_weight=weights.ravel(),
    )
    return fit.predict_proba(x[:, 1:])


@pytest.mark.parametrize("form", [as_logits, as_probs, as_log_softmax])
def test_step_is_logistic_regression(form) -> None:
    y = observations()
    xi = xi_of(y)
    em = EM(model_of(y, form))
    em.step()
    assert em.plan is not None and not em.plan.gradient
    found = logits(Z, pyro.param("weights").detach()).softmax(-1).numpy()
    for i in range(K):
        np.testing.assert_allclose(found[:, i], logistic(Z.numpy(), xi[:, i]), atol=1e-6)


def test_optimum_is_that_of_lbfgs() -> None:
    y = observations()
    result = EM(model_of(y, as_logits)).run(num_steps=1000, tol=1e-11)
    assert result.converged
    history = np.array(result.history)
    assert (np.diff(history) <= 1e-9 * abs(history[0])).all()
    weights = (pyro.param("weights").detach() + 0.01).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=1000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -hmm(weights).log_prob(y)
        value.backward()
        return value

    optimiser.step(loss)
    assert abs(float(loss().detach()) - history[-1]) < 1e-6


@pytest.mark.parametrize("form", [as_logits, as_probs])
def test_exact_zeros_stay(form) -> None:
    """From left to right: a probability of 0 is none of the outcomes."""
    y, wall = observations(), torch.zeros(K, K).double()
    wall[0, 2] = wall[2, 0] = -torch.inf

    def model() -> None:
        weights = pyro.param("weights", START)
        pyro.sample("y", hmm(weights, **form(logits(Z, weights) + wall)), obs=y)

    with torch.no_grad():
        xi = hmm(START, **form(logits(Z, START) + wall)).posterior(y).expected_transitions
    EM(model).step()
    weights = pyro.param("weights").detach()
    found = (logits(Z, weights) + wall).softmax(-1).numpy()
    expected = logistic(Z.numpy(), xi[:, 0, :2].numpy())
    np.testing.assert_allclose(found[:, 0, :2], expected, atol=1e-6)
    assert (found[:, 0, 2] == 0).all()
    assert torch.equal(weights[0, 2], START[0, 2])


def test_short_sequences_with_initial_logits() -> None:
    """Both ends of a chain from covariates of each sequence."""
    num, steps = 200, 7
    z, w = covariates(num, steps - 1), covariates(num)
    pyro.set_rng_seed(seeds.seed(932))
    first = torch.tensor([[0.5, 1.0], [0.0, 0.0], [0.0, -1.0]]).double()
    truth = hmm(TRUE, z, initial_probs=None, initial_logits=w @ first.mT)
    y = truth.sample()

    def model() -> None:
        weights = pyro.param("weights", START)
        start = pyro.param("start", torch.zeros(K, P).double())
        with pyro.plate("sequences", num):
            chain = hmm(weights, z, initial_probs=None, initial_logits=w @ start.mT)
            pyro.sample("y", chain, obs=y)

    with torch.no_grad():
        before = hmm(START, z, initial_probs=None, initial_logits=torch.zeros(num, K).double())
        gamma = before.posterior(y).smoothed_probs[:, 0].numpy()
    em = EM(model)
    em.step()
    found = (w @ pyro.param("start").detach().mT).softmax(-1).numpy()
    np.testing.assert_allclose(found, logistic(w.numpy(), gamma), atol=1e-6)
    result = em.run(num_steps=500, tol=1e-7)
    assert result.converged
    assert (np.diff(result.history) <= 1e-8).all()


def test_one_slope_for_all_rows() -> None:
    """Coefficients shared by rows are one component; the intercepts of a row are its own."""
    y = observations()

    def model() -> None:
        level = pyro.param("level", START[..., 0])
        slope = pyro.param("slope", torch.zeros(K).double())
        eta = level + (Z[:, 1, None] * slope).unsqueeze(-2)
        pyro.sample("y", hmm(START, transition_logits=eta), obs=y)

    result = EM(model).run(num_steps=1000, tol=1e-9)
    assert result.converged
    assert (np.diff(result.history) <= 1e-8).all()
