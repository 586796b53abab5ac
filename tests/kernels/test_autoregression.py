"""Hamilton's autoregression as one function, against its densities and the chain of tuples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_regimes.kernels import autoregression, lagged, ops
from tests import seeds

SIZES = [(2, 4, 70), (2, 1, 9), (4, 2, 30), (2, 3, 1), (3, 2, 8)]  # K, p, T


def random_problem(num_states: int, order: int, num_steps: int, *, switching: bool) -> list[Tensor]:
    """Of two sequences; the arguments of the functions of the module."""
    draw = seeds.generator(100 * num_states + order)
    own = num_states if switching else 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return [
        normal(2, num_states ** (order + 1)),
        normal(2, num_states, num_states),
        2 * normal(2, order + num_steps),
        normal(1, num_states),
        0.4 * normal(2, own, order),
        (0.4 * normal(1, own)).exp(),
    ]


def densities(given: list[Tensor]) -> Tensor:
    """From the formula, tuple by tuple: ``(2, T, S)``."""
    series, loc, coefficients, scale = given[2:]
    num_states, order = loc.shape[-1], coefficients.shape[-1]
    found = []
    for s in range(num_states ** (order + 1)):
        path = [s // num_states**lag % num_states for lag in range(order + 1)]  # the latest first
        mean = loc[:, path[0], None]
        phi = coefficients[:, path[0] % coefficients.shape[1]]
        for lag in range(1, order + 1):
            past = series[:, order - lag : series.shape[1] - lag]
            mean = mean + phi[:, lag - 1, None] * (past - loc[:, path[lag], None])
        sigma = scale[:, path[0] % scale.shape[1], None]
        density = Normal(mean, sigma, validate_args=False)
        found.append(density.log_prob(series[:, order:]))
    return torch.stack(found, -1)


@pytest.mark.parametrize("switching", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_chain_of_tuples(sizes, switching):
    given = random_problem(*sizes, switching=switching)
    logits = densities(given)
    assert_close(autoregression.log_densities(*given[2:]), logits, rtol=1e-12, atol=1e-12)
    wanted = lagged.expectations(given[0], given[1], logits)
    assert_close(autoregression.expectations(*given), wanted, rtol=1e-10, atol=1e-12)
    assert_close(autoregression.log_likelihood(*given), wanted[0], rtol=1e-10, atol=1e-12)
    value, filtered, smoothed, moved = autoregression.posterior(*given)
    so_far = lagged.filter_probs(given[0], given[1], logits)
    last = [each.unflatten(-1, (-1, sizes[0])).sum(-2) for each in (so_far, wanted[1])]
    assert_close((filtered, smoothed), tuple(last), rtol=1e-10, atol=1e-12)
    assert_close((value, moved), (wanted[0], wanted[2]), rtol=1e-10, atol=1e-12)
    with ops.backend("reference"):
        assert_close(autoregression.expectations(*given), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("switching", [False, True])
@pytest.mark.parametrize("sizes", [(2, 2, 6), (3, 1, 5)])
def test_derivatives(sizes, switching):
    given = [each.requires_grad_() for each in random_problem(*sizes, switching=switching)]
    assert torch.autograd.gradcheck(autoregression.log_likelihood, given)
    assert torch.autograd.gradgradcheck(autoregression.log_likelihood, given)
    assert torch.autograd.gradcheck(autoregression.expectations, given)
    assert torch.autograd.gradcheck(autoregression.posterior, given)


def test_derivatives_of_transitions_that_vary_in_time():
    given = random_problem(2, 2, 6, switching=True)
    given[1] = given[1].unsqueeze(1) * torch.linspace(0.5, 2.0, 5).double().view(1, -1, 1, 1)
    given = [each.requires_grad_() for each in given]
    assert torch.autograd.gradcheck(autoregression.log_likelihood, given)
    found = torch.autograd.grad(autoregression.log_likelihood(*given).sum(), given)
    moved = autoregression.expectations(*given)[2]
    assert_close(found[1], moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("switching", [False, True])
def test_first_derivatives_of_each_argument_alone(switching):
    given = random_problem(2, 2, 6, switching=switching)
    leaves = [each.clone().requires_grad_() for each in given]
    value = lagged.log_likelihood(*leaves[:2], densities(leaves)).sum()
    wanted = torch.autograd.grad(value, leaves)
    for n, each in enumerate(leaves):
        some = [*given[:n], each, *given[n + 1 :]]
        (found,) = torch.autograd.grad(autoregression.log_likelihood(*some).sum(), each)
        assert_close(found, wanted[n], rtol=1e-9, atol=1e-10)


def test_derivatives_do_not_lose_digits_far_from_zero():
    given = random_problem(2, 2, 40, switching=False)
    far = [*given[:2], given[2] + 1e6, given[3] + 1e6, *given[4:]]
    found = []
    for each in (given, far):
        leaves = [one.clone().requires_grad_() for one in each]
        value = autoregression.log_likelihood(*leaves)
        found.append([value, *torch.autograd.grad(value.sum(), leaves)])
    assert_close(found[1], found[0], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", ["tight", "outlier", "distant", "large", "tiny", "apart", "nan"])
def test_where_the_product_fails_logits_are_used(name):
    given = random_problem(2, 4, 60, switching=name != "tight")
    if name == "tight":
        given[5] = given[5] * 0.01
    elif name == "outlier":
        given[2][:, 30] = 1e4
    elif name == "distant":
        given[3] = torch.tensor([[-1e3, 1e3]]).double()
    elif name == "large":
        given[2:4] = [1e6 * each for each in given[2:4]]
        given[5] = 1e6 * given[5]
    elif name == "tiny":
        given[2:4] = [1e-6 * each for each in given[2:4]]
        given[5] = 1e-6 * given[5]
    elif name == "apart":  # one standard deviation is a thousandth of the other
        given[5] = torch.tensor([[1e-3, 1.0]]).double()
    else:
        given[2][0, 20] = math.nan
    logits = densities(given)
    wanted = lagged.expectations(given[0], given[1], logits)
    found = autoregression.expectations(*given)
    assert_close(found, wanted, rtol=1e-8, atol=1e-9, equal_nan=True)
    assert found[0][1].isfinite()
    so_far = lagged.filter_probs(given[0], given[1], logits)
    filtered = so_far.unflatten(-1, (-1, 2)).sum(-2)
    again = autoregression.posterior(*given)[1]
    assert_close(again, filtered, rtol=1e-8, atol=1e-9, equal_nan=True)
