"""RegimeHMM on packed sequences, against one distribution for each of them."""

from __future__ import annotations

import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import RegimeHMM
from tests import seeds

LENGTHS = torch.tensor([4, 1, 9, 2, 2, 30, 1])
T, K, D = int(LENGTHS.sum()), 3, 2
TOLERANCE = dict(rtol=1e-11, atol=1e-11)

#: First step, and the one after the last, of each sequence.
ROWS = [slice(int(end - size), int(end)) for size, end in zip(LENGTHS, LENGTHS.cumsum(0))]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


X = normal(T, D, seed=1)
PROBS = dict(
    initial_probs=torch.tensor([0.5, 0.3, 0.2]).double(),
    transition_probs=(2 * torch.eye(3).double() + 1) / 5,
)


def gaussian(*lead: int) -> dist.Distribution:
    loc = normal(*lead, K, D, seed=2)
    return dist.MultivariateNormal(loc, torch.eye(D).double() * 0.7)


def alone(hmm: RegimeHMM, rows: slice) -> RegimeHMM:
    """The distribution of one of the sequences."""
    arguments: dict[str, Any] = dict(hmm.arguments)
    for name, value in arguments.items():
        if "transition" in name and value.dim() > 2 and value.shape[-3] > 1:
            arguments[name] = value[..., rows.start : rows.stop - 1, :, :]
    observation = hmm.observation_dist
    if len(observation.batch_shape) > 1 and observation.batch_shape[-2] > 1:
        observation = dist.MultivariateNormal(
            observation.loc[..., rows, :, :], observation.covariance_matrix[..., rows, :, :, :]
        )
    allowed = hmm.allowed_states
    if allowed is not None and len(allowed) > 1:
        allowed = allowed[rows]
    return RegimeHMM(
        **arguments, observation_dist=observation, missing=hmm.missing, allowed_states=allowed
    )


def logits(*lead: int, slices: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return dict(
        initial_logits=normal(*lead, K, seed=3),
        transition_logits=normal(*lead, *slices, K, K, seed=4),
    )


CASES: dict[str, RegimeHMM] = {
    "constant": RegimeHMM(**PROBS, observation_dist=gaussian(), packed_lengths=LENGTHS),
    "varying": RegimeHMM(
        **logits(slices=(T - 1,)), observation_dist=gaussian(T), packed_lengths=LENGTHS
    ),
    "batch": RegimeHMM(
        **logits(2, slices=(1,)), observation_dist=gaussian(2, 1), packed_lengths=LENGTHS
    ),
    "known states": RegimeHMM(
        **PROBS,
        observation_dist=gaussian(),
        packed_lengths=LENGTHS,
        allowed_states=(torch.arange(T).unsqueeze(-1) + torch.arange(K)) % 4 > 0,
    ),
    "missing": RegimeHMM(
        **PROBS, observation_dist=gaussian(), packed_lengths=LENGTHS, missing="marginalise"
    ),
}


def data(name: str) -> Tensor:
    if name != "missing":
        return X
    x = X.clone()
    x[::3, 0] = torch.nan
    x[[0, 4, 9]] = torch.nan  # with the first row of two sequences
    return x


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_loop_over_the_sequences(name: str) -> None:
    hmm, x = CASES[name], data(name)
    each = [(rows, alone(hmm, rows), x[rows]) for rows in ROWS]
    log_prob, found = hmm.log_prob(x), hmm.posterior(x)
    assert hmm.duration == T and hmm.event_shape == (T, D)
    assert log_prob.shape == hmm.batch_shape
    total = torch.stack([own.log_prob(value) for _, own, value in each]).sum(0)
    assert_close(log_prob, total, **TOLERANCE)
    assert_close(found.log_likelihood, total, **TOLERANCE)
    for rows, own, value in each:
        expected = own.posterior(value)
        for kind in ("filtered_probs", "predicted_probs", "smoothed_probs"):
            assert_close(
                getattr(found, kind)[..., rows, :], getattr(expected, kind), **TOLERANCE
            )
        assert_close(hmm.smoothed_probs(x)[..., rows, :], expected.smoothed_probs, **TOLERANCE)
        assert_close(hmm.filtered_probs(x)[..., rows, :], expected.filtered_probs, **TOLERANCE)
        assert_close(hmm.viterbi(x)[..., rows], own.viterbi(value))
    if hmm.transition_logits.shape[-3] == 1:
        moved = torch.stack([own.posterior(value).expected_transitions for _, own, value in each])
        assert_close(found.expected_transitions, moved.sum(0), **TOLERANCE)
    _, last, value = each[-1]
    assert_close(hmm.filter(x).probs, last.filter(value).probs, **TOLERANCE)
    if name in ("constant", "batch"):
        ahead, expected = hmm.forecast(x, 3), last.forecast(value, 3)
        assert_close(ahead.mixture_distribution.probs, expected.mixture_distribution.probs)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_sum(name: str) -> None:
    x = data(name)
    start = CASES[name].arguments
    leaves = [value.clone().requires_grad_() for value in start.values()]
    arguments = dict(zip(start, leaves, strict=True))
    hmm = RegimeHMM(
        **arguments,
        observation_dist=CASES[name].observation_dist,
        packed_lengths=LENGTHS,
        missing=CASES[name].missing,
        allowed_states=CASES[name].allowed_states,
    )
    found = torch.autograd.grad(hmm.log_prob(x).sum(), leaves)
    total = sum(alone(hmm, rows).log_prob(x[rows]).sum() for rows in ROWS)
    assert_close(found, torch.autograd.grad(total, leaves), rtol=1e-10, atol=1e-10)


def test_it_equals_the_padded_batch() -> None:
    padded = torch.nn.utils.rnn.pad_sequence(list(X.split(LENGTHS.tolist())), batch_first=True)
    other = RegimeHMM(**PROBS, observation_dist=gaussian(), lengths=LENGTHS)
    found = CASES["constant"].posterior(X)
    expected = other.posterior(padded)
    assert_close(CASES["constant"].log_prob(X), other.log_prob(padded).sum(), **TOLERANCE)
    valid = torch.arange(30) < LENGTHS.unsqueeze(-1)
    assert_close(found.smoothed_probs, expected.smoothed_probs[valid], **TOLERANCE)
    assert_close(found.predicted_probs, expected.predicted_probs[valid], **TOLERANCE)


@pytest.mark.parametrize("name", ["constant", "varying", "batch", "known states"])
def test_draws_begin_anew(name: str) -> None:
    """The states that are drawn, against their probabilities without data."""
    hmm, draws = CASES[name], 3_000
    torch.manual_seed(seeds.seed(5))
    sample = hmm.sample((draws,))
    assert sample.shape == (draws,) + hmm.batch_shape + (T, D)
    found = torch.nn.functional.one_hot(hmm._sample_states(torch.Size([draws])), K)
    flat = RegimeHMM(
        **hmm.arguments,
        observation_dist=dist.Normal(torch.zeros(K).double(), 1.0),
        packed_lengths=LENGTHS,
        allowed_states=hmm.allowed_states,
    )
    expected = flat.smoothed_probs(torch.zeros(T).double())
    deviation = (expected * (1 - expected) / draws).sqrt() + 1 / draws
    assert ((found.double().mean(0) - expected).abs() < 5.5 * deviation).all()


def test_copies_keep_the_lengths() -> None:
    hmm = CASES["constant"]
    for copy in (hmm.expand([3]), pickle.loads(pickle.dumps(hmm)), hmm.expand([2]).expand([2])):
        assert_close(copy.log_prob(X), hmm.log_prob(X).expand(copy.batch_shape), **TOLERANCE)


def test_svi_takes_the_same_steps_as_on_separate_sites() -> None:
    def held() -> dict[str, Any]:
        start = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.5]]).double()
        return dict(
            initial_logits=pyro.param("initial", torch.zeros(K).double()),
            transition_logits=pyro.param("transition", torch.eye(K).double()),
            observation_dist=dist.Normal(pyro.param("loc", start), 1.0).to_event(1),
        )

    def packed() -> None:
        pyro.sample("x", RegimeHMM(**held(), packed_lengths=LENGTHS), obs=X)

    def separate() -> None:
        for n, rows in enumerate(ROWS):
            pyro.sample(f"x{n}", RegimeHMM(**held()), obs=X[rows])

    ends = []
    for model in (packed, separate):
        pyro.clear_param_store()
        optim = pyro.optim.Adam({"lr": 0.05})
        svi = SVI(model, lambda: None, optim, Trace_ELBO())
        losses = [svi.step() for _ in range(10)]
        store = pyro.get_param_store()
        ends.append((losses, {name: value.detach() for name, value in store.items()}))
    assert_close(ends[0][0], ends[1][0], rtol=1e-10, atol=0.0)
    assert_close(ends[0][1], ends[1][1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(lengths=torch.tensor(2)), "expected one of lengths, of padded sequences, and"),
        (dict(duration=5), "expected equal numbers of time steps, got 5 from duration, 49 from"),
        (dict(packed_lengths=[3, 1]), "expected lengths to be an integer tensor, got list"),
        (dict(packed_lengths=torch.tensor([3, -1])), "expected lengths from 1, got from -1 to 3"),
    ],
)
def test_wrong_calls(more: dict[str, Any], message: str) -> None:
    given = dict(PROBS, observation_dist=gaussian(), packed_lengths=LENGTHS) | more
    with pytest.raises(ValueError, match=message):
        RegimeHMM(**given)


def test_data_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="expected value to have 49 time steps at dimension -2"):
        CASES["constant"].log_prob(X[:-1])
