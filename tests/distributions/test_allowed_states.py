"""Known states, partly known states and end states."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests import seeds

K, T = 3, 5


def generator(seed: int = 0) -> torch.Generator:
    return seeds.generator(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).softmax(-1)


def hmm(allowed: Tensor | None, **settings) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=rows(K, seed=1), transition_probs=rows(K, K, seed=2),
        observation_dist=dist.Normal(draw(K, seed=3), 1.0), allowed_states=allowed, **settings,
    )  # fmt: skip


def some(*shape: int) -> Tensor:
    allowed = torch.rand(shape, generator=generator(4)) < 0.6
    allowed[..., 0] |= ~allowed.any(-1)
    return allowed


def enumerated(allowed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The log-likelihood, and the smoothed probabilities, by all allowed paths."""
    chain = hmm(None)
    density = chain.observation_dist.log_prob(x.unsqueeze(-1))
    total, marginal = torch.tensor(0.0).double(), torch.zeros(T, K).double()
    for path in itertools.product(range(K), repeat=T):
        if not all(allowed[t, k] for t, k in enumerate(path)):
            continue
        log = chain.initial_logits[path[0]] + density[0, path[0]]
        for t in range(1, T):
            log = log + chain.transition_logits[0, path[t - 1], path[t]] + density[t, path[t]]
        total = total + log.exp()
        for t, k in enumerate(path):
            marginal[t, k] += log.exp()
    return total.log(), marginal / total


def test_against_enumeration():
    allowed, x = some(T, K), draw(T, seed=5)
    expected, marginal = enumerated(allowed, x)
    chain = hmm(allowed)
    assert_close(chain.log_prob(x), expected)
    assert_close(chain.smoothed_probs(x), marginal)
    path = chain.viterbi(x)
    assert bool(allowed.gather(-1, path.unsqueeze(-1)).all())
    drawn = chain.sample_posterior(x, (50,))
    assert bool(allowed.expand(50, T, K).gather(-1, drawn.unsqueeze(-1)).all())


def test_gradients():
    allowed, x = some(T, K), draw(T, seed=5)

    def log_prob(initial: Tensor, transition: Tensor, loc: Tensor) -> Tensor:
        emission = dist.Normal(loc, 1.0)
        return RegimeHMM(initial, transition, emission, allowed_states=allowed).log_prob(x)

    given = (draw(K, seed=1), draw(K, K, seed=2), draw(K, seed=3))
    assert torch.autograd.gradcheck(log_prob, [each.requires_grad_() for each in given])


def test_batches_lengths_and_one_row_for_all_times():
    allowed, x = some(4, T, K), draw(4, T, seed=5)
    lengths = torch.tensor([5, 3, 1, 2])
    for i in range(4):
        allowed[i, lengths[i] :] = False  # padding may hold anything
    chain = hmm(allowed, lengths=lengths)
    assert chain.batch_shape == (4,) and chain.event_shape == (T,)
    for i, n in enumerate(lengths.tolist()):
        assert_close(chain.log_prob(x)[i], hmm(allowed[i, :n]).log_prob(x[i, :n]))
    always = torch.tensor([True, False, True])
    assert_close(hmm(always).log_prob(x), hmm(always.expand(T, K)).log_prob(x))
    assert_close(hmm(always).expand([4]).log_prob(x), hmm(always).log_prob(x))
    assert_close(hmm(torch.ones(T, K).bool()).log_prob(x), hmm(None).log_prob(x))


def test_samples_keep_to_the_allowed_states():
    allowed = torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 1, 2]), K).bool()
    loc = torch.tensor([-100.0, 0, 100])
    chain = RegimeHMM(
        initial_probs=torch.full((K,), 1 / K), transition_probs=torch.full((K, K), 1 / K),
        observation_dist=dist.Normal(loc, 1.0), allowed_states=allowed,
    )  # fmt: skip
    drawn = chain.sample((20,))
    assert_close((drawn / 100).round(), torch.tensor([1.0, -1, 0, 0, 1]).expand(20, T))
    never = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0, 0]), transition_probs=torch.eye(3),
        observation_dist=dist.Normal(loc, 1.0), allowed_states=allowed,
    )  # fmt: skip
    assert float(never.log_prob(drawn[0])) == -torch.inf
    with pytest.raises(ValueError, match="a chain that has an allowed path of states"):
        never.sample()


def test_samples_go_on_after_the_lengths():
    """The padding of allowed_states may hold anything; samples have length T all the same."""
    allowed = torch.ones(2, T, K, dtype=torch.bool)
    allowed[0, 0] = torch.tensor([False, True, False])
    allowed[1, 2:] = False
    allowed[1, 1] = torch.tensor([False, False, True])
    loc = torch.tensor([-100.0, 0, 100]).double()
    chain = RegimeHMM(
        initial_probs=rows(K, seed=1), transition_probs=rows(K, K, seed=2),
        observation_dist=dist.Normal(loc, 1.0), allowed_states=allowed,
        lengths=torch.tensor([T, 2]),
    )  # fmt: skip
    assert chain.log_prob(draw(2, T)).isfinite().all()
    drawn = (chain.sample((200,)) / 100).round() + 1  # the states
    assert drawn.shape == (200, 2, T)
    assert bool((drawn[:, 0, 0] == 1).all()) and bool((drawn[:, 1, 1] == 2).all())
    after = drawn[:, 1, 2:]
    assert {0, 1, 2} == set(after.flatten().tolist())

    # One row of states for all times, which no length ends.
    never = torch.tensor([True, True, False])
    shared = RegimeHMM(
        initial_probs=rows(K, seed=1), transition_probs=rows(K, K, seed=2),
        observation_dist=dist.Normal(loc, 1.0), allowed_states=never, duration=T,
        lengths=torch.tensor([T, 2]),
    )  # fmt: skip
    within = (shared.sample((200,)) / 100).round() + 1
    assert bool((within[:, 0] < 2).all()) and bool((within[:, 1, :2] < 2).all())


@pytest.mark.parametrize(
    "allowed, message",
    [
        ([True] * K, "expected allowed_states to be a bool tensor, got list"),
        (torch.ones(T, K), r"bool tensor, got dtype torch.float32; known states .*one_hot"),
        (torch.ones(T, 2).bool(), r"to end in \(3,\), as observation_dist has 3 states"),
        (torch.zeros(T, K).bool(), r"to allow a state at every step, got none at \(0,\)"),
    ],
)
def test_wrong_ones_are_refused(allowed, message):
    with pytest.raises(ValueError, match=message):
        hmm(allowed)


def test_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="equal numbers of time steps, got .* allowed_states"):
        hmm(some(T, K), duration=T + 1)
    with pytest.raises(ValueError, match="expected value to have 5 time steps"):
        hmm(some(T, K)).log_prob(draw(T + 1))


# ---- EM ----------------------------------------------------------------------------------------


def simulated() -> tuple[Tensor, Tensor]:
    states = torch.randint(K, (6, 40), generator=generator(6))
    return states, 3.0 * states + draw(6, 40, seed=7)


def fit(x: Tensor, allowed: Tensor, num_steps: int) -> EM:
    def model(x: Tensor) -> None:
        chain = RegimeHMM(
            initial_probs=pyro.param("initial", rows(K, seed=1), constraint=constraints.simplex),
            transition_probs=pyro.param("rows", rows(K, K), constraint=constraints.simplex),
            observation_dist=dist.Normal(
                pyro.param("loc", draw(K, seed=2)),
                pyro.param("scale", torch.ones(K).double(), constraint=constraints.positive),
            ),
            allowed_states=allowed,
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", chain, obs=x)

    em = EM(model)
    em.result = em.run(x, num_steps=num_steps, tol=None)
    return em


def test_all_states_known_is_supervised_maximum_likelihood():
    states, x = simulated()
    known = torch.nn.functional.one_hot(states, K).bool()
    em = fit(x, known, 1)
    assert "not allowed" in str(em.plan)
    counts = torch.zeros(K, K).double()
    for path in states.tolist():
        for old, new in zip(path[:-1], path[1:], strict=True):
            counts[old, new] += 1
    first = torch.nn.functional.one_hot(states[:, 0], K).double().mean(0)
    members = known.double()
    weight = members.sum((0, 1))
    loc = (members * x.unsqueeze(-1)).sum((0, 1)) / weight
    variance = (members * (x.unsqueeze(-1) - loc) ** 2).sum((0, 1)) / weight
    exact = dict(rtol=1e-12, atol=1e-12)
    assert_close(pyro.param("rows").detach(), counts / counts.sum(-1, keepdim=True), **exact)
    assert_close(pyro.param("initial").detach()[first > 0], first[first > 0], **exact)
    assert_close(pyro.param("loc").detach(), loc, **exact)
    assert_close(pyro.param("scale").detach() ** 2, variance, **exact)


def test_some_known_states_name_the_states():
    states, x = simulated()
    allowed = torch.ones(6, 40, K).bool()
    allowed[:, ::8] = torch.nn.functional.one_hot(states[:, ::8], K).bool()
    em = fit(x, allowed, 100)
    assert (em.result.restart_history.flatten().diff() < 1e-8).all()
    assert_close(pyro.param("loc").detach(), 3.0 * torch.arange(K).double(), rtol=0, atol=0.6)
