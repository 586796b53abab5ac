"""Probabilities that are products of parameters: what is recognised, and the M-step."""

from __future__ import annotations

import pickle
from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.chain.shares import PROBABILITY
from tests import seeds
from tests.infer.models import INITIAL, LOC, SCALE, XS, X, probs, real
from tests.infer.written import hamiltons, rows, tensor, unit

RATIO = "ratio of pooled counts"


def observe(
    transition: Tensor, initial: Tensor = INITIAL, obs: Tensor = X, loc: Tensor = LOC
) -> None:
    normal = dist.Normal(loc.to(obs), SCALE.to(obs))
    hmm = RegimeHMM(
        initial_probs=initial.to(obs), transition_probs=transition, observation_dist=normal
    )
    pyro.sample("x", hmm, obs=obs)


# ---- what is no product ------------------------------------------------------------------------


def a_product_and_its_complement() -> None:
    p, q = unit("p", 0.9), unit("q", 0.8)
    observe(hamiltons(p * q, q))


def clamped() -> None:
    p = unit("p", 0.9).clamp(0.05, 0.95)
    observe(hamiltons(p, p))


def sharpened() -> None:
    """The identity to first order at the start."""
    p = unit("p", 0.5)
    p = p + (p - 0.5) ** 3
    observe(hamiltons(p, p))


def half_detached() -> None:
    p = unit("p", 0.9)
    observe(rows((p, 1 - p.detach()), (1 - p, p)))


def a_ratio() -> None:
    p, q = unit("p", 0.3), unit("q", 0.2)
    observe(hamiltons(p / (p + q), q))


def a_detached_factor() -> None:
    """Its value shows what its derivative hides."""
    p, q = unit("p", 0.9), unit("q", 0.8)
    detached = torch.stack([q * (1 - p), (1 - q) * (1 - p)]).detach()
    kept = torch.stack([p]).expand(1)
    row = torch.cat([kept, detached])
    observe3(torch.stack([row, row.roll(1), row.roll(2)]))


def observe3(transition: Tensor) -> None:
    loc, third = tensor(-1.0, 0.0, 1.0), torch.full((3,), 1 / 3).double()
    hmm = RegimeHMM(
        initial_probs=third, transition_probs=transition, observation_dist=dist.Normal(loc, 1.0)
    )
    pyro.sample("x", hmm, obs=X)


@pytest.mark.parametrize(
    "model", [a_product_and_its_complement, clamped, sharpened, half_detached, a_ratio]
)
def test_what_is_no_product_is_refused_by_name(model: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match=r"\n  p: .*x.transition_probs.*logarithm"):
        EM(model).step()


def test_a_value_that_contradicts_its_derivative_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\n  p: "):
        EM(a_detached_factor).step()


def test_a_probability_that_has_another_use_is_refused() -> None:
    def model() -> None:
        p, q = unit("p", 0.9), unit("q", 0.8)
        observe(hamiltons(p, q))
        pyro.sample("y", dist.Bernoulli(p), obs=tensor(1.0))

    with pytest.raises(ValueError, match="\n  p: used in the log density of site y"):
        EM(model).step()
    em = EM(model, optim=pyro.optim.SGD({"lr": 0.001}))
    em.step()
    assert set(em.plan.names) == {"q"} and set(em.plan.gradient) == {"p"}


def test_a_factor_that_an_optimiser_moves_takes_its_product_with_it() -> None:
    """Rows of other parameters keep their closed forms."""

    def model() -> None:
        p, q, raw = unit("p", 0.9), unit("q", 0.8), real("raw", tensor(0.0, 0.0, 0.0))
        share = (raw[:2].tanh() + 2.0).softmax(-1)
        row = torch.cat([p.unsqueeze(0), (1 - p) * share])
        zero = torch.zeros(()).double()
        observe3(torch.stack([row, torch.stack([1 - q, q, zero]), torch.stack([zero, 1 - q, q])]))

    em = EM(model, optim=pyro.optim.SGD({"lr": 0.001}))
    history = em.run(num_steps=5, tol=None).history
    assert set(em.plan.names) == {"q"} and set(em.plan.gradient) == {"p", "raw"}
    assert history[-1] < history[0]


# ---- the M-step --------------------------------------------------------------------------------


def counts_of(model: Callable[[], None]) -> Tensor:
    """The expected transitions at the start."""
    with pyro.get_param_store().scope(), torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace()
        hmm, value = trace.nodes["x"]["fn"], trace.nodes["x"]["value"]
        return hmm.posterior(value).expected_transitions


def test_pooled_counts_by_hand() -> None:
    def model() -> None:
        p = unit("p", 0.7)
        observe(hamiltons(p, p))

    counts = counts_of(model).reshape(2, 2)
    em = EM(model)
    em.step()
    assert RATIO in str(em.plan) and "x.transition_probs" in str(em.plan)
    expected = counts.diagonal().sum() / counts.sum()
    assert_close(pyro.param("p").detach(), expected, rtol=1e-12, atol=0)


def test_a_matrix_and_its_first_row_as_initial_law() -> None:
    def model() -> None:
        matrix = probs("matrix", tensor([[0.8, 0.2], [0.3, 0.7]]))
        observe(matrix, matrix[0])

    with pyro.get_param_store().scope(), torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace()
        first = trace.nodes["x"]["fn"].smoothed_probs(X)[0]
    counts = counts_of(model).reshape(2, 2)
    EM(model).step()
    counts[0] += first
    expected = counts / counts.sum(-1, keepdim=True)
    assert_close(pyro.param("matrix").detach(), expected, rtol=1e-12, atol=0)


def test_zeros_stay_zeros() -> None:
    def model() -> None:
        matrix = probs("matrix", tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.4, 0.0, 0.6]]))
        normal = dist.Normal(tensor(-1.0, 0.0, 1.0), 1.0)
        hmm = RegimeHMM(
            initial_probs=matrix[0], transition_probs=matrix, observation_dist=normal
        )
        pyro.sample("x", hmm, obs=X)

    em = EM(model)
    history = em.run(num_steps=20, tol=None).history
    assert RATIO in str(em.plan) and history[-1] < history[0]
    zero = tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).bool()
    assert torch.equal(pyro.param("matrix") == 0, zero)


def test_a_state_that_is_never_left_keeps_its_probability() -> None:
    def model() -> None:
        stay = unit("stay", [0.8, 0.6])
        absorbing = torch.cat([stay, torch.ones(1).double()])
        matrix = torch.diag_embed(absorbing) + torch.diag_embed(1 - stay, offset=1)
        hmm = RegimeHMM(
            initial_probs=tensor(0.0, 0.0, 1.0),
            transition_probs=matrix,
            observation_dist=dist.Normal(torch.zeros(3).double(), 1.0),
        )
        pyro.sample("x", hmm, obs=X)

    em = EM(model)
    em.step()
    assert_close(pyro.param("stay").detach(), tensor(0.8, 0.6))


def test_single_precision() -> None:
    def model() -> None:
        p = pyro.param("p", torch.tensor([0.8, 0.7]), constraint=constraints.unit_interval)
        matrix = torch.diag_embed(p) + torch.diag_embed(1 - p).flip(-1)
        observe(matrix, obs=X.float())

    em = EM(model)
    result = em.run(num_steps=20)
    assert RATIO in str(em.plan) and result.history[-1] < result.history[0]
    assert pyro.param("p").dtype == torch.float32


def test_logits_with_entries_that_are_not_possible() -> None:
    def model() -> None:
        stay = unit("stay", [0.8, 0.6])
        logs = torch.stack([stay.log(), (1 - stay).log()], -1)
        matrix = torch.full((3, 3), -torch.inf).double()
        last = torch.zeros(1).double()
        where = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]])
        matrix = matrix.index_put((where[0], where[1]), torch.cat([logs.flatten(), last]))
        normal = dist.Normal(tensor(-1.0, 0.0, 1.0), 1.0)
        hmm = RegimeHMM(tensor(0.0, -1.0, -1.0), matrix, normal)
        pyro.sample("x", hmm, obs=X)

    em = EM(model)
    history = em.run(num_steps=20).history
    assert RATIO in str(em.plan) and history[-1] < history[0]


# ---- batches -----------------------------------------------------------------------------------


def _restarts(starts: Tensor) -> Callable[[], None]:
    def model() -> None:
        p = pyro.param("p", starts.clone(), constraint=constraints.unit_interval)
        matrix = torch.stack([p, 1 - p, 1 - p, p], -1).reshape(-1, 1, 2, 2)
        with pyro.plate("restarts", len(starts)):
            observe(matrix, obs=X.expand(len(starts), -1))

    return model


def test_restarts_are_those_of_a_loop_to_the_bit() -> None:
    starts = tensor(0.9, 0.2, 0.6, 0.5)
    together = EM(_restarts(starts)).run(num_steps=30, tol=1e-3)
    for index, start in enumerate(starts):
        with pyro.get_param_store().scope():
            alone = EM(_restarts(start.reshape(1))).run(num_steps=30, tol=1e-3)
            value = pyro.param("p").detach()
        steps = len(alone.history)
        ours = together.restart_history[:steps, index]
        assert torch.equal(torch.as_tensor(alone.restart_history[:, 0]), torch.as_tensor(ours))
        assert torch.equal(pyro.param("p").detach()[index : index + 1], value)


def test_many_restarts_are_planned_together() -> None:
    """One backward pass for each parameter of a restart, not for each restart."""
    em = EM(_restarts(torch.linspace(0.1, 0.9, 200).double()))
    em.step()
    assert em.plan.assignments[0].num_cells == 200


def test_minibatches_of_sequences() -> None:
    def model() -> None:
        p = unit("p", 0.7)
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            observe(hamiltons(p, p), obs=XS[index])

    torch.manual_seed(seeds.seed(0))
    em = EM(model)
    em.run(num_steps=20)
    assert em.plan.is_subsampled and RATIO in str(em.plan) and 0 < pyro.param("p").item() < 1


# ---- the plan ----------------------------------------------------------------------------------


def hamilton() -> None:
    observe(hamiltons(unit("p", 0.9), unit("q", 0.8)))


def test_the_plan_can_be_pickled() -> None:
    em = EM(hamilton)
    em.step()
    again = pickle.loads(pickle.dumps(em.plan))
    assert str(again) == str(em.plan) and again.assignments[0].argument is PROBABILITY


def test_another_function_of_the_same_parameters_is_planned_anew() -> None:
    swapped = False

    def model() -> None:
        p, q = unit("p", 0.9), unit("q", 0.8)
        observe(hamiltons(q, p) if swapped else hamiltons(p, q))

    em = EM(model)
    em.step()
    first = em.plan
    swapped = True
    losses = [em.step() for _ in range(3)]
    assert em.plan is not first and losses[-1] < losses[0]


def test_extrapolated_steps() -> None:
    plain = EM(hamilton).run(num_steps=2000, tol=1e-10)
    pyro.clear_param_store()
    fast = EM(hamilton).run(num_steps=2000, tol=1e-10, acceleration="squarem")
    assert fast.history[-1] <= plain.history[-1] + 1e-6
