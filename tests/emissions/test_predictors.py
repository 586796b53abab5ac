"""Linear predictors: Q and its derivatives, against autograd and against the densities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes.emissions import predictors
from pyro_regimes.emissions.mean_gamma import LOG_OF_MEAN
from pyro_regimes.emissions.predictors import Predictor
from pyro_regimes.emissions.statistics import Counts, Spread, Totals, Trials
from tests import seeds

NUM = 40


def draw(*shape: int, n: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(900 + n), dtype=torch.float64)


def totals() -> Totals:
    return Totals(draw(NUM, n=1).abs(), draw(NUM, n=2).abs())


def spread() -> Spread:
    return Spread(draw(NUM, n=1).abs(), draw(NUM, n=2).abs())


def trials() -> Trials:
    successes, failures = draw(NUM, n=3).abs(), draw(NUM, n=4).abs()
    return Trials(successes + failures, successes, failures)


SCALARS = [
    (predictors.LOG_OF_COUNT_RATE, totals),
    (predictors.LOG_OF_WAITING_RATE, totals),
    (LOG_OF_MEAN, totals),
    (predictors.LOG_OF_SCALE, spread),
    (predictors.LOGIT, trials),
    (predictors.LOGIT_OF_PROBS, trials),
    (predictors.PROBIT_OF_PROBS, trials),
]
ROWS = [
    (predictors.LOGITS, lambda: Counts(draw(NUM, 3, n=5).abs())),
    (predictors.LOGITS_OF_ROWS, lambda: Counts(draw(NUM, 3, n=5).abs())),
]


@pytest.mark.parametrize("predictor, statistics", SCALARS + ROWS)
def test_derivatives(predictor: Predictor, statistics: Any) -> None:
    pooled = statistics()
    eta = draw(*pooled[0].shape, n=6).requires_grad_()
    value = predictor.value(pooled, eta)
    assert value.shape == (NUM,)
    (score,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
    torch.testing.assert_close(predictor.score(pooled, eta), score, rtol=1e-10, atol=1e-10)
    size = eta[0].numel()
    matrix = draw(NUM, size, 4, n=7)
    columns = []
    for each in matrix.unbind(-1):
        (second,) = torch.autograd.grad(score, eta, each.reshape(eta.shape), retain_graph=True)
        columns.append(-second.reshape(NUM, size))
    found = predictor.times(pooled, eta.detach(), matrix)
    torch.testing.assert_close(found, torch.stack(columns, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predictor, statistics", SCALARS + ROWS)
def test_read_is_the_inverse_of_write(predictor: Predictor, statistics: Any) -> None:
    eta = draw(*statistics()[0].shape, n=8)
    if eta.dim() > 1:
        eta = eta - eta.mean(-1, keepdim=True)
    now = torch.full_like(eta, 0.3)
    torch.testing.assert_close(predictor.read(predictor.write(eta, now)), eta)


def test_values_are_those_of_densities() -> None:
    """Up to terms that do not depend on the predictor."""
    eta = draw(NUM, n=9)
    one = torch.ones(NUM).double()
    x = dist.Poisson(3 * one).sample()
    counts, waits = draw(NUM, n=10).abs(), (x > 2).double()
    cases = [
        (predictors.LOG_OF_COUNT_RATE, Totals(one, x), lambda e: dist.Poisson(e.exp()).log_prob(x)),
        (
            predictors.LOG_OF_WAITING_RATE,
            Totals(one, counts),
            lambda e: dist.Exponential(e.exp()).log_prob(counts),
        ),
        (
            predictors.LOG_OF_SCALE,
            Spread(one, counts**2),
            lambda e: dist.Normal(0.0, e.exp()).log_prob(counts),
        ),
        (
            predictors.LOGIT,
            Trials(one, waits, 1 - waits),
            lambda e: dist.Bernoulli(logits=e).log_prob(waits),
        ),
        (
            predictors.PROBIT_OF_PROBS,
            Trials(one, waits, 1 - waits),
            lambda e: dist.Bernoulli(torch.special.ndtr(e)).log_prob(waits),
        ),
    ]
    for predictor, pooled, log_prob in cases:
        change = predictor.value(pooled, eta) - predictor.value(pooled, torch.zeros_like(eta))
        torch.testing.assert_close(change, log_prob(eta) - log_prob(torch.zeros_like(eta)))


@pytest.mark.parametrize("predictor, statistics", SCALARS)
@pytest.mark.parametrize("size", [-800.0, -30.0, 30.0, 800.0])
def test_far_away_and_without_weight(
    predictor: Predictor, statistics: Any, size: float
) -> None:
    """Nothing is NaN, and what has no weight counts as 0."""
    pooled = statistics()
    nothing = type(pooled)(*(torch.zeros_like(part) for part in pooled))
    eta, matrix = torch.full((NUM,), size).double(), torch.ones(NUM, 1, 1).double()
    assert not predictor.value(pooled, eta).isnan().any()
    for found in (
        predictor.value(nothing, eta),
        predictor.score(nothing, eta),
        predictor.times(nothing, eta, matrix),
    ):
        assert (found == 0).all()


def test_zeros_of_rows_stay() -> None:
    probs = torch.tensor([[0.2, 0.0, 0.8], [1.0, 0.0, 0.0]]).double()
    for predictor, now in (
        (predictors.LOGITS_OF_ROWS, probs),
        (predictors.LOGITS, probs.log()),
    ):
        eta = predictor.read(now)
        assert torch.equal(eta == -torch.inf, probs == 0)
        pooled = Counts(torch.tensor([[2.0, 0.0, 3.0], [4.0, 0.0, 0.0]]).double())
        moved = eta + torch.tensor([0.5, 0.0, -0.5])
        raised = predictor.write(moved, now)
        assert torch.equal(predictor.read(raised) == -torch.inf, probs == 0)
        expected = (pooled.counts[0, 0] * 0.5).log_softmax(-1)
        assert expected.isfinite()
        assert predictor.value(pooled, moved).isfinite().all()
        assert predictor.value(pooled, moved)[1] == 0
        assert predictor.score(pooled, moved)[1].eq(0).all()
