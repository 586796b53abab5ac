"""The door under torch's transformations, compilers and threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_regimes.kernels import arguments, dispatch, operators, ops, tangent
from pyro_regimes.kernels.cpu import launch
from pyro_regimes.kernels.gaussian import densities
from pyro_regimes.kernels.gaussian import operators as gaussian_operators
from tests import seeds
from tests.compiler import BACKEND
from tests.kernels.cases import CASES, Case, random_chain
from tests.kernels.test_reference import assert_equal

BACKENDS = ["reference", "cpu"]


def leaves_of(case: Case) -> list[Tensor]:
    return [part.clone().requires_grad_() for part in case[:3]]


def gradients(case: Case) -> tuple[Tensor, ...]:
    leaves = leaves_of(case)
    return torch.autograd.grad(ops.log_likelihood(*leaves, case.lengths).sum(), leaves)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with ops.backend(request.param):
        yield request.param


@pytest.mark.usefixtures("backend")
def test_func_grad_and_vmap():
    case = random_chain(6, 3, batch=(4,), seed=36)
    each = torch.func.vmap(torch.func.grad(ops.log_likelihood, argnums=(0, 1, 2)))
    for actual, expected in zip(each(*case[:3]), gradients(case), strict=True):
        assert_equal(actual, expected)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 1), (0, 0, 0)])
def test_vmap_over_some_arguments(in_dims):
    """What is not mapped over is shared."""
    case = random_chain(6, 3, batch=(4,), seed=46)
    single = [
        part if dim is not None else part[0] for part, dim in zip(case[:3], in_dims, strict=True)
    ]
    args = [
        part.movedim(0, dim) if dim else part for part, dim in zip(single, in_dims, strict=True)
    ]
    mapped = torch.func.vmap(ops.expectations, in_dims=in_dims)(*args)
    for actual, expected in zip(mapped, ops.expectations(*single), strict=True):
        assert_equal(actual, expected)


def test_vmap_over_a_batch_that_shares_its_transitions():
    case = random_chain(6, 3, batch=(2, 4), seed=47)
    transition = case.transition[0, 0]
    mapped = torch.func.vmap(ops.expectations, in_dims=(0, None, 0))(
        case.initial, transition, case.observation
    )
    expected = ops.expectations(case.initial, transition, case.observation)
    for actual, other in zip(mapped, expected, strict=True):
        assert_equal(actual, other)


@pytest.mark.usefixtures("backend")
def test_hessians_by_every_road():
    """Standard errors need them: jacrev of grad against autograd's own."""
    case = random_chain(5, 3, seed=48)

    def value(observation: Tensor) -> Tensor:
        return ops.log_likelihood(case.initial, case.transition, observation)

    one = torch.func.jacrev(torch.func.grad(value))(case.observation)
    with ops.backend("reference"):
        other = torch.autograd.functional.hessian(value, case.observation)
    assert_equal(one, other)


def test_third_derivatives_go_through_the_reference():
    case = random_chain(3, 2, seed=49)

    def third(name: str) -> Tensor:
        with ops.backend(name):
            leaf = case.observation.clone().requires_grad_()
            total = ops.log_likelihood(case.initial, case.transition, leaf)
            for _ in range(2):
                (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
                total = (gradient**2).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return gradient

    assert_equal(third("cpu"), third("reference"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lengths", "varying A", "shared A and start", "structural zeros, batch, lengths"]
)
def test_posterior_has_derivatives_of_both_orders(name):
    """gamma and xi, first and second: the tangent recursion and the reference behind it."""
    case = CASES[name]
    free = [part.isfinite() for part in case[:3]]
    leaves = [
        part[mask].clone().requires_grad_() for part, mask in zip(case[:3], free, strict=True)
    ]

    def posterior(*entries: Tensor) -> tuple[Tensor, ...]:
        parts = [
            part.masked_scatter(mask, entry)
            for part, mask, entry in zip(case[:3], free, entries, strict=True)
        ]
        return tuple(ops.expectations(*parts, case.lengths))

    assert gradcheck(posterior, leaves)
    assert gradgradcheck(posterior, leaves)


@pytest.mark.parametrize("name", CASES)
def test_tangents_in_tensor_code_are_the_compiled_ones(name):
    """Those of devices without a kernel for them."""
    parts = arguments.flatten(arguments.check(*CASES[name]))
    generator = seeds.generator(1)
    shape = parts.observation_logits.shape
    along = (
        torch.randn(shape[:1] + parts.transition_logits.shape[1:], generator=generator).double(),
        torch.randn(shape, generator=generator).double(),
    )
    pairs = zip(tangent.tangent(*parts, *along), launch.tangent(*parts, *along), strict=True)
    for actual, expected in pairs:
        assert_equal(actual, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.usefixtures("backend")
def test_jit_trace():
    """In value and gradient, also where the traced arguments needed none."""
    case = random_chain(40, 3, seed=37)
    traced = torch.jit.trace(ops.log_likelihood, tuple(case[:3]), check_trace=False)
    other = random_chain(40, 3, seed=38)
    leaves = leaves_of(other)
    value = traced(*leaves)
    assert_equal(value, ops.log_likelihood(*other[:3]))
    found = torch.autograd.grad(value, leaves)
    for actual, expected in zip(found, gradients(other), strict=True):
        assert_equal(actual, expected)


# All of them torch's own, of its own ways.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.usefixtures("validation_as_it_was")
def test_compiles_as_one_graph():
    case = random_chain(30, 3, batch=(2,), seed=39)._replace(lengths=torch.tensor([30, 11]))
    compiled = torch.compile(ops.log_likelihood, fullgraph=True, backend=BACKEND)
    leaves = leaves_of(case)
    value = compiled(*leaves, case.lengths)
    assert_equal(value, ops.log_likelihood(*case))
    found = torch.autograd.grad(value.sum(), leaves)
    for actual, expected in zip(found, gradients(case), strict=True):
        assert_equal(actual, expected)
    with pytest.raises(ValueError, match="expected lengths from 1 to 30, got from 11 to 31"):
        compiled(*leaves, case.lengths + torch.tensor([1, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 2])])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_pass_opcheck(lengths, requires_grad):
    case = random_chain(3, 3, batch=(2,), seed=40)
    chain = [part.clone().requires_grad_(requires_grad) for part in case[:3]]
    torch.library.opcheck(operators.expectations_operator, (*chain, lengths, "cpu"))
    along = torch.randn(2, 1, 3, 3).double(), torch.randn(2, 3, 3).double()
    torch.library.opcheck(operators.tangent_operator, (*chain, lengths, *along, "cpu"))
    if not requires_grad:  # this one alone has no derivative: nobody calls it where one may come
        torch.library.opcheck(operators.log_likelihood_operator, (*chain, lengths, "cpu"))


def test_four_threads_get_the_answers_they_get_alone():
    cases = [random_chain(2_000, 3, batch=(8,), seed=50 + i) for i in range(4)]
    alone = [gradients(case) for case in cases]
    results: dict[int, list[tuple[Tensor, ...]]] = {}

    def work(number: int) -> None:
        results[number] = [gradients(cases[number]) for _ in range(20)]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    for number, expected in enumerate(alone):
        for found in results[number]:
            for actual, other in zip(found, expected, strict=True):
                assert torch.equal(actual, other)


def test_backend_is_chosen_for_a_block_and_a_thread_alone():
    with pytest.raises(ValueError, match="expected backend to be one of .*, got 'gpu'"):
        with ops.backend("gpu"):
            pass
    seen = []
    logits = torch.zeros(3, 2)
    with ops.backend("reference"):
        with pytest.raises(RuntimeError, match="inside"):
            with ops.backend("cpu"):
                raise RuntimeError("inside")
        thread = threading.Thread(target=lambda: seen.append(dispatch.choose(logits)))
        thread.start()
        thread.join()
        assert dispatch.choose(logits) == "reference"
    assert seen == [dispatch.choose(logits)] == ["cpu"]


def test_half_precision_is_computed_in_float32():
    case = random_chain(10, 3, seed=52)
    half = [part.to(torch.bfloat16) for part in case[:3]]
    single = ops.expectations(*(part.float() for part in half))
    found = ops.expectations(*half)
    assert found.log_likelihood.dtype == torch.float64
    assert torch.equal(found.log_likelihood, single.log_likelihood)
    for actual, expected in zip(found[1:], single[1:], strict=True):
        assert actual.dtype == torch.bfloat16
        assert torch.equal(actual, expected.to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, as it compiles
@pytest.mark.slow
@pytest.mark.parametrize("wanted", [None, 2])
def test_compiles_where_the_initial_logits_have_no_gradient(wanted, validation_as_it_was):
    initial, transition, observation = torch.zeros(3), torch.zeros(1, 3, 3), torch.randn(4, 9, 3)
    if wanted is not None:
        observation.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(ops.log_likelihood, fullgraph=True, backend=BACKEND)
    found = compiled(initial, transition, observation)
    expected = ops.log_likelihood(initial, transition, observation)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if wanted is not None:
        one, other = (
            torch.autograd.grad(value.sum(), observation)[0] for value in (found, expected)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_lengths_can_be_mapped(backend):
    observation, lengths = torch.randn(4, 9, 3).double(), torch.tensor([1, 5, 9, 3])
    chain = torch.zeros(3).double(), torch.zeros(1, 3, 3).double()

    def one(observation, length):
        with ops.backend(backend):
            return ops.log_likelihood(*chain, observation, length)

    found = torch.func.vmap(one)(observation, lengths)
    torch.testing.assert_close(
        found, ops.log_likelihood(*chain, observation, lengths), rtol=1e-12, atol=1e-12
    )


# torch's own, as it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.usefixtures("validation_as_it_was")
def test_compiled_code_runs_the_backend_of_the_moment(monkeypatch):
    """The context is read when compiled code runs, not when it is compiled."""
    case = random_chain(12, 3, batch=(2,), seed=53)
    loc = torch.randn(3, 1).double()
    ran = []
    for name in ("log_likelihood", "expectations"):
        monkeypatch.setattr(
            launch,
            name,
            lambda *args, _name=name, _run=getattr(launch, name): ran.append(_name) or _run(*args),
        )
    monkeypatch.setattr(
        gaussian_operators,
        "log_density",
        lambda *args, _run=gaussian_operators.log_density: ran.append("density") or _run(*args),
    )

    def chain(observation: Tensor) -> Tensor:
        return ops.log_likelihood(*case[:2], observation)

    def density(loc: Tensor) -> Tensor:
        return densities.log_prob(case.observation[..., :1], loc, torch.ones(3, 1, 1).double())

    torch._dynamo.reset()
    for function, at in ((chain, case.observation), (density, loc)):
        compiled = torch.compile(function, fullgraph=True, backend=BACKEND)
        leaf = at.clone().requires_grad_()
        results = []
        for name in ("cpu", "reference", "cpu", "reference"):
            ran.clear()
            with ops.backend(name):
                value = compiled(leaf)
                results.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
            assert bool(ran) == (name == "cpu")
        for each in results[1:]:
            for actual, expected in zip(each, results[0], strict=True):
                assert_equal(actual, expected)


@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_a_length_out_of_range_under_a_transform_gives_nan(backend):
    """Nobody could look at it: no kernel leaves its memory, and the neighbours are right."""
    if backend == "cuda":
        pytest.importorskip("triton")
    observation, lengths = torch.randn(5, 9, 3).double(), torch.tensor([5, 0, -3, 10, 9])
    chain = torch.zeros(3).double(), torch.zeros(1, 3, 3).double()

    def one(observation, length):
        with ops.backend(backend):
            found = ops.expectations(*chain, observation, length)
            return (ops.log_likelihood(*chain, observation, length), *found)

    found = torch.func.vmap(one)(observation, lengths)
    wrong, good = torch.tensor([1, 2, 3]), torch.tensor([0, 4])
    assert all(part[wrong].isnan().all() for part in found[:2])
    for n in wrong:
        assert found[2][n].isnan().any() and found[3][n].isnan().any()
    value, *rest = ops.expectations(*chain, observation[good], lengths[good])
    for actual, expected in zip(found, (value, value, *rest), strict=True):
        assert_equal(actual[good], expected)


def test_a_length_out_of_range_under_a_transform_is_refused_by_the_cpu_kernel():
    chain = torch.zeros(3).double(), torch.zeros(1, 3, 3).double()

    def one(observation, length):
        return ops.log_likelihood(*chain, observation, length)

    with pytest.raises(ValueError, match="expected lengths from 1 to 9, got from 5 to 10"):
        torch.func.vmap(one)(torch.randn(2, 9, 3).double(), torch.tensor([5, 10]))
