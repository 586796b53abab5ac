"""Data, parameters of the emissions and parameters of the chain, each of a dtype of its own."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.em.e_step import take_expectations
from pyro_regimes.infer.em.session import Call
from tests.infer.models import INITIAL, TRANSITION, YS
from tests.marks import slow

F, D = torch.float32, torch.float64
Y = YS.reshape(-1, 3)
STARTS = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]).double()


class Dtypes(NamedTuple):
    data: torch.dtype
    loc: torch.dtype
    spread: torch.dtype
    chain: torch.dtype


MIXES = [
    Dtypes(D, F, F, F),
    Dtypes(F, D, D, D),
    Dtypes(F, F, F, D),
    Dtypes(F, F, D, F),
    Dtypes(F, D, F, F),
    Dtypes(D, D, F, D),
    Dtypes(D, D, D, F),
]


def emission(kind: str, form: str, dtypes: Dtypes) -> dist.TorchDistribution:
    if form == "affine":
        center, width = (pyro.param(name, torch.ones(3, dtype=dtypes.loc)) for name in "ab")
        loc = center + torch.tensor([[-2.0], [0.5]], dtype=dtypes.loc) * width
    else:
        loc = pyro.param("loc", STARTS[: 1 if form == "shared" else 2].to(dtypes.loc))
    sizes = torch.tensor([1.5, 3.0])[: 1 if form == "tied" else 2]
    start = (torch.eye(3) * sizes[:, None, None]).to(dtypes.spread)
    if kind == "scale":
        scale = start.diagonal(dim1=-2, dim2=-1).contiguous()
        scale = pyro.param("spread", scale, constraint=constraints.positive)
        return dist.Normal(loc, scale).to_event(1)
    lower = kind == "scale_tril"
    constraint = constraints.lower_cholesky if lower else constraints.positive_definite
    spread = pyro.param("spread", start, constraint=constraint)
    return dist.MultivariateNormal(loc, **{kind: spread})


def chain(dtype: torch.dtype) -> dict[str, Tensor]:
    simplex = constraints.simplex
    return {
        "initial_probs": pyro.param("initial", INITIAL.to(dtype), constraint=simplex),
        "transition_probs": pyro.param("transition", TRANSITION.to(dtype), constraint=simplex),
    }


def model(kind: str, form: str, dtypes: Dtypes, subsample: Tensor | None = None) -> None:
    hmm = RegimeHMM(observation_dist=emission(kind, form, dtypes), **chain(dtypes.chain))
    with pyro.plate("sequences", len(YS), subsample=subsample) as index:
        pyro.sample("y", hmm, obs=YS[index].to(dtypes.data))


def fit(kind: str, form: str, dtypes: Dtypes) -> list[float]:
    """A step, a whole run with its check, and minibatches."""
    losses = []
    pyro.clear_param_store()
    em = EM(model, min_eigenvalue=1e-3)
    losses.append(em.step(kind, form, dtypes))
    result = em.run(kind, form, dtypes, num_steps=300, tol=0.1)
    assert result.converged, result.stop_reason
    losses.append(result.history[-1])
    pyro.clear_param_store()
    em = EM(model)
    for index in (torch.tensor([0, 2]), torch.tensor([1, 3])):
        em.run(kind, form, dtypes, index, num_steps=2)
    losses.append(em.evaluate_loss(kind, form, dtypes))
    return losses


@pytest.mark.parametrize("form", ["free", "affine", *slow("tied", "shared")])
@pytest.mark.parametrize(
    "kind", ["covariance_matrix", "scale", *slow("scale_tril", "precision_matrix")]
)
def test_result_is_that_of_float64(kind: str, form: str) -> None:
    expected = torch.tensor(fit(kind, form, Dtypes(D, D, D, D)))
    for dtypes in MIXES:
        found = torch.tensor(fit(kind, form, dtypes))
        assert_close(found, expected, rtol=1e-4, atol=1e-3, msg=f"{dtypes}: {found}, {expected}")


def prior_model(kind: str, dtypes: Dtypes) -> None:
    start = torch.ones((), dtype=dtypes.loc)
    loc = pyro.sample("loc", dist.Normal(0 * start, 3 * start).expand([2, 3]).to_event(2))
    alpha = torch.ones(2, 2, dtype=dtypes.chain) + torch.eye(2, dtype=dtypes.chain)
    transition = pyro.sample("transition", dist.Dirichlet(alpha).to_event(1))
    one = torch.ones(2, 3, dtype=dtypes.spread)
    if kind == "precision_matrix":
        df, scale = 5 * one[:, 0], torch.diag_embed(one / 5)
        matrix = pyro.sample("spread", dist.Wishart(df, scale).to_event(1))
        observed = dist.MultivariateNormal(loc, precision_matrix=matrix)
    else:
        variance = pyro.sample("spread", dist.InverseGamma(2 * one, one).to_event(2))
        observed = dist.Normal(loc, variance.sqrt()).to_event(1)
    hmm = RegimeHMM(
        initial_probs=INITIAL.to(dtypes.chain),
        transition_probs=transition,
        observation_dist=observed,
    )
    pyro.sample("y", hmm, obs=Y.to(dtypes.data))


@pytest.mark.parametrize("kind", ["scale", "precision_matrix"])
def test_posterior_mode_is_that_of_float64(kind: str) -> None:
    def found(dtypes: Dtypes) -> Tensor:
        pyro.clear_param_store()
        spread = torch.eye(3) if kind == "precision_matrix" else torch.ones(3)
        values = {
            "loc": STARTS.to(dtypes.loc),
            "transition": TRANSITION.to(dtypes.chain),
            "spread": torch.stack([spread, spread]).to(dtypes.spread),
        }
        guide = AutoDelta(prior_model, init_loc_fn=init_to_value(values=values))
        result = EM(prior_model, guide).run(kind, dtypes, num_steps=300, tol=1e-2)
        assert result.converged, result.stop_reason
        return torch.tensor(result.history[-1])

    expected = found(Dtypes(D, D, D, D))
    for dtypes in MIXES:
        loss = found(dtypes)
        assert_close(loss, expected, rtol=1e-4, atol=1e-3, msg=f"{dtypes}: {loss}, {expected}")


@pytest.mark.parametrize("kind", ["covariance_matrix", "precision_matrix"])
def test_the_first_e_step_is_rounded_as_all_others(kind: str) -> None:
    for dtypes in (*MIXES, Dtypes(D, F, F, D)):
        pyro.clear_param_store()
        with torch.no_grad():
            call = Call(model, None, (kind, "free", dtypes), {})
            problem, state, _ = EM(model)._session.read(call)
        data = problem.sites["y"]
        expected = take_expectations(data, data.arguments).expectations
        for ours, other in zip(state.expected["y"].expectations, expected, strict=True):
            assert_close(ours, other, rtol=1e-12, atol=1e-14, msg=str(dtypes))
