"""Restarts that are alone, states without data, floors, and steps that go wrong."""

import warnings
from typing import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests import seeds
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    X,
    Y,
    chain,
    covariance,
    loc,
    normal_hmm,
    observe,
    probs,
    real,
    scale,
)

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
    # It binds, whatever the data: those within states vary less than all of them.
    floor = float(Y.var(0, correction=0).min())
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


def falling_model(faulty: dict[str, int]) -> Callable[[], None]:
    """Between two runs of the model the data move, while ``faulty["on"]``, which blames ``loc``."""

    def model() -> None:
        faulty["count"] = faulty.get("count", 0) + 1
        drift = 3.0 if faulty["count"] % 2 == 0 else 0.0
        rows = probs("transition", TRANSITION)
        observe(loc=loc(), obs=X + drift * faulty.get("on", 0), transition_probs=rows)

    return model


def frozen_em() -> EM:
    """It has frozen ``loc`` in a step."""
    faulty: dict[str, int] = {}
    em = EM(falling_model(faulty))
    em.step()
    faulty.update(on=1, count=0)
    message = r"were rolled back and are frozen until the next run, or EM.reset\(\)"
    with pytest.warns(RuntimeWarning, match=message):
        em.step()
    faulty.update(on=0)
    return em


def test_frozen_parameters_stay_frozen() -> None:
    """In later steps of the same plan, until there is a run or a reset."""
    for free in (lambda em: em.reset(), lambda em: em.run(num_steps=1)):
        pyro.clear_param_store()
        em = frozen_em()
        before, rows = (pyro.param(name).detach().clone() for name in ("loc", "transition"))
        for _ in range(2):
            em.step()
        assert torch.equal(pyro.param("loc").detach(), before)
        assert not torch.equal(pyro.param("transition").detach(), rows)
        free(em)
        em.step()
        assert not torch.equal(pyro.param("loc").detach(), before)


@pytest.mark.slow
def test_what_follows_a_frozen_parameter_is_maximised_given_it() -> None:
    """A scale about the location that stays, and not about the one that was given up."""
    em = EM(lambda: observe(loc=real("loc", LOC), scale=scale()))
    em.step()
    em._session.frozen = {"loc": np.array([True]), "scale": np.array([False])}
    held = pyro.param("loc").detach().clone()
    for _ in range(300):
        em.step()
    assert torch.equal(pyro.param("loc").detach(), held)
    fixed = EM(lambda: observe(loc=held, scale=scale()))
    assert em.evaluate_loss() - fixed.run(num_steps=300, tol=None).history[-1] < 1e-8


@pytest.mark.parametrize("wide", [1e-20, 1.0, 1e20])
def test_the_history_is_of_one_objective_when_an_optimiser_takes_over(wide: float) -> None:
    """What no parameter reaches counts before as after: here a second observed site."""
    steps = torch.arange(200)
    noise = torch.randn(200, generator=seeds.generator(5), dtype=torch.float64)
    x = torch.where(steps // 20 % 2 == 0, -0.1, 2.0).double() + 0.7 * noise

    def model() -> None:
        start = torch.tensor([1.0, 1.5]).double()
        loc = pyro.param("loc", start, constraint=constraints.positive)  # the best is negative
        pyro.sample("y", dist.Normal(0.0, torch.tensor(wide).double()), obs=torch.zeros(()))
        observe(loc=loc, scale=0.7 * torch.ones(2).double(), obs=x)

    em = EM(model, optim=pyro.optim.Adam({"lr": 0.02}))
    with pyro.get_param_store().scope():
        start = em.evaluate_loss()
    history = EM(model, optim=pyro.optim.Adam({"lr": 0.02})).run(num_steps=12, tol=None).history
    assert history[0] == pytest.approx(start, rel=1e-10)
    assert len(history) == 13


def test_a_masked_sequence_may_hold_nan() -> None:
    """Whatever the family: nothing of it reaches the statistics."""
    data = torch.stack([X, X, X])
    data[1] = torch.nan

    def model(obs: torch.Tensor, keep: torch.Tensor) -> None:
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc(), scale(), validate_args=False),
            validate_args=False,
        )
        with pyro.plate("n", len(obs)), pyro.poutine.mask(mask=keep):
            pyro.sample("x", hmm, obs=obs)

    keep = torch.tensor([True, False, True])
    found = EM(model).run(data, keep, num_steps=5, tol=None).history
    with pyro.get_param_store().scope():
        expected = EM(model).run(data[keep], keep[keep], num_steps=5, tol=None).history
    assert found == pytest.approx(expected, rel=1e-10)
    assert found[-1] < found[0] - 1e-3


def test_an_error_of_the_model_has_its_own_cause() -> None:
    def model() -> None:
        loc()
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as error:
        EM(model).step()
    assert error.value.__cause__ is not error.value


def test_a_cleared_store_has_nothing_frozen() -> None:
    em = frozen_em()
    pyro.clear_param_store()
    em.step()
    assert not torch.equal(pyro.param("loc").detach(), LOC)


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
        pyro.sample("x", hmm, obs=torch.tensor([0.0, 1e200], dtype=torch.float64))

    result = EM(model).run(num_steps=5)
    assert result.history == [float("inf")]
    assert (result.converged, result.stop_reason) == (False, "no ascent possible")
    assert torch.equal(pyro.param("loc").detach(), LOC)


def test_no_sequences_move_nothing() -> None:
    """No plate of Pyro has size 0, so that the batch is part of the value."""

    def model(x: Tensor) -> None:
        observation_dist = dist.Normal(loc(), scale())
        hmm = RegimeHMM(observation_dist=observation_dist, **chain())
        pyro.sample("x", hmm.expand([len(x)]).to_event(1), obs=x)

    em = EM(model)
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


def test_a_state_without_data_is_reported() -> None:
    """The chain never leaves its first state: the second one keeps its mean, and is named."""
    stays = torch.eye(2).double()

    def model() -> None:
        observe(loc=loc(), initial_probs=stays[0], transition_probs=stays)

    em = EM(model)
    result = em.run(num_steps=3)
    assert result.idle == ["loc"]
    assert pyro.param("loc")[1].item() == LOC[1].item()
    pyro.clear_param_store()
    assert EM(normal_hmm).run(X, num_steps=3).idle == []
