"""Generalised linear emissions: covariates that vary in time behind a link."""

from __future__ import annotations

import pickle
from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from scipy.optimize import minimize
from torch import Tensor

from pyro_regimes import EM, RegimeHMM, standard_errors
from pyro_regimes.distributions import Columns
from pyro_regimes.infer.em.recognise import around, predicted
from tests import seeds
from tests.infer import glm
from tests.infer.glm import irls

T, P = 240, 3
TRUE = torch.tensor([[0.4, 0.8, -0.4], [1.6, -0.6, 0.3]]).double()
START = TRUE + torch.tensor([[0.2, -0.1, 0.1], [-0.2, 0.1, 0.2]])
A = torch.tensor([[0.9, 0.1], [0.15, 0.85]]).double()
START_PROBS = torch.tensor([0.5, 0.5]).double()
Make = Callable[[Tensor], Any]


def design(num: int = T) -> Tensor:
    drawn = torch.randn(num, P - 1, generator=seeds.generator(910), dtype=torch.float64)
    return torch.cat([torch.ones(num, 1).double(), drawn], -1)


X = design()
TRIALS = torch.arange(T).remainder(5).add(1).double()

#: name: distribution of a linear predictor (T, K), the link of the oracle, its target and weight
KINDS: dict[str, tuple[Make, glm.Link]] = {
    "poisson": (lambda eta: dist.Poisson(eta.exp()), glm.POISSON),
    "bernoulli logits": (lambda eta: dist.Bernoulli(logits=eta), glm.LOGIT),
    "bernoulli probs": (lambda eta: dist.Bernoulli(eta.sigmoid()), glm.LOGIT),
    "probit": (lambda eta: dist.Bernoulli(torch.special.ndtr(eta)), glm.PROBIT),
    "binomial": (
        lambda eta: dist.Binomial(TRIALS.reshape(-1, *[1] * (eta.dim() - 1)), logits=eta),
        glm.LOGIT,
    ),
    "gamma": (lambda eta: dist.Gamma(2.0, 2.0 / eta.exp()), glm.GAMMA),
    "exponential": (lambda eta: dist.Exponential((-eta).exp()), glm.GAMMA),
}


def observations(
    make: Make, x: Tensor = X, beta: Tensor = TRUE, seed: int | None = None
) -> Tensor:
    """Regimes in runs of 20 steps."""
    pyro.set_rng_seed(seeds.seed(911) if seed is None else seed)
    regime = torch.arange(len(x)) // 20 % 2
    return make((x * beta[regime]).sum(-1)).sample()


def hmm(make: Make, eta: Tensor, transition: Tensor = A, **options: Any) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=START_PROBS,
        transition_probs=transition,
        observation_dist=make(eta),
        **options,
    )


def model_of(make: Make, y: Tensor, x: Tensor = X, start: Tensor = START) -> Callable[[], None]:
    def model() -> None:
        beta = pyro.param("beta", start)
        transition = pyro.param("transition", A, constraint=constraints.simplex)
        pyro.sample("y", hmm(make, x @ beta.mT, transition), obs=y)

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_step_is_irls(kind: str) -> None:
    make, link = KINDS[kind]
    y = observations(make)
    with torch.no_grad():
        gamma = hmm(make, X @ START.mT).posterior(y).smoothed_probs.numpy()
    target, weights = y.numpy(), gamma
    if kind == "binomial":
        target, weights = (y / TRIALS).numpy(), gamma * TRIALS.numpy()[:, None]
    expected = [irls(X.numpy(), target, weights[:, k], link, START[k].numpy()) for k in range(2)]
    em = EM(model_of(make, y))
    em.step()
    found = pyro.param("beta").detach().numpy()
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-8, atol=1e-8)
    assert em.plan is not None and "Newton" in str(em.plan)
    pickle.loads(pickle.dumps(em.plan))


@pytest.mark.parametrize("kind", ["poisson", "bernoulli probs", "probit", "gamma"])
def test_optimum_is_that_of_lbfgs(kind: str) -> None:
    make, _ = KINDS[kind]
    # The same for all seeds of the suite: covariates may separate the outcomes of others.
    x = torch.randn(T, P - 1, generator=seeds.fixed(910), dtype=torch.float64)
    x = torch.cat([torch.ones(T, 1).double(), x], -1)
    y = observations(make, x, seed=911)
    result = EM(model_of(make, y, x)).run(num_steps=2000, tol=1e-11)
    history = np.array(result.history)
    assert (np.diff(history) <= 1e-9 * abs(history[0])).all()
    found = pyro.param("beta").detach().clone()
    logits = pyro.param("transition").detach().log()

    beta = (found + 0.01).requires_grad_()
    rows = logits.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [beta, rows],
        max_iter=2000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -hmm(make, x @ beta.mT, rows.softmax(-1)).log_prob(y)
        value.backward()
        return value

    optimiser.step(loss)
    assert abs(float(loss().detach()) - history[-1]) < 1e-6
    torch.testing.assert_close(beta.detach(), found, rtol=0, atol=2e-5)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("kind", ["poisson", "bernoulli probs", "gamma"])
def test_units_of_covariates(kind: str, unit: float) -> None:
    make, _ = KINDS[kind]
    y = observations(make)
    units = torch.tensor([1.0, unit, 1.0]).double()
    found = []
    for scale in (torch.ones(3).double(), units):
        pyro.clear_param_store()
        em = EM(model_of(make, y, X * scale, START / scale))
        em.run(num_steps=10, tol=None)
        assert not em.plan.gradient
        found.append(pyro.param("beta").detach() * scale)
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


def test_exposures_and_shared_coefficients() -> None:
    """One slope for both states, an intercept for each, and a known exposure."""
    exposure = torch.linspace(0.5, 4.0, T).double()
    make: Make = lambda eta: dist.Poisson(exposure.reshape(-1, *[1] * (eta.dim() - 1)) * eta.exp())
    y = observations(make, beta=torch.stack([TRUE[0], TRUE[0] + torch.tensor([1.0, 0.0, 0.0])]))

    def model() -> None:
        level = pyro.param("level", torch.tensor([0.2, 1.1]).double())
        slope = pyro.param("slope", torch.tensor([0.5, -0.1]).double())
        pyro.sample("y", hmm(make, level + (X[:, 1:] @ slope).unsqueeze(-1)), obs=y)

    start = torch.tensor([0.2, 1.1]) + (X[:, 1:] @ torch.tensor([0.5, -0.1]).double())[:, None]
    with torch.no_grad():
        gamma = hmm(make, start).posterior(y).smoothed_probs.numpy()
    rows = []
    for k in range(2):
        own = np.zeros((T, 4))
        own[:, k], own[:, 2:] = 1.0, X[:, 1:].numpy()
        rows.append(own)
    expected = irls(
        np.concatenate(rows),
        np.tile(y.numpy(), 2),
        gamma.T.ravel(),
        glm.POISSON,
        np.zeros(4),
        np.tile(np.log(exposure.numpy()), 2),
    )
    EM(model).step()
    found = torch.cat([pyro.param("level"), pyro.param("slope")]).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_normal_prior() -> None:
    make, _ = KINDS["bernoulli logits"]
    y = observations(make)

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, P).double(), 0.5).to_event(2))
        pyro.sample("y", hmm(make, X @ beta.mT), obs=y)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"beta": START}))
    with torch.no_grad():
        gamma = hmm(make, X @ START.mT).posterior(y).smoothed_probs

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        beta = torch.tensor(flat).reshape(2, P).requires_grad_()
        density = dist.Bernoulli(logits=X @ beta.mT).log_prob(y.unsqueeze(-1))
        value = 0.5 * (beta / 0.5).square().sum() - (gamma * density).sum()
        value.backward()
        return value.item(), beta.grad.numpy().ravel()

    best = minimize(loss, START.numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-11})
    em = EM(model, guide)
    em.step()
    np.testing.assert_allclose(guide.median()["beta"].numpy().ravel(), best.x, atol=1e-7)
    assert em.run(num_steps=500, tol=1e-8).converged


def test_rows_without_weight() -> None:
    """Missing observations count as left out, however far their covariates are."""
    make, _ = KINDS["poisson"]
    y, x = observations(make), X.clone()
    gone = torch.arange(T) % 7 == 3
    x[gone, 1] = 300.0
    y[gone] = torch.nan

    def model(x: Tensor, y: Tensor) -> None:
        eta = x @ pyro.param("beta", START).mT
        pyro.sample("y", hmm(make, eta, A.new_full((2, 2), 0.5), missing="marginalise"), obs=y)

    found = []
    for kept in (slice(None), ~gone):
        pyro.clear_param_store()
        result = EM(model).run(x[kept], y[kept], num_steps=20, tol=None, check=False)
        found.append(pyro.param("beta").detach().clone())
        assert np.isfinite(result.history).all()
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_separation_is_said() -> None:
    """Outcomes that a covariate separates: coefficients grow, and the likelihood with them."""
    y = (X[:, 1] > 0).double()

    def model() -> None:
        beta = pyro.param("beta", torch.zeros(1, P).double())
        one = torch.ones(1, 1).double()
        pyro.sample(
            "y",
            RegimeHMM(
                initial_probs=one[0],
                transition_probs=one,
                observation_dist=dist.Bernoulli(logits=X @ beta.mT),
            ),
            obs=y,
        )

    with pytest.warns(RuntimeWarning, match="'beta' has no maximum, as .*separates"):
        result = EM(model).run(num_steps=50)
    assert not result.converged
    assert result.history[-1] < 1e-6
    assert pyro.param("beta").isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        lambda eta: eta.clamp(-4, 4).exp(),
        lambda eta: (4 * eta.tanh()).exp(),
        lambda eta: (eta + 0.1 * eta**2).exp(),
        lambda eta: 0.1 + eta.exp(),
    ],
)
def test_others_are_refused(function: Make) -> None:
    def make(eta: Tensor) -> Any:
        return dist.Poisson(function(eta))

    y = observations(make)
    start = 0.1 * START
    with pytest.raises(ValueError, match="affine function|contradicts"):
        EM(model_of(make, y, start=start)).step()
    pyro.clear_param_store()
    em = EM(model_of(make, y, start=start), optim=pyro.optim.Adam({"lr": 0.01}))
    em.step()
    assert "beta" in em.plan.gradient


def test_product_of_two_parameters_is_refused() -> None:
    y = observations(KINDS["poisson"][0])

    def model() -> None:
        beta, factor = pyro.param("beta", START), pyro.param("factor", torch.tensor(1.0).double())
        pyro.sample("y", hmm(lambda eta: dist.Poisson(eta.exp()), factor * (X @ beta.mT)), obs=y)

    with pytest.raises(ValueError, match="an affine function"):
        EM(model).step()


def test_restarts_are_their_own() -> None:
    """A batch of starts: every one has the optimum that it has alone."""
    make, _ = KINDS["poisson"]
    y = observations(make)
    starts = torch.stack([START, START.flip(0), 0.5 * START])

    def model(starts: Tensor) -> None:
        beta = pyro.param("beta", starts)
        eta = torch.einsum("tp,...kp->...tk", X, beta)
        with pyro.plate("starts", len(starts)):
            pyro.sample("y", hmm(make, eta), obs=y.expand(starts.shape[:-2] + y.shape))

    EM(model).run(starts, num_steps=5, tol=None)
    together = pyro.param("beta").detach().clone()
    for start, found in zip(starts, together, strict=True):
        pyro.clear_param_store()
        EM(model).run(start[None], num_steps=5, tol=None)
        torch.testing.assert_close(pyro.param("beta").detach()[0], found, rtol=1e-9, atol=1e-9)


def test_float32() -> None:
    make, _ = KINDS["poisson"]
    y, x = observations(make).float(), X.float()

    def model() -> None:
        beta = pyro.param("beta", START.float())
        distribution = RegimeHMM(
            initial_probs=START_PROBS.float(),
            transition_probs=A.float(),
            observation_dist=make(x @ beta.mT),
        )
        pyro.sample("y", distribution, obs=y)

    EM(model).run(num_steps=10, tol=None)
    found = pyro.param("beta").detach().double()
    pyro.clear_param_store()

    def wide() -> None:
        pyro.sample("y", hmm(make, X @ pyro.param("beta", START).mT), obs=y.double())

    EM(wide).run(num_steps=10, tol=None)
    torch.testing.assert_close(found, pyro.param("beta").detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("kind", ["poisson", "bernoulli logits", "gamma"])
def test_missing_covariates_are_refused(kind: str, validates: bool) -> None:
    make, _ = KINDS[kind]
    y, x = observations(make), X.clone()
    x[7, 1] = torch.nan
    name = {"bernoulli logits": "logits"}.get(kind, "rate")
    said = rf"{name}.* NaN in 2 of 480 entries, first at \[7, 0\]"
    with pyro.validation_enabled(validates):
        with pytest.raises(ValueError, match=said):
            EM(model_of(make, y, x)).step()


def test_columns_with_links_of_their_own() -> None:
    """A count, an event and a number, each with its coefficients, and transitions with theirs."""
    y = torch.stack(
        [observations(KINDS[kind][0]) for kind in ("poisson", "bernoulli logits", "gamma")], -1
    )

    def model() -> None:
        counts, events = pyro.param("counts", START), pyro.param("events", START)
        values = pyro.param("values", START)
        slope = pyro.param("slope", torch.zeros(2, 2).double())
        columns = Columns(
            [
                (dist.Poisson((X @ counts.mT).exp()), 0),
                (dist.Bernoulli(logits=X @ events.mT), 1),
                (dist.Normal(X @ values.mT, 1.0), 2),
            ]
        )
        logits = A.log() + slope * X[1:, 1, None, None]
        pyro.sample(
            "y",
            RegimeHMM(
                initial_probs=START_PROBS, transition_logits=logits, observation_dist=columns
            ),
            obs=y,
        )

    em = EM(model)
    result = em.run(num_steps=500, tol=1e-8)
    assert result.converged
    assert set(em.plan.names) == {"counts", "events", "values", "slope"}
    assert (np.diff(result.history) <= 1e-9 * abs(result.history[0])).all()


def test_standard_errors_are_those_of_the_model() -> None:
    """Of one state they are those of the generalised linear model."""
    y = observations(KINDS["poisson"][0])

    def model() -> None:
        beta = pyro.param("beta", START[:1])
        one = torch.ones(1, 1).double()
        pyro.sample(
            "y",
            RegimeHMM(
                initial_probs=one[0],
                transition_probs=one,
                observation_dist=dist.Poisson((X @ beta.mT).exp()),
            ),
            obs=y,
        )

    EM(model).run(num_steps=5)
    beta = pyro.param("beta").detach()[0].numpy()
    expected = irls(X.numpy(), y.numpy(), np.ones(T), glm.POISSON, START[0].numpy())
    np.testing.assert_allclose(beta, expected, rtol=1e-8)
    mean = np.exp(X.numpy() @ expected)
    covariance = np.linalg.inv((X.numpy() * mean[:, None]).T @ X.numpy())
    found = standard_errors(model).standard_errors["beta"][0].numpy()
    np.testing.assert_allclose(found, np.sqrt(covariance.diagonal()), rtol=1e-8)


def test_a_network_is_told_by_a_few_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by one for each of its weights."""
    network = torch.nn.Sequential(
        torch.nn.Linear(P, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    ).double()
    y = observations(KINDS["poisson"][0])

    def model() -> None:
        pyro.module("network", network)
        pyro.sample("y", hmm(lambda eta: dist.Poisson(eta.exp()), network(X)), obs=y)

    def never(*args: Any) -> None:
        raise AssertionError("a derivative for each weight")

    monkeypatch.setattr(around, "read_slices", never)
    monkeypatch.setattr(predicted, "read_slices", never)
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.01}))
    em.step()
    assert "network$$$0.weight" in em.plan.gradient


def test_minibatches() -> None:
    """Sequences of a subsampled plate, with covariates of time that all of them share."""
    make, _ = KINDS["poisson"]
    regime = (torch.arange(T)[None] // 20 + torch.arange(12)[:, None]) % 2
    pyro.set_rng_seed(seeds.seed(912))
    panel = dist.Poisson((X * TRUE[regime]).sum(-1).exp()).sample()

    def model(size: int) -> None:
        beta = pyro.param("beta", START)
        with pyro.plate("sequences", len(panel), subsample_size=size) as index:
            pyro.sample("y", hmm(make, X @ beta.mT), obs=panel[index])

    em = EM(model)
    for _ in range(60):
        em.step(4)
    found = pyro.param("beta").detach().clone()
    pyro.clear_param_store()
    EM(model).run(len(panel), num_steps=200)
    torch.testing.assert_close(found, pyro.param("beta").detach(), rtol=0, atol=0.05)
