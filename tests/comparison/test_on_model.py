"""Every method on a Pyro model of the caller's own."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison import compare
from pyro_regimes.comparison.side_by_side import can_fork
from pyro_regimes.infer.em import guard
from pyro_regimes.infer.isolation import PYRO_LOCK
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, X


def latent(x: Tensor) -> None:
    """Its locations have a prior; the HMM stands under a mask."""
    loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc, SCALE).to_event(0),
    )
    pyro.sample("x", hmm.mask(torch.tensor(True)), obs=x)


def two_scales(x: Tensor) -> None:
    scale = pyro.param("scale", SCALE.expand(2), constraint=dist.constraints.positive)
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(LOC, scale),
    )
    pyro.sample("x", hmm, obs=x)


def panel(x: Tensor) -> None:
    with pyro.plate("series", x.shape[0]):
        two_scales(x)


@pytest.mark.parametrize("shape", [(), (3,), (32,)])
def test_held_out_data_of_one_number_a_step_follow_in_time(shape: tuple[int, ...]) -> None:
    """Also where there are as many series as steps."""
    x = X.expand(shape + X.shape) + torch.linspace(0, 1, math.prod(shape)).reshape(shape + (1,))
    model = panel if shape else two_scales
    settings = dict(methods=["EM"], em_steps=2, tol=None)
    (run,) = compare(model, x[..., :32], held_out=x[..., 32:], **settings).runs
    scale = run.point["scale"]
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(LOC, scale),
    )
    expected = (hmm.log_prob(x) - hmm.log_prob(x[..., :32])).sum()
    assert run.held_out == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match=r"expected held_out to have the shape of the data .*got"):
        compare(model, x[..., :32], held_out=x[..., 32:].unsqueeze(-1), **settings)


def test_held_out_data_where_time_is_not_known() -> None:
    def model(x: Tensor) -> None:
        two_scales(x[:, 0])

    x = torch.stack([X, X], -1)
    (run,) = compare(model, x[:40], held_out=x[40:], methods=["EM"], em_steps=1, tol=None).runs
    assert run.held_out is not None
    with pytest.raises(ValueError, match="expected data with one dim that is the time"):
        compare(model, x[:2], held_out=x[:2], methods=["EM"], em_steps=1)


def test_methods_that_need_priors():
    with pytest.raises(ValueError, match=r"a prior_model for the methods \['AutoNormal'\]"):
        compare(lambda data: None, torch.zeros(3, 1), methods=["EM", "AutoNormal"])


def test_compare_takes_a_model_with_latent_sites() -> None:
    start = {"loc": LOC}
    found = compare(
        latent, X, methods=["EM, MAP", "AutoNormal"], init_values=start, svi_steps=5, num_draws=3
    )
    mode, variational = found.runs
    assert mode.values[-1] == pytest.approx(mode.log_joint) != mode.log_likelihood
    assert variational.posterior is not None
    with pytest.raises(ValueError, match=r"a model without latent sites for \['EM'\]"):
        compare(latent, X, methods=["EM"])


def test_a_compiled_run_is_the_run() -> None:
    settings = dict(init_values={"loc": LOC}, svi_steps=20, nuts_steps=6, num_draws=3)
    methods = ["AutoDelta", "AutoNormal", "NUTS"]
    plain, compiled = (
        compare(latent, X, X, methods, jit_compile=jit_compile, **settings).runs
        for jit_compile in (False, True)
    )
    for one, other in zip(plain, compiled, strict=True):
        assert one.method == other.method and one.num_passes == other.num_passes
        assert torch.equal(one.point["loc"], other.point["loc"])
        assert one.values == pytest.approx(other.values, rel=1e-6)
        assert one.held_out_averaged == other.held_out_averaged


@pytest.mark.skipif(not can_fork(torch.device("cpu")), reason="needs Linux without CUDA")
def test_two_processes_find_what_one_finds() -> None:
    methods = ["AutoDelta", "EM, MAP", "AutoNormal", "AutoLowRank", "NUTS"]
    settings = dict(init_values={"loc": LOC}, svi_steps=10, nuts_steps=3, num_draws=2, em_steps=3)
    heard: list[tuple[str, int, int]] = []
    alone, beside = (
        compare(
            latent,
            X,
            X,
            methods,
            processes=processes,
            progress=lambda *step: heard.append(step[:3]),
            **settings,
        ).runs
        for processes in (1, 2)
    )
    assert [run.method for run in beside] == [run.method for run in alone]
    assert [run.is_beside for run in beside] == [True, False, True, True, True]
    for one, other in zip(alone, beside, strict=True):
        assert one.values == other.values and one.held_out_averaged == other.held_out_averaged
        assert one.distance_to_em == other.distance_to_em
        assert one.posterior_errors == other.posterior_errors
        assert torch.equal(one.point["loc"], other.point["loc"])
    # All steps of all methods, those of the other process too, are reported here.
    half = len(heard) // 2
    assert sorted(heard[:half]) == sorted(heard[half:])
    with pytest.raises(ValueError, match="expected processes to be 1 or 2, got 3"):
        compare(latent, X, processes=3)


@pytest.mark.slow
def test_posteriors_and_held_out_data_against_quadrature() -> None:
    """The posterior of two locations on a grid: its evidence, moments and predictive density."""

    def column(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc[:, None], SCALE[:, None]).to_event(1),
        )
        pyro.sample("x", hmm, obs=x)

    fitted = X[:40]
    found = compare(
        column,
        fitted[:, None],
        X[40:, None],
        ["EM, MAP", "AutoDelta", "AutoMultivariateNormal", "NUTS"],
        init_values={"loc": LOC},
        svi_steps=600,
        learning_rates=[0.03],
        nuts_steps=150,
        num_draws=100,
    )
    axis = torch.linspace(-3.0, 3.0, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)  # (G, 2)
    prior = dist.Normal(torch.zeros_like(grid), 1.0).to_event(1).log_prob(grid)
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(grid.unsqueeze(-2), SCALE),
    )
    joint = prior + hmm.log_prob(fitted)  # (G,)
    cell = 2 * torch.log(axis[1] - axis[0])
    evidence = joint.logsumexp(0) + cell
    weights = joint.softmax(0)
    mean = weights @ grid
    deviation = (weights @ (grid - mean).square()).sqrt()
    predictive = (prior + hmm.log_prob(X)).logsumexp(0) + cell - evidence
    # The mean over draws of a density that few of them may dominate: four standard errors of it.
    density = (hmm.log_prob(X) - hmm.log_prob(fitted)).exp()
    spread = (weights @ density.square()) / (weights @ density).square() - 1
    bound = max(0.3, float(torch.log1p(4 * (spread / 40).sqrt())))

    em, delta, normal, nuts = found.runs
    for mode in (em, delta):
        assert mode.log_joint == pytest.approx(float(joint.max()), abs=0.01)
        at_mode = {"loc": grid[joint.argmax()]}
        torch.testing.assert_close(mode.point, at_mode, rtol=0, atol=0.03)
    assert normal.elbo == pytest.approx(float(evidence), abs=0.2)
    for run in (normal, nuts):
        posterior = run.posterior["loc"]
        # Four Monte Carlo standard errors of some 40 independent draws.
        assert (posterior.mean - mean).abs().max() < 4 * deviation.max() / 40**0.5
        torch.testing.assert_close(posterior.deviation, deviation, rtol=0.35, atol=0)
        assert run.held_out_averaged == pytest.approx(float(predictive), abs=bound)


def slow_to_run(x: Tensor) -> None:
    """A model that takes a hundredth of a second to run: EM runs it to plan, not at each step."""
    time.sleep(0.01)
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(pyro.param("loc", LOC.clone()), SCALE),
    )
    pyro.sample("x", hmm, obs=x)


def test_em_plans_before_its_first_step_and_checks_after_its_last() -> None:
    (run,) = compare(slow_to_run, X, methods=["EM"], em_steps=8, tol=None).runs
    steps = np.diff(run.times)
    assert run.times[0] == 0.0 and len(steps) == 8
    assert steps[0] > 0.03  # three runs of the model
    assert steps[1:].max() < 0.01  # none
    assert run.seconds > run.times[-1] + 0.01  # one more, to see that the model agrees


def test_the_check_of_convergence_is_compiled_before_it_is_timed(monkeypatch) -> None:
    checked = []
    check = guard.check

    def recorded(session: Any, call: Any, loop: Any, tol: float, *evidence: Any) -> Any:
        checked.append(tol)
        return check(session, call, loop, tol, *evidence)

    monkeypatch.setattr(guard, "check", recorded)
    compare(slow_to_run, X, methods=["EM"], em_steps=300, tol=1e-3)
    assert checked == [1e-3, 1e-3]


def test_progress_is_reported_without_the_lock_and_with_the_callers_store() -> None:
    heard = []

    def progress(method: str, step: int, total: int, objective: float) -> None:
        # The lock is free also for other threads; handlers and parameters are the caller's.
        heard.append((PYRO_LOCK._is_owned(), list(pyro.get_param_store()), len(_PYRO_STACK)))

    pyro.param("mine", torch.tensor(1.0))
    start = {"loc": LOC}
    settings = dict(em_steps=3, svi_steps=3, nuts_steps=2, num_draws=2, learning_rates=[0.01])
    compare(slow_to_run, X, methods=["EM", "Adam"], progress=progress, **settings)
    compare(
        latent,
        X,
        methods=["EM, MAP", "AutoDelta", "AutoNormal", "NUTS"],
        init_values=start,
        progress=progress,
        **settings,
    )
    assert len(heard) == 2 + 4 + 2 + 4 + 4 + 5
    assert set(map(str, heard)) == {str((False, ["mine"], 0))}


@pytest.mark.parametrize("method", ["EM, MAP", "AutoDelta", "AutoNormal", "NUTS"])
def test_an_error_in_a_callback_leaves_everything_as_it_was(method) -> None:
    pyro.param("mine", torch.tensor(1.0))
    store, state = dict(pyro.get_param_store().named_parameters()), torch.get_rng_state()
    settings = dict(em_steps=3, svi_steps=3, nuts_steps=2, init_values={"loc": LOC})
    with pytest.raises(ZeroDivisionError):
        compare(latent, X, methods=[method], progress=lambda *_: 1 / 0, **settings)
    assert dict(pyro.get_param_store().named_parameters()) == store
    assert torch.equal(torch.get_rng_state(), state)
    assert not PYRO_LOCK._is_owned() and not _PYRO_STACK
    assert torch.distributions.Distribution._validate_args


def test_two_threads_compare_what_they_compare_alone() -> None:
    """Each has parameters and random numbers of its own, in turns with the other's."""

    def run(seed: int) -> list[list[float]]:
        found = compare(
            latent,
            X,
            methods=["AutoNormal", "NUTS"],
            init_values={"loc": LOC},
            svi_steps=20,
            nuts_steps=4,
            num_draws=2,
            seed=seed,
        )
        return [[*each.values, each.held_out_averaged or 0.0] for each in found.runs]

    state = torch.get_rng_state()
    alone = {seed: run(seed) for seed in (1, 2)}
    assert torch.equal(torch.get_rng_state(), state)
    together: dict[int, list[list[float]]] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: together.update({seed: run(seed)}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone and alone[1] != alone[2]


def test_a_learning_rate_that_diverges_is_a_row() -> None:
    rates = [0.01, 1e6]
    found = compare(
        two_scales, X, methods=["EM", "Adam", "ClippedAdam"], svi_steps=20, learning_rates=rates
    )
    assert [(run.method, run.diverged) for run in found.runs] == [
        ("EM", False),
        ("SVI, Adam(0.01)", False),
        ("SVI, Adam(1e+06)", True),
        ("SVI, ClippedAdam(0.01)", False),
        ("SVI, ClippedAdam(1e+06)", True),
    ]
    for run in found.runs:
        assert np.isfinite(run.values).all()
        assert len(run.values) == len(run.times) == len(run.passes)
        assert np.isnan(run.log_likelihood) == run.diverged
        if run.diverged:
            assert 1 <= len(run.values) < 20 and run.seconds >= run.times[-1]
            assert run.values[0] == pytest.approx(found.runs[0].values[0])
            assert found.seconds_to_best(run) is None and run.point == {}


def test_every_learning_rate_may_diverge() -> None:
    found = compare(two_scales, X, methods=["Adam"], svi_steps=20, learning_rates=[1e6])
    assert [run.diverged for run in found.runs] == [True]
    assert found.best() == -math.inf and found.speed_up() is None


@pytest.mark.parametrize("guide", ["AutoDelta", "AutoNormal"])
def test_a_guide_that_diverges_is_a_row(guide) -> None:
    found = compare(
        latent,
        X,
        methods=["EM, MAP", guide],
        init_values={"loc": LOC},
        svi_steps=40,
        num_draws=2,
        learning_rates=[1e200],
    )
    assert [run.diverged for run in found.runs] == [False, True]
    assert found.runs[1].posterior is None and np.isfinite(found.runs[1].values).all()


def test_a_fault_of_the_model_is_no_divergence() -> None:
    def wrong(x: Tensor) -> None:
        pyro.param("loc", LOC.clone())
        raise ValueError("expected more")

    with pytest.raises(ValueError, match="expected more"):
        compare(wrong, X, methods=["Adam"], svi_steps=3)
