"""Chains, data and layouts for hypothesis to draw.

Sizes and layouts are hypothesis's to choose and to shrink; the numbers in tensors come from a seed
that it draws, and that ``PYRO_REGIMES_TEST_SEED`` shifts.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_regimes import RegimeHMM
from tests import seeds

#: The machine may be busy, so no deadline. Examples are the same at every run of one seed.
PROPERTY = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Chain(NamedTuple):
    """A Gaussian hidden Markov model with one sequence of data or several."""

    initial: Tensor  #: ``(K,)``, logits
    transition: Tensor  #: ``(K, K)`` or ``(T-1, K, K)``, logits
    loc: Tensor  #: ``(K, D)``
    covariance: Tensor  #: ``(K, D, D)``
    value: Tensor  #: ``(..., T, D)``

    @property
    def num_steps(self) -> int:
        return self.value.shape[-2]

    @property
    def num_states(self) -> int:
        return len(self.initial)

    def hmm(self, lengths: Tensor | None = None) -> RegimeHMM:
        observation_dist = dist.MultivariateNormal(self.loc, self.covariance)
        return RegimeHMM(self.initial, self.transition, observation_dist, lengths=lengths)

    def to(self, dtype: torch.dtype) -> Chain:
        return Chain(*(part.to(dtype) for part in self))


@st.composite
def chains(
    draw: st.DrawFn,
    batch: st.SearchStrategy[tuple[int, ...]] = st.just(()),  # noqa: B008 (a description)
    least_steps: int = 1,
    varying: bool | None = None,
) -> Chain:
    """A chain of up to six states, some of whose moves may be impossible."""
    num_states, size = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    num_steps = draw(st.integers(least_steps, 12))
    varies = draw(st.booleans()) if varying is None else varying
    generator = seeds.generator(draw(st.integers(0, 10_000)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lead = (num_steps - 1,) if varies and num_steps > 1 else ()
    transition = 2 * normal(*lead, num_states, num_states)
    if draw(st.booleans()):  # left to right
        ahead = torch.ones(num_states, num_states).triu().bool()
        transition = transition.masked_fill(~ahead, -torch.inf)
    root = normal(num_states, size, size)
    return Chain(
        2 * normal(num_states),
        transition,
        2 * normal(num_states, size),
        root @ root.mT + 0.3 * torch.eye(size, dtype=torch.float64),
        2 * normal(*draw(batch), num_steps, size),
    )


#: None, one or two batch dims, one of them possibly empty.
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)


@st.composite
def layouts(draw: st.DrawFn, value: Tensor) -> Tensor:
    """The same numbers with other strides."""
    kind = draw(st.sampled_from(["as it is", "transposed", "strided", "offset", "reversed"]))
    if kind == "transposed" and value.dim() > 1:
        return value.mT.contiguous().mT
    if kind == "strided":
        wide = value.new_full(value.shape + (2,), torch.nan)
        wide[..., 0] = value
        return wide[..., 0]
    if kind == "offset":
        long = torch.cat([value.new_full((3,), torch.nan), value.flatten()])
        return long[3:].view(value.shape)
    if kind == "reversed" and value.dim():
        return value.flip(0).contiguous().flip(0)
    return value
