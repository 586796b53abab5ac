"""RegimeHMM against Pyro: DiscreteHMM through the bridge, and the model written out, enumerated."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from tests import seeds
from tests.distributions.test_against_enumeration import assert_equal

K, T, D = 3, 5, 2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def discrete_hmm(initial_logits: Tensor, transition_logits: Tensor, observation_dist, steps: int):
    """Pyro's chain moves before its first observation: there, to a draw of our initial state."""
    if transition_logits.dim() == 2:
        transition_logits = transition_logits.unsqueeze(-3)
    first = initial_logits[..., None, None, :].expand(initial_logits.shape[:-1] + (1, K, K))
    later = transition_logits.expand(transition_logits.shape[:-3] + (steps - 1, K, K))
    batch = torch.broadcast_shapes(first.shape[:-3], later.shape[:-3])
    slices = torch.cat([part.expand(batch + part.shape[-3:]) for part in (first, later)], -3)
    if not hasattr(observation_dist, "event_dim"):  # one of torch's own
        observation_dist = MaskedDistribution(observation_dist, True)
    return dist.DiscreteHMM(slices.new_zeros(K), slices, observation_dist)


def positive_definite(factor: Tensor) -> Tensor:
    return factor @ factor.mT + torch.eye(factor.shape[-1], dtype=factor.dtype)


#: name -> leading shapes of the parameters' rows (time and states), and the distribution of them
OBSERVATIONS = {
    "Normal": lambda shape, p: dist.Normal(p(*shape), p(*shape).exp()),
    "MultivariateNormal": lambda shape, p: dist.MultivariateNormal(
        p(*shape, D), positive_definite(p(*shape, D, D))
    ),
    "shared covariance": lambda shape, p: dist.MultivariateNormal(
        p(*shape, D), scale_tril=torch.linalg.cholesky(positive_definite(p(D, D)))
    ),
    "Categorical": lambda shape, p: dist.Categorical(logits=p(*shape, 4)),
    "Poisson": lambda shape, p: dist.Poisson(p(*shape).exp()),
    "Normal to_event": lambda shape, p: dist.Normal(p(*shape, D), p(*shape, D).exp()).to_event(1),
    "Bernoulli to_event": lambda shape, p: dist.Bernoulli(logits=p(*shape, D, 2)).to_event(2),
    "torch's Independent": lambda shape, p: torch.distributions.Independent(
        torch.distributions.Laplace(p(*shape, D), p(D).exp()), 1
    ),
    "ExpandedDistribution": lambda shape, p: ExpandedDistribution(
        dist.Normal(p(*(1 for _ in shape)), p(*shape).exp()), torch.Size(shape)
    ),
    "MaskedDistribution": lambda shape, p: dist.Normal(p(*shape), 1.0).mask(
        torch.tensor([True, False, True])
    ),
    "a mask over time": lambda shape, p: dist.Normal(p(T, K), 1.0).mask(
        torch.tensor([True, False, True, True, False]).unsqueeze(-1)
    ),
    "a mixture": lambda shape, p: dist.MixtureSameFamily(
        dist.Categorical(logits=p(*shape, 2)), dist.Normal(p(*shape, 2), 1.0)
    ),
    "LogNormal": lambda shape, p: dist.LogNormal(p(*shape), p(*shape).exp()),
}

#: leading shapes of the initial logits, of the transitions and of the observations' parameters
LAYOUTS = {
    "homogeneous": ((), (), (K,)),
    "all vary in time": ((), (T - 1,), (T, K)),
    "batch": ((2,), (2, 1), (2, 1, K)),
    "batch, all vary in time": ((3, 1), (2, T - 1), (2, T, K)),
}


def build(name: str, layout: str):
    """The two log tensors, the observation distribution, and every leaf behind them."""
    leaves = []

    def parameter(*shape: int) -> Tensor:
        leaves.append(normal(*shape, seed=len(leaves)).requires_grad_())
        return leaves[-1]

    initial, transition, rows = LAYOUTS[layout]
    logits = parameter(*initial, K), parameter(*transition, K, K)
    return (*logits, OBSERVATIONS[name](rows, parameter), leaves)


@pytest.mark.parametrize(
    "name, layout",
    [("Normal", layout) for layout in LAYOUTS]
    + [(name, "homogeneous") for name in OBSERVATIONS if name != "Normal"]
    + [(name, "batch, all vary in time") for name in OBSERVATIONS if name != "Normal"],
)
def test_discrete_hmm_agrees_in_value_and_gradient(name, layout):
    initial, transition, observed, leaves = build(name, layout)
    ours = RegimeHMM(initial, transition, observed, duration=T)
    theirs = discrete_hmm(initial, transition, observed, T)
    assert ours.event_shape == theirs.event_shape
    assert ours.batch_shape == theirs.batch_shape

    torch.manual_seed(seeds.seed(0))
    value = ours.sample((2,))
    assert value.shape == ours.shape((2,))
    value = value.requires_grad_() if value.is_floating_point() else value
    inputs = leaves + [value] * value.requires_grad
    assert_equal(ours.log_prob(value), theirs.log_prob(value))
    weights = normal(*ours.log_prob(value).shape, seed=99)
    gradients = [
        torch.autograd.grad((hmm.log_prob(value) * weights).sum(), inputs, retain_graph=True)
        for hmm in (ours, theirs)
    ]
    for actual, expected in zip(*gradients, strict=True):
        assert_equal(actual, expected)
    assert_equal(ours.filter(value).probs, theirs.filter(value).probs)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_method_takes_every_observation_dist(name):
    initial, transition, observed, _ = build(name, "homogeneous")
    hmm = RegimeHMM(initial, transition, observed, duration=T)
    value = hmm.sample((2,))
    posterior = hmm.posterior(value)
    assert_equal(posterior.smoothed_probs.sum(-1), torch.ones(2, T).double())
    assert hmm.viterbi(value).shape == (2, T)
    assert hmm.sample_posterior(value, (3,)).shape == (3, 2, T)
    if name == "a mask over time":
        return  # its future is not known
    future = hmm.forecast(value, 4)
    assert future.shape() == (2, 4) + observed.event_shape
    assert future.log_prob(future.sample()).isfinite().all()


def test_the_same_arguments_mean_something_else_to_discrete_hmm():
    """The first lines of the docstring say so."""
    initial, transition, observed, _ = build("Normal", "homogeneous")
    value = normal(T, seed=50)
    moved = (initial.softmax(-1) @ transition.softmax(-1)).log()
    theirs = dist.DiscreteHMM(initial, transition, observed).log_prob(value)
    assert not torch.allclose(RegimeHMM(initial, transition, observed).log_prob(value), theirs)
    assert_equal(RegimeHMM(moved, transition, observed).log_prob(value), theirs)


@pytest.mark.parametrize("varying", [False, True], ids=["homogeneous", "varying"])
def test_the_enumerated_markov_model_agrees(varying):
    steps = 4
    value = normal(2, steps, seed=60)
    start = {
        "initial": normal(K, seed=61).softmax(-1),
        "transition": normal(steps - 1 if varying else 1, K, K, seed=62).softmax(-1),
        "loc": normal(K, seed=63),
    }

    def parameters() -> list[Tensor]:
        simplex = dist.constraints.simplex
        return [
            pyro.param("initial", start["initial"], constraint=simplex),
            pyro.param("transition", start["transition"], constraint=simplex),
            pyro.param("loc", start["loc"]),
        ]

    def explicit() -> None:
        initial, transition, loc = parameters()
        with pyro.plate("sequences", 2):
            state = None
            for t in pyro.markov(range(steps)):
                row = initial if t == 0 else transition[t - 1 if varying else 0][state]
                state = pyro.sample(
                    f"state_{t}", dist.Categorical(row), infer={"enumerate": "parallel"}
                )
                pyro.sample(f"x_{t}", dist.Normal(loc[state], 1.0), obs=value[:, t])

    def marginal() -> None:
        initial, transition, loc = parameters()
        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=transition,
            observation_dist=dist.Normal(loc, 1.0),
        )
        with pyro.plate("sequences", 2):
            pyro.sample("x", hmm, obs=value)

    losses, gradients = [], []
    with pyro.get_param_store().scope():
        for model, elbo in (
            (explicit, TraceEnum_ELBO(max_plate_nesting=1)),
            (marginal, Trace_ELBO()),
        ):
            loss = elbo.differentiable_loss(model, lambda: None)
            named = dict(pyro.get_param_store().named_parameters())
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, [named[name] for name in start]))
    assert_equal(losses[1], losses[0])
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        assert_equal(actual, expected)
