"""RegimeHMM's compiled path for Gaussian observations against the distributions' own densities."""

from __future__ import annotations

import math
import threading
from typing import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyro_regimes import RegimeHMM, emissions
from pyro_regimes.distributions import observation
from pyro_regimes.kernels import ops
from tests import seeds
from tests.compiler import BACKEND

K, D, T = 3, 4, 70


def generic(observation_dist: Distribution, value: Tensor) -> Tensor:
    event_dim = len(observation_dist.event_shape)
    density: Tensor = observation_dist.log_prob(value.unsqueeze(-1 - event_dim))
    return density


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(len(shape))).double()


INITIAL, TRANSITION = draw(K), draw(K, K)


def covariance(*shape: int) -> Tensor:
    factor = 0.4 * draw(*shape, D, D) + torch.eye(D)
    return factor @ factor.mT + 0.1 * torch.eye(D)


def positive(*shape: int) -> Tensor:
    return 0.5 + draw(*shape).abs()


#: name: the distribution from its arguments, and these
GAUSSIANS: dict[str, tuple[Callable[..., Distribution], tuple[Tensor, ...]]] = {
    "scale_tril": (
        lambda loc, factor: dist.MultivariateNormal(loc, scale_tril=factor),
        (draw(K, D), torch.linalg.cholesky(covariance(K))),
    ),
    "covariance_matrix": (dist.MultivariateNormal, (draw(K, D), covariance(K))),
    "precision_matrix": (
        lambda loc, matrix: dist.MultivariateNormal(loc, precision_matrix=matrix),
        (draw(K, D), covariance(K)),
    ),
    "torch's own": (MultivariateNormal, (draw(K, D), covariance(K))),
    "one covariance": (dist.MultivariateNormal, (draw(K, D), covariance())),
    "one location": (dist.MultivariateNormal, (draw(D), covariance(K))),
    "one of both, expanded": (
        lambda loc, matrix: dist.MultivariateNormal(loc, matrix).expand([K]),
        (draw(D), covariance()),
    ),
    "ExpandedDistribution": (
        lambda loc, matrix: dist.ExpandedDistribution(
            dist.MultivariateNormal(loc, matrix), torch.Size([2, 1, K])
        ),
        (draw(K, D), covariance(K)),
    ),
    "batch": (dist.MultivariateNormal, (draw(2, 1, K, D), covariance(2, 1, K))),
    "batch that shares its covariances": (
        dist.MultivariateNormal,
        (draw(2, 1, K, D), covariance(K)),
    ),
    "varying in time": (dist.MultivariateNormal, (draw(T, K, D), covariance(K))),
    "covariance varying in time": (dist.MultivariateNormal, (draw(K, D), covariance(T, K))),
    "independent": (
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        (draw(K, D), positive(K, D)),
    ),
    "independent, torch's own": (
        lambda loc, scale: Independent(Normal(loc, scale), 1),
        (draw(K, D), positive(K, D)),
    ),
    "one scale for all series": (
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        (draw(K, D), positive(K, 1)),
    ),
    "independent, batch, expanded": (
        lambda loc, scale: dist.Normal(loc, scale).to_event(1).expand([2, 1, K]),
        (draw(K, D), positive(K, D)),
    ),
    "independent, varying in time": (
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        (draw(T, K, D), positive(K, D)),
    ),
    "independent, one of both, expanded": (
        lambda loc, scale: dist.ExpandedDistribution(
            dist.Normal(loc, scale), torch.Size([K, D])
        ).to_event(1),
        (draw(K, 1), positive(K, 1)),
    ),
    "one series": (dist.Normal, (draw(K), positive(K))),
    "one series, one scale": (dist.Normal, (draw(K), positive())),
    "one series, one of both, expanded": (
        lambda loc, scale: dist.Normal(loc, scale).expand([K]),
        (draw(), positive()),
    ),
    "one series, batch": (dist.Normal, (draw(2, 1, K), positive(K))),
    "one series, varying in time": (dist.Normal, (draw(T, K), positive(K))),
}


def values_and_gradients(
    name: str, value: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, ...]:
    make, arguments = GAUSSIANS[name]
    leaves = [part.clone().requires_grad_() for part in (draw(K), draw(K, K), *arguments, value)]
    hmm = RegimeHMM(leaves[0], leaves[1], make(*leaves[2:-1]), lengths=lengths)
    log_prob = hmm.log_prob(leaves[-1])
    gradients = torch.autograd.grad((log_prob * draw(*log_prob.shape)).sum(), leaves)
    return (log_prob.detach(), *gradients)


@pytest.mark.parametrize("batch", [(), (2,), (5, 1)])
@pytest.mark.parametrize("name", GAUSSIANS)
def test_equals_the_distributions_own_density(name, batch, monkeypatch):
    make, arguments = GAUSSIANS[name]
    value = draw(*batch, T, *make(*arguments).event_shape)
    actual = values_and_gradients(name, value)
    monkeypatch.setattr(observation, "_find", lambda *args: None)
    for one, other in zip(actual, values_and_gradients(name, value), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_kernel_is_used_where_it_can_be(name, monkeypatch):
    """And not where the distribution varies in time."""
    calls = []

    def recorded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            calls.append(function)
            return function(*args)

        return call

    monkeypatch.setattr(ops, "gaussian_log_prob", recorded(ops.gaussian_log_prob))
    make, arguments = GAUSSIANS[name]
    observation_dist = make(*arguments)
    value = draw(T, *observation_dist.event_shape)
    density = observation.log_prob(observation_dist, value)
    assert len(calls) == (0 if "varying in time" in name else 1)
    assert (observation.as_gaussian(observation_dist, value) is None) == (not calls)
    torch.testing.assert_close(density, generic(observation_dist, value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["independent", "full"])
@pytest.mark.parametrize("lead", [(T,), (3, 1), (3, T)], ids=str)
def test_each_copy_of_an_expanded_argument_has_its_own_gradient(lead, kind):
    """The score of one time step, or of one sequence."""
    value, mask = draw(3, T, D), torch.rand(T, 1, generator=seeds.generator(1)) < 0.8

    def log_prob(loc: Tensor, spread: Tensor) -> Tensor:
        if kind == "full":
            observations = dist.MultivariateNormal(loc, scale_tril=spread, validate_args=False)
        else:
            observations = dist.Normal(loc, spread, validate_args=False).to_event(1)
        hmm = RegimeHMM(INITIAL, TRANSITION, observations.mask(mask), validate_args=False)
        return hmm.log_prob(value).sum()

    loc = draw(K, D).expand(lead + (K, D))
    spread = torch.linalg.cholesky(covariance(K)) if kind == "full" else positive(K, D)
    spread = spread.expand(lead + spread.shape)
    both = [part.clone().requires_grad_() for part in (loc, spread)]
    expected = torch.autograd.grad(log_prob(*both), both)
    repeated = [part.expand(*part.shape).requires_grad_() for part in (loc, spread)]
    for found in [
        torch.autograd.grad(log_prob(*repeated), repeated),
        torch.func.grad(log_prob, argnums=(0, 1))(loc, spread),
    ]:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_does_not_know_what_was_expanded():
    def log_prob(loc: Tensor) -> Tensor:
        observations = dist.Normal(loc, 1.0, validate_args=False).to_event(1)
        return RegimeHMM(INITIAL, TRANSITION, observations, validate_args=False).log_prob(value)

    value, dense = draw(T, D), draw(T, K, D)
    traced = torch.jit.trace(log_prob, dense[:1].expand(T, K, D), check_trace=False)
    torch.testing.assert_close(traced(dense), log_prob(dense), rtol=1e-12, atol=1e-12)


def test_sizes_are_checked_at_the_door():
    """The kernels would read beyond the end."""
    value, loc, factor = draw(T, D), draw(K, D), positive(K, D, 1)
    for wrong in [
        (value, loc[:, :1], factor),
        (value, loc, factor[:, :1]),
        (value[:, :1], loc, factor),
    ]:
        with pytest.raises(ValueError, match="expected loc to end in"):
            ops.gaussian_log_prob(*wrong)
        with pytest.raises(ValueError, match="expected loc to end in"):
            leaves = [part.clone().requires_grad_() for part in wrong]
            ops.gaussian_log_likelihood(draw(K), draw(1, K, K), *leaves)


class Tempered(dist.MultivariateNormal):
    """A subclass with a density of its own."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


@pytest.mark.parametrize(
    "other",
    [
        Tempered(draw(K, D), covariance(K)),
        dist.MultivariateNormal(draw(K, D), covariance(K)).mask(torch.tensor([True, False, True])),
        dist.Normal(draw(K, D), positive(K, D))
        .mask(torch.tensor([True, False, True, True]))
        .to_event(1),
        dist.Normal(draw(K, 2, D), positive(K, 2, D)).to_event(2),
        dist.Normal(draw(K), positive(K)),
        dist.StudentT(3.0, draw(K, D), positive(K, D)).to_event(1),
    ],
    ids=["subclass", "mask", "mask inside", "matrix", "scalar", "StudentT"],
)  # fmt: skip
def test_other_distributions_have_their_own_density(other):
    """To the bit, but for those of a family that EM knows, whose density is the family's."""
    value = draw(T, *other.event_shape)
    found, expected = observation.log_prob(other, value), generic(other, value)
    base = emissions.unwrap(other).base
    if emissions.find_family(base, len(other.event_shape)) is None:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["covariance_matrix", "independent"])
def test_padding_may_hold_nan(name, monkeypatch):
    value = draw(2, T, D)
    lengths = torch.tensor([T, 30])
    value[1, 30:] = math.nan
    actual = values_and_gradients(name, value, lengths)
    assert all(part.isfinite().all() for part in actual)
    monkeypatch.setattr(observation, "_find", lambda *args: None)
    for one, other in zip(actual, values_and_gradients(name, value, lengths), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


UNCHECKED: list[Callable[[Tensor, Tensor], Distribution]] = [
    lambda loc, scale: dist.MultivariateNormal(loc, torch.diag_embed(scale), validate_args=False),
    lambda loc, scale: dist.Normal(loc, scale, validate_args=False).to_event(1),
]


@pytest.mark.parametrize("make", UNCHECKED, ids=["full", "independent"])
def test_validation_is_as_it_was(make):
    """NaN is refused by RegimeHMM, else by the distribution, else it gives NaN."""
    value = draw(T, D)
    value[3, 1] = math.nan
    for of_hmm, of_dist in [(True, True), (True, False), (False, True)]:
        observation_dist = make(draw(K, D), positive(K, D))
        getattr(observation_dist, "base_dist", observation_dist)._validate_args = of_dist
        hmm = RegimeHMM(draw(K), draw(K, K), observation_dist, validate_args=of_hmm)
        with pytest.raises(ValueError, match="support"):
            hmm.log_prob(value)
    hmm = RegimeHMM(draw(K), draw(K, K), make(draw(K, D), positive(K, D)), validate_args=False)
    assert hmm.log_prob(value).isnan()
    with pytest.raises(ValueError, match="expected value to have shape"):
        hmm.log_prob(value[:, :2])


def test_float32_values_meet_float64_arguments():
    make, arguments = GAUSSIANS["covariance_matrix"]
    density = observation.log_prob(make(*arguments), draw(T, D).float())
    assert density.dtype == torch.float64
    torch.testing.assert_close(
        density, generic(make(*arguments), draw(T, D).float()), rtol=1e-12, atol=1e-12
    )


# All of them torch's own, of its own ways.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
@pytest.mark.usefixtures("validation_as_it_was")
@pytest.mark.parametrize("make", UNCHECKED, ids=["full", "independent"])
def test_compiles_without_a_break(make):
    def log_prob(
        initial: Tensor, transition: Tensor, value: Tensor, loc: Tensor, scale: Tensor
    ) -> Tensor:
        return RegimeHMM(initial, transition, make(loc, scale), validate_args=False).log_prob(value)

    given = [draw(K), draw(K, K), draw(T, D), draw(K, D), positive(K, D)]
    leaves = [part.requires_grad_() for part in given]
    compiled = torch.compile(log_prob, fullgraph=True, backend=BACKEND)
    expected = torch.autograd.grad(log_prob(*leaves), leaves)
    actual = torch.autograd.grad(compiled(*leaves), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_four_threads_get_the_answers_they_get_alone():
    names = ["scale_tril", "covariance_matrix", "one covariance", "independent"]
    value = draw(T, D)
    alone = [values_and_gradients(name, value) for name in names]
    found: list[tuple[Tensor, ...]] = [()] * 4

    def work(i: int) -> None:
        for _ in range(20):
            found[i] = values_and_gradients(names[i], value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, alone, strict=True):
        for actual, expected in zip(one, other, strict=True):
            assert torch.equal(actual, expected)
