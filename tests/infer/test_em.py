"""EM itself: the bound, restarts, faults, and what it leaves alone."""

import threading
import warnings
from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests.infer.accepted import (
    CASES,
    COVARIANCES,
    INITIAL,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    XS,
    X,
    Y,
    chain,
    covariance,
    everything_by_probs,
    full,
    loc,
    observe,
    positive,
    probs,
    real,
    scale,
)


def normal_hmm(data: Tensor) -> None:
    observe(loc=loc(), scale=scale(), obs=data, **chain())


def observed_hmm(model: Callable[[], None]) -> tuple[RegimeHMM, Tensor]:
    """The distribution at the model's site ``x`` at the current parameters, and its value."""
    node = poutine.trace(model).get_trace().nodes["x"]
    return node["fn"], node["value"]


# The bound.


def expected_complete(hmm: RegimeHMM, value: Tensor, posterior) -> Tensor:
    """Q of eq. 12: the complete-data log-likelihood under a posterior over paths."""

    def times(weight: Tensor, logits: Tensor) -> Tensor:
        return torch.where(weight > 0, weight * logits, 0.0).sum()

    event_dim = len(hmm.observation_dist.event_shape)
    observation = hmm.observation_dist.log_prob(value.unsqueeze(-1 - event_dim))
    return (
        times(posterior.smoothed_probs[0], hmm.initial_logits)
        + times(posterior.expected_transitions, hmm.transition_logits.squeeze(-3))
        + times(posterior.smoothed_probs, observation)
    )


def path_entropy(hmm: RegimeHMM, value: Tensor) -> Tensor:
    """Of p(q given x), a Markov chain with ``p(q_t+1 | q_t, x) = xi_t / gamma_t``."""
    event_dim = len(hmm.observation_dist.event_shape)
    observation = hmm.observation_dist.log_prob(value.unsqueeze(-1 - event_dim))
    backward = [torch.zeros_like(observation[-1])]
    for logits in observation.flip(0)[:-1]:
        ahead = (hmm.transition_logits.squeeze(-3) + logits + backward[0]).logsumexp(-1)
        backward.insert(0, ahead)
    after = torch.stack(backward)[1:] + observation[1:]
    gamma = hmm.posterior(value).smoothed_probs
    step = (hmm.transition_logits.squeeze(-3) + after.unsqueeze(-2)).log_softmax(-1)
    entropy = -(gamma[:-1].unsqueeze(-1) * step.exp() * step).sum()
    return entropy - (gamma[0] * gamma[0].log()).sum()  # no probability is 0 here


@pytest.mark.parametrize("model", [everything_by_probs, full], ids=["normal", "mvn"])
def test_bound_is_tight_and_rises(model: Callable[[], None]) -> None:
    em = EM(model)
    for _ in range(12):
        hmm, value = observed_hmm(model)
        posterior = hmm.posterior(value)
        old = expected_complete(hmm, value, posterior)
        likelihood = hmm.log_prob(value)
        entropy = path_entropy(hmm, value)
        assert_close(old + entropy, likelihood, rtol=1e-10, atol=1e-10)
        loss = em.step()
        assert loss == pytest.approx(-likelihood.item(), rel=1e-12)
        hmm, value = observed_hmm(model)
        new = expected_complete(hmm, value, posterior)
        assert new - old >= -1e-10
        # Theorem 2.1: the likelihood rises at least as Q does.
        assert hmm.log_prob(value) - likelihood >= new - old - 1e-9


@pytest.mark.parametrize("model", [everything_by_probs, full], ids=["normal", "mvn"])
def test_m_step_maximises_q(model: Callable[[], None]) -> None:
    """Q has no slope left in any parameter after one step."""
    hmm, value = observed_hmm(model)
    posterior = hmm.posterior(value)
    posterior = type(posterior)(*(part.detach() for part in posterior))
    EM(model).step()
    hmm, value = observed_hmm(model)
    leaves = list(dict(pyro.get_param_store().named_parameters()).values())
    for gradient in torch.autograd.grad(expected_complete(hmm, value, posterior), leaves):
        assert gradient.abs().max() < 1e-7


# Beside SVI.


def test_em_then_svi_then_em() -> None:
    em = EM(normal_hmm)
    optimiser = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(normal_hmm, lambda data: None, optimiser, Trace_ELBO())
    first = em.run(X, num_steps=5, tol=None)
    leaves = dict(pyro.get_param_store().named_parameters())
    assert svi.evaluate_loss(X) == pytest.approx(first.history[-1], rel=1e-12)
    assert svi.step(X) == pytest.approx(first.history[-1], rel=1e-12)
    for _ in range(4):
        svi.step(X)
    loss = svi.evaluate_loss(X)
    states = {leaf: dict(one.state) for leaf, one in _adam_states(optimiser).items()}
    assert em.step(X) == pytest.approx(loss, rel=1e-12)
    second = em.run(X, num_steps=5, tol=None)
    assert second.history[0] < loss
    after = dict(pyro.get_param_store().named_parameters())
    assert after.keys() == leaves.keys()
    assert all(after[name] is leaf for name, leaf in leaves.items())
    for leaf, one in _adam_states(optimiser).items():
        (kept,) = one.state.values()
        (before,) = states[leaf].values()
        assert kept is before and int(kept["step"]) == 5
        assert next(iter(one.state)) is leaf
    assert svi.step(X) == pytest.approx(second.history[-1], rel=1e-12)
    assert em.evaluate_loss(X) < loss + 1


def _adam_states(optimiser: pyro.optim.PyroOptim) -> dict:
    return dict(optimiser.optim_objs)


def test_gradient_vanishes_at_the_fixed_point() -> None:
    result = EM(full).run(num_steps=2000, tol=1e-11)
    assert result.converged
    loss = -poutine.trace(full).get_trace().log_prob_sum()
    leaves = dict(pyro.get_param_store().named_parameters())
    for gradient in torch.autograd.grad(loss, list(leaves.values())):
        assert gradient.abs().max() < 1e-4 * len(Y)


# Restarts.

SHIFTS = torch.tensor([0.0, 0.7, -0.4], dtype=torch.float64)


def restarts_model(count: int, first: int = 0) -> Callable[[], None]:
    """Restarts ``first`` to ``first + count`` of one family of starts, in a batch."""
    shift = SHIFTS[first : first + count, None, None, None]

    def model() -> None:
        observation_dist = dist.MultivariateNormal(
            real("loc", LOCS + shift), covariance(COVARIANCES.expand(count, 1, 2, 3, 3).clone())
        )
        hmm = RegimeHMM(
            initial_probs=probs("initial", INITIAL.expand(count, 2)),
            transition_probs=probs("transition", TRANSITION.expand(count, 1, 2, 2)),
            observation_dist=observation_dist,
        )
        with pyro.plate("restarts", count):
            pyro.sample("x", hmm, obs=Y)

    return model


def test_restart_in_a_batch_is_the_run_alone() -> None:
    together = EM(restarts_model(3)).run(num_steps=15, tol=None)
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert together.restart_history.shape == (16, 3)
    assert_close(
        together.restart_history.sum(-1),
        torch.tensor(together.history, dtype=torch.float64),
        rtol=1e-12,
        atol=0.0,
    )
    for number in range(3):
        pyro.clear_param_store()
        alone = EM(restarts_model(1, number)).run(num_steps=15, tol=None)
        assert_close(
            torch.tensor(alone.history, dtype=torch.float64),
            together.restart_history[:, number],
            rtol=1e-12,
            atol=0.0,
        )
        for name, value in pyro.get_param_store().items():
            assert_close(value.detach()[0], values[name][number], rtol=1e-9, atol=1e-12)


def test_run_waits_for_the_slowest_restart() -> None:
    result = EM(restarts_model(3)).run(num_steps=500, tol=1e-3)
    assert result.converged
    rises = -result.restart_history.diff(dim=0)
    assert (rises[-1] < 1e-3).all()
    assert (rises[:-1] >= 1e-3).any(-1).all()


# States and floors.


def test_state_without_weight_keeps_its_parameters() -> None:
    def model() -> None:
        observe(
            loc=real("loc", torch.tensor([0.0, 1e6])),
            scale=scale(),
            transition_probs=probs("transition", torch.tensor([[0.9, 0.1], [0.5, 0.5]])),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EM(model).step()
    assert pyro.param("loc")[1].item() == 1e6
    assert pyro.param("scale")[1].item() == pytest.approx(SCALE[1].item(), rel=1e-12)
    assert pyro.param("transition")[1].tolist() == [0.5, 0.5]
    assert pyro.param("loc")[0].item() == pytest.approx(X.mean().item(), rel=1e-12)


def matrix_model(start: Tensor = COVARIANCES) -> Callable[[], None]:
    def model() -> None:
        observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance(start))
        observe(observation_dist=observation_dist, obs=Y)

    return model


def test_floor_is_exact() -> None:
    """Equal to the clipped spectrum of the weighted scatter, and met by the start."""
    floor = 0.6
    low = torch.diag(torch.tensor([0.1, 1.0, 2.0])).double().expand(2, 3, 3).clone()
    model = matrix_model(low)
    em = EM(model, min_eigenvalue=floor)
    raised = low.clone()
    raised[:, 0, 0] = floor
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.MultivariateNormal(LOCS, raised),
    )
    posterior = hmm.posterior(Y)
    assert em.step() == pytest.approx(-float(posterior.log_likelihood), rel=1e-12)
    gamma = posterior.smoothed_probs
    weight = gamma.sum(0)
    mean = gamma.T @ Y / weight.unsqueeze(-1)
    deviation = Y.unsqueeze(1) - mean
    scatter = torch.einsum("tk,tki,tkj->kij", gamma, deviation, deviation) / weight[:, None, None]
    values, vectors = torch.linalg.eigh(scatter)
    assert (values < floor).any() and (values > floor).any()
    expected = vectors @ torch.diag_embed(values.clamp(min=floor)) @ vectors.mT
    assert_close(pyro.param("covariance").detach(), expected, rtol=1e-9, atol=1e-12)
    history = em.run(num_steps=20, tol=None).history
    assert all(later <= now + 1e-9 for now, later in zip(history, history[1:]))


@pytest.mark.parametrize("kind", ["covariance_matrix", "scale_tril", "precision_matrix", "scale"])
def test_floor_holds_for_every_parametrisation(kind: str) -> None:
    floor = 0.5
    start = 0.04 * torch.eye(3).double()  # infeasible
    given = {
        "covariance_matrix": (start, constraints.positive_definite),
        "scale_tril": (start.sqrt(), constraints.lower_cholesky),
        "precision_matrix": (start.inverse(), constraints.positive_definite),
        "scale": (torch.full((2, 3), 0.2).double(), constraints.positive),
    }[kind]

    def model() -> None:
        value = pyro.param("spread", given[0], constraint=given[1])
        if kind == "scale":
            observation_dist = dist.Normal(real("loc", LOCS), value).to_event(1)
        else:
            observation_dist = dist.MultivariateNormal(real("loc", LOCS), **{kind: value})
        observe(observation_dist=observation_dist, obs=Y)

    history = EM(model, min_eigenvalue=floor).run(num_steps=15, tol=None).history
    assert all(later <= now + 1e-9 for now, later in zip(history, history[1:]))
    value = pyro.param("spread").detach()
    least = {
        "covariance_matrix": lambda: torch.linalg.eigvalsh(value).min(),
        "scale_tril": lambda: torch.linalg.eigvalsh(value @ value.mT).min(),
        "precision_matrix": lambda: 1 / torch.linalg.eigvalsh(value).max(),
        "scale": lambda: (value**2).min(),
    }[kind]()
    assert float(least) == pytest.approx(floor, rel=1e-9)


# Faults.


def test_degenerate_covariance_warns_once_and_the_rest_go_on() -> None:
    """Three series of which one is twice another: no covariance is positive definite."""
    data = torch.stack([Y[:, 0], 2 * Y[:, 0], Y[:, 1]], -1)

    def model() -> None:
        observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance())
        observe(
            observation_dist=observation_dist,
            obs=data,
            transition_probs=probs("transition", TRANSITION),
        )

    em = EM(model)
    with pytest.warns(RuntimeWarning, match="'covariance' has no maximum") as record:
        result = em.run(num_steps=5, tol=None)
    assert len(record) == 1
    assert_close(pyro.param("covariance").detach(), COVARIANCES, rtol=1e-12, atol=1e-14)
    assert not torch.equal(pyro.param("loc").detach(), LOCS)
    assert all(later <= now + 1e-9 for now, later in zip(result.history, result.history[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EM(model, min_eigenvalue=1e-3).run(num_steps=5, tol=None)


def test_fall_is_undone_and_reported() -> None:
    """A model that is another function at every call, so that no update can be trusted."""
    calls = {"count": 0}

    def model() -> None:
        calls["count"] += 1
        drift = 3.0 if calls["count"] % 2 else 0.0
        observe(loc=loc(), obs=X + drift * calls.get("on", 0))

    em = EM(model)
    em.step()
    calls.update(count=0, on=1)
    before = pyro.param("loc").detach().clone()
    calls["count"] = 1  # next: undrifted E-step, then a drifted check
    with pytest.warns(RuntimeWarning, match=r"lowered the log-likelihood of restarts \[0\]"):
        em.step()
    assert torch.equal(pyro.param("loc").detach(), before)


def test_fall_of_one_restart_leaves_the_others() -> None:
    faulty = {"on": False, "count": 0}

    def model() -> None:
        faulty["count"] += 1
        shift = torch.zeros(2, 1).double()
        if faulty["on"] and faulty["count"] % 2 == 0:
            shift[1] = 5.0
        with pyro.plate("restarts", 2):
            observe(loc=real("loc", LOC.expand(2, 1, 2)), obs=X.expand(2, -1) + shift)

    em = EM(model)
    em.step()
    before = pyro.param("loc").detach().clone()
    faulty.update(on=True, count=0)
    with pytest.warns(RuntimeWarning, match=r"restarts \[1\]"):
        em.step()
    after = pyro.param("loc").detach()
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])


def test_impossible_data_end_the_run() -> None:
    """Every sequence of probability zero: nothing to climb, nothing written."""
    matrix = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double()

    def model() -> None:
        observation_dist = dist.Normal(loc(), 1.0).mask(torch.tensor([True, True]))
        logits = torch.tensor([-torch.inf, 0.0]).double()
        hmm = RegimeHMM(
            initial_logits=logits, transition_probs=matrix, observation_dist=observation_dist
        )
        pyro.sample("x", hmm, obs=torch.tensor([0.0, 1e200]).double())

    result = EM(model).run(num_steps=5)
    assert result.history == [float("inf")]
    assert (result.converged, result.stop_reason) == (False, "no ascent possible")
    assert torch.equal(pyro.param("loc").detach(), LOC)


def test_no_sequences_move_nothing() -> None:
    em = EM(normal_hmm)
    assert em.step(X.expand(0, -1)) == 0.0
    assert torch.equal(pyro.param("loc").detach(), LOC)
    assert em.run(X.expand(0, -1), num_steps=3).history[0] == 0.0


def test_collapse_on_one_observation() -> None:
    """Without a floor the likelihood has no maximum: the run ends in finite numbers."""
    data = torch.cat([X, torch.full((1,), 40.0).double()])
    start = torch.tensor([0.0, 40.0])

    def model() -> None:
        observe(loc=real("loc", start), scale=scale(), obs=data, **chain())

    with pytest.warns(RuntimeWarning, match="'scale' has no maximum"):
        result = EM(model).run(num_steps=30, tol=None)
    assert all(later <= now + 1e-9 for now, later in zip(result.history, result.history[1:]))
    assert all(value.isfinite().all() for value in pyro.get_param_store().values())
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EM(model, min_eigenvalue=0.01).run(num_steps=30).converged


# What a run returns and takes.


def test_step_returns_the_loss_before() -> None:
    em = EM(normal_hmm)
    before = em.evaluate_loss(X)
    loss = em.step(X)
    assert loss == pytest.approx(before, rel=1e-13)
    assert isinstance(loss, float)
    assert em.evaluate_loss(X) < before - 1e-3


def test_run_is_steps() -> None:
    result = EM(normal_hmm).run(X, num_steps=6, tol=None)
    values = [value.detach().clone() for value in pyro.get_param_store().values()]
    pyro.clear_param_store()
    em = EM(normal_hmm)
    losses = [em.step(data=X) for _ in range(6)]
    assert result.history[:-1] == pytest.approx(losses, rel=1e-13)
    for value, expected in zip(pyro.get_param_store().values(), values, strict=True):
        assert_close(value.detach(), expected, rtol=1e-12, atol=1e-14)


def test_result_of_a_converged_run() -> None:
    seen = []
    result = EM(normal_hmm).run(X, num_steps=500, tol=1e-3, callback=lambda *now: seen.append(now))
    assert result.converged and result.stop_reason == "log-likelihood rose by less than 0.001"
    assert result.num_steps == len(result.history) - 1 < 500
    assert result.num_e_steps == len(result.history)
    assert seen == list(enumerate(result.history[1:], start=1))
    rises = [now - later for now, later in zip(result.history, result.history[1:])]
    assert 0 <= rises[-1] < 1e-3 <= min(rises[:-1])


def test_result_of_a_run_cut_short() -> None:
    result = EM(normal_hmm).run(X, num_steps=3, tol=None)
    assert (result.converged, result.stop_reason) == (False, "num_steps reached")
    assert (result.num_steps, len(result.history)) == (3, 4)
    nothing = EM(normal_hmm).run(X, num_steps=0)
    assert (nothing.num_steps, nothing.history) == (0, result.history[-1:])


def test_no_tolerance_never_stops() -> None:
    em = EM(normal_hmm)
    em.run(X, num_steps=500, tol=1e-9)
    assert em.run(X, num_steps=30, tol=None).num_steps == 30


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: EM(None), "expected model to be a function, got NoneType"),
        (lambda: EM(normal_hmm, min_eigenvalue=-1.0), "min_eigenvalue of at least 0, got -1.0"),
        (lambda: EM(normal_hmm, min_eigenvalue=float("nan")), "min_eigenvalue"),
        (lambda: EM(normal_hmm, min_eigenvalue=float("inf")), "min_eigenvalue"),
        (lambda: EM(normal_hmm).run(X, num_steps=-1), "num_steps to be an integer of at least 0"),
        (lambda: EM(normal_hmm).run(X, num_steps=2.5), "num_steps to be an integer"),
        (lambda: EM(normal_hmm).run(X, num_steps=True), "num_steps to be an integer"),
        (lambda: EM(normal_hmm).run(X, tol=0.0), "tol to be positive or None, got 0.0"),
        (lambda: EM(normal_hmm).run(X, tol=-1.0), "tol to be positive or None"),
        (lambda: EM(normal_hmm).run(X, tol=float("nan")), "tol to be positive or None"),
        (lambda: EM(normal_hmm).step(X.masked_fill(X > 1, torch.nan)), "support"),
        (lambda: EM(normal_hmm).step(X[:0]), "one or more time steps"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_plan_prints() -> None:
    em = EM(full)
    assert em.plan is None
    em.step()
    assert str(em.plan).splitlines() == [
        "EM sets 2 parameters in closed form:",
        "  loc                  (2, 3)           x.loc                                weighted "
        "mean (35)",
        "  covariance           (2, 3, 3)        x.covariance_matrix                  weighted "
        "scatter (41)",
    ]


def test_plan_tells_of_pooling() -> None:
    def model() -> None:
        observe(loc=loc(), scale=positive("scale", torch.tensor(1.0)).expand(2), **chain())

    em = EM(model)
    em.step()
    text = str(em.plan)
    assert "weighted sd (41), 2 blocks pooled in 1" in text
    assert "row sums of expected transitions (27)" in text
    assert "first smoothed probabilities (28)" in text


# What it leaves alone.


def snapshot() -> dict[str, tuple[Tensor, Tensor]]:
    leaves = dict(pyro.get_param_store().named_parameters())
    return {name: (leaf, leaf.detach().clone()) for name, leaf in leaves.items()}


def test_evaluate_loss_touches_nothing() -> None:
    em = EM(normal_hmm)
    em.step(X)
    before, plan = snapshot(), em.plan
    random_state = torch.get_rng_state()
    assert em.evaluate_loss(X) == em.evaluate_loss(X)
    for name, (leaf, value) in snapshot().items():
        assert leaf is before[name][0] and torch.equal(value, before[name][1])
        assert leaf.grad is None and leaf.requires_grad
    assert em.plan is plan
    assert torch.equal(torch.get_rng_state(), random_state)


def test_evaluate_loss_is_every_site() -> None:
    def model() -> None:
        observe(loc=loc())
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    em = EM(model)
    expected = -poutine.trace(model).get_trace().log_prob_sum().item()
    assert em.evaluate_loss() == pytest.approx(expected, rel=1e-6)
    assert em.step() == pytest.approx(expected, rel=1e-6)


def test_random_state_grad_mode_and_tensors_stay() -> None:
    data = X.clone().requires_grad_()
    start = LOC.clone()

    def model() -> None:
        observe(loc=pyro.param("loc", start), scale=scale(), obs=data, **chain())

    random_state = torch.get_rng_state()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            EM(model).run(num_steps=3, tol=None)
            assert torch.is_grad_enabled() is enabled
    assert torch.equal(torch.get_rng_state(), random_state)
    assert data.grad is None and data.requires_grad and torch.equal(data.detach(), X)
    assert torch.equal(start, LOC) and not start.requires_grad
    assert pyro.get_param_store()._params["loc"].requires_grad
    assert pyro.get_param_store()._params["loc"].grad is None


def test_refused_model_leaves_its_parameters() -> None:
    def model() -> None:
        observe(loc=loc().tanh())

    with pytest.raises(ValueError, match="loc"):
        EM(model).step()
    assert torch.equal(pyro.param("loc").detach(), LOC)


def test_handlers_of_the_caller_stay_outside() -> None:
    """A trace around a step sees the model's parameters read, and no handler is left behind."""
    stack = len(pyro.poutine.runtime._PYRO_STACK)
    EM(normal_hmm).step(X)
    assert len(pyro.poutine.runtime._PYRO_STACK) == stack


@pytest.mark.parametrize("case", CASES[:1] + [case for case in CASES if "covariance" in case.cells])
def test_float32(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same climb in float32, to its own rounding."""
    expected = EM(case.model).run(num_steps=10, tol=None).restart_history
    pyro.clear_param_store()
    with poutine.block(), _Float32():
        result = EM(case.model).run(num_steps=10, tol=None)
        assert all(value.dtype == torch.float32 for value in pyro.get_param_store().values())
    assert_close(result.restart_history, expected, rtol=2e-5, atol=1e-3)
    falls = result.restart_history.diff(dim=0).clamp(min=0)
    assert (falls <= 1e-4 * result.restart_history[1:].abs()).all()


class _Float32(poutine.messenger.Messenger):
    """Casts starts and data, so that a model in float64 runs in float32."""

    def _pyro_param(self, msg: dict) -> None:
        msg["args"] = (msg["args"][0], msg["args"][1].float(), *msg["args"][2:])

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"]:
            msg["value"] = msg["value"].float()


def test_threads_share_the_store_safely() -> None:
    """Runs in several threads, each on its own parameter, end where they would alone."""

    def model(number: int) -> None:
        value = real(f"loc{number}", LOC + 0.1 * number)
        observe(loc=value, obs=XS[number], transition_probs=probs(f"A{number}", TRANSITION))

    alone = [EM(model).run(number, num_steps=10, tol=None).history for number in range(4)]
    pyro.clear_param_store()
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        results[number] = EM(model).run(number, num_steps=10, tol=None).history

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(4)] == alone
