"""EM over chains that start from their stationary distribution."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, stationary_probs
from pyro_regimes.chain.stationary import STATIONARY_PROBS, StationaryCounts
from tests import seeds
from tests.infer.models import LEFT_TO_RIGHT, LOC, SCALE, TRANSITION, XS, X, probs, real

STATIONARY = "a stationary start"


def rows(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.rand(shape, generator=seeds.generator(seed), dtype=torch.float64) ** 2
    return drawn / drawn.sum(-1, keepdim=True)


def observe(x: Tensor, matrix: Tensor, loc: Tensor, initial: Tensor | None = None) -> None:
    initial = stationary_probs(matrix) if initial is None else initial
    hmm = RegimeHMM(
        initial_probs=initial,
        transition_probs=matrix,
        observation_dist=dist.Normal(loc, SCALE[0]),
    )
    with pyro.plate("sequences", len(x)) if x.dim() > 1 else pyro.plate("one", 1):
        pyro.sample("x", hmm, obs=x)


def model(x: Tensor) -> None:
    observe(x, probs("matrix", TRANSITION), real("loc", LOC))


# ---- recognition -------------------------------------------------------------------------------


def by_logits(x: Tensor) -> None:
    logits = real("matrix", TRANSITION.log() + 0.3)
    hmm = RegimeHMM(
        initial_logits=stationary_probs(logits.softmax(-1)).log(),
        transition_logits=logits,
        observation_dist=dist.Normal(real("loc", LOC), 1.0),
    )
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm, obs=x)


def by_a_solve(x: Tensor) -> None:
    """As a user may have written it."""
    matrix = probs("matrix", TRANSITION)
    eye = torch.eye(2).double()
    initial = torch.linalg.solve((eye - matrix + 1).mT, torch.ones(2).double())
    observe(x, matrix, real("loc", LOC), initial)


@pytest.mark.parametrize("given", [model, by_logits, by_a_solve])
def test_it_is_recognised_and_climbs(given):
    pyro.clear_param_store()
    em = EM(given)
    result = em.run(XS, num_steps=30, tol=None)
    assert STATIONARY in str(em.plan) and "loc" in str(em.plan)
    losses = result.restart_history.flatten()
    assert (losses.diff() <= 1e-9).all() and losses[-1] < losses[0] - 0.1


def test_what_only_looks_stationary_is_not_taken_for_it():
    """At a symmetric matrix the uniform distribution is the stationary one."""

    def constant(x: Tensor) -> None:
        matrix = probs("matrix", torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        observe(x, matrix, real("loc", LOC), torch.tensor([0.5, 0.5]).double())

    def after_one_step(x: Tensor) -> None:
        matrix = probs("matrix", torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        observe(x, matrix, real("loc", LOC), torch.tensor([0.5, 0.5]).double() @ matrix)

    pyro.clear_param_store()
    em = EM(constant)
    em.run(XS, num_steps=2, tol=None)
    assert STATIONARY not in str(em.plan) and "row sums" in str(em.plan)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="different updates, x.initial_probs and x.transition"):
        EM(after_one_step).run(XS, num_steps=2)


def test_the_plan_can_be_pickled():
    pyro.clear_param_store()
    em = EM(model)
    em.run(XS, num_steps=1, tol=None)
    again = pickle.loads(pickle.dumps(em.plan))
    assert str(again) == str(em.plan)
    assert again.assignments[0].argument is STATIONARY_PROBS


# ---- the M-step --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("steps, sequences", [(2, 50), (12, 20), (1000, 1), (3, 1)])
def test_the_maximiser_against_a_numerical_one(size, steps, sequences):
    transitions = rows(1, size, size, seed=1) * rows(1, size, size, seed=2)
    transitions = transitions * sequences * (steps - 1) / transitions.sum()
    pooled = StationaryCounts(transitions, sequences * rows(1, size, seed=3))
    old = rows(1, size, size, seed=4)

    def q(matrix: Tensor) -> Tensor:
        initial = stationary_probs(matrix)
        return (pooled.transitions * matrix.log()).sum() + (pooled.initial * initial.log()).sum()

    found = STATIONARY_PROBS.maximise(pooled, old, 0.0)
    assert q(found) >= q(old)
    logits = found.log().requires_grad_()
    (gradient,) = torch.autograd.grad(q(logits.softmax(-1)), logits)
    assert gradient.abs().max() < 1e-5 * sequences * steps
    best = max(
        float(_climbed(q, rows(1, size, size, seed=5 + seed).log())) for seed in range(3)
    )
    assert q(found) >= best - 1e-7 * abs(best)


def _climbed(q, logits: Tensor) -> Tensor:
    logits.requires_grad_()
    optim = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optim.zero_grad()
        loss = -q(logits.softmax(-1))
        loss.backward()
        return loss

    optim.step(closure)
    return q(logits.softmax(-1)).detach()


def test_zeros_and_rows_that_are_never_left_stay():
    old = LEFT_TO_RIGHT.unsqueeze(0)
    counts = torch.tensor([[[5.0, 2, 0], [0, 4, 1], [0, 0, 0]]]).double()
    found = STATIONARY_PROBS.maximise(
        StationaryCounts(counts, torch.tensor([[0.4, 0.6, 0.0]]).double()), old, 0.0
    )
    assert torch.equal(found == 0, old == 0) and torch.equal(found[0, 2], old[0, 2])
    assert not found.isnan().any()


def test_sequences_of_one_step_say_where_they_start():
    old = rows(1, 3, 3, seed=1)
    counts = torch.tensor([[10.0, 1.0, 5.0]]).double()
    found = STATIONARY_PROBS.maximise(
        StationaryCounts(torch.zeros(1, 3, 3).double(), counts), old, 0.0
    )
    assert_close(stationary_probs(found), counts / 16, rtol=1e-5, atol=0)


# ---- whole fits --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_em_ends_where_gradients_end(seed):
    """On ten simulated sets of short sequences, in which the start counts; and never falls."""
    size = 2 + seed % 2
    matrix = 0.4 * torch.eye(size).double() + 0.3 / size + 0.3 * rows(size, size, seed=seed)
    loc = 2.5 * torch.arange(size).double()
    hmm = RegimeHMM(
        initial_probs=stationary_probs(matrix), transition_probs=matrix,
        observation_dist=dist.Normal(loc, 1.0), duration=8,
    )  # fmt: skip
    torch.manual_seed(seeds.seed(seed))
    x = hmm.sample((150,))

    def simulated(x: Tensor) -> None:
        observe(x, probs("matrix", matrix), real("loc", loc + 0.3))

    pyro.clear_param_store()
    result = EM(simulated).run(x, num_steps=2000, tol=1e-11, acceleration="squarem")
    losses = result.restart_history.flatten()
    assert (losses.diff() <= 1e-9 * losses[0]).all() and result.converged

    def likelihood(theta: Tensor) -> Tensor:
        matrix = theta[: size**2].reshape(size, size).softmax(-1)
        return RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix,
            observation_dist=dist.Normal(theta[size**2 :], SCALE[0]),
        ).log_prob(x).sum()  # fmt: skip

    # From near the end of EM, as there may be several maxima.
    found = pyro.param("matrix").detach().clamp(min=1e-9).log().flatten()
    start = torch.cat([found, pyro.param("loc").detach()])
    start = (start + 0.02 * torch.randn(len(start))).requires_grad_()

    def closure() -> Tensor:
        start.grad = None
        loss = -likelihood(start)
        loss.backward()
        return loss.detach()

    for _ in range(5):  # near a probability of 0 it forgets too slowly what it has learned
        torch.optim.LBFGS(
            [start], max_iter=300, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        ).step(closure)  # fmt: skip
    best = float(closure())
    assert abs(float(losses[-1]) - best) < 1e-8 * abs(best)


def test_restarts_do_not_depend_on_their_neighbours():
    starts = 0.5 * torch.eye(2).double() + 0.5 * rows(3, 2, 2, seed=9)

    def restarts(x: Tensor, which: Tensor) -> None:
        matrix = probs("matrix", starts[which].unsqueeze(-3))
        loc = real("loc", LOC.expand(len(which), 1, 2))
        hmm = RegimeHMM(
            initial_probs=stationary_probs(matrix.squeeze(-3)), transition_probs=matrix,
            observation_dist=dist.Normal(loc, 1.0),
        )  # fmt: skip
        with pyro.plate("starts", len(which)):
            pyro.sample("x", hmm, obs=x)

    histories = []
    for which in ([0, 1, 2], [0], [1], [2]):
        pyro.clear_param_store()
        em = EM(restarts)
        histories.append(em.run(X, torch.tensor(which), num_steps=5, tol=None).restart_history)
    assert_close(histories[0], torch.cat(histories[1:], -1), rtol=1e-13, atol=1e-12)


def test_a_dirichlet_prior_and_float32():
    def with_prior(x: Tensor) -> None:
        alpha = torch.tensor([[5.0, 2.0], [2.0, 4.0]]).to(x)
        matrix = pyro.sample("matrix", dist.Dirichlet(alpha).to_event(1))
        loc = pyro.param("loc", LOC.clone())
        observe(x, matrix, loc)

    pyro.clear_param_store()
    guide = AutoDelta(pyro.poutine.block(with_prior, expose=["matrix"]))
    em = EM(with_prior, guide)
    result = em.run(XS, num_steps=200, tol=1e-9)
    assert STATIONARY in str(em.plan) and "Dirichlet prior" in str(em.plan)
    assert result.converged
    pyro.clear_param_store()

    def single(x: Tensor) -> None:
        matrix = pyro.param("matrix", TRANSITION.float(), constraint=constraints.simplex)
        hmm = RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix,
            observation_dist=dist.Normal(pyro.param("loc", LOC.float()), 1.0),
        )  # fmt: skip
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    em = EM(single)
    result = em.run(XS.float(), num_steps=20, tol=None)
    assert STATIONARY in str(em.plan)
    assert (result.restart_history.flatten().diff() < 1e-3).all()


def test_a_chain_without_one_stationary_law_is_named():
    def reducible(x: Tensor) -> None:
        observe(x, probs("matrix", torch.eye(2)), real("loc", LOC))

    pyro.clear_param_store()
    with pytest.raises(ValueError, match="transition_probs with one stationary distribution"):
        EM(reducible).run(XS, num_steps=2)


# ---- products of probabilities -----------------------------------------------------------------


def hamiltons(p: Tensor, q: Tensor) -> Tensor:
    return torch.stack([torch.stack([p, 1 - p], -1), torch.stack([1 - q, q], -1)], -2)


def unit(name: str, start: Tensor | float) -> Tensor:
    start = torch.as_tensor(start).double()
    return pyro.param(name, start, constraint=constraints.unit_interval)


def hamilton(x: Tensor) -> None:
    """Hamilton's model: the start is the stationary distribution of p and q."""
    observe(x, hamiltons(unit("p", 0.7), unit("q", 0.6)), real("loc", LOC))


@pytest.mark.parametrize("seed", range(10))
def test_hamiltons_p_and_q_end_where_gradients_end(seed):
    """On ten simulated sets of short sequences, in which the start counts; and never fall."""
    p, q = 0.5 + 0.45 * torch.rand(2, generator=seeds.generator(seed), dtype=torch.float64)
    matrix = hamiltons(p, q)
    hmm = RegimeHMM(
        initial_probs=stationary_probs(matrix), transition_probs=matrix,
        observation_dist=dist.Normal(torch.tensor([-1.5, 1.5]).double(), 1.0), duration=6,
    )  # fmt: skip
    torch.manual_seed(seeds.seed(seed))
    x = hmm.sample((150,))
    pyro.clear_param_store()
    em = EM(hamilton)
    result = em.run(x, num_steps=2000, tol=1e-11, acceleration="squarem")
    assert set(em.plan.names) == {"p", "q", "loc"} and not em.plan.gradient
    losses = result.restart_history.flatten()
    assert (losses.diff() <= 1e-9 * losses[0]).all()
    assert result.converged and not result.unconfirmed

    def likelihood(theta: Tensor) -> Tensor:
        matrix = hamiltons(*theta[:2].sigmoid())
        return RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix,
            observation_dist=dist.Normal(theta[2:], SCALE[0]),
        ).log_prob(x).sum()  # fmt: skip

    found = torch.stack([pyro.param(name).detach().logit() for name in ("p", "q")])
    start = torch.cat([found, pyro.param("loc").detach()])
    start = (start + 0.1 * torch.randn(4)).requires_grad_()

    def closure() -> Tensor:
        start.grad = None
        loss = -likelihood(start)
        loss.backward()
        return loss.detach()

    torch.optim.LBFGS(
        [start], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    ).step(closure)  # fmt: skip
    best = float(closure())
    assert abs(float(losses[-1]) - best) < 1e-8 * abs(best)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_m_step_of_p_and_q_is_the_numerical_maximum(steps):
    """Given the expected counts; a sequence of one step has none but that of its start."""
    x = XS[:, :steps]
    with torch.no_grad():
        matrix = hamiltons(*torch.tensor([0.7, 0.6]).double())
        old = RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix,
            observation_dist=dist.Normal(LOC, SCALE[0]),
        ).posterior(x)  # fmt: skip
        counts, first = old.expected_transitions.sum(0), old.smoothed_probs[:, 0].sum(0)
    pyro.clear_param_store()
    EM(hamilton).step(x)

    def q(p: Tensor, q: Tensor) -> Tensor:
        matrix = hamiltons(p, q)
        initial = stationary_probs(matrix)
        return (counts * matrix.log()).sum() + (first * initial.log()).sum()

    found = [pyro.param(name).detach().requires_grad_() for name in ("p", "q")]
    for each, slope in zip(found, torch.autograd.grad(q(*found), found), strict=True):
        assert abs(slope * each * (1 - each)) < 1e-5 * len(x)


def test_restarts_and_a_prior_of_p_and_q():
    starts = torch.tensor([0.9, 0.2, 0.6]).double()

    def restarts(which: Tensor) -> None:
        p = unit("p", starts[which])
        matrix = hamiltons(p, 1 - 0.5 * torch.ones_like(p))
        hmm = RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix.unsqueeze(-3),
            observation_dist=dist.Normal(LOC, 1.0),
        )  # fmt: skip
        with pyro.plate("starts", len(which)):
            pyro.sample("x", hmm, obs=X.expand(len(which), -1))

    values = []
    for which in ([0, 1, 2], [0], [1], [2]):
        pyro.clear_param_store()
        em = EM(restarts)
        em.run(torch.tensor(which), num_steps=5, tol=None)
        assert em.plan.names == ["p"]
        values.append(pyro.param("p").detach())
    assert torch.equal(values[0], torch.cat(values[1:]))

    def with_prior(x: Tensor) -> None:
        p, q = (
            pyro.sample(name, dist.Beta(torch.tensor(8.0).double(), 3.0)) for name in ("p", "q")
        )
        observe(x, hamiltons(p, q), real("loc", LOC))

    pyro.clear_param_store()
    em = EM(with_prior, AutoDelta(pyro.poutine.block(with_prior, expose=["p", "q"])))
    result = em.run(XS, num_steps=500, tol=1e-10)
    assert "Beta prior" in str(em.plan) and result.converged and not result.unconfirmed
    assert (result.restart_history.flatten().diff() <= 1e-9).all()


def test_a_row_that_hides_a_dependence_is_refused():
    """No derivative shows it, and the other row does not change with it."""

    def hidden(x: Tensor) -> None:
        p, q = unit("p", 0.7), unit("q", 0.6)
        observe(x, hamiltons(p, q.detach()), real("loc", LOC))

    pyro.clear_param_store()
    with pytest.raises(ValueError, match="\n  p: |\n  q: "):
        EM(hidden).step(XS)


def test_p_and_q_in_float32_and_the_plan_is_pickled():
    def single(x: Tensor) -> None:
        p, q = (
            pyro.param(name, torch.tensor(0.7), constraint=constraints.unit_interval)
            for name in ("p", "q")
        )
        matrix = hamiltons(p, q)
        hmm = RegimeHMM(
            initial_probs=stationary_probs(matrix), transition_probs=matrix,
            observation_dist=dist.Normal(pyro.param("loc", LOC.float()), 1.0),
        )  # fmt: skip
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    em = EM(single)
    result = em.run(XS.float(), num_steps=20, tol=None)
    assert set(em.plan.names) == {"p", "q", "loc"}
    assert (result.restart_history.flatten().diff() < 1e-3).all()
    assert str(pickle.loads(pickle.dumps(em.plan))) == str(em.plan)
