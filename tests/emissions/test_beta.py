"""Beta and Dirichlet observations: accuracy, bounds, and what is maximised together."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.distributions import observation
from pyro_regimes.emissions import dirichlet
from tests import seeds

K, N, T = 2, 3, 200
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
STATE = torch.arange(T) // 10 % 2


def doubles(*values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def positive(name: str, start: Tensor) -> Tensor:
    found: Tensor = pyro.param(name, start.clone(), constraint=constraints.positive)
    return found


def sample(built: dist.Distribution) -> Tensor:
    torch.manual_seed(seeds.seed(1))
    return built.sample((N, T))[:, torch.arange(T), STATE]


@pytest.mark.parametrize("a, b", [(1.0, 3.0), (1.0, 1.0), (0.5, 2.0), (2.0, 1.0), (3.0, 0.4)])
def test_the_bounds(a: float, b: float) -> None:
    built = dist.Beta(doubles(a), doubles(b))
    found = observation.log_prob(built, doubles(0.0, 1.0))[:, 0]
    expected = scipy.stats.beta.logpdf([0.0, 1.0], a, b)
    assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e4, 1e8])
def test_large_concentrations_keep_their_digits(size: float) -> None:
    """The density is nearly normal, in float32 too."""
    mean, spread = 0.3, (0.3 * 0.7 / size) ** 0.5
    x = mean + spread * torch.linspace(-3, 3, 7, dtype=torch.float64)
    a, b = doubles(mean * size), doubles((1 - mean) * size)
    found = observation.log_prob(dist.Beta(a, b), x)[:, 0]
    normal = torch.from_numpy(scipy.stats.norm.logpdf(x.numpy(), mean, spread))
    assert_close(found, normal, rtol=0.0, atol=20 / size**0.5)
    if size == 1e4:
        single = observation.log_prob(dist.Beta(a.float(), b.float()), x.float())[:, 0]
        assert_close(single.double(), found, rtol=0.0, atol=0.02)


def test_the_density_of_a_dirichlet() -> None:
    a = torch.tensor([[0.5, 2.0, 7.0], [1.0, 300.0, 20.0]], dtype=torch.float64)
    torch.manual_seed(seeds.seed(2))
    x = dist.Dirichlet(torch.ones(3).double()).sample((9,))
    built = dist.Dirichlet(a)
    found = observation.log_prob(built, x)
    for k in range(K):
        expected = scipy.stats.dirichlet.logpdf(x.mT.numpy(), a[k].numpy())
        assert_close(found[:, k], torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    assert_close(found, built.log_prob(x.unsqueeze(-2)), rtol=1e-12, atol=1e-12)
    one, edge = dist.Dirichlet(doubles(1.0, 2.0, 3.0)), doubles(0.0, 0.4, 0.6)
    at_zero = observation.log_prob(one.expand((1,)), edge.unsqueeze(0))
    own = one.log_prob(edge)
    assert_close(at_zero[0, 0], own)
    outside = torch.stack([doubles(0.5, 0.6, -0.1), doubles(0.5, 0.1, 0.1)])
    assert (observation.log_prob(built, outside, is_checked=True) == -torch.inf).all()
    leaf, value = a.clone().requires_grad_(), x[:3].clone().unsqueeze(-2).requires_grad_()
    assert torch.autograd.gradcheck(dirichlet.log_density, (value, leaf))
    assert torch.autograd.gradgradcheck(dirichlet.log_density, (value, leaf))


def mean_logarithms(a: Tensor) -> tuple[Tensor, Tensor]:
    """The mean logarithms of the parts, and how far their rounding may move the solution.

    The solution moves by the inverse of the information times the error of the means. All entries
    of the inverse are positive. Both are from mpmath, whose digits do not cancel.
    """
    mpmath = pytest.importorskip("mpmath")
    means, moves = [], []
    with mpmath.workdps(40):
        for row in a.tolist():
            parts = [mpmath.mpf(each) for each in row]
            total = sum(parts)
            exact = [mpmath.psi(0, each) - mpmath.psi(0, total) for each in parts]
            weight = [1 / mpmath.psi(1, each) for each in parts]
            error = [w * (1 + abs(each)) for w, each in zip(weight, exact, strict=True)]
            joint = sum(error) / (1 / mpmath.psi(1, total) - sum(weight))
            means.append([float(each) for each in exact])
            moves.append([float(e + w * joint) for e, w in zip(error, weight, strict=True)])
    eps = torch.finfo(torch.float64).eps
    return doubles(*means), eps * doubles(*moves)


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("number", [2, 5, 40])
def test_the_solve_of_a_dirichlet(size: float, number: int) -> None:
    generator = seeds.generator(number)
    a = size * torch.rand(6, number, generator=generator, dtype=torch.float64).clamp(min=0.01)
    means, rounding = mean_logarithms(a)
    # The solver has as much rounding of its own as the means have.
    assert ((dirichlet.solve(means) - a).abs() <= 4 * rounding + 1e-14 * a).all()


def test_no_maximum() -> None:
    equal = doubles(0.2, 0.3, 0.5).log()
    assert dirichlet.solve(torch.stack([equal, doubles(-1.0, -2.0, -torch.inf)])).isnan().all()


Sharing = Callable[[], tuple[Tensor, Tensor]]
ONES = doubles(2.0, 3.0)


@pytest.mark.parametrize(
    "sharing, joint",
    [
        (lambda: (positive("a", ONES), positive("b", ONES)), ("b",)),
        (lambda: (positive("a", ONES[0]), positive("b", ONES)), ()),
        (lambda: (positive("a", ONES), positive("b", ONES[0])), ()),
        (lambda: (positive("a", ONES), ONES), ()),
        (lambda: (pyro.param("a", ONES.log()).exp(), positive("b", 1 / ONES).reciprocal()), ("b",)),
    ],
    ids=["own", "one first", "one second", "second fixed", "links"],
)
def test_what_is_maximised_together(sharing: Sharing, joint: tuple[str, ...]) -> None:
    x = sample(dist.Beta(doubles(2.0, 9.0), doubles(3.0, 2.0)))

    def model(x: Tensor) -> None:
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Beta(*sharing())), obs=x)

    em = EM(model)
    result = em.run(x, num_steps=1000, tol=1e-9)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))
    assert {each.name: each.joint for each in em.plan.assignments}["a"] == joint


def test_together_they_converge_as_fast_as_a_normal() -> None:
    x = sample(dist.Beta(doubles(3e4, 5e4), doubles(7e4, 5e4)))

    def model(x: Tensor) -> None:
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Beta(positive("a", ONES), positive("b", 3 * ONES))), obs=x)

    result = EM(model).run(x, num_steps=60, tol=1e-7)
    assert result.converged and not result.unconfirmed
    found = pyro.param("a").detach(), pyro.param("b").detach()
    order = (found[0] / found[1]).argsort()
    for k in range(K):
        a, b, _, _ = scipy.stats.beta.fit(x[:, STATE == k].numpy().ravel(), floc=0, fscale=1)
        assert float(found[0][order[k]]) == pytest.approx(a, rel=1e-3)
        assert float(found[1][order[k]]) == pytest.approx(b, rel=1e-3)


def test_em_of_a_dirichlet() -> None:
    a = torch.tensor([[2.0, 3.0, 9.0], [8.0, 1.0, 2.0]], dtype=torch.float64)
    x = sample(dist.Dirichlet(a))

    def model(x: Tensor) -> None:
        start = torch.tensor([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Dirichlet(positive("a", start))), obs=x)

    result = EM(model).run(x, num_steps=300, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))
    assert_close(pyro.param("a").detach(), a, rtol=0.25, atol=0.3)


def test_a_member_of_a_stack_depends_on_itself_alone() -> None:
    """A Beta keeps its concentrations in one tensor, and gives the other a derivative of 0."""

    def model(x: Tensor, joined: bool) -> None:
        a, b = positive("a", ONES), positive("b", ONES)
        if joined:
            both = torch.stack([b, torch.ones(2).double(), a])
            a, b = both[2], both[0]
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Beta(a, b)), obs=x)

    x = sample(dist.Beta(doubles(2.0, 9.0), doubles(3.0, 2.0)))
    losses = []
    for joined in (False, True):
        pyro.clear_param_store()
        em = EM(model)
        losses.append(em.run(x, joined, num_steps=5, tol=None).history[-1])
        assert em.plan.names == ["a", "b"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)

    def both(x: Tensor) -> None:
        a, b = positive("a", ONES), positive("b", ONES)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Beta(a + b, b)), obs=x)

    with pytest.raises(ValueError, match="b: used in arguments that have different updates"):
        EM(both).step(x)
