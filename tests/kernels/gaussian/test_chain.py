"""The chain with Gaussian observations as one function, against the two that it joins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.gaussian import chain as gaussian_chain
from tests import seeds

T, K, D = 37, 3, 4
NAMES = ("initial", "transition", "value", "loc", "factor")

#: name: batch shapes of initial, transition, value, loc, factor and lengths (None: no lengths)
BATCHES: dict[str, tuple[tuple[int, ...] | None, ...]] = {
    "one sequence": ((), (), (), (), (), None),
    "sequences": ((), (), (5,), (), (), None),
    "sequences, of several lengths": ((), (), (5,), (), (), (5,)),
    "all its own": ((5,), (5,), (5,), (5,), (5,), (5,)),
    "starts of one series": ((4,), (4,), (), (4,), (4,), None),
    "only the chains differ": ((4,), (4,), (), (), (), (1,)),
    "two dims": ((2, 1), (), (3,), (2, 1), (1, 1), (2, 3)),
    "no sequence": ((), (), (0,), (), (), None),
}


def make(
    name: str, diagonal: bool = False, shared: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], Tensor | None]:
    generator = seeds.generator(7)
    *shapes, of_lengths = BATCHES[name]
    states = 1 if shared else K

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    events = ((K,), (1, K, K), (T, D), (states, D), (K, D, 1) if diagonal else (K, D, D))
    parts = dict(zip(NAMES, (draw(*shape, *event) for shape, event in zip(shapes, events))))
    factor = 0.2 * parts["factor"]
    eye = torch.ones(D, 1) if diagonal else torch.eye(D)
    parts["factor"] = (factor.abs() if diagonal else factor.tril()) + eye
    lengths = None
    if of_lengths is not None:
        lengths = torch.randint(1, T + 1, of_lengths, generator=generator)
    return {name: part.to(dtype) for name, part in parts.items()}, lengths


def values_and_gradients(
    parts: dict[str, Tensor], lengths: Tensor | None, wanted: tuple[str, ...] = NAMES
) -> list[Tensor]:
    leaves = {name: part.clone().requires_grad_(name in wanted) for name, part in parts.items()}
    value = ops.gaussian_log_likelihood(*leaves.values(), lengths)
    cotangent = torch.linspace(-1.0, 2.0, max(value.numel(), 1), dtype=value.dtype)
    weighted = (value * cotangent[: value.numel()].reshape(value.shape)).sum()
    return [value.detach(), *torch.autograd.grad(weighted, [leaves[name] for name in wanted])]


@pytest.fixture
def apart(monkeypatch):
    """Call it, and the two functions run one above the other."""
    return lambda: monkeypatch.setattr(gaussian_chain, "is_served", lambda *args: False)


@pytest.fixture
def calls(monkeypatch):
    found = []
    forward = gaussian_chain.LogLikelihood.forward

    def recorded(*args):
        found.append(args)
        return forward(*args)

    monkeypatch.setattr(gaussian_chain.LogLikelihood, "forward", recorded)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_the_two_functions(name, diagonal, shared, dtype, apart, calls):
    given = make(name, diagonal, shared, dtype)
    joined = values_and_gradients(*given)
    assert len(calls) == (0 if name == "no sequence" else 1)
    apart()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in zip(joined, values_and_gradients(*given), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wanted", [*((name,) for name in NAMES), ("initial", "factor")])
def test_gradients_of_some(wanted, apart, calls):
    given = make("all its own")
    joined = values_and_gradients(*given, wanted)
    assert len(calls) == 1
    apart()
    for one, other in zip(joined, values_and_gradients(*given, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one sequence", "sequences, of several lengths", "two dims"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_derivatives_of_both_orders(name, diagonal, calls):
    parts, lengths = make(name, diagonal)
    parts["value"] = parts["value"][..., :6, :]
    lengths = None if lengths is None else lengths.clamp(max=6)
    leaves = [part.requires_grad_() for part in parts.values()]

    def function(*args: Tensor) -> Tensor:
        return ops.gaussian_log_likelihood(*args, lengths)

    torch.autograd.gradcheck(function, leaves)
    torch.autograd.gradgradcheck(function, leaves)
    assert calls


def test_second_derivatives_where_some_arguments_have_none(apart):
    parts, _ = make("sequences")
    for name in ("loc", "transition"):
        parts[name].requires_grad_()

    def second() -> tuple[Tensor, ...]:
        value = ops.gaussian_log_likelihood(*parts.values()).sum()
        wanted = [parts["loc"], parts["transition"]]
        first = torch.autograd.grad(value, wanted, create_graph=True)
        return torch.autograd.grad(first[0].square().sum() + first[1].sum(), wanted)

    joined = second()
    apart()
    for one, other in zip(joined, second(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_impossible_sequence_has_no_gradient():
    parts, _ = make("sequences")
    parts["initial"] = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    blocked = torch.zeros(1, K, K, dtype=torch.float64)
    blocked[:, 0] = -torch.inf
    parts["transition"] = blocked
    value, *gradients = values_and_gradients(parts, None)
    assert (value == -torch.inf).all()
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert not gradient.any(), name


def test_no_gradient_no_function(calls):
    parts, lengths = make("sequences, of several lengths")
    ops.gaussian_log_likelihood(*parts.values(), lengths)
    for part in parts.values():
        part.requires_grad_()
    with torch.no_grad():
        ops.gaussian_log_likelihood(*parts.values(), lengths)
    assert not calls


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", ["sequences, of several lengths", "all its own"])
def test_many_cotangents_at_a_time(name, diagonal):
    parts, lengths = make(name, diagonal)
    leaves = [part.requires_grad_() for part in parts.values()]
    value = ops.gaussian_log_likelihood(*leaves, lengths)
    cotangents = torch.eye(5).double()
    together = torch.autograd.grad(
        value, leaves, cotangents, is_grads_batched=True, retain_graph=True
    )
    for index, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(value, leaves, cotangent, retain_graph=True)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other[index], one, rtol=1e-10, atol=1e-11)


def test_an_impossible_sequence_has_no_gradient_where_it_overflows():
    parts, _ = make("one sequence", diagonal=True)
    parts["initial"] = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    parts["transition"] = torch.full((1, K, K), -torch.inf, dtype=torch.float64)
    parts["factor"] = torch.full_like(parts["factor"], 1e-160)
    value, gradient = values_and_gradients(parts, None, ("value",))
    assert value == -torch.inf and not gradient.any()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["one sequence", "sequences"])
def test_a_trace(name: str) -> None:
    """One sequence, of any length, is one node. Of several the number would be a constant in it."""
    parts, _ = make(name)
    leaves = [part.clone().requires_grad_() for part in parts.values()]
    traced = torch.jit.trace(ops.gaussian_log_likelihood, tuple(leaves), check_trace=False)
    nodes = [node.pyname() for node in traced.graph.findAllNodes("prim::PythonOp")]
    assert (nodes == ["LogLikelihood"]) == (name == "one sequence")
    value = parts["value"]
    for other in (value, torch.cat([value, value + 0.5])) if value.dim() == 2 else (value,):
        leaves[2] = other.clone().requires_grad_()
        results = []
        for function in (ops.gaussian_log_likelihood, traced):
            found = function(*leaves)
            results.append([found, *torch.autograd.grad(found.sum(), leaves)])
        for one, expected in zip(*results[::-1], strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)
