"""Log-likelihoods are float64 whatever the logits are; gradients are of the logits' dtype."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes import RegimeHMM
from pyro_regimes.kernels import ops
from tests import seeds
from tests.compiler import BACKEND
from tests.kernels.cases import random_chain


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


def large_chain() -> list[Tensor]:
    """A loss near 1e6, where float32 numbers are 0.06 apart."""
    case = random_chain(2_000, 3, (2,), seed=81)
    return [part.float() for part in case[:2]] + [(case.observation - 500).float()]


def exact(chain: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [part.detach().double().requires_grad_() for part in chain]
    value = ops.log_likelihood(*leaves)
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


def assert_exact(value: Tensor, chain: list[Tensor]) -> None:
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, exact(chain)[0], rtol=1e-13, atol=0.0)


@pytest.mark.usefixtures("backend")
def test_value_is_float64():
    chain = large_chain()
    assert_exact(ops.log_likelihood(*chain), chain)
    found = ops.expectations(*chain)
    assert_exact(found.log_likelihood, chain)
    assert found.smoothed_probs.dtype == found.expected_transitions.dtype == torch.float32
    mapped = torch.func.vmap(ops.log_likelihood)(*chain)
    assert_exact(mapped, chain)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_of_the_inputs_dtype(autocast):
    chain = large_chain()
    leaves = [part.clone().requires_grad_() for part in chain]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = ops.log_likelihood(*leaves)
        assert_exact(value.detach(), chain)
        found = torch.autograd.grad(value.sum(), leaves)
        mapped = torch.func.vmap(torch.func.grad(ops.log_likelihood, (0, 1, 2)))(*chain)
    for actual, other, expected in zip(found, mapped, exact(chain)[1], strict=True):
        assert actual.dtype == other.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_second_derivatives_are_of_the_inputs_dtype():
    case = random_chain(6, 3, seed=82)
    single = case.observation.float().requires_grad_()
    double = single.detach().double().requires_grad_()
    rows = []
    for leaf in (single, double):
        chain = (part.to(leaf.dtype) for part in case[:2])
        (first,) = torch.autograd.grad(
            ops.log_likelihood(*chain, leaf), leaf, create_graph=True
        )
        rows.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert rows[0].dtype == torch.float32
    torch.testing.assert_close(rows[0], rows[1].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.usefixtures("backend")
def test_traced():
    chain = large_chain()
    traced = torch.jit.trace(ops.log_likelihood, tuple(chain), check_trace=False)
    leaves = [part.clone().requires_grad_() for part in chain]
    value = traced(*leaves)
    assert_exact(value.detach(), chain)
    for actual in torch.autograd.grad(value.sum(), leaves):
        assert actual.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.usefixtures("validation_as_it_was")
def test_compiled():
    chain = large_chain()
    torch._dynamo.reset()
    leaves = [part.clone().requires_grad_() for part in chain]
    value = torch.compile(ops.log_likelihood, fullgraph=True, backend=BACKEND)(*leaves)
    assert_exact(value.detach(), chain)
    for actual, expected in zip(
        torch.autograd.grad(value.sum(), leaves), exact(chain)[1], strict=True
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)


EMISSIONS = {
    "Normal": lambda like: dist.Normal(torch.tensor([0.0, 1.0], **like), 1e4),
    "MultivariateNormal": lambda like: dist.MultivariateNormal(
        torch.zeros(2, 1, **like), torch.eye(1, **like)
    ),
    "Laplace": lambda like: dist.Laplace(torch.tensor([0.0, 1.0], **like), 1e4),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("emission", EMISSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_log_prob_rounds_to_the_dtype_of_its_arguments(emission, dtype):
    if emission == "MultivariateNormal" and dtype == torch.bfloat16:
        pytest.skip("torch has no Cholesky factor of bfloat16")
    like = {"dtype": dtype}
    loc = torch.zeros(2, **like, requires_grad=True)
    hmm = RegimeHMM(loc, torch.zeros(2, 2, **like), EMISSIONS[emission](like), validate_args=False)
    event = (1,) if emission == "MultivariateNormal" else ()
    x = torch.randn((3, 20) + event, generator=seeds.generator(0)).to(dtype)
    precise, rounded = hmm.log_likelihood(x), hmm.log_prob(x)
    assert precise.dtype == torch.float64 and rounded.dtype == dtype
    assert torch.equal(precise.to(dtype), rounded)
    assert hmm.posterior(x).log_likelihood.dtype == torch.float64
    (gradient,) = torch.autograd.grad(rounded.sum(), loc)
    assert gradient.dtype == dtype


def test_fused_gaussian_chain_is_float64_with_float32_gradients():
    generator = seeds.generator(1)
    given = [
        torch.zeros(2),
        torch.zeros(1, 2, 2),
        1e3 * torch.randn(3_000, 1, generator=generator),
        torch.tensor([[0.0], [100.0]]),
        torch.full((2, 1, 1), 30.0),
    ]
    leaves = [part.clone().requires_grad_() for part in given]
    value = ops.gaussian_log_likelihood(*leaves)
    double = [part.double().requires_grad_() for part in given]
    expected = ops.gaussian_log_likelihood(*double)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=0.0)
    pairs = zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, double), strict=True
    )
    for actual, other in pairs:
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, other.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("backend")
def test_under_another_default_device():
    """CPU tensors are computed on the CPU, whatever new tensors would be on."""
    case = random_chain(6, 3, (2,), seed=83)._replace(lengths=torch.tensor([6, 4]))
    wide = random_chain(6, 3, (2,), slices=5, seed=83)._replace(lengths=case.lengths)
    x, loc = torch.randn(6, 2).double(), torch.randn(3, 2).double()

    def everything() -> list[Tensor]:
        found = []
        for each in (case, wide):
            leaves = [part.clone().requires_grad_() for part in each[:3]]
            value = ops.log_likelihood(*leaves, each.lengths)
            first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
            found += [value, *first, *torch.autograd.grad(first[2].square().sum(), leaves)]
            found += ops.expectations(*each)
            filtered = ops.filter_logits(*each)
            found += [filtered, ops.predict_probs(*each[:2], filtered.exp()), ops.viterbi(*each)]
            torch.manual_seed(seeds.seed(0))
            found.append(ops.sample_posterior(*each, sample_shape=torch.Size([3])))
            found.append(ops.sample_prior(*each[:2], 6, torch.Size([3, 2])))
            path = ops.viterbi(*each).clamp(min=0)
            found.append(ops.complete_log_likelihood(*each[:3], path, each.lengths))
        leaf = loc.clone().requires_grad_()
        factor = torch.ones_like(loc).unsqueeze(-1)
        value = ops.gaussian_log_likelihood(*(part[0] for part in case[:2]), x, leaf, factor)
        found += [value, *torch.autograd.grad(value, leaf)]
        return [each.detach() for each in found]

    expected = everything()
    with warnings.catch_warnings():
        torch.set_default_device("meta")
        try:
            found = everything()
        finally:
            torch.set_default_device(None)
    for actual, other in zip(found, expected, strict=True):
        assert torch.equal(actual, other)
