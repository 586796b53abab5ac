"""Missing entries of correlated Student-t vectors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests import seeds

K, D, N, T = 2, 3, 2, 80
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
Params = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def factors(*lead: int, seed: int = 4) -> Tensor:
    root = draw(*lead, D, D, seed=seed)
    return torch.linalg.cholesky(root @ root.mT + torch.eye(D).double())


def hmm(df: Tensor, loc: Tensor, factor: Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, missing="marginalise",
        observation_dist=dist.MultivariateStudentT(df, loc, factor),
    )  # fmt: skip


def simulate(share: float = 0.3) -> Tensor:
    """Heavy tails in two states in turn, and entries missing."""
    states = torch.arange(T) // 10 % K
    loc, root = torch.tensor([[-2.0, 0, 1], [1, 2, -1]]).double()[states], factors(K)[states]
    heavy = torch.tensor([3.0, 8.0]).double()[states]
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(3))
        x = dist.MultivariateStudentT(heavy, loc, root).sample((N,))
    gone = torch.rand(x.shape, generator=seeds.generator(9)) < share
    gone[:, 2] = True
    return x.masked_fill(gone, torch.nan)


def start(*lead: int) -> Params:
    return {
        "df": torch.tensor([5.0, 4.0]).double().expand(*lead, K).clone(),
        "loc": draw(*lead, K, D, seed=7),
        "factor": 2 * torch.eye(D).double().expand(*lead, K, D, D).clone(),
    }


CONSTRAINTS: dict[str, Any] = {
    "df": constraints.positive, "loc": constraints.real, "factor": constraints.lower_cholesky
}  # fmt: skip


def make_model(given: Params) -> Any:
    def model(x: Tensor) -> None:
        params = [
            pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in given.items()
        ]
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(*params), obs=x)

    return model


def current() -> Params:
    return {name: pyro.param(name).detach().clone() for name in CONSTRAINTS}


def test_the_density_integrates_over_what_is_missing() -> None:
    df, loc, factor = torch.tensor([3.0]).double(), draw(1, D), factors(1)
    chain = RegimeHMM(
        initial_probs=torch.ones(1).double(), transition_probs=torch.ones(1, 1).double(),
        observation_dist=dist.MultivariateStudentT(df, loc, factor), missing="marginalise",
    )  # fmt: skip
    x = draw(1, D, seed=2)

    def at(angle: float) -> float:
        """At x = m + s tan(a), as the tails are heavy, times the slope."""
        whole = x.clone()
        whole[0, 1] = loc[0, 1] + math.tan(angle)
        return float(chain.log_prob(whole).exp()) / math.cos(angle) ** 2

    seen = x.clone()
    seen[0, 1] = torch.nan
    found, _ = scipy.integrate.quad(at, -math.pi / 2, math.pi / 2, epsrel=1e-9)
    assert float(chain.log_prob(seen).exp()) == pytest.approx(found, rel=1e-7)


def test_imputed_entries_have_the_moments_of_the_density() -> None:
    """Of one state, by integration over the missing entry; and of a row that is missing whole."""
    df, loc, factor = torch.tensor([3.0]).double(), draw(1, D), factors(1)
    chain = RegimeHMM(
        initial_probs=torch.ones(1).double(), transition_probs=torch.ones(1, 1).double(),
        observation_dist=dist.MultivariateStudentT(df, loc, factor), missing="marginalise",
    )  # fmt: skip
    x = draw(2, D, seed=2)
    x[0, 1] = torch.nan
    x[1] = torch.nan
    found = chain.impute(x)

    def at(angle: float, power: int) -> float:
        whole = x.clone()
        whole[0, 1] = loc[0, 1] + math.tan(angle)
        return float(chain.log_prob(whole).exp()) / math.cos(angle) ** 2 * whole[0, 1] ** power

    integrals = [
        scipy.integrate.quad(at, -math.pi / 2, math.pi / 2, args=(power,), epsrel=1e-10)[0]
        for power in (0, 1, 2)
    ]
    mean = integrals[1] / integrals[0]
    assert float(found.mean[0, 1]) == pytest.approx(mean, rel=1e-6, abs=1e-8)
    variance = integrals[2] / integrals[0] - mean**2
    assert float(found.variance[0, 1]) == pytest.approx(variance, rel=1e-6)
    assert_close(found.mean[1], loc[0], rtol=1e-12, atol=1e-12)
    assert_close(found.variance[1], chain.observation_dist.variance[0], rtol=1e-12, atol=1e-12)


def by_rows(x: Tensor, gamma: Tensor, given: Params) -> tuple[Tensor, Tensor]:
    """The updates of location and scale matrix, row by row from the conditional moments."""
    loc, scale = [], []
    for state in range(K):
        df, center = given["df"][state], given["loc"][state]
        matrix = given["factor"][state] @ given["factor"][state].mT
        latent, first, rows = torch.zeros(()).double(), torch.zeros(D).double(), []
        for weight, row in zip(gamma[..., state].flatten(), x.reshape(-1, D), strict=True):
            seen = ~row.isnan()
            if not seen.any():
                continue
            o, m = seen.nonzero().flatten(), (~seen).nonzero().flatten()
            slopes = matrix[m][:, o] @ torch.linalg.inv(matrix[o][:, o])
            apart = row[o] - center[o]
            square = apart @ torch.linalg.solve(matrix[o][:, o], apart)
            u = (df + len(o)) / (df + square)
            expected = center.clone()
            expected[o], expected[m] = row[o], center[m] + slopes @ apart
            rest = torch.zeros(D, D).double()
            rest[m.unsqueeze(-1), m] = matrix[m][:, m] - slopes @ matrix[o][:, m]
            latent, first = latent + weight * u, first + weight * u * expected
            rows.append((weight, u, expected, rest))
        new = first / latent
        scatter = torch.zeros(D, D).double()
        for weight, u, expected, rest in rows:
            scatter = scatter + weight * (u * torch.outer(expected - new, expected - new) + rest)
        loc.append(new)
        scale.append(scatter / latent)  # PX-EM
    return torch.stack(loc), torch.stack(scale)


def test_updates_are_those_of_conditional_moments() -> None:
    x, given = simulate(), start()
    gamma = hmm(*given.values()).smoothed_probs(x)
    EM(make_model(given)).step(x)
    new = current()
    loc, scale = by_rows(x, gamma, given)
    assert_close(new["loc"], loc, rtol=1e-9, atol=1e-9)
    assert_close(new["factor"] @ new["factor"].mT, scale, rtol=1e-8, atol=1e-8)

    # The degrees of freedom maximise the likelihood given the states, at the new values.
    for state in range(K):

        def loss(log_df: float, state: int = state) -> float:
            df = new["df"].clone()
            df[state] = math.exp(log_df)
            logits = hmm(df, new["loc"], new["factor"]).chain(x)[2]
            return -float((gamma * logits)[..., state].sum())

        center = math.log(given["df"][state])
        bounds = (center - math.log(2), center + math.log(2))
        best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
        assert loss(math.log(new["df"][state])) <= best.fun + 1e-9 * abs(best.fun)


def test_em_climbs_to_an_optimum() -> None:
    """The check of convergence differentiates the model's own likelihood."""
    x = simulate()
    result = EM(make_model(start())).run(x, num_steps=2000, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_restarts_are_as_if_each_had_run_alone() -> None:
    x, restarts = simulate(), 3
    given = start(restarts, 1, 1)
    given["loc"] = draw(restarts, 1, 1, K, D, seed=8)

    def model(x: Tensor) -> None:
        params = [
            pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in given.items()
        ]
        with pyro.plate("restarts", restarts, dim=-2), pyro.plate("sequences", N, dim=-1):
            pyro.sample("x", hmm(*params), obs=x.expand((restarts,) + x.shape))

    result = EM(model).run(x, num_steps=15, tol=None)
    assert bool((result.restart_history.diff(dim=0) <= 1e-8).all())
    together = current()
    for index in range(restarts):
        pyro.clear_param_store()
        alone = {name: value[index, 0, 0] for name, value in given.items()}
        EM(make_model(alone)).run(x, num_steps=15, tol=None)
        for name, value in together.items():  # in large degrees of freedom Q is flat
            rtol = 1e-6 if name == "df" else 1e-9
            assert_close(pyro.param(name).detach(), value[index, 0, 0], rtol=rtol, atol=1e-9)


def test_stochastic_em() -> None:
    """Minibatches with and without missing entries have statistics that add up."""
    size = 20
    x = torch.cat([simulate()] * (size // N))
    x[::3] = torch.nan_to_num(x[::3], nan=0.3)
    given = start() | {"loc": torch.tensor([[-2.0, 0, 1], [1, 2, -1]]).double()}

    def minibatches(x: Tensor) -> None:
        params = [
            pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in given.items()
        ]
        with pyro.plate("sequences", size, subsample_size=5) as index:
            pyro.sample("x", hmm(*params), obs=x[index])

    whole = make_model(given)
    first = EM(whole).evaluate_loss(x)
    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=60, tol=None)
    history = EM(whole).run(x, num_steps=100, tol=1e-6).history
    assert first - history[0] > 0.9 * (first - history[-1])


def test_degrees_of_freedom_of_vectors_of_two_sizes() -> None:
    """One parameter in two sites: each has a density of its own number of entries."""
    x = simulate(0.0)[0]
    x[2] = 0.5

    def model(x: Tensor) -> None:
        df = pyro.param("df", torch.tensor([5.0, 4.0]).double(), constraint=constraints.positive)
        loc = torch.tensor([[-2.0, 0, 1], [1, 2, -1]]).double()
        pyro.sample("x", hmm(df, loc, factors(K)), obs=x)
        pyro.sample("y", hmm(df, loc[:, :2], factors(K)[:, :2, :2]), obs=x[:, :2])

    result = EM(model).run(x, num_steps=500, tol=1e-9)
    assert result.converged and not result.unconfirmed
