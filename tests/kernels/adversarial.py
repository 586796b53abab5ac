"""Random chains on which a scaled recursion loses mass, in batches of one shape."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tests import seeds
from tests.kernels.cases import INF, Case


def _identity(count: int, num_states: int, generator: torch.Generator) -> Tensor:
    return torch.eye(num_states).double().expand(count, num_states, num_states)


def _blocks(count: int, num_states: int, generator: torch.Generator) -> Tensor:
    """Two groups of states that never exchange."""
    group = torch.arange(num_states) % 2
    apart = group.unsqueeze(-1) != group
    random = torch.rand(count, num_states, num_states, generator=generator).double() + 0.01
    return random.masked_fill(apart, 0.0)


def _zeros(count: int, num_states: int, generator: torch.Generator) -> Tensor:
    random = torch.rand(count, num_states, num_states, generator=generator).double()
    stays = torch.eye(num_states, dtype=torch.bool)
    return random.masked_fill((random < 0.6) & ~stays, 0.0)


def _left_to_right(count: int, num_states: int, generator: torch.Generator) -> Tensor:
    random = torch.rand(count, num_states, num_states, generator=generator).double() + 0.01
    return random.triu()


def _tiny(count: int, num_states: int, generator: torch.Generator) -> Tensor:
    random = torch.rand(count, num_states, num_states, generator=generator).double()
    stays = torch.eye(num_states, dtype=torch.bool)
    return torch.where((random < 0.7) & ~stays, 1e-300, random)


MATRICES = {
    "identity": _identity,
    "blocks": _blocks,
    "structural zeros": _zeros,
    "left to right": _left_to_right,
    "entries of 1e-300": _tiny,
}


def _gentle(count: int, num_steps: int, num_states: int, generator: torch.Generator) -> Tensor:
    """Gaps of one nat that favour one state for half of the time, and then another."""
    half = (torch.arange(num_steps) < num_steps // 2).unsqueeze(-1)
    states = torch.stack([torch.randperm(num_states, generator=generator) for _ in range(count)])
    first, then = (
        torch.nn.functional.one_hot(states[:, i], num_states).double().unsqueeze(1)
        for i in (0, num_states - 1)
    )
    return torch.where(half, first, 2 * then)


def _violent(gap: float):
    def make(count: int, num_steps: int, num_states: int, generator: torch.Generator) -> Tensor:
        random = torch.rand(count, num_steps, num_states, generator=generator).double()
        return gap * (random.round() * 2 - 1) + torch.randn(
            count, num_steps, num_states, generator=generator
        )

    return make


def batches(dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """2,000 chains."""
    gap = 800.0 if dtype == torch.float64 else 200.0
    observations = {
        "gaps of one nat": (_gentle, [(5_000, 2, 20), (5_000, 3, 20), (300, 5, 110)]),
        f"gaps of e^{gap:g}": (_violent(gap), [(40, 2, 100), (200, 3, 100), (30, 5, 50)]),
    }
    for seed, (matrix, make_matrix) in enumerate(MATRICES.items()):
        for gaps, (make_observation, shapes) in observations.items():
            for num_steps, num_states, count in shapes:
                generator = seeds.generator(1_000 * seed + num_steps + num_states)
                probs = make_matrix(count, num_states, generator)
                probs = probs / probs.sum(-1, keepdim=True)
                initial = torch.rand(count, num_states, generator=generator).double()
                initial[:, 0] = torch.where(initial[:, 0] < 0.5, 1e-300, initial[:, 0])
                initial[:, -1] = initial[:, -1].masked_fill(initial[:, -1] < 0.5, 0.0)
                observation = make_observation(count, num_steps, num_states, generator)
                case = Case(
                    (initial / initial.sum(-1, keepdim=True)).log().to(dtype),
                    probs.log().unsqueeze(1).to(dtype),
                    observation.to(dtype),
                )
                yield f"{matrix}, {gaps}, T={num_steps}, K={num_states}", case


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry of each chain and at least to 1."""
    actual, expected = (part.double().reshape(len(part), -1) for part in (actual, expected))
    same = (actual == expected) | ((actual == -INF) & (expected == -INF))
    difference = torch.where(same, 0.0, (actual - expected).abs()).amax(-1)
    size = torch.where(expected == -INF, 0.0, expected.abs()).amax(-1).clamp(min=1.0)
    worst = (difference / size).max()
    return math.inf if worst.isnan() else float(worst)
