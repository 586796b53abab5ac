"""Chains whose shapes and entries hurt; each test of the recursions runs over all of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tests import seeds

INF = math.inf


class Case(NamedTuple):
    initial: Tensor
    transition: Tensor
    observation: Tensor
    lengths: Tensor | None = None


def random_chain(
    num_steps: int,
    num_states: int,
    batch: tuple[int, ...] = (),
    slices: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A chain with normalised rows and observation logits some nats apart."""
    generator = seeds.generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Case(
        normal(*batch, num_states).log_softmax(-1).to(dtype),
        normal(*batch, slices, num_states, num_states).log_softmax(-1).to(dtype),
        (3 * normal(*batch, num_steps, num_states) - 2).to(dtype),
    )


def _with_zeros(case: Case) -> Case:
    """Structural zeros in all three places; every sequence stays possible."""
    initial, transition, observation, lengths = (
        None if part is None else part.clone() for part in case
    )
    initial[..., -1] = -INF
    transition[..., 0, 0] = -INF
    transition[..., 1, 2] = -INF
    observation[..., 1, 0] = -INF
    return Case(initial.log_softmax(-1), transition.log_softmax(-1), observation, lengths)


def _non_contiguous(case: Case) -> Case:
    return Case(
        case.initial.repeat_interleave(2, -1)[..., ::2],
        case.transition.mT.contiguous().mT,
        case.observation.mT.contiguous().mT,
        case.lengths,
    )


def _left_to_right() -> Case:
    chain = random_chain(5, 3, seed=8)
    initial = torch.tensor([0.0, -INF, -INF], dtype=torch.float64)
    transition = chain.transition.masked_fill(~torch.ones(3, 3).triu().bool(), -INF)
    return Case(initial, transition.log_softmax(-1), chain.observation)


def _far_apart() -> Case:
    chain = random_chain(5, 2, seed=9)
    identity = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    return Case(chain.initial, identity, 800 * chain.observation)


def _garbage_padding() -> Case:
    chain = random_chain(4, 3, batch=(3,), slices=3, seed=10)
    observation, transition = chain.observation.clone(), chain.transition.clone()
    observation[0, 1:], transition[0, 0:] = math.nan, math.nan
    observation[1, 3:], transition[1, 2:] = INF, -INF
    return Case(chain.initial, transition, observation, torch.tensor([1, 3, 4]))


CASES = {
    "plain": random_chain(5, 3, seed=1),
    "T=1": random_chain(1, 3, seed=2),
    "T=1, no transitions": random_chain(1, 3, seed=2)._replace(
        transition=torch.zeros(0, 3, 3, dtype=torch.float64)
    ),
    "T=2": random_chain(2, 3, seed=2),
    "K=1": random_chain(4, 1, seed=3),
    "T=1, K=1": random_chain(1, 1, seed=3),
    "K=2, longer": random_chain(9, 2, seed=4),
    "varying A": random_chain(5, 3, slices=4, seed=5),
    "batch": random_chain(4, 3, batch=(2,), seed=6),
    "two batch dims, varying A": random_chain(4, 2, batch=(2, 3), slices=3, seed=7),
    "shared A and start": Case(
        *random_chain(4, 3, seed=11)[:2], random_chain(4, 3, batch=(2, 2), seed=12).observation
    ),
    "batch in A alone": Case(
        random_chain(4, 3, seed=13).initial,
        random_chain(4, 3, batch=(3,), seed=14).transition,
        random_chain(4, 3, seed=15).observation,
    ),
    "lengths": random_chain(5, 3, batch=(4,), seed=16)._replace(lengths=torch.tensor([1, 5, 3, 2])),
    "lengths, varying A, one dim more": random_chain(4, 2, batch=(3,), slices=3, seed=17)._replace(
        lengths=torch.tensor([[1, 2, 4], [4, 3, 1]])
    ),
    "padding holds anything": _garbage_padding(),
    "structural zeros": _with_zeros(random_chain(5, 3, seed=18)),
    "structural zeros, batch, lengths": _with_zeros(
        random_chain(5, 3, batch=(2,), slices=4, seed=19)
    )._replace(lengths=torch.tensor([5, 3])),
    "left to right": _left_to_right(),
    "never mixes, gaps of e^800": _far_apart(),
    "impossible": random_chain(3, 2, seed=20)._replace(
        observation=torch.tensor([[0.0, 1.0], [-INF, -INF], [0.0, 0.0]], dtype=torch.float64)
    ),
    "impossible by transitions": Case(
        torch.tensor([0.0, -INF], dtype=torch.float64),
        torch.tensor([[[0.0, -INF], [-INF, 0.0]]], dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [-INF, 0.0], [0.0, 0.0]], dtype=torch.float64),
    ),
    "non-contiguous": _non_contiguous(random_chain(5, 3, batch=(2,), seed=21)),
    "empty batch": random_chain(4, 3, batch=(0,), seed=22),
    "unnormalised": Case(*(part * 2 + 1 for part in random_chain(4, 3, seed=23)[:3])),
}
