"""Gaussian densities and moments against torch's distributions, plain code and long arithmetic."""

from __future__ import annotations

import math
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal, Normal

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import densities as cpu_densities
from pyro_regimes.kernels.cpu import moments
from pyro_regimes.kernels.gaussian import densities, formulas, operators
from tests import seeds
from tests.kernels.test_reference import assert_equal

pytestmark = pytest.mark.usefixtures("filled_buffers")


class Case(NamedTuple):
    value: Tensor  # (..., T, D)
    loc: Tensor  # (..., K or 1, D)
    scale_tril: Tensor  # (..., K or 1, D, D)

    @property
    def scale(self) -> Tensor:  # (..., K or 1, D)
        return self.scale_tril.diagonal(dim1=-2, dim2=-1)


def random_case(
    num_steps: int,
    size: int,
    locs: int,
    factors: int,
    batch: tuple[tuple[int, ...], ...] = ((), (), ()),
    dtype: torch.dtype = torch.float64,
) -> Case:
    generator = seeds.generator(num_steps + 7 * size + 31 * locs)
    value = torch.randn(batch[0] + (num_steps, size), generator=generator)
    loc = torch.randn(batch[1] + (locs, size), generator=generator)
    factor = torch.randn(batch[2] + (factors, size, size), generator=generator).tril(-1) / size
    pivot = 0.5 + torch.rand(batch[2] + (factors, size), generator=generator)
    return Case(*(part.to(dtype) for part in (value, loc, factor + torch.diag_embed(pivot))))


CASES = {
    "T=1, D=1, K=1": random_case(1, 1, 1, 1),
    "T=1, D=3, K=2": random_case(1, 3, 2, 2),
    "odd T": random_case(333, 5, 3, 3),
    "whole blocks": random_case(256, 4, 4, 4),
    "D=1": random_case(45, 1, 3, 3),
    "K=1": random_case(45, 3, 1, 1),
    "large D": random_case(70, 40, 2, 2),
    "many states": random_case(140, 2, 33, 33),
    "shared location": random_case(50, 3, 1, 4),
    "shared covariance": random_case(50, 3, 4, 1),
    "batch": random_case(37, 3, 2, 2, ((5,), (5,), (5,))),
    "batch of values": random_case(37, 3, 2, 2, ((2, 3), (), ())),
    "batch of parameters": random_case(37, 3, 2, 2, ((), (4,), (4,))),
    "batch of locations": random_case(37, 3, 2, 2, ((), (4,), ())),
    "batches that broadcast": random_case(37, 3, 2, 2, ((2, 1), (3,), (2, 3))),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def torch_full(case: Case) -> Tensor:
    loc, factor = case.loc.unsqueeze(-3), case.scale_tril.unsqueeze(-4)
    return MultivariateNormal(loc, scale_tril=factor).log_prob(case.value.unsqueeze(-2))


def torch_diagonal(case: Case) -> Tensor:
    each = Normal(case.loc.unsqueeze(-3), case.scale.unsqueeze(-3))
    return each.log_prob(case.value.unsqueeze(-2)).sum(-1)


def full(case: Case) -> Tensor:
    return densities.log_prob(case.value, case.loc, case.scale_tril)


def log_prob_diagonal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return densities.log_prob(value, loc, scale.unsqueeze(-1))


def diagonal(case: Case) -> Tensor:
    return log_prob_diagonal(case.value, case.loc, case.scale)


PAIRS = {"full": (full, torch_full), "diagonal": (diagonal, torch_diagonal)}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def pair(request: pytest.FixtureRequest):
    return request.param


def test_values_are_those_of_torch(case, pair):
    ours, theirs = pair
    torch.testing.assert_close(ours(case), theirs(case), rtol=1e-12, atol=1e-13)
    with ops.backend("reference"):
        torch.testing.assert_close(ours(case), theirs(case), rtol=1e-12, atol=1e-13)


def gradients(log_prob, case: Case) -> tuple[Tensor, ...]:
    leaves = Case(*(part.clone().requires_grad_() for part in case))
    density = log_prob(leaves)
    weights = torch.randn(density.shape, generator=seeds.generator(0)).double()
    return torch.autograd.grad((weights * density).sum(), leaves)


def test_gradients_are_those_of_torch(case, pair):
    """Of the value, the location and the factor, under weights of either sign."""
    ours, theirs = pair
    for actual, expected in zip(gradients(ours, case), gradients(theirs, case), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["T=1, D=1, K=1", "T=1, D=3, K=2", "shared location", "batches that broadcast"]
)
@pytest.mark.parametrize("kind", PAIRS)
def test_derivatives_of_both_orders(name, kind):
    value, loc, factor = CASES[name]
    value = value[..., :5, :]
    spread = factor if kind == "full" else CASES[name].scale
    leaves = [part.clone().requires_grad_() for part in (value, loc, spread)]
    ours = densities.log_prob if kind == "full" else log_prob_diagonal
    assert gradcheck(ours, leaves)
    assert gradgradcheck(ours, leaves)


@pytest.mark.parametrize("kind", PAIRS)
def test_third_derivatives(kind):
    def third(log_prob) -> Tensor:
        factor = CASES["odd T"].scale_tril.clone().requires_grad_()
        total = log_prob(CASES["odd T"]._replace(scale_tril=factor)).sin().sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(total, factor, create_graph=True)
            total = gradient.square().sum()
        return torch.autograd.grad(total, factor)[0]

    ours, theirs = PAIRS[kind]
    torch.testing.assert_close(third(ours), third(theirs), rtol=1e-9, atol=0.0)


def test_what_lies_above_the_diagonal_is_not_read():
    case = CASES["odd T"]
    above = torch.ones_like(case.scale_tril).triu(1).bool()
    spoiled = case.scale_tril.masked_fill(above, math.nan)
    assert_equal(full(case._replace(scale_tril=spoiled)), full(case))


def test_non_contiguous(pair):
    ours, theirs = pair
    case = CASES["odd T"]
    turned = Case(
        case.value.mT.contiguous().mT,
        case.loc.mT.contiguous().mT,
        case.scale_tril.mT.contiguous().mT,
    )
    assert_equal(ours(turned), theirs(case))
    for actual, expected in zip(gradients(ours, turned), gradients(theirs, case), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_batch_of_no_sequences(pair):
    ours, _ = pair
    case = random_case(6, 3, 2, 2, ((0,), (), ()))
    assert ours(case).shape == (0, 6, 2)
    for gradient, part in zip(gradients(ours, case), case, strict=True):
        assert_equal(gradient, torch.zeros_like(part))


def test_varying_in_time():
    """The kernel alone: every step with parameters of its own."""
    generator = seeds.generator(3)
    value = torch.randn(2, 9, 3, generator=generator).double()
    loc = torch.randn(1, 9, 4, 3, generator=generator).double()
    factor = torch.randn(2, 9, 1, 3, 3, generator=generator).double().tril(-1)
    factor = factor + torch.eye(3)
    expected = MultivariateNormal(loc, scale_tril=factor).log_prob(value.unsqueeze(-2))
    assert_equal(cpu_densities.log_density_full(value, loc, factor), expected)
    expected = MultivariateNormal(loc, scale_tril=factor[:1, :1]).log_prob(value.unsqueeze(-2))
    assert_equal(cpu_densities.log_density_full(value, loc, factor[:1, :1]), expected)
    scale = factor.diagonal(dim1=-2, dim2=-1)
    expected = Normal(loc, scale).log_prob(value.unsqueeze(-2)).sum(-1)
    assert_equal(cpu_densities.log_density_diagonal(value, loc, scale), expected)


def test_float32(case, pair):
    """Arithmetic in float64: seen below 6e-8 in values (torch: 3e-7), 3e-7 in gradients (2e-6)."""
    ours, theirs = pair
    single = Case(*(part.float() for part in case))
    exact = Case(*(part.double() for part in single))
    assert ours(single).dtype == torch.float32
    torch.testing.assert_close(
        ours(single).double(), theirs(exact), rtol=1e-7, atol=1e-7, check_dtype=False
    )
    for actual, expected in zip(gradients(ours, single), gradients(theirs, exact), strict=True):
        assert actual.dtype == torch.float32
        bound = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=0.0, atol=bound)


def test_a_gradient_only_where_the_cotangent_is_not_zero(pair):
    """A value that is not finite, as on padding, spoils no gradient of the parameters."""
    ours, _ = pair
    case = CASES["odd T"]
    value = case.value.clone()
    value[100:103, 1], value[200] = math.nan, math.inf
    known = value.isfinite().all(-1)

    def of_known(value: Tensor) -> tuple[Tensor, ...]:
        leaves = [part.clone().requires_grad_() for part in case[1:]]
        density = ours(Case(value, *leaves))
        return torch.autograd.grad(density[known].sum(), leaves)

    for actual, expected in zip(of_known(value), of_known(case.value), strict=True):
        assert_equal(actual, expected)
    assert ours(case._replace(value=value))[100:103].isnan().all()


def moments_of(weights: Tensor, deviation: Tensor) -> tuple[np.ndarray, ...]:
    """n, s and S of ``(N, T, K, D)`` deviations, in long arithmetic."""
    w, v = weights.numpy().astype(np.longdouble), deviation.numpy().astype(np.longdouble)
    return (
        w.sum(1),
        np.einsum("ntk,ntkd->nkd", w, v),
        np.einsum("ntk,ntki,ntkj->nkij", w, v, v),
    )


@pytest.mark.parametrize("locs", [1, 3])
@pytest.mark.parametrize("shared", [False, True], ids=["own values", "shared values"])
@pytest.mark.parametrize("num_steps", [1, 31, 128, 500])
def test_moments(num_steps, shared, locs):
    generator = seeds.generator(num_steps)
    value = torch.randn(1 if shared else 4, num_steps, 5, generator=generator).double()
    weights = torch.rand(4, num_steps, 3, generator=generator).double()
    loc = torch.randn(4, 1, locs, 5, generator=generator).double()
    factor = torch.eye(5).double() + 0.3 * torch.randn(1, 1, locs, 5, 5, generator=generator).tril()
    deviation = (value.unsqueeze(-2) - loc).expand(4, num_steps, 3, 5)
    z = torch.linalg.solve_triangular(factor, deviation.unsqueeze(-1), upper=False).squeeze(-1)
    scale = factor.diagonal(dim1=-2, dim2=-1)
    kernel = moments
    for actual, v in [
        (kernel.moments_full(value, weights, loc), deviation),
        (kernel.moments_full(value, weights, loc, factor), z),
        (kernel.moments_diagonal(value, weights, loc), deviation),
        (kernel.moments_diagonal(value, weights, loc, scale), deviation / scale),
    ]:
        expected = [torch.from_numpy(part.astype(float)) for part in moments_of(weights, v)]
        if actual.second.dim() == 3:
            expected[2] = expected[2].diagonal(dim1=-2, dim2=-1)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    weight, first, second = kernel.moments_full(value, weights, loc)
    assert torch.equal(second, second.mT)
    diagonal = kernel.moments_diagonal(value, weights, loc).second
    assert_equal(diagonal, second.diagonal(dim1=-2, dim2=-1))
    found = kernel.first_moments(value, weights, loc)
    assert torch.equal(found[0], weight) and torch.equal(found[1], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [50, 9_001], ids=["small", "large"])
def test_values_without_weight_add_nothing(num_steps, dtype):
    """Padding may hold NaN."""
    generator = seeds.generator(num_steps)
    value = torch.randn(2, num_steps, 3, generator=generator).to(dtype)
    weights = torch.rand(2, num_steps, 4, generator=generator).to(dtype)
    loc = torch.randn(1, 1, 4, 3, generator=generator).to(dtype)
    weights[:, num_steps // 2 :] = 0.0
    weights[0, 7] = 0.0
    spoiled = value.clone()
    spoiled[:, num_steps // 2 :] = math.nan
    spoiled[0, 7, 1] = math.inf
    for actual, expected in [
        (
            moments.moments_full(spoiled, weights, loc),
            moments_of(weights, value.unsqueeze(2) - loc),
        ),
        (
            moments.first_moments(spoiled, weights, loc),
            moments_of(weights, value.unsqueeze(2) - loc)[:2],
        ),
    ]:  # fmt: skip
        for one, other in zip(actual, expected, strict=True):
            other = torch.from_numpy(other.astype(float))
            assert one.dtype == torch.float64
            # float32: the oracle's own deviations were rounded.
            rtol = 1e-11 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * num_steps)
    weights[1, 3], spoiled[1, 3, 0] = 0.5, math.nan
    assert moments.moments_full(spoiled, weights, loc).second[1].isnan().any()


def test_the_scatter_of_long_series_is_exact():
    """Against long arithmetic: 100,000 steps, far from zero."""
    generator = seeds.generator(5)
    value = 1e3 + torch.randn(1, 100_000, 3, generator=generator).double()
    weights = torch.rand(1, 100_000, 2, generator=generator).double()
    loc = 1e3 + torch.randn(1, 1, 2, 3, generator=generator).double()
    expected = moments_of(weights, value.unsqueeze(2) - loc)[2]
    actual = moments.moments_full(value, weights, loc).second.numpy()
    size = np.abs(expected).max()
    assert np.abs(actual - expected).max() < 2e-14 * size


def exact_log_prob(value: Tensor, loc: Tensor, factor: Tensor) -> float:
    """One density in 60 digits, by forward substitution."""
    with mpmath.workdps(60):
        size = len(loc)
        z: list[mpmath.mpf] = []
        total = mpmath.mpf(size) / 2 * mpmath.log(2 * mpmath.pi)
        for i in range(size):
            left = mpmath.mpf(float(value[i])) - mpmath.mpf(float(loc[i]))
            for j in range(i):
                left -= mpmath.mpf(float(factor[i, j])) * z[j]
            pivot = mpmath.mpf(float(factor[i, i]))
            z.append(left / pivot)
            total += mpmath.log(pivot) + z[i] ** 2 / 2
        return -total


@pytest.mark.parametrize("far", [0.0, 1e6], ids=["near zero", "1e6 deviations from zero"])
@pytest.mark.parametrize("condition", [1.0, 1e10])
def test_no_precision_is_lost_to_the_textbook(condition, far, record_property):
    """Ill-conditioned covariances, and means far from zero: errors against 60 digits."""
    size, num_steps = 8, 40
    generator = seeds.generator(11)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    eigenvalues = torch.logspace(0.0, -math.log10(condition), size).double()
    covariance = (basis * eigenvalues) @ basis.mT
    factor = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    loc = far * torch.randn(1, size, generator=generator).double()
    noise = torch.randn(num_steps, size, generator=generator).double()
    value = loc + noise @ factor.mT
    exact = [exact_log_prob(step, loc[0], factor) for step in value]

    def errors(density: Tensor) -> float:
        return max(float(abs(mpmath.mpf(float(d)) - e)) for d, e in zip(density[:, 0], exact))

    ours = errors(densities.log_prob(value, loc, factor.unsqueeze(0)))
    theirs = errors(
        MultivariateNormal(loc, scale_tril=factor.unsqueeze(0)).log_prob(value.unsqueeze(-2))
    )
    record_property("errors", f"ours {ours:.2e}, triangular solve {theirs:.2e}")
    print(f"condition {condition:g}, far {far:g}: ours {ours:.2e}, triangular solve {theirs:.2e}")
    assert ours <= 2 * theirs + 1e-13


def test_gradients_lose_no_precision_to_the_textbook():
    """Of the factor of an ill-conditioned covariance, against autograd in long arithmetic."""
    size, num_steps = 6, 200
    generator = seeds.generator(12)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    covariance = (basis * torch.logspace(0.0, -10.0, size).double()) @ basis.mT
    factor = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    value = torch.randn(num_steps, size, generator=generator).double() @ factor.mT

    long_factor = factor.numpy().astype(np.longdouble)
    z = np.zeros((num_steps, size), np.longdouble)
    x = value.numpy().astype(np.longdouble)
    for i in range(size):
        z[:, i] = (x[:, i] - z[:, :i] @ long_factor[i, :i]) / long_factor[i, i]
    pull = (z.T @ z)  # L' G = Z, by back substitution
    exact = np.zeros((size, size), np.longdouble)
    for i in reversed(range(size)):
        exact[i] = (pull[i] - long_factor[i + 1 :, i] @ exact[i + 1 :]) / long_factor[i, i]
    exact = np.tril(exact) - np.diag(num_steps / np.diagonal(long_factor))

    def error(log_prob) -> float:
        leaf = factor.unsqueeze(0).clone().requires_grad_()
        case = Case(value, value.new_zeros(1, size), leaf)
        (gradient,) = torch.autograd.grad(log_prob(case).sum(), leaf)
        return float(np.abs(gradient[0].numpy() - exact).max() / np.abs(exact).max())

    ours, theirs = error(full), error(torch_full)
    print(f"ours {ours:.2e}, triangular solve {theirs:.2e}")
    assert ours <= 2 * theirs + 1e-14


def test_pieces_for_several_threads(monkeypatch):
    """One long sequence and several short ones, cut anywhere, give the same sums."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for count, num_steps in [(1, 1_000), (5, 300)]:
        generator = seeds.generator(count)
        value = torch.randn(count, num_steps, 3, generator=generator).double()
        weights = torch.rand(count, num_steps, 2, generator=generator).double()
        loc = torch.randn(count, 1, 2, 3, generator=generator).double()
        factor = torch.eye(3).double().expand(count, 1, 2, 3, 3)
        monkeypatch.setattr(cpu_densities, "_GRAIN", 10**9)
        whole = moments.moments_full(value, weights, loc)
        density = cpu_densities.log_density_full(value, loc, factor)
        monkeypatch.setattr(cpu_densities, "_GRAIN", 1)
        for one, other in zip(moments.moments_full(value, weights, loc), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-12)
        assert torch.equal(cpu_densities.log_density_full(value, loc, factor), density)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd T", "shared covariance", "batch of parameters", "D=1"])
@pytest.mark.parametrize("kind", PAIRS)
def test_operators_pass_opcheck(name, kind):
    value, loc, factor = CASES[name]
    if kind == "diagonal":
        factor = CASES[name].scale.unsqueeze(-1)
    event = (value.dim() - 2, loc.dim() - 2, factor.dim() - 3)
    flat = [part if lead else part.unsqueeze(0) for part, lead in zip((value, loc, factor), event)]
    flat = [part.clone().requires_grad_() for part in flat]
    density = operators.log_density_like(*flat)
    torch.library.opcheck(operators.log_density_operator, tuple(flat))
    weights = torch.rand(density.shape, dtype=density.dtype, requires_grad=True)
    torch.library.opcheck(operators.moments_operator, (flat[0], weights, flat[1], flat[2]))


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 1), (1, 0, 0)])
@pytest.mark.parametrize("kind", PAIRS)
def test_vmap_and_func_grad(kind, in_dims):
    case = random_case(9, 3, 2, 2, ((4,), (4,), (4,)))
    ours = densities.log_prob if kind == "full" else log_prob_diagonal
    spread = case.scale_tril if kind == "full" else case.scale
    single = [
        part if dim is not None else part[0]
        for part, dim in zip((case.value, case.loc, spread), in_dims, strict=True)
    ]
    args = [part.movedim(0, dim) if dim else part for part, dim in zip(single, in_dims)]

    def total(value: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        return ours(value, loc, spread).sin().sum()

    mapped = torch.func.vmap(torch.func.grad(total, argnums=(0, 1, 2)), in_dims=in_dims)(*args)
    wide = [
        part.expand((4,) + part.shape).clone() if dim is None else part.clone()
        for part, dim in zip(single, in_dims, strict=True)
    ]
    leaves = [part.requires_grad_() for part in wide]
    for actual, expected in zip(mapped, torch.autograd.grad(total(*leaves), leaves), strict=True):
        assert_equal(actual, expected)


def test_hessian_through_func():
    case = random_case(5, 2, 2, 2)

    def total(factor: Tensor) -> Tensor:
        return densities.log_prob(case.value, case.loc, factor).sum()

    def plain(factor: Tensor) -> Tensor:
        return formulas.log_prob(case.value, case.loc, factor).sum()

    hessian = torch.func.jacrev(torch.func.grad(total))(case.scale_tril)
    assert_equal(hessian, torch.autograd.functional.hessian(plain, case.scale_tril))
