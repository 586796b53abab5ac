"""Factor analysis as observations: the factors are hidden as the states are."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from sklearn.decomposition import FactorAnalysis
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from tests import seeds

K, D, Q, N, T = 2, 6, 2, 3, 120
Shapes = dict[str, tuple[int, ...]]
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
CONSTRAINTS = {"loc": constraints.real, "factor": constraints.real, "diag": constraints.positive}
SHARINGS: dict[str, Shapes] = {
    "own": {"loc": (K, D), "factor": (K, D, Q), "diag": (K, D)},
    "principal components": {"loc": (K, D), "factor": (K, D, Q), "diag": (K, 1)},
    "one factor for all": {"loc": (K, D), "factor": (D, Q), "diag": (K, D)},
    "tied": {"loc": (K, D), "factor": (D, Q), "diag": (D,)},
    "one location": {"loc": (D,), "factor": (K, D, Q), "diag": (K, D)},
    "of each sequence": {"loc": (N, 1, K, D), "factor": (N, 1, K, D, Q), "diag": (K, D)},
    "locations of each time": {"loc": (T, 1, D), "factor": (K, D, Q), "diag": (K, D)},
}
OWN = SHARINGS["own"]
CASES = pytest.mark.parametrize("shapes", SHARINGS.values(), ids=list(SHARINGS))


#: Each factor moves three series or more, so that no noise vanishes.
LOADINGS = torch.tensor(
    [
        [[1.5, 0.0], [1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, 1.5], [0.0, 1.5]],
        [[1.5, 1.0], [1.5, -1.0], [1.5, 1.0], [1.5, -1.0], [1.5, 1.0], [1.5, -1.0]],
    ]
).double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def data(num_sequences: int, num_steps: int, seed: int) -> Tensor:
    """Two regimes in turn, with loadings and locations of their own."""
    regime = torch.arange(num_steps) // 10 % 2
    factors = draw(num_sequences, num_steps, Q, 1, seed=seed)
    common = (LOADINGS[regime] @ factors).squeeze(-1)
    noise = draw(num_sequences, num_steps, D, seed=seed + 100)
    return common + 2 * draw(K, D, seed=2)[regime] + noise


def start(shapes: Shapes) -> dict[str, Tensor]:
    values = {name: draw(*shape, seed=3 + i) for i, (name, shape) in enumerate(shapes.items())}
    center = 2 * draw(K, D, seed=2)
    center = center if K in shapes["loc"] else center.mean(0)
    values["loc"] = 0.3 * values["loc"] + center
    return values | {"diag": (0.3 * values["diag"]).exp()}


def build(values: dict[str, Tensor]) -> dist.Distribution:
    loc, factor, diag = (values[name] for name in ("loc", "factor", "diag"))
    shape = torch.broadcast_shapes(loc.shape, (K, D))
    diag = diag.expand(torch.broadcast_shapes(diag.shape, (K, D)))
    return dist.LowRankMultivariateNormal(loc.expand(shape), factor, diag)


def hmm(values: dict[str, Tensor]) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=build(values)
    )


def make_model(old: dict[str, Tensor], fixed: tuple[str, ...] = ()) -> Any:
    def model(x: Tensor) -> None:
        values = {
            name: value
            if name in fixed
            else pyro.param(name, value, constraint=CONSTRAINTS[name])
            for name, value in old.items()
        }
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(values), obs=x)

    return model


class Objective:
    """Q of states, and of factors given them."""

    def __init__(self, old: dict[str, Tensor], x: Tensor) -> None:
        self.x = x
        self.gamma = hmm(old).posterior(x).smoothed_probs.detach()

    def of_states(self, values: dict[str, Tensor]) -> Tensor:
        """Without the factors."""
        return (self.gamma * build(values).log_prob(self.x.unsqueeze(-2))).sum()

    def of_factors(self, at: dict[str, Tensor], values: dict[str, Tensor]) -> Tensor:
        """With the moments of the factors at some arguments, one observation at a time."""
        loc, factor, diag = (at[name] for name in ("loc", "factor", "diag"))
        diag = diag.expand(torch.broadcast_shapes(diag.shape, (K, D)))
        precision = torch.eye(Q).double() + factor.mT @ (factor / diag.unsqueeze(-1))
        spread = precision.inverse()
        deviation = (self.x.unsqueeze(-2) - loc).unsqueeze(-1)  # (N, T, K, D, 1)
        mean = spread @ factor.mT @ (deviation / diag.unsqueeze(-1))
        second = spread + mean @ mean.mT
        loc, factor, diag = (values[name] for name in ("loc", "factor", "diag"))
        deviation = (self.x.unsqueeze(-2) - loc).unsqueeze(-1)
        left = deviation.square() - 2 * deviation * (factor @ mean)
        left = left.squeeze(-1) + (factor @ second * factor).sum(-1)
        return (self.gamma.unsqueeze(-1) * (-0.5 * diag.log() - 0.5 * left / diag)).sum()


@CASES
def test_a_step_maximises_q(shapes: Shapes) -> None:
    x = data(N, T, seed=5)
    old = start(shapes)
    objective = Objective(old, x)
    model = make_model(old)
    em = EM(model)
    em.step(x)
    assert {each.name for each in em.plan.assignments} == set(shapes)
    new = {name: pyro.param(name).detach() for name in shapes}

    def slope(function: Any, values: dict[str, Tensor], name: str) -> float:
        leaf = values[name].clone().requires_grad_()
        (found,) = torch.autograd.grad(function(values | {name: leaf}), leaf)
        return float(found.abs().max())

    small = 1e-9 * x.numel()
    now = old | {"loc": new["loc"]}
    assert slope(objective.of_states, now, "loc") < small
    for name in ("factor", "diag"):
        before, now = now, now | {name: new[name]}
        assert slope(lambda v, at=before: objective.of_factors(at, v), now, name) < small

    history = EM(model).run(x, num_steps=20, tol=None).history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    likelihood = poutine.trace(model).get_trace(x).log_prob_sum().item()
    assert likelihood == pytest.approx(-history[-1], rel=1e-10)


@pytest.mark.parametrize("sharing", ["own", "principal components", "one factor for all"])
def test_the_end_is_a_maximum(sharing: str) -> None:
    x = data(N, T, seed=6)
    result = EM(make_model(start(SHARINGS[sharing]))).run(x, num_steps=5000, tol=1e-7)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_one_state_is_the_maximum_of_scikit_learn() -> None:
    x = data(1, 500, seed=7)[0, torch.arange(500) // 10 % 2 == 0]
    loadings = draw(1, D, Q, seed=3)

    def model(x: Tensor) -> None:
        one = torch.ones(1).double()
        each = dist.LowRankMultivariateNormal(
            pyro.param("loc", torch.zeros(1, D).double()),
            pyro.param("factor", loadings),
            pyro.param("diag", torch.ones(1, D).double(), constraint=constraints.positive),
        )
        hmm = RegimeHMM(
            initial_probs=one, transition_probs=one.reshape(1, 1), observation_dist=each
        )
        pyro.sample("x", hmm, obs=x)

    history = EM(model).run(x, num_steps=2000, tol=1e-7, acceleration="squarem").history
    found = FactorAnalysis(Q, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert -history[-1] / len(x) == pytest.approx(found.score(x.numpy()), rel=1e-7)


@pytest.mark.parametrize("fixed", ["loc", "factor", "diag"])
def test_one_argument_is_known(fixed: str) -> None:
    x = data(N, T, seed=7)
    old = start(OWN)
    old["factor"] = LOADINGS.clone() if fixed == "factor" else old["factor"]
    em = EM(make_model(old, (fixed,)))
    result = em.run(x, num_steps=5000, tol=1e-6)
    assert {each.name for each in em.plan.assignments} == set(OWN) - {fixed}
    assert result.converged and not result.unconfirmed


def test_a_floor_bounds_the_noise() -> None:
    x = data(N, T, seed=7)
    x[..., 1] = x[..., 0] * 0.7  # one factor explains both
    em = EM(make_model(start(OWN)), min_eigenvalue=0.3)
    result = em.run(x, num_steps=5000, tol=1e-6, acceleration="squarem")
    assert result.converged and not result.unconfirmed
    assert pyro.param("diag").min().item() == pytest.approx(0.3, rel=1e-9)


def test_extrapolation_reaches_the_same_end_sooner() -> None:
    x = data(N, T, seed=6)
    plain = EM(make_model(start(OWN))).run(x, num_steps=5000, tol=1e-7).history
    pyro.clear_param_store()
    em = EM(make_model(start(OWN)))
    quick = em.run(x, num_steps=5000, tol=1e-7, acceleration="squarem").history
    assert len(quick) < 0.7 * len(plain)
    assert quick[-1] == pytest.approx(plain[-1], rel=1e-7)


def test_density_is_that_of_the_distribution() -> None:
    for shapes in SHARINGS.values():
        given, x = build(start(shapes)), data(N, T, seed=7)
        family = emissions.find_family(given, 1)
        found = family.log_prob(x, family.read(given), 1)
        assert_close(found, given.log_prob(x.unsqueeze(-2)), rtol=1e-10, atol=1e-10)


def test_derivatives_of_the_density() -> None:
    values = start(OWN)
    family = emissions.low_rank_normal.LOW_RANK_NORMAL

    def density(value: Tensor, loc: Tensor, factor: Tensor, diag: Tensor) -> Tensor:
        given = {"loc": loc, "cov_factor": factor, "cov_diag": diag}
        return family.log_prob(value, given, 1)

    leaves = [draw(3, D, seed=1), *(values[name] for name in ("loc", "factor", "diag"))]
    leaves = [each.requires_grad_() for each in leaves]
    assert torch.autograd.gradcheck(density, leaves)
    assert torch.autograd.gradgradcheck(density, leaves)


def test_restarts_do_not_depend_on_their_neighbours() -> None:
    x = data(1, T, seed=7)
    starts = [start(OWN) | {"factor": draw(*OWN["factor"], seed=seed)} for seed in range(3)]

    def run(chosen: list[int]) -> dict[str, Tensor]:
        pyro.clear_param_store()
        values = {
            name: torch.stack([starts[r][name] for r in chosen]).unsqueeze(1) for name in OWN
        }
        em = EM(make_model(values))
        em.run(x.expand(len(chosen), T, D), num_steps=40, tol=1e-6)
        return {name: pyro.param(name).detach() for name in OWN}

    together = run([0, 1, 2])
    for r in range(3):
        alone = run([r])
        for name in OWN:
            assert torch.equal(alone[name][0], together[name][r])


def test_float32() -> None:
    x, old = data(N, T, seed=7), start(OWN)
    EM(make_model(old)).run(x, num_steps=20, tol=None)
    double = {name: pyro.param(name).detach() for name in OWN}
    pyro.clear_param_store()
    EM(make_model({name: value.float() for name, value in old.items()})).run(
        x.float(), num_steps=20, tol=None
    )
    for name in OWN:
        assert_close(pyro.param(name).detach().double(), double[name], rtol=5e-3, atol=2e-3)


def test_a_state_without_data_keeps_its_parameters() -> None:
    x, old = data(N, T, seed=7), start(OWN)

    def model(x: Tensor) -> None:
        values = {n: pyro.param(n, v, constraint=CONSTRAINTS[n]) for n, v in old.items()}
        each = RegimeHMM(
            initial_probs=torch.tensor([1.0, 0.0]).double(),
            transition_probs=torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double(),
            observation_dist=build(values),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    EM(model).run(x, num_steps=5, tol=None)
    for name in OWN:
        assert_close(pyro.param(name).detach()[1], old[name][1], rtol=1e-12, atol=0.0)
        assert (pyro.param(name).detach()[0] != old[name][0]).any()


def test_stochastic_em() -> None:
    x, old = data(60, 40, seed=7), start(OWN)
    EM(make_model(old)).run(x, num_steps=2000, tol=1e-7)

    def covariance() -> Tensor:
        factor = pyro.param("factor").detach()
        return factor @ factor.mT + torch.diag_embed(pyro.param("diag").detach())

    expected = covariance()
    pyro.clear_param_store()

    def minibatches(x: Tensor) -> None:
        values = {n: pyro.param(n, v, constraint=CONSTRAINTS[n]) for n, v in old.items()}
        with pyro.plate("sequences", 60, subsample_size=12) as index:
            pyro.sample("x", hmm(values), obs=x[index])

    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=300, tol=None)
    size = float(np.abs(expected.numpy()).max())
    assert_close(covariance(), expected, rtol=0.0, atol=0.05 * size)


def test_a_conjugate_prior_of_the_noise_gives_the_mode() -> None:
    x, old = data(N, T, seed=7), start(OWN)

    def model(x: Tensor) -> None:
        prior = dist.InverseGamma(torch.full((K, D), 4.0).double(), 1.0).to_event(2)
        values = {"loc": pyro.param("loc", old["loc"]), "factor": pyro.param("f", old["factor"])}
        values["diag"] = pyro.sample("diag", prior)
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(values), obs=x)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"diag": old["diag"]}))
    result = EM(model, guide).run(x, num_steps=5000, tol=1e-7)
    assert result.converged and not result.unconfirmed
