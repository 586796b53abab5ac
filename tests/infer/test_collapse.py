"""Spreads that collapse: whatever happens, the store, the history and the model agree.

Every way to hold a spread, on data on which the likelihood has no maximum or is all but singular.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, EMResult, RegimeHMM
from tests import seeds

K, D, T = 2, 3, 60
MVN = dist.MultivariateNormal


class Spread(NamedTuple):
    """How a model holds the spread of its observations."""

    constraint: constraints.Constraint
    start: Callable[[Tensor], Tensor]  #: of covariances ``(K, D, D)``
    build: Callable[[Tensor, Tensor], dist.Distribution]  #: of the location and the parameter


def factor(covariance: Tensor) -> Tensor:
    return torch.linalg.cholesky(covariance)


def deviation(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).sqrt().clone()


def normal(loc: Tensor, scale: Tensor) -> dist.Distribution:
    return dist.Normal(loc, scale).to_event(1)


DEFINITE, LOWER = constraints.positive_definite, constraints.lower_cholesky
POSITIVE, REAL = constraints.positive, constraints.real
SPREADS = {
    "covariance": Spread(DEFINITE, lambda c: c, lambda m, p: MVN(m, p)),
    "covariance, tied": Spread(DEFINITE, lambda c: c[0], lambda m, p: MVN(m, p)),
    "covariance, unconstrained": Spread(REAL, lambda c: c, lambda m, p: MVN(m, p)),
    "factor": Spread(LOWER, factor, lambda m, p: MVN(m, scale_tril=p)),
    "precision": Spread(DEFINITE, torch.inverse, lambda m, p: MVN(m, precision_matrix=p)),
    "covariance from factor": Spread(LOWER, factor, lambda m, p: MVN(m, p @ p.mT)),
    "covariance from precision": Spread(
        DEFINITE, torch.inverse, lambda m, p: MVN(m, torch.linalg.inv(p))
    ),
    "factor from covariance": Spread(
        DEFINITE, lambda c: c, lambda m, p: MVN(m, scale_tril=torch.linalg.cholesky(p))
    ),
    "factor from precision": Spread(
        DEFINITE,
        torch.inverse,
        lambda m, p: MVN(m, scale_tril=torch.linalg.cholesky(torch.linalg.inv(p))),
    ),
    "precision from covariance": Spread(
        DEFINITE, lambda c: c, lambda m, p: MVN(m, precision_matrix=torch.linalg.inv(p))
    ),
    "precision from factor": Spread(
        LOWER, factor, lambda m, p: MVN(m, precision_matrix=torch.cholesky_inverse(p))
    ),
    "scale": Spread(POSITIVE, deviation, normal),
    "scale, softplus": Spread(dist.constraints.softplus_positive, deviation, normal),
    "variance": Spread(POSITIVE, lambda c: deviation(c) ** 2, lambda m, p: normal(m, p.sqrt())),
    "precision of series": Spread(
        POSITIVE, lambda c: deviation(c) ** -2, lambda m, p: normal(m, p.rsqrt())
    ),
    "log scale": Spread(REAL, lambda c: deviation(c).log(), lambda m, p: normal(m, p.exp())),
    "log variance": Spread(
        REAL, lambda c: 2 * deviation(c).log(), lambda m, p: normal(m, (p / 2).exp())
    ),
    "log precision": Spread(
        REAL, lambda c: -2 * deviation(c).log(), lambda m, p: normal(m, (-p / 2).exp())
    ),
}


def clusters(random: np.random.RandomState) -> np.ndarray:
    """As many distinct points as states."""
    return random.randn(K, D)[random.randint(K, size=T)]


def more_points(random: np.random.RandomState) -> np.ndarray:
    return random.randn(K + 1, D)[random.randint(K + 1, size=T)]


def collinear(random: np.random.RandomState) -> np.ndarray:
    x = random.randn(T, D) * (1 + 2 * (np.arange(T) // 20 % 2))[:, None]
    x[:, 2] = x[:, 0] - x[:, 1] + 10.0 ** -random.randint(2, 9) * x[:, 2]
    return x


def outlier(random: np.random.RandomState) -> np.ndarray:
    x = random.randn(T, D)
    x[7] += 50.0
    return x


def prices(random: np.random.RandomState) -> np.ndarray:
    """Far from 0, with a regime that does not move."""
    x = 1e4 + np.cumsum(random.randn(T, D), 0)
    x[20:30] = x[20]
    return x


DATA = (clusters, more_points, collinear, outlier, prices)


def model_of(spread: Spread, x: Tensor, random: np.random.RandomState) -> Callable[[], None]:
    """Started at some of the data."""
    loc = x[torch.tensor(random.choice(T, K))] + 0.1 * torch.tensor(random.randn(K, D)).to(x)
    start = spread.start(torch.eye(D).to(x).expand(K, D, D).contiguous())
    rows = (0.5 * torch.eye(K) + 0.5 / K).to(x)

    def model() -> None:
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", rows.mean(0), constraint=constraints.simplex),
            transition_probs=pyro.param("transition", rows, constraint=constraints.simplex),
            observation_dist=spread.build(
                pyro.param("loc", loc),
                pyro.param("spread", start.clone(), constraint=spread.constraint),
            ),
        )
        pyro.sample("x", hmm, obs=x)

    return model


def share_of_rounding(dtype: torch.dtype) -> float:
    """By how much a loss may be off, in units of 1 + itself."""
    return max(64 * torch.finfo(dtype).eps, 1e-12)


def check(em: EM, result: EMResult, model: Callable[[], None], dtype: torch.dtype) -> None:
    """The history is monotone, and ends with the loss of the model at the store."""
    history = np.array(result.history)
    rounding = share_of_rounding(dtype) * (1 + abs(history).max())
    assert np.isfinite(history).all()
    assert np.diff(history).max(initial=0.0) <= rounding
    with torch.no_grad():
        own = -float(poutine.trace(model).get_trace().log_prob_sum())
    assert own == pytest.approx(history[-1], rel=0, abs=rounding)
    assert em.evaluate_loss() == pytest.approx(history[-1], rel=0, abs=rounding)
    assert result.restart_history.sum(-1).tolist() == pytest.approx(result.history, rel=1e-12)


def fit(name: str, data: Callable, floor: float, dtype: torch.dtype, seed: int) -> None:
    random = np.random.RandomState(seed)
    x = torch.tensor(data(random)).to(dtype)
    model = model_of(SPREADS[name], x, random)
    pyro.clear_param_store()
    em = EM(model, min_eigenvalue=floor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        check(em, em.run(num_steps=60, tol=None), model, dtype)
        check(em, em.run(num_steps=5, tol=1e-3), model, dtype)  # from there
        for _ in range(2):
            loss = em.step()
            assert np.isfinite(loss)
            assert em.evaluate_loss() <= loss + share_of_rounding(dtype) * (1 + abs(loss))


WAYS = list(itertools.product((0.0, 1e-4), (torch.float64, torch.float32)))
#: Every spread on all data, with one floor and dtype in turn: all 360 take minutes. The quick ones
#: are two data sets for each spread, in turn.
CASES = [
    pytest.param(
        name,
        data,
        *WAYS[(row + column) % 4],
        id=f"{name} on {data.__name__}",
        marks=[] if (row + column) % 5 in (0, 2) else pytest.mark.slow,
    )
    for row, name in enumerate(SPREADS)
    for column, data in enumerate(DATA)
]


@pytest.mark.parametrize("name, data, floor, dtype", CASES)
def test_after_a_collapse_all_agree(name, data, floor, dtype) -> None:
    fit(name, data, floor, dtype, seed=0)


@pytest.mark.parametrize("seed", range(8))
def test_rolled_back_to_the_last_digit(seed) -> None:
    """A covariance near singularity, as the store has it: its values alone would lose digits."""
    random = seeds.rng(seed)
    x = torch.tensor(random.randn(T, D))
    x[:, 2] = x[:, 0] - x[:, 1] + 1e-5 * x[:, 2]
    centred = x - x.mean(0)
    drift = {"now": 0.0, "then": 0.0}

    def model() -> None:
        covariance = pyro.param("covariance", centred.mT @ centred / T, constraint=DEFINITE)
        hmm = RegimeHMM(
            initial_probs=torch.ones(1).double(),
            transition_probs=torch.ones(1, 1).double(),
            observation_dist=MVN(pyro.param("loc", torch.zeros(1, D).double()), covariance),
        )
        pyro.sample("x", hmm, obs=x + drift["now"])
        drift["now"] = drift["then"]  # from the second run on

    em = EM(model)
    em.step()
    before, loss = snapshot(), em.evaluate_loss()
    drift["then"] = 0.01
    with pytest.warns(RuntimeWarning, match="rolled back"):
        em.step()
    drift.update(now=0.0, then=0.0)
    for name, value in snapshot().items():
        assert torch.equal(value, before[name]), name
    assert em.evaluate_loss() == loss


def snapshot() -> dict[str, Tensor]:
    named = pyro.get_param_store().named_parameters()
    return {name: leaf.detach().clone() for name, leaf in named}
