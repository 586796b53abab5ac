"""Properties of EM that hold whatever the sizes: renaming, splitting, restarts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests.properties.strategies import PROPERTY, Chain, chains

Fitted = dict[str, Tensor]


def fit(chain: Chain, num_steps: int, lengths: Tensor | None = None) -> tuple[list[float], Fitted]:
    """A few steps from the chain's own parameters, in a store of their own."""

    def model(value: Tensor) -> None:
        simplex = constraints.simplex
        loc = pyro.param("loc", chain.loc.clone())
        covariance = pyro.param(
            "covariance", chain.covariance.clone(), constraint=constraints.positive_definite
        )
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", chain.initial.softmax(-1), constraint=simplex),
            transition_probs=pyro.param(
                "transition", chain.transition.softmax(-1), constraint=simplex
            ),
            observation_dist=dist.MultivariateNormal(loc, covariance),
            lengths=lengths,
        )
        if value.dim() > 2:
            with pyro.plate("sequences", len(value)):
                pyro.sample("x", hmm, obs=value)
        else:
            pyro.sample("x", hmm, obs=value)

    with pyro.get_param_store().scope():
        em = EM(model, min_eigenvalue=0.05)
        history = em.run(chain.value, num_steps=num_steps, tol=None).history
        return history, {
            name: value.detach().clone() for name, value in pyro.get_param_store().items()
        }


def several() -> st.SearchStrategy[Chain]:
    return chains(st.integers(1, 3).map(lambda n: (n,)), least_steps=3, varying=False)


@PROPERTY
@given(st.data(), several())
def test_states_may_be_renamed(data: st.DataObject, chain: Chain) -> None:
    order = torch.tensor(data.draw(st.permutations(range(chain.num_states))))
    renamed = Chain(
        chain.initial[order],
        chain.transition[order][:, order],
        chain.loc[order],
        chain.covariance[order],
        chain.value,
    )
    history, fitted = fit(chain, 3)
    other, found = fit(renamed, 3)
    assert_close(torch.tensor(other), torch.tensor(history), rtol=1e-8, atol=1e-8)
    expected = {name: value[order] for name, value in fitted.items()}
    expected["transition"] = expected["transition"][:, order]
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@PROPERTY
@given(st.data(), several())
def test_padding_changes_nothing(data: st.DataObject, chain: Chain) -> None:
    """Sequences of full length, and the same with padding of any numbers behind them."""
    more = data.draw(st.integers(1, 4))
    junk = torch.full((len(chain.value), more, chain.loc.shape[-1]), 1e6, dtype=torch.float64)
    padded = chain._replace(value=torch.cat([chain.value, junk], -2))
    history, fitted = fit(chain, 3)
    lengths = torch.full((len(chain.value),), chain.num_steps)
    other, found = fit(padded, 3, lengths)
    assert_close(torch.tensor(other), torch.tensor(history), rtol=1e-10, atol=1e-10)
    for name, value in fitted.items():
        assert_close(found[name], value, rtol=1e-8, atol=1e-8)


@PROPERTY
@given(several())
def test_no_step_lowers_the_likelihood(chain: Chain) -> None:
    history, _ = fit(chain, 8)
    for before, after in zip(history, history[1:]):
        assert after <= before + 1e-9 * (1 + abs(before))
