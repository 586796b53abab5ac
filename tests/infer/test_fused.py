"""One kernel for Gaussian models, against the same iterations step by step."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.em.engines import gaussian_steps, tensors
from pyro_regimes.infer.em.engines.fused_gaussian import FusedEngine
from pyro_regimes.kernels import ops
from tests.infer.fused import both_engines, spy
from tests.infer.models import COVARIANCES, INITIAL, LENGTHS, LOCS, TRANSITION, YS, Y

pytestmark = pytest.mark.usefixtures("filled_buffers")

SHIFTS = torch.tensor([0.0, 0.4, -0.3]).double()


def gaussian_model(
    data: Tensor = Y, lengths: Tensor | None = None, restarts: int = 0, by_factor: bool = False
) -> Callable[[], None]:
    """Every parameter its own: one model, of one or many sequences, or a batch of restarts."""
    dtype = data.dtype
    lead, more = ((restarts,), (restarts, 1)) if restarts else ((), ())
    shift = SHIFTS[:restarts, None, None, None] if restarts else 0.0

    def model() -> None:
        def held(name: str, start: Tensor, constraint: constraints.Constraint) -> Tensor:
            return pyro.param(name, start.to(dtype).clone(), constraint=constraint)

        simplex = constraints.simplex
        loc = held("loc", LOCS.expand(*more, 2, 3) + shift, constraints.real)
        spread = COVARIANCES.expand(*more, 2, 3, 3)
        if by_factor:
            factor = torch.linalg.cholesky(spread)
            normal = dist.MultivariateNormal(
                loc, scale_tril=held("factor", factor, constraints.lower_cholesky)
            )
        else:
            normal = dist.MultivariateNormal(
                loc, held("covariance", spread, constraints.positive_definite)
            )
        hmm = RegimeHMM(
            initial_probs=held("initial", INITIAL.expand(*lead, 2), simplex),
            transition_probs=held("transition", TRANSITION.expand(*more, 2, 2), simplex),
            observation_dist=normal,
            lengths=lengths,
        )
        size = restarts or (len(data) if data.dim() == 3 else 0)
        if size:
            with pyro.plate("batch", size):
                pyro.sample("x", hmm, obs=data)
        else:
            pyro.sample("x", hmm, obs=data)

    return model


MODELS = {
    "one sequence": gaussian_model(),
    "sequences of one model": gaussian_model(YS),
    "lengths": gaussian_model(YS, LENGTHS),
    "restarts": gaussian_model(restarts=3),
    "Cholesky factors": gaussian_model(by_factor=True),
    "Cholesky factors of restarts": gaussian_model(restarts=3, by_factor=True),
}


@pytest.mark.parametrize("floor", [0.0, 0.5], ids=["no floor", "floor"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_equals_the_iterations_step_by_step(model, floor):
    fast, slow = both_engines(lambda: EM(model, min_eigenvalue=floor).run(num_steps=25, tol=None))
    assert fast.num_steps == slow.num_steps == 25


def test_stops_where_the_other_does(monkeypatch):
    fast = EM(MODELS["restarts"]).run(num_steps=400, tol=1e-3)
    pyro.clear_param_store()
    spy(monkeypatch, allowed=False)
    slow = EM(MODELS["restarts"]).run(num_steps=400, tol=1e-3)
    assert (fast.num_steps, fast.stop_reason) == (slow.num_steps, slow.stop_reason)
    assert fast.converged and len(fast.history) == fast.num_steps + 1


def test_float32(monkeypatch):
    exact = EM(MODELS["one sequence"]).run(num_steps=10, tol=None)
    pyro.clear_param_store()
    found = spy(monkeypatch)
    single = EM(gaussian_model(Y.float())).run(num_steps=10, tol=None)
    assert isinstance(found[0], FusedEngine)
    # The start and the data are rounded to 6e-8 of their size.
    assert_close(single.restart_history, exact.restart_history, rtol=2e-6, atol=0.0)
    assert all(value.dtype == torch.float32 for value in pyro.get_param_store().values())


def test_what_is_not_ordinary_is_left_to_the_steps():
    """A series that is twice another: no covariance is positive definite, and EM says so."""
    data = torch.stack([Y[:, 0], 2 * Y[:, 0], Y[:, 1]], -1)
    with pytest.warns(RuntimeWarning, match="'covariance' has no maximum"):
        result = EM(gaussian_model(data)).run(num_steps=5, tol=None)
    assert result.num_steps == 5
    assert all(later <= now + 1e-9 for now, later in zip(result.history, result.history[1:]))


@pytest.mark.parametrize("forbidden", [False, True], ids=["fused", "step by step"])
def test_what_was_reached_is_kept_when_the_user_interrupts(forbidden, monkeypatch):
    model = MODELS["one sequence"]
    spy(monkeypatch, allowed=not forbidden)
    history = EM(model).run(num_steps=5, tol=None).history
    pyro.clear_param_store()
    calls = []
    sweep = tensors.evaluate if forbidden else gaussian_steps.GaussianEM.step

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == (4 if forbidden else 5):
            raise KeyboardInterrupt
        return sweep(*args)

    if forbidden:
        monkeypatch.setattr(tensors, "evaluate", interrupted)
    else:
        monkeypatch.setattr(gaussian_steps.GaussianEM, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EM(model).run(num_steps=50, tol=None)
    monkeypatch.undo()
    assert EM(model).evaluate_loss() == pytest.approx(history[3], rel=1e-12)


def test_callback_sees_every_step_in_the_store():
    seen = []

    def look(number: int, loss: float) -> None:
        seen.append((number, loss, pyro.param("loc").detach().clone()))

    result = EM(MODELS["one sequence"]).run(num_steps=4, tol=None, callback=look)
    assert [loss for _, loss, _ in seen] == result.history[1:]
    assert all(not torch.equal(one[2], next_[2]) for one, next_ in zip(seen, seen[1:]))


def test_other_models_and_backends_are_left_alone(monkeypatch):
    found = spy(monkeypatch)
    with ops.backend("reference"):
        EM(MODELS["one sequence"]).run(num_steps=1)

    def one_location() -> None:
        chain = {
            "initial_probs": pyro.param("i", INITIAL, constraint=constraints.simplex),
            "transition_probs": pyro.param("a", TRANSITION, constraint=constraints.simplex),
        }
        normal = dist.MultivariateNormal(pyro.param("one", LOCS[0].clone()), COVARIANCES)
        pyro.sample("x", RegimeHMM(observation_dist=normal, **chain), obs=Y)

    em = EM(one_location)
    em.run(num_steps=1)
    assert [isinstance(each, str) for each in found] == [True, True], found
    assert found[1] in str(em.plan)
