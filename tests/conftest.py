"""What every test starts from."""

import os
from collections.abc import Iterator

import pyro
import pytest
import torch

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
