"""Weibull observations: the solve in passes over the data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import weibull
from tests import seeds

K, N, T = 2, 3, 200
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def data(scale: Tensor, concentration: Tensor) -> Tensor:
    torch.manual_seed(seeds.seed(1))
    each = dist.Weibull(scale, concentration).sample((N, T))
    return each[:, torch.arange(T), torch.arange(T) // 10 % 2]


def model(x: Tensor, scale: Tensor, concentration: Tensor) -> None:
    given = [
        pyro.param(name, value.clone(), constraint=constraints.positive)
        for name, value in (("scale", scale), ("concentration", concentration))
    ]
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=dist.Weibull(*given)
    )
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm, obs=x)


def test_it_is_the_fit_of_scipy_where_the_states_are_known() -> None:
    """Two levels so far apart that every observation tells its state."""
    x = data(doubles(1e-3, 1e3), doubles(1.4, 7.0))
    EM(model).run(x, doubles(1e-2, 1e2), doubles(1.0, 1.0), num_steps=60, tol=None)
    for k in range(K):
        own = x[:, torch.arange(T) // 10 % 2 == k].numpy().ravel()
        shape, _, scale = scipy.stats.weibull_min.fit(own, floc=0)
        assert float(pyro.param("concentration")[k].detach()) == pytest.approx(shape, rel=1e-4)
        assert float(pyro.param("scale")[k].detach()) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("start", [1e-3, 0.1, 30.0, 100.0])
def test_a_start_far_away_is_no_nan_and_no_fall(start: float) -> None:
    x = data(doubles(1.0, 3.0), doubles(1.5, 5.0))
    em = EM(model)
    result = em.run(x, doubles(1.0, 2.0), doubles(start, start), num_steps=400, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(b <= a + 1e-9 * abs(a) for a, b in zip(history, history[1:]))


def test_near_the_maximum_a_step_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = data(doubles(1.0, 3.0), doubles(1.5, 5.0))
    EM(model).run(x, doubles(1.0, 2.0), doubles(1.0, 1.0), num_steps=200, tol=1e-9)
    passes, statistics = [], weibull.WeibullFamily.statistics

    def counted(self, *args):  # type: ignore[no-untyped-def]
        passes.append(None)
        return statistics(self, *args)

    monkeypatch.setattr(weibull.WeibullFamily, "statistics", counted)
    EM(model).run(x, doubles(1.0, 2.0), doubles(1.0, 1.0), num_steps=10, tol=None, check=False)
    assert len(passes) <= 2 * 11
