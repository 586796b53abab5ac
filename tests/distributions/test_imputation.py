"""Missing entries are imputed by their distribution given all observed entries."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import RegimeHMM
from pyro_regimes.distributions import Columns
from tests import seeds

K, D, T = 2, 3, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def spreads(seed: int = 0) -> Tensor:
    root = draw(K, D, D, seed=seed)
    return root @ root.mT + 0.5 * torch.eye(D).double()


def hmm(emission: dist.Distribution, **settings) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=draw(K, seed=1).softmax(-1), transition_probs=draw(K, K, seed=2).softmax(-1),
        observation_dist=emission, missing="marginalise", **settings,
    )  # fmt: skip


def normal(loc: Tensor, spread: Tensor) -> dist.Distribution:
    return dist.Normal(loc, spread.diagonal(dim1=-2, dim2=-1).sqrt()).to_event(1)


def precision(loc: Tensor, spread: Tensor) -> dist.Distribution:
    return dist.MultivariateNormal(loc, precision_matrix=torch.linalg.inv(spread))


KINDS = {"normal": normal, "covariance": dist.MultivariateNormal, "precision": precision}
kinds = pytest.mark.parametrize("kind", KINDS)


def holes(value: Tensor, seed: int = 9) -> Tensor:
    gone = torch.rand(value.shape, generator=seeds.generator(seed)) < 0.4
    gone[..., 2, :], gone[..., 1, 0], gone[..., 1, 1] = True, True, False
    return value.masked_fill(gone, torch.nan)


def brute_force(chain: RegimeHMM, loc: Tensor, covariance: Tensor, x: Tensor):
    """Over all paths, the joint Gaussian of the whole sequence, conditioned on what is observed."""
    seen = ~x.flatten().isnan()
    weights, means, variances = [], [], []
    for path in itertools.product(range(K), repeat=T):
        prior = chain.initial_probs[path[0]]
        for before, after in zip(path, path[1:]):
            prior = prior * chain.transition_probs[0, before, after]
        mean = loc[list(path)].flatten()
        whole = torch.block_diag(*covariance[list(path)])
        inner = whole[seen][:, seen]
        residual = x.flatten()[seen] - mean[seen]
        density = dist.MultivariateNormal(mean[seen], inner).log_prob(x.flatten()[seen])
        weights.append(prior.log() + density)
        slopes = torch.linalg.solve(inner, whole[seen]).mT
        means.append(mean + slopes @ residual)
        variances.append((whole - slopes @ whole[seen]).diagonal())
    share = torch.stack(weights).softmax(0).unsqueeze(-1)
    means, variances = torch.stack(means), torch.stack(variances)
    mean = (share * means).sum(0)
    variance = (share * (variances + means.square())).sum(0) - mean.square()
    return mean.reshape(T, D), variance.reshape(T, D)


@kinds
def test_against_all_paths(kind):
    loc, covariance = 2 * draw(K, D, seed=3), spreads(seed=4)
    if kind == "normal":
        covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    chain, x = hmm(KINDS[kind](loc, covariance)), holes(draw(T, D, seed=5))
    mean, variance = chain.impute(x)
    expected_mean, expected_variance = brute_force(chain, loc, covariance, x)
    assert_close(mean, expected_mean, rtol=1e-9, atol=1e-9)
    assert_close(variance, expected_variance, rtol=1e-9, atol=1e-9)
    assert torch.equal(mean[~x.isnan()], x[~x.isnan()])
    assert bool((variance[~x.isnan()] == 0).all() and (variance[x.isnan()] > 0).all())


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batches_lengths_and_time(kind, dtype):
    loc = draw(2, 1, T, K, D, seed=3).to(dtype)
    covariance = spreads(seed=4).to(dtype)
    x = holes(draw(3, T, D, seed=5)).to(dtype)
    x[0, 0] = torch.nan  # padding is replaced by the first row
    x[1, 3:] = torch.nan
    lengths = torch.tensor([4, 3, T])
    batch = hmm(KINDS[kind](loc, covariance), lengths=lengths).impute(x)
    assert batch.mean.shape == batch.variance.shape == (2, 3, T, D)
    for i, n in itertools.product(range(2), range(3)):
        size = int(lengths[n])
        alone = hmm(KINDS[kind](loc[i, 0, :size], covariance)).impute(x[n, :size])
        tolerance = 1e-4 if dtype is torch.float32 else 1e-10
        for all_of_them, one in zip(batch, alone, strict=True):
            assert_close(all_of_them[i, n, :size], one, rtol=tolerance, atol=tolerance)
        padding = batch.mean[i, n, size:]
        assert_close(padding, x[n, size:], equal_nan=True, check_dtype=False)
        assert bool((batch.variance[i, n, size:] == 0).all())


def test_whole_observations_of_any_distribution():
    rates = torch.tensor([1.0, 8.0]).double()
    x = torch.tensor([2.0, torch.nan, 9.0, torch.nan]).double()
    chain = hmm(dist.Poisson(rates))
    probs = chain.smoothed_probs(x)
    mean, variance = chain.impute(x)
    expected = probs @ rates
    assert_close(mean[[1, 3]], expected[[1, 3]])
    spread = (probs * (rates + rates.square())).sum(-1) - expected.square()
    assert_close(variance[[1, 3]], spread[[1, 3]])
    # entries that are independent given the state
    both = hmm(dist.Poisson(torch.stack([rates, rates.flip(0)], -1)).to_event(1))
    rows = torch.stack([x, x], -1)
    assert_close(both.impute(rows).mean.sum(-1)[1], torch.tensor(9.0).double())
    complete = torch.tensor([2.0, 1.0]).double()
    same, zero = chain.impute(complete)
    assert torch.equal(same, complete) and torch.equal(zero, torch.zeros(2).double())


def test_what_cannot_be_imputed_is_said():
    cauchy = hmm(dist.Cauchy(torch.zeros(K).double(), 1.0))
    assert cauchy.impute(torch.tensor([1.0, torch.nan]).double()).mean[1].isnan()
    refuse = RegimeHMM(
        cauchy.initial_logits, cauchy.transition_logits,
        dist.Normal(torch.zeros(K).double(), 1.0), validate_args=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="NaN is missing data with missing='marginalise'"):
        refuse.impute(torch.tensor([0.0, torch.nan]).double())
    impossible = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0.0]).double(),
        transition_probs=torch.eye(2).double(),
        observation_dist=dist.Uniform(torch.tensor([0.0, 1.0]).double(), 3.0, validate_args=False),
        missing="marginalise", validate_args=False,
    )  # fmt: skip
    value = torch.tensor([4.0, torch.nan]).double()
    mean, variance = impossible.impute(value)
    assert mean[0] == 4 and mean[1].isnan() and variance[1].isnan()


def test_a_student_t_given_some_entries():
    """By a Gaussian whose variance is drawn: averages over its posterior, by quadrature."""
    df, loc, spread = torch.tensor([5.0, 9.0]).double(), draw(K, D, seed=3), spreads(seed=4)
    factor = torch.linalg.cholesky(spread)
    x = draw(4, D, seed=5)
    x[0, 1], x[1, :2], x[2] = torch.nan, torch.nan, torch.nan
    chain = hmm(dist.MultivariateStudentT(df, loc, factor))
    mean, variance = chain.impute(x)
    probs = chain.smoothed_probs(x)
    grid = torch.linspace(1e-4, 12, 200_001).double()  # of the precision
    for t in range(3):
        seen = ~x[t].isnan()
        means, variances = [], []
        for k in range(K):
            inner = spread[k][seen][:, seen]
            residual = x[t, seen] - loc[k, seen]
            q = residual @ torch.linalg.solve(inner, residual) if seen.any() else torch.zeros(())
            half = (df[k] + seen.sum()) / 2
            weight = ((half - 1) * grid.log() - grid * (df[k] + q) / 2).softmax(0)
            slopes = torch.linalg.solve(inner, spread[k][seen]).mT
            means.append(loc[k] + slopes @ residual)
            rest = (spread[k] - slopes @ spread[k][seen]).diagonal()
            variances.append(rest * (weight / grid).sum())
        means, variances = torch.stack(means), torch.stack(variances)
        average = probs[t] @ means
        spread_of = probs[t] @ (variances + (means - average).square())
        assert_close(mean[t, ~seen], average[~seen], rtol=1e-8, atol=1e-8)
        assert_close(variance[t, ~seen], spread_of[~seen], rtol=1e-4, atol=1e-5)
    assert torch.equal(mean[3], x[3])


def test_columns_of_several_kinds():
    loc, rates = 2 * draw(K, 2, seed=3), torch.tensor([1.0, 8.0]).double()
    spread = spreads(seed=4)[:, :2, :2]
    emission = Columns([(dist.Poisson(rates), 1), (dist.MultivariateNormal(loc, spread), [0, 2])])
    x = torch.stack([draw(T, seed=5), torch.arange(T).double(), draw(T, seed=6)], -1)
    x[1, 0], x[2, 1], x[3] = torch.nan, torch.nan, torch.nan
    chain = hmm(emission)
    mean, variance = chain.impute(x)
    probs = chain.smoothed_probs(x)
    assert_close(mean[[2, 3], 1], (probs @ rates)[[2, 3]])
    slope = spread[:, 0, 1] / spread[:, 1, 1]
    given = loc[:, 0] + slope * (x[1, 2] - loc[:, 1])
    assert_close(mean[1, 0], probs[1] @ given)
    rest = spread[:, 0, 0] - slope * spread[:, 0, 1]
    assert_close(variance[1, 0], probs[1] @ (rest + (given - mean[1, 0]).square()))
    assert torch.equal(mean[0], x[0]) and bool((variance[3] > 0).all())


def test_what_has_no_moments_given_others():
    loc = draw(K, D, seed=3).exp()
    chain = hmm(dist.Dirichlet(loc))
    x = torch.full((3, D), 1 / D).double()
    x[1] = torch.nan
    assert_close(chain.impute(x).mean[1], chain.smoothed_probs(x)[1] @ (loc / loc.sum(-1, True)))


def test_factor_analysis_is_imputed_as_its_covariance():
    factor, noise, loc = draw(K, D, 1, seed=6), draw(K, D, seed=7).exp(), draw(K, D, seed=3)
    factors = dist.LowRankMultivariateNormal(loc, factor, noise)
    x = holes(draw(T, D, seed=5))
    found = hmm(factors).impute(x)
    expected = hmm(dist.MultivariateNormal(loc, factors.covariance_matrix)).impute(x)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_categories_are_imputed_by_the_moments_of_their_number():
    probs = draw(K, 2, 4, seed=3).softmax(-1)
    x = torch.tensor([[0.0, 3.0], [torch.nan, 1.0], [2.0, torch.nan], [torch.nan, torch.nan]])
    numbers = torch.arange(4).double()
    for emission in (dist.Categorical(probs), dist.Categorical(logits=probs.log())):
        chain = hmm(emission.to_event(1))
        mean, variance = chain.impute(x.double())
        gamma = chain.smoothed_probs(x.double())
        first, second = (gamma @ (probs @ numbers**n) for n in (1, 2))
        missing = x.isnan()
        assert_close(mean[missing], first[missing])
        assert_close(variance[missing], (second - first.square())[missing])


def test_angles_are_imputed_by_their_mean_direction():
    """Of the mixture over the states: not the mean of the numbers, which depends on the cut."""
    loc, concentration = torch.tensor([3.0, -3.0]).double(), torch.tensor([5.0, 2.0]).double()
    x = torch.tensor([2.9, torch.nan, -3.1, torch.nan]).double()
    circle = torch.linspace(-math.pi, math.pi, 2001)[:-1].double()
    weights = (concentration[:, None] * (circle - loc[:, None]).cos()).softmax(-1)  # (K, n)
    chain = hmm(dist.VonMises(loc, concentration))
    with torch.device("meta"):  # not used
        mean, variance = chain.impute(x)
    density = chain.smoothed_probs(x) @ weights
    across, along = density @ circle.cos(), density @ circle.sin()
    missing = x.isnan()
    assert_close(mean[missing], torch.atan2(along, across)[missing])
    assert_close(variance[missing], 1 - torch.hypot(across, along)[missing])
    rates = torch.tensor([1.0, 8.0]).double()
    beside = hmm(Columns([(dist.Poisson(rates), 0), (dist.VonMises(loc, concentration), 1)]))
    rows = torch.stack([torch.tensor([1.0, torch.nan, 9.0, torch.nan]).double(), x], -1)
    found = beside.impute(rows)
    gamma = beside.smoothed_probs(rows)
    assert_close(found.mean[missing, 0], (gamma @ rates)[missing])
    density = gamma @ weights
    direction = torch.atan2(density @ circle.sin(), density @ circle.cos())
    assert_close(found.mean[missing, 1], direction[missing])
    vectors = dist.VonMises(torch.stack([loc, loc.flip(0)], -1), concentration[:, None])
    both = hmm(vectors.to_event(1)).impute(torch.stack([x, x], -1)).mean
    assert bool((both[missing].cos() < -0.8).all())


@pytest.mark.parametrize("is_full", [False, True])
def test_mixtures_of_gaussians_given_some_entries(is_full):
    """By the mixture whose weights and components are those given the observed entries."""
    M = 3
    weights, loc = draw(K, M, seed=3).softmax(-1), 2 * draw(K, M, D, seed=4)
    root = draw(K, M, D, D, seed=5)
    spread = root @ root.mT + 0.5 * torch.eye(D).double()
    if is_full:
        components: dist.Distribution = dist.MultivariateNormal(loc, spread)
    else:
        spread = spread.diagonal(dim1=-2, dim2=-1).diag_embed()
        components = dist.Normal(loc, spread.diagonal(dim1=-2, dim2=-1).sqrt()).to_event(1)
    chain = hmm(dist.MixtureSameFamily(dist.Categorical(weights), components))
    x = holes(draw(T, D, seed=6))
    mean, variance = chain.impute(x)
    gamma = chain.smoothed_probs(x)
    for t in range(T):
        seen = ~x[t].isnan()
        inner = spread[..., seen, :][..., seen]  # (K, M, n, n)
        share = weights.log()
        residual = x[t, seen] - loc[..., seen]
        if seen.any():
            share = share + dist.MultivariateNormal(loc[..., seen], inner).log_prob(x[t, seen])
        share = gamma[t, :, None] * share.softmax(-1)  # of each state and component
        slopes = torch.linalg.solve(inner, spread[..., seen, :]).mT
        means = loc + (slopes @ residual[..., None]).squeeze(-1)
        rest = (spread - slopes @ spread[..., seen, :]).diagonal(dim1=-2, dim2=-1)
        average = (share[..., None] * means).sum((0, 1))
        total = (share[..., None] * (rest + (means - average).square())).sum((0, 1))
        assert_close(mean[t, ~seen], average[~seen])
        assert_close(variance[t, ~seen], total[~seen])
    assert torch.equal(mean[~x.isnan()], x[~x.isnan()])
