"""Gamma observations: accuracy of the solves, what is maximised together, and priors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.distributions import observation
from pyro_regimes.emissions import special
from tests import seeds

K, N, T = 2, 3, 200


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


INITIAL = doubles(0.6, 0.4)
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def positive(name: str, start: Tensor) -> Tensor:
    found: Tensor = pyro.param(name, start.clone(), constraint=constraints.positive)
    return found


def data(concentration: Tensor, mean: Tensor, number: int = N) -> Tensor:
    torch.manual_seed(seeds.seed(1))
    state = torch.arange(T) // 10 % 2
    each = dist.Gamma(concentration, concentration / mean).sample((number, T))
    return each[:, torch.arange(T), state]


def test_solves_have_all_digits() -> None:
    shapes = torch.logspace(-6, 12, 300, dtype=torch.float64)
    assert_close(special.inverse_digamma(shapes.digamma()), shapes, rtol=1e-12, atol=0.0)
    # With a spread s = 1 / (2a) + 1 / (12 a^2) - ...
    large = torch.logspace(2, 12, 100, dtype=torch.float64)
    spread = 1 / (2 * large) + 1 / (12 * large**2) - 1 / (120 * large**4)
    assert_close(special.solve_shape(spread), large, rtol=1e-12, atol=0.0)
    small = torch.logspace(-6, 1, 100, dtype=torch.float64)
    spread = small.log() - torch.from_numpy(scipy.special.digamma(small.numpy()))
    assert_close(special.solve_shape(spread), small, rtol=1e-12, atol=0.0)
    assert special.solve_shape(torch.tensor([0.0, -1.0, torch.nan, torch.inf])).isnan().all()


@pytest.mark.parametrize("concentration", [1e4, 1e8, 1e12])
def test_the_density_of_a_large_concentration_keeps_its_digits(concentration: float) -> None:
    """It is nearly normal, where the plain formula has lost all digits of float32."""
    mean, spread = 3.0, 3.0 / concentration**0.5
    x = mean + spread * torch.linspace(-3, 3, 7, dtype=torch.float64)
    rate = doubles(concentration / mean)
    exact = dist.Gamma(doubles(concentration), rate)
    found = observation.log_prob(exact, x)[:, 0]
    z = (x - mean) / spread
    # Edgeworth's corrections of first order; the next are of order 1 / a.
    third = (z**3 / 3 - z) / concentration**0.5
    expected = torch.from_numpy(scipy.stats.norm.logpdf(x.numpy(), mean, spread)) + third
    assert_close(found, expected, rtol=0.0, atol=30.0 / concentration + 1e-7)
    if concentration <= 1e4:  # beyond, a float32 does not hold the deviation
        single = observation.log_prob(
            dist.Gamma(torch.tensor([concentration]), rate.float()), x.float()
        )[:, 0]
        assert_close(single.double(), expected, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("concentration", [0.3, 1.0, 50.0])
def test_zero(concentration: float) -> None:
    built = dist.Gamma(doubles(concentration), doubles(2.0))
    found = observation.log_prob(built, torch.zeros(1).double())
    assert_close(found[0], torch.tensor([scipy.stats.gamma.logpdf(0.0, concentration, 0, 0.5)]))


Sharing = Callable[[], tuple[Tensor, Tensor]]
ONES, MEANS = doubles(2.0, 3.0), doubles(1.0, 4.0)


@pytest.mark.parametrize(
    "sharing, joint",
    [
        (lambda: (positive("a", ONES), positive("r", ONES)), ("r",)),
        (lambda: (positive("a", ONES[0]), positive("r", ONES)), ("r",)),
        (lambda: (positive("a", ONES), positive("r", ONES[0])), ()),
        (lambda: (positive("a", ONES), ONES), ()),
        (lambda: (ONES, positive("r", ONES)), None),
        (lambda: (positive("a", ONES), torch.stack([positive("r", ONES[0]), ONES[0]])), ()),
        (
            lambda: (
                positive("a", ONES),
                torch.stack([positive("r", ONES[0]), positive("s", ONES[0])]),
            ),
            ("r", "s"),
        ),
    ],
    ids=["own", "one shape", "one rate", "fixed rate", "fixed shape", "a rate fixed", "two names"],
)
def test_what_is_maximised_together(sharing: Sharing, joint: tuple[str, ...] | None) -> None:
    x = data(doubles(4.0, 9.0), MEANS)

    def model(x: Tensor) -> None:
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(*sharing())), obs=x)

    em = EM(model)
    result = em.run(x, num_steps=1000, tol=1e-9)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))
    found = {each.name: each.joint for each in em.plan.assignments}
    assert found.get("a") == joint


@pytest.mark.parametrize("fixed", [False, True])
def test_a_rate_of_two_sites(fixed: bool) -> None:
    """A second site, in which the concentration is another one, is known to the rate alone."""
    x = data(doubles(4.0, 9.0), MEANS)

    def model(x: Tensor) -> None:
        a, r = positive("a", ONES), positive("r", ONES)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(a, r)), obs=x)
            pyro.sample("y", hmm(dist.Gamma(doubles(5.0, 5.0) if fixed else a, r)), obs=2 * x)

    em = EM(model)
    result = em.run(x, num_steps=2000, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(b <= a + 1e-10 * abs(a) for a, b in zip(history, history[1:]))
    joint = {each.name: each.joint for each in em.plan.assignments}
    assert joint["a"] == (() if fixed else ("r",))


def test_a_rate_that_an_optimiser_takes_over_is_no_longer_joint() -> None:
    """Its maximum lies outside its constraint."""
    x = data(doubles(4.0, 9.0), MEANS)

    def model(x: Tensor) -> None:
        bound = constraints.interval(0.0, 3.0)
        r = pyro.param("r", doubles(1.0, 1.0), constraint=bound)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(positive("a", ONES), r)), obs=x)

    em = EM(model, optim=pyro.optim.Adam({"lr": 0.02}))
    history = em.run(x, num_steps=60, tol=None).history
    assert list(em.plan.gradient) == ["r"] and em.plan.order[0].joint == ()
    assert history[-1] < history[0] - 10.0


def test_together_they_converge_as_fast_as_a_normal() -> None:
    """In turn, a concentration of 1e4 would take thousands of steps."""
    x = data(doubles(1e4, 1e4), doubles(1.0, 1.5))

    def model(x: Tensor) -> None:
        pair = positive("a", 10 * ONES), positive("r", doubles(10.0, 10.0))
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(*pair)), obs=x)

    result = EM(model).run(x, num_steps=50, tol=1e-8)
    assert result.converged and not result.unconfirmed
    state = torch.arange(T) // 10 % 2
    for k in range(K):
        own = x[:, state == k].numpy().ravel()
        expected = scipy.stats.gamma.fit(own, floc=0)[0]
        assert float(pyro.param("a")[k].detach()) == pytest.approx(expected, rel=1e-3)


def test_levels_far_apart_keep_their_spread() -> None:
    """A level of 1e7 beside one of 1, each to a part in a million."""
    a = doubles(1e12, 1e12)
    x = data(a, doubles(1.0, 1e7))
    start = doubles(1e12, 1e12), doubles(1e12, 1e5)

    def model(x: Tensor) -> None:
        pair = positive("a", start[0]), positive("r", start[1])
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(*pair)), obs=x)

    EM(model).run(x, num_steps=3, tol=None)
    state = torch.arange(T) // 10 % 2
    for k in range(K):
        own = x[:, state == k].numpy().ravel()
        deviation = own / own.mean() - 1
        expected = 1 / np.mean(deviation**2)
        assert float(pyro.param("a")[k].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("held", ["rate", "scale"])
def test_conjugate_priors(held: str) -> None:
    x, shape = data(doubles(4.0, 9.0), MEANS), doubles(4.0, 9.0)
    two = torch.tensor(2.0, dtype=torch.float64)
    prior = dist.Gamma(30.0, 5.0 * two) if held == "rate" else dist.InverseGamma(30.0, 5.0 * two)

    def model(x: Tensor, free: bool) -> None:
        with pyro.plate("states", K):
            value = pyro.sample("value", prior)
        rate = value if held == "rate" else 1 / value
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(positive("a", shape) if free else shape, rate)), obs=x)

    rate = shape / MEANS
    gamma = hmm(dist.Gamma(shape, rate)).posterior(x).smoothed_probs
    weight, total = gamma.sum((0, 1)), (gamma * x.unsqueeze(-1)).sum((0, 1))
    start = {"value": rate if held == "rate" else 1 / rate}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    em = EM(model, guide)
    em.step(x, False)
    found = pyro.param("AutoDelta.value").detach()
    if held == "rate":
        expected = (weight * shape + 29.0) / (total + 10.0)
    else:
        expected = (total + 10.0) / (weight * shape + 31.0)
    assert_close(found, expected, rtol=1e-10, atol=0.0)
    pyro.clear_param_store()
    em = EM(model, guide)
    result = em.run(x, True, num_steps=2000, tol=1e-8)
    assert result.converged and not result.unconfirmed


@pytest.mark.parametrize("held", ["log", "reciprocal", "inverse softplus"])
def test_links(held: str) -> None:
    x = data(doubles(4.0, 9.0), MEANS)
    forward, start = {
        "log": (torch.exp, ONES.log()),
        "reciprocal": (torch.reciprocal, 1 / ONES),
        "inverse softplus": (torch.nn.Softplus(), ONES.expm1().log()),
    }[held]

    def model(x: Tensor, linked: bool) -> None:
        if linked:
            bound = constraints.positive if held == "reciprocal" else constraints.real
            pair = [forward(pyro.param(name, start.clone(), constraint=bound)) for name in "ar"]
        else:
            pair = [positive("a", ONES), positive("r", ONES)]
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(dist.Gamma(*pair)), obs=x)

    EM(model).run(x, False, num_steps=20, tol=None)
    expected = [pyro.param(name).detach().clone() for name in "ar"]
    pyro.clear_param_store()
    em = EM(model)
    em.run(x, True, num_steps=20, tol=None)
    assert str(em.plan).count(f"as {held}") == 2
    for name, value in zip("ar", expected, strict=True):
        assert_close(forward(pyro.param(name).detach()), value, rtol=1e-9, atol=0.0)


def test_inverse_gamma_is_a_gamma_of_the_reciprocal() -> None:
    x = data(doubles(4.0, 9.0), MEANS)

    def model(x: Tensor, kind: Callable[..., dist.Distribution]) -> None:
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(kind(positive("a", ONES), positive("r", ONES))), obs=x)

    found = []
    for kind, value in ((dist.Gamma, x), (dist.InverseGamma, 1 / x)):
        pyro.clear_param_store()
        result = EM(model).run(value, kind, num_steps=500, tol=1e-9)
        assert result.converged and not result.unconfirmed
        found.append([pyro.param(name).detach().clone() for name in "ar"])
    assert_close(found[0], found[1], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("size", [1e-3, 0.3, 2.0, 1e3, 1e7])
def test_a_root_takes_a_few_steps(size: float) -> None:
    wanted = size * torch.rand(50, generator=seeds.generator(9), dtype=torch.float64).clamp(min=0.1)
    means, num_calls = special.log_minus_digamma(wanted), 0

    def function(log_a: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal num_calls
        num_calls += 1
        value = special.log_minus_digamma(log_a.exp())
        return means.log() - value.log(), special.stretched_slope(log_a.exp()) / value

    low, high = -(2 * means).log() - 1e-9, -means.log() + 1e-9
    found = special.find_root(function, (low + high) / 2, low, high).exp()
    assert_close(found, wanted, rtol=1e-12, atol=0.0)
    assert num_calls <= 8
