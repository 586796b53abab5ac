"""What every test starts from."""

import math
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pyro_regimes.infer.em.engines import chain_steps, gaussian_steps, linear_steps
from pyro_regimes.kernels.cpu import densities, launch
from tests import seeds

if not torch.cuda.is_available():
    # Triton's kernels run on the CPU then, and it reads this when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The tensors here are small: on a machine with other work to do, torch's threads wait for one
# another far longer than they compute.
torch.set_num_threads(int(os.environ.get("PYRO_REGIMES_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """Draws from the global generators do not hang on the tests that ran before."""
    pyro.set_rng_seed(seeds.seed(0))


@pytest.fixture(autouse=True)
def own_store() -> Iterator[None]:
    """A parameter store of its own for every test."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def validation_as_it_was() -> Iterator[None]:
    """torch.compile turns off the validation of all distributions, for good."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def unwritten(dtype: torch.dtype | np.dtype) -> float | int | bool:
    """NaN, no state and no index; as a flag, that a sequence is to be done again."""
    if dtype in (torch.bool, np.dtype(bool)):
        return True
    whole = not dtype.is_floating_point if isinstance(dtype, torch.dtype) else dtype.kind in "iu"
    return -9 if whole else math.nan


class _FilledNumPy(ModuleType):
    """NumPy, whose uninitialised arrays are filled."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any = float) -> np.ndarray:
        return np.full(shape, unwritten(np.dtype(dtype)), dtype)

    @staticmethod
    def empty_like(array: np.ndarray) -> np.ndarray:
        return np.full_like(array, unwritten(array.dtype))


@pytest.fixture
def filled_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer that the CPU kernels and the fused EM engine fill starts as NaN.

    So an element that nobody writes is seen. What a compiled loop allocates for itself is not
    reached from here.
    """

    def full(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, unwritten(dtype), dtype=dtype, device="cpu")

    for module in (launch, densities):
        monkeypatch.setattr(module, "_empty", full)
    for module in (launch, chain_steps, gaussian_steps, linear_steps):
        monkeypatch.setattr(module, "np", _FilledNumPy("numpy"))
