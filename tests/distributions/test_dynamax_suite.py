"""The questions of dynamax's tests of its HMM inference, put to RegimeHMM.

Each test names the case of dynamax's ``hidden_markov_model/inference_test.py`` (or
``models/test_models.py``) whose question it asks. The code is our own. dynamax asks each once, with
one random chain, in float32 to 1e-4 or 1e-1; here several chains are asked in float64 to 1e-10, by
every kernel.

dynamax's functions take the log-likelihood of each state at each time itself. A Delta whose log
density is that makes it the observation distribution of a RegimeHMM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes.distributions import Posterior, RegimeHMM
from pyro_regimes.kernels import ops, reference
from pyro_regimes.kernels.cpu import scaled
from tests import seeds
from tests.distributions.test_against_enumeration import assert_equal
from tests.oracles import Enumerated, enumerate_paths

SEEDS = range(5)

WAYS = {
    "reference": ("reference", reference, {"_MIN_BLOCKED_STEPS": math.inf}),
    "reference in blocks": ("reference", reference, {"_MIN_BLOCKED_STEPS": 1}),
    "cpu": ("cpu", scaled, {}),
    "cpu in log space": ("cpu", scaled, {"MAX_STATES": 0}),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By each kernel, sequential or a scan over time, scaled or in log space."""
    name, module, constants = request.param
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    with ops.backend(name):
        yield


class Arguments(NamedTuple):
    initial_probs: Tensor  # (K,)
    transition_probs: Tensor  # (K, K) or (T-1, K, K)
    log_likelihoods: Tensor  # (T, K)


def random_arguments(
    seed: int, num_steps: int, num_states: int, scale: float = 1.0, varying: bool = False
) -> Arguments:
    """Rows of uniform numbers over their sum; normal log-likelihoods."""
    generator = seeds.generator(seed)

    def rows(*shape: int) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return uniform / uniform.sum(-1, keepdim=True)

    slices = (num_steps - 1,) if varying else ()
    return Arguments(
        rows(num_states),
        rows(*slices, num_states, num_states),
        scale * torch.randn(num_steps, num_states, generator=generator, dtype=torch.float64),
    )


def hmm_of(arguments: Arguments, **options) -> RegimeHMM:
    initial, transition, log_likelihoods = arguments
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.Delta(
            torch.zeros_like(log_likelihoods), log_density=log_likelihoods, validate_args=False
        ),
        **options,
    )


def data_of(arguments: Arguments) -> Tensor:
    """What the Delta emits."""
    return torch.zeros_like(arguments.log_likelihoods[..., 0])


def posterior_of(arguments: Arguments) -> Posterior:
    return hmm_of(arguments).posterior(data_of(arguments))


def enumerate_arguments(arguments: Arguments) -> Enumerated:
    """The oracle: every path of states, one at a time."""
    initial, transition, log_likelihoods = arguments
    slices = transition if transition.dim() == 3 else transition.unsqueeze(0)
    return enumerate_paths(initial.log(), slices.log(), log_likelihoods)


class Recursion(NamedTuple):
    """Another oracle, for longer chains: probabilities, step by step as in the textbooks."""

    log_likelihood: Tensor
    filtered_probs: Tensor
    predicted_probs: Tensor
    by_two_filters: Tensor  # smoothed: forwards times backwards
    by_correction: Tensor  # smoothed: from the filtered ones, backwards
    transitions: Tensor  # (T-1, K, K)
    path: list[int]


def recursion(arguments: Arguments) -> Recursion:
    initial, transition, log_likelihoods = arguments
    num_steps, num_states = log_likelihoods.shape
    matrices = transition.expand(num_steps - 1, num_states, num_states)
    peaks = log_likelihoods.amax(-1)
    density = (log_likelihoods - peaks.unsqueeze(-1)).exp()
    total, prediction = peaks.sum(), initial
    filtered, predicted = [], []
    for t in range(num_steps):
        joint = prediction * density[t]
        predicted.append(prediction)
        filtered.append(joint / joint.sum())
        total = total + joint.sum().log()
        if t < num_steps - 1:
            prediction = filtered[t] @ matrices[t]

    backward = torch.ones_like(initial)
    smoothed = filtered[-1]
    two_filters, corrected, pairs = [filtered[-1]], [smoothed], []
    for t in reversed(range(num_steps - 1)):
        backward = matrices[t] @ (density[t + 1] * backward)
        backward = backward / backward.sum()
        product = filtered[t] * backward
        two_filters.insert(0, product / product.sum())
        pair = filtered[t].unsqueeze(-1) * matrices[t] * (smoothed / predicted[t + 1])
        smoothed = pair.sum(-1)
        corrected.insert(0, smoothed)
        pairs.insert(0, pair)

    score, origins = initial.log() + log_likelihoods[0], []
    for t in range(num_steps - 1):
        best, origin = (score.unsqueeze(-1) + matrices[t].log()).max(-2)
        score = best + log_likelihoods[t + 1]
        origins.append(origin)
    path = [int(score.argmax())]
    for origin in reversed(origins):
        path.insert(0, int(origin[path[0]]))
    return Recursion(
        total,
        torch.stack(filtered),
        torch.stack(predicted),
        torch.stack(two_filters),
        torch.stack(corrected),
        torch.stack(pairs),
        path,
    )


def test_the_oracles_agree():
    arguments = random_arguments(0, 5, 3, varying=True)
    one, other = enumerate_arguments(arguments), recursion(arguments)
    assert other.log_likelihood.item() == pytest.approx(one.log_likelihood, rel=1e-13)
    assert_equal(other.filtered_probs, one.filtered_probs)
    assert_equal(other.predicted_probs, one.predicted_probs)
    assert_equal(other.by_two_filters, one.smoothed_probs)
    assert_equal(other.by_correction, one.smoothed_probs)
    assert_equal(other.transitions, one.transitions)
    assert other.path == one.best_path


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("seed", SEEDS)
def test_filter(seed):
    """``test_hmm_filter``: T = 3, K = 2; likelihood, filtered and predicted probabilities."""
    arguments = random_arguments(seed, 3, 2)
    expected, actual = enumerate_arguments(arguments), posterior_of(arguments)
    assert actual.log_likelihood.item() == pytest.approx(expected.log_likelihood, rel=1e-12)
    assert_equal(actual.filtered_probs, expected.filtered_probs)
    assert_equal(actual.predicted_probs, expected.predicted_probs)
    last = hmm_of(arguments).filter(data_of(arguments))
    assert_equal(last.probs, expected.filtered_probs[-1])


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("seed", SEEDS)
def test_smoother(seed):
    """``test_hmm_smoother``, ``test_two_filter_smoother``: T = 5, K = 2."""
    arguments = random_arguments(seed, 5, 2)
    expected, actual = enumerate_arguments(arguments), posterior_of(arguments)
    assert actual.log_likelihood.item() == pytest.approx(expected.log_likelihood, rel=1e-12)
    assert_equal(actual.smoothed_probs, expected.smoothed_probs)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("seed", SEEDS)
def test_two_filters_or_a_correction(seed):
    """``test_two_filter_vs_smoother_nonstationary``: T = 6, K = 3, transitions vary."""
    arguments = random_arguments(seed, 6, 3, varying=True)
    expected, actual = recursion(arguments), posterior_of(arguments)
    assert_equal(expected.by_two_filters, expected.by_correction)
    assert_equal(actual.smoothed_probs, expected.by_correction)
    assert_equal(actual.expected_transitions, expected.transitions)


@pytest.mark.usefixtures("every_way")
def test_every_window():
    """``test_hmm_fixed_lag_smoother``: T = 5, K = 2, the window reaching back to the start.

    Ours has no such function. Lengths 1 to T give the same: the posterior as each observation
    comes, and the lag is the number of steps between its end and the time looked at.
    """
    arguments = random_arguments(0, 5, 2)
    hmm = hmm_of(arguments, lengths=torch.arange(1, 6))
    actual = hmm.posterior(data_of(arguments))
    for length in range(1, 6):
        seen = arguments._replace(log_likelihoods=arguments.log_likelihoods[:length])
        expected = enumerate_arguments(seen)
        assert actual.log_likelihood[length - 1].item() == pytest.approx(expected.log_likelihood)
        for one, other in (
            (actual.filtered_probs, expected.filtered_probs),
            (actual.predicted_probs, expected.predicted_probs),
            (actual.smoothed_probs, expected.smoothed_probs),
        ):
            assert_equal(one[length - 1, :length], other)
    for one, other in zip(actual, posterior_of(arguments), strict=True):
        assert_equal(one[-1], other)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("varying", [False, True], ids=["constant", "varying"])
@pytest.mark.parametrize("seed", SEEDS)
def test_transition_probabilities(seed, varying):
    """``test_compute_transition_probs``: T = 5, K = 2; all pairs, summed where A is constant."""
    arguments = random_arguments(seed, 5, 2, varying=varying)
    expected = enumerate_arguments(arguments)
    pairs = expected.transitions if varying else expected.transitions.sum(0)
    actual = posterior_of(arguments)
    assert_equal(actual.expected_transitions, pairs)
    leaving = actual.expected_transitions.sum(-1)
    smoothed = actual.smoothed_probs[:-1]
    assert_equal(leaving, smoothed if varying else smoothed.sum(0))


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("seed", range(20))
def test_most_likely_path(seed):
    """``test_hmm_posterior_mode``: T = 5, K = 2; the best of all 32 paths."""
    arguments = random_arguments(seed, 5, 2)
    path = hmm_of(arguments).viterbi(data_of(arguments))
    assert path.tolist() == enumerate_arguments(arguments).best_path


@pytest.mark.parametrize(
    "max_states, num_states",
    [
        pytest.param(0, 100, id="log space", marks=pytest.mark.slow),
        # which takes twenty seconds to compile, once
        pytest.param(128, 100, id="scaled", marks=pytest.mark.slow),
        pytest.param(128, 8, id="scaled, 8 states"),
    ],
)
def test_stability(max_states, num_states, monkeypatch):
    """``test_hmm_smoother_stability``: T = 10,000, K = 100, log-likelihoods some 100 apart."""
    monkeypatch.setattr(scaled, "MAX_STATES", max_states)
    arguments = random_arguments(0, 10_000, num_states, scale=100.0)
    chain = (
        arguments.initial_probs.log(),
        arguments.transition_probs.log().unsqueeze(0),
        arguments.log_likelihoods,
    )
    with ops.backend("cpu"):
        double = ops.expectations(*chain)
        single = ops.expectations(*(part.float() for part in chain))
    expected = recursion_of_the_likelihood(arguments)
    assert double.log_likelihood.item() == pytest.approx(expected.item(), rel=1e-12)
    ones = torch.ones(10_000, dtype=torch.float64)
    assert_equal(double.smoothed_probs.sum(-1), ones)
    assert double.expected_transitions.sum().item() == pytest.approx(9_999, rel=1e-10)
    assert single.smoothed_probs.isfinite().all()
    torch.testing.assert_close(single.smoothed_probs.sum(-1), ones.float(), rtol=0.0, atol=1e-5)


def recursion_of_the_likelihood(arguments: Arguments) -> Tensor:
    initial, transition, log_likelihoods = arguments
    peaks = log_likelihoods.amax(-1)
    total, prediction = peaks.sum(), initial
    for density in (log_likelihoods - peaks.unsqueeze(-1)).exp():
        joint = prediction * density
        total = total + joint.sum().log()
        prediction = joint / joint.sum() @ transition
    return total


@pytest.mark.slow
@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("seed", SEEDS)
def test_transitions_that_vary(seed):
    """``test_hmm_non_stationary``: T = 10, K = 5; filter, smoother, mode and a path drawn.

    dynamax compares T - 1 matrices with a function of time that returns them. Ours takes tensors
    only, so they are compared with the recursions step by step.
    """
    arguments = random_arguments(seed, 10, 5, varying=True)
    expected, actual = recursion(arguments), posterior_of(arguments)
    assert_equal(actual.log_likelihood, expected.log_likelihood)
    assert_equal(actual.filtered_probs, expected.filtered_probs)
    assert_equal(actual.predicted_probs, expected.predicted_probs)
    assert_equal(actual.smoothed_probs, expected.by_correction)
    hmm, data = hmm_of(arguments), data_of(arguments)
    assert hmm.viterbi(data).tolist() == expected.path

    draws = 20_000
    torch.manual_seed(seeds.seed(seed))
    paths = hmm.sample_posterior(data, (draws,))
    one_hot = torch.nn.functional.one_hot(paths, 5).double()  # (draws, T, K)
    frequencies = torch.einsum("nti, ntj -> tij", one_hot[:, :-1], one_hot[:, 1:]) / draws
    probability = expected.transitions
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert ((frequencies - probability).abs() <= 5 * deviation + 1e-4).all()


@pytest.mark.usefixtures("every_way")
def test_constant_matrices_one_by_one():
    """``test_hmm_non_stationary``, as dynamax asks it: two ways to give the same matrices."""
    constant = random_arguments(0, 10, 5)
    varying = constant._replace(transition_probs=constant.transition_probs.repeat(9, 1, 1))
    data = data_of(constant)
    for name in ("log_likelihood", "filtered_probs", "predicted_probs", "smoothed_probs"):
        one, other = (getattr(posterior_of(each), name) for each in (constant, varying))
        assert_equal(one, other)
    one, other = (hmm_of(each).viterbi(data) for each in (constant, varying))
    assert torch.equal(one, other)
    drawn = []
    for each in (constant, varying):
        torch.manual_seed(seeds.seed(0))
        drawn.append(hmm_of(each).sample_posterior(data, (100,)))
    assert torch.equal(*drawn)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("varying", [False, True], ids=["constant", "varying"])
@pytest.mark.parametrize("seed", SEEDS)
def test_parallel_or_sequential(seed, varying):
    """``test_parallel_filter``, ``test_parallel_smoother``: T = 100, K = 3.

    dynamax's parallel functions take no matrices that vary; ours do.
    """
    arguments = random_arguments(seed, 100, 3, varying=varying)
    expected, actual = recursion(arguments), posterior_of(arguments)
    assert_equal(actual.log_likelihood, expected.log_likelihood)
    assert_equal(actual.filtered_probs, expected.filtered_probs)
    assert_equal(actual.predicted_probs, expected.predicted_probs)
    assert_equal(actual.smoothed_probs, expected.by_two_filters)
    assert hmm_of(arguments).viterbi(data_of(arguments)).tolist() == expected.path


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_posterior_paths(backend):
    """``test_parallel_posterior_sample``: T = 5, K = 2; a million paths, each of the 32 counted.

    ``test_hmm_posterior_sample``, which dynamax has commented out, asks the same.
    """
    arguments = random_arguments(0, 5, 2)
    draws = 1_000_000
    torch.manual_seed(seeds.seed(0))
    with ops.backend(backend):
        paths = hmm_of(arguments).sample_posterior(data_of(arguments), (draws,))
    number = (paths * 2 ** torch.arange(4, -1, -1)).sum(-1)
    share = torch.bincount(number, minlength=32).double() / draws
    expected = enumerate_arguments(arguments)
    probability = torch.tensor(list(expected.paths.values()), dtype=torch.float64)
    probability = (probability - expected.log_likelihood).exp()
    torch.testing.assert_close(share, probability, rtol=0.0, atol=1e-3)
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert ((share - probability).abs() < 5 * deviation).all()


def log_prob_of(initial: Tensor, transition: Tensor, log_likelihoods: Tensor) -> Tensor:
    arguments = Arguments(initial, transition, log_likelihoods)
    return hmm_of(arguments, validate_args=False).log_prob(data_of(arguments))


def fields_of(initial: Tensor, transition: Tensor, log_likelihoods: Tensor) -> tuple[Tensor, ...]:
    arguments = Arguments(initial, transition, log_likelihoods)
    hmm, data = hmm_of(arguments, validate_args=False), data_of(arguments)
    return (hmm.log_prob(data), *hmm.posterior(data), hmm.filter(data).probs, hmm.viterbi(data))


def assert_all_equal(actual: Tensor | tuple[Tensor, ...], expected) -> None:
    if isinstance(actual, Tensor):
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert_equal(one, other)


# The reference takes the E-step from torch.autograd.grad, which neither transform knows.
TRANSFORMED = pytest.mark.parametrize(
    "function, backend",
    [(log_prob_of, "reference"), (log_prob_of, "cpu"), (fields_of, "cpu")],
    ids=["log_prob, reference", "log_prob, cpu", "all, cpu"],
)


def some_arguments() -> Arguments:
    several = [random_arguments(seed, 6, 3, varying=True) for seed in SEEDS]
    return Arguments(*(torch.stack(parts) for parts in zip(*several, strict=True)))


@TRANSFORMED
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, None, 0), (0, None, 0), (None, 0, 0)])
def test_vmap(in_dims, function, backend):
    """``jax.vmap`` maps dynamax's functions over sequences, or chains; here, torch.func's."""
    several = some_arguments()
    given = [part if dim == 0 else part[0] for part, dim in zip(several, in_dims, strict=True)]
    with ops.backend(backend):
        mapped = torch.func.vmap(function, in_dims=in_dims)(*given)
        for index in range(len(SEEDS)):
            single = [
                part[index] if dim == 0 else part for part, dim in zip(given, in_dims, strict=True)
            ]
            found = mapped[index] if isinstance(mapped, Tensor) else [one[index] for one in mapped]
            assert_all_equal(found, function(*single))


def test_batch_dims_are_vmap():
    """What needs vmap there is a batch here."""
    several = some_arguments()
    assert_all_equal(fields_of(*several), torch.func.vmap(fields_of)(*several))


@pytest.mark.slow
@TRANSFORMED
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit(function, backend):
    """``jax.jit`` compiles each of dynamax's functions; here, torch.jit.trace."""
    first, second = random_arguments(0, 6, 3), random_arguments(1, 6, 3)
    with ops.backend(backend):
        traced = torch.jit.trace(function, tuple(first), check_trace=False)
        for arguments in (second, first):
            assert_all_equal(traced(*arguments), function(*arguments))
