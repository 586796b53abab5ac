"""RegimeHMM against the list of all paths; densities are written out by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from tests import seeds
from tests.frequencies import assert_binomial
from tests.kernels.cases import Case
from tests.kernels.test_reference import enumerate_case, stacked

INF = math.inf


class Sequences(NamedTuple):
    """A chain with Normal observations, and data; logits need not be normalised."""

    initial_logits: Tensor
    transition_logits: Tensor
    loc: Tensor
    scale: Tensor
    value: Tensor
    lengths: Tensor | None = None

    def hmm(self, **options) -> RegimeHMM:
        normal = dist.Normal(self.loc, self.scale)
        return RegimeHMM(
            self.initial_logits, self.transition_logits, normal, lengths=self.lengths, **options
        )

    def case(self) -> Case:
        """The three log tensors, by formula."""
        deviation = (self.value.unsqueeze(-1) - self.loc) / self.scale
        density = -0.5 * deviation**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)
        transition = self.transition_logits.log_softmax(-1)
        if transition.dim() == 2:
            transition = transition.unsqueeze(0)
        return Case(self.initial_logits.log_softmax(-1), transition, density, self.lengths)


def sequences(
    num_steps=5, num_states=3, *, initial=(), transition=(), observation=(), value=(), seed=0
) -> Sequences:
    """Random ones; the keywords are leading shapes, time included where the argument has it."""
    generator = seeds.generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Sequences(
        normal(*initial, num_states),
        normal(*transition, num_states, num_states),
        2 * normal(*observation, num_states),
        normal(*observation, num_states).exp(),
        2 * normal(*value, num_steps),
    )


def with_zeros(chain: Sequences) -> Sequences:
    initial, transition = chain.initial_logits.clone(), chain.transition_logits.clone()
    initial[..., -1] = -INF
    transition[..., 0, 0] = transition[..., 1, 2] = -INF
    return chain._replace(initial_logits=initial, transition_logits=transition)


def with_padding(chain: Sequences, lengths: list, filler: float) -> Sequences:
    lengths = torch.tensor(lengths)
    padding = torch.arange(chain.value.shape[-1]) >= lengths.unsqueeze(-1)
    return chain._replace(value=chain.value.masked_fill(padding, filler), lengths=lengths)


def non_contiguous(chain: Sequences) -> Sequences:
    return Sequences(
        chain.initial_logits.repeat_interleave(2, -1)[..., ::2],
        chain.transition_logits.mT.contiguous().mT,
        chain.loc.mT.contiguous().mT,
        chain.scale.repeat_interleave(3, -1)[..., ::3],
        chain.value.mT.contiguous().mT,
    )


def left_to_right() -> Sequences:
    chain = sequences(seed=1)
    forbidden = ~torch.ones(3, 3).triu().bool()
    return chain._replace(
        initial_logits=torch.tensor([0.0, -INF, -INF], dtype=torch.float64),
        transition_logits=chain.transition_logits.masked_fill(forbidden, -INF),
    )


CASES = {
    "plain": sequences(seed=2),
    "T=1": sequences(1, seed=3),
    "T=1, no transitions": sequences(1, transition=(0,), seed=4),
    "T=2, one slice": sequences(2, transition=(1,), seed=5),
    "K=1": sequences(4, 1, seed=6),
    "T=1, K=1": sequences(1, 1, seed=7),
    "blocks": sequences(18, 1, value=(2,), seed=8),
    "K=2, odd T": sequences(7, 2, seed=9),
    "A varies": sequences(transition=(4,), seed=10),
    "observations vary": sequences(observation=(5,), seed=11),
    "both vary": sequences(transition=(4,), observation=(5,), seed=12),
    "batch in all": sequences(
        4, initial=(2,), transition=(2, 1), observation=(2, 1), value=(2,), seed=13
    ),
    "batch in the start": sequences(4, initial=(2,), seed=14),
    "batch in A": sequences(4, transition=(2, 1), seed=15),
    "batch in the observations": sequences(4, observation=(2, 1), seed=16),
    "batch in the value": sequences(4, value=(2, 2), seed=17),
    "batches that broadcast": sequences(
        4, 2, initial=(3,), transition=(2, 1, 3), observation=(4, 1), value=(2, 1), seed=18
    )._replace(loc=torch.zeros(2, 1, 1, 2).double(), scale=torch.tensor([0.5, 2.0]).double()),
    "sample dims in the value": sequences(4, initial=(3,), value=(2, 3), seed=19),
    "lengths": with_padding(sequences(value=(4,), seed=20), [1, 5, 3, 2], 0.0),
    "one length": with_padding(sequences(seed=21), 3, 0.0),
    "lengths add a batch": with_padding(sequences(4, seed=22), [[1, 4], [2, 3]], 9.0),
    "padding is NaN": with_padding(sequences(value=(2,), seed=23), [2, 4], math.nan),
    "padding is inf, A varies": with_padding(
        sequences(transition=(2, 4), observation=(5,), value=(2,), seed=24), [1, 4], INF
    ),
    "zeros": with_zeros(sequences(seed=25)),
    "zeros, A varies, lengths": with_padding(
        with_zeros(sequences(4, transition=(2, 3), value=(2,), seed=26)), [4, 2], math.nan
    ),
    "left to right": left_to_right(),
    "never leaves": sequences(seed=27)._replace(
        transition_logits=torch.eye(3, dtype=torch.float64).log()
    ),
    "non-contiguous": non_contiguous(
        sequences(4, transition=(2, 1), observation=(2, 1), value=(2,), seed=28)
    ),
    "empty batch": sequences(4, initial=(0,), value=(0,), seed=29),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def chain(request: pytest.FixtureRequest) -> Sequences:
    return request.param


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-10, atol=1e-13)


def test_log_prob(chain):
    batch, answers = enumerate_case(chain.case())
    actual = chain.hmm().log_prob(chain.value)
    assert actual.shape == batch
    assert_equal(actual, stacked(batch, [each.log_likelihood for each in answers], actual))


def test_log_prob_from_probabilities(chain):
    hmm = RegimeHMM(
        initial_probs=chain.initial_logits.softmax(-1),
        transition_probs=chain.transition_logits.softmax(-1),
        observation_dist=dist.Normal(chain.loc, chain.scale),
        lengths=chain.lengths,
    )
    assert_equal(hmm.log_prob(chain.value), chain.hmm().log_prob(chain.value))


def test_posterior(chain):
    batch, answers = enumerate_case(chain.case())
    posterior = chain.hmm().posterior(chain.value)
    steps, states = chain.value.shape[-1], chain.loc.shape[-1]
    expected = {
        "log_likelihood": ((), [each.log_likelihood for each in answers]),
        "filtered_probs": ((steps, states), [each.filtered_probs for each in answers]),
        "predicted_probs": ((steps, states), [each.predicted_probs for each in answers]),
        "smoothed_probs": ((steps, states), [each.smoothed_probs for each in answers]),
    }
    moves = [each.transitions for each in answers]
    if chain.case().transition.shape[-3] == 1:
        expected["expected_transitions"] = ((states, states), [each.sum(0) for each in moves])
    else:
        expected["expected_transitions"] = ((steps - 1, states, states), moves)
    assert posterior._fields == tuple(expected)
    for actual, (event_shape, values) in zip(posterior, expected.values(), strict=True):
        assert actual.shape == batch + event_shape
        assert_equal(actual, stacked(batch, values, actual))


def test_viterbi(chain):
    batch, answers = enumerate_case(chain.case())
    path = chain.hmm().viterbi(chain.value)
    assert path.dtype == torch.long
    assert path.shape == batch + chain.value.shape[-1:]
    assert torch.equal(path, stacked(batch, [each.best_path for each in answers], path))


def last_state(answers: list) -> list[Tensor]:
    return [
        each.filtered_probs[sum(state >= 0 for state in each.best_path) - 1] for each in answers
    ]


@pytest.mark.parametrize("name", [name for name in CASES if name != "empty batch"])
def test_filter(name):
    """An empty batch is left out: torch's own Categorical refuses it."""
    chain = CASES[name]
    batch, answers = enumerate_case(chain.case())
    last = chain.hmm().filter(chain.value)
    assert isinstance(last, dist.Categorical)
    assert last.batch_shape == batch
    assert_equal(last.probs, stacked(batch, last_state(answers), last.probs))


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "K=1",
        "batch in all",
        "sample dims in the value",
        "lengths",
        "zeros",
        "never leaves",
    ],
)
def test_forecast(name):
    chain = CASES[name]
    batch, answers = enumerate_case(chain.case())
    future = chain.hmm().forecast(chain.value, 4)
    assert future.batch_shape == batch + (4,)
    assert future.event_shape == ()
    last = torch.stack(last_state(answers)).reshape(batch + (1, -1))
    matrix = chain.case().transition.exp().squeeze(-3)
    regimes = torch.cat([last @ matrix.matrix_power(h) for h in range(1, 5)], -2)
    assert_equal(future.mixture_distribution.probs, regimes)

    following = torch.linspace(-2.0, 2.0, 4, dtype=torch.float64)
    density = chain._replace(value=following).case().observation.exp()
    assert_equal(future.log_prob(following), (regimes * density).sum(-1).log())
    assert future.sample((7,)).shape == (7,) + batch + (4,)


def test_forecast_of_one_step_is_a_ratio_of_likelihoods():
    chain = CASES["sample dims in the value"]
    following = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    longer = torch.cat([chain.value, following.expand(2, 3, 1)], -1)
    hmm = chain.hmm()
    expected = hmm.log_prob(longer) - hmm.log_prob(chain.value)
    assert_equal(hmm.forecast(chain.value, 1).log_prob(following).squeeze(-1), expected)


@pytest.mark.parametrize("name", ["plain", "lengths", "zeros", "A varies", "batch in A"])
def test_posterior_paths_have_the_smoothed_frequencies(name):
    chain = CASES[name]
    torch.manual_seed(seeds.seed(0))
    paths = chain.hmm().sample_posterior(chain.value, (4_000,))
    smoothed = chain.hmm().posterior(chain.value).smoothed_probs
    assert paths.dtype == torch.long
    assert paths.shape == (4_000,) + smoothed.shape[:-1]
    for state in range(3):
        assert_binomial((paths == state).sum(0), 4_000, smoothed[..., state])
    if chain.lengths is not None:
        padding = torch.arange(paths.shape[-1]) >= chain.lengths.unsqueeze(-1)
        assert torch.equal(paths == -1, padding.expand(paths.shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "empty batch"])
def test_float32_keeps_its_dtype_and_its_digits(name):
    chain = CASES[name]
    single = Sequences(*(part.float() for part in chain[:5]), chain.lengths)
    hmm, value = single.hmm(), single.value
    assert hmm.log_prob(value).dtype == hmm.filter(value).probs.dtype == torch.float32
    # The same numbers in float64. What remains is the rounding of the log densities, which are of
    # the size of the log-likelihood: over 60 seeds at most 1.4 eps of that.
    same = Sequences(*(part.double() for part in single[:5]), chain.lengths)
    expected = same.hmm().posterior(same.value)
    finite = expected.log_likelihood.abs().nan_to_num(posinf=0.0)
    atol = 4 * torch.finfo(torch.float32).eps * max(1.0, float(finite.max()))
    found = hmm.posterior(value)
    assert found.log_likelihood.dtype == torch.float64
    assert all(part.dtype == torch.float32 for part in found[1:])
    for actual, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=0.0, atol=atol)


def test_dtypes_mix():
    chain = CASES["plain"]
    expected = chain.hmm()
    half_single = chain._replace(
        initial_logits=chain.initial_logits.float(),
        transition_logits=chain.transition_logits.float(),
    ).hmm()
    assert half_single.log_prob(chain.value).dtype == torch.float64
    following = torch.zeros(2, dtype=torch.float64)
    for hmm, tolerance in ((expected, 0.0), (half_single, 1e-5)):
        actual = hmm.forecast(chain.value, 2).log_prob(following)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(
            actual,
            expected.forecast(chain.value, 2).log_prob(following),
            rtol=tolerance,
            atol=tolerance,
        )


class TestProbabilityZero:
    """Uniform observations with a range for each state; the second value is in none of them."""

    value = torch.tensor([[0.5, 5.0, 0.5], [0.5, 1.5, 0.5]], dtype=torch.float64)

    def hmm(self, **options) -> RegimeHMM:
        high = torch.tensor([1.0, 2.0], dtype=torch.float64)
        observed = dist.Uniform(torch.zeros_like(high), high, validate_args=False)
        logits = torch.zeros(2, 2, dtype=torch.float64)
        return RegimeHMM(logits[0], logits, observed, validate_args=False, **options)

    def test_log_prob_and_posterior(self):
        posterior = self.hmm().posterior(self.value)
        assert torch.equal(posterior.log_likelihood, self.hmm().log_prob(self.value))
        assert posterior.log_likelihood[0] == -INF
        # 1/2 (1 + 1/2) for the first and last value, 1/2 * 1/2 for that of state 1 alone.
        assert_equal(posterior.log_likelihood[1], torch.tensor(0.75 * 0.25 * 0.75).double().log())
        assert (posterior.smoothed_probs[0] == 0).all()
        assert (posterior.expected_transitions[0] == 0).all()
        assert_equal(posterior.filtered_probs[0, 0], torch.tensor([2.0, 1.0]).double() / 3)
        assert (posterior.filtered_probs[0, 1:] == 0).all()
        assert (posterior.predicted_probs[0, :2] == 0.5).all()
        assert (posterior.predicted_probs[0, 2] == 0).all()

    def test_paths(self):
        assert self.hmm().viterbi(self.value).tolist() == [[-1, -1, -1], [0, 1, 0]]
        paths = self.hmm().sample_posterior(self.value, (3,))
        assert (paths[:, 0] == -1).all()
        assert (paths[:, 1, 1] == 1).all()

    def test_no_last_state(self):
        assert self.hmm().filter(self.value).probs.isnan().tolist() == [[True] * 2, [False] * 2]
        assert self.hmm().forecast(self.value, 1).mixture_distribution.probs[0].isnan().all()

    def test_no_last_state_with_validation(self):
        """Each value is possible in some state; the transition between them is not."""
        low = torch.tensor([0.0, 1.0])
        hmm = RegimeHMM(
            torch.zeros(2), torch.eye(2).log(), dist.Uniform(low, low + 1, validate_args=False)
        )
        for method in (hmm.filter, lambda value: hmm.forecast(value, 1)):
            with pytest.raises(ValueError, match="positive probability.* 0 for 1 of 2 sequences"):
                method(torch.tensor([[0.5, 1.5], [0.5, 0.5]]))
