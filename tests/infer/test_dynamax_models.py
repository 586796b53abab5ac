"""The questions of dynamax's tests of its HMM models, put to RegimeHMM, EM and SVI.

dynamax's ``hidden_markov_model/models/test_models.py`` has a class for each kind of observation,
and draws 50 observations from each, fits them by ten steps of EM, whose objective rises, and by
ten of gradient descent, which run. Here each is a distribution from Pyro. EM has closed forms for
the Gaussian ones and for regressions; where it has none Adam moves the parameter, as optax does
within dynamax's M-steps.

dynamax's models draw their starts, and so do these. Its priors keep covariances from collapsing on
50 observations; here ``min_eigenvalue`` does. The log densities are also compared with a recursion
written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests import seeds

T = 50
K = 4
D = 3


class Parameters:
    """The parameters of one model: drawn when first asked for, and registered with Pyro."""

    def __init__(self, seed: int) -> None:
        self.generator = seeds.generator(seed)
        self.starts: dict[str, Tensor] = {}

    def _start(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        if name not in self.starts:
            self.starts[name] = draw()
        return self.starts[name].clone()

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def real(self, name: str, *shape: int) -> Tensor:
        return pyro.param(name, self._start(name, lambda: self._normal(*shape)))

    def positive(self, name: str, *shape: int) -> Tensor:
        start = self._start(name, lambda: (0.5 * self._normal(*shape)).exp())
        return pyro.param(name, start, constraint=constraints.positive)

    def unit(self, name: str, *shape: int) -> Tensor:
        start = self._start(name, lambda: self._normal(*shape).sigmoid())
        return pyro.param(name, start, constraint=constraints.unit_interval)

    def simplex(self, name: str, *shape: int) -> Tensor:
        start = self._start(name, lambda: self._normal(*shape).softmax(-1))
        return pyro.param(name, start, constraint=constraints.simplex)

    def covariance(self, name: str, *shape: int) -> Tensor:
        def draw() -> Tensor:
            factor = self._normal(*shape)
            return factor @ factor.mT / shape[-1] + torch.eye(shape[-1], dtype=torch.float64)

        start = self._start(name, draw)
        return pyro.param(name, start, constraint=constraints.positive_definite)


INPUTS = torch.randn(T, 5, generator=seeds.generator(7), dtype=torch.float64)
ONES = torch.ones(T, 5, dtype=torch.float64)


def affine(p: Parameters, inputs: Tensor, num_states: int, *size: int) -> Tensor:
    """``weights u_t + bias`` of each time and state, ``(T, K) + size``."""
    weights = p.real("weights", num_states, *size, inputs.shape[-1])
    moved = torch.einsum("k...p, tp -> tk...", weights, inputs)
    return moved + p.real("bias", num_states, *size)


def gaussian_mixture(p: Parameters, component: dist.TorchDistribution) -> dist.TorchDistribution:
    return dist.MixtureSameFamily(dist.Categorical(p.simplex("weights", K, 2)), component)


class Config(NamedTuple):
    observation_dist: Callable[[Parameters], dist.TorchDistribution]
    num_states: int = K
    closed: bool = False  # whether EM needs no optimiser


#: ``CONFIGS`` of test_models.py, by the names of dynamax's classes
CONFIGS = {
    "BernoulliHMM": Config(lambda p: dist.Bernoulli(p.unit("probs", K, D)).to_event(1)),
    "CategoricalHMM": Config(lambda p: dist.Categorical(p.simplex("probs", K, D, 5)).to_event(1)),
    "CategoricalRegressionHMM": Config(lambda p: dist.Categorical(logits=affine(p, ONES, K, 3))),
    "GammaHMM": Config(lambda p: dist.Gamma(p.positive("shape", K), p.positive("rate", K))),
    "GaussianHMM": Config(
        lambda p: dist.MultivariateNormal(p.real("loc", K, D), p.covariance("covariance", K, D, D)),
        closed=True,
    ),
    "DiagonalGaussianHMM": Config(
        lambda p: dist.Normal(p.real("loc", K, D), p.positive("scale", K, D)).to_event(1),
        closed=True,
    ),
    "SphericalGaussianHMM": Config(
        lambda p: dist.Normal(p.real("loc", K, D), p.positive("scale", K, 1)).to_event(1),
        closed=True,
    ),
    "SharedCovarianceGaussianHMM": Config(
        lambda p: dist.MultivariateNormal(p.real("loc", K, D), p.covariance("covariance", D, D)),
        closed=True,
    ),
    "LowRankGaussianHMM": Config(
        lambda p: dist.LowRankMultivariateNormal(
            p.real("loc", K, D), p.real("factor", K, D, 1), p.positive("diagonal", K, D)
        )
    ),
    "GaussianMixtureHMM": Config(
        lambda p: gaussian_mixture(
            p,
            dist.MultivariateNormal(
                p.real("loc", K, 2, D), p.covariance("covariance", K, 2, D, D)
            ),
        )
    ),
    "DiagonalGaussianMixtureHMM": Config(
        lambda p: gaussian_mixture(
            p, dist.Normal(p.real("loc", K, 2, D), p.positive("scale", K, 2, D)).to_event(1)
        )
    ),
    "LinearRegressionHMM": Config(
        lambda p: dist.MultivariateNormal(
            affine(p, INPUTS, 3, D), p.covariance("covariance", 3, D, D)
        ),
        num_states=3,
        closed=True,
    ),
    "LogisticRegressionHMM": Config(lambda p: dist.Bernoulli(logits=affine(p, ONES, K))),
    "MultinomialHMM": Config(
        lambda p: dist.Multinomial(10, p.simplex("probs", K, D, 5)).to_event(1)
    ),
    "PoissonHMM": Config(lambda p: dist.Poisson(p.positive("rate", K, D)).to_event(1)),
}


def hmm_of(config: Config, p: Parameters, **options) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=p.simplex("initial", config.num_states),
        transition_probs=p.simplex("transition", config.num_states, config.num_states),
        observation_dist=config.observation_dist(p),
        **options,
    )


def draw(config: Config) -> Tensor:
    """50 observations at parameters of their own."""
    with pyro.get_param_store().scope():
        torch.manual_seed(seeds.seed(42))
        return hmm_of(config, Parameters(0), duration=T).sample()


def forward(hmm: RegimeHMM, value: Tensor) -> Tensor:
    """log p(x), by the textbook's recursion on logarithms."""
    density = hmm.observation_dist.log_prob(value.unsqueeze(-hmm.event_dim))  # (T, K)
    alpha = hmm.initial_logits + density[0]
    for emitted in density[1:]:
        alpha = (alpha.unsqueeze(-1) + hmm.transition_logits[0]).logsumexp(-2) + emitted
    return alpha.logsumexp(-1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_sample_and_fit(config):
    """``test_sample_and_fit``."""
    value = draw(config)
    start = Parameters(1)

    def model() -> None:
        pyro.sample("x", hmm_of(config, start), obs=value)

    with pyro.get_param_store().scope():
        hmm = hmm_of(config, start)
        assert value.shape == (T,) + hmm.observation_dist.event_shape
        torch.testing.assert_close(hmm.log_prob(value), forward(hmm, value), rtol=1e-12, atol=0.0)
        first = -hmm.log_prob(value).item()

        optim = None if config.closed else pyro.optim.Adam({"lr": 0.01})
        em = EM(model, optim=optim, min_eigenvalue=0.01)
        losses = [em.step() for _ in range(10)] + [em.evaluate_loss()]
        assert losses[0] == pytest.approx(first, rel=1e-12)
        rises = [after - before for before, after in zip(losses, losses[1:])]
        assert max(rises) < (1e-9 if config.closed else 1e-2)
        assert losses[-1] < losses[0] - 0.1
        fitted = hmm_of(config, start)
        assert losses[-1] == pytest.approx(-forward(fitted, value).item(), rel=1e-12)

    with pyro.get_param_store().scope():
        svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        descent = [svi.step() for _ in range(10)] + [svi.evaluate_loss()]
        assert descent[0] == pytest.approx(first, rel=1e-12)
        assert all(map(math.isfinite, descent))
        assert descent[-1] < descent[0]


def test_autoregression():
    """``test_sample_and_fit_arhmm``: two series, each on the step before of both.

    Given the steps before, it is a regression. RegimeHMM draws no observations that depend on one
    another, so the data are drawn here.
    """
    generator = seeds.generator(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights, bias = 0.5 * normal(K, 2, 2), normal(K, 2)
    rows = [torch.zeros(2).double()]
    state = 0
    for _ in range(T):
        if torch.rand((), generator=generator) < 0.2:
            state = int(torch.randint(K, (), generator=generator))
        rows.append(weights[state] @ rows[-1] + bias[state] + 0.3 * normal(2))
    series = torch.stack(rows)
    value, before = series[1:], series[:-1]
    config = Config(
        lambda p: dist.MultivariateNormal(
            affine(p, before, K, 2), p.covariance("covariance", K, 2, 2)
        ),
        closed=True,
    )
    start = Parameters(1)

    def model() -> None:
        pyro.sample("x", hmm_of(config, start), obs=value)

    hmm = hmm_of(config, start)
    torch.testing.assert_close(hmm.log_prob(value), forward(hmm, value), rtol=1e-12, atol=0.0)
    em = EM(model, min_eigenvalue=0.01)
    losses = [em.step() for _ in range(10)] + [em.evaluate_loss()]
    assert all(after < before + 1e-9 for before, after in zip(losses, losses[1:]))
    assert losses[-1] < losses[0] - 10


def test_path_of_a_categorical_chain():
    """``test_categorical_hmm_viterbi``: the example of Wikipedia's "Viterbi algorithm"."""
    hmm = RegimeHMM(
        initial_probs=torch.tensor([0.6, 0.4]),
        transition_probs=torch.tensor([[0.7, 0.3], [0.4, 0.6]]),
        observation_dist=dist.Categorical(
            torch.tensor([[0.1, 0.4, 0.5], [0.6, 0.3, 0.1]]).unsqueeze(-2)
        ).to_event(1),
    )
    assert hmm.viterbi(torch.arange(3).unsqueeze(-1)).tolist() == [1, 0, 0]


def test_mixtures_of_full_and_of_diagonal_covariances():
    """``test_gmm_hmm_vs_gmm_diag_hmm``: K = 4, three components of two dims, the same density."""
    p = Parameters(0)
    weights, loc = p.simplex("weights", K, 3), p.real("loc", K, 3, 2)
    scale = p.positive("scale", K, 3, 2)
    components = [
        dist.Normal(loc, scale).to_event(1),
        dist.MultivariateNormal(loc, (scale**2).diag_embed()),
    ]
    diagonal, full = (
        RegimeHMM(
            initial_probs=p.simplex("initial", K),
            transition_probs=p.simplex("transition", K, K),
            observation_dist=dist.MixtureSameFamily(dist.Categorical(weights), component),
            duration=T,
        )
        for component in components
    )
    drawn = []
    for hmm in (diagonal, full):
        torch.manual_seed(seeds.seed(3))
        drawn.append(hmm.sample())
    torch.testing.assert_close(*drawn, rtol=1e-12, atol=1e-12)
    for one, other in zip(diagonal.posterior(drawn[0]), full.posterior(drawn[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert torch.equal(diagonal.viterbi(drawn[0]), full.viterbi(drawn[0]))
