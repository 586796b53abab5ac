"""EM as a user calls it: beside SVI, what it returns, and what it leaves alone."""

import threading
from typing import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM
from tests.infer.models import (
    LOC,
    TRANSITION,
    XS,
    X,
    Y,
    chain,
    loc,
    normal_hmm,
    observe,
    positive,
    probs,
    real,
    scale,
)
from tests.infer.table import ENTRIES, Entry, full


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
    assert nothing.num_steps == 0
    assert nothing.history == pytest.approx(result.history[-1:], rel=1e-12)


def test_no_tolerance_never_stops() -> None:
    em = EM(normal_hmm)
    em.run(X, num_steps=500, tol=1e-9)
    assert em.run(X, num_steps=30, tol=None).num_steps == 30


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: EM(None), "expected model to be a function or a module, got NoneType"),
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
        "Kernels: compiled for cpu",
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


SINGLE = [
    entry
    for entry in ENTRIES
    if entry.name == "everything_by_probs"
    or ("covariance" in entry.cells and not entry.values and "loadings" not in entry.cells)
]


@pytest.mark.parametrize("entry", SINGLE, ids=lambda entry: entry.name)
def test_float32(entry: Entry) -> None:
    """The same run in float32, to its own rounding."""
    expected = EM(entry.model).run(num_steps=10, tol=None).restart_history
    pyro.clear_param_store()
    with poutine.block(), _Float32():
        result = EM(entry.model).run(num_steps=10, tol=None)
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


def test_callback_may_differentiate() -> None:
    modes = []
    EM(normal_hmm).run(
        X, num_steps=np.int64(2), callback=lambda *_: modes.append(torch.is_grad_enabled())
    )
    assert modes == [True, True]
    assert torch.is_grad_enabled()


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        found = EM(normal_hmm).run(X, num_steps=3, tol=None).history
    pyro.clear_param_store()
    assert found == EM(normal_hmm).run(X, num_steps=3, tol=None).history
