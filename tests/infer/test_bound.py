"""Q, its entropy and the likelihood: the bound that EM climbs (eq. 12, theorem 2.1)."""

from typing import Callable

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests.infer.table import everything_by_probs, full


def observed_hmm(model: Callable[[], None]) -> tuple[RegimeHMM, Tensor]:
    """The distribution at the model's site ``x`` at the current parameters, and its value."""
    node = poutine.trace(model).get_trace().nodes["x"]
    return node["fn"], node["value"]


def expected_complete(hmm: RegimeHMM, value: Tensor, posterior) -> Tensor:
    """Q of eq. 12: the complete-data log-likelihood under a posterior over paths."""

    def times(weight: Tensor, logits: Tensor) -> Tensor:
        return torch.where(weight > 0, weight * logits, 0.0).sum()

    event_dim = len(hmm.observation_dist.event_shape)
    observation = hmm.observation_dist.log_prob(value.unsqueeze(-1 - event_dim))
    return (
        times(posterior.smoothed_probs[0], hmm.initial_logits)
        + times(posterior.expected_transitions, hmm.transition_logits.squeeze(-3))
        + times(posterior.smoothed_probs, observation)
    )


def path_entropy(hmm: RegimeHMM, value: Tensor) -> Tensor:
    """Of p(q given x), a Markov chain with ``p(q_t+1 | q_t, x) = xi_t / gamma_t``."""
    event_dim = len(hmm.observation_dist.event_shape)
    observation = hmm.observation_dist.log_prob(value.unsqueeze(-1 - event_dim))
    backward = [torch.zeros_like(observation[-1])]
    for logits in observation.flip(0)[:-1]:
        ahead = (hmm.transition_logits.squeeze(-3) + logits + backward[0]).logsumexp(-1)
        backward.insert(0, ahead)
    after = torch.stack(backward)[1:] + observation[1:]
    gamma = hmm.posterior(value).smoothed_probs
    step = (hmm.transition_logits.squeeze(-3) + after.unsqueeze(-2)).log_softmax(-1)
    entropy = -(gamma[:-1].unsqueeze(-1) * step.exp() * step).sum()
    return entropy - (gamma[0] * gamma[0].log()).sum()  # no probability is 0 here


@pytest.mark.parametrize("model", [everything_by_probs, full], ids=["normal", "mvn"])
def test_bound_is_tight_and_rises(model: Callable[[], None]) -> None:
    em = EM(model)
    for _ in range(12):
        hmm, value = observed_hmm(model)
        posterior = hmm.posterior(value)
        old = expected_complete(hmm, value, posterior)
        likelihood = hmm.log_prob(value)
        entropy = path_entropy(hmm, value)
        assert_close(old + entropy, likelihood, rtol=1e-10, atol=1e-10)
        loss = em.step()
        assert loss == pytest.approx(-likelihood.item(), rel=1e-12)
        hmm, value = observed_hmm(model)
        new = expected_complete(hmm, value, posterior)
        assert new - old >= -1e-10
        # Theorem 2.1: the likelihood rises at least as Q does.
        assert hmm.log_prob(value) - likelihood >= new - old - 1e-9


@pytest.mark.parametrize("model", [everything_by_probs, full], ids=["normal", "mvn"])
def test_m_step_maximises_q(model: Callable[[], None]) -> None:
    """Q has no slope left in any parameter after one step."""
    hmm, value = observed_hmm(model)
    posterior = hmm.posterior(value)
    posterior = type(posterior)(*(part.detach() for part in posterior))
    EM(model).step()
    hmm, value = observed_hmm(model)
    leaves = list(dict(pyro.get_param_store().named_parameters()).values())
    for gradient in torch.autograd.grad(expected_complete(hmm, value, posterior), leaves):
        assert gradient.abs().max() < 1e-7
