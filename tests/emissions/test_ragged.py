"""Families whose E-step has more than the states, on padded sequences and masked observations."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer import tracing
from tests import seeds

N, T, K, D, M = 4, 60, 2, 2, 2
LOC = torch.tensor([[0.0, 0.0], [3.0, 3.0]]).double()
LENGTHS = torch.tensor([60, 40, 25, 50])
OBSERVED = torch.arange(T) % 7 != 3


def positive(name: str, *shape: int, value: float = 1.0) -> Tensor:
    start = torch.full(shape, value).double()
    return pyro.param(name, start, constraint=constraints.positive)


def student_t() -> dist.Distribution:
    df = positive("df", K, 1, value=5.0)
    return dist.StudentT(df, pyro.param("loc", LOC), positive("scale", K, D)).to_event(1)


def multivariate_student_t() -> dist.Distribution:
    factor = pyro.param(
        "factor", torch.eye(D).double().repeat(K, 1, 1), constraint=constraints.lower_cholesky
    )
    return dist.MultivariateStudentT(positive("df", K, value=5.0), pyro.param("loc", LOC), factor)


def mixture() -> dist.Distribution:
    apart = torch.tensor([-0.4, 0.4]).double().unsqueeze(-1)
    loc = pyro.param("loc", LOC.unsqueeze(1) + apart)
    weights = torch.full((K, M), 1 / M).double()
    weights = pyro.param("weights", weights, constraint=constraints.simplex)
    parts = dist.Normal(loc, positive("scale", K, M, D)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(weights), parts)


def factor_analysis() -> dist.Distribution:
    factor = pyro.param("factor", torch.full((K, D, 1), 0.5).double())
    return dist.LowRankMultivariateNormal(pyro.param("loc", LOC), factor, positive("noise", K, D))


FAMILIES = [student_t, multivariate_student_t, mixture, factor_analysis]


def data() -> Tensor:
    draws = torch.randn(N, T, D, generator=seeds.generator(0), dtype=torch.float64)
    return draws + 3 * (torch.arange(T) // 10 % 2).unsqueeze(-1)


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("masked", [False, True])
def test_padding_and_masks(build: Callable[[], dist.Distribution], masked: bool) -> None:
    """What lies behind them does not matter: NaN here, and numbers in a second fit."""
    x = data()
    hidden = torch.arange(T) >= LENGTHS.unsqueeze(-1)

    def model(x: Tensor) -> None:
        each = build()
        if masked:
            each = each.expand([T, K]).mask(OBSERVED.unsqueeze(-1))
        each = RegimeHMM(
            initial_probs=torch.full((K,), 0.5).double(),
            transition_probs=torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double(),
            observation_dist=each,
            lengths=LENGTHS,
        )
        with pyro.plate("sequences", N):
            pyro.sample("x", each, obs=x)

    em = EM(model, min_eigenvalue=1e-2)
    result = em.run(x.masked_fill(hidden.unsqueeze(-1), torch.nan), num_steps=1000, tol=1e-6)
    assert result.converged and not result.unconfirmed and not em.plan.gradient
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    names = [each.name for each in em.plan.assignments]
    found = {name: pyro.param(name).detach() for name in names}
    assert not tracing.run_model(model, (x,), {}).sites["x"].varies  # a mask alone may

    pyro.clear_param_store()
    x = x.masked_fill(hidden.unsqueeze(-1), 1e3)
    if masked:
        x = x.masked_fill(~OBSERVED.unsqueeze(-1), -1e3)
    EM(model, min_eigenvalue=1e-2).run(x, num_steps=len(history) - 1, tol=None)
    for name in names:
        assert_close(pyro.param(name).detach(), found[name], rtol=1e-6, atol=1e-8)
