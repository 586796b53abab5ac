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
from pyro_regimes.infer.em.e_step import take_expectations
from pyro_regimes.infer.em.session import Call
from tests import seeds
from tests.infer.models import INITIAL, TRANSITION, XS, X, loc, probs, scale
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


def assert_rises(losses: Tensor) -> None:
    rise = (losses[:-1] - losses[1:]) / (1 + losses[:-1].abs())
    assert rise.min() >= -1e-9, rise.min()
    assert losses[0] - losses[-1] > 1e-3, "nothing was learned"


@table
def test_plan_and_ascent(entry: Entry) -> None:
    """The plan is the table's, the loss minus the log joint, and no step lets it rise."""
    guide = make_guide(entry)
    em = make_em(entry, guide)
    loss = float(objective(entry.model, guide).detach())
    assert em.evaluate_loss() == pytest.approx(loss, rel=1e-12)
    result = em.run(num_steps=25, tol=None)
    found = dict.fromkeys(em.plan.names, 0)
    found |= {each.name: each.num_cells for each in em.plan.assignments}
    assert found == entry.cells
    assert set(em.plan.gradient) == entry.moved
    for name in {*entry.cells, *entry.moved}:
        assert name in str(em.plan)
    assert len(result.history) == 26
    assert result.history[0] == pytest.approx(loss, rel=1e-12)
    assert result.restart_history.shape == (26, entry.restarts)
    assert_rises(torch.tensor(result.history, dtype=torch.float64))
    for restart in result.restart_history.double().unbind(-1):
        assert_rises(restart)
    loss = float(objective(entry.model, guide).detach())
    assert result.history[-1] == pytest.approx(loss, rel=1e-12)
    assert em.step() == pytest.approx(loss, rel=1e-12)
    assert em.evaluate_loss() <= loss + 1e-9 * (1 + abs(loss))


@table
def test_the_first_e_step_is_that_of_the_arguments(entry: Entry) -> None:
    """It takes the densities that were computed when the sites were read."""
    guide = make_guide(entry)
    em = make_em(entry, guide)
    with torch.no_grad():
        problem, state, _ = em._session.read(Call(entry.model, guide, (), {}))
    for name, data in problem.sites.items():
        found, expected = state.expected[name], take_expectations(data, data.arguments)
        torch.testing.assert_close(found.arguments, expected.arguments, rtol=0, atol=0)
        for ours, other in zip(found.expectations, expected.expectations, strict=True):
            torch.testing.assert_close(data.weigh(ours), data.weigh(other), rtol=1e-12, atol=1e-14)


# Where the gradient is looked at, L-BFGS has nothing to add; and it knows of no constraint that the
# store does not.
BESIDE_LBFGS = [
    entry
    for entry in ENTRIES
    if not entry.smooth and entry.name != "probs_without_a_constraint"
]


@pytest.mark.slow
@pytest.mark.parametrize("entry", BESIDE_LBFGS, ids=lambda entry: entry.name)
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


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.smooth], ids=lambda entry: entry.name
)
def test_fixed_point_is_stationary(entry: Entry) -> None:
    """Where EM stops, the gradient in every unconstrained parameter vanishes."""
    EM(entry.model).run(num_steps=3000, tol=1e-11)
    leaves = dict(pyro.get_param_store().named_parameters())
    gradients = torch.autograd.grad(objective(entry.model, None), list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient.abs().max() < 1e-4 * X.numel(), name


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
