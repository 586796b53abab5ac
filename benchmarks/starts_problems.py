"""Problems for the comparison of starts: real returns, parts of them, and simulations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_regimes.data.build_sector_returns import read_prices
from pyro_regimes.datasets import load_sector_returns

Array = npt.NDArray[np.float64]

TYPES = ("full", "diag", "tied", "spherical")
NUM_SIMULATED = 20


class Problem(NamedTuple):
    """What is fitted, and by what model."""

    group: str
    name: str
    values: Array  #: ``(T, D)``
    n_regimes: int
    covariance_type: str


def embedded() -> Iterator[Problem]:
    """The embedded sector returns."""
    values = load_sector_returns().values
    for n_regimes in (3, 4):
        for covariance_type in TYPES:
            yield Problem("embedded", "daily", values, n_regimes, covariance_type)


def parts() -> Iterator[Problem]:
    """Both halves in time of the embedded returns, and their sums over five days."""
    values = load_sector_returns().values
    middle, weeks = len(values) // 2, len(values) // 5
    samples = {
        "first half": values[:middle],
        "second half": values[middle:],
        "weekly": values[: 5 * weeks].reshape(weeks, 5, -1).sum(1),
    }
    for name, sample in samples.items():
        for n_regimes, covariance_type in ((3, "diag"), (4, "full"), (4, "tied")):
            yield Problem("parts", name, sample, n_regimes, covariance_type)


def nine_series(wheel: Path) -> Iterator[Problem]:
    """Panels of nine series from the 20 stocks behind the embedded returns.

    :param wheel: the file that ``build_sector_returns`` asks for.
    """
    prices = np.array(read_prices(wheel).rows)
    returns = 100 * (prices[1:] / prices[:-1] - 1)
    groups = np.array_split(np.arange(returns.shape[1]), 9)  # two or three stocks each
    panels = {
        "stocks 1-9": returns[:, :9],
        "stocks 10-18": returns[:, 9:18],
        "nine groups": np.stack([returns[:, group].mean(1) for group in groups], axis=1),
    }
    for name, panel in panels.items():
        for n_regimes, covariance_type in ((3, "diag"), (4, "diag"), (3, "full")):
            yield Problem("nine series", name, panel, n_regimes, covariance_type)


def simulated(number: int = NUM_SIMULATED) -> Iterator[Problem]:
    """Series of two to four regimes that last 20 steps on average, alternately diag and full.

    The regimes differ in their means and spreads, some sets clearly and some hardly.
    """
    for seed in range(number):
        rng = np.random.RandomState(seed)
        n_regimes, num_series, num_steps = rng.randint(2, 5), rng.randint(2, 6), 3000
        num_steps += 1000 * (seed % 4)
        transition_matrix = np.full((n_regimes, n_regimes), 0.05 / (n_regimes - 1))
        np.fill_diagonal(transition_matrix, 0.95)
        states = [0]
        for _ in range(num_steps - 1):
            states.append(rng.choice(n_regimes, p=transition_matrix[states[-1]]))
        apart = rng.uniform(0.5, 2.0)
        means = apart * rng.randn(n_regimes, num_series)
        scales = np.exp(0.5 * rng.randn(n_regimes))
        values = means[states] + scales[states, None] * rng.randn(num_steps, num_series)
        yield Problem("simulated", f"set {seed}", values, n_regimes, ("diag", "full")[seed % 2])
