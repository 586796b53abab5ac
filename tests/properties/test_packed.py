"""Packed sequences of any lengths: each has the answer that it has alone, wherever it lies."""

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

TOLERANCE = dict(rtol=1e-10, atol=1e-10)


def split(chain: Chain, sizes: list[int]) -> list[Chain]:
    """The sequences of these lengths, one after the other in the data of a chain."""
    parts, first = [], 0
    for size in sizes:
        transition = chain.transition
        if transition.dim() > 2:
            transition = transition[first : max(first + size - 1, first + 1)]
            if size == 1:
                transition = chain.transition[:1]
        parts.append(chain._replace(value=chain.value[first : first + size], transition=transition))
        first += size
    return parts


@st.composite
def lengths(draw: st.DrawFn, total: int) -> list[int]:
    """Positive numbers of this sum."""
    cuts = draw(st.sets(st.integers(1, total - 1))) if total > 1 else set()
    edges = [0, *sorted(cuts), total]
    return [after - before for before, after in zip(edges, edges[1:])]


def packed(chain: Chain, sizes: list[int]) -> RegimeHMM:
    observation_dist = dist.MultivariateNormal(chain.loc, chain.covariance)
    return RegimeHMM(
        chain.initial, chain.transition, observation_dist, packed_lengths=torch.tensor(sizes)
    )


@PROPERTY
@given(st.data(), chains())
def test_each_sequence_has_the_answer_that_it_has_alone(
    data: st.DataObject, chain: Chain
) -> None:
    sizes = data.draw(lengths(chain.num_steps))
    hmm, x = packed(chain, sizes), chain.value
    parts = [(each.hmm(), each.value) for each in split(chain, sizes)]
    assert_close(hmm.log_prob(x), sum(own.log_prob(each) for own, each in parts), **TOLERANCE)
    gamma = torch.cat([own.smoothed_probs(each) for own, each in parts])
    assert_close(hmm.smoothed_probs(x), gamma, **TOLERANCE)
    filtered = torch.cat([own.filtered_probs(each) for own, each in parts])
    assert_close(hmm.filtered_probs(x), filtered, **TOLERANCE)
    assert torch.equal(hmm.viterbi(x), torch.cat([own.viterbi(each) for own, each in parts]))


@PROPERTY
@given(st.data(), chains(varying=False))
def test_the_order_of_sequences_does_not_matter(data: st.DataObject, chain: Chain) -> None:
    sizes = data.draw(lengths(chain.num_steps))
    order = data.draw(st.permutations(range(len(sizes))))
    rows = torch.arange(chain.num_steps).split(sizes)
    moved = torch.cat([rows[i] for i in order])
    hmm, other = packed(chain, sizes), packed(chain, [sizes[i] for i in order])
    x = chain.value
    assert_close(other.log_prob(x[moved]), hmm.log_prob(x), **TOLERANCE)
    assert_close(other.smoothed_probs(x[moved]), hmm.smoothed_probs(x)[moved], **TOLERANCE)
    assert torch.equal(other.viterbi(x[moved]), hmm.viterbi(x)[moved])


@PROPERTY
@given(st.data(), chains(varying=False, least_steps=4))
def test_em_takes_the_steps_that_it_takes_on_separate_sites(
    data: st.DataObject, chain: Chain
) -> None:
    sizes = data.draw(lengths(chain.num_steps))

    def arguments() -> dict[str, Tensor | dist.Distribution]:
        """A start without impossible moves; the spread is constant, so that none collapses."""
        transition = chain.transition.clamp(min=-3.0)
        loc = pyro.param("loc", chain.loc.clone())
        return dict(
            initial_probs=pyro.param(
                "initial", chain.initial.softmax(-1), constraint=constraints.simplex
            ),
            transition_probs=pyro.param(
                "transition", transition.softmax(-1), constraint=constraints.simplex
            ),
            observation_dist=dist.MultivariateNormal(loc, chain.covariance),
        )

    def together() -> None:
        hmm = RegimeHMM(**arguments(), packed_lengths=torch.tensor(sizes))
        pyro.sample("x", hmm, obs=chain.value)

    def apart() -> None:
        for n, each in enumerate(split(chain, sizes)):
            pyro.sample(f"x{n}", RegimeHMM(**arguments()), obs=each.value)

    histories, ends = [], []
    for model in (together, apart):
        with pyro.get_param_store().scope():
            histories.append(EM(model).run(num_steps=3, tol=None).history)
            ends.append({name: value.detach() for name, value in pyro.get_param_store().items()})
    assert_close(histories[0], histories[1], rtol=1e-9, atol=1e-9)
    assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-8)
