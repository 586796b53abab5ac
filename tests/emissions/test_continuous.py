"""Densities and EM of the continuous families beside the Gaussians, one table entry each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.distributions import MeanGamma, observation
from tests import seeds

K, N, T = 2, 4, 150


class Case(NamedTuple):
    """A family with two states."""

    make: Callable[..., dist.Distribution]
    arguments: dict[str, list[float]]  #: of the two states, where data are drawn
    starts: dict[str, list[float]]  #: where EM starts
    constraints: dict[str, constraints.Constraint]
    scipy: Callable[..., np.ndarray]  #: log density at a value and the arguments of one state
    inside: list[float]  #: values in the support, also far out and at its bounds
    outside: list[float]  #: values that no state can emit
    unit: bool = True  #: whether a positive factor of the data leaves the family
    digits: float = 1e-12  #: to which the distribution's own density is accurate


POSITIVE = {"concentration": constraints.positive, "rate": constraints.positive}

CASES = {
    "LogNormal": Case(
        dist.LogNormal,
        {"loc": [0.0, 2.0], "scale": [0.4, 0.9]},
        {"loc": [0.5, 1.0], "scale": [1.0, 1.0]},
        {"loc": constraints.real, "scale": constraints.positive},
        lambda x, loc, scale: scipy.stats.lognorm.logpdf(x, scale, scale=np.exp(loc)),
        [1e-300, 1e-5, 0.3, 1.0, 4.5, 1e8, 1e300],
        [0.0, -1.0],
    ),
    "InverseGamma": Case(
        dist.InverseGamma,
        {"concentration": [3.0, 30.0], "rate": [1.0, 60.0]},
        {"concentration": [1.0, 5.0], "rate": [1.0, 1.0]},
        POSITIVE,
        lambda x, concentration, rate: scipy.stats.invgamma.logpdf(x, concentration, scale=rate),
        [1e-5, 0.01, 0.3, 1.0, 4.999, 5.0, 6.0, 100.0, 1e8, 1e300],
        [-1.0, 0.0],
    ),
    "Gamma": Case(
        dist.Gamma,
        {"concentration": [2.0, 30.0], "rate": [1.0, 6.0]},
        {"concentration": [1.0, 5.0], "rate": [1.0, 1.0]},
        POSITIVE,
        lambda x, concentration, rate: scipy.stats.gamma.logpdf(x, concentration, scale=1 / rate),
        [1e-300, 1e-5, 0.3, 1.0, 4.999, 5.0, 6.0, 100.0, 1e8, 0.0],
        [-1.0],
    ),
    "MeanGamma": Case(
        MeanGamma,
        {"mean": [2.0, 5.0], "concentration": [2.0, 30.0]},
        {"mean": [1.0, 5.0], "concentration": [1.0, 5.0]},
        {"mean": constraints.positive, "concentration": constraints.positive},
        lambda x, mean, concentration: scipy.stats.gamma.logpdf(
            x, concentration, scale=mean / concentration
        ),
        [1e-300, 1e-5, 0.3, 1.0, 4.999, 5.0, 6.0, 100.0, 1e8, 0.0],
        [-1.0],
    ),
    "HalfNormal": Case(
        dist.HalfNormal,
        {"scale": [0.5, 3.0]},
        {"scale": [1.0, 2.0]},
        {"scale": constraints.positive},
        lambda x, scale: scipy.stats.halfnorm.logpdf(x, scale=scale),
        [1e-300, 0.01, 1.0, 0.0, 4.0, 100.0],
        [-1e-3, -5.0],
    ),
    "Weibull": Case(
        dist.Weibull,
        {"scale": [0.5, 3.0], "concentration": [0.8, 4.0]},
        {"scale": [1.0, 2.0], "concentration": [1.0, 1.0]},
        {"scale": constraints.positive, "concentration": constraints.positive},
        lambda x, scale, concentration: scipy.stats.weibull_min.logpdf(
            x, concentration, scale=scale
        ),
        [1e-300, 0.01, 1.0, 2.5, 4.0, 20.0, 1e-20],
        [0.0, -5.0],
    ),
    "Beta": Case(
        dist.Beta,
        {"concentration1": [0.8, 20.0], "concentration0": [2.0, 5.0]},
        {"concentration1": [1.5, 3.0], "concentration0": [1.5, 1.5]},
        {"concentration1": constraints.positive, "concentration0": constraints.positive},
        lambda x, concentration1, concentration0: scipy.stats.beta.logpdf(
            x, concentration1, concentration0
        ),
        [1e-300, 1e-3, 0.3, 0.5, 0.8, 0.81, 0.999, 1.0],
        [-0.1, 1.1],
        unit=False,
    ),
    "Laplace": Case(
        dist.Laplace,
        {"loc": [0.5, -3.0], "scale": [0.8, 2.0]},
        {"loc": [1.0, -1.0], "scale": [1.0, 1.0]},
        {"loc": constraints.real, "scale": constraints.positive},
        lambda x, loc, scale: scipy.stats.laplace.logpdf(x, loc, scale),
        [-300.0, -3.0, 0.0, 0.5, 4.0, 300.0],
        [],
    ),
    "VonMises": Case(
        dist.VonMises,
        {"loc": [0.5, -2.9], "concentration": [1.5, 30.0]},
        {"loc": [0.0, 3.0], "concentration": [1.0, 2.0]},
        {"loc": constraints.real, "concentration": constraints.positive},
        lambda x, loc, concentration: scipy.stats.vonmises.logpdf(x, concentration, loc),
        [-3.14159, -3.0, -0.5, 0.0, 0.5, 3.0, 3.14159, 100.0],
        [],
        unit=False,
        digits=1e-6,
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def build(
    case: Case, values: dict[str, list[float]] | dict[str, Tensor], dtype: torch.dtype
) -> dist.Distribution:
    given = {name: torch.as_tensor(value, dtype=dtype) for name, value in values.items()}
    return case.make(**given)


def log_prob(built: dist.Distribution, value: Tensor) -> Tensor:
    """That of the family, without validation."""
    assert emissions.find_family(emissions.unwrap(built).base, len(built.event_shape)) is not None
    return observation.log_prob(built, value, is_checked=True)


def numbers(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(case.inside, dtype=dtype)


@EVERY
def test_density_is_that_of_scipy(name: str) -> None:
    case = CASES[name]
    found = log_prob(build(case, case.arguments, torch.float64), numbers(case))
    for state in range(K):
        given = {key: value[state] for key, value in case.arguments.items()}
        expected = torch.as_tensor(case.scipy(np.array(case.inside), **given))
        assert_close(found[:, state], expected, rtol=1e-11, atol=1e-11)


@EVERY
def test_density_is_that_of_the_distribution(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(seeds.seed(1))
    built = build(case, case.arguments, torch.float64)
    x = built.sample((5, 30))
    found, digits = log_prob(built.expand((30, K)), x[..., 0]), case.digits
    assert_close(found, built.log_prob(x[..., :1]), rtol=digits, atol=digits)
    columns = {
        key: torch.tensor([[each] * 3 for each in value], dtype=torch.float64)
        for key, value in case.arguments.items()
    }
    series = case.make(**columns).to_event(1)
    three = x[:, :27, 0].reshape(5, 9, 3)
    assert_close(
        log_prob(series, three), series.log_prob(three.unsqueeze(-2)), rtol=digits, atol=digits
    )


@EVERY
def test_float32_is_float64_to_rounding(name: str) -> None:
    case = CASES[name]
    single = numbers(case, torch.float32)
    single = single[single.isfinite() & ((single == 0) | (single.abs() > 1e-30))]
    found = log_prob(build(case, case.arguments, torch.float32), single)
    assert found.dtype == torch.float32
    exact = {
        name: torch.tensor(value, dtype=torch.float32).double()
        for name, value in case.arguments.items()
    }
    expected = log_prob(build(case, exact, torch.float64), single.double())
    assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@EVERY
def test_what_lies_outside_has_probability_zero_and_no_nan(name: str) -> None:
    case = CASES[name]
    given = {
        name: torch.tensor(value, dtype=torch.float64).requires_grad_()
        for name, value in case.arguments.items()
    }
    x = torch.tensor(case.outside + case.inside[2:4], dtype=torch.float64, requires_grad=True)
    found = log_prob(build(case, given, torch.float64), x)
    number = len(case.outside)
    assert (found[:number] == -torch.inf).all() and found[number:].isfinite().all()
    gradients = torch.autograd.grad(found.exp().sum() + found[number:].sum(), [x, *given.values()])
    assert all(each.isfinite().all() for each in gradients)
    missing = torch.tensor([torch.nan]).double()
    assert log_prob(build(case, case.arguments, torch.float64), missing).isnan().all()


@EVERY
def test_gradcheck_in_value_and_arguments(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(seeds.seed(2))
    x = build(case, case.arguments, torch.float64).sample((4,))[..., 0].requires_grad_()
    given = [
        torch.tensor(each, dtype=torch.float64, requires_grad=True)
        for each in case.arguments.values()
    ]

    def density(x: Tensor, *values: Tensor) -> Tensor:
        return log_prob(case.make(**dict(zip(case.arguments, values, strict=True))), x)

    assert torch.autograd.gradcheck(density, (x, *given))
    assert torch.autograd.gradgradcheck(density, (x, *given))


def model(
    case: Case, x: Tensor, fixed: tuple[str, ...] = (), size: int | None = None, scale: float = 1.0
) -> None:
    values = {}
    for name, start in case.starts.items():
        if name in fixed:
            values[name] = torch.tensor(case.arguments[name], dtype=x.dtype)
        else:
            start = torch.tensor(start, dtype=x.dtype)
            values[name] = pyro.param(name, start, constraint=case.constraints[name])
    rows = pyro.param(
        "rows", torch.tensor([[0.8, 0.2], [0.3, 0.7]]).to(x), constraint=constraints.simplex
    )
    start_probs = torch.tensor([0.5, 0.5]).to(x)
    hmm = RegimeHMM(
        initial_probs=start_probs, transition_probs=rows, observation_dist=case.make(**values)
    )
    with pyro.plate("sequences", len(x), subsample_size=size) as index:
        pyro.sample("x", hmm, obs=x if size is None else x[index])


def data(case: Case, number: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(seeds.seed(3))
    built = build(case, case.arguments, dtype)
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=dtype)
    hmm = RegimeHMM(
        initial_probs=torch.tensor([0.5, 0.5], dtype=dtype),
        transition_probs=rows,
        observation_dist=built,
        duration=T,
    )
    return hmm.sample((number,))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_em_climbs_to_the_maximum(name: str, dtype: torch.dtype) -> None:
    """No step falls, and the model's own gradient confirms the end."""
    case = CASES[name]
    x = data(case, dtype=dtype)
    em = EM(lambda x: model(case, x))
    tol = 1e-7 if dtype == torch.float64 else 1e-3
    result = em.run(x, num_steps=2000, tol=tol)
    assert result.converged and not result.unconfirmed
    assert not em.plan.gradient and len(em.plan.assignments) == len(case.starts) + 1
    history, slack = result.history, 1e-9 if dtype == torch.float64 else 1e-5
    assert all(b <= a + slack * abs(a) for a, b in zip(history, history[1:]))


@EVERY
def test_extrapolated_steps_end_there_too(name: str) -> None:
    case = CASES[name]
    x, ends = data(case), []
    for acceleration in (None, "squarem"):
        pyro.clear_param_store()
        result = EM(lambda x: model(case, x)).run(
            x, num_steps=2000, tol=1e-8, acceleration=acceleration
        )
        assert result.converged and not result.unconfirmed
        history = result.history
        assert all(b <= a + 1e-9 * abs(a) for a, b in zip(history, history[1:]))
        ends.append(history[-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


@EVERY
def test_integers_are_numbers(name: str) -> None:
    case = CASES[name]
    built = build(case, case.arguments, torch.float64)
    whole = torch.tensor([1, 0] if name == "Beta" else [1, 2, 3])
    found = log_prob(built, whole)
    assert_close(found, log_prob(built, whole.double()), rtol=1e-15, atol=0.0)


@EVERY
def test_the_derivative_of_q_and_the_predicted_gain(name: str) -> None:
    """The score is that of autograd, and the gain that of the update of an argument nearby."""
    case = CASES[name]
    torch.manual_seed(seeds.seed(6))
    built = build(case, case.arguments, torch.float64)
    x = built.sample((T,))[:, 0]
    weights = torch.rand(T, K, dtype=torch.float64)
    base = emissions.unwrap(built).base
    family = emissions.find_family(base)
    assert family is not None
    observed = emissions.Observed(x.unsqueeze(-1), weights, False)

    def pooled(given: dict[str, Tensor], argument: emissions.Argument) -> object:
        stats = family.statistics(observed, given, frozenset(given))
        found = argument.reduce(stats, given, True)
        return type(found)._make(None if each is None else each.reshape(K) for each in found)

    def q(given: dict[str, Tensor]) -> Tensor:
        return (weights * family.log_prob(x, given, 0)).sum(0)

    best = family.read(base)
    for argument in family.arguments:
        if not argument.links:
            continue
        for _ in range(50):
            new = argument.maximise(pooled(best, argument), best[argument.name], 0.0)
            best = best | {argument.name: new}
        near = best[argument.name] + 0.003 * best[argument.name].abs().clamp(min=0.1)
        given = best | {argument.name: near}
        by = torch.zeros(K, dtype=torch.float64, requires_grad=True)
        moved = argument.natural.perturb(near, by)
        (expected,) = torch.autograd.grad(q(given | {argument.name: moved}).sum(), by)
        there = pooled(given, argument)
        score = argument.natural.score(there, near)
        slack = 0.0 if name != "Laplace" else 1e-6
        assert_close(score, expected, rtol=1e-6 + slack, atol=1e-7 + slack)
        if name == "Laplace" and argument.name == "loc":
            continue  # its information is that of many observations within the step
        gain = argument.natural.gain(score, there, near, 0.0)
        assert_close(gain, q(best) - q(given), rtol=0.1, atol=1e-9)


@EVERY
def test_em_with_an_argument_fixed(name: str) -> None:
    case = CASES[name]
    x = data(case)
    for each in case.starts:
        if len(case.starts) == 1:
            continue
        pyro.clear_param_store()
        result = EM(lambda x, each=each: model(case, x, (each,))).run(x, num_steps=2000, tol=1e-7)
        assert result.converged and not result.unconfirmed
        assert each not in pyro.get_param_store()
        history = result.history
        assert all(b <= a + 1e-9 * abs(a) for a, b in zip(history, history[1:]))


@EVERY
def test_stochastic_em_ends_near_the_maximum(name: str) -> None:
    case = CASES[name]
    x = data(case, 40)
    EM(lambda x: model(case, x)).run(x, num_steps=300, tol=1e-7)
    expected = {key: pyro.param(key).detach().clone() for key in case.starts}
    pyro.clear_param_store()
    torch.manual_seed(seeds.seed(4))
    EM(lambda x: model(case, x, size=10)).run(x, num_steps=150, tol=None)
    for key, value in expected.items():
        assert_close(pyro.param(key).detach(), value, rtol=0.06, atol=0.06)


@EVERY
def test_a_state_without_data_keeps_its_arguments(name: str) -> None:
    case = CASES[name]
    x = data(case)

    def never(x: Tensor) -> None:
        values = {}
        for key, numbers in case.starts.items():
            start = torch.tensor(numbers, dtype=x.dtype)
            values[key] = pyro.param(key, start, constraint=case.constraints[key])
        probs = torch.tensor([1.0, 0.0]).to(x)
        hmm = RegimeHMM(
            initial_probs=probs,
            transition_probs=torch.stack([probs, probs]),
            observation_dist=case.make(**values),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    EM(never).step(x)
    for key, start in case.starts.items():
        found = pyro.param(key).detach()
        assert_close(found[1], torch.tensor(start[1], dtype=torch.float64), rtol=1e-12, atol=0.0)
        assert found.isfinite().all()


@EVERY
def test_values_that_are_all_equal_leave_a_state_where_it_is(name: str) -> None:
    """Their likelihood has no maximum, and says so instead of NaN."""
    case = CASES[name]
    x = torch.full((1, 20), case.inside[3], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no maximum"):
        EM(lambda x: model(case, x)).run(x, num_steps=3, tol=None, check=False)
    for key in case.starts:
        assert pyro.param(key).isfinite().all()


@pytest.mark.parametrize("draw", [5, 6, 7])
@EVERY
def test_a_batch_of_restarts_is_a_loop(name: str, draw: int) -> None:
    case = CASES[name]
    x = data(case)[0]
    generator = seeds.generator(draw)
    starts = {}
    for key, start in case.starts.items():
        noise = torch.randn(3, 1, K, generator=generator, dtype=torch.float64)
        start = torch.tensor(start, dtype=torch.float64)
        near = case.constraints[key] is constraints.real
        starts[key] = start + 0.2 * noise if near else start * (0.2 * noise).exp()

    def batch(x: Tensor, which: list[int]) -> None:
        values = {
            key: pyro.param(key, start[which], constraint=case.constraints[key])
            for key, start in starts.items()
        }
        with pyro.plate("restarts", len(which)):
            hmm = RegimeHMM(
                initial_probs=torch.tensor([0.5, 0.5]).double(),
                transition_probs=torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double(),
                observation_dist=case.make(**values),
            )
            pyro.sample("x", hmm, obs=x.expand(len(which), T))

    EM(batch).run(x, [0, 1, 2], num_steps=8, tol=None)
    together = {key: pyro.param(key).detach().clone() for key in starts}
    for each in range(3):
        pyro.clear_param_store()
        EM(batch).run(x, [each], num_steps=8, tol=None)
        for key, value in together.items():
            assert torch.equal(pyro.param(key).detach()[0], value[each])


@EVERY
def test_the_unit_of_the_data_does_not_matter(name: str) -> None:
    """Steps and likelihoods are those of the data in another unit, up to its logarithm."""
    case = CASES[name]
    if not case.unit:
        return
    x = data(case)
    gains = []
    for unit in (1.0, 1e-9, 1e9):
        pyro.clear_param_store()
        changed = dict(case.starts)
        for key, start in case.starts.items():
            factor = UNITS[name].get(key)
            if factor is not None:
                changed[key] = factor(np.array(start), unit).tolist()
        history = EM(lambda x, c=case._replace(starts=changed): model(c, x)).run(
            unit * x, num_steps=10, tol=None
        ).history
        gains.append(history[0] - history[-1])
    assert gains[0] == pytest.approx(gains[1], rel=1e-8) == pytest.approx(gains[2], rel=1e-8)


#: How a start changes with the unit of the data.
UNITS: dict[str, dict[str, Callable[[np.ndarray, float], np.ndarray]]] = {
    "LogNormal": {"loc": lambda loc, unit: loc + np.log(unit)},
    "Gamma": {"rate": lambda rate, unit: rate / unit},
    "InverseGamma": {"rate": lambda rate, unit: rate * unit},
    "MeanGamma": {"mean": lambda mean, unit: mean * unit},
    "Weibull": {"scale": lambda scale, unit: scale * unit},
    "Laplace": {key: lambda value, unit: value * unit for key in ("loc", "scale")},
    "HalfNormal": {"scale": lambda scale, unit: scale * unit},
}
