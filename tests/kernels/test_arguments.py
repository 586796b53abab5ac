"""Checks of arguments copy values from the device to the host once at the most."""

from __future__ import annotations

from functools import partial
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


@pytest.mark.parametrize("name", ["log_likelihood", "expectations", "posterior", "filter_probs"])
def test_a_function_looks_once_at_its_lengths(name, looks):
    """Also where it is composed of others: those take arguments that are checked."""
    chain, lengths = random_chain(6, 2, batch=(2,), seed=3)[:3], torch.tensor([6, 2])
    getattr(ops, name)(*chain, lengths)
    assert len(looks) == 1  # the kernels of the CPU look themselves at none
    leaves = [part.requires_grad_() for part in chain]
    looks.clear()
    getattr(ops, name)(*leaves, lengths)
    assert len(looks) == (1 if name in ("log_likelihood", "expectations") else 2)  # the reference


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


def chain(**changed: Any) -> dict[str, Any]:
    """The arguments of two sequences of five steps with three states, and what is wrong of them."""
    case = random_chain(5, 3, batch=(2,))
    names = ("initial_logits", "transition_logits", "observation_logits")
    return {**dict(zip(names, case)), "lengths": torch.tensor([5, 2]), **changed}


WRONG = {
    "no tensor": (dict(initial_logits=[0.0] * 3), "initial_logits to be a floating .*got list"),
    "integers": (
        dict(observation_logits=torch.zeros(5, 3).long()),
        r"observation_logits to be a floating point tensor, got torch\.int64",
    ),
    "no time dim": (
        dict(transition_logits=torch.zeros(3, 3)),
        r"transition_logits to have shape \(\.\.\., 1 or T-1, K, K\), got shape \(3, 3\)",
    ),
    "no steps": (dict(observation_logits=torch.zeros(0, 3)), r"at least one time .* \(0, 3\)"),
    "no states": (dict(observation_logits=torch.zeros(5, 0)), r"and one state, .* \(5, 0\)"),
    "start of another size": (
        dict(initial_logits=torch.zeros(2)), r"initial_logits to end in \(3,\), got shape \(2,\)"
    ),
    "transitions of another size": (
        dict(transition_logits=torch.zeros(1, 3, 2)),
        r"transition_logits to end in \(3, 3\), got shape \(1, 3, 2\)",
    ),
    "transitions of other times": (
        dict(transition_logits=torch.zeros(5, 3, 3)), r"have 1 or T - 1 = 4 time slices .*unsqueeze"
    ),
    "two devices": (
        dict(initial_logits=torch.zeros(3, device="meta")), r"on one device, got \['cpu', 'meta'\]"
    ),
    "batches that do not broadcast": (
        dict(initial_logits=torch.zeros(3, 3)),
        r"broadcast, got \{'initial_logits': \(3,\), .*'lengths': \(2,\)\}",
    ),
    "lengths of a list": (dict(lengths=[5, 2]), "lengths to be an integer tensor, got list"),
    "lengths of floats": (dict(lengths=torch.tensor([5.0, 2.0])), r"got dtype torch\.float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_by_every_function(name):
    changed, message = WRONG[name]
    given = chain(**changed)
    path = torch.zeros(2, 5, dtype=torch.long)
    for call in (
        ops.log_likelihood,
        ops.expectations,
        ops.posterior,
        ops.filter_logits,
        ops.filter_probs,
        ops.viterbi,
        ops.sample_posterior,
        partial(ops.complete_log_likelihood, path=path),
    ):
        with pytest.raises(ValueError, match=f"expected .*{message}"):
            call(**given)


@pytest.mark.parametrize(
    "path, message",
    [
        ([0, 1, 2, 0, 1], "path to be a tensor of torch.long, got list"),
        (torch.zeros(5), r"path to be a tensor of torch.long, got torch\.float32"),
        (torch.zeros(4).long(), r"path to have a shape that broadcasts with \(2, 5\), got \(4,\)"),
        (torch.zeros(3, 5).long(), r"path to have a shape that broadcasts with .*, got \(3, 5\)"),
        (torch.tensor(0), r"path to have a shape that broadcasts with \(2, 5\), got \(\)"),
    ],
)
def test_wrong_paths_are_refused(path, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        arguments.check_path(path, torch.Size([2, 5, 3]))
