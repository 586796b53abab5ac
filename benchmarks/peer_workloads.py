"""The workloads that every library fits: simulated data, and one start for all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SPREAD = 1.5  # standard deviation of the means of states whose own is about 1
STAY = 0.9  # probability of the same state at the next step


class Parameters(NamedTuple):
    """A Gaussian hidden Markov model; ``...`` is empty, or the number of starts."""

    initial: Array  #: ``(..., K)``
    transition: Array  #: ``(..., K, K)``, (old, new)
    loc: Array  #: ``(..., K, D)``
    covariance: Array  #: ``(..., K, D, D)``

    def select(self, start: int) -> Parameters:
        """One of several starts."""
        return Parameters(*(value[start] for value in self))


class Workload(NamedTuple):
    """Sizes: N sequences of T steps with D series and K states, from R starts."""

    name: str
    num_steps: int
    num_series: int
    num_states: int
    num_sequences: int = 1
    num_starts: int = 1

    def __str__(self) -> str:
        sizes = f"T={self.num_steps} D={self.num_series} K={self.num_states}"
        sizes += f" N={self.num_sequences}" if self.num_sequences > 1 else ""
        return sizes + (f" R={self.num_starts}" if self.num_starts > 1 else "")


class Problem(NamedTuple):
    """What is handed to every library."""

    workload: Workload
    data: Array  #: ``(N, T, D)``
    start: Parameters  #: with a leading dim of R where there are several starts


WORKLOADS = (
    Workload("daily", 2500, 10, 3),
    Workload("long", 200_000, 4, 4),
    Workload("states", 10_000, 8, 32),
    Workload("panel", 250, 5, 3, num_sequences=500),
    Workload("restarts", 2500, 10, 3, num_starts=10),
)


def make_problem(workload: Workload, seed: int = 0) -> Problem:
    """Data of a sticky chain with separated means, and starts near the truth."""
    rng = np.random.RandomState(seed)
    truth = _draw_parameters(workload, rng)
    data = np.stack([_draw_sequence(truth, workload, rng) for _ in range(workload.num_sequences)])
    starts = [_perturb(truth, rng) for _ in range(workload.num_starts)]
    if workload.num_starts == 1:
        return Problem(workload, data, starts[0])
    return Problem(workload, data, Parameters(*map(np.stack, zip(*starts, strict=True))))


def _draw_parameters(workload: Workload, rng: np.random.RandomState) -> Parameters:
    num_states, num_series = workload.num_states, workload.num_series
    roots = rng.standard_normal((num_states, num_series, num_series))
    return Parameters(
        np.full(num_states, 1 / num_states),
        sticky(num_states, STAY),
        SPREAD * rng.standard_normal((num_states, num_series)),
        0.5 * np.eye(num_series) + 0.5 * roots @ roots.swapaxes(-1, -2) / num_series,
    )


def sticky(num_states: int, stay: float) -> Array:
    """A transition matrix whose states are left for each other one alike."""
    leave = (1 - stay) / (num_states - 1)
    return np.full((num_states, num_states), leave) + (stay - leave) * np.eye(num_states)


def _draw_sequence(truth: Parameters, workload: Workload, rng: np.random.RandomState) -> Array:
    """Observations ``(T, D)``: a chain that jumps to another state where it does not stay."""
    num_states = workload.num_states
    stays = rng.random_sample(workload.num_steps) < STAY
    jumps = np.where(stays, 0, rng.randint(1, num_states, workload.num_steps))
    states = (rng.randint(num_states) + np.cumsum(jumps)) % num_states
    noise = rng.standard_normal((workload.num_steps, workload.num_series))
    roots = np.linalg.cholesky(truth.covariance)
    return truth.loc[states] + np.einsum("tij,tj->ti", roots[states], noise)


def _perturb(truth: Parameters, rng: np.random.RandomState) -> Parameters:
    """A start that is near enough to the truth for EM to be well conditioned."""
    return Parameters(
        truth.initial,
        sticky(len(truth.initial), 0.8),
        truth.loc + 0.2 * rng.standard_normal(truth.loc.shape),
        1.5 * truth.covariance,
    )
