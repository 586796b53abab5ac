"""The seeds of the suite's random inputs: an environment variable shifts them all.

Every random input is drawn from ``seeds.generator(n)``, ``seeds.rng(n)``, or after
``torch.manual_seed(seeds.seed(n))``. The numbers of an ordinary run (a shift of 0) are those of the
seeds as written; ``PYRO_REGIMES_TEST_SEED=7 pytest`` runs the same tests on other data. A seed that
is no random input, such as one of two that have to give equal draws, need not come from here.
"""

from __future__ import annotations

import os

import numpy as np
import torch

SHIFT = int(os.environ.get("PYRO_REGIMES_TEST_SEED", "0"))


def seed(n: int) -> int:
    """The seed ``n``, shifted: below 2^32, as NumPy asks."""
    return (n + 1_000_003 * SHIFT) % 2**32


def generator(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed(n))


def fixed(n: int) -> torch.Generator:
    """A generator that does not shift, for data that must be such that the test's claim holds."""
    return torch.Generator().manual_seed(n)


def fixed_rng(n: int) -> np.random.RandomState:
    """The same with NumPy."""
    return np.random.RandomState(n)


def rng(n: int) -> np.random.RandomState:
    return np.random.RandomState(seed(n))
