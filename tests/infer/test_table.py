"""One table of models: the plan that EM chooses, its ascent, and where it ends beside L-BFGS."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests import seeds
from tests.infer.models import INITIAL, TRANSITION, XS, loc, probs, scale
from tests.infer.table import ENTRIES, Entry, Model, make_guide

table = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def make_em(entry: Entry, guide: Model | None, momentum: float = 0.0) -> EM:
    optim = pyro.optim.SGD({"lr": 0.004, "momentum": momentum}) if entry.moved else None
    return EM(entry.model, guide, optim)


def objective(model: Model, guide: Model | None) -> Tensor:
    """Minus the log joint at the guide's point, differentiable in the store's tensors."""
    if guide is not None:
        model = poutine.replay(model, trace=poutine.trace(guide).get_trace())
    return -poutine.trace(model).get_trace().log_prob_sum()


def run_lbfgs(loss: Callable[[], Tensor]) -> float:
    """Minimise over every parameter of the store; the value at the end."""
    leaves = list(dict(pyro.get_param_store().named_parameters()).values())
    optim = torch.optim.LBFGS(
        leaves, max_iter=500, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optim.zero_grad()
        value = loss()
        value.backward()
        return value

    optim.step(closure)
    for leaf in leaves:
        leaf.grad = None
    return float(loss().detach())


@table
def test_plan_and_ascent(entry: Entry) -> None:
    em = make_em(entry, make_guide(entry))
    history = torch.tensor(em.run(num_steps=50, tol=None).history, dtype=torch.float64)
    assert set(em.plan.names) == entry.closed
    assert set(em.plan.gradient) == entry.moved
    for name in entry.closed | entry.moved:
        assert name in str(em.plan)
    rise = (history[:-1] - history[1:]) / (1 + history[:-1].abs())
    assert rise.min() >= -1e-9, rise.min()
    assert history[0] - history[-1] > 1e-3


@pytest.mark.slow
@table
def test_ends_where_lbfgs_does(entry: Entry) -> None:
    """Neither gains from where the other ended: two searches may end in two modes."""
    guide = make_guide(entry)
    em = make_em(entry, guide, momentum=0.9)
    em.run(num_steps=3000 if not entry.moved else 800, tol=1e-10)
    ours = em.evaluate_loss()
    theirs = run_lbfgs(lambda: objective(entry.model, guide))
    assert ours - theirs < 1e-6 * abs(theirs)
    em.run(num_steps=5, tol=None)
    assert theirs - em.evaluate_loss() < 1e-6 * abs(theirs)


@table
def test_the_loss_is_minus_the_log_joint(entry: Entry) -> None:
    guide = make_guide(entry)
    em = make_em(entry, guide)
    loss = em.evaluate_loss()
    assert loss == pytest.approx(float(objective(entry.model, guide).detach()), rel=1e-12)
    assert em.step() == pytest.approx(loss, rel=1e-12)
    assert em.evaluate_loss() < loss


def subsampled(batch: int | None) -> Model:
    def model() -> None:
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=probs("transition", TRANSITION),
            observation_dist=dist.Normal(loc(), scale()),
        )
        with pyro.plate("sequences", 4, subsample_size=batch) as index:
            pyro.sample("x", hmm, obs=XS if batch is None else XS[index])

    return model


@pytest.mark.slow
def test_subsampled_ends_near_lbfgs() -> None:
    """Half of the sequences at a time. The average of the last statistics, with steps of n^-0.6,
    still moves by about n^-0.3 of one batch's spread: 0.2 nats bound what that costs, of some 200.
    """
    torch.manual_seed(seeds.seed(0))
    em = EM(subsampled(2))
    em.run(num_steps=400)
    assert set(em.plan.names) == {"transition", "loc", "scale"} and em.plan.is_subsampled
    whole = subsampled(None)
    ours = float(objective(whole, None).detach())
    theirs = run_lbfgs(lambda: objective(whole, None))
    assert 0 <= ours - theirs < 0.2
    again = EM(whole)
    again.run(num_steps=5, tol=None)
    assert theirs - again.evaluate_loss() < 1e-6 * abs(theirs)
