"""What every test of inference leaves behind as it was."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from tests.infer import models, table

CONSTANTS = {name: value for name, value in vars(models).items() if isinstance(value, Tensor)}
KEPT = {name: value.clone() for name, value in CONSTANTS.items()}


@pytest.fixture(autouse=True)
def constants_stay() -> Iterator[None]:
    """Pyro makes the very tensor that it is given a parameter, and EM writes into parameters.

    A test that gives it a constant of all tests would change what the others start from.
    """
    yield
    changed = [
        name
        for name, value in CONSTANTS.items()
        if value.requires_grad or not bool((value == KEPT[name]).all())
    ]
    for name in changed:  # so that only this test fails
        CONSTANTS[name].detach_().requires_grad_(False).copy_(KEPT[name])
    assert not changed, f"written into: {changed}; give pyro.param a clone"


@pytest.fixture(autouse=True)
def network_starts_anew() -> Iterator[None]:
    """The weights of a module are the parameters themselves, and stay where a test moved them."""
    weights = {name: value.clone() for name, value in table.NETWORK.state_dict().items()}
    yield
    table.NETWORK.load_state_dict(weights)
