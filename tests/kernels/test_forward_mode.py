"""Forward-mode derivatives, alone and over each other, against reverse mode by the reference."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Callable, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from pyro_regimes import RegimeHMM
from pyro_regimes.kernels import arguments, operators, ops
from pyro_regimes.kernels.gaussian import densities
from tests import seeds
from tests.kernels.cases import CASES, Case, random_chain
from tests.kernels.test_reference import assert_equal

# torch's own, where it first meets a tangent.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


def _of_chain(case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The log-likelihood as a function of all finite logits in one vector."""
    free = [part.isfinite() for part in case[:3]]
    # Where each entry is among the free ones, after which come the others.
    places = [
        torch.where(mask, mask.flatten().cumsum(0).view(mask.shape) - 1, 0)
        + torch.where(mask, 0, mask.sum() + (~mask).flatten().cumsum(0).view(mask.shape) - 1)
        for mask in free
    ]

    def value(flat: Tensor) -> Tensor:
        entries = flat.split([int(mask.sum()) for mask in free])
        parts = [
            torch.cat([entry, part[~mask]])[place]
            for part, mask, entry, place in zip(case[:3], free, entries, places, strict=True)
        ]
        return ops.log_likelihood(*parts, case.lengths).sum()

    return value, torch.cat([part[mask] for part, mask in zip(case[:3], free, strict=True)])


def _of_model(kind: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """``log_prob`` as a function of an unconstrained vector of its emissions and its chain."""
    generator = seeds.generator(3)
    x = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    never = float("-inf")

    def value(flat: Tensor) -> Tensor:
        chain = flat[:4].view(2, 2)
        if "zeros" in kind:
            chain = chain.masked_fill(torch.tensor([[False, True], [False, False]]), never)
        rest = flat[4:]
        observed = x[..., 0]
        if kind == "MultivariateNormal":
            factor = torch.diag_embed(rest[4:8].view(2, 2).exp())
            factor = factor + torch.diag_embed(rest[8:10].view(2, 1), -1)
            emission: dist.TorchDistribution = dist.MultivariateNormal(
                rest[:4].view(2, 2), scale_tril=factor
            )
            observed = x
        elif kind == "Categorical":
            emission, observed = dist.Categorical(logits=rest[:6].view(2, 3)), (observed > 0) + 1.0
        elif kind == "StudentT":
            emission = dist.StudentT(4.0, rest[:2], rest[2:4].exp())
        else:
            emission = dist.Normal(rest[:2], rest[2:4].exp())
        lengths = torch.tensor([5, 3]) if "lengths" in kind else None
        hmm = RegimeHMM(
            rest[10:12], chain, emission, lengths=lengths, validate_args=False
        )
        return hmm.log_prob(observed).sum()

    return value, torch.randn(16, generator=generator, dtype=torch.float64)


CHAINS = [
    "plain",
    "T=1",
    "K=1",
    "varying A",
    "shared A and start",
    "structural zeros, batch, lengths",
    "impossible",
]
MODELS = ["Normal", "Normal, lengths", "Normal, zeros", "MultivariateNormal", "Categorical"]
FUNCTIONS = {
    **{f"logits, {name}": (_of_chain, CASES[name]) for name in CHAINS},
    **{name: (_of_model, name) for name in [*MODELS, "StudentT"]},
}


class Function(NamedTuple):
    """A function, where it is differentiated, and what the reference finds there."""

    value: Callable[[Tensor], Tensor]
    at: Tensor
    gradient: Tensor
    curvature: Tensor


@functools.cache
def made(name: str) -> Function:
    make, what = FUNCTIONS[name]
    value, at = make(what)
    return Function(value, at, *expected_of(value, at))


@pytest.fixture(params=FUNCTIONS)
def function(request: pytest.FixtureRequest) -> Function:
    return made(request.param)


def expected_of(value: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian in reverse mode, through the reference."""
    with ops.backend("reference"):
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
        rows = [
            torch.autograd.grad(entry, leaf, retain_graph=True, materialize_grads=True)[0]
            for entry in gradient
        ]
    return gradient.detach(), torch.stack(rows)


@pytest.mark.usefixtures("backend")
def test_first_derivatives(function):
    value, at, gradient, _ = function
    along = torch.randn(at.shape, generator=seeds.generator(0), dtype=at.dtype)
    primal, tangent = jvp(value, (at,), (along,))
    assert_equal(primal, value(at))
    assert_equal(tangent, gradient @ along)
    assert_equal(jacfwd(value)(at), gradient)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(value(forward_ad.make_dual(at, along)))
        assert_equal(found.primal, primal)
        assert_equal(found.tangent, tangent)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "second",
    [
        hessian,
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacrev(jacrev(f)),
        lambda f: jacfwd(jacfwd(f)),
    ],
    ids=["forward over reverse", "reverse over forward", "reverse twice", "forward twice"],
)
def test_second_derivatives(function, second):
    assert_equal(second(function.value)(function.at), function.curvature)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["Normal, lengths", "MultivariateNormal"])
def test_derivatives_are_mapped(name):
    value, at = _of_model(name)
    several = torch.stack([at, at + 0.1])
    expected = [expected_of(value, each) for each in several]
    assert_equal(vmap(jacfwd(value))(several), torch.stack([each[0] for each in expected]))
    assert_equal(vmap(hessian(value))(several), torch.stack([each[1] for each in expected]))


@pytest.mark.usefixtures("backend")
def test_dual_numbers_over_the_reverse_pass(function):
    """``forward_ad`` of a gradient."""
    value, at, _, curvature = function
    along = torch.randn(at.shape, generator=seeds.generator(1), dtype=at.dtype)
    with forward_ad.dual_level():
        leaf = at.clone().requires_grad_()
        dual = forward_ad.make_dual(leaf, along)
        result = value(dual)
        (found,) = torch.autograd.grad(result, leaf, create_graph=True, materialize_grads=True)
        turn = forward_ad.unpack_dual(found).tangent
        assert_equal(torch.zeros_like(at) if turn is None else turn, curvature @ along)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", CHAINS)
def test_gradient_of_a_dual_number(name):
    value, at, _, curvature = made(f"logits, {name}")
    along = torch.randn(at.shape, generator=seeds.generator(1), dtype=at.dtype)
    with forward_ad.dual_level():
        leaf = at.clone().requires_grad_()
        tangent = forward_ad.unpack_dual(value(forward_ad.make_dual(leaf, along))).tangent
        (mixed,) = torch.autograd.grad(tangent, leaf, materialize_grads=True)
    assert_equal(mixed, curvature @ along)


@pytest.mark.usefixtures("backend")
def test_third_derivatives():
    case = random_chain(3, 2, seed=49)

    def value(observation: Tensor) -> Tensor:
        return ops.log_likelihood(case.initial, case.transition, observation)

    def third() -> Tensor:
        leaf = case.observation.clone().requires_grad_()
        return torch.autograd.functional.jacobian(
            lambda x: torch.autograd.functional.hessian(value, x, create_graph=True), leaf
        )

    with ops.backend("reference"):
        expected = third()
    assert_equal(jacfwd(hessian(value))(case.observation), expected)
    assert_equal(jacrev(hessian(value))(case.observation), expected)
    assert_equal(jacfwd(jacfwd(jacfwd(value)))(case.observation), expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["plain", "varying A", "lengths", "T=1"])
def test_expectations_and_the_filter(name):
    case = CASES[name]

    def everything(observation: Tensor) -> tuple[Tensor, ...]:
        given = (case.initial, case.transition, observation, case.lengths)
        return (*ops.expectations(*given), ops.filter_logits(*given).exp())

    for actual, expected in zip(
        jacfwd(everything)(case.observation), jacrev(everything)(case.observation), strict=True
    ):
        assert_equal(actual, expected)


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
def test_gaussian_densities(full):
    generator = seeds.generator(5)
    value = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    loc = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    root = torch.randn(2, 3, 3 if full else 1, generator=generator, dtype=torch.float64)
    factor = root.tril() + 3 * torch.eye(3).double() if full else root.exp()

    def density(*given: Tensor) -> Tensor:
        return densities.log_prob(*given).sin().sum()

    given, which = (value, loc, factor), (0, 1, 2)
    with ops.backend("reference"):
        expected = jacrev(density, which)(*given)
        curvature = jacrev(jacrev(density, which), which)(*given)
    for actual, other in zip(jacfwd(density, which)(*given), expected, strict=True):
        assert_equal(actual, other)
    for found in (
        hessian(density, which)(*given),
        jacrev(jacfwd(density, which), which)(*given),
        jacfwd(jacfwd(density, which), which)(*given),
    ):
        for row, other_row in zip(found, curvature, strict=True):
            for actual, other in zip(row, other_row, strict=True):
                assert_equal(actual, other)


def test_operators_of_a_graph_say_that_they_have_no_forward_mode():
    """Without the functions above them they would drop the tangents."""
    flat = arguments.flatten(arguments.check(*CASES["batch"]))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(flat.observation_logits, flat.observation_logits)
        with pytest.raises(NotImplementedError, match="expected no forward-mode tangents"):
            operators.expectations_operator(*flat[:2], dual, None, "cpu")
