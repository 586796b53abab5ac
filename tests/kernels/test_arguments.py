"""Checks of arguments copy values from the device to the host once at the most."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from pyro_regimes.kernels import arguments, ops
from tests.kernels.cases import random_chain

LOOKS = ("__bool__", "__float__", "__int__", "item", "tolist")


@pytest.fixture
def looks(monkeypatch) -> list[str]:
    """The names of the methods by which Python looked at a tensor's values.

    One look may call another method: once torch.compile was imported, ``tolist`` is such a one.
    """
    found: list[str] = []
    within: list[str] = []

    def recorded(name: str) -> Callable[[torch.Tensor], Any]:
        run = getattr(torch.Tensor, name)

        def look(tensor: torch.Tensor) -> Any:
            if not within:
                found.append(name)
            within.append(name)
            try:
                return run(tensor)
            finally:
                within.pop()

        return look

    for name in LOOKS:
        monkeypatch.setattr(torch.Tensor, name, recorded(name))
    return found


def test_lengths_are_looked_at_once(looks):
    arguments.check_lengths(torch.tensor([3, 1, 7]), 7)
    assert len(looks) == 1
    with pytest.raises(ValueError, match="expected lengths from 1 to the 6 time steps of the data"):
        arguments.check_lengths(torch.tensor([3, 1, 7]), 6)
    assert len(looks) == 2


def test_a_path_is_looked_at_once(looks):
    path = torch.tensor([[0, 2, 1], [1, 1, 0]])
    arguments.check_path(path, torch.Size([2, 3, 3]))
    assert len(looks) == 1
    with pytest.raises(ValueError, match="the states of path from 0 to 1, got from 0 to 2"):
        arguments.check_path(path, torch.Size([2, 3, 2]))
    assert len(looks) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_lengths_of_any_integer_dtype(dtype):
    chain = random_chain(6, 2, batch=(2,), seed=3)
    lengths = torch.tensor([6, 2])
    expected = ops.log_likelihood(*chain[:3], lengths)
    assert torch.equal(ops.log_likelihood(*chain[:3], lengths.to(dtype)), expected)
    with pytest.raises(ValueError, match="got from 0 to 6"):
        ops.log_likelihood(*chain[:3], torch.tensor([6, 0]).to(dtype))


def test_the_reference_looks_once_at_how_large_logits_are(looks):
    chain = random_chain(6, 2, seed=4)
    with torch.no_grad(), ops.backend("reference"):
        ops.filter_logits(*chain[:3])
        assert len(looks) == 1
        ops.viterbi(*chain[:3])
        assert len(looks) == 2
