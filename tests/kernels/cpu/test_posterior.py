"""The filter and the E-step from one forward sweep, against each by itself."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes import RegimeHMM, RegimeModel
from pyro_regimes.infer.regimes import infer_regimes
from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import filtering, launch, log_space
from tests import seeds
from tests.kernels import adversarial
from tests.kernels.cases import CASES, INF, Case, random_chain

pytestmark = pytest.mark.usefixtures("filled_buffers")


def filtered_by_reference(case: Case) -> Tensor:
    """The filtered probabilities by the tensor code, 0 on padding."""
    with ops.backend("reference"):
        probs = ops.filter_logits(*case).exp()
    if case.lengths is None:
        return probs
    padding = torch.arange(probs.shape[-2]) >= case.lengths.unsqueeze(-1)
    return probs.masked_fill(padding.unsqueeze(-1), 0.0)


def assert_same(case: Case) -> None:
    """The E-step to the bit; the filter, and the log-likelihood alone, to rounding."""
    found, alone = ops.posterior(*case), ops.expectations(*case)
    torch.testing.assert_close(found.log_likelihood, alone.log_likelihood, rtol=0, atol=0)
    torch.testing.assert_close(found.smoothed_probs, alone.smoothed_probs, rtol=0, atol=0)
    torch.testing.assert_close(
        found.expected_transitions, alone.expected_transitions, rtol=0, atol=0
    )
    expected = filtered_by_reference(case)
    dtype = expected.dtype
    wide = Case(*(part if part is None else part.double() for part in case[:3]), case.lengths)
    if dtype != torch.float64:  # the tensor code rounds the logarithm; the sweep rounds once
        expected = filtered_by_reference(wide).to(dtype)
    close = dict(rtol=1e-11, atol=1e-15) if dtype == torch.float64 else dict(rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.filtered_probs, expected, **close)
    only = ops.filter_probs(*case)
    assert torch.equal(only.filtered_probs, found.filtered_probs)
    forward = ops.log_likelihood(*case)
    # Without the filter, the sweeps meet in the middle.
    torch.testing.assert_close(only.log_likelihood, forward, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_equals_each_by_itself(name: str) -> None:
    assert_same(CASES[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "num_steps, num_states, slices, count",
    [(1, 1, 1, 1), (63, 2, 1, 5), (40, 3, 39, 2), (50, 17, 1, 2), (9, 130, 1, 2)],
)
def test_equals_each_by_itself_at_other_sizes(
    num_steps: int, num_states: int, slices: int, count: int, dtype: torch.dtype
) -> None:
    case = random_chain(num_steps, num_states, (count,), slices, seed=5, dtype=dtype)
    generator = seeds.generator(count)
    lengths = torch.randint(1, num_steps + 1, (count,), generator=generator)
    assert_same(case)
    assert_same(case._replace(lengths=lengths))


@pytest.mark.slow
def test_adversarial_chains() -> None:
    """Chains on which mass fades and comes back; some of each kind."""
    for _, case in adversarial.batches(torch.float64):
        assert_same(Case(*(part[:3, :600] for part in case[:3])))


@pytest.mark.parametrize("rise, fall", [(121.0, -100.0), (200.0, -100.0)], ids=["weak", "strong"])
def test_a_state_that_fades_and_comes_back_between_is_filtered_again(
    rise: float, fall: float
) -> None:
    """Regime 1 is likely in the middle, by data that the rest of the sequence contradicts.

    If it is weakly so, the log-likelihood does not miss it, but the filter does.
    """
    favour = torch.tensor([-100.0] * 6 + [rise] * 5 + [fall] * 12, dtype=torch.float64)
    observation = torch.stack([torch.zeros_like(favour), favour], -1)
    apart = torch.eye(2, dtype=torch.float64).log().unsqueeze(0)
    case = Case(torch.tensor([0.5, 0.5], dtype=torch.float64).log(), apart, observation)
    assert_same(case)
    filtered = ops.posterior(*case).filtered_probs
    assert filtered[5, 0] == 1 and filtered[10, 1] > 0.99 and filtered[22, 0] == 1


@pytest.mark.parametrize("function", [ops.posterior, ops.filter_probs, ops.log_likelihood])
def test_what_fades_for_good_is_summed_once(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transitions as EM leaves them: a state fades that no later data ask for."""
    chain = random_chain(4_000, 3, seed=61)
    transition = torch.tensor([[0.9, 0.1, 1e-300], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]]).double()
    initial = torch.tensor([1.0, 1e-300, 1e-300]).double()
    case = Case(initial.log(), transition.log().unsqueeze(0), chain.observation)
    with ops.backend("reference"):
        expected = ops.log_likelihood(*case)
    assert_same(case)

    def unused(*args: Any) -> None:
        raise AssertionError("a second pass")

    monkeypatch.setattr(launch, "filter_logits", unused)
    monkeypatch.setattr(log_space, "sweep", unused)
    found = function(*case)
    value = found if isinstance(found, Tensor) else found.log_likelihood
    assert value == pytest.approx(float(expected), rel=1e-13)


def test_impossible_sequences_and_nan_stay_within_their_rows() -> None:
    """From the impossible observation on, or the NaN, and in no other sequence."""
    case = random_chain(6, 3, (4,), seed=77)
    case.observation[1, 3] = -INF
    case.observation[2, 3, 1] = math.nan
    filtered = ops.posterior(*case).filtered_probs
    rest = torch.tensor([0, 3])
    expected = filtered_by_reference(Case(*(part[rest] for part in case[:3])))
    torch.testing.assert_close(filtered[rest], expected, rtol=1e-12, atol=1e-15)
    assert (filtered[1, 3:] == 0).all() and (filtered[1, :3].sum(-1) - 1).abs().max() < 1e-12
    assert filtered[2, 3:].isnan().all() and filtered[2, :3].isfinite().all()


def gaussian(requires_grad: bool = False) -> tuple[RegimeHMM, Tensor, list[Tensor]]:
    loc = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    transition = torch.full((3, 3), 0.1, dtype=torch.float64) + 0.7 * torch.eye(3).double()
    leaves = [each.requires_grad_(requires_grad) for each in (loc, transition)]
    x = torch.randn((30, 2), generator=seeds.generator(1), dtype=torch.float64)
    observation = dist.Normal(loc, torch.ones_like(loc)).to_event(1)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    hmm = RegimeHMM(
        initial_probs=third, transition_probs=transition, observation_dist=observation
    )
    return hmm, x, leaves


def test_users_of_the_filter_make_no_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the filter's own kernel nor the E-step's, where the filter alone is asked for."""
    hmm, x, _ = gaussian()
    estimator = RegimeModel(2, n_init=1, max_iter=500, random_state=0).fit(x.numpy())
    expected = estimator.predict_proba(x.numpy(), kind="filtered")

    def unused(*args: Any) -> None:
        raise AssertionError("a second pass")

    monkeypatch.setattr(filtering, "filter_sweep", unused)
    monkeypatch.setattr(launch, "filter_logits", unused)
    posterior = hmm.posterior(x)
    assert (posterior.filtered_probs[-1] - posterior.smoothed_probs[-1]).abs().max() < 1e-12
    monkeypatch.setattr(launch, "expectations", unused)
    monkeypatch.setattr(launch, "log_likelihood", unused)
    found = estimator.predict_proba(x.numpy(), kind="filtered")
    assert (found == expected).all()

    def model(x: Tensor) -> None:
        pyro.sample("x", gaussian()[0], obs=x)

    regimes = infer_regimes(model, None, x, kind="filtered")["x"]
    assert torch.equal(regimes, posterior.filtered_probs)


def test_gradients_are_those_of_the_tensor_code() -> None:
    hmm, x, leaves = gaussian(requires_grad=True)
    weights = torch.randn((30, 3), generator=seeds.generator(2), dtype=torch.float64)
    found = []
    for name in ("cpu", "reference"):
        with ops.backend(name):
            posterior = hmm.posterior(x)
        total = sum(
            (weights * part).sum()
            for part in (posterior.filtered_probs, posterior.predicted_probs)
        )
        found.append(torch.autograd.grad(total, leaves, retain_graph=True))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
